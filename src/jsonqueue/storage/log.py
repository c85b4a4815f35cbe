"""The two logs, written. What a batch is, ``codec`` says; in which files they are, ``segments``; who reads them meanwhile, ``following``.

A writer starts by copying: the batches of the newest segment go, byte by byte, into a new file under a raised epoch, which is synced
before anything is answered. It never appends behind a predecessor's bytes, and never trusts what it read from the page cache: after a
failed fsync those bytes may be nowhere else, and a second fsync would not tell.

A small batch that makes its file longer makes it longer still, by newlines, over which the next ones are written: to make it durable that a
file has grown costs the disk more than the bytes do. A large batch makes its file longer by its own bytes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from jsonqueue.errors import CorruptQueue, DiskFull, FileLost, StorageError, SyncFailed
from jsonqueue.storage.codec import START, Position, encode_batch, encode_segment_head, rest_of
from jsonqueue.storage.files import Files, write_all
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, QueueHeader, read_header
from jsonqueue.storage.reserve import Reserve
from jsonqueue.storage.segments import CHUNK, End, Link, LogKind, Segment, begun_name, begun_of, chain_of, segments_of, walk

__all__ = ["PATIENCE", "LogKind", "LogWriter", "Position", "consistently", "log_bytes", "log_end", "newest_bytes", "require_log"]

T = TypeVar("T")
PATIENCE = 50
"""How often a read is begun anew because a checkpoint or a starting writer changed the files meanwhile."""
PADDING = 32 * 1024
"""Padding ends at multiples of this. Smaller saves fewer commits of the file system's journal, larger no more, and readers read it."""
SMALL = 4 * 1024
"""Only batches below this length are followed by padding."""
SEALED_KEPT = 8
"""So many sealed segments, the last ones, are held open until they are folded. Mostly it is one; where checkpoints find no room, many."""


def consistently(files: Files, read: Callable[[], T]) -> T:
    """What ``read`` returns, from files that fit together: anew whenever queue.json was replaced, or a segment vanished, meanwhile.

    Without it a reader that saw the old queue.json, and then the segments a checkpoint left, would find a gap and raise a false alarm.
    """
    for _ in range(PATIENCE):
        before = _generation(files)
        try:
            result = read()
        except (CorruptQueue, FileNotFoundError):
            if _generation(files) == before:
                raise
            continue
        if files.identity(QUEUE) == before[0]:
            return result
    raise StorageError("the queue's files change faster than they can be read")


def _generation(files: Files) -> tuple[object, ...]:
    return files.identity(QUEUE), *(segment.name for kind in LogKind for segment in segments_of(files, kind))


def log_end(files: Files, kind: LogKind, header: QueueHeader, *, folders: Sequence[str] = ("",)) -> End:
    """Where the log ends: the last batch that is whole, or where queue.json leaves off. Everything above that is checked on the way."""
    require_log(files, kind, header, folders=folders)
    end = start = header.through(kind)
    for step in walk(files, kind, start, folders=folders):
        end = step.end
    return end


def require_log(files: Files, kind: LogKind, header: QueueHeader, *, folders: Sequence[str] = ("",)) -> None:
    """Raise :class:`CorruptQueue` when the log was there, at the last checkpoint or since a clean stop, and is not any more."""
    # Looked at before the segments: its writer made it after them.
    begun = max(begun_of(files, kind), default=0) if header.closed else 0
    if begun > header.epoch(kind) and not any(segment.epoch >= begun for segment in segments_of(files, kind, folders)):
        why = f"what was written to this log since the clean stop is missing: there is no file of epoch {begun} or a later one"
        raise CorruptQueue(f"{kind}-*.jsonl", offset=0, why=why)
    if header.epoch(kind) and not header.closed and not segments_of(files, kind, folders):
        raise CorruptQueue(f"{kind}-*.jsonl", offset=0, why="all files of this log are missing, though the queue was not stopped cleanly")


def log_bytes(files: Files) -> int:
    """How large the logs are: all segments in the queue folder."""
    found = (files.identity(segment.name) for kind in LogKind for segment in segments_of(files, kind))
    return sum(identity[1] for identity in found if identity)


def newest_bytes(files: Files, kind: LogKind) -> int:
    """How large the newest segment of a log is: so much room, at most, its next writer needs for the copy that it starts with."""
    segments = segments_of(files, kind)
    identity = files.identity(segments[-1].name) if segments else None
    return identity[1] if identity else 0


