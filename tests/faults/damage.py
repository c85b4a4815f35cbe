"""Damage to the files: every prefix, every bit, every subset of a torn batch's sectors, and what hands and backups do to them.

Each damaged queue must either load as exactly what it was (or, where a write was merely torn, as what was acknowledged), or be refused.
To make every bit of 64 KiB affordable, a damaged line is read by the real code in a segment that begins with it and ends two batches
later; one damage in some hundreds is also put to the whole queue, from start to repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from random import Random
from typing import NamedTuple

from msgspec import Raw, json

from faults.lanes import Lane, arguments
from jsonqueue.config import Config
from jsonqueue.core.records import Completed, Leased, encode_records
from jsonqueue.errors import CorruptQueue, StorageError, UnsupportedFormat
from jsonqueue.storage import log
from jsonqueue.storage.checkpoint import Cut, checkpoint
from jsonqueue.storage.codec import Batch, encode_segment_head, read_segment_head, scan
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, QueueReader
from jsonqueue.storage.recovery import load_ids, load_state
from jsonqueue.storage.repair import examine, mend
from jsonqueue.storage.segments import End, Segment, head_of, segments_of, walk
from jsonqueue.task import TaskIn

__all__ = ["Corpus", "corpora", "main"]

SECTOR = 512
AT_MS = 1_763_000_000_000
CONFIG = Config()
Files = dict[str, bytes]


class Corpus(NamedTuple):
    """A queue's files, and the segment to be damaged, which ends in padding."""

    name: str
    files: Files
    segment: Segment
    batches: list[Batch]
    starts: list[int]
    """Offset of each batch, and the end of the last."""
    state: dict[str, bytes]
    tasks: int
    """In each published batch."""

    @property
    def data(self) -> bytes:
        return self.files[self.segment.name]

    def alone(self, place: int, line: bytes, *, behind: int = 2) -> bytes:
        """A segment of ``line`` in the place of that batch, and the ``behind`` batches after it."""
        before, after = self.around(place, behind=behind)
        return before + line + after

    def around(self, place: int, *, behind: int = 2) -> tuple[bytes, bytes]:
        """What stands before a line in such a segment, and what stands after it."""
        before = self.batches[place - 1].chain if place else self._chain
        head = encode_segment_head(self.segment.kind, first=self.batches[place].number, epoch=self.segment.epoch, chain=before)
        last = min(place + 1 + behind, len(self.batches))
        rest = self.data[self.starts[place + 1] : self.starts[last]] if behind else b""
        return head, rest + (self.padding if behind and last == len(self.batches) else b"")

    @property
    def padding(self) -> bytes:
        return self.data[self.starts[-1] :]

    def start_of(self, place: int) -> End:
        batch = self.batches[place]
        before = self.batches[place - 1] if place else None
        chain = before.chain if before else self._chain
        return End(batch.number - 1, before.epoch if before else 0, chain, None)

    @property
    def _chain(self) -> int:
        disk = MemoryFiles()
        disk.put(self.segment.name, self.data[: self.starts[0]])
        head = head_of(disk, self.segment)
        assert head is not None
        return int(head.chain, 16)


# ── what is damaged ──────────────────────────────────────────────────────────────────────────────────────────────────


def corpora(size: int) -> Iterator[Corpus]:
    """Three logs of at least ``size`` bytes: many small batches; few large ones in several scripts; progress."""
    yield _corpus("many small batches", LogKind.PUBLISHED, size, tasks=2, words="x @ " * 6)
    yield _corpus("large batches, many scripts", LogKind.PUBLISHED, size, tasks=40, words="täsk 任务 \u2028\u0085 🚀 {} \\\\n " * 4)
    yield _corpus("progress", LogKind.PROGRESS, size, tasks=3, words="y" * 40)


def _corpus(name: str, kind: LogKind, size: int, *, tasks: int, words: str) -> Corpus:
    disk = MemoryFiles()
    _fill(disk, kind, size, tasks, words)
    (segment,) = segments_of(disk, kind)[-1:]
    data = disk.get(segment.name)
    head = head_of(disk, segment)
    assert head is not None
    progress = kind is LogKind.PROGRESS
    found = scan(data, head.size, number=head.first, epoch=0, chain=int(head.chain, 16), progress=progress)
    assert len(data) >= size
    starts = [head.size]
    for batch in found.batches:
        starts.append(starts[-1] + 98 + len(batch.records))
    assert len(data[starts[-1] :]) > SECTOR
    assert not data[starts[-1] :].strip(b"\n")
    return Corpus(name, _files_of(disk), segment, found.batches, starts, _state(disk), tasks)


