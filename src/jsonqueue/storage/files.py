"""The one small door to the disk: a dozen primitive operations on one folder.

Everything above asks for nothing else, so that another implementation can stand in for the disk:
:class:`~jsonqueue.storage.memory.MemoryFiles` keeps a volatile and a durable plane and can lose its power. The code above builds on this:

* ``create`` is exclusive: it fails with :class:`FileExistsError` rather than open what is there.
* ``write_at`` writes over what is there and behind it, and may write less than it was given. What it wrote is durable only after ``sync``;
  of what it wrote over, each sector then is as it was or as it was to be.
* A name that was created, renamed, linked or unlinked is durable only after ``sync_folder`` of its folder.
* A ``sync`` that failed says nothing about what the disk holds, and neither would a second one: the handle is poisoned.

Names are relative to the folder and at most one folder deep (``archive/2026-11.jsonl``).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, Protocol

from jsonqueue.config import CONFIG_FILE
from jsonqueue.errors import DiskFull, FolderRefused, StorageError, SyncFailed, UnreadableFile

__all__ = ["NO_ROOM", "Files", "Identity", "RealFiles", "read_around", "write_all"]

Identity = tuple[int, int, int]
"""(inode, size, mtime in ns): differs when a file was replaced or written to."""


class Files(Protocol):
    """Primitive operations on the files of one queue folder."""

    def open(self, name: str, *, create: bool = False) -> int:
        """A handle for reading and writing. ``create``: the file must not exist yet; it is made with mode 0600."""
        ...

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end of the file. Raises :class:`UnreadableFile`."""
        ...

    def write_at(self, handle: int, offset: int, data: bytes) -> int:
        """Write ``data`` from ``offset`` on and return how much of it was written. Raises :class:`DiskFull` when nothing fits.

        ``offset`` is not beyond the end of the file. What lies there is written over, what does not fit before the end makes it longer.
        """
        ...

    def truncate(self, handle: int, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        ...

    def size(self, handle: int) -> int:
        """Length of the file in bytes."""
        ...

    def sync(self, handle: int) -> None:
        """Make what was written durable. Raises :class:`SyncFailed`, for good: the handle takes no more writes."""
        ...

    def close(self, handle: int) -> None:
        """Give the handle back."""
        ...

    def sync_folder(self, name: str = "") -> None:
        """Make the names in this folder (default: the queue folder itself) durable."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file a new name, replacing what had it, atomically for readers."""
        ...

    def link(self, old: str, new: str) -> None:
        """Give a file a second name. Raises :class:`FileExistsError`."""
        ...

    def unlink(self, name: str) -> None:
        """Take a name away. Raises :class:`FileNotFoundError`."""
        ...

    def list(self, folder: str = "") -> list[str]:
        """Names in this folder, sorted. A folder that does not exist holds none."""
        ...

    def make_folder(self, name: str) -> None:
        """Make a folder (0700) unless it is there."""
        ...

    def remove_folder(self, name: str) -> None:
        """Take away a folder that is empty."""
        ...

    def identity(self, name: str) -> Identity | None:
        """What tells this file from another that had, or will have, its name; None when there is none."""
        ...

    def has_name(self, handle: int, name: str) -> bool:
        """Whether this name is that of the file the handle is for; not so when somebody removed, moved or replaced it."""
        ...

    def free_bytes(self) -> int:
        """Room left on the disk for this user."""
        ...


def write_all(files: Files, handle: int, offset: int, data: bytes, *, enough: int | None = None) -> int:
    """Write ``data`` from ``offset`` on, however short the single writes are, and return where that ended.

    ``enough``: so much of it has to be written; the rest is only written if one write takes it.
    """
    enough = len(data) if enough is None else enough
    written = files.write_at(handle, offset, data)
    while written < enough:
        written += files.write_at(handle, offset + written, data[written:])
    return offset + written


_PIECES = (1 << 20, 4096, 512)


def read_around(files: Files, handle: int) -> tuple[bytes, list[tuple[int, int]]]:
    """All bytes of a file, with NULs for those that the disk does not give back; and which these are: (offset, how many), in order."""
    gaps: list[tuple[int, int]] = []
    return _read_around(files, handle, 0, files.size(handle), _PIECES, gaps), gaps


def _read_around(files: Files, handle: int, start: int, stop: int, pieces: tuple[int, ...], gaps: list[tuple[int, int]]) -> bytes:
    try:
        return files.read(handle, start, stop - start)
    except UnreadableFile:
        if not pieces:
            before, length = gaps.pop() if gaps and sum(gaps[-1]) == start else (start, 0)
            gaps.append((before, length + stop - start))
            return bytes(stop - start)
    size, *smaller = pieces
    starts = range(start, stop, size)
    return b"".join(_read_around(files, handle, at, min(at + size, stop), tuple(smaller), gaps) for at in starts)


class RealFiles:
    """The folder on the machine's own disk. Names are resolved against a descriptor of the folder, and never through a symbolic link."""

    def __init__(self, root: str | Path, *, read_only: bool = False) -> None:
        self.root = Path(root)
        self.read_only = read_only
        self._folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._poisoned: set[int] = set()
        self._names: dict[int, str] = {}
        """What the files that are open are called, for messages."""
        self._inodes: dict[int, tuple[int, int]] = {}
        self._found: dict[int, tuple[str, str]] = {}
        """The name that a file that is open was found to have, and what the system said of it then."""
        self._check = _unguarded

    def guard(self, check: Callable[[], None]) -> None:
        """From now on ``check()`` is called before anything is changed, and after each sync; what it raises is raised here.

        A writer that was stopped (SIGSTOP, a suspended machine) and lost its lock meanwhile thus writes nothing when it wakes up. Should
        it be stopped in the midst, the look after the sync keeps it from acknowledging what its successor has not read.
        """
        self._check = check

    def shut(self) -> None:
        """Close the folder; nothing works afterwards. Open handles stay valid."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def open(self, name: str, *, create: bool = False) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # NONBLOCK: a planted FIFO must not hang the broker
        # Not O_APPEND: on Linux pwrite would append, too.
        # Of all files the settings alone are the user's, who may well have made them read-only.
        flags |= os.O_RDONLY if self.read_only or name == CONFIG_FILE else os.O_RDWR
        if create:
            self._check()
            flags |= os.O_CREAT | os.O_EXCL
        try:
            handle = os.open(name, flags, 0o600, dir_fd=self._folder)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                _refuse(self.root / name)
            raise _explained(error, name) from error
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(handle)
            _refuse(self.root / name)
        self._names[handle], self._inodes[handle] = name, (found.st_dev, found.st_ino)
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        got, parts = 0, []
        try:
            data = os.pread(handle, size, offset)
            if len(data) == size or not data:
                return data
            while data:
                parts.append(data)
                got += len(data)
                data = os.pread(handle, size - got, offset + got) if got < size else b""
        except OSError as error:
            if error.errno == errno.EBADF:
                raise  # a fault of ours, not of the disk
            raise UnreadableFile(self._names.get(handle, "a file of the queue"), offset=offset + got, why=f"{error.strerror}") from error
        return b"".join(parts)

    def write_at(self, handle: int, offset: int, data: bytes) -> int:
        self._refuse_poisoned(handle)
        self._check()
        try:
            return os.pwrite(handle, data, offset)
        except OSError as error:
            raise _explained(error, "a file of the queue") from error

    def truncate(self, handle: int, size: int) -> None:
        self._refuse_poisoned(handle)
        self._check()
        with _explaining("a file of the queue"):
            os.ftruncate(handle, size)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def sync(self, handle: int) -> None:
        self._refuse_poisoned(handle)
        try:
            _data_sync(handle)
        except OSError as error:
            self._poisoned.add(handle)
            raise SyncFailed(
                f"fsync failed: {error.strerror}", hint="what the disk holds is unknown; the brokers start anew from it"
            ) from error
        self._check()

    def close(self, handle: int) -> None:
        self._poisoned.discard(handle)
        self._names.pop(handle, None)
        self._inodes.pop(handle, None)
        self._found.pop(handle, None)
        os.close(handle)

    def sync_folder(self, name: str = "") -> None:
        handle = os.open(name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            os.fsync(handle)
        except OSError as error:
            raise SyncFailed(f"fsync of the folder failed: {error.strerror}") from error
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        self._check()
        with _explaining(new):
            os.replace(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        for handle in [handle for handle, name in tuple(self._names.items()) if name == old]:
            self._names[handle] = new

    def link(self, old: str, new: str) -> None:
        self._check()
        with _explaining(new):
            os.link(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def unlink(self, name: str) -> None:
        self._check()
        try:
            os.unlink(name, dir_fd=self._folder)
        except (IsADirectoryError, PermissionError) as error:  # of a folder: Linux says the one, macOS the other
            raise _explained(error, name) from error

    def list(self, folder: str = "") -> list[str]:
        try:
            handle = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(handle))
        finally:
            os.close(handle)

    def make_folder(self, name: str) -> None:
        with suppress(FileExistsError), _explaining(name):
            os.mkdir(name, 0o700, dir_fd=self._folder)
        self.check_folder(name)

    def remove_folder(self, name: str) -> None:
        self._check()
        with _explaining(name):
            os.rmdir(name, dir_fd=self._folder)

    def check_folder(self, name: str) -> None:
        """Raise :class:`FolderRefused` if what has this name is not a folder of ours: what is in it would be looked for elsewhere."""
        try:
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            _refuse(self.root / name, "a folder of ours")

    def identity(self, name: str) -> Identity | None:
        try:
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def has_name(self, handle: int, name: str) -> bool:
        # Linux tells where an open file is, and whether it was removed, without a look at its times. To see those at each batch cost
        # publishing one by one 15 % of its rate: we take it that the kernel then notes them anew at the next write.
        told = _told_of(handle)
        if told and self._found.get(handle) == (name, told):
            return True
        try:
            found = os.lstat(name, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _explained(error, name) from error
        has = (found.st_dev, found.st_ino) == self._inodes[handle]
        if has:
            self._found[handle] = (name, told)
        return has

    def free_bytes(self) -> int:
        room = os.fstatvfs(self._folder)
        return room.f_bavail * room.f_frsize

    def _refuse_poisoned(self, handle: int) -> None:
        if handle in self._poisoned:
            raise SyncFailed("an earlier fsync of this file failed; it takes no more writes")


if sys.platform == "darwin":
    import fcntl

    def _data_sync(handle: int) -> None:  # pragma: no cover - on macOS only
        # On macOS fsync leaves the data in the drive's cache.
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)

else:
    _data_sync = os.fdatasync


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room."""


def _unguarded() -> None:
    """Nobody else writes here."""


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        raise _explained(error, name) from error


def _told_of(handle: int) -> str:
    """Where Linux says that an open file is; empty where nobody says so."""
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return ""


def _explained(error: OSError, name: str) -> StorageError:
    """What the system said, as an error of ours."""
    if error.errno in NO_ROOM:
        return DiskFull(f"no room for {name}: {error.strerror}", hint="free some space; nothing that was acknowledged is touched")
    return StorageError(f"{name}: {error.strerror}")


def _refuse(path: Path, expected: str = "a regular file") -> NoReturn:
    raise FolderRefused(f"{path} is not {expected}", hint="somebody put something else where a part of the queue belongs; move it away")
