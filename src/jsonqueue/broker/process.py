"""A broker's process: its entry point, its locks, its signals, its exit status.

The manager starts it with one inherited fd, the control Pipe, over which comes first ``sys.path`` (so that it imports what the manager
imported), then :class:`~jsonqueue.channel.control.Start`. Its arguments name it for ``ps``: ``jsonqueue-publisher-broker <folder>``.

==========  ======================================================================================
exits with  because
==========  ======================================================================================
0           it was asked to stop by the manager, or the manager is gone
70          an error of ours, the traceback is on standard error; or no memory was left
others      the exit status of the :class:`~jsonqueue.errors.JsonQueueError` that it told the manager: 74 for a disk that failed, 72 for
            a log that somebody removed
==========  ======================================================================================

When the manager is gone (end of the control Pipe, or of its process) there is nothing to drain for: what was acknowledged is durable,
and the next manager may be waiting for the locks.

SIGINT, SIGTERM and SIGHUP are ignored, from the first instruction on: a terminal, ``timeout`` and systemd send them to the whole group, and
the manager decides what they mean. A broker that ended by itself would be gone while others still drain. ``kill -9`` ends one at any time.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from typing import NoReturn

from jsonqueue.broker.loop import PEER_PENDING_MAX_BYTES, BrokerLoop
from jsonqueue.broker.sides import side_of
from jsonqueue.channel.control import (
    Ask,
    Attach,
    Counters,
    Crowded,
    Draining,
    Failed,
    Forget,
    Marks,
    News,
    Order,
    Ready,
    Rotate,
    Start,
    Stop,
    Waiting,
    decode_order,
    encode,
    failed_by,
)
from jsonqueue.channel.pipe import FdPipe, Pipe
from jsonqueue.clock import SystemClock
from jsonqueue.errors import ConnectionClosed, DiskFull, JsonQueueError, ManagerRunning
from jsonqueue.event import EventOwner
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.locks import FolderLock, hold

__all__ = ["BOOT", "LEFT_TO_THE_MANAGER", "PROCESS_NAMES", "main"]

PROCESS_NAMES = {EventOwner.PUBLISHER_BROKER: "jsonqueue-publisher-broker", EventOwner.CONSUMER_BROKER: "jsonqueue-consumer-broker"}

BOOT = (
    "import sys; pipe = open(int(sys.argv[3]), 'rb', 0, closefd=False); "
    "sys.path[:] = pipe.read(int.from_bytes(pipe.read(4), 'big')).decode('utf-8', 'surrogateescape').split('\\0'); "
    "from jsonqueue.broker.process import main; main()"
)
"""What the interpreter is given with ``-c``. No ``__main__`` is imported again, so no guard is needed there, and notebooks work."""

LEFT_TO_THE_MANAGER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a broker ignores. It is started with them blocked, so that none can end it before it has said so."""

_DRAIN_MS = 1_000
_PARENT_LOOK_MS = 500

_LOCK_S = 1.0
"""A broker that has not got its lock by then tells whom it waits for, and looks this often whether that has changed."""

_ROOM_LOOK_S = 0.2
_ROOM_RETRY_MS = 10_000
_ROOM_MORE_BYTES = 64 * 1024
"""A broker that had no room to start looks this often whether there is so much more by now, and tries again after so long in any case."""

_FILES_KEPT = 32
"""How many open files are not for clients."""

_HINT_OF_MEMORY = "what was acknowledged is in the files; give it more, or let it keep less (finished_keep_max, finished_keep_bytes)"

_log = logging.getLogger("jsonqueue.broker")


class _ManagerGone(Exception):
    """Nobody is left to serve for."""


def main() -> NoReturn:
    """Be the broker that the manager asks for."""
    for number in LEFT_TO_THE_MANAGER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_MANAGER)
    logging.basicConfig(format=f"{sys.argv[1]} [{os.getpid()}] %(levelname)s: %(message)s")
    status = _serve(FdPipe(int(sys.argv[3])))
    logging.shutdown()
    # Not sys.exit(): to take a million tasks apart, one by one, takes a second or two, and serves nobody.
    os._exit(status)


