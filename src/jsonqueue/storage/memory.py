"""A disk in memory, with a power switch: the same primitive operations, two planes.

What is written or named lives in the *volatile* plane, which every reader sees; ``sync`` and ``sync_folder`` copy it to the *durable* one.
:meth:`MemoryFiles.crash` takes the power away. What was not synced is then lost, or (``chance``) any part of it is: each name by itself,
each sector of each file by itself, in no order, as the weakest file systems allow.

``fail`` is called before each operation with its number and name; it may raise, which is how tests stop a program at its k-th operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random

from jsonqueue.errors import DiskFull, SyncFailed, UnreadableFile
from jsonqueue.storage.files import Identity

__all__ = ["MemoryFiles", "PowerCut", "names_in"]

SECTOR = 512


class PowerCut(BaseException):
    """Raised by tests in the middle of an operation. Not an Exception, so that no handler takes it for an ordinary failure."""


class _Inode:
    __slots__ = ("changed", "cut", "durable", "number", "unreadable", "volatile")

    def __init__(self, number: int) -> None:
        self.number = number
        self.volatile = bytearray()
        self.durable = b""
        self.cut = b""
        """What it held before it was cut, if it was since its last sync: any sector of that may have reached the disk before."""
        self.changed = 0
        self.unreadable: tuple[range, ...] = ()


_Names = dict[str, _Inode]


class MemoryFiles:
    """See the module."""

    def __init__(self, *, room: int = 1 << 40) -> None:
        self._names: _Names = {}
        self._durable: _Names = {}
        self._folders: set[str] = {""}
        self._handles: dict[int, _Inode] = {}
        self._poisoned: set[int] = set()
        self._next = 1
        self.room = room
        """Bytes that still fit."""
        self.operations = 0
        """Operations so far that change something or make it durable."""
        self.trace: list[str] = []
        """Those operations, readable."""
        self.fail: Callable[[int, str], None] = lambda number, name: None

    # ── the primitive operations ─────────────────────────────────────────────────────────────────────────────────────

    def open(self, name: str, *, create: bool = False) -> int:
        if create:
            self._step(f"create {name}")
            if name in self._names:
                raise FileExistsError(name)
            self._names[name] = _Inode(self._number())
        if name not in self._names:
            raise FileNotFoundError(name)
        handle = self._number()
        self._handles[handle] = self._names[name]
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        inode = self._handles[handle]
        if inode.unreadable:
            self._refuse_unreadable(inode, range(offset, min(offset + size, len(inode.volatile))))
        return bytes(inode.volatile[offset : offset + size])

    def write_at(self, handle: int, offset: int, data: bytes) -> int:
        inode = self._handles[handle]
        self._refuse_poisoned(handle)
        self._step(f"write {self._name_of(inode)} {len(data)}")
        size = len(inode.volatile)
        assert 0 <= offset <= size, f"a hole in {self._name_of(inode)}: {offset} of {size}"
        fits = data[: size - offset + self.room]  # What is written over takes no room.
        if data and not fits:
            raise DiskFull("no room")
        inode.volatile[offset : offset + len(fits)] = fits
        self.room -= len(inode.volatile) - size
        inode.changed = self._number()
        return len(fits)

    def truncate(self, handle: int, size: int) -> None:
        inode = self._handles[handle]
        self._step(f"truncate {self._name_of(inode)} {size}")
        self.room += max(0, len(inode.volatile) - size)
        inode.cut = bytes(inode.volatile)
        del inode.volatile[size:]
        inode.changed = self._number()

    def size(self, handle: int) -> int:
        return len(self._handles[handle].volatile)

    def sync(self, handle: int) -> None:
        inode = self._handles[handle]
        self._refuse_poisoned(handle)
        with self._poisons(handle):
            self._step(f"sync {self._name_of(inode)}")
        inode.durable, inode.cut = bytes(inode.volatile), b""

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def sync_folder(self, name: str = "") -> None:
        self._step(f"sync_folder {name}")
        durable, names = self._durable, self._names
        changed = [known for known, inode in names.items() if durable.get(known) is not inode]
        changed += [known for known in durable if known not in names]
        for known in sorted(changed):  # in an order that no hash seed changes
            if _folder_of(known) == name:
                _settle(durable, known, names.get(known))

    def rename(self, old: str, new: str) -> None:
        self._step(f"rename {old} {new}")
        if old not in self._names:
            raise FileNotFoundError(old)
        self._names[new] = self._names.pop(old)

    def link(self, old: str, new: str) -> None:
        self._step(f"link {old} {new}")
        if old not in self._names:
            raise FileNotFoundError(old)
        if new in self._names:
            raise FileExistsError(new)
        self._names[new] = self._names[old]

    def unlink(self, name: str) -> None:
        self._step(f"unlink {name}")
        if name not in self._names:
            raise FileNotFoundError(name)
        del self._names[name]

    def list(self, folder: str = "") -> list[str]:
        return names_in(folder, self._names)

    def make_folder(self, name: str) -> None:
        self._folders.add(name)  # Folders are made once, when the queue is, and taken for durable.

    def remove_folder(self, name: str) -> None:
        assert not self.list(name), f"{name} is not empty"
        self._folders.discard(name)

    def identity(self, name: str) -> Identity | None:
        inode = self._names.get(name)
        return (inode.number, len(inode.volatile), inode.changed) if inode else None

    def has_name(self, handle: int, name: str) -> bool:
        return self._names.get(name) is self._handles[handle]

    def free_bytes(self) -> int:
        return self.room

    # ── what a disk does to us ───────────────────────────────────────────────────────────────────────────────────────

    def crash(self, chance: Random | None = None) -> None:
        """Take the power away: what was not synced is lost; with ``chance``, any part of it may have reached the disk anyhow."""
        names = dict(self._durable)
        for name in sorted({*self._durable, *self._names}):
            if chance and chance.random() < 0.5:
                _settle(names, name, self._names.get(name))
        for inode in {id(inode): inode for inode in [*names.values(), *self._handles.values()]}.values():
            inode.durable = _survivor(inode, chance)
            inode.volatile, inode.cut = bytearray(inode.durable), b""
        self._names, self._durable = dict(names), dict(names)
        self._handles.clear()
        self._poisoned.clear()
        self.fail = lambda number, name: None

    def put(self, name: str, data: bytes) -> None:
        """Place a file, durable at once (for tests)."""
        inode = _Inode(self._number())
        inode.volatile, inode.durable, inode.changed = bytearray(data), data, self._number()
        self._names[name] = self._durable[name] = inode

    def spoil(self, name: str, *unreadable: range) -> None:
        """From now on these bytes of a file cannot be read, by whatever name (for tests)."""
        self._names[name].unreadable = unreadable

    def get(self, name: str) -> bytes:
        """All bytes of a file (for tests)."""
        return bytes(self._names[name].volatile)

    def copy(self) -> MemoryFiles:
        """Another disk that holds the same, all of it durable (for tests)."""
        other = MemoryFiles()
        for name, inode in self._names.items():
            other.put(name, bytes(inode.volatile))
            other.spoil(name, *inode.unreadable)
        return other

    def _step(self, operation: str) -> None:
        self.operations += 1
        self.trace.append(operation)
        self.fail(self.operations, operation)

    @contextmanager
    def _poisons(self, handle: int) -> Iterator[None]:
        try:
            yield
        except SyncFailed:
            self._poisoned.add(handle)
            raise

    def _refuse_unreadable(self, inode: _Inode, wanted: range) -> None:
        for lost in inode.unreadable:
            at = max(wanted.start, lost.start)
            if at < min(wanted.stop, lost.stop):
                raise UnreadableFile(self._name_of(inode), offset=at, why="Input/output error")

    def _refuse_poisoned(self, handle: int) -> None:
        if handle in self._poisoned:
            raise SyncFailed("an earlier fsync of this file failed; it takes no more writes")

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _name_of(self, inode: _Inode) -> str:
        return next((name for name, known in self._names.items() if known is inode), "(unlinked)")


def names_in(folder: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are in this folder, without it, in order."""
    if not folder:
        return sorted([name for name in names if "/" not in name])
    return sorted([name.rpartition("/")[2] for name in names if _folder_of(name) == folder])


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _settle(names: _Names, name: str, inode: _Inode | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _survivor(inode: _Inode, chance: Random | None) -> bytes:
    """What the disk holds of a file after a power cut."""
    before, after = inode.durable, bytes(inode.volatile)
    if chance is None or before == after:
        return before
    size = chance.choice((len(before), len(after), chance.randint(0, max(len(before), len(after)))))
    size = max(size, min(len(before), len(after)))  # what was durable and not cut away stays
    old, new, cut = (data.ljust(size, b"\0") for data in (before, after, inode.cut or before))
    choices = (new, old) if cut == old else (new, old, cut)
    return b"".join(chance.choice(choices)[at : min(at + SECTOR, size)] for at in range(0, size, SECTOR))
