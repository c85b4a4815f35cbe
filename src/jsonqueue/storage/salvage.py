"""``repair --accept-loss``: the most that can be had from files of which something is lost for good.

Every batch that is whole by itself counts, whatever became of its neighbours; of queue.json, or of the generation before it, every line
that can be read. Records are facts: where the one before is lost, a task is first put into the state that the next one found it in. Where
lines of queue.json are kept whose head is lost, or not to be trusted, all of the logs counts, and what a line tells of already is not told
to its task again. What could not be kept is listed, one sentence each. So is what the disk does not give back: it is read around.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import NamedTuple
from zlib import crc32

from msgspec import json
from msgspec.structs import replace

from jsonqueue.core.records import (
    Cancelled,
    Completed,
    Died,
    Failed,
    Leased,
    Progress,
    RecordName,
    Retired,
    Unleased,
    decode_progress,
    decode_published,
)
from jsonqueue.core.state import BrokenHistory, QueueState, ids_of
from jsonqueue.core.transitions import TRANSITIONS
from jsonqueue.errors import CorruptQueue, StorageError
from jsonqueue.storage.archive import Archived, archived_since, committed_archive
from jsonqueue.storage.codec import HEADER, START, UNREADABLE, Bad, Batch, Head, Position, read_head, read_segment_head
from jsonqueue.storage.files import Files, read_around
from jsonqueue.storage.log import require_log
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, QueueHeader, QueueReader, decode_block, header_in
from jsonqueue.storage.segments import LogKind, Segment, begun_of, segments_of, told_span
from jsonqueue.storage.stream import Generation
from jsonqueue.task import StoredTask

__all__ = ["Salvage", "salvage"]

NEWLINE = ord("\n")


class Salvage(NamedTuple):
    """What was had."""

    state: QueueState
    header: QueueHeader
    """For the queue.json to be written: everything is folded, nothing is left in the logs."""
    retired: list[StoredTask]
    """Those that left the queue and are not in the archive, of which ``header`` says how much counts."""
    lost: list[str]


def salvage(files: Files) -> Salvage:
    """All that can be read. Changes nothing, but makes durable what is in the archive."""
    lost: list[str] = []
    header, state, archived, of_lines = _base(files, lost)
    for kind in LogKind:
        try:
            require_log(files, kind, header)
        except CorruptQueue as error:
            lost.append(f"{error.file}: {error.why}")
    of_progress: list[str] = []
    progress = _whole_batches(files, LogKind.PROGRESS, header.progress_through.number, of_progress)
    rests_on = max([batch.after for batch in progress], default=START)
    published = _whole_batches(files, LogKind.PUBLISHED, header.published_through.number, lost, there_was=rests_on)
    lost += of_progress
    told = dict.fromkeys(state.tasks, _told_by(state, progress)) if of_lines else {}
    retired: list[StoredTask] = []
    last_task = _fold(state, header, published, progress, told, retired, lost)
    ends = [batches[-1] if batches else None for batches in (published, progress)]
    retired = [task for task in retired if Archived.of(task) not in archived]
    return Salvage(state, _header_after(files, header, ends[0], ends[1], last_task), retired, lost)


# ── queue.json ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Base(NamedTuple):
    """What the logs are folded into."""

    header: QueueHeader
    state: QueueState
    archived: set[Archived]
    """The tasks that were archived since, as far as it cannot say itself what of the archive counts: then all of it does."""
    of_lines: bool
    """Whether these are lines without a head, or with one that nothing vouches for."""


def _base(files: Files, lost: list[str]) -> _Base:
    """The newest generation that is whole; failing that, the lines of queue.json that can be read."""
    if not _is_overtaken(files) and (found := _whole_queue(files, QUEUE)) is not None:
        return _Base(*found, set(), of_lines=False)
    whole = _whole_queue(files, f"{PREVIOUS}/{QUEUE}") or _whole_queue(files, QUEUE)
    found = whole or (_lines_of_queue(files, lost) if files.identity(QUEUE) is not None else (QueueHeader(), QueueState()))
    header, state = found
    return _Base(replace(header, archive=committed_archive(files)), state, archived_since(files, header.archive), of_lines=whole is None)


def _is_overtaken(files: Files) -> bool:
    """Whether the queue.json that is there is older than the generation before it: then somebody put it there."""
    with suppress(StorageError), ExitStack() as stack:
        both = [stack.enter_context(Generation(files, name)).header for name in (QUEUE, f"{PREVIOUS}/{QUEUE}")]
        return any(both[0].through(kind).number < both[1].through(kind).number for kind in LogKind)
    return False


def _whole_queue(files: Files, name: str) -> tuple[QueueHeader, QueueState] | None:
    with suppress(StorageError, *UNREADABLE):
        reader = QueueReader.open(files, name)
        if reader is not None:
            with reader:
                state = QueueState(task for block in reader.blocks() for task in decode_block(block))
                return reader.header, state
    return None


def _lines_of_queue(files: Files, lost: list[str]) -> tuple[QueueHeader, QueueState]:
    data = _read(files, QUEUE, lost)
    first, *lines = data.split(b"\n")
    state = QueueState()
    for number, line in enumerate(lines, 2):
        if line.startswith(b"{"):
            try:
                state.tasks.update((task.id, task) for task in decode_block(line.removesuffix(b",")))
            except UNREADABLE as error:
                lost.append(f"{QUEUE}, line {number}: a task that cannot be read ({error}): {_shown(line)}")
    header = header_in(data)
    if header is None:
        lost.append(f"{QUEUE}, line 1: how far the logs were folded in; all that is in them counts")
        header = _unvouched(first)
    return header, state


def _read(files: Files, name: str, lost: list[str]) -> bytes:
    """All that can be read of a file; the rest are NULs, which are no line of anything."""
    handle = files.open(name)
    try:
        data, gaps = read_around(files, handle)
    finally:
        files.close(handle)
    lost += [f"{name}, byte {offset}: {length} bytes that the disk does not give back" for offset, length in gaps]
    return data


def _unvouched(line: bytes) -> QueueHeader:
    """What a first line may still say whose checksum does not fit.

    Not how far the logs and the archive go: one wrong digit, and batches that are in no line would be passed over, and not be listed.
    """
    try:
        told = json.decode(line.rpartition(b',"tasks":')[0] + b"}", type=QueueHeader)
    except UNREADABLE:
        return QueueHeader()
    return QueueHeader(last_task=told.last_task, epochs=told.epochs, closed=told.closed)


def _shown(line: bytes) -> str:
    return line[:80].decode(errors="replace") + ("…" if len(line) > 80 else "")


# ── the logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _whole_batches(files: Files, kind: LogKind, through: int, lost: list[str], *, there_was: Position = START) -> list[Batch]:
    """Every batch after ``through`` that is whole by itself, of the highest epoch where there are several, in order. ``there_was``: a batch
    of which the other log says that it was there. One up to it of a higher epoch was written in the place of one that was lost."""
    found: dict[int, Batch] = {}
    last = max(through, there_was.number)
    for segment in segments_of(files, kind, ("", PREVIOUS)):
        data = _read(files, segment.name, lost)
        last = max(last, _chain_before(data, segment).number)  # Those before it were there, be it empty itself.
        for batch in _batches_in(data, segment, lost):
            if batch.number > through and (batch.number not in found or found[batch.number].epoch <= batch.epoch):
                found[batch.number] = batch
    in_place = [number for number in sorted(found) if number > there_was.number or found[number].epoch <= there_was.epoch]
    lost += _gaps(kind, through, [*in_place, last + 1])
    return [found[number] for number in sorted(found)]


def _gaps(kind: LogKind, through: int, numbers: list[int]) -> Iterator[str]:
    """Which batches are missing between these, in words."""
    for number in numbers:
        if number > through + 1:
            yield f"{kind} {told_span('batch', through + 1, number - 1)}"
        through = max(through, number)


def _batches_in(data: bytes, segment: Segment, lost: list[str]) -> Iterator[Batch]:
    before = _chain_before(data, segment)
    offset = data.find(b"\n") + 1 or len(data)
    unread: list[str] = []
    while offset < len(data):
        end = data.find(b"\n", offset) + 1 or len(data)
        if data[offset] == NEWLINE:
            offset += 1
            continue  # padding
        line, where = data[offset:end], f"{segment.name}, byte {offset}"
        head = _head_of(line)
        batch = _batch_of(line, head, segment.kind) if head is not None else None
        if batch is None:
            unread.append(f"{where}: {len(line)} bytes that are no batch (any more)")
        elif not _continues(batch, line, before):
            lost.append(f"{where}: {segment.kind} batch {batch.number}, of which something was changed")
        else:
            if 0 <= before.number != batch.number - 1:
                lost.append(f"{where}: {segment.kind} batch {batch.number} was kept, though nothing can confirm it")
            unread.clear()  # What lies before a batch is missed by its number.
            yield batch
        before = _Before(head.number, head.chain) if head is not None else before
        offset = end
    lost += unread


def _continues(batch: Batch, line: bytes, before: _Before) -> bool:
    """Whether its checksum fits. Only that of the batch before can tell; where that is gone as well, a batch is taken at its word."""
    return before.number != batch.number - 1 or crc32(line[HEADER:], before.chain) == batch.chain


class _Before(NamedTuple):
    """The batch before, by its own header."""

    number: int
    chain: int


def _chain_before(data: bytes, segment: Segment) -> _Before:
    """What the first line says of the batch before the first one."""
    try:
        head = read_segment_head(data, segment.kind)
    except Bad:
        return _Before(-1, 0)
    return _Before(head.first - 1, int(head.chain, 16))


def _head_of(line: bytes) -> Head | None:
    try:
        return read_head(line, 0)
    except Bad:
        return None


def _batch_of(line: bytes, head: Head, kind: LogKind) -> Batch | None:
    """One line, by itself: its length fits, and its records make sense."""
    records = line[HEADER + 24 : -2]
    if len(line) != HEADER + head.length or line[HEADER + 19 : HEADER + 24] != b',"b":':
        return None
    try:
        (decode_published if kind is LogKind.PUBLISHED else decode_progress)(records)
        at_ms = int(line[HEADER + 6 : HEADER + 19])
    except (*UNREADABLE, ValueError):
        return None
    if kind is LogKind.PUBLISHED:
        return Batch(head.number, head.epoch, at_ms, head.rest, START, records, head.chain)
    return Batch(head.number, head.epoch, at_ms, 0, Position(head.rest >> 32, head.rest & 0xFFFFFFFF), records, head.chain)


# ── what is folded into lines ────────────────────────────────────────────────────────────────────────────────────────


def _told_by(state: QueueState, progress: list[Batch]) -> int:
    """The last batch that these lines show a trace of. They are all of one moment: so what came before it is in each of them as well."""
    told = 0
    tokens: dict[str, int] = {}
    for batch in progress:
        for record in decode_progress(batch.records):
            for place, task_id in enumerate(ids_of(record)):
                if isinstance(record, Leased):
                    tokens[task_id] = record.first + place
                if (task := state.tasks.get(task_id)) and _shows(task, record, tokens.get(task_id, 0), batch.at_ms):
                    told = batch.number
    return told


def _shows(task: StoredTask, record: Progress, token: int, at_ms: int) -> bool:
    """Whether a line tells of this record; ``token``: under which the task was leased before, 0 if that is not to be found.

    What leaves no trace, being due, say, may be told twice: where it is the last that happened to a task, nothing changes by it.
    """
    if isinstance(record, Leased):
        return token == task.token or any(attempt.token == token for attempt in task.history)
    if isinstance(record, (Completed, Failed, Unleased)):
        return any(attempt.token == token if token else attempt.ended_ms == at_ms for attempt in task.history)
    return isinstance(record, (Died, Cancelled)) and task.status in TRANSITIONS[_name_of(record)][1] and task.finished_ms == at_ms


def _name_of(record: Progress) -> RecordName:
    return RecordName(str(record.__struct_config__.tag))


# ── the fold ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fold(
    state: QueueState,
    header: QueueHeader,
    published: list[Batch],
    progress: list[Batch],
    told: dict[str, int],
    retired: list[StoredTask],
    lost: list[str],
) -> int:
    last_task, coming = header.last_task, list(reversed(published))
    for batch in progress:
        while coming and coming[-1].number <= batch.after.number:
            last_task = _publish(state, coming.pop(), last_task, retired, lost)
        for record in decode_progress(batch.records):
            _apply(state, record, batch, told, retired, lost)
    while coming:
        last_task = _publish(state, coming.pop(), last_task, retired, lost)
    return max([last_task, *(task.number for task in state.tasks.values())])


def _publish(state: QueueState, batch: Batch, last_task: int, retired: list[StoredTask], lost: list[str]) -> int:
    tasks = decode_published(batch.records)
    for number, task in enumerate(tasks, batch.first_task):
        before = state.tasks.get(task.id)
        if before is not None and before.number < number:
            # The id was free again: so that one had left, and only the record of it is lost.
            retired.append(state.tasks.pop(task.id))
            if not before.status.ended:
                lost.append(
                    f"task {task.id}: how number {before.number} ended, and that it left before number {number} was published under its id"
                )
        if task.id not in state.tasks:
            state.publish([task], first=number, at_ms=batch.at_ms)
    return max(last_task, batch.first_task + len(tasks) - 1)


def _apply(state: QueueState, record: Progress, batch: Batch, told: dict[str, int], retired: list[StoredTask], lost: list[str]) -> None:
    """``told``: through which batch the tasks that have a line were told already."""
    name = _name_of(record)
    expected = TRANSITIONS[name][0]
    for place, task_id in enumerate(ids_of(record)):
        if batch.number <= told.get(task_id, 0):
            continue
        task = state.tasks.get(task_id)
        if task is None:
            lost.append(f"task {task_id}: it was {name} (progress batch {batch.number}), but what was published is not there")
            continue
        if isinstance(record, Retired):
            retired.append(task)
        if task.status not in expected:
            task.status = expected[0]
            # The lease that it takes back is lost, or was over by then: it is not counted in the attempts.
            task.attempt += isinstance(record, Unleased) and not record.counted
        try:
            state.apply(_alone(record, place), at_ms=batch.at_ms)
        except BrokenHistory as error:  # pragma: no cover - the status was just made to fit
            lost.append(str(error))


def _alone(record: Progress, place: int) -> Progress:
    """The part of a record that speaks of one of its tasks."""
    if isinstance(record, Failed):
        return record
    alone = replace(record, ids=[record.ids[place]])
    if isinstance(alone, Leased):
        alone.first += place
    if isinstance(alone, Completed) and alone.results:
        alone.results = [alone.results[place]]
    return alone


def _header_after(files: Files, header: QueueHeader, published: Batch | None, progress: Batch | None, last_task: int) -> QueueHeader:
    def chain(batch: Batch | None, before: str) -> str:
        return f"{batch.chain:08x}" if batch else before

    seen = {kind: [segment.epoch for segment in segments_of(files, kind, ("", PREVIOUS))] + begun_of(files, kind) for kind in LogKind}
    epochs = [max([header.epoch(kind), *seen[kind]]) for kind in LogKind]
    return replace(
        header,
        published_through=published.position if published else header.published_through,
        progress_through=progress.position if progress else header.progress_through,
        chains=(chain(published, header.chains[0]), chain(progress, header.chains[1])),
        last_task=last_task,
        epochs=(epochs[0], epochs[1]),
        closed=True,
    )
