"""The simulated disk: :class:`~jsonqueue.storage.memory.MemoryFiles` with time, moods, and a view of what would survive.

Three things stand on it:

* :class:`Disk` is the machine's one disk: two planes, power cuts by sector and by name, a limit, syncs that fail.
* :class:`ProcessFiles` is what a process holds of it. Each operation takes time, in which others may run; a process that was killed
  meanwhile goes no further.
* :class:`DurableView` shows the durable plane alone, read-only: what would be there if the power went away *now*. The judges look at that
  whenever something is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from jsonqueue.errors import StorageError, SyncFailed
from jsonqueue.storage.files import Identity
from jsonqueue.storage.memory import MemoryFiles, names_in

__all__ = ["Disk", "DurableView", "Killed", "ProcessFiles"]

DISK_BYTES = 1 << 40


class Killed(BaseException):
    """kill -9 in the midst of an operation. Not an Exception, so that no handler takes it for an ordinary failure."""


class Disk(MemoryFiles):
    """One machine's disk."""

    def __init__(self) -> None:
        super().__init__(room=DISK_BYTES)
        self.read_us = 0
        self.write_us = 8
        self.sync_us = 180
        """How long an operation takes at the moment."""
        self.sync_fails = 0
        """So many of the next syncs fail."""
        self.full_since_us: int | None = None
        """Since when somebody else has filled it, if he has."""

    def sync(self, handle: int) -> None:
        """As ever, unless the disk reports an error: then nobody knows what it holds, and the handle takes no more."""
        if self.sync_fails > 0:
            self.sync_fails -= 1
            self._poisoned.add(handle)
            raise SyncFailed("the simulated disk reports EIO")
        super().sync(handle)

    def _step(self, operation: str) -> None:
        self.operations += 1  # without the readable trace of the base: a world does millions
        self.fail(self.operations, operation)

    def _name_of(self, inode: object) -> str:
        return ""

    def fill(self, left: int, now_us: int) -> None:
        """Somebody else takes all but so many bytes."""
        self.room = min(self.room, left)
        self.full_since_us = now_us if self.full_since_us is None else self.full_since_us

    def empty(self) -> None:
        """There is room again."""
        self.room = DISK_BYTES
        self.full_since_us = None


class ProcessFiles:
    """The disk as one process has it. ``spend`` lets time pass, and raises :class:`Killed` when the process died meanwhile."""

    def __init__(self, disk: Disk, spend: Callable[[int], None]) -> None:
        self._disk = disk
        self._spend = spend
        self.dead = False
        self.handles: set[int] = set()
        """What it has open."""

    def open(self, name: str, *, create: bool = False) -> int:
        self._spend(self._disk.write_us if create else self._disk.read_us)
        handle = self._disk.open(name, create=create)
        self.handles.add(handle)
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        if self._disk.read_us:
            self._spend(self._disk.read_us)
        return self._disk.read(handle, offset, size)

    def write_at(self, handle: int, offset: int, data: bytes) -> int:
        self._spend(self._disk.write_us)
        return self._disk.write_at(handle, offset, data)

    def truncate(self, handle: int, size: int) -> None:
        self._spend(self._disk.write_us)
        self._disk.truncate(handle, size)

    def size(self, handle: int) -> int:
        return self._disk.size(handle)

    def sync(self, handle: int) -> None:
        self._spend(self._disk.sync_us)
        self._disk.sync(handle)

    def close(self, handle: int) -> None:
        if not self.dead:  # the kernel has closed what a dead process had open
            self._disk.close(handle)
            self.handles.discard(handle)

    def sync_folder(self, name: str = "") -> None:
        self._spend(self._disk.sync_us)
        self._disk.sync_folder(name)

    def rename(self, old: str, new: str) -> None:
        self._spend(self._disk.write_us)
        self._disk.rename(old, new)

    def link(self, old: str, new: str) -> None:
        self._spend(self._disk.write_us)
        self._disk.link(old, new)

    def unlink(self, name: str) -> None:
        self._spend(self._disk.write_us)
        self._disk.unlink(name)

    def list(self, folder: str = "") -> list[str]:
        if self._disk.read_us:
            self._spend(self._disk.read_us)
        return self._disk.list(folder)

    def make_folder(self, name: str) -> None:
        self._disk.make_folder(name)

    def remove_folder(self, name: str) -> None:
        self._disk.remove_folder(name)

    def identity(self, name: str) -> Identity | None:
        return self._disk.identity(name)

    def has_name(self, handle: int, name: str) -> bool:
        return self._disk.has_name(handle, name)

    def free_bytes(self) -> int:
        return self._disk.free_bytes()


class DurableView:
    """Read-only: the names and bytes that a power cut would leave."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._handles: dict[int, object] = {}
        self._next = 0

    def open(self, name: str, *, create: bool = False) -> int:
        if create:
            self._refuse()
        inode = self._disk._durable.get(name)
        if inode is None:
            raise FileNotFoundError(name)
        self._next += 1
        self._handles[self._next] = inode
        return self._next

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return bytes(memoryview(self._handles[handle].durable)[offset : offset + size])  # type: ignore[attr-defined]

    def size(self, handle: int) -> int:
        return len(self._handles[handle].durable)  # type: ignore[attr-defined]

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def list(self, folder: str = "") -> list[str]:
        return names_in(folder, self._disk._durable)

    def identity(self, name: str) -> Identity | None:
        inode = self._disk._durable.get(name)
        return (inode.number, len(inode.durable), 0) if inode else None

    def has_name(self, handle: int, name: str) -> bool:
        return self._disk._durable.get(name) is self._handles[handle]

    def free_bytes(self) -> int:
        return 0

    def write_at(self, handle: int, offset: int, data: bytes) -> int:
        self._refuse()

    def truncate(self, handle: int, size: int) -> None:
        self._refuse()

    def sync(self, handle: int) -> None:
        self._refuse()

    def sync_folder(self, name: str = "") -> None:
        self._refuse()

    def rename(self, old: str, new: str) -> None:
        self._refuse()

    def link(self, old: str, new: str) -> None:
        self._refuse()

    def unlink(self, name: str) -> None:
        self._refuse()

    def make_folder(self, name: str) -> None:
        self._refuse()

    def remove_folder(self, name: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StorageError("what would survive a power cut can only be looked at")
