"""Damage to a segment that can be undone without loss: one wrong byte in the fixed part of a line, in the segment's first line, or
in the padding behind the last one.

The fixed part has a checksum of its own, and the payload behind it another: if putting one digit right makes both fit, and number and
length as well, the line is what was written. (One wrong byte in a payload is not guessed at: a single checksum is too little to be sure.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from operator import ne
from typing import NamedTuple
from zlib import crc32

from jsonqueue.storage.codec import (
    HEADER,
    MAGIC,
    VERSION,
    Bad,
    TailState,
    encode_segment_head,
    read_head,
    read_segment_head,
    scan,
    tail_state,
)
from jsonqueue.storage.segments import LogKind, Segment

__all__ = ["Flaw", "flaw_of", "mended"]


class Flaw(NamedTuple):
    """Where the sound part of a segment ends, though the file goes on."""

    offset: int
    batch: int
    why: str
    torn: bool
    """Whether it is only the remains of a write that never became a batch."""


def flaw_of(data: bytes, segment: Segment) -> Flaw | None:
    """The first flaw in the bytes of a segment, taken by itself; None when it is sound from its first byte to its last."""
    try:
        head = read_segment_head(data, segment.kind)
        if (head.first, head.epoch) != (segment.first, segment.epoch):
            raise Bad(f"it was written as batch {head.first} on, epoch {head.epoch}: the name was changed")
    except Bad as bad:
        return _judged(data, 0, bad, segment.first - 1)
    progress = segment.kind is LogKind.PROGRESS
    found = scan(data, head.size, number=head.first, epoch=0, chain=int(head.chain, 16), progress=progress)
    if found.bad is None:
        return None
    return _judged(data, found.end, found.bad, head.first + len(found.batches))


def _judged(data: bytes, offset: int, bad: Bad, number: int) -> Flaw | None:
    state = tail_state(data[offset:], offset, bad, number=number)
    return None if state is TailState.CLEAN else Flaw(offset, number, bad.why, state is TailState.TORN)


def mended(data: bytes, segment: Segment) -> bytes | None:
    """The segment with all that can be put right put right; None when something cannot, or nothing has to be."""
    fixed = data
    while (flaw := flaw_of(fixed, segment)) is not None and not flaw.torn:
        better = _mend_first_line(fixed, segment) if flaw.offset == 0 else _mend_line(fixed, segment, flaw)
        if better is None:
            return None
        fixed = better
    return None if fixed is data else fixed


def _mend_first_line(data: bytes, segment: Segment) -> bytes | None:
    line, newline, rest = data.partition(b"\n")
    line += newline
    chain = line[_CHAIN]
    for version, told in product(range(1, VERSION + 1), (chain, *_one_digit_off(chain, 0))):
        with suppress(ValueError):
            fresh = encode_segment_head(segment.kind, first=segment.first, epoch=segment.epoch, chain=int(told, 16), version=version)
            if len(fresh) == len(line) and sum(map(ne, fresh, line)) == 1:
                return fresh + rest
    return None


_CHAIN = slice(-11, -3)
"""Where the first line of a segment says which checksum it continues."""


def _mend_line(data: bytes, segment: Segment, flaw: Flaw) -> bytes | None:
    behind = data[flaw.offset :]
    if len(behind) - behind.count(b"\n") == 1:
        return data[: flaw.offset]  # Of a line more would be left than one byte among newlines: this was padding.
    end = data.find(b"\n", flaw.offset + HEADER) + 1
    fixed, payload = data[flaw.offset : flaw.offset + HEADER], data[flaw.offset + HEADER : end]
    if not end or _is_whole(fixed):
        return None  # The damage is in the payload.
    chain = crc32(payload, _chain_before(data, segment, flaw.offset))
    for candidate in (MAGIC + fixed[len(MAGIC) :], *_one_digit_off(fixed, len(MAGIC))):
        with suppress(Bad):
            head = read_head(candidate, 0)
            if (head.number, head.length, head.chain) == (flaw.batch, len(payload), chain):
                return data[: flaw.offset] + candidate + payload + data[end:]
    return None


def _is_whole(fixed: bytes) -> bool:
    try:
        read_head(fixed, 0)
    except Bad:
        return False
    return True


def _chain_before(data: bytes, segment: Segment, offset: int) -> int:
    head = read_segment_head(data, segment.kind)
    chain, progress = int(head.chain, 16), segment.kind is LogKind.PROGRESS
    batches = scan(data[:offset], head.size, number=head.first, epoch=0, chain=chain, progress=progress).batches
    return batches[-1].chain if batches else chain


def _one_digit_off(digits: bytes, start: int) -> Iterator[bytes]:
    """All that ``digits`` may have been if one of them, from ``start`` on, is wrong."""
    for at in range(start, len(digits)):
        for digit in b"0123456789abcdef":
            yield digits[:at] + bytes((digit,)) + digits[at + 1 :]
