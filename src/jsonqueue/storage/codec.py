"""The lines of a log: how a batch becomes bytes, and which bytes are a batch. Pure.

A log segment is JSON Lines. Its first line is its header, every further line is one batch, and every line has this shape (offsets
in bytes)::

    {"h":"0200000001000000000007000000000000000003180000012f8a1c3e4bdd20f1a7","t":1763000000000,"b":[...]}\\n
    0     6                                                                 72
    6   2  version   02 (01 is read, too: it differs only in that nothing was ever padded)
    8   8  epoch     of the writer that wrote the line
    16 12  number    of the batch: gapless, from 1. Segment header: of the first batch to come
    28 20  rest      published: number of the batch's first task. progress: ``after``, the last published batch its writer had read
                     (12 number, 8 epoch)
    48  8  length    bytes behind the header: from offset 72 up to and including the newline
    56  8  payload   crc-32 of those bytes, continued from the previous batch's (so lost, swapped and stale batches show)
    64  8  header    crc-32 of bytes 6 to 64
    72    ",         then members of plain JSON: batch {"t": wall clock ms, 13 digits; "b": the records}

All numbers are lower-case hexadecimal of fixed width. A line is valid if and only if its first six bytes are ``{"h":"``, the
version is known, the header crc fits bytes 6 to 64, the length lies within the file, the payload crc fits, and epoch, number and chain
continue those of the line before. The header's own crc is needed: with one flipped bit in the length, a durable batch would look short
and be cut away.

A segment header carries ``{"jsonqueue":"published"|"progress","version":2,"chain":"<crc>"}`` instead of time and records. ``chain`` is the
payload crc of the batch before the segment's first one; the segment's first batch continues it, so a segment can be copied under a
new header with its batches byte by byte the same, and order and continuity can be checked across segments.

Behind its last line the active segment is padded with newlines, which the next lines are written over: a write that does not change
the length of its file is cheaper to make durable. A newline is white space to a reader of JSON, and stands in no line but at its end; so
newlines mean "nothing was written here (yet)", as do NULs, which a file system leaves where it made a file longer and wrote nothing yet.

The tail rule tells a torn write, which was never acknowledged, from damage. Let G be the end of the last valid line. What lies behind it
was newlines, or beyond the end of the file, when the one batch that may be torn was written over it. So each sector (512 bytes, aligned in
the file, cut to what lies behind G) is as it was or as it was to be; *blank* is one of nothing but newlines and NULs. (At the beginning of
a segment, whose first line is not written over anything, only one of NULs.) A line may also end early: writes may be short, and who
reads while another writes may see half of it; *written* is what lies behind G without the newlines at its end. Then, in this order:

1. nothing is written: clean;
2. at the start of a line behind G, a valid header of the next batch or a later one: damage. (Batches are synced one by one, so what lies
   before a later batch was durable; and the next batch belongs at G);
3. fewer bytes than a header are written, and they begin like one: torn;
4. at G, a valid header, but not of the line that belongs there: damage. If it does belong there, it says where its line ends. Less is
   written, or a sector of the line is blank while everything behind the line is: torn. Otherwise damage;
5. at G, no valid header. A sector that should hold a part of it is blank, and the others look like the rest of one line (each is
   blank, or free of newlines and NULs up to where the line ends: with ``}``, at the end of a sector, or at the end of the file): torn;
6. anything else: damage.

Only sectors of the line count, and one of which only the newline at its end lies within does not: there, newlines belong. "Any blank
sector", "any newline" or "any NUL" would cut away a durable batch for one flipped bit.
"""

from __future__ import annotations

import re
import struct
from binascii import unhexlify
from enum import Enum
from typing import NamedTuple
from zlib import crc32

from msgspec import DecodeError, Struct, json

__all__ = [
    "HEADER",
    "MAGIC",
    "START",
    "UNREADABLE",
    "VERSION",
    "Bad",
    "Batch",
    "Head",
    "Position",
    "Scan",
    "SegmentHead",
    "TailState",
    "encode_batch",
    "encode_segment_head",
    "read_segment_head",
    "scan",
    "tail_state",
]

UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError)
"""All that a decoder raises at bytes that are not what they should be."""

VERSION = 2
"""What is written. All versions from 1 on are read."""
MAGIC = b'{"h":"'
HEADER = 72
"""Bytes of a line's fixed part."""
_TIME = slice(HEADER + 6, HEADER + 19)
_RECORDS = HEADER + 24
"""Where the records of a batch begin: behind ``","t":<13 digits>,"b":``."""
SECTOR = 512
_HEX = re.compile(rb'\{"h":"[0-9a-f]{66}')


class Position(NamedTuple):
    """A batch of a log: its number (gapless, from 1) and the epoch it was written under. (0, 0): before the first."""

    number: int
    epoch: int


START = Position(0, 0)


