"""BrokerManager: starts, registers, watches, restarts, checkpoints, stops. It never carries a task."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from jsonqueue.broker.narration import Narration
from jsonqueue.broker.supervisor import Supervisor
from jsonqueue.channel.registration import Action, ManagerStatus, Report
from jsonqueue.clock import SystemClock
from jsonqueue.config import CONFIG_FILE, Config, checked
from jsonqueue.errors import BrokerUnavailable, InvalidConfig, StorageError, command_for
from jsonqueue.signals import heeded
from jsonqueue.storage.checkpoint import clear_draft
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.folder import absolute, load_config, open_folder, renamable_in
from jsonqueue.storage.locks import FolderLock, hold
from jsonqueue.waits import WAIT_MAX_MS

__all__ = ["BrokerManager"]

_AT_ONCE_S = 2.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BrokerManager:
    """Serves one queue folder with two broker processes, for as long as the ``with`` block lasts.

    ``with BrokerManager("queue_data") as manager: ...`` creates the folder if need be, waits until both brokers are ready, and at the end
    drains, folds the logs into queue.json and leaves no process behind. A supervisor thread does the work; the caller's thread is free.
    """

    def __init__(
        self, queue_dir: str | os.PathLike[str], config: Config | None = None, *, grace: float = 10.0, what: str = "BrokerManager"
    ) -> None:
        """``config`` None: the folder's own ``jsonqueue.toml``, or the defaults. ``grace``: seconds to wait at the end for what
        consumers hold.

        ``what``: how this manager is called in the message that a second one gets (``jsonqueue serve``, say). Raises
        :class:`InvalidConfig`.
        """
        self.queue_dir = absolute(queue_dir)
        self._config = config if config is None else checked(config)
        self._grace_ms = round(min(grace * 1000, WAIT_MAX_MS))
        self._what = what
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._started_by = 0
        self._on_change: Callable[[], None] = _nothing

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Take the folder and start the brokers; returns at once (see :meth:`wait_ready`).

        Raises :class:`ManagerRunning` (exit status 75, nothing written) if the folder is served already, :class:`StorageError` and below
        if it cannot be used, :class:`InvalidConfig` if its settings are wrong.
        """
        if self._thread is not None:
            raise RuntimeError("a BrokerManager is started once; make another one")
        files = open_folder(self.queue_dir, create=True)
        try:
            lock = hold(self.queue_dir, "queue", what=self._what)
        except BaseException:
            files.shut()
            raise
        try:
            files.guard(lock.check)
            clear_draft(files)
            config = self._settings(files)
            if above := renamable_in(self.queue_dir):
                Narration(self.queue_dir).renamable(above)
            self._supervisor = Supervisor(
                self.queue_dir, files, config, SystemClock(), grace_ms=self._grace_ms, check_lock=lock.check, on_change=self._has_changed
            )
            self._supervisor.begin()
            thread = threading.Thread(target=self._run, args=(self._supervisor, lock, files), name="jsonqueue-manager", daemon=True)
            try:
                thread.start()
            except BaseException:  # no thread is to be had
                self._supervisor.abandon()
                raise
        except BaseException:
            self._supervisor = None
            _release(lock, files)
            raise
        self._thread = thread
        self._started_by = os.getpid()
        # For a program that forgets to stop it. The thread is a daemon so that such a program ends at all.
        atexit.register(self._stop_at_exit)

    def wait_ready(self, timeout: float | None = 60.0) -> None:
        """Return when both brokers serve. Raises the error that stopped the manager, or :class:`BrokerUnavailable` when the time is up."""
        supervisor = self._running()
        if not supervisor.ready.wait(timeout):
            why = supervisor.waits_for or "they are still loading the queue"
            raise BrokerUnavailable(self.queue_dir, cause=f"the brokers were not ready within {timeout:g} s: {why}")
        if supervisor.error is not None:
            raise supervisor.error
        if supervisor.ended.is_set():
            raise BrokerUnavailable(self.queue_dir, cause="this BrokerManager has stopped")

    def stop(self) -> None:
        """Drain, checkpoint, end both brokers, release the folder. Idempotent. Raises the error that had stopped the manager, if any.

        In a fork of the process that started it, it does nothing.
        """
        if self._supervisor is None or self._thread is None or self._inherited:
            return
        self._supervisor.stop()
        self._thread.join()
        atexit.unregister(self._stop_at_exit)
        if self._supervisor.error is not None:
            raise self._supervisor.error

    @property
    def running(self) -> bool:
        """Whether it serves: from :meth:`start` until it was stopped, by whomever."""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> Self:
        """Start, and wait until both brokers are ready."""
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self._stop_at_exit()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def _run(self, supervisor: Supervisor, lock: FolderLock, files: RealFiles) -> None:
        try:
            supervisor.run()
        finally:
            _release(lock, files)

    def _settings(self, files: RealFiles) -> Config:
        """Those given, or the folder's own. Raises :class:`InvalidConfig` for what nobody would heed."""
        if self._config is None:
            return load_config(files)
        if self._config.redact_keys and self._config.redact_keys != load_config(files).redact_keys:
            raise InvalidConfig(
                "redact_keys cannot be set for one run: no broker prints payloads, and the commands that do would not know of it",
                hint=f"write it into {files.root / CONFIG_FILE}, where they read it",
            )
        return self._config

    def _has_changed(self) -> None:
        self._on_change()

    def _stop_at_exit(self) -> None:
        if self._supervisor is not None and self._thread is not None and not self._inherited:
            self._supervisor.stop()
            self._thread.join()

    @property
    def _inherited(self) -> bool:
        """Whether this process is a fork of the one that started it, without the thread that does the work."""
        return self._started_by not in {0, os.getpid()}

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise BrokerUnavailable(self.queue_dir, cause="this BrokerManager is not started")
        if self._inherited:
            raise RuntimeError(
                f"this BrokerManager is of process {self._started_by}, of which this one is a fork: ask it there, or from anywhere by:"
                f" {command_for(self.queue_dir, 'status')}"
            )
        return self._supervisor

    # ── what may be asked of it ──────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> ManagerStatus:
        """How the manager and its brokers stand."""
        return self._ask("status", timeout=5.0).status

    def checkpoint(self, timeout: float = 60.0) -> None:
        """Bring queue.json up to date now; returns when it is durable. Raises :class:`StorageError` if it could not be, and says why."""
        report = self._ask("checkpoint", timeout=timeout)
        if not report.ok:
            raise StorageError(f"no checkpoint was made: {report.message}")

    def _ask(self, action: Action, *, timeout: float) -> Report:
        supervisor = self._running()
        reports: list[Report] = []
        told = threading.Event()

        def answer(report: Report) -> None:
            reports.append(report)
            told.set()

        supervisor.ask(action, answer)
        while not told.wait(min(timeout, 0.05)):
            timeout -= 0.05
            if supervisor.ended.is_set() and not told.is_set():
                raise supervisor.error or BrokerUnavailable(self.queue_dir, cause="this BrokerManager has stopped")
            if timeout <= 0:
                raise BrokerUnavailable(self.queue_dir, cause="the manager did not answer in time")
        return reports[0]

    # ── as a program of its own ──────────────────────────────────────────────────────────────────────────────────────

    def serve_forever(self, *, on_ready: Callable[[], None] | None = None) -> None:
        """Serve until SIGINT, SIGTERM, SIGHUP or an operator's stop, then :meth:`stop`. A second signal ends at once, still consistent.

        For the main thread. Starts the manager if it is not started: then no moment is without somebody who heeds signals. ``on_ready`` is
        called, in this thread, when both brokers serve, however long that takes. Raises the error that stopped the manager, if any.
        """
        woken, waker = socket.socketpair()
        waker.setblocking(False)
        with woken, waker, heeded(_signals_to_heed(), waker):
            self._on_change = lambda: _poke(waker)
            if self._thread is None:
                self.start()
            _poke(waker)
            try:
                ended = self._await_end(self._running(), woken, on_ready or _nothing)
            finally:
                self._on_change = _nothing
        if ended:
            self.stop()
        else:
            atexit.unregister(self._stop_at_exit)

    def _await_end(self, supervisor: Supervisor, woken: socket.socket, on_ready: Callable[[], None]) -> bool:
        """Each byte is the number of a signal, or 0: look how the supervisor stands. False: it was too busy to end at once."""
        signals, told = b"", False
        while not supervisor.ended.is_set():
            received = woken.recv(64)
            # The program may heed other signals for purposes of its own: those are here as well.
            if stops := bytes(byte for byte in received if byte in _STOP_SIGNALS):
                signals += stops
                supervisor.stop(at_once=_orders(signals) > 1)
            if _orders(signals) > 1:
                # In the midst of a checkpoint, say. Leaving that half-done is safe: the thread and its locks end with the process.
                return supervisor.ended.wait(_AT_ONCE_S)
            if not told and not signals and supervisor.ready.is_set() and not supervisor.ended.is_set():
                told = True
                on_ready()
        return True


def _orders(signals: bytes) -> int:
    """So many orders to stop. Of a terminal that is closed the shell tells, and the kernel when that has ended: that is one."""
    return len(signals) - max(0, signals.count(signal.SIGHUP) - 1)


def _signals_to_heed() -> list[int]:
    """Whoever started us with SIGHUP ignored (nohup) meant it."""
    return [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP]


def _poke(waker: socket.socket) -> None:
    with contextlib.suppress(OSError):  # Nobody waits any more.
        waker.send(b"\0")


def _release(lock: FolderLock, files: RealFiles) -> None:
    lock.release()
    files.shut()


def _nothing() -> None:
    pass
