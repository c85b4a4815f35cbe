"""What a process asks a queue about its tasks, over one Pipe that all its handles share."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonqueue.client.exchange import Connect, Exchange, Line, NoAnswer
from jsonqueue.client.outcome import cut
from jsonqueue.client.patience import Patience
from jsonqueue.client.presence import register, told_better
from jsonqueue.clock import Clock, SystemClock
from jsonqueue.errors import BrokerUnavailable, ConnectionClosed, ReplayUnknown
from jsonqueue.event import Cancel, Changed, Event, EventOwner, Look, Replay, Result, Watch, decoder_for
from jsonqueue.task import StoredTask

__all__ = ["Caller", "caller_of"]

_ANSWER_S = 30.0
"""How long a broker may take over a question that it can answer at once."""

_SOON_S = 0.25
"""How long who has no time waits all the same, to be connected and to be told how a task stands: once, for all the calls that follow."""

_AGAIN_MS = 2_500
"""How long after it waited so in vain it does not again: asked without end, that takes a tenth of the time."""

_IDS_AT_ONCE = 10_000
"""They come to 1.3 MB at most."""


class Caller:
    """Asks the ConsumerBroker of one queue. Thread-safe; connects when asked something, and anew when the connection breaks."""

    def __init__(self, queue_dir: Path, *, connect: Connect | None = None, clock: Clock | None = None) -> None:
        self.queue_dir = queue_dir
        self.clock = clock or SystemClock()
        self._connect = connect or self._register
        self._exchange = Exchange(queue_dir, self._connect, decoder_for(EventOwner.CONSUMER_BROKER))
        self._lock = threading.Lock()
        self._watches: dict[str, _Watched] = {}
        self._in_vain_ms = -math.inf
        """When somebody without time last waited for a connection that did not come."""

    def look(self, task_id: str) -> StoredTask | None:
        """The task as it stands now; None: the queue holds none of this id. Raises :class:`BrokerUnavailable`."""
        answer, _ = self._ask(lambda request: Look(request, task_id))
        assert isinstance(answer, Result)
        return answer.task

    def cancel(self, task_ids: Sequence[str], *, reason: str = "cancelled by a caller") -> Changed:
        """Cancel tasks; durable when it returns. ``refused`` says of the others why not. A very long ``reason`` is cut, as an error is."""
        reason = cut(reason)
        return self._change(task_ids, lambda request, ids: Cancel(request, ids, reason), second=_credited)

    def replay(self, task_ids: Sequence[str] = ()) -> Changed:
        """Give dead letters another life (no ids: all of them); durable when it returns. Raises :class:`ReplayUnknown`."""
        return self._change(task_ids, Replay, second=_doubted)

    def _change(
        self, task_ids: Sequence[str], event: Callable[[int, list[str]], Event], *, second: Callable[[list[str], Changed], Changed]
    ) -> Changed:
        """Ask for a change of these tasks, so many at once as go into a frame; what came of it all. ``second``: what to make of the answer
        where an earlier one was lost."""
        changed = Changed(0, [])
        for first in range(0, len(task_ids), _IDS_AT_ONCE) or [0]:
            ids = list(task_ids[first : first + _IDS_AT_ONCE])
            answer, again = self._ask(lambda request, ids=ids: event(request, ids))  # type: ignore[misc]
            assert isinstance(answer, Changed)
            answer = second(ids, answer) if again else answer
            changed = Changed(answer.request, changed.ids + answer.ids, changed.refused | answer.refused)
        return changed

    def watch(self, task_id: str, patience: Patience) -> StoredTask | None:
        """The task once it has ended; None: the queue holds none of this id. With no patience at all: whether it has ended by now.

        Raises :class:`NoAnswer` when the patience is over, :class:`BrokerUnavailable` when there is no broker to ask.
        """
        watched = self._join(task_id)
        try:
            return self._ended(watched, patience)
        finally:
            self._leave(watched)

    def _ended(self, watched: _Watched, patience: Patience) -> StoredTask | None:
        least = _SOON_S
        while True:
            line = self._line(patience, least)
            least = 0.0  # A broker that hangs up on everybody must not keep one who has no time.
            try:
                with watched.asking:
                    if watched.line is not line and watched.answer is None:
                        watched.request = self._asked(line, watched.task_id, patience)
                        watched.line = line  # now it is asked, and not before
                return self._answered(watched, patience)
            except ConnectionClosed:
                continue

    def _line(self, patience: Patience, least: float) -> Line:
        """The line, for which ``least`` seconds are waited without any patience, too; where that was in vain, not again at once."""
        if self.clock.monotonic_ms() - self._in_vain_ms < _AGAIN_MS and not self._exchange.connected:
            if patience.over:
                raise BrokerUnavailable(str(self.queue_dir), cause="it did not answer a moment ago", silent=True)
            least = 0.0
        try:
            return self._exchange.line(patience, least=least)
        except BrokerUnavailable as error:
            if error.silent and least:
                self._in_vain_ms = self.clock.monotonic_ms()
            raise

    def _asked(self, line: Line, task_id: str, patience: Patience) -> int:
        """The number of the question. One asked before, whose asker lost patience, still stands; asking it again would make the broker keep
        both."""
        request = line.take_up(task_id)
        if request is None:
            request = self._exchange.number()
            line.ask(request, Watch(request, [task_id]), patience)
            if patience.seconds is not None and patience.seconds <= 0:
                self._hear_of_it(line, task_id)
        return request

    def _hear_of_it(self, line: Line, task_id: str) -> None:
        """Answers come in the order of the questions: behind that to one that can be answered at once stands what there was to be said
        before."""
        soon = Patience(_SOON_S, self.clock)
        look = self._exchange.number()
        line.ask(look, Look(look, task_id), soon)
        try:
            line.answer(look, soon)
        except NoAnswer:
            line.abandon(look)

    def _answered(self, watched: _Watched, patience: Patience) -> StoredTask | None:
        """One thread waits at the line for all that wait for the same task."""
        with watched.waiting if patience.seconds is None else _Acquired(watched.waiting, patience):
            if watched.answer is None:
                assert watched.line is not None
                watched.answer = watched.line.answer(watched.request, patience)
                self._forget(watched)  # Who comes from now on asks anew: a task that was dead may live again.
            return watched.answer.task

    def _join(self, task_id: str) -> _Watched:
        """Wait with all the others that wait for this task."""
        with self._lock:
            watched = self._watches.setdefault(task_id, _Watched(task_id))
            watched.waiters += 1
            return watched

    def _leave(self, watched: _Watched) -> None:
        """Wait no more. The last one takes the question along: its answer, with all of the task in it, would be kept for nobody."""
        with self._lock:
            watched.waiters -= 1
            if watched.waiters:
                return
            if self._watches.get(watched.task_id) is watched:
                del self._watches[watched.task_id]
            if watched.answer is None and watched.line is not None:
                watched.line.abandon(watched.request, watched.task_id)

    def _forget(self, watched: _Watched) -> None:
        with self._lock:
            if self._watches.get(watched.task_id) is watched:
                del self._watches[watched.task_id]

    def _ask(self, event: Callable[[int], Event]) -> tuple[Any, bool]:
        """Ask until answered, and whether an answer was lost before: the broker may have heard the same twice."""
        patience = Patience(_ANSWER_S, self.clock)
        again = False
        while True:
            line = self._exchange.line(patience)
            request, asked = self._exchange.number(), False
            try:
                line.ask(request, event(request), patience)
                asked = True
                return line.answer(request, patience), again
            except ConnectionClosed:
                again = again or asked  # What could not be sent whole was not heard.
            except NoAnswer:
                line.close()
                error = BrokerUnavailable(str(self.queue_dir), cause=f"it did not answer within {_ANSWER_S:g} s", silent=True)
                raise told_better(self.queue_dir, error) from None

    @property
    def connected(self) -> bool:
        """Whether there has been a connection since the last :meth:`close`; it may have broken since."""
        return self._exchange.met

    @property
    def connections(self) -> int:
        """How many there have been."""
        return self._exchange.lines

    def close(self) -> None:
        """Close the connection."""
        self._exchange.close()

    def _register(self, timeout: float) -> Any:
        return register(self.queue_dir, EventOwner.CALLER, timeout=timeout)


class _Watched:
    """A task that somebody waits for."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.asking = threading.Lock()
        self.waiting = threading.Lock()
        self.waiters = 0
        self.line: Line | None = None
        self.request = 0
        self.answer: Result | None = None