class Batch(NamedTuple):
    """One committed batch of a log."""

    number: int
    epoch: int
    at_ms: int
    """Wall clock at its writer."""
    first_task: int
    """published: number of its first task; 0 in the progress log."""
    after: Position
    """progress: the last published batch its writer had read; START in the published log."""
    records: bytes
    """JSON array, for ``decode_published`` or ``decode_progress`` of :mod:`jsonqueue.core.records`."""
    chain: int
    """Its payload crc."""

    @property
    def position(self) -> Position:
        return Position(self.number, self.epoch)


class Head(NamedTuple):
    """The fixed part of a line, read."""

    version: int
    epoch: int
    number: int
    rest: int
    length: int
    chain: int


class SegmentHead(Struct):
    """First line of a segment."""

    jsonqueue: str
    version: int
    chain: str
    epoch: int = 0
    first: int = 0
    size: int = 0
    """Bytes of the line; the first batch begins there."""


class Bad(Exception):
    """A line that is not valid, and why.

    ``short``: the file may simply end too early. ``claims``: length of the line, by the word of a header that is whole and in its place.
    """

    def __init__(self, why: str, *, short: bool = False, claims: int = 0) -> None:
        super().__init__(why)
        self.why, self.short, self.claims = why, short, claims


class NotNext(Bad):
    """A line whose header is whole, and which does not belong there. No torn write leaves that."""


class NewerVersion(NotNext):
    """A line in a version this code does not read."""


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_batch(records: bytes, *, number: int, epoch: int, rest: int, at_ms: int, chain: int) -> tuple[bytes, int]:
    """The line of a batch, and its payload crc, which the next batch continues."""
    if b"\n" in records:  # Only white space between tokens can be one: JSON escapes it everywhere else. One batch, one line.
        records = records.replace(b"\n", b" ")
    start = b'","t":%013d,"b":' % at_ms
    chain = crc32(b"}\n", crc32(records, crc32(start, chain)))
    head = _head(epoch, number, rest, len(start) + len(records) + 2, chain, VERSION)
    return b"".join((head, start, records, b"}\n")), chain


def encode_segment_head(kind: str, *, first: int, epoch: int, chain: int, version: int | None = None) -> bytes:
    """The first line of a segment whose first batch will be ``first``, continuing ``chain``."""
    version = version or VERSION
    payload = b'","jsonqueue":"%s","version":%d,"chain":"%08x"}\n' % (kind.encode(), version, chain)
    return _head(epoch, first, 0, len(payload), crc32(payload, chain), version) + payload


def _head(epoch: int, number: int, rest: int, length: int, chain: int, version: int) -> bytes:
    digits = b"%02x%08x%012x%020x%08x%08x" % (version, epoch, number, rest, length, chain)
    return b'{"h":"%b%08x' % (digits, crc32(digits))


def rest_of(after: Position) -> int:
    """``after`` as the header's ``rest``."""
    return after.number << 32 | after.epoch


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_head(data: bytes, offset: int) -> Head:
    """The fixed part of the line at ``offset``. Raises :class:`Bad`."""
    head = data[offset : offset + HEADER]
    if len(head) < HEADER or b"%08x" % crc32(head[6:64]) != head[64:]:
        raise _no_head(head)
    if head[:6] != MAGIC:
        raise Bad("it does not begin like a line of a log")
    version, epoch, number, rest, length, chain = _FIELDS.unpack(unhexlify(head[6:64]))
    return Head(version, epoch, int.from_bytes(number, "big"), int.from_bytes(rest, "big"), length, chain)


def _no_head(head: bytes) -> Bad:
    if head and not head.strip(b"\n"):
        return Bad("there are only newlines, as where nothing was written")
    if len(head) < HEADER:
        return Bad("the line ends within its header", short=_begins(head))
    return Bad("its header checksum does not fit")


_FIELDS = struct.Struct(">BI6s10sII")
"""As the digits stand in the line, two a byte."""


class Scan(NamedTuple):
    """What a buffer holds: whole valid batches, and where and why reading stopped."""

    batches: list[Batch]
    end: int
    """Offset in the buffer behind the last valid batch."""
    bad: Bad | None
    """None: the buffer ends there."""


def scan(data: bytes, offset: int, *, number: int, epoch: int, chain: int, progress: bool, upto: int | None = None) -> Scan:
    """Read batches from ``offset`` on: the first must have ``number``, an epoch not below ``epoch``, and continue ``chain``.

    Stops behind batch ``upto``, at the end of the buffer, or at the first line that is not valid.
    """
    batches: list[Batch] = []
    end = len(data)
    try:
        while offset < end and (upto is None or number <= upto):
            batch, offset = _read_batch(data, offset, number, epoch, chain, progress)
            batches.append(batch)
            number, epoch, chain = number + 1, batch.epoch, batch.chain
    except Bad as bad:
        return Scan(batches, offset, bad)
    return Scan(batches, offset, None)


