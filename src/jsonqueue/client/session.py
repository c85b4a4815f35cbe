"""A consumer's side of its Pipe: keeps the books right while workers work, brokers come and go, and handlers take their time.

Who does the I/O? Whoever is best placed to:

* A worker thread with nothing to do *leads*: it flushes what was finished, then waits at the Pipe and reads for all. With one worker there
  is then no thread switch anywhere between a task's arrival and its handler.
* The *keeper* thread does what cannot wait for a worker: heartbeats, outcomes that have waited 5 ms behind a long handler, buffers that got
  stuck, reconnecting; and the reading, while every worker is busy or there are no worker threads at all (coroutines).

Locks, always taken in this order: ``_reading`` (who reads the Pipe), ``_sending`` (frames leave in the order in which they were packed),
``_changed`` (the books, and news of them). None is held while a handler runs, and only ``_reading`` while somebody waits.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.exchange import Connect
from jsonqueue.client.holdings import OVERDUE_S, Holdings, Slot
from jsonqueue.client.outcome import Verdict
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed
from jsonqueue.event import AssignedEvent, Event, Heartbeat, Join, Revoke, Settled, Welcome, encode
from jsonqueue.task import Task

__all__ = ["Session"]

_log = logging.getLogger("jsonqueue.consumer")

_CONNECT_S = 5.0
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.05, 1.0
_DOZE_S = 0.25
"""How long the keeper may leave the reading to a leader that may have become busy without telling."""
_LOOK_UP_S = 1.0
_PENDING_MAX_BYTES = 4 * 1024 * 1024
_CONFIRM_S = 5.0
"""At the end: how long to wait for the broker to confirm the last outcomes."""


class Session:
    """Joins the queue as a consumer, and stays joined until it is closed."""

    def __init__(
        self,
        holdings: Holdings,
        *,
        name: str,
        connect: Connect,
        decode: Callable[[bytes], Any],
        timer: Callable[[], float],
        on_tasks: Callable[[], None] | None = None,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """``on_tasks`` is called when tasks have come and no worker thread leads; ``on_failure`` when nothing works any more."""
        self.config = Config()
        self.failure: BaseException | None = None
        self._holdings = holdings
        self._name = name
        self._connect = connect
        self._decode = decode
        self._timer = timer
        self._on_tasks = on_tasks
        self._on_failure = on_failure
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._pipe: Pipe | None = None
        self._joined = False
        self._leading = False
        self._waiting = 0
        self._dozing = False
        self._stopping = False
        self._closed = False
        self._lease_s = self.config.lease_ms / 1000
        self._beat_at = 0.0
        self._backoff_s = 0.0
        self._bell: socket.socket
        self._rope: socket.socket | None = None
        self._keeper = threading.Thread(target=self._keep, name="jsonqueue-keeper", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        # Sockets, and not the fds of a pipe: one that was closed says so, where a bare number may be somebody else's by now.
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._keeper.start()

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_task(self, slot: Slot, verdict: Verdict | None = None) -> Task[Any] | None:
        """Settle what ran in ``slot``, and wait for its next task; None: there will be no more."""
        task = self.try_next(slot, verdict)
        while task is None:
            if not self._lead_or_follow():
                return None
            with self._changed:
                task = self._holdings.take(slot, self._timer())
        return task

    def try_next(self, slot: Slot, verdict: Verdict | None = None) -> Task[Any] | None:
        """The same without waiting; None: nothing is there now."""
        holdings = self._holdings
        with self._changed:
            now = self._timer()
            if verdict is not None:
                holdings.settle(slot, verdict, now)
                if self._stopping:
                    self._changed.notify_all()
            if not holdings.frame_full:
                task = holdings.take(slot, now)
                if task is not None:
                    return task
        self.flush()
        with self._changed:
            return holdings.take(slot, self._timer())

    def _lead_or_follow(self) -> bool:
        """Return when there may be a task; False when there will be none any more."""
        with self._changed:
            while not self._holdings.ready:
                if self._stopping:
                    return False
                pipe = self._pipe
                if pipe is not None and not self._leading:
                    self._leading = True
                    break
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            else:
                return True
        try:
            self._lead(pipe)
        finally:
            with self._changed:
                self._leading = False
                if self._waiting:
                    # One to lead in our place, and one for each task beyond our own.
                    self._changed.notify(max(1, len(self._holdings.ready)))
        return True

    def _lead(self, pipe: Pipe) -> None:
        with self._reading:
            if not self._holdings.ready:  # else the keeper has read meanwhile
                self._receive(pipe, lambda: pipe.receive(_LOOK_UP_S))

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, pipe: Pipe, read: Callable[[], list[bytes]]) -> None:
        """Read, and enter what came into the books. The caller holds ``_reading``."""
        try:
            for frame in read():
                self._enter(pipe, self._decode(frame))
        except (ConnectionClosed, BadFrame) as error:
            self._lose(pipe, error)

    def _enter(self, pipe: Pipe, event: Any) -> None:
        if isinstance(event, Welcome):
            self._enter_welcome(pipe, event)
            return
        hit: list[tuple[Slot, int]] = []
        with self._changed:
            if isinstance(event, Settled):
                self._holdings.settled(event.request, event.stale)
                if event.stale:
                    _log.warning("%d outcomes came too late and count no more: their tasks were cancelled, or handed on", len(event.stale))
                if self._stopping:
                    self._changed.notify_all()
            elif isinstance(event, Revoke):
                hit = self._holdings.revoke(event.tokens)
            elif hasattr(event, "tasks"):
                self._enter_tasks(event)
        self._stop_runs(hit)
        if self._stopping:
            self.flush()

    def _enter_tasks(self, event: AssignedEvent) -> None:
        self._holdings.assign(event.tasks, self._timer())
        if self._dozing and len(self._holdings.ready) + self._holdings.running > len(self._holdings.slots):
            self._ring()  # some will have to wait: somebody must watch the clock
        if self._on_tasks is not None:
            self._on_tasks()
        elif not self._leading and self._waiting:
            self._changed.notify(len(event.tasks))

    def _enter_welcome(self, pipe: Pipe, event: Welcome) -> None:
        with self._sending:
            with self._changed:
                if pipe is not self._pipe:
                    return
                hit = self._holdings.revoke(event.stale)
                self._joined = True
                self._backoff_s = 0.0
                self._lease_s = event.lease_ms / 1000
                self._beat_at = self._timer() + self._lease_s / 3
                again = list(self._holdings.unsettled.values())
            # What the lost Pipe may have swallowed is said again, under the same tokens: said twice, it counts once.
            self._post(pipe, again)
        self._stop_runs(hit)
        self.flush()
        self._ring()  # it may have dozed off under another lease

    def _stop_runs(self, runs: list[tuple[Slot, int]]) -> None:
        for slot, token in runs:
            if slot.kill is not None:
                slot.kill(token)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Say everything there is to say. Never blocks: what the Pipe has no room for goes with a later call."""
        if not self._holdings.unsent:
            return
        with self._sending:
            with self._changed:
                pipe = self._pipe
                if pipe is None or not self._joined or pipe.pending > _PENDING_MAX_BYTES:
                    return
                frames = self._holdings.pack()
            self._post(pipe, frames)

    def _post(self, pipe: Pipe, events: list[Event]) -> None:
        try:
            pipe.post(*map(encode, events))
        except ConnectionClosed as error:
            self._lose(pipe, error)

    def _lose(self, pipe: Pipe, error: Exception) -> None:
        """The Pipe is of no more use."""
        with self._changed:
            if self._pipe is pipe:
                self._pipe, self._joined = None, False
                if not self._closed:
                    _log.info("connection to the broker lost (%s); reconnecting", error)
        pipe.close()
        self._ring()

    # ── the keeper ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self) -> None:
        try:
            while not self._closed:
                pipe = self._pipe
                if pipe is None:
                    self._reconnect()
                else:
                    self._tend(pipe)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer must end and say so, not hang
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Nothing works any more: end, and let the consumer raise this."""
        with self._changed:
            self.failure = error
            self._stopping = True
            self._changed.notify_all()
        if self._on_failure is not None:
            self._on_failure()

    def _tend(self, pipe: Pipe) -> None:
        readable = self._watch(pipe)
        if readable and self._reading.acquire(blocking=False):
            try:
                self._receive(pipe, pipe.read)
            finally:
                self._reading.release()
        now = self._timer()
        with self._changed:
            stalled = self._joined and self._holdings.unstall(now)
            due = stalled or (self._holdings.unsent and now - self._holdings.unsent_since >= OVERDUE_S)
        if due:
            self.flush()
        if self._joined and now >= self._beat_at:
            self._beat(pipe, now)
        if pipe.pending:
            self._push_on(pipe)

    def _watch(self, pipe: Pipe) -> bool:
        """Wait until something needs the keeper; whether that is the Pipe."""
        with self._changed:
            led = self._leading
            seconds = self._patience(pipe, led)
            self._dozing = seconds > OVERDUE_S
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if not led:
            try:
                poll.register(pipe, select.POLLIN)
            except ValueError:  # closed a moment ago
                return False
        bell = self._bell.fileno()
        ready = [fd for fd, _ in poll.poll(seconds * 1000)]
        self._dozing = False
        if bell in ready:
            self._silence()
        return any(fd != bell for fd in ready)

    def _patience(self, pipe: Pipe, led: bool) -> float:
        if self._holdings.unsent or self._holdings.ready or pipe.pending:
            return OVERDUE_S
        beat = max(0.0, self._beat_at - self._timer()) if self._joined else _LOOK_UP_S
        return min(beat, _DOZE_S) if led else beat

    def _beat(self, pipe: Pipe, now: float) -> None:
        self._beat_at = now + self._lease_s / 3
        with self._sending:
            with self._changed:
                ids, tokens = self._holdings.leased()
                event = Heartbeat(ids, tokens, self._holdings.want)
            self._post(pipe, [event])

    def _push_on(self, pipe: Pipe) -> None:
        try:
            pipe.flush()
        except ConnectionClosed as error:
            self._lose(pipe, error)

    def _reconnect(self) -> None:
        """Try once. The backoff begins anew only with a Welcome: a broker that takes calls and then hangs up is no broker yet."""
        self._pause(self._backoff_s)
        first, self._backoff_s = not self._backoff_s, min(max(2 * self._backoff_s, _BACKOFF_FIRST_S), _BACKOFF_MAX_S)
        if self._closed:
            return
        try:
            pipe, config = self._connect(_CONNECT_S)
        except BrokerUnavailable as error:
            if first:
                _log.warning("%s; waiting for one (%s)", error, error.hint)
        else:
            self._join(pipe, config)

    def _join(self, pipe: Pipe, config: Config) -> None:
        with self._sending:
            with self._changed:
                if self._closed:
                    pipe.close()
                    return
                self.config = config
                self._pipe = pipe
                self._holdings.stats.connections += 1
                ids, tokens = self._holdings.held()
                event = Join(self._name, os.getpid(), self._holdings.want, ids, tokens)
                self._changed.notify()  # a leader for the new Pipe
            self._post(pipe, [event])

    def _pause(self, seconds: float) -> None:
        if seconds and select.select([self._bell], [], [], seconds)[0]:
            self._silence()

    def _ring(self) -> None:
        """Wake the keeper."""
        rope = self._rope
        if rope is not None:
            with suppress(OSError):  # Full: it rings already. Closed: nobody is there to hear it.
                rope.send(b"!")

    def _silence(self) -> None:
        with suppress(BlockingIOError):
            self._bell.recv(4096)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, timeout: float | None) -> bool:
        """Start nothing more, wait until what runs has ended and the broker knows it; whether that came to pass in time."""
        with self._changed:
            self._stopping = True
            self._holdings.drain(self._timer(), farewell=self._pipe is not None)
            self._changed.notify_all()
        self.flush()
        self._ring()
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._holdings.running or self.failure is not None, timeout)
        self.flush()
        if not ended or self.failure is not None:
            return False
        with self._changed:
            confirm_s = _CONFIRM_S if timeout is None else min(_CONFIRM_S, max(timeout, 0.1))
            return self._changed.wait_for(lambda: self._holdings.idle or self.failure is not None, confirm_s) and self.failure is None

    def close(self) -> None:
        """Leave, whatever is still to be said."""
        with self._changed:
            if self._closed:
                return
            self._closed = self._stopping = True
            pipe, self._pipe = self._pipe, None
            self._changed.notify_all()
        if pipe is not None:
            pipe.close()
        self._ring()
        if self._keeper.is_alive():
            self._keeper.join(_CONNECT_S + 1)
        if self._rope is not None and not self._keeper.is_alive():
            self._rope.close()
            self._bell.close()
