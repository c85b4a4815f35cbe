"""Runs handlers in threads, one a slot: plain functions, and whatever stands for a process of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jsonqueue.client.holdings import Slot
from jsonqueue.client.outcome import NotStarted, Verdict, failure_of, inline, running_in
from jsonqueue.client.patience import Patience
from jsonqueue.client.session import Session
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.errors import InvalidHandler, is_want
from jsonqueue.task import Task

__all__ = ["InlineRunner", "Runner", "Threads", "longer_pause"]

_log = logging.getLogger("jsonqueue.consumer")


class Runner(Protocol):
    """Runs one task at a time."""

    def prepare(self) -> None:
        """Get ready to run; called before the first task, in the thread of the slot. Raises what would make every task fail."""

    def run(self, task: Task[Any]) -> Verdict:
        """Run a task to its verdict. Raises nothing but :class:`NotStarted`."""
        ...

    def kill(self, token: int) -> None:
        """End the run of the task with this token, if it is still in progress and if that is possible. Called from other threads."""

    def dismiss(self) -> None:
        """Begin to give up whatever the runner holds, and end what runs, if that is possible. Waits for nothing."""

    def close(self) -> None:
        """The same, to the end."""


class InlineRunner:
    """Calls the handler in the slot's own thread. Such a run cannot be killed; it can look at ``jsonqueue.current().cancelled``."""

    def __init__(self, handler: Callable[[Task[Any]], object], config: Callable[[], Config]) -> None:
        self.run: Callable[[Task[Any]], Verdict] = inline(handler, config)

    def prepare(self) -> None: ...

    def kill(self, token: int) -> None: ...

    def dismiss(self) -> None: ...

    def close(self) -> None: ...


class Threads:
    """The worker threads of a consumer."""

    def __init__(self, session: Session, slots: Sequence[Slot], runners: Sequence[Runner]) -> None:
        self._session = session
        self._runners = runners
        self._ending = threading.Event()
        self._resting: set[Slot] = set()
        self._places = list(zip(slots, runners, strict=True))
        self._threads: list[threading.Thread] = []
        """Of the first places: those that could be started."""
        for slot, runner in self._places:
            slot.kill = runner.kill

    def start(self) -> None:
        """Begin to work. The first runner gets ready at once, so that a handler that cannot be run is the caller's to know. What
        passes (want of processes, say) is not: the first task tries again. Where there is no thread to be had it may be called again, to
        go on from there."""
        if not self._threads:
            self._prepare(self._runners[0])
        for number, place in enumerate(self._places[len(self._threads) :], len(self._threads) + 1):
            # A daemon: a handler that hangs must not keep the process from ending when its user has lost patience.
            thread = threading.Thread(target=self._work, args=place, name=f"jsonqueue-worker-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """End what still runs, as far as that is possible. The session is closed already."""
        self._ending.set()
        for runner in self._runners:
            runner.dismiss()

    def stop(self) -> None:
        """The same, and wait for the threads to end."""
        self.end()  # all at once: a child process may take a second over what it does at its end
        for runner in self._runners:
            runner.close()
        patience = Patience(_JOIN_S, SystemClock())
        for thread in self._threads:
            thread.join(patience.left)

    def _work(self, slot: Slot, runner: Runner) -> None:
        try:
            running_in(slot)
            self._prepare(runner)
            self._loop(slot, runner.run)
        except BaseException as error:  # noqa: BLE001 - no handler's fault (those never raise): the consumer must end and say so
            if not self._ending.is_set():
                self._session.fail(error)
                if slot.task is not None:  # else its heartbeats would keep it for as long as its process lives
                    self._session.try_next(slot, failure_of(slot.task, error))

    def _prepare(self, runner: Runner) -> None:
        try:
            runner.prepare()
        except (InvalidHandler, OSError, MemoryError) as error:
            # A child process that was still starting when it was told to end has not failed. After a want the first task tries again.
            if not self._ending.is_set() and not is_want(error):
                raise

    def _loop(self, slot: Slot, run: Callable[[Task[Any]], Verdict]) -> None:
        next_task = self._session.next_task
        verdict: Verdict | None = None
        pause_s = 0.0
        while (task := next_task(slot, verdict)) is not None:
            try:
                verdict = run(task)
            except NotStarted as error:
                verdict, pause_s = None, longer_pause(pause_s)
                self._rest(slot, error, pause_s)
            else:
                if pause_s:
                    self._resting.discard(slot)
                    pause_s = 0.0

    def _rest(self, slot: Slot, why: NotStarted, seconds: float) -> None:
        """Hand the task back, since it is no fault of its own, and wait: what is short now would be so in a moment, too."""
        if not self._resting:
            _log.warning("%s; its task is handed back, and the next is tried after a pause, until that works again", why)
        self._resting.add(slot)
        self._session.hand_back(slot)
        self._ending.wait(seconds)


_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.1, 5.0


def longer_pause(seconds: float) -> float:
    """The pause after one of so many seconds (0: after none), for who tries again until what is short now is so no more."""
    return min(max(2 * seconds, _FIRST_PAUSE_S), _PAUSE_MAX_S)


_JOIN_S = 1.0
"""Threads that are stuck in a handler are left behind."""
