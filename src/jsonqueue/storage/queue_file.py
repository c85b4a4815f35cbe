"""``queue.json``: the queue as of its last checkpoint. One valid JSON document, one task a line, replaced as a whole.

::

    {"format":"jsonqueue","version":1,"saved_ms":…,"published_through":[n,epoch],"progress_through":[n,epoch],"chains":["…","…"],
     "last_task":…,"epochs":[published,progress],"closed":false,"archive":{"file":"archive/2026-11.jsonl","length":…},"head":"<crc>","tasks":[\\n
    {"id":"…","number":…,…},\\n
    {"id":"…","number":…,…}\\n
    ],"count":2,"checksum":"<crc>"}\\n

(The first line is one line.) ``head`` is the crc-32 of the bytes before ``,"head"``, so that the first line can be trusted alone;
``checksum`` that of all bytes before ``,"checksum"``. Both as 8 lower-case hexadecimal digits. Tasks stand in the order they were published
in, each line begins ``{"id":"``, and no task holds a newline. The file is valid if and only if all of that fits.

Tasks are read and written in *blocks*: the bytes of whole lines, joined by ``,\\n``, about a mebibyte at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from zlib import crc32

from msgspec import Struct, json
from msgspec.structs import replace

from jsonqueue.errors import CorruptQueue, DiskFull, StorageError, UnsupportedFormat
from jsonqueue.storage.codec import START, UNREADABLE, Position
from jsonqueue.storage.files import Files, write_all
from jsonqueue.storage.segments import CHUNK, End, LogKind, segments_of
from jsonqueue.task import StoredTask

__all__ = [
    "PREVIOUS",
    "QUEUE",
    "UTF8_MARK",
    "ArchiveMark",
    "ChangedQueue",
    "EditedQueue",
    "QueueHeader",
    "QueueReader",
    "QueueWriter",
    "decode_block",
    "encode_task",
    "header_in",
    "read_header",
]

QUEUE = "queue.json"
PREVIOUS = "previous"
"""Folder that keeps the generation before: its queue.json, and the segments that lead from it to the present one."""
FORMAT, VERSION = "jsonqueue", 1
UTF8_MARK = b"\xef\xbb\xbf"
"""What editors, those of Windows above all, put before a text."""
_TASKS = b',"tasks":[\n'
_HEAD = re.compile(rb',"head":"([0-9a-f]{8})"')
_FOOT = re.compile(rb'\],"count":([0-9]+),"checksum":"([0-9a-f]{8})"\}\n')
_FOOT_BYTES = 96
_HEAD_BYTES = len(',"head":"01234567"')


class ArchiveMark(Struct, frozen=True):
    """How much of which archive file is committed. What lies beyond is the remains of a checkpoint that never ended."""

    file: str = ""
    length: int = 0


class QueueHeader(Struct, frozen=True):
    """The first line."""

    format: str = FORMAT
    version: int = VERSION
    saved_ms: int = 0
    """When it was written."""
    published_through: Position = START
    """The last batch of the published log that is folded in."""
    progress_through: Position = START
    """The last batch of the progress log that is folded in."""
    chains: tuple[str, str] = ("00000000", "00000000")
    """Payload checksums of those two batches, which the next ones continue."""
    last_task: int = 0
    """Number of the last task that was folded in."""
    epochs: tuple[int, int] = (0, 0)
    """The highest epochs ever seen, published and progress."""
    closed: bool = False
    """Written by a clean stop: there are no logs beside it. Otherwise a log that is missing is damage."""
    archive: ArchiveMark = ArchiveMark()

    def through(self, kind: LogKind) -> End:
        """Where this file leaves off in one of the logs."""
        published = kind is LogKind.PUBLISHED
        number, epoch = self.published_through if published else self.progress_through
        return End(number, epoch, int(self.chains[0 if published else 1], 16), None, final=self.closed)

    def epoch(self, kind: LogKind) -> int:
        return self.epochs[0 if kind is LogKind.PUBLISHED else 1]


_task_encoder = json.Encoder()
_tasks_decoder = json.Decoder(list[StoredTask])
_header_decoder = json.Decoder(QueueHeader)
encode_task = _task_encoder.encode
"""One task's line, without its separator."""


def decode_block(block: bytes) -> list[StoredTask]:
    """The tasks of a block. Their payloads are copies: a task does not keep its block alive."""
    tasks = _tasks_decoder.decode(b"[%b]" % block)
    for task in tasks:
        task.data = task.data.copy()
        if task.result is not None:
            task.result = task.result.copy()
    return tasks


def read_header(files: Files) -> QueueHeader:
    """The first line of queue.json; of a queue that has none yet, the header of an empty one."""
    reader = QueueReader.open(files)
    if reader is None:
        return QueueHeader()
    with reader:
        return reader.header


