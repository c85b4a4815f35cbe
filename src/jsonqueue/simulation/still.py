"""A disk that holds still: it can be frozen after any operation, kept as a value, thawed again, and asked what a power cut would leave.

What it holds is kept in three planes, one for each log and one for everything else, so that what happened to the one log does not make the
other a new one. A plane is a plain value: equal planes are equal disks. :class:`StillFiles` is what a process under test holds of it, and
notes what the process looked at.

An fsync that fails here does what Linux does: the pages count as clean afterwards, so that a second one reports success and writes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from jsonqueue.errors import JsonQueueError, SyncFailed
from jsonqueue.storage.files import Identity

__all__ = [
    "EMPTY",
    "GROUPS",
    "Item",
    "Op",
    "Paused",
    "Plane",
    "Sheet",
    "StillFiles",
    "cuts_of",
    "is_settled",
    "listing_of",
    "lost_of",
    "orphaned",
]

GROUPS = ("published", "progress", "rest")
Item = tuple[Any, ...]
"""What a process looked at: the content of a plane, the names in a folder, whether a folder's names are durable."""

_HANDLES_EACH = 100
_IDENTITIES: dict[bytes, int] = {}


class Op(NamedTuple):
    """An operation on the disk."""

    what: str
    name: str
    number: int = 0
    """How many of the kind there were in this call before."""


class Raised(NamedTuple):
    """An operation that failed, in a journal."""

    kind: type[Exception]
    why: str


class Paused(BaseException):
    """A process stands before an operation, and others go on. Not an Exception, so that no handler takes it for an ordinary failure."""


class Sheet(NamedTuple):
    """The bytes of a file."""

    volatile: bytes = b""
    durable: bytes = b""
    clean: tuple[int, int] = (0, 0)
    """From where to where a failed fsync made the kernel forget that it never wrote this."""

    def synced(self) -> bytes:
        """What an fsync makes durable."""
        begin, end = self.clean
        if begin == end:
            return self.volatile
        kept = self.durable[begin:end]
        if end >= len(self.volatile):
            return self.volatile[:begin] + kept
        return self.volatile[:begin] + kept.ljust(end - begin, b"\0") + self.volatile[end:]


class Plane(NamedTuple):
    """A part of the disk, as a value."""

    sheets: tuple[Sheet, ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    durable: tuple[tuple[str, int], ...] = ()
    handles: tuple[tuple[int, int], ...] = ()
    poisoned: tuple[int, ...] = ()


EMPTY = Plane()


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _group_of(name: str) -> str:
    base = name.rpartition("/")[2]
    return next((group for group in GROUPS if base.startswith(group)), "rest")


def listing_of(plane: Plane, folder: str) -> tuple[str, ...]:
    """The names of a folder that are in this plane."""
    return tuple(name.rpartition("/")[2] for name, _ in plane.names if _folder_of(name) == folder)


def is_settled(plane: Plane, folder: str) -> bool:
    """Whether every name of this folder is durable."""
    return not {item for item in {*plane.names} ^ {*plane.durable} if _folder_of(item[0]) == folder}


def cuts_of(plane: Plane, *, torn: bool = False) -> dict[Plane, str]:
    """What a power cut may leave, and in words: names and bytes that were not synced, each lost or kept; ``torn``: or half of the bytes."""
    left: dict[Plane, str] = {}
    for names, of_names in ((plane.durable, "new names lost"), (plane.names, "new names kept")):
        for survive, of_bytes in ((_lost, "new bytes lost"), (_kept, "new bytes kept"), *([(_half, "new bytes torn")] if torn else [])):
            sheets = [Sheet(data, data) for data in map(survive, plane.sheets)]
            left.setdefault(_Thawed(Plane(tuple(sheets), names, names)).frozen(), f"{of_names}, {of_bytes}")
    return left


def lost_of(plane: Plane) -> Plane:
    """What a power cut leaves that takes all it can."""
    return _Thawed(Plane(tuple(Sheet(it.durable, it.durable) for it in plane.sheets), plane.durable, plane.durable)).frozen()


def _lost(sheet: Sheet) -> bytes:
    return sheet.durable


def _kept(sheet: Sheet) -> bytes:
    return sheet.synced()


def _half(sheet: Sheet) -> bytes:
    """The first half of what an fsync would have changed."""
    old, new = sheet.durable, sheet.synced()
    middle = (_alike(old, new) + max(len(old), len(new))) // 2
    return new[:middle] + old[middle:]


def _alike(old: bytes, new: bytes) -> int:
    """How many of the first bytes are the same."""
    return next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new)))


def orphaned(plane: Plane, owner: int) -> Plane:
    """The plane when this process is dead: the kernel closes what it had open."""
    return _Thawed(plane).frozen(without=owner)


class _File:
    __slots__ = ("sheet",)

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet


class _Thawed:
    """A plane that can be changed."""

    def __init__(self, plane: Plane) -> None:
        files = [_File(sheet) for sheet in plane.sheets]
        self.names = {name: files[at] for name, at in plane.names}
        self.durable = {name: files[at] for name, at in plane.durable}
        self.handles = {handle: files[at] for handle, at in plane.handles}
        self.poisoned = set(plane.poisoned)

    def frozen(self, *, without: int = 0) -> Plane:
        """As a value; ``without`` what this owner has open."""
        numbers: dict[int, int] = {}
        sheets: list[Sheet] = []
        handles = [item for item in self.handles.items() if item[0] // _HANDLES_EACH != without]

        def numbered(items: Iterator[tuple[Any, _File]]) -> tuple[tuple[Any, int], ...]:
            found = []
            for key, file in sorted(items, key=lambda item: item[0]):
                if id(file) not in numbers:
                    numbers[id(file)] = len(sheets)
                    sheets.append(file.sheet)
                found.append((key, numbers[id(file)]))
            return tuple(found)

        names, durable = numbered(iter(self.names.items())), numbered(iter(self.durable.items()))
        opened = numbered(iter(handles))
        poisoned = tuple(sorted(handle for handle in self.poisoned if handle // _HANDLES_EACH != without))
        return Plane(tuple(sheets), names, durable, opened, poisoned)


class StillFiles:
    """The disk as one process has it, for one of its calls. ``owner`` tells its handles from those of others.

    ``before`` is called before each operation that changes something. ``journal``: what the operations of this call returned so far, where
    it goes on after a pause; these are answered from there. ``pauses`` says before which operations it pauses.
    """

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.before: Callable[[Op], None] = lambda op: None
        self.pauses: Callable[[Op], bool] = lambda op: False
        self.journal: list[Any] = []
        self.looked: set[Item] = set()
        self.lie_dropped = False
        """Whether a failed fsync also throws the pages away."""
        self._again: deque[Any] = deque()
        self._planes: dict[str, _Thawed] = {}
        self._changed: set[str] = set()
        self._begun = False
        self._stands = False
        """Whether it pauses: then it does nothing more, not even what Python does on an exception's way out."""
        self._counts: dict[str, int] = {}

    def thaw(self, planes: tuple[Plane, ...], journal: tuple[Any, ...] = ()) -> None:
        """Begin from here."""
        self._planes = {group: _Thawed(plane) for group, plane in zip(GROUPS, planes, strict=True)}
        self._again, self.journal = deque(journal), list(journal)

    def end(self) -> None:
        """Let go of everything: the call is over."""
        self._planes.clear()
        self.before, self.pauses = (lambda op: None), (lambda op: False)

    def changes(self, *, dead: bool = False) -> tuple[tuple[int, Plane], ...]:
        """The planes that are not what they were; ``dead``: as they are when this process is dead."""
        without = self.owner if dead else 0
        return tuple((at, self._planes[group].frozen(without=without)) for at, group in enumerate(GROUPS) if group in self._changed)

    # ── how an operation is done ─────────────────────────────────────────────────────────────────────────────────────

    def _do(self, what: str, name: str, act: Callable[[], Any], *, changes: bool = True) -> Any:
        number = self._counts[what] = self._counts.get(what, -1) + 1
        if self._again:
            return _answered(self._again.popleft())
        op = Op(what, name, number)
        self._stands = self._stands or (self._begun and self.pauses(op))
        if self._stands:
            raise Paused
        self._begun = True
        try:
            if changes:
                self.before(op)
            result = act()
        except (OSError, JsonQueueError) as error:
            self.journal.append(Raised(type(error), str(error)))
            raise
        self.journal.append(result)
        return result

    def _plane(self, group: str, *, change: bool = False) -> _Thawed:
        self.looked.add(("content", GROUPS.index(group)))
        if change:
            self._changed.add(group)
        return self._planes[group]

    def _file(self, handle: int, *, change: bool = False) -> tuple[_Thawed, _File]:
        for group, plane in self._planes.items():
            if handle in plane.handles:
                self._plane(group, change=change)
                return plane, plane.handles[handle]
        raise KeyError(handle)

    def _name(self, handle: int) -> str:
        if self._again:
            return ""
        plane, file = self._file(handle)
        return next((name for name, known in plane.names.items() if known is file), "")

    # ── the primitive operations ─────────────────────────────────────────────────────────────────────────────────────

    def open(self, name: str, *, create: bool = False) -> int:
        return self._do("create" if create else "open", name, lambda: self._open(name, create), changes=create)  # type: ignore[no-any-return]

    def _open(self, name: str, create: bool) -> int:
        plane = self._plane(_group_of(name), change=True)
        if create and name in plane.names:
            raise FileExistsError(name)
        if create:
            plane.names[name] = _File(Sheet())
        if name not in plane.names:
            raise FileNotFoundError(name)
        first = self.owner * _HANDLES_EACH
        taken = {*chain.from_iterable(plane.handles for plane in self._planes.values())}
        handle = next(number for number in range(first, first + _HANDLES_EACH) if number not in taken)
        plane.handles[handle] = plane.names[name]
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        def act() -> bytes:
            return self._file(handle)[1].sheet.volatile[offset : offset + size]

        return self._do("read", "", act, changes=False)  # type: ignore[no-any-return]

    def write_at(self, handle: int, offset: int, data: bytes) -> int:
        return self._do("write", self._name(handle), lambda: self._write(handle, offset, data))  # type: ignore[no-any-return]

    def _write(self, handle: int, at: int, data: bytes) -> int:
        plane, file = self._file(handle, change=True)
        _refuse_poisoned(plane, handle)
        sheet = file.sheet
        volatile = sheet.volatile[:at].ljust(at, b"\0") + data + sheet.volatile[at + len(data) :]
        begin, end = sheet.clean
        clean = (begin, max(begin, min(end, at))) if at < end else sheet.clean  # what is written anew will be written back
        file.sheet = Sheet(volatile, sheet.durable, clean if clean[0] < clean[1] else (0, 0))
        return len(data)

    def truncate(self, handle: int, size: int) -> None:
        def act() -> None:
            file = self._file(handle, change=True)[1]
            file.sheet = file.sheet._replace(volatile=file.sheet.volatile[:size].ljust(size, b"\0"))

        self._do("truncate", self._name(handle), act)

    def size(self, handle: int) -> int:
        return self._do("size", "", lambda: len(self._file(handle)[1].sheet.volatile), changes=False)  # type: ignore[no-any-return]

    def sync(self, handle: int) -> None:
        name = self._name(handle)

        def act() -> None:
            plane, file = self._file(handle, change=True)
            _refuse_poisoned(plane, handle)
            file.sheet = file.sheet._replace(durable=file.sheet.synced())

        try:
            self._do("sync", name, act)
        except SyncFailed:
            if not self._again:
                self._sync_failed(handle)
            raise

    def _sync_failed(self, handle: int) -> None:
        plane, file = self._file(handle, change=True)
        plane.poisoned.add(handle)
        sheet = file.sheet
        if self.lie_dropped:
            file.sheet = Sheet(sheet.durable, sheet.durable)
        else:
            file.sheet = sheet._replace(clean=(_alike(sheet.durable, sheet.volatile), len(sheet.volatile)))

    def close(self, handle: int) -> None:
        def act() -> None:
            plane, _ = self._file(handle, change=True)
            del plane.handles[handle]
            plane.poisoned.discard(handle)

        self._do("close", "", act, changes=False)

    def sync_folder(self, name: str = "") -> None:
        self._do("sync_folder", name, lambda: self._sync_folder(name))

    def _sync_folder(self, folder: str) -> None:
        for group, plane in self._planes.items():
            self.looked.add(("settled", GROUPS.index(group), folder))
            names, durable = plane.names, plane.durable
            unsettled = [n for n in {*names, *durable} if _folder_of(n) == folder and names.get(n) is not durable.get(n)]
            for name in unsettled:
                self._plane(group, change=True)
                if name in names:
                    durable[name] = names[name]
                else:
                    del durable[name]

    def rename(self, old: str, new: str) -> None:
        def act() -> None:
            names = self._plane(_group_of(old), change=True).names
            if old not in names:
                raise FileNotFoundError(old)
            if names.get(new) is not names[old]:  # of one file, rename does nothing
                names[new] = names.pop(old)

        self._do("rename", new, act)

    def link(self, old: str, new: str) -> None:
        def act() -> None:
            names = self._plane(_group_of(old), change=True).names
            if old not in names:
                raise FileNotFoundError(old)
            if new in names:
                raise FileExistsError(new)
            names[new] = names[old]

        self._do("link", new, act)

    def unlink(self, name: str) -> None:
        def act() -> None:
            names = self._plane(_group_of(name), change=True).names
            if name not in names:
                raise FileNotFoundError(name)
            del names[name]

        self._do("unlink", name, act)

    def list(self, folder: str = "") -> list[str]:
        def act() -> tuple[str, ...]:
            self.looked.add(("names", folder))
            names = chain.from_iterable(plane.names for plane in self._planes.values())
            return tuple(sorted(name.rpartition("/")[2] for name in names if _folder_of(name) == folder))

        return list(self._do("list", folder, act, changes=False))

    def make_folder(self, name: str) -> None:
        """Folders are made once, when the queue is, and taken for durable."""

    def remove_folder(self, name: str) -> None:
        """And none is taken away."""

    def identity(self, name: str) -> Identity | None:
        """What is told apart here is content: a file that was replaced by an equal one was not replaced."""

        def act() -> Identity | None:
            file = self._plane(_group_of(name)).names.get(name)
            if file is None:
                return None
            data = file.sheet.volatile
            return _IDENTITIES.setdefault(data, len(_IDENTITIES)), len(data), 0

        return self._do("identity", name, act, changes=False)  # type: ignore[no-any-return]

    def has_name(self, handle: int, name: str) -> bool:
        def act() -> bool:
            plane, file = self._file(handle)
            return plane.names.get(name) is file

        return self._do("has_name", name, act, changes=False)  # type: ignore[no-any-return]

    def free_bytes(self) -> int:
        return 1 << 40


def _answered(result: Any) -> Any:
    if isinstance(result, Raised):
        raise result.kind(result.why)
    return result


def _refuse_poisoned(plane: _Thawed, handle: int) -> None:
    if handle in plane.poisoned:
        raise SyncFailed("an earlier fsync of this file failed; it takes no more writes")
