"""Which bytes are a batch: every prefix, every flipped bit and every torn sector of a log."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from jsonqueue.storage.codec import (
    HEADER,
    Bad,
    Batch,
    NewerVersion,
    Position,
    TailState,
    encode_batch,
    encode_segment_head,
    read_head,
    read_segment_head,
    rest_of,
    scan,
    tail_state,
)

FIRST, EPOCH, CHAIN = 5, 3, 0xC0FFEE
RECORDS = [
    b'[{"id":"a","data":" @ @ "}]',
    b"[]",
    b'[{"id":"b","data":"' + b"x" * 700 + b'"}]',
    b'[{"id":"c","data":"@ one flipped bit makes a NUL of these"}]',
]


def segment(records: list[bytes] = RECORDS) -> tuple[bytes, list[int]]:
    """A segment, and where its lines end."""
    data, chain = encode_segment_head("published", first=FIRST, epoch=EPOCH, chain=CHAIN), CHAIN
    ends = [len(data)]
    for number, record in enumerate(records, FIRST):
        line, chain = encode_batch(record, number=number, epoch=EPOCH, rest=number * 10, at_ms=17, chain=chain)
        data += line
        ends.append(len(data))
    return data, ends


def read(data: bytes) -> tuple[list[Batch], TailState]:
    """A reader of one segment: its batches, and what lies behind them."""
    try:
        head = read_segment_head(data, "published")
    except Bad as bad:
        return [], tail_state(data, 0, bad, number=FIRST - 1)
    if (head.first, head.epoch) != (FIRST, EPOCH):
        return [], TailState.DAMAGED
    found = scan(data, head.size, number=FIRST, epoch=0, chain=int(head.chain, 16), progress=False)
    return found.batches, tail_state(data[found.end :], found.end, found.bad, number=FIRST + len(found.batches))


DATA, ENDS = segment()
WHOLE, _ = read(DATA)


def test_a_line_is_json_and_says_what_the_format_says() -> None:
    """Every line is valid JSON of the documented shape, with every field at its offset."""
    line, chain = encode_batch(b"[1]", number=7, epoch=1, rest=0x318, at_ms=1_763_000_000_000, chain=0)
    assert re.fullmatch(rb'\{"h":"02000000010000000000070{17}318000000[0-9a-f]{18}","t":1763000000000,"b":\[1\]\}\n', line)
    assert json.loads(line)["b"] == [1]
    assert read_head(line, 0) == (2, 1, 7, 0x318, len(line) - HEADER, chain)
    assert json.loads(DATA[: ENDS[0]]) == {"h": DATA[6:72].decode(), "jsonqueue": "published", "version": 2, "chain": "00c0ffee"}


def test_what_is_written_is_read() -> None:
    """Numbers, epochs, times and records come back as they were given."""
    assert [(batch.number, batch.epoch, batch.at_ms, batch.first_task, batch.records) for batch in WHOLE] == [
        (number, EPOCH, 17, number * 10, records) for number, records in enumerate(RECORDS, FIRST)
    ]
    assert WHOLE[0].position == Position(FIRST, EPOCH)
    line, _ = encode_batch(b"[]", number=1, epoch=9, rest=rest_of(Position(812, 4)), at_ms=0, chain=0)
    assert scan(line, 0, number=1, epoch=9, chain=0, progress=True).batches[0].after == Position(812, 4)


def test_a_batch_is_one_line_whatever_its_records_are() -> None:
    """Newlines between the tokens of somebody's JSON become spaces."""
    line, _ = encode_batch(b'[{"id":\n"a"}\n]', number=1, epoch=1, rest=1, at_ms=0, chain=0)
    assert line.count(b"\n") == 1
    assert scan(line, 0, number=1, epoch=1, chain=0, progress=False).batches[0].records == b'[{"id": "a"} ]'


def test_every_prefix_is_the_batches_that_are_whole() -> None:
    """Wherever a write was cut off, what came before counts, and what is left of it is torn."""
    for size in range(len(DATA)):
        batches, state = read(DATA[:size])
        whole = sum(end <= size for end in ENDS[1:])
        assert batches == WHOLE[:whole], size
        assert state is (TailState.CLEAN if size in {0, *ENDS} else TailState.TORN), size