def _had_one(files: Files) -> bool:
    """Whether a queue that has no queue.json had one: previous/ holds another, under either name, or segments that the queue folder has no
    more.

    Before the first queue.json is durable, no log loses a segment; one may have a newer name, under a higher epoch. (Nor need it be the
    first ones that are gone: what a power cut leaves of many that were unlinked is any of them.)
    """
    names = files.list(PREVIOUS)
    if not names or any(name.startswith(QUEUE) for name in names):
        return bool(names)
    # Not the other way round: what a first checkpoint links into previous/ it takes from the queue folder only behind its queue.json.
    folded = [{segment.first for segment in segments_of(files, kind, (PREVIOUS,))} for kind in LogKind]
    return any(firsts - {segment.first for segment in segments_of(files, kind)} for kind, firsts in zip(LogKind, folded, strict=True))


class QueueReader:
    """One generation of queue.json, held open: a checkpoint that replaces it meanwhile does not disturb."""

    def __init__(self, files: Files, handle: int, name: str) -> None:
        self.name = name
        self._files, self._handle = files, handle
        self.size = files.size(handle)
        first = self._first_line()
        self.header = self._read_header(first)
        self._count, self._checksum, self._foot = self._read_foot()
        self._first = first
        self.offset = len(first)
        """Where the block that was read last begins in the file."""

    @classmethod
    def open(cls, files: Files, name: str = QUEUE) -> QueueReader | None:
        """None when the queue has no queue.json yet. Raises :class:`CorruptQueue` or :class:`UnsupportedFormat`."""
        try:
            handle = files.open(name)
        except FileNotFoundError:
            if name == QUEUE and _had_one(files):
                raise CorruptQueue(name, offset=0, why="it is missing, though the queue had one") from None
            return None
        try:
            return cls(files, handle, name)
        except BaseException:
            files.close(handle)
            raise

    def __enter__(self) -> QueueReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close(self._handle)

    def blocks(self) -> Iterator[bytes]:
        """All task lines, in blocks. Raises :class:`CorruptQueue` behind the last one if any byte of the file is not what was written."""
        crc, count = crc32(self._first), 0
        at, carry = len(self._first), b""
        while at < self._foot:
            self.offset = at - len(carry)
            data = self._files.read(self._handle, at, min(CHUNK, self._foot - at))
            if not data:
                raise self._damage(at, "it became shorter while it was read")
            crc, at = crc32(data, crc), at + len(data)
            lines, newline, rest = data.rpartition(b"\n")
            if not newline:
                carry += data
                continue
            block, carry = (carry + lines).removesuffix(b","), rest
            count += block.count(b"\n") + 1
            yield block
        crc = crc32(b'],"count":' + self._count, crc)
        if carry or count != self.count or b"%08x" % crc != self._checksum:
            raise self._damage(self._foot, "its checksum does not fit")

    @property
    def count(self) -> int:
        """How many tasks it holds, by its own word."""
        return int(self._count)

    def unreadable(self, error: Exception) -> StorageError:
        """What to raise when the block read last could not be decoded."""
        return self._damage(self.offset, f"a task there cannot be read ({error})")

    def _first_line(self) -> bytes:
        size = 4096
        line = self._files.read(self._handle, 0, size)
        end = line.find(_TASKS)
        if end < 0:
            raise self._damage(0, "its first line is not that of a queue")
        return line[: end + len(_TASKS)]

    def _read_header(self, first: bytes) -> QueueHeader:
        header = header_in(first)
        if header is None:
            raise self._damage(0, "the checksum of its first line does not fit")
        if header.format != FORMAT or header.version > VERSION:
            raise newer(self.name, header.version)
        return header

    def _read_foot(self) -> tuple[bytes, bytes, int]:
        start = max(0, self.size - _FOOT_BYTES)
        tail = self._files.read(self._handle, start, _FOOT_BYTES)
        at = tail.rfind(b'],"count":')
        found = _FOOT.fullmatch(tail, at) if at >= 0 else None
        if found is None:
            raise self._damage(self.size, "its end is missing or changed")
        return found[1], found[2], start + at

    def _damage(self, offset: int, why: str) -> StorageError:
        """Tell a file that somebody edited from one that the disk damaged: the former is still JSON."""
        try:
            told = json.decode(self._files.read(self._handle, 0, self.size).removeprefix(UTF8_MARK), type=_Told)
        except UNREADABLE:
            return CorruptQueue(self.name, offset=offset, why=why)
        if told.format == FORMAT and told.version > VERSION and not self._is_ours_but_for_the_version():
            return newer(self.name, told.version)
        return EditedQueue(self.name, offset=offset, why=why, way_back=bool(self._files.list(PREVIOUS)))

    def _is_ours_but_for_the_version(self) -> bool:
        """Whether the first line is whole once the version is put right: then that one digit is the damage."""
        line = self._files.read(self._handle, 0, 4096)
        return header_in(re.sub(rb'"version":[0-9]+', b'"version":%d' % VERSION, line, count=1)) is not None