def _fill(disk: MemoryFiles, kind: LogKind, size: int, tasks: int, words: str) -> None:
    """A generation in queue.json and one before it, then the log that is to be damaged."""
    published, progress = LogWriter.open(disk, LogKind.PUBLISHED), LogWriter.open(disk, LogKind.PROGRESS)
    last, token = load_ids(disk).last_task, 1
    target = published if kind is LogKind.PUBLISHED else progress
    rounds = 0
    while target.bytes < size or target.bytes % log.PADDING > log.PADDING - 2 * SECTOR:
        ids = [f"t{last + n}" for n in range(1, tasks + 1)]
        records = encode_records([TaskIn(id=task_id, data=Raw(json.encode(words))) for task_id in ids])
        published.append(records, at_ms=AT_MS, first_task=last + 1)
        published.sync()
        last += tasks
        if rounds < 6 or kind is LogKind.PROGRESS:
            progress.append(encode_records([Leased("w@1", token, ids)]), at_ms=AT_MS, after=published.position)
            progress.append(encode_records([Completed(ids, [Raw(json.encode(words))] * tasks)]), at_ms=AT_MS, after=published.position)
            progress.sync()
            token += tasks
        rounds += 1
        if rounds in {2, 4}:
            published.rotate()
            progress.rotate()
            checkpoint(disk, Cut(progress.position, published.position), config=CONFIG, at_ms=AT_MS)


def _files_of(disk: MemoryFiles) -> Files:
    names = [f"{folder}{'/' if folder else ''}{name}" for folder in ("", PREVIOUS, "archive") for name in disk.list(folder)]
    return {name: disk.get(name) for name in names}


def _disk(files: Files, **changed: bytes | None) -> MemoryFiles:
    disk = MemoryFiles()
    for name, data in {**files, **changed}.items():
        if data is not None:
            disk.put(name, data)
    return disk


def _state(disk: MemoryFiles) -> dict[str, bytes]:
    return {task.id: json.encode(task) for task in load_state(disk).state.tasks.values()}


# ── the judgement ────────────────────────────────────────────────────────────────────────────────────────────────────


def _refused(read: Callable[[], object]) -> StorageError | None:
    try:
        read()
    except (CorruptQueue, UnsupportedFormat) as error:
        return error
    return None


def _kept(corpus: Corpus, place: int, data: bytes) -> list[Batch]:
    """What is read, from that batch on, of a log whose damaged segment is ``data``."""
    disk = MemoryFiles()
    segment = Segment(corpus.batches[place].number, corpus.segment.epoch, corpus.segment.kind)
    disk.put(segment.name, data)
    return [batch for step in walk(disk, corpus.segment.kind, corpus.start_of(place)) for batch in step.batches]


def _whole(corpus: Corpus, changed: Files | dict[str, bytes | None], *, mends: bool, foreign: bool) -> str:
    """The whole queue, so damaged: started, or refused, verified, and then repaired. ``mends``: nothing may be lost."""
    disk = _disk(corpus.files, **changed)
    error = _refused(lambda: load_state(disk))
    if error is None:
        assert _state(disk) == corpus.state, "silent: it loads, as something else"
        started = disk.copy()
        for kind in LogKind:
            LogWriter.open(started, kind)
        assert _state(started) == corpus.state, "silent: a start changes it"
        return "as it was"
    report = examine(disk)
    assert not report.ok
    assert all(finding.file and finding.options for finding in report.findings if not finding.harmless)
    assert _refused(lambda: [LogWriter.open(disk.copy(), kind) for kind in LogKind] and load_state(disk)), "a broker starts"
    report = mend(disk, accept_loss=False, accept_edit=False, at_ms=AT_MS)
    if report.ok:
        assert _state(disk) == corpus.state, "repair without accept_loss lost or changed something"
        return "repaired"
    assert not mends, f"damage that should cost nothing: {report.findings}"
    assert _refused(lambda: load_state(disk))
    if foreign:  # What of it is ours, nobody could tell.
        return "refused"
    report = mend(disk, accept_loss=True, accept_edit=False, at_ms=AT_MS)
    if any(finding.kind == "newer" for finding in report.findings):
        return "refused"
    assert report.ok, report.findings
    kept = _state(disk)
    assert kept.keys() <= corpus.state.keys() or any("nothing can confirm" in line for line in report.lost)
    assert report.lost or kept.keys() == corpus.state.keys(), "something is lost and not listed"
    return "refused"