def _read_batch(data: bytes, offset: int, number: int, epoch: int, chain: int, progress: bool) -> tuple[Batch, int]:
    head = read_head(data, offset)
    _check(head, number, epoch)
    claims = HEADER + head.length
    end = offset + claims
    if end > len(data):
        raise Bad(f"it declares {head.length} bytes, the file holds {len(data) - offset - HEADER}", short=True, claims=claims)
    if crc32(memoryview(data)[offset + HEADER : end], chain) != head.chain:
        raise Bad("its checksum does not fit, or it does not continue the batch before it", claims=claims)
    rest = head.rest
    after, first = (Position(rest >> 32, rest & 0xFFFFFFFF), 0) if progress else (START, rest)
    at_ms = int(data[offset + _TIME.start : offset + _TIME.stop])
    return Batch(number, head.epoch, at_ms, first, after, data[offset + _RECORDS : end - 2], head.chain), end


def _check(head: Head, number: int, epoch: int) -> None:
    _check_version(head)
    if head.number != number:
        raise NotNext(f"it is number {head.number} where {number} belongs")
    if head.epoch < epoch:
        raise NotNext(f"its epoch {head.epoch} is lower than its predecessor's, {epoch}")


def _check_version(head: Head) -> None:
    if head.version > VERSION:
        raise NewerVersion(f"it is written in version {head.version}, this is version {VERSION}")


def read_segment_head(data: bytes, kind: str) -> SegmentHead:
    """The header line at the start of a segment. Raises :class:`Bad`."""
    head = read_head(data, 0)
    payload = data[HEADER : HEADER + head.length]
    _check_version(head)
    if len(payload) < head.length:
        raise Bad("the file ends within its first line", short=True, claims=HEADER + head.length)
    try:
        told = json.decode(data[: HEADER + head.length], type=SegmentHead)
        chain = int(told.chain, 16)
    except (*UNREADABLE, ValueError):
        raise Bad("its first line is not a segment header") from None
    if crc32(payload, chain) != head.chain or told.jsonqueue != kind:
        raise Bad("the checksum of its first line does not fit" if told.jsonqueue == kind else f"it belongs to the log {told.jsonqueue!r}")
    told.epoch, told.first, told.size = head.epoch, head.number, HEADER + head.length
    return told


# ── the tail rule ────────────────────────────────────────────────────────────────────────────────────────────────────


class TailState(Enum):
    """What lies behind the last valid line of a segment."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


def tail_state(data: bytes, base: int, bad: Bad | None, *, number: int) -> TailState:
    """Judge ``data``, which is all that lies behind the last valid line, from file offset ``base``; ``bad`` is why reading stopped.

    ``number``: the number that the next batch would have.
    """
    written = data.rstrip(b"\n")
    if not written and (base or not data):
        return TailState.CLEAN
    if isinstance(bad, NotNext) or _batch_elsewhere(written, number):
        return TailState.DAMAGED
    blank = b"\n\0" if base else b"\0"
    claims = bad.claims if bad is not None else 0
    torn = _is_torn_line(data, written, base, claims, blank) if claims else _is_torn_header(data, written, base, blank)
    return TailState.TORN if torn else TailState.DAMAGED


def _batch_elsewhere(data: bytes, number: int) -> bool:
    """Whether a valid header of a batch from ``number`` on stands at the start of a line, other than where ``data`` begins."""
    for found in _HEX.finditer(data, 1):
        if data[found.start() - 1] in b"\n\0":
            try:
                if read_head(data, found.start()).number >= number:
                    return True
            except Bad:
                continue
    return False


def _is_torn_line(data: bytes, written: bytes, base: int, claims: int, blank: bytes) -> bool:
    """Whether that may be left of a line, the header of which says that it is ``claims`` bytes long."""
    if len(data) < claims or len(written) < claims - 1:
        return True
    missing = (part for part in _sectors(data[:claims], base) if not part.strip(blank) and part != b"\n")
    return not data[claims:].strip(blank) and any(missing)


def _is_torn_header(data: bytes, written: bytes, base: int, blank: bytes) -> bool:
    """Whether that may be left of a line, the header of which is not there, or not all of it."""
    if written and len(written) < HEADER and _begins(written):
        return True
    core = data.rstrip(blank)
    if not core:
        return True
    first, *more = _sectors(data[: 2 * SECTOR], base)
    if first.strip(blank) and (len(first) >= HEADER or not _begins(first) or not more or more[0].strip(blank)):
        return False
    ends = core.endswith(b"}") or len(core) == len(data) or (base + len(core)) % SECTOR == 0
    return ends and all(b"\n" not in part and b"\0" not in part for part in _sectors(core, base) if part.strip(blank))


def _begins(data: bytes) -> bool:
    return data[: len(MAGIC)] == MAGIC[: len(data)]


def _sectors(data: bytes, base: int) -> list[bytes]:
    """``data``, which begins at file offset ``base``, cut where the sectors of the file begin."""
    starts = [0, *range(SECTOR - base % SECTOR, len(data), SECTOR)]
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