def header_in(data: bytes) -> QueueHeader | None:
    """The header in the first line of a file's bytes, if its checksum fits."""
    end = data.find(_TASKS)
    told = _HEAD.fullmatch(data, end - _HEAD_BYTES, end) if end > _HEAD_BYTES else None
    if told is None or told[1] != b"%08x" % crc32(data[: end - _HEAD_BYTES]):
        return None
    try:
        return _header_decoder.decode(data[:end] + b"}")
    except UNREADABLE:
        return None


class _Told(Struct):
    """What any version of the file tells of itself."""

    format: str
    version: int


def newer(name: str, version: int) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"{name} is in format version {version}, this jsonqueue reads up to version {VERSION}",
        hint="it was written by a newer jsonqueue: upgrade this one (pip install -U jsonqueue); nothing was changed",
    )


class EditedQueue(CorruptQueue):
    """A queue.json that is JSON, but not what jsonqueue wrote."""

    def __init__(self, name: str, *, offset: int, why: str, way_back: bool = True) -> None:
        """``way_back``: there is a generation before it."""
        hint = "nothing was changed; keep the edit with `jsonqueue repair --accept-edit`, or " + (
            "go back to what jsonqueue wrote with `jsonqueue repair`, which rebuilds the file from previous/ and the logs"
            if way_back
            else "undo it by hand: since the last edit was accepted there is no generation before it to go back to (what that one replaced "
            "is in the newest of damaged-1/, damaged-2/ ...)"
        )
        why = f"{why}; it is still valid JSON, so most likely it was changed outside of jsonqueue"
        super().__init__(name, offset=offset, why=why, hint=hint)


class ChangedQueue(StorageError):
    """A queue.json that somebody changed, replaced or removed while a checkpoint was made of it. It was left as it is."""

    def __init__(self) -> None:
        super().__init__(
            f"{QUEUE} was changed, replaced or removed by somebody while a checkpoint was made of it; it was left as it is",
            hint="what is in it now, the next checkpoint or start judges",
        )


class QueueWriter:
    """Writes a new generation, block by block, under a name of its own. Nobody sees it before :func:`os.replace`."""

    def __init__(self, files: Files, name: str, header: QueueHeader) -> None:
        self._files = files
        self._handle = files.open(name, create=True)
        self.count = self.size = self._crc = 0
        self._pending = [first_line(header)]
        self._pending_bytes = 0

    @classmethod
    @contextmanager
    def drafting(cls, files: Files, name: str, header: QueueHeader) -> Iterator[QueueWriter]:
        """A writer that is finished at the end of the block. Where there is no room for all of it nothing of it stays."""
        with suppress(FileNotFoundError):
            files.unlink(name)
        writer = cls(files, name, header)
        try:
            yield writer
            writer.finish()
        except DiskFull:
            files.unlink(name)  # Until it is tried again it must not take what little room there is.
            raise
        finally:
            writer.close()

    def add(self, block: bytes, count: int) -> None:
        """Add a block of ``count`` tasks."""
        if not block:
            return
        self._pending.append(b",\n" if self.count else b"")
        self._pending.append(block)
        self.count += count
        self._pending_bytes += len(block)
        if self._pending_bytes >= CHUNK:
            self._flush()
            # Bit by bit: to the disk, a log's sync has to wait for whatever of this file is not written yet.
            self._files.sync(self._handle)

    def finish(self) -> None:
        """Write the end and make it all durable."""
        self._pending.append(b'\n],"count":%d' % self.count if self.count else b'],"count":0')
        self._flush()
        self._put(b',"checksum":"%08x"}\n' % self._crc)
        self._files.sync(self._handle)

    def close(self) -> None:
        self._files.close(self._handle)

    def _flush(self) -> None:
        self._put(b"".join(self._pending))
        self._pending.clear()
        self._pending_bytes = 0

    def _put(self, data: bytes) -> None:
        self._crc = crc32(data, self._crc)
        self.size = write_all(self._files, self._handle, self.size, data)


def first_line(header: QueueHeader) -> bytes:
    """The first line of the file, up to and with its newline."""
    members = json.encode(replace(header, format=FORMAT, version=VERSION))[:-1]
    return b'%b,"head":"%08x"%b' % (members, crc32(members), _TASKS)