class _Sealed(NamedTuple):
    """A segment that its writer has sealed, and holds open until it is folded."""

    handle: int
    name: str
    number: int
    """Of its last batch."""


class LogWriter:
    """The one writer of a log. The caller holds the log's lock for as long as it lives."""

    def __init__(self, files: Files, kind: LogKind, epoch: int, end: End) -> None:
        """Use :meth:`open`."""
        self.kind = kind
        self.epoch = epoch
        """Of this writer; durable, and higher than any before it."""
        self.number = end.number
        """Of the last batch. Durable after open and after each sync."""
        self._last_epoch = end.epoch
        self.bytes = 0
        """Length of the active segment, up to the end of its last batch."""
        self._padded = 0
        """Length of its file."""
        self._files, self._chain = files, end.chain
        self._handle = -1
        self._head_size = 0
        self._first = end.number + 1
        self._first_chain = end.chain
        self._name = ""
        """Of the active segment, with its number and chain before its first batch above."""
        self._sealed: list[_Sealed] = []
        self._unsynced = False
        self._broken = ""

    @classmethod
    def open(cls, files: Files, kind: LogKind) -> LogWriter:
        """Start writing where the log, or queue.json, leaves off, whichever is further. On return all of it is durable.

        Raises :class:`CorruptQueue`, :class:`UnsupportedFormat`, :class:`DiskFull`.
        """
        header, end, links = consistently(files, lambda: _survey(files, kind))
        epoch = 1 + max([header.epoch(kind), *(segment.epoch for segment in segments_of(files, kind))])
        writer = cls(files, kind, epoch, end)
        source = links[-1] if links and end.segment == links[-1].segment else None
        writer._begin(source, end)
        try:
            writer._clear_superseded()
            writer._mark_begun(header)
        except BaseException:
            writer.close()
            raise
        return writer

    @property
    def position(self) -> Position:
        """The last batch: its number, and the epoch it was written under."""
        return Position(self.number, self._last_epoch)

    def append(self, records: bytes, *, at_ms: int, first_task: int = 0, after: Position | None = None) -> int:
        """Append one batch and return its number. It is durable only after :meth:`sync`.

        ``records``: a JSON array, as ``encode_records`` makes it. ``first_task`` (published): number of its first task.
        ``after`` (progress): the last published batch that was read. Raises :class:`DiskFull`: nothing of it was kept, it may be tried
        again. Any other error is final.
        """
        self._refuse_broken()
        rest = first_task if self.kind is LogKind.PUBLISHED else rest_of(after or START)
        number = self.number + 1
        line, chain = encode_batch(records, number=number, epoch=self.epoch, rest=rest, at_ms=at_ms, chain=self._chain)
        self._write(line)
        self.bytes += len(line)
        self._chain = chain
        self.number, self._last_epoch = number, self.epoch
        return number

    def sync(self) -> None:
        """Make durable what was appended. Raises :class:`SyncFailed`, after which nothing works any more."""
        self._refuse_broken()
        if self._unsynced:
            self._guarded(lambda: self._files.sync(self._handle))
            self._unsynced = False

    def assure(self) -> None:
        """Look whether the active segment still has its name: who acknowledges what was written to a file without one loses it.

        It is asked for each batch, behind its sync, and costs little. Raises :class:`FileLost`, after which nothing works any more;
        what the file held was saved, if that was possible, where the next start of a writer finds it.
        """
        self._refuse_broken()
        if not self._files.has_name(self._handle, self._name):
            raise self._lost()

    def rotate(self) -> bool:
        """Seal the active segment and go on in a new one; False when it holds no batch yet. Durable on return.

        Raises :class:`DiskFull`: the active segment is still in use, and it may be tried again. Raises :class:`FileLost` also for a segment
        that was sealed before, if somebody took it away before it was folded.
        """
        self.assure()
        self._look_after_sealed()
        if self.bytes == self._head_size:
            return False  # A second segment of the same first number and epoch would be this one.
        self.sync()
        sealed = _Sealed(self._handle, self._name, self.number)
        try:
            self._guarded(self._create)
        except DiskFull:
            with suppress(FileNotFoundError):
                self._files.unlink(Segment(self.number + 1, self.epoch, self.kind).name)
            raise
        self._sealed.append(sealed)
        while len(self._sealed) > SEALED_KEPT:
            self._files.close(self._sealed.pop(0).handle)
        return True

    def close(self) -> None:
        """Close the file. What was appended and not synced may or may not become durable."""
        if self._handle >= 0:
            with suppress(StorageError):
                self.assure()  # What it has to save it saves, and there is nothing to be said: it was at its end anyway.
                if self._padded > self.bytes:
                    self._cut_back()  # It is for whoever looks at the file; nothing depends on it.
            self._files.close(self._handle)
            self._handle = -1
        with suppress(StorageError):
            self._look_after_sealed()
        while self._sealed:
            self._files.close(self._sealed.pop().handle)
        self._broken = self._broken or "it is closed"

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, source: Link | None, end: End) -> None:
        """Make the first segment of this writer: a copy of the newest one, or an empty one."""
        if source is None:
            self._begin_with(Segment(end.number + 1, self.epoch, self.kind), end.chain, lambda into, at: at)
            return
        segment, chain = Segment(source.segment.first, self.epoch, self.kind), int(source.head.chain, 16)
        self._begin_with(segment, chain, lambda into, at: self._copy(source, end.offset, into, at))

    def _begin_with(self, segment: Segment, chain: int, fill: Callable[[int, int], int]) -> None:
        """Go on in this segment, with the batches in it that ``fill`` copies into a file, from an offset on; durable on return."""
        head = encode_segment_head(self.kind, first=segment.first, epoch=segment.epoch, chain=chain)
        handle, at = self._made(segment.name, lambda into: fill(into, write_all(self._files, into, 0, head)))
        self._use(handle, segment, chain, len(head), at)

    def _made(self, name: str, fill: Callable[[int], int]) -> tuple[int, int]:
        """A file of this name, durable, with what ``fill`` writes into it; and what that returns."""
        draft = f"{self.kind}.draft"
        with suppress(FileNotFoundError):
            self._files.unlink(draft)
        handle = self._files.open(draft, create=True)
        try:
            at = fill(handle)
            self._files.sync(handle)
            self._files.rename(draft, name)
            self._files.sync_folder()
        except BaseException as error:
            self._files.close(handle)
            if isinstance(error, DiskFull):
                # Whoever opens it may try again; until then the draft must not take what little room there is.
                with suppress(FileNotFoundError):
                    self._files.unlink(draft)
            raise
        return handle, at

    def _copy(self, source: Link, end: int, into: int, at: int) -> int:
        """Copy the batches of a segment, up to ``end`` in it, and return where they end in the other file."""
        handle = self._files.open(source.segment.name)
        try:
            return self._copy_part(handle, source.head.size, end, into, at)
        finally:
            self._files.close(handle)

    def _copy_part(self, handle: int, offset: int, end: int, into: int, at: int) -> int:
        while offset < end:
            data = self._files.read(handle, offset, min(CHUNK, end - offset))
            if not data:
                raise StorageError(f"the {self.kind} log became shorter while it was copied")
            at = write_all(self._files, into, at, data)
            offset += len(data)
        return at

    def _use(self, handle: int, segment: Segment, chain: int, head_size: int, size: int) -> None:
        """From now on this is the active segment, and its file so long."""
        self._handle, self._head_size = handle, head_size
        self._first, self._first_chain, self._name = segment.first, chain, segment.name
        self.bytes = self._padded = size

    def _clear_superseded(self) -> None:
        """Remove the segments whose copy is durable now. One that ends torn stays as evidence until a checkpoint has passed it."""
        own = Segment(self._first, self.epoch, self.kind)
        for segment in segments_of(self._files, self.kind):
            if segment.first == own.first and segment.epoch < own.epoch and self._is_contained(segment):
                with suppress(FileNotFoundError):
                    self._files.unlink(segment.name)

    def _mark_begun(self, header: QueueHeader) -> None:
        """Leave word that there is a log, where queue.json says that there may be none. Not before its own name is durable."""
        if header.closed and max(begun_of(self._files, self.kind), default=0) <= header.epoch(self.kind):
            self._files.close(self._files.open(begun_name(self.kind, self.epoch), create=True))
            self._files.sync_folder()

    def _is_contained(self, segment: Segment) -> bool:
        """Whether the whole of it, but for the header and padding, is the beginning of the active segment."""
        handle = self._files.open(segment.name)
        try:
            size = self._files.size(handle)
            same = self._head_size <= size
            offset = self._head_size
            while same and offset < size:
                ours, theirs = self._files.read(self._handle, offset, CHUNK), self._files.read(handle, offset, CHUNK)
                same = ours.ljust(len(theirs), b"\n").startswith(theirs)
                offset += len(theirs)
            return same
        finally:
            self._files.close(handle)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, line: bytes) -> None:
        end = self.bytes + len(line)
        data = line
        if end > self._padded and len(line) < SMALL:
            data += b"\n" * (-end % PADDING)
        self._unsynced = True
        try:
            # Padding that finds no room is not missed.
            end = write_all(self._files, self._handle, self.bytes, data, enough=len(line))
        except DiskFull:
            self._take_back()
            raise
        except BaseException as error:
            self._give_up(error)
            raise
        self._padded = max(self._padded, end)

    def _take_back(self) -> None:
        """Cut back a batch that found no room. Where that fails, be it for want of room, this writer is at its end: a shorter batch would
        be written over what is left of a longer one."""
        try:
            self._cut_back()
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, DiskFull):
                raise SyncFailed(f"a batch that found no room cannot be cut back: {error.message}") from error
            raise

    def _cut_back(self) -> None:
        """End the file with its last batch, durably: no power cut must mix the next one with what was written of one before."""
        self._padded = self.bytes
        self._files.truncate(self._handle, self.bytes)
        self._files.sync(self._handle)

    def _create(self) -> None:
        segment = Segment(self.number + 1, self.epoch, self.kind)
        head = encode_segment_head(self.kind, first=segment.first, epoch=self.epoch, chain=self._chain)
        handle = self._files.open(segment.name, create=True)
        try:
            write_all(self._files, handle, 0, head)
            self._files.sync(handle)
            self._files.sync_folder()
        except BaseException:
            self._files.close(handle)
            raise
        self._use(handle, segment, self._chain, len(head), len(head))

    def _lost(self) -> FileLost:
        """Save what the active segment holds, whose name somebody took away: as a start would, by a copy under a higher epoch."""
        name, unsaved, handle = self._name, "", self._handle
        try:
            self._save()
        except (StorageError, OSError) as error:
            unsaved = str(error)
            with suppress(StorageError, OSError):
                self._create()  # What is missing before it, if anything, is missed.
        if self._handle != handle:
            self._files.close(handle)
        lost = FileLost(name, saved_as="" if unsaved else self._name, why=unsaved)
        self._give_up(lost)
        return lost

    def _save(self) -> None:
        segment, end = Segment(self._first, self.epoch + 1, self.kind), self.bytes

        def fill(into: int, at: int) -> int:
            return self._copy_part(self._handle, self._head_size, end, into, at)

        Reserve(self._files, 0).lend(lambda: self._begin_with(segment, self._first_chain, fill), wanted=lambda: end)

    def _look_after_sealed(self) -> None:
        """Let go of the sealed segments that are folded, and put those back that somebody took away before. Raises :class:`FileLost`."""
        gone = [sealed for sealed in self._sealed if not self._files.has_name(sealed.handle, sealed.name)]
        # Mostly a checkpoint has moved them there. Of others queue.json tells, looked at behind the names: a checkpoint may be at it.
        missed = [sealed for sealed in gone if not self._files.has_name(sealed.handle, f"{PREVIOUS}/{sealed.name}")]
        if missed:
            try:
                through = read_header(self._files).through(self.kind).number
            except StorageError:
                return  # It was changed: the checkpoint stops the queue, and this is asked again at the end.
            missed = [sealed for sealed in missed if sealed.number > through]
        for sealed in missed:
            self._put_back(sealed)
        for sealed in gone:
            self._sealed.remove(sealed)
            self._files.close(sealed.handle)
        if missed:
            names = ", ".join(sealed.name for sealed in missed)
            lost = FileLost(names, saved_as=names)
            self._give_up(lost)
            raise lost

    def _put_back(self, sealed: _Sealed) -> None:
        """Under its own name: under a higher epoch it would stand for the segments behind it as well."""
        size = self._files.size(sealed.handle)

        def make() -> None:
            self._files.close(self._made(sealed.name, lambda into: self._copy_part(sealed.handle, 0, size, into, 0))[0])

        Reserve(self._files, 0).lend(make, wanted=lambda: size)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except DiskFull:
            raise
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        self._broken = str(error) or type(error).__name__

    def _refuse_broken(self) -> None:
        if self._broken:
            raise SyncFailed(f"the {self.kind} log takes no more writes: {self._broken}")


def _survey(files: Files, kind: LogKind) -> tuple[QueueHeader, End, list[Link]]:
    header = read_header(files)
    end = log_end(files, kind, header)
    return header, end, chain_of(files, kind, header.through(kind).number)
