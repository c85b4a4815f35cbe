"""Which files make up a log, and how to walk through them.

``published-<first>-<epoch>.jsonl`` holds the batches from number ``first`` on, written under ``epoch`` (or copied under it). Sorted by
first number, then epoch; a segment of a higher epoch supersedes all lower ones from its first number on; the newest is active. A segment
is never renamed while it is live, and never written to by anyone but the writer that made it. A file whose header line is torn never held
a batch. Segments that hold no batch beyond ``published_through`` of ``queue.json`` are leftovers of a checkpoint.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from jsonqueue.errors import CorruptQueue, StorageError, UnsupportedFormat
from jsonqueue.storage.codec import (
    Bad,
    Batch,
    NewerVersion,
    SegmentHead,
    TailState,
    read_segment_head,
    scan,
    tail_state,
)
from jsonqueue.storage.files import Files

__all__ = [
    "CHUNK",
    "End",
    "Link",
    "LogKind",
    "MissingBatches",
    "Segment",
    "Step",
    "begun_name",
    "begun_of",
    "chain_of",
    "corrupt",
    "head_of",
    "needed_of",
    "read_batches",
    "segments_of",
    "told_span",
    "walk",
]

CHUNK = 1 << 20
"""Files are read in pieces of this size: no single call keeps other threads waiting for long."""
_HEAD_BYTES = 512


class LogKind(StrEnum):
    """The two logs."""

    PUBLISHED = "published"
    """What came in; written by the PublisherBroker."""
    PROGRESS = "progress"
    """What became of it; written by the ConsumerBroker."""


class Segment(NamedTuple):
    """A file of a log, by its name."""

    first: int
    epoch: int
    kind: LogKind
    folder: str = ""

    @property
    def name(self) -> str:
        """Its file, relative to the queue folder."""
        return f"{self.folder}{'/' if self.folder else ''}{self.kind}-{self.first:012d}-{self.epoch:08d}.jsonl"


_NAME = re.compile(r"(published|progress)-(\d{12})-(\d{8,10})\.jsonl")
# From 100,000,000 on an epoch has more than 8 digits: each publish raises it while no broker runs.


def segments_of(files: Files, kind: LogKind, folders: Sequence[str] = ("",)) -> list[Segment]:
    """All segments of a log by name, oldest first. Where two folders hold the same name, the first folder's counts."""
    found: dict[tuple[int, int], Segment] = {}
    for folder in folders:
        for name in _settled_list(files, folder):
            if name.startswith(kind) and (match := _NAME.fullmatch(name)):
                segment = Segment(int(match[2]), int(match[3]), kind, folder)
                found.setdefault((segment.first, segment.epoch), segment)
    return sorted(found.values())


_BEGUN = re.compile(r"(published|progress)\.begun-(\d{8,10})")


def begun_name(kind: LogKind, epoch: int) -> str:
    """An empty file, made by the first writer after a clean stop: as long as queue.json knows no epoch as high, there is a log."""
    return f"{kind}.begun-{epoch:08d}"


def begun_of(files: Files, kind: LogKind) -> list[int]:
    """The epochs of those files."""
    found = (_BEGUN.fullmatch(name) for name in files.list())
    return [int(match[2]) for match in found if match and match[1] == kind]


def _settled_list(files: Files, folder: str) -> list[str]:
    # A name that was replaced by another while the folder was read may be missing along with its successor.
    names = files.list(folder)
    for _ in range(100):
        again = files.list(folder)
        if again == names:
            break
        names = again
    return names


def head_of(files: Files, segment: Segment) -> SegmentHead | None:
    """The header of a segment; None when it is torn. Raises :class:`CorruptQueue`, or :class:`FileNotFoundError`."""
    handle = files.open(segment.name)
    try:
        data = files.read(handle, 0, _HEAD_BYTES)
        try:
            head = read_segment_head(data, segment.kind)
        except Bad as bad:
            _judge_headless(files, handle, segment, data, bad)
            return None
    finally:
        files.close(handle)
    if (head.first, head.epoch) != (segment.first, segment.epoch):
        raise CorruptQueue(segment.name, offset=0, why=f"it was written as batch {head.first} on, epoch {head.epoch}: the name was changed")
    return head


def _judge_headless(files: Files, handle: int, segment: Segment, data: bytes, bad: Bad) -> None:
    if len(data) == _HEAD_BYTES:  # a torn header is the last thing in its file; more may lie behind a damaged one
        data = files.read(handle, 0, files.size(handle))
    if tail_state(data, 0, bad, number=segment.first - 1) is TailState.DAMAGED:
        raise corrupt(segment.name, 0, bad, None)