def _serve(control: FdPipe) -> int:
    try:
        desk = _Desk(control)
        desk.open()
        desk.work()
    except _ManagerGone:
        return 0
    except JsonQueueError as error:
        _last_words(control, failed_by(error))
        return error.exit_status
    except MemoryError:
        # Without a traceback: that takes memory too, and where the last of it went says little of where the rest is.
        _last_words(control, Failed("BrokerFailed", f"the {sys.argv[1].replace('-', ' ')} ran out of memory", _HINT_OF_MEMORY))
        return 70
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not go on writing, and the manager must hear of it
        _log.exception("stopped by an error of its own")
        _last_words(control, Failed("BrokerFailed", f"{type(error).__name__}: {error}", "its traceback is on standard error"))
        return 70
    return 0


def _last_words(control: FdPipe, news: News) -> None:
    with contextlib.suppress(ConnectionClosed):  # Then nobody is left to hear them.
        control.post(encode(news))


class _Desk:
    """One broker, its loop, and what the manager asks of it."""

    def __init__(self, control: FdPipe) -> None:
        self._control = control
        self._early: list[Order] = []
        self._start = self._first_order()
        self._clock = SystemClock()
        self._files = open_folder(self._start.queue_dir, create=False)
        self._side = side_of(self._start, self._files, self._clock)
        self._broker = self._side.broker
        self._loop = BrokerLoop(self._broker, self._clock)
        self._files_max = _allow_more_files()
        self._stopping = False
        self._drain_max_ms = 0
        self._ready = False

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Take the lock, recover, and begin to listen."""
        self._lock = self._take_lock()
        self._files.guard(self._lock.check)
        self._open_broker()
        self._side.use_marks(self._loop, self._take_pipe())
        self._loop.watch(self._control, self._hear)
        self._watch_manager()
        for order in self._early:
            self._obey(order)

    def work(self) -> None:
        """Serve until told to stop; then drain."""
        try:
            self._work()
        except JsonQueueError:
            with contextlib.suppress(JsonQueueError):
                self._broker.close()  # If somebody removed its log, this saves it.
            raise

    def _work(self) -> None:
        while not self._stopping:
            self._look_for_manager()
            if not self._ready and self._side.ready:
                self._report_ready()
            self._loop.turn(self._wait_max_ms)
        self._settle()
        self._loop.drain(_DRAIN_MS)
        self._broker.close()
        self._loop.close()
        self._lock.release()

    def _settle(self) -> None:
        """Hear what becomes of the tasks that are out there: consumers that stop in the same moment are about to say it."""
        self._side.drain()
        if held := self._side.unsettled:
            self._tell(Draining(held))
        until_ms = self._clock.monotonic_ms() + self._drain_max_ms
        while self._side.unsettled and (left_ms := until_ms - self._clock.monotonic_ms()) > 0:
            self._look_for_manager()
            self._loop.turn(left_ms if self._wait_max_ms is None else min(left_ms, self._wait_max_ms))

    def _take_lock(self) -> FolderLock:
        """For life, and however long it takes: a predecessor that lost its manager may still be writing its last batch. Who is in the way
        for longer than that (a publisher that was stopped in the midst of its call, say) is told."""
        told = ""
        while True:
            try:
                lock = hold(self._start.queue_dir, self._side.lock, timeout=_LOCK_S, what=PROCESS_NAMES[self._start.role])
                break
            except ManagerRunning as error:
                if error.holder != told:
                    self._tell(Waiting(f"it waits for {error.holder}"))
                    told = error.holder
            self._hear_early(0.0)
        if told:
            self._tell(Waiting(""))
        return lock

    def _open_broker(self) -> None:
        """Where there is no room for its log it waits for some: another start would find as little."""
        while True:
            try:
                self._broker.open()
                return
            except DiskFull as error:
                self._tell(Waiting(f"it waits for room on the disk: {error.message}"))
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        """Until there is more. What a quota leaves shows nowhere, nor do inodes: after a while it is worth a try anyway."""
        free, until_ms = self._files.free_bytes(), self._clock.monotonic_ms() + _ROOM_RETRY_MS
        while self._files.free_bytes() < free + _ROOM_MORE_BYTES and self._clock.monotonic_ms() < until_ms:
            self._hear_early(_ROOM_LOOK_S)

    def _hear_early(self, timeout: float) -> None:
        """What the manager says before there is a broker to obey, if it says something within so many seconds."""
        self._look_for_manager()
        orders = self._next_orders(timeout)
        if any(isinstance(order, Stop) for order in orders):
            raise _ManagerGone  # Nothing was begun: there is nothing to drain.
        self._early += orders

    def _report_ready(self) -> None:
        self._ready = True
        # What is loaded by now stays; the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 100)
        self._tell(Ready(self._broker.epoch))

    # ── the manager ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _first_order(self) -> Start:
        first, *self._early = self._next_orders(None)
        assert isinstance(first, Start)
        return first

    def _next_orders(self, timeout: float | None) -> list[Order]:
        """What the manager says next, waited for; [] when the time is up."""
        try:
            return [decode_order(frame) for frame in self._control.receive(timeout)]
        except ConnectionClosed:
            raise _ManagerGone from None

    def _hear(self) -> None:
        try:
            frames = self._control.read()
            self._control.flush()
        except ConnectionClosed:
            raise _ManagerGone from None
        for frame in frames:
            self._obey(decode_order(frame))

    def _obey(self, order: Order) -> None:
        match order:
            case Attach():
                self._attach(order, self._take_pipe())
            case Marks():
                self._side.use_marks(self._loop, self._take_pipe())
            case Rotate():
                self._loop.afterwards(lambda: self._tell(self._side.rotate(order.request)))
            case Forget():
                self._side.forget(order)
            case Ask():
                self._loop.afterwards(lambda: self._tell(Counters(order.request, self._loop.peers, self._broker.counters())))
            case Stop():
                self._stopping, self._drain_max_ms = True, order.wait_max_ms

    def _attach(self, order: Attach, pipe: Pipe) -> None:
        """Serve this client, unless its Pipe is among the last files that this process may open: those are for the queue's own."""
        if pipe.fileno() < self._files_max - _FILES_KEPT:
            self._loop.attach(order.peer, pipe, order.owner, order.name)
            self._side.met(order.peer, order.pid)
            return
        pipe.close()
        self._tell(Crowded(f"{self._loop.peers} clients are connected, and {self._files_max} open files allowed (ulimit -n)"))

    def _take_pipe(self) -> Pipe:
        (fd,) = self._control.take_fds(1)
        return Pipe(fd, frame_max=self._start.config.frame_max_bytes, pending_max=PEER_PENDING_MAX_BYTES)

    def _tell(self, news: News) -> None:
        try:
            self._control.post(encode(news))
        except ConnectionClosed:
            raise _ManagerGone from None

    # ── the manager's end ───────────────────────────────────────────────────────────────────────────────────────────

    def _watch_manager(self) -> None:
        """The control Pipe ends with the manager, unless a fork of the manager's process holds a copy of it: so look at the process too."""
        self._wait_max_ms: int | None = _PARENT_LOOK_MS
        if sys.platform == "linux":
            try:
                self._loop.watch(os.pidfd_open(self._start.manager_pid), _manager_gone)
            except OSError:
                return  # An old kernel, or the process is gone: both are found out by looking.
            self._wait_max_ms = None
            self._look_for_manager()

    def _look_for_manager(self) -> None:
        if os.getppid() != self._start.manager_pid:
            raise _ManagerGone


def _manager_gone() -> None:
    raise _ManagerGone


def _allow_more_files() -> int:
    """How many files this process may open: each client is one, and the usual 1,024 are a limit for others' sake (select)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit that it does not tell.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if allowed == resource.RLIM_INFINITY else allowed