# ── the damages ──────────────────────────────────────────────────────────────────────────────────────────────────────


def prefixes(lane: Lane, corpus: Corpus) -> None:
    """The file ends after any byte: what was whole is kept, the rest is torn."""
    for place, start in enumerate(corpus.starts[:-1]):
        if not lane.is_mine(place):
            continue
        line = corpus.data[start : corpus.starts[place + 1]]
        head, _ = corpus.around(place, behind=0)
        for cut in range(len(line) + 1):
            lane.counts["prefixes"] += 1
            kept = _kept(corpus, place, head + line[:cut])
            if kept != ([corpus.batches[place]] if cut == len(line) else []):
                lane.find(f"{corpus.name}: cut at {start + cut}: {len(kept)} batches are read")
            kept = _kept(corpus, place, head + line[:cut] + b"\n" * (len(line) - cut + 99))
            if kept != ([corpus.batches[place]] if cut >= len(line) - 1 else []):
                lane.find(f"{corpus.name}: newlines from {start + cut} on: {len(kept)} batches are read")
    for cut in range(corpus.starts[0] + 1 if lane.options.share[0] == 0 else 0):
        lane.counts["prefixes"] += 1
        disk = MemoryFiles()
        disk.put(corpus.segment.name, corpus.data[:cut])
        head = head_of(disk, corpus.segment)
        assert (head is not None) == (cut == corpus.starts[0])