def corrupt(name: str, offset: int, bad: Bad, batch: int | None) -> StorageError:
    """The error to raise for a line that is not valid."""
    if isinstance(bad, NewerVersion):
        return UnsupportedFormat(
            f"{name}, byte {offset}: {bad.why}", hint="it was written by a newer jsonqueue: upgrade this one (pip install -U jsonqueue)"
        )
    return CorruptQueue(name, offset=offset, why=bad.why, batch=batch)


class MissingBatches(CorruptQueue):
    """A log that begins behind what queue.json holds: a file between the two was taken away, or the queue.json is not the newest. Or one
    with a gap between two of its files, each of them whole."""

    def __init__(self, name: str, first: int, last: int, *, gap: bool = False) -> None:
        """``name``: the segment behind the batches ``first`` to ``last``, which are missing. ``gap``: the log begins before them."""
        why = f"before it the log lacks {told_span('batch', first, last)}: the file that held that was removed or moved"
        keeps = "`jsonqueue repair --accept-loss` keeps what is whole and lists what is lost"
        if gap:
            hint = f"nothing was changed; put back what was moved, or else: {keeps}"
        else:
            why += ", or an older queue.json was put in place"
            hint = (
                "nothing was changed; put back what was moved or replaced, or else: `jsonqueue repair` makes queue.json anew, without "
                f"loss, if previous/ holds what is missing; {keeps}"
            )
        super().__init__(name, offset=0, batch=first, why=why, hint=hint)


def told_span(what: str, first: int, last: int) -> str:
    """These numbers, in words."""
    return f"{what} {first}" if first == last else f"{what}es {first} to {last}"


class Link(NamedTuple):
    """A segment of a chain, with its header."""

    segment: Segment
    head: SegmentHead


def chain_of(files: Files, kind: LogKind, through: int, *, folders: Sequence[str] = ("",)) -> list[Link]:
    """The segments that hold the batches after ``through``, in order; the newest of the log is always among them.

    Raises :class:`CorruptQueue` when they do not begin at ``through + 1`` or before.
    """
    links: list[Link] = []
    for segment in sorted(segments_of(files, kind, folders), key=lambda segment: (segment.epoch, segment.first), reverse=True):
        if links and segment.first >= links[0].segment.first:
            continue  # superseded
        head = head_of(files, segment)
        if head is not None:
            links.insert(0, Link(segment, head))
            if segment.first <= through + 1:
                return links
    if links:
        raise MissingBatches(links[0].segment.name, through + 1, links[0].segment.first - 1)
    return []


def needed_of(files: Files, kind: LogKind, through: int) -> tuple[list[Segment], list[Segment]]:
    """The segments of the queue folder, parted: those still needed when the batches up to ``through`` are in queue.json, and the rest.

    A segment goes only if a later one begins at ``through + 1`` or before (so all of its own batches are covered, and the log goes on
    elsewhere). Anything newer than that stays, whatever it looks like: its writer may be making it right now.
    """
    links = chain_of(files, kind, through)
    every = segments_of(files, kind)
    if not links:
        return every, []
    lowest = links[0].segment
    spent = [segment for segment in every if segment.first < lowest.first and segment.epoch <= lowest.epoch]
    return [segment for segment in every if segment not in spent], spent


class End(NamedTuple):
    """Where a walk through a log ended."""

    number: int
    epoch: int
    chain: int
    segment: Segment | None
    """The last segment; None when there is none."""
    offset: int = 0
    """Behind its last batch."""
    torn: bool = False
    """Whether something that never became a batch lies behind it."""
    final: bool = False
    """As a start: a clean stop has folded the log up to here, and there may be nothing of it left."""


class Step(NamedTuple):
    """Some batches, and where the walk stands behind them."""

    batches: list[Batch]
    end: End


def walk(files: Files, kind: LogKind, start: End, *, upto: int | None = None, folders: Sequence[str] = ("",)) -> Iterator[Step]:
    """All batches after ``start`` (its ``segment`` is not looked at), up to ``upto``, or to the end of the log, checked: numbers, epochs,
    chain, and all of it across segments.

    Raises :class:`CorruptQueue`; :class:`FileNotFoundError` when a segment vanishes meanwhile.
    """
    if upto is not None and upto <= start.number:
        return
    links = chain_of(files, kind, start.number, folders=folders)
    at = start
    for place, (segment, head) in enumerate(links):
        is_newest = place + 1 == len(links)
        until = upto if is_newest else min(links[place + 1].head.first - 1, upto or sys.maxsize)
        at = _enter(segment, head, at)
        for step in _through(files, segment, at, until, then="" if is_newest else links[place + 1].segment.name):
            at = step.end
            yield Step(_beyond(segment, step.batches, at, start), at)
        if at.number == upto:
            return
    if links and at.number < start.number:
        yield Step([], _leftover(at, start))
    if upto is not None:
        raise CorruptQueue(f"{kind}-*.jsonl", offset=0, batch=upto, why="there is no segment that holds it")


