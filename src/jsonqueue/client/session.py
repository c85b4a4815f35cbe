"""A consumer's side of its Pipe, with threads and sockets, while workers work, brokers come and go, and handlers take their time.

What is said, when, and what is said again is decided by a :class:`~jsonqueue.client.membership.Membership`, which knows nothing of either.
Here is who waits, who reads, and who holds which lock meanwhile. Who does the I/O? Whoever is best placed to:

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

from jsonqueue.channel.forking import keep_from_forks
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.exchange import Connect
from jsonqueue.client.holdings import OVERDUE_S, Holdings, Slot
from jsonqueue.client.membership import Membership
from jsonqueue.client.outcome import Verdict
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed
from jsonqueue.event import Event, Settled, Welcome, encode
from jsonqueue.task import Task

__all__ = ["Session"]

_log = logging.getLogger("jsonqueue.consumer")

_CONNECT_S = 5.0
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
        self._membership = Membership(holdings, name=name)
        self._connect = connect
        self._decode = decode
        self._timer = timer
        self._on_tasks = on_tasks
        self._on_failure = on_failure
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._pipe: Pipe | None = None
        self._leading = False
        self._waiting = 0
        self._dozing = False
        self._closed = False
        self._bell: socket.socket
        self._rope: socket.socket | None = None
        self._keeper: threading.Thread | None = None

    @property
    def joined(self) -> bool:
        """Whether a broker has welcomed it on the Pipe of the moment."""
        return self._membership.joined

    @property
    def stopping(self) -> bool:
        """Whether nothing more is started."""
        return self._membership.stopping

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def start(self) -> None:
        """Begin to connect, unless it is closed already. Where there is no thread to be had it may be called again."""
        with self._changed:
            if self._closed:
                return
            if self._rope is None:
                # Sockets, and not the fds of a pipe: one that was closed says so, where a bare number may be somebody else's by now.
                self._bell, self._rope = socket.socketpair()
                self._bell.setblocking(False)
                self._rope.setblocking(False)
            self._keeper = threading.Thread(target=self._keep, name="jsonqueue-keeper", daemon=True)
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
        with self._changed:
            task, speak = self._membership.next_task(slot, verdict, self._timer())
            if self._membership.stopping:
                self._changed.notify_all()
        if speak:
            self.flush()
        if task is not None:
            return task
        with self._changed:
            return self._holdings.take(slot, self._timer())

    def hand_back(self, slot: Slot) -> None:
        """What was taken for ``slot`` could not be started: somebody else may, or the slot itself when it asks again."""
        with self._changed:
            self._holdings.hand_back(slot, self._timer())
            if self._membership.stopping:
                self._changed.notify_all()
        self.flush()

    def _lead_or_follow(self) -> bool:
        """Return when there may be a task; False when there will be none any more."""
        with self._changed:
            while not self._holdings.ready:
                if self._membership.stopping:
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
        membership = self._membership
        with self._changed:
            if pipe is not self._pipe and (isinstance(event, Welcome) or (self._pipe is not None and hasattr(event, "tasks"))):
                return  # of a Pipe that was given up meanwhile: on the next one nothing was said of these tasks
            hit = membership.enter(event, self._timer())
            if hasattr(event, "tasks"):
                self._tell_of_tasks(len(event.tasks))
            if membership.stopping:
                self._changed.notify_all()
        if isinstance(event, Settled) and len(event.stale) == 1:
            _log.warning("an outcome came too late and counts no more: its task was cancelled, or handed on")
        elif isinstance(event, Settled) and event.stale:
            _log.warning("%d outcomes came too late and count no more: their tasks were cancelled, or handed on", len(event.stale))
        for slot, token in hit:
            if slot.kill is not None:
                slot.kill(token)
        if isinstance(event, Welcome):
            self.flush()
            self._ring()  # it may have dozed off under another lease
        elif membership.stopping:
            self.flush()

    def _tell_of_tasks(self, count: int) -> None:
        if self._dozing and len(self._holdings.ready) + self._holdings.running > len(self._holdings.slots):
            self._ring()  # some will have to wait: somebody must watch the clock
        if self._on_tasks is not None:
            self._on_tasks()
        elif not self._leading and self._waiting:
            self._changed.notify(count)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Say everything there is to say. Never blocks: what the Pipe has no room for goes with a later call."""
        if self._membership.speaks:
            self._say(self._membership.outgoing)

    def _say(self, decide: Callable[[], list[Event]]) -> None:
        """Decide what to say and say it: nobody comes in between, so frames leave in the order in which they were decided on."""
        with self._sending:
            with self._changed:
                pipe = self._pipe
                if pipe is None or pipe.pending > _PENDING_MAX_BYTES:
                    return
                events = decide()
            if events:
                self._post(pipe, events)

    def _post(self, pipe: Pipe, events: list[Event]) -> None:
        try:
            pipe.post(*map(encode, events))
        except ConnectionClosed as error:
            self._lose(pipe, error)

    def _lose(self, pipe: Pipe, error: Exception) -> None:
        """The Pipe is of no more use."""
        with self._changed:
            if self._pipe is pipe:
                self._pipe = None
                self._membership.lost()
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
        """Nothing works any more: give back what nobody has started, take no more, and let the consumer raise this."""
        _log.error("the consumer takes no more tasks: %s: %s", type(error).__name__, error)
        with self._changed:
            self.failure = error
            self._membership.drain(self._timer(), connected=self._pipe is not None)
            self._changed.notify_all()
        self._ring()
        if self._on_failure is not None:
            self._on_failure()

    def _tend(self, pipe: Pipe) -> None:
        readable = self._watch(pipe)
        if readable and self._reading.acquire(blocking=False):
            try:
                self._receive(pipe, pipe.read)
            finally:
                self._reading.release()
        self._say(lambda: self._membership.tend(self._timer()))
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
        seconds = OVERDUE_S if pipe.pending else self._membership.patience(self._timer())
        return min(seconds, _DOZE_S) if led else seconds

    def _push_on(self, pipe: Pipe) -> None:
        try:
            pipe.flush()
        except ConnectionClosed as error:
            self._lose(pipe, error)

    def _reconnect(self) -> None:
        """Try once."""
        first = not self._membership.backoff_s
        self._pause(self._membership.next_try())
        if self._closed:
            return
        try:
            pipe, config = self._connect(_CONNECT_S)
        except BrokerUnavailable as error:
            if first:
                _log.warning("%s; waiting for one that serves (%s)", error, error.hint)
        else:
            self._join(keep_from_forks(pipe), config)

    def _join(self, pipe: Pipe, config: Config) -> None:
        with self._sending:
            with self._changed:
                if self._closed:
                    pipe.close()
                    return
                self.config = config
                self._pipe = pipe
                self._holdings.refit(config.payload_max_bytes)
                event = self._membership.join(os.getpid())
                self._changed.notify()  # a leader for the new Pipe
            self._post(pipe, [event])

    def _pause(self, seconds: float) -> None:
        bell = select.poll()  # select() takes no fd above 1023, of which a server may have many
        bell.register(self._bell, select.POLLIN)
        if seconds and bell.poll(seconds * 1000):
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
        timeout = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        with self._changed:
            if not self._holdings.draining:  # else another thread waits already
                self._membership.drain(self._timer(), connected=self._pipe is not None)
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
            self._closed = self._membership.stopping = True
            pipe, self._pipe = self._pipe, None
            self._changed.notify_all()
        if pipe is not None:
            pipe.close()
        self._ring()
        keeper = self._keeper
        if keeper is not None and keeper.is_alive():
            keeper.join(_CONNECT_S + 1)
        if self._rope is not None and (keeper is None or not keeper.is_alive()):
            self._rope.close()
            self._bell.close()