def bits(lane: Lane, corpus: Corpus) -> None:
    """Every bit of the log, one at a time."""
    thorough = lane.options.thorough
    _bits_of_padding(lane, corpus)
    for place, start in enumerate([0, *corpus.starts[:-1]]):
        if not lane.is_mine(place) or lane.over:
            continue
        end = corpus.starts[place]
        line = bytearray(corpus.data[start:end])
        before, after = corpus.around(place - 1) if place else (b"", corpus.data[end:])
        for bit in range(8 * len(line)):
            line[bit // 8] ^= 1 << bit % 8
            damaged = before + line + after
            lane.counts["bits of a log"] += 1
            if place == 0:
                disk = _disk({corpus.segment.name: damaged})
                silent = _refused(lambda disk=disk: head_of(disk, corpus.segment)) is None
            else:
                silent = _refused(lambda damaged=damaged, place=place: _kept(corpus, place - 1, damaged)) is None
            if silent:
                lane.find(f"{corpus.name}: bit {bit} of batch {place - 1}: silent")
            if bit % thorough == place % thorough:
                changed = {corpus.segment.name: corpus.data[:start] + bytes(line) + corpus.data[end:]}
                header = bit < 8 * 72 or place == 0
                lane.attempt(f"{corpus.name}: bit {bit} of batch {place - 1}", lambda c=changed, h=header: _count(lane, corpus, c, h))
            line[bit // 8] ^= 1 << bit % 8


def _bits_of_padding(lane: Lane, corpus: Corpus) -> None:
    """Each costs nothing: it is refused, and repaired."""
    place = len(corpus.batches) - 1
    line = corpus.data[corpus.starts[place] : corpus.starts[place + 1]]
    before = corpus.alone(place, line, behind=0)
    padding = bytearray(corpus.padding)
    for bit in range(8 * len(padding)):
        if not lane.is_mine(bit // 64) or lane.over:
            continue
        padding[bit // 8] ^= 1 << bit % 8
        lane.counts["bits of padding"] += 1
        if _refused(lambda: _kept(corpus, place, before + bytes(padding))) is None:
            lane.find(f"{corpus.name}: bit {bit} of the padding: silent")
        if bit % lane.options.thorough == 0:
            changed = {corpus.segment.name: corpus.data[: corpus.starts[-1]] + bytes(padding)}
            lane.attempt(f"{corpus.name}: bit {bit} of the padding", lambda c=changed: _count(lane, corpus, c, True))
        padding[bit // 8] ^= 1 << bit % 8


def _count(lane: Lane, corpus: Corpus, changed: Files | dict[str, bytes | None], mends: bool, foreign: bool = False) -> None:
    outcome = _whole(corpus, changed, mends=mends, foreign=foreign)
    lane.counts[f"whole queues: {outcome}"] += 1


def snapshot_bits(lane: Lane, corpus: Corpus) -> None:
    """Every bit of queue.json, and of the generation before it: neither costs anything."""
    for name in (QUEUE, f"{PREVIOUS}/{QUEUE}"):
        data = bytearray(corpus.files[name])
        first = data.index(b"\n")
        for bit in range(8 * len(data)):
            if not lane.is_mine(bit // 64) or lane.over:
                continue
            data[bit // 8] ^= 1 << bit % 8
            lane.counts[f"bits of {name}"] += 1
            disk = MemoryFiles()
            disk.put(QUEUE, bytes(data))
            if _refused(lambda disk=disk: list(QueueReader.open(disk).blocks())) is None:
                lane.find(f"{name}: bit {bit}: silent")
            near_head = bit // 8 < first and bit % lane.options.head == 0
            if near_head or bit % lane.options.thorough == 0:
                changed = {name: bytes(data)}
                lane.attempt(f"{name}: bit {bit}", lambda c=changed: _count(lane, corpus, c, True))
            data[bit // 8] ^= 1 << bit % 8


def sectors(lane: Lane, corpus: Corpus) -> None:
    """The last batch, of a dozen sectors, with every subset of them missing, and the file ending behind any of them."""
    place = next(n for n, start in enumerate(corpus.starts[:-1]) if corpus.starts[n + 1] - start > 10 * SECTOR)
    segment = corpus.alone(place, b"", behind=0)
    line = corpus.data[corpus.starts[place] : corpus.starts[place + 1]][: 11 * SECTOR]
    whole = corpus.data[corpus.starts[place] : corpus.starts[place + 1]]
    assert len(line) == 11 * SECTOR or line == whole
    edges = [len(segment), *range((len(segment) // SECTOR + 1) * SECTOR, len(segment) + len(whole), SECTOR), len(segment) + len(whole)]
    parts = [(a - len(segment), b - len(segment)) for a, b in pairwise(edges)][:12]
    rest = whole[parts[-1][1] :]
    far = len(whole) + 999
    # What is missing was padding, or beyond the end of the file, or first the one and then the other.
    for padded, subset in product((0, far, parts[len(parts) // 2][0] + 100), range(1 << len(parts))):
        if not lane.is_mine(subset):
            continue
        lane.counts["subsets of sectors"] += 1
        before = (b"\n" * padded).ljust(far, b"\0")
        torn = b"".join(whole[a:b] if subset >> n & 1 else before[a:b] for n, (a, b) in enumerate(parts)) + rest
        kept = _kept(corpus, place, segment + torn + before[len(whole) : padded])
        if kept != ([corpus.batches[place]] if subset == (1 << len(parts)) - 1 else []):
            lane.find(f"{corpus.name}: sectors {subset:b}, padded to {padded}: {len(kept)} batches are read")
        size = parts[subset % len(parts)][1]
        if size >= padded and _kept(corpus, place, segment + torn[:size]) and size < len(whole):
            lane.find(f"{corpus.name}: sectors {subset:b}, padded to {padded}, cut at {size}")


def wild(lane: Lane, corpus: Corpus) -> None:
    """What single bits do not cover: several of them, zeroed sectors, lines dropped, doubled, swapped, moved.

    Each ``--whole``-th is put to the whole queue, the others to the reader alone, in a few batches of it.
    """
    mine, of = lane.options.share
    if len(corpus.batches) < _WINDOW:
        return
    chance = Random(lane.options.seed * 1_000 + mine)
    kinds = (_some_bits, _zeroed_sector, _newlined_sector, _dropped, _doubled, _swapped, _moved, _cut_out, _noise)
    window = corpus
    for number in range(lane.options.wild // of):
        if lane.over:
            return
        kind = kinds[number % len(kinds)]
        where = f"{corpus.name}: {kind.__name__[1:]} (seed {lane.options.seed}, {number})"
        if number % lane.options.whole == 0:
            if (data := kind(chance, corpus)) != corpus.data:
                changed = {corpus.segment.name: data}
                lane.attempt(where, lambda c=changed: _count(lane, corpus, c, False))
        else:
            if window is corpus or number % _WINDOW_USES == 0:
                window = _window(corpus, chance.randrange(len(corpus.batches) - _WINDOW + 1))
            _look_at(lane, window, kind(chance, window), where)
        lane.counts[f"wild: {kind.__name__[1:]}"] += 1


_WINDOW = 8
_WINDOW_USES = 64


def _window(corpus: Corpus, place: int) -> Corpus:
    """Some batches of it, as a log of their own."""
    last = place + _WINDOW
    data = corpus.alone(place, _line(corpus, place), behind=_WINDOW - 1)
    head = len(data) - (corpus.starts[last] - corpus.starts[place]) - (len(corpus.padding) if last == len(corpus.batches) else 0)
    segment = corpus.segment._replace(first=corpus.batches[place].number)
    starts = [start - corpus.starts[place] + head for start in corpus.starts[place : last + 1]]
    return corpus._replace(files={segment.name: data}, segment=segment, batches=corpus.batches[place:last], starts=starts)


def _look_at(lane: Lane, window: Corpus, data: bytes, where: str) -> None:
    """A reader must refuse it, unless it reads all there was."""
    kept: list[Batch] = []
    if _refused(lambda: kept.extend(_kept(window, 0, data))) is None and kept != window.batches:
        lane.find(f"{where}: silent: {len(kept)} of {len(window.batches)} batches are read")


def _some_bits(chance: Random, corpus: Corpus) -> bytes:
    data = bytearray(corpus.data)
    at = chance.randrange(corpus.starts[-2])
    for _ in range(chance.randint(2, 32)):
        bit = chance.choice((chance.randrange(8 * len(data)), 8 * at + chance.randrange(64)))
        data[min(bit // 8, len(data) - 1)] ^= 1 << bit % 8
    return bytes(data)


def _zeroed_sector(chance: Random, corpus: Corpus) -> bytes:
    """Not within the very last batch: there it looks like a torn write, and cannot be told from one."""
    at = chance.randrange(corpus.starts[-2] // SECTOR) * SECTOR
    return corpus.data[:at] + b"\0" * SECTOR + corpus.data[at + SECTOR :]


def _newlined_sector(chance: Random, corpus: Corpus) -> bytes:
    """As padding looks; not within the very last batch either."""
    at = chance.randrange(corpus.starts[-2] // SECTOR) * SECTOR
    return corpus.data[:at] + b"\n" * SECTOR + corpus.data[at + SECTOR :]


def _line(corpus: Corpus, place: int) -> bytes:
    return corpus.data[corpus.starts[place] : corpus.starts[place + 1]]


def _dropped(chance: Random, corpus: Corpus) -> bytes:
    """Not the very last: then the log is a shorter one, of which every byte is right."""
    place = chance.randrange(len(corpus.batches) - 1)
    return corpus.data[: corpus.starts[place]] + corpus.data[corpus.starts[place + 1] :]


def _doubled(chance: Random, corpus: Corpus) -> bytes:
    place = chance.randrange(len(corpus.batches))
    return corpus.data[: corpus.starts[place + 1]] + corpus.data[corpus.starts[place] :]


def _swapped(chance: Random, corpus: Corpus) -> bytes:
    place = chance.randrange(len(corpus.batches) - 1)
    line, other = _line(corpus, place), _line(corpus, place + 1)
    return corpus.data[: corpus.starts[place]] + other + line + corpus.data[corpus.starts[place + 2] :]


def _moved(chance: Random, corpus: Corpus) -> bytes:
    """To the end."""
    place = chance.randrange(len(corpus.batches) - 1)
    return _dropped_at(corpus, place) + _line(corpus, place)


def _dropped_at(corpus: Corpus, place: int) -> bytes:
    return corpus.data[: corpus.starts[place]] + corpus.data[corpus.starts[place + 1] :]


def _cut_out(chance: Random, corpus: Corpus) -> bytes:
    """Some bytes are gone, not at a line's end."""
    at = chance.randrange(corpus.starts[-2])
    return corpus.data[:at] + corpus.data[at + chance.randint(1, 40) :]


def _noise(chance: Random, corpus: Corpus) -> bytes:
    at, size = chance.randrange(corpus.starts[-2]), chance.randint(1, 600)
    return corpus.data[:at] + chance.randbytes(size) + corpus.data[at + size :]


def stale(lane: Lane, corpus: Corpus) -> None:
    """Files of another time, or of another queue, in the folder."""
    if lane.options.share[0] or len(corpus.batches) < 8:
        return
    kind, segment = corpus.segment.kind, corpus.segment
    previous = {name.rpartition("/")[2]: data for name, data in corpus.files.items() if name.startswith(f"{PREVIOUS}/{kind}")}
    assert previous
    for name, data in previous.items():
        lane.attempt(f"{name} put back", lambda n=name, d=data: _count(lane, corpus, {n: d}, False, True))
    older = Segment(segment.first, segment.epoch, kind).name
    restarted = _disk(corpus.files)
    LogWriter.open(restarted, kind)
    now = _files_of(restarted)
    assert older not in now
    for data in (corpus.data, corpus.data[: corpus.starts[3]], corpus.data[: corpus.starts[3] + 50]):
        lane.attempt("an older epoch put back", lambda d=data: _count(lane, corpus._replace(files=now), {older: d}, False, True))
    other = _corpus("another queue", kind, 30_000, tasks=5, words="another")
    for epoch in (1, 2, 7):
        strange = Segment(other.segment.first, epoch, kind).name
        lane.attempt(f"{strange} of another queue", lambda s=strange: _count(lane, corpus, {s: other.data}, False, True))
    # One that numbers its batches and its tasks just as ours does.
    twin = _corpus("twin", kind, len(corpus.data) // 2, tasks=corpus.tasks, words="twin" * 8)
    older = next(name for name in reversed(twin.files) if name.startswith(f"{PREVIOUS}/{kind}"))
    head = read_segment_head(twin.files[older], kind)
    again = encode_segment_head(kind, first=head.first, epoch=9, chain=int(head.chain, 16)) + twin.files[older][head.size :]
    name = Segment(head.first, 9, kind).name
    lane.attempt(f"{name} of a twin", lambda n=name: _count(lane, corpus, {n: again}, False, True))
    sealed = {segment.name: corpus.data[: corpus.starts[4]]}
    for whose in (corpus, other, twin):
        line = whose.data[whose.starts[4] : whose.starts[5]]
        successor = Segment(whose.batches[4].number, segment.epoch, kind).name
        changed = {**sealed, successor: whose.alone(4, line, behind=len(whose.batches))}
        lane.attempt(f"{successor} of {whose.name}", lambda c=changed: _count(lane, corpus, c, False, True))
    lane.attempt("another queue's queue.json", lambda: _count(lane, corpus, {QUEUE: other.files[QUEUE]}, False, True))
    for name in (QUEUE, segment.name):
        lane.attempt(f"{name} is gone", lambda n=name: _count(lane, corpus, {n: None}, n == QUEUE, True))
    before = corpus.files[f"{PREVIOUS}/{QUEUE}"]
    lane.attempt("queue.json of the generation before", lambda: _count(lane, corpus, {QUEUE: before}, False, True))
    lane.counts["stale files"] += 1


def main() -> None:
    options = arguments("damage to logs and queue.json", size=65_536, wild=0, whole=1, thorough=997, head=11, only=-1)
    log.PADDING, log.SMALL = 4_096, 1 << 20  # Padding behind large batches as well.
    lane = Lane(options)
    works = (prefixes, bits, snapshot_bits, sectors, stale, wild)
    for number, corpus in enumerate(corpora(options.size)):
        for place, work in enumerate(works):
            only_first = work in {bits, snapshot_bits} and number != 0 and not options.wild > 100_000
            only_large = work is sectors and number != 1
            if options.only in {-1, place} and not only_first and not only_large and not lane.over:
                work(lane, corpus)
    lane.end()


if __name__ == "__main__":
    main()