def _leftover(at: End, start: End) -> End:
    """A log that ends before ``start`` is what a clean stop, cut short, did not come to delete. Otherwise something cut it."""
    if start.final:
        return start
    assert at.segment is not None
    why = f"it ends before batch {start.number}, which is in queue.json"
    raise CorruptQueue(at.segment.name, offset=at.offset, batch=at.number + 1, why=why)


def _enter(segment: Segment, head: SegmentHead, at: End) -> End:
    """Where the walk stands at the beginning of a segment."""
    chain, continues = int(head.chain, 16), head.first == at.number + 1
    if continues and chain != at.chain:
        raise CorruptQueue(segment.name, offset=0, batch=head.first, why=f"it does not continue batch {at.number}")
    return End(head.first - 1, at.epoch if continues else 0, chain, segment, head.size)


def _beyond(segment: Segment, batches: list[Batch], at: End, start: End) -> list[Batch]:
    """Those of ``batches`` that come after ``start``."""
    if not batches or batches[0].number > start.number:
        return batches
    skipped = start.number - batches[0].number
    if skipped < len(batches) and (batches[skipped].epoch, batches[skipped].chain) != (start.epoch, start.chain):
        why = "it is not the batch of that number that is in queue.json"
        raise CorruptQueue(segment.name, offset=at.offset, batch=start.number, why=why)
    return batches[skipped + 1 :]


def _through(files: Files, segment: Segment, at: End, upto: int | None, *, then: str) -> Iterator[Step]:
    """``then``: the segment that begins behind ``upto``; empty: there is none."""
    handle = files.open(segment.name)
    try:
        bad: Bad | None = None
        for batches, offset, reason in read_batches(files, handle, segment.kind, at, upto=upto):
            bad = reason
            if batches:
                at = _behind(batches, segment, offset)
                yield Step(batches, at)
        if upto is None:
            yield from _to_the_end(files, handle, segment, at)
        elif at.number < upto:
            if then and _ends_clean(files, handle, at, bad):
                raise MissingBatches(then, at.number + 1, upto, gap=True)
            raise corrupt(segment.name, at.offset, bad or Bad(f"the file ends, though there is a batch {upto}"), at.number + 1)
    finally:
        files.close(handle)


def _ends_clean(files: Files, handle: int, at: End, bad: Bad | None) -> bool:
    rest = files.read(handle, at.offset, max(0, files.size(handle) - at.offset))
    return tail_state(rest, at.offset, bad, number=at.number + 1) is TailState.CLEAN


def _behind(batches: list[Batch], segment: Segment, offset: int) -> End:
    return End(batches[-1].number, batches[-1].epoch, batches[-1].chain, segment, offset)


def _to_the_end(files: Files, handle: int, segment: Segment, at: End) -> Iterator[Step]:
    """What lies behind the last batch that was read, judged: that is where the log ends, unless there are more batches by now.

    Who reads a log while it is written to may see one page of it as it was before a batch or two, and the next one as it is after them.
    So damage is only what is still there when it is read again.
    """
    before: bytes | None = None
    while True:
        rest = files.read(handle, at.offset, max(0, files.size(handle) - at.offset))
        found = scan(rest, 0, number=at.number + 1, epoch=at.epoch, chain=at.chain, progress=segment.kind is LogKind.PROGRESS)
        if found.batches:
            at = _behind(found.batches, segment, at.offset + found.end)
            yield Step(found.batches, at)
        state = tail_state(rest[found.end :], at.offset, found.bad, number=at.number + 1)
        if state is not TailState.DAMAGED:
            yield Step([], at._replace(torn=state is TailState.TORN))
            return
        if rest == before and found.bad is not None:
            raise corrupt(segment.name, at.offset, found.bad, at.number + 1)
        before = rest


def read_batches(
    files: Files, handle: int, kind: LogKind, at: End, *, upto: int | None, size: int = 0
) -> Iterator[tuple[list[Batch], int, Bad | None]]:
    """Batches of one segment from ``at`` on: some of them, the offset behind them, and why reading stopped there (None: end of file).

    ``size``: how much is read at first, if not as much as ever.
    """
    size = size or CHUNK
    number, epoch, chain, offset = at.number + 1, at.epoch, at.chain, at.offset
    while upto is None or number <= upto:
        data = files.read(handle, offset, size)
        found = scan(data, 0, number=number, epoch=epoch, chain=chain, progress=kind is LogKind.PROGRESS, upto=upto)
        offset += found.end
        more = len(data) == size and (found.bad is None or found.bad.short)
        yield found.batches, offset, None if more else found.bad
        if not more:
            return
        if found.batches:
            last = found.batches[-1]
            size, number, epoch, chain = CHUNK, last.number + 1, last.epoch, last.chain
        else:
            size = max(2 * size, found.bad.claims if found.bad else 0)  # one batch larger than what was read
