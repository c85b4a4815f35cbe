"""Who may write what: one lock file for each of the three writers, held for the writer's life.

``queue.lock`` is the manager's (queue.json and the archive), ``published.lock`` and ``progress.lock`` are the brokers'. The lock is the
kernel's (flock, through filelock), so it ends with its process, however that ends. A lock file is made once and stays: to delete one
would part the waiters onto two files. What is written into it says who holds it, for people to read; nothing else rests on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from filelock import Timeout, UnixFileLock
from msgspec import DecodeError, Struct, json

from jsonqueue.errors import FolderRefused, LockLost, ManagerRunning
from jsonqueue.storage.files import NO_ROOM

__all__ = ["FolderLock", "LockName", "hold", "hold_all", "holder"]

LockName = Literal["queue", "published", "progress"]

_GUARDS: dict[str, str] = {"queue": "queue.json", "published": "the published log", "progress": "the progress log"}


class _Holder(Struct):
    pid: int
    started: str
    """What tells the process from a later one of the same pid; empty where the system does not say."""
    what: str
    inode: int = 0
    """Of the file: in a copy of it, made with the folder while that was in use, it is another's. 0: it does not say."""


class _Replaced(Exception):
    """The lock file that was locked is not the one that has its name now."""


class FolderLock:
    """A lock that is held. Release it, or leave its ``with`` block."""

    def __init__(self, path: Path, what: str) -> None:
        """Use :func:`hold`."""
        self._path, self._what = path, what
        self._name = os.fspath(path)
        self._descriptor = -1
        self._inode: tuple[int, int] | None = None
        self._lock = UnixFileLock(
            path, mode=0o600, thread_local=False, fallback_to_soft=False, preserve_lock_file=True, on_acquired=self._introduce
        )

    def intact(self) -> bool:
        """Whether the lock file is still the one that was locked: if somebody replaced it, somebody else may hold the new one.

        One look at a name, 2 µs: it is asked twice for each batch.
        """
        try:
            found = os.lstat(self._name)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def check(self) -> None:
        """Raise :class:`LockLost` unless it is :meth:`intact`."""
        if not self.intact():
            raise LockLost(self._name)

    def release(self) -> None:
        """Give it back. The file stays, emptied."""
        if self._lock.is_locked:
            self._inode = None
            with suppress(OSError):  # A disk that copies on write may have no room for it: then it says who held it, and nobody does.
                os.ftruncate(self._descriptor, 0)
            self._lock.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _introduce(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        self._descriptor, self._inode = descriptor, (found.st_dev, found.st_ino)
        if not self.intact():
            self._inode = None
            raise _Replaced
        told = json.encode(_Holder(os.getpid(), _started(os.getpid()), self._what, found.st_ino)) + b"\n"
        try:
            os.ftruncate(descriptor, os.pwrite(descriptor, told, 0))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise  # On a full disk nobody is told who holds it; it is held all the same.

    def _acquire(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
                return
            except _Replaced:
                continue


def hold(queue_dir: str | Path, name: LockName, *, timeout: float = 0.0, what: str = "") -> FolderLock:
    """Take a lock and keep it. Waits up to ``timeout`` seconds (0: not at all).

    ``what`` is told to those who find it held. Raises :class:`ManagerRunning` that names the holder; nothing was written then.
    """
    lock = FolderLock(_path_of(queue_dir, name), what)
    try:
        lock._acquire(timeout)
    except Timeout:
        told = holder(queue_dir, name) or "another process"
        raise ManagerRunning(str(queue_dir), holder=told if name == "queue" else f"{told}, which holds {_GUARDS[name]}") from None
    except OSError as error:
        raise FolderRefused(f"{_path_of(queue_dir, name)} cannot be locked: {error.strerror or error}") from error
    return lock


@contextmanager
def hold_all(queue_dir: str | Path, *, timeout: float, what: str) -> Iterator[Callable[[], None]]:
    """All three, for what needs the folder alone, as :func:`hold` takes one; with what raises :class:`LockLost` unless all are intact."""
    with ExitStack() as stack:
        locks = [stack.enter_context(hold(queue_dir, name, timeout=timeout, what=what)) for name in get_args(LockName)]

        def check() -> None:
            for lock in locks:
                lock.check()

        yield check


def holder(queue_dir: str | Path, name: LockName) -> str:
    """Who holds a lock, by what its file says: ``process 812 (jsonqueue serve)``. Empty when nobody who lives claims to."""
    try:
        text, inode = _read(_path_of(queue_dir, name))
        told = json.decode(text, type=_Holder)
    except (OSError, DecodeError, UnicodeDecodeError):
        return ""
    if told.inode not in (0, inode) or not _is_alive(told):
        return ""
    return f"process {told.pid} ({told.what})" if told.what else f"process {told.pid}"


def _read(path: Path) -> tuple[bytes, int]:
    # Neither through a planted link, nor for ever at a planted pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096), os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def _path_of(queue_dir: str | Path, name: LockName) -> Path:
    return Path(queue_dir).resolve() / f"{name}.lock"


def _is_alive(told: _Holder) -> bool:
    try:
        os.kill(told.pid, 0)
    except (ProcessLookupError, OverflowError):  # Whoever wrote that into the file: no process has a number beyond the kernel's.
        return False
    except PermissionError:
        pass
    return _started(told.pid) == told.started


def _started(pid: int) -> str:
    """When a process was started, in the kernel's own unit."""
    try:
        # The name in field 2 may hold anything; what follows its closing parenthesis is fields 3, 4, ...
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