class _Acquired:
    """A lock, waited for no longer than the patience lasts."""

    def __init__(self, lock: threading.Lock, patience: Patience) -> None:
        self._lock, self._patience = lock, patience

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._patience.left or 0):
            raise NoAnswer

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def _credited(_: list[str], answer: Changed) -> Changed:
    """What is cancelled already was so by us: this was asked before."""
    ours = [task_id for task_id, said in answer.refused.items() if said == "already cancelled"]
    return Changed(answer.request, [*answer.ids, *ours], {task_id: said for task_id, said in answer.refused.items() if task_id not in ours})


def _doubted(ids: list[str], answer: Changed) -> Changed:
    """What is not dead may be so because of us, or never have been."""
    if answer.refused or not ids:
        raise ReplayUnknown(tuple(answer.refused))
    return answer


_callers: dict[tuple[int, str], Caller] = {}
_callers_lock = threading.Lock()


def _after_fork() -> None:
    global _callers_lock  # noqa: PLW0603 - whoever held the old one stayed behind in the parent
    _callers_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def caller_of(queue_dir: Path) -> Caller:
    """The caller that this process shares for a queue. (After a fork the child gets one of its own.)"""
    key = (os.getpid(), os.path.realpath(queue_dir))
    with _callers_lock:
        caller = _callers.get(key)
        if caller is None:
            caller = _callers[key] = Caller(queue_dir)
        return caller