def test_no_flipped_bit_goes_unnoticed() -> None:
    """Not one of them costs a batch in silence: it is damage, or it changes nothing."""
    for bit in range(8 * len(DATA)):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        _, state = read(bytes(damaged))
        assert state is TailState.DAMAGED, bit


@pytest.mark.parametrize("before", range(0, 512, 64))
def test_every_subset_of_torn_sectors_is_torn(before: int) -> None:
    """The last batch reached the disk in part, in any order of sectors: it is cut away, and nothing before it is."""
    data, ends = segment([b'["%b"]' % (b"x" * before), b'["%b"]' % (b"y" * 3000)])
    start = ends[-2]
    pieces = [(max(at, start), min(at + 512, len(data))) for at in range(start // 512 * 512, len(data), 512)]
    whole, _ = read(data)
    for kept in itertools.product((True, False), repeat=len(pieces)):
        torn = bytearray(data)
        for (begin, end), keep in zip(pieces, kept, strict=True):
            if not keep:
                torn[begin:end] = bytes(end - begin)
        batches, state = read(bytes(torn))
        assert (batches, state) == ((whole, TailState.CLEAN) if all(kept) else (whole[:1], TailState.TORN)), kept


PADDED = DATA + b"\n" * (2048 - len(DATA))


def test_padding_is_nothing() -> None:
    """Newlines behind the last line are not there, as far as batches go: few or many, also when the file is cut within them."""
    for size in range(len(DATA), len(PADDED) + 1):
        assert read(PADDED[:size]) == (WHOLE, TailState.CLEAN)
    assert json.loads(PADDED.splitlines()[-1] or b"null") is None
    assert tail_state(b"\n" * 600, 0, Bad("?"), number=4) is TailState.DAMAGED  # A first line is not written over anything.


def test_no_flipped_bit_goes_unnoticed_in_padding_nor_before_it() -> None:
    """Behind a last batch that was acknowledged, padding makes no difference; and a flip in the padding is damage too."""
    for bit in range(8 * len(PADDED)):
        damaged = bytearray(PADDED)
        damaged[bit // 8] ^= 1 << bit % 8
        _, state = read(bytes(damaged))
        assert state is TailState.DAMAGED, bit


def test_lost_lines_before_a_batch_are_damage() -> None:
    """Newlines in the place of a batch, or before one: something was there, or moved."""
    for first, last in itertools.combinations(range(len(ENDS)), 2):
        if last + 1 < len(ENDS):
            lost = DATA[: ENDS[first]] + b"\n" * (ENDS[last] - ENDS[first]) + DATA[ENDS[last] :]
            assert read(lost)[1] is TailState.DAMAGED
    for newlines in (1, 100, 511, 512, 513, 2000):
        for end in ENDS[:-1]:
            assert read(DATA[:end] + b"\n" * newlines + DATA[end:])[1] is TailState.DAMAGED, (newlines, end)


_LINES = (100, 150, 440, 512, 600, 1100)
"""Lengths of a torn line, and some that depend on where it begins: so that it ends at a sector's end, or a byte or two from it."""


@pytest.mark.parametrize("within", [0, 1, 5, 200, 439, 440, 441, 505, 509, 510, 511])
@pytest.mark.parametrize("padded", ["not at all", "by a byte", "to a sector's end", "by half of the line", "by the line", "far"])
def test_whatever_is_left_of_a_line_written_over_padding_is_torn(within: int, padded: str) -> None:
    """Each sector as it was (newlines, or nothing) or as it was to be, the file of any length between, new padding written with it or not:
    the batch is there if all of it is, and is never damage."""
    start = 1024 + within
    for length in {*_LINES, *(512 * sectors - within + near for sectors in (1, 2, 3) for near in (-2, -1, 0, 1, 2))} - {*range(100)}:
        line, _ = encode_batch(b"[%b]" % (b"x" * (length - 100)), number=FIRST, epoch=EPOCH, rest=0, at_ms=0, chain=CHAIN)
        until = {
            "not at all": 0,
            "by a byte": 1,
            "to a sector's end": 512 - within,
            "by half of the line": length // 2,
            "by the line": length,
        }
        old = b"." * start + b"\n" * until.get(padded, 2048 - within)
        for padding in (b"", b"\n" * (-(start + len(line)) % 1024)):
            new = old[:start] + line + padding + old[start + len(line) + len(padding) :]
            _judge_all_states(old, new, start, line)


def _judge_all_states(old: bytes, new: bytes, start: int, line: bytes) -> None:
    edges = range(start // 512 * 512 + 512, max(len(old), len(new)), 512)
    for size in {len(old), len(new), *(edge for edge in edges if edge > len(old))}:
        pieces = [(max(edge - 512, start), min(edge, size)) for edge in [*edges, edges.stop + 512] if edge - 512 < size]
        was, is_to_be = (data[:size].ljust(size, b"\0") for data in (old, new))
        for picked in itertools.product((was, is_to_be), repeat=len(pieces)):
            left = b"".join(which[begin:end] for which, (begin, end) in zip(picked, pieces, strict=True))
            found = scan(left, 0, number=FIRST, epoch=EPOCH, chain=CHAIN, progress=False)
            state = tail_state(left[found.end :], start + found.end, found.bad, number=FIRST + len(found.batches))
            assert len(found.batches) == left.startswith(line), (size, len(line))
            assert state in {TailState.CLEAN, TailState.TORN}, (size, len(line), left)
            assert found.batches or (state is TailState.CLEAN) == (not left.strip(b"\n"))


@pytest.mark.parametrize("within", [0, 300, 500])
def test_a_line_that_ends_early_in_padding_is_torn(within: int) -> None:
    """A short write, before it was carried on; or one that somebody reads while it is under way."""
    line, _ = encode_batch(b"[%b]" % (b"x" * 700), number=FIRST, epoch=EPOCH, rest=0, at_ms=0, chain=CHAIN)
    for length in range(1, len(line)):
        data = line[:length] + b"\n" * (2048 - length)
        found = scan(data, 0, number=FIRST, epoch=EPOCH, chain=CHAIN, progress=False)
        if length == len(line) - 1:  # all but the newline, in the place of which there is one
            assert found.batches
        else:
            assert tail_state(data, 1024 + within, found.bad, number=FIRST) is TailState.TORN, length


def test_what_no_torn_write_leaves_is_damage() -> None:
    """A blank sector beside the line; an altered line; a header that belongs elsewhere; two bytes in padding that begin no line."""

    def state(data: bytes, base: int = 512) -> TailState:
        found = scan(data, 0, number=FIRST, epoch=EPOCH, chain=CHAIN, progress=False)
        assert not found.batches
        return tail_state(data, base, found.bad, number=FIRST)

    line, _ = encode_batch(b"[%b]" % (b"x" * 1400), number=FIRST, epoch=EPOCH, rest=0, at_ms=0, chain=CHAIN)
    altered = line[:700] + b"y" + line[701:]
    for behind in (b"", b"\n" * 600, b"\n" * 4096, b"\0" * 600):
        assert state(altered + behind) is TailState.DAMAGED
        assert state(line[:99] + b"\n" * 300 + line[399:] + behind) is TailState.DAMAGED  # Not a whole sector.
        torn = line[:512] + b"\n" * 512 + line[1024:]
        assert state(torn + behind) is TailState.TORN
        assert state(torn + behind, base=513) is TailState.DAMAGED
        assert state(torn + behind + b"x") is TailState.DAMAGED
    other, _ = encode_batch(b"[%b]" % (b"x" * 1400), number=FIRST + 1, epoch=EPOCH, rest=0, at_ms=0, chain=CHAIN)
    assert state(other[:100] + b"\n" * 2000) is TailState.DAMAGED
    for wrong in (b"\n" * 700 + b"xx" + b"\n" * 300, b"xx" + b"\n" * 2000, b"\n" * 512 + b"x" * 500 + b"\n" * 1000):
        assert state(wrong) is TailState.DAMAGED


def test_damage_before_a_later_batch_is_never_taken_for_a_torn_write() -> None:
    """A sector of NULs in the middle of a log was durable once."""
    damaged = bytearray(DATA)
    damaged[ENDS[2] : ENDS[2] + 600] = bytes(600)
    assert read(bytes(damaged))[1] is TailState.DAMAGED


def test_a_payload_that_looks_like_a_later_batch_is_only_a_payload() -> None:
    """What stands inside a line is not a line, and what only looks like a header is none."""
    later, _ = encode_batch(b"[]", number=99, epoch=EPOCH, rest=0, at_ms=0, chain=0)
    data, ends = segment([b"[%b]" % later.strip(), b"[]"])
    assert read(data[: ends[1] - 3])[1] is TailState.TORN
    broken = bytearray(data[: ends[1]] + b'{"h":"' + b"0" * 66)
    assert read(bytes(broken))[1] is TailState.DAMAGED
    long, _ = encode_batch(b'["%b"]' % (b"x" * 1400), number=9, epoch=EPOCH, rest=0, at_ms=0, chain=CHAIN)
    rest = long[1022:-99] + b'{"h":"' + b"0" * 66 + b'"]}\n'
    assert tail_state(bytes(1022) + rest, 514, Bad("?"), number=9) is TailState.TORN
    assert tail_state(bytes(1022) + long, 514, Bad("?"), number=9) is TailState.DAMAGED  # The line itself, in another place.


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"number": 8}, "number 8 where 5 belongs"),
        ({"epoch": 2}, "epoch 2 is lower"),
        ({"chain": 1}, "does not continue"),
    ],
)
def test_a_line_that_does_not_continue_its_predecessor_is_damage(change: dict[str, int], why: str) -> None:
    """Lost, swapped and stale batches show."""
    line, _ = encode_batch(b"[]", **{"number": 5, "epoch": 3, "rest": 0, "at_ms": 0, "chain": CHAIN, **change})
    found = scan(line, 0, number=5, epoch=3, chain=CHAIN, progress=False)
    assert found.bad is not None
    assert why in found.bad.why
    assert tail_state(line, 0, found.bad, number=5) is TailState.DAMAGED


def test_a_newer_version_is_told_from_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a later format is whole; it is just not ours to read, nor to cut away."""
    monkeypatch.setattr("jsonqueue.storage.codec.VERSION", 3)
    line, _ = encode_batch(b"[]", number=5, epoch=3, rest=0, at_ms=0, chain=CHAIN)
    head = encode_segment_head("published", first=5, epoch=3, chain=CHAIN)
    monkeypatch.undo()
    found = scan(line, 0, number=5, epoch=3, chain=CHAIN, progress=False)
    assert isinstance(found.bad, NewerVersion)
    assert tail_state(line[:80], 0, found.bad, number=5) is TailState.DAMAGED
    with pytest.raises(NewerVersion):
        read_segment_head(head, "published")


def test_a_segment_header_belongs_to_its_log() -> None:
    """A file of the other log under this one's name is refused; so is a first line that is no header."""
    with pytest.raises(Bad, match="belongs to the log 'progress'"):
        read_segment_head(encode_segment_head("progress", first=1, epoch=1, chain=0), "published")
    line, _ = encode_batch(b"[]", number=1, epoch=1, rest=0, at_ms=0, chain=0)
    with pytest.raises(Bad, match="not a segment header"):
        read_segment_head(line, "published")


def test_of_headers_behind_a_torn_one_those_of_the_past_do_not_count() -> None:
    """An earlier batch in a payload is nothing to go by; the next one, or a later one, in another place than it belongs, is."""
    for number, state in ((FIRST - 1, TailState.TORN), (FIRST, TailState.DAMAGED), (FIRST + 1, TailState.DAMAGED)):
        line, _ = encode_batch(b"[]", number=number, epoch=EPOCH, rest=0, at_ms=0, chain=0)
        for blank in (b"\0", b"\n"):
            assert tail_state(blank * 512 + line, 512, Bad("?"), number=FIRST) is state


def test_what_only_looks_like_a_header_is_none() -> None:
    """Its checksum does not fit: it tells nothing of batches elsewhere."""
    for blank in (b"\0", b"\n"):
        assert tail_state(blank * 511 + b'\n{"h":"' + b"0" * 66, 512, Bad("?"), number=FIRST) is TailState.TORN
