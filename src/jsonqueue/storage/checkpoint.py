"""Folding the logs into queue.json, as a stream.

Only the tasks that the progress log speaks of are held in memory: pass A finds them and applies the records, pass B writes the new file,
copying the lines of all other tasks as they are. What a checkpoint writes, in this order, each step durable before the next::

    1  archive/…            cut to the length in queue.json, the retired tasks appended
    2  queue.json.draft     the new generation
    3  previous/            second names for the present queue.json and for the segments that lead from it to the new one
    4  queue.json           replaced by the draft
    5  segments             unlinked: those that have a successor and no batch beyond the cut; in previous/ those of older generations

A crash at any point leaves a queue that the next checkpoint starts from again. With ``previous/``, damage to queue.json costs nothing:
:mod:`~jsonqueue.storage.repair` folds it anew. Nothing beyond the cut is folded, for it might vanish in a power cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from msgspec.structs import replace

from jsonqueue.config import Config
from jsonqueue.core.records import Progress, Retired, decode_progress
from jsonqueue.core.state import BrokenHistory, QueueState, begin, ids_of
from jsonqueue.errors import CorruptQueue, StorageError
from jsonqueue.storage.archive import Archive
from jsonqueue.storage.codec import UNREADABLE, Batch, Position
from jsonqueue.storage.files import Files
from jsonqueue.storage.log import log_bytes, log_end
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, QueueHeader, QueueReader, QueueWriter, decode_block, encode_task
from jsonqueue.storage.recovery import damaged, published_tasks
from jsonqueue.storage.segments import LogKind, Segment, needed_of, segments_of, walk
from jsonqueue.task import StoredTask

__all__ = ["DRAFT", "CheckpointDone", "Cut", "checkpoint", "final_checkpoint", "highest_epoch", "log_bytes", "rebuild"]

DRAFT = "queue.json.draft"


class Cut(NamedTuple):
    """Up to where to fold: a batch of progress, and the last published batch that its writer had read by then. Both are durable."""

    progress: Position
    published: Position


class CheckpointDone(NamedTuple):
    """What a checkpoint did."""

    left: dict[str, int]
    """Id → task number of the tasks that are no longer in queue.json: their ids may be published again."""
    through_task: int
    """The number of the last task that was folded in."""
    tasks: int
    """How many tasks queue.json holds."""
    queue_bytes: int
    """Length of queue.json."""
    folded: int
    """How many batches were folded in, of both logs; 0: there was nothing to do."""


def checkpoint(files: Files, cut: Cut, *, config: Config, at_ms: int) -> CheckpointDone:
    """Fold both logs up to ``cut`` into a new queue.json. The caller holds ``queue.lock``; brokers may be running.

    Raises :class:`CorruptQueue`, and :class:`~jsonqueue.errors.DiskFull`; the queue is then what it was before.
    """
    with _Present(files) as present:
        header = present.header
        cut = Cut(max(cut.progress, header.progress_through), max(cut.published, header.published_through))
        if present.reader and cut == (header.progress_through, header.published_through):
            _clear(files, header)
            return CheckpointDone({}, header.last_task, present.reader.count, present.reader.size, 0)
        fold = _Folding(files, present, cut, config, at_ms)
        fold.run(closed=False)
        spent = [segment for kind in LogKind for segment in needed_of(files, kind, fold.ends[kind].number)[1]]
        _replace(files, present, spent)
        return fold.done


def final_checkpoint(files: Files, *, config: Config, at_ms: int) -> CheckpointDone:
    """Fold both logs to their ends, so that queue.json alone holds everything. The caller holds all three locks."""
    with _Present(files) as present:
        fold = _Folding(files, present, _ends(files, present.header, ("",)), config, at_ms)
        fold.run(closed=True)
        _replace(files, present, [segment for kind in LogKind for segment in segments_of(files, kind)])
        return fold.done


def rebuild(files: Files, *, config: Config, at_ms: int, at_least: Cut | None) -> CheckpointDone:
    """Make queue.json anew from the generation before it and all logs, for repair. The caller holds all three locks, and has put the
    damaged queue.json aside: it is replaced, not kept. ``at_least``: how far that one went, if it can be told.

    Raises :class:`CorruptQueue` when something that is needed for it is missing, or damaged too.
    """
    folders = ("", PREVIOUS)
    with _Present(files, f"{PREVIOUS}/{QUEUE}") as present:
        cut = _ends(files, present.header, folders)
        nothing = present.reader is None and not segments_of(files, LogKind.PUBLISHED, folders)
        if nothing or (at_least and (cut.progress < at_least.progress or cut.published < at_least.published)):
            raise CorruptQueue(f"{PREVIOUS}/{QUEUE}", offset=0, why="what would lead from it to the damaged queue.json is not there")
        fold = _Folding(files, present, cut, config, at_ms, folders=folders)
        fold.run(closed=True)
        segments = [segment for kind in LogKind for segment in segments_of(files, kind)]
        _put_in_place(files, [segment.name for segment in segments])
        return fold.done


def _ends(files: Files, header: QueueHeader, folders: Sequence[str]) -> Cut:
    ends = (log_end(files, kind, header, folders=folders) for kind in (LogKind.PROGRESS, LogKind.PUBLISHED))
    return Cut(*(Position(end.number, end.epoch) for end in ends))


class _Present:
    """The generation that is to be replaced."""

    def __init__(self, files: Files, name: str = QUEUE) -> None:
        self.reader = QueueReader.open(files, name)
        self.header = self.reader.header if self.reader else QueueHeader()

    def __enter__(self) -> _Present:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.reader:
            self.reader.close()

    def blocks(self) -> Iterator[bytes]:
        return self.reader.blocks() if self.reader else iter(())

    def unreadable(self, error: Exception) -> StorageError:
        assert self.reader is not None
        return self.reader.unreadable(error)


class _Folding:
    """One checkpoint on its way, up to the draft."""

    def __init__(self, files: Files, present: _Present, cut: Cut, config: Config, at_ms: int, *, folders: Sequence[str] = ("",)) -> None:
        self._files, self._present, self._cut, self._config, self._at_ms = files, present, cut, config, at_ms
        self._folders = folders
        self._state = QueueState()
        """The touched tasks: those that the progress to fold speaks of."""
        self._touched: set[str] = set()
        self._touched_bytes: set[bytes] = set()
        self._mixed: set[int] = set()
        """Places of the blocks of queue.json that hold a touched task."""
        self._rests_on: dict[int, int] = {}
        """Published batches that the progress rests on: number → epoch."""
        self._left: dict[str, int] = {}
        self.ends = {kind: present.header.through(kind) for kind in LogKind}
        self._last_task = present.header.last_task
        self._folded = 0
        self._archive = Archive(files, present.header.archive, at_ms=at_ms)

    def run(self, *, closed: bool) -> None:
        """Leave the new generation in the draft, and the retired tasks in the archive, both durable."""
        self._find_touched()
        self._load_touched()
        self._apply()
        mark = self._archive.finish()
        header = replace(self._present.header, archive=mark, closed=closed, **self._positions())
        self.done = self._write(header)

    # pass A

    def _find_touched(self) -> None:
        for batch in self._batches(LogKind.PROGRESS):
            self._rests_on[batch.after.number] = batch.after.epoch
            for record in _records(batch):
                self._touched.update(ids_of(record))
            self._folded += 1
        self._touched_bytes = {task_id.encode() for task_id in self._touched}

    def _load_touched(self) -> None:
        if self._touched:
            for place, block in enumerate(self._present.blocks()):
                self._load_from(place, block)
        through = self._present.header.published_through
        self._check_rests_on(through, LogKind.PUBLISHED)
        for batch in self._batches(LogKind.PUBLISHED):
            self._check_rests_on(batch.position, LogKind.PUBLISHED)
            for number, given in enumerate(published_tasks(batch, self._last_task), batch.first_task):
                self._last_task = number
                if given.id in self._touched:
                    self._add(begin(given, number=number, at_ms=batch.at_ms), batch)
            self._folded += 1
        self._check_rests_on(None, LogKind.PROGRESS)

    def _load_from(self, place: int, block: bytes) -> None:
        try:
            lines = block.split(b"\n")
            if self._touched_bytes.isdisjoint([line[7 : line.index(b'"', 7)] for line in lines]):
                return
            self._mixed.add(place)
            found = [line for line in lines if line[7 : line.index(b'"', 7)] in self._touched_bytes]
            tasks = decode_block(b"\n".join(found).removesuffix(b","))
        except (*UNREADABLE, ValueError) as error:
            raise self._present.unreadable(error) from None
        self._state.tasks.update([(task.id, task) for task in tasks])

    def _add(self, task: StoredTask, batch: Batch) -> None:
        if task.id in self._state.tasks:
            raise damaged(LogKind.PUBLISHED, batch, f"task {task.id} was published before")
        self._state.tasks[task.id] = task

    def _apply(self) -> None:
        for batch in self._batches(LogKind.PROGRESS):
            try:
                for record in _records(batch):
                    if isinstance(record, Retired):
                        self._retire(record)
                    self._state.apply(record, at_ms=batch.at_ms)
            except BrokenHistory as error:
                raise damaged(LogKind.PROGRESS, batch, str(error)) from error

    def _retire(self, record: Retired) -> None:
        for task in (self._state.tasks[task_id] for task_id in record.ids if task_id in self._state.tasks):
            self._left[task.id] = task.number
            if self._config.archive:
                self._archive.add(task)

    # pass B

    def _write(self, header: QueueHeader) -> CheckpointDone:
        with suppress(FileNotFoundError):
            self._files.unlink(DRAFT)
        writer = QueueWriter(self._files, DRAFT, header)
        try:
            for place, block in enumerate(self._present.blocks()):
                if place in self._mixed:
                    writer.add(*_joined(self._lines_of(block)))
                else:
                    writer.add(block, block.count(b"\n") + 1)
            for batch in self._batches(LogKind.PUBLISHED):
                writer.add(*_joined(self._published_lines(batch)))
            writer.finish()
        finally:
            writer.close()
        return CheckpointDone(self._left, self._last_task, writer.count, writer.size, self._folded)

    def _lines_of(self, block: bytes) -> Iterator[bytes]:
        tasks = self._state.tasks
        for line in block.split(b"\n"):
            task_id = line[7 : line.index(b'"', 7)]
            if task_id not in self._touched_bytes:
                yield line.removesuffix(b",")
            elif task := tasks.get(task_id.decode()):
                yield encode_task(task)

    def _published_lines(self, batch: Batch) -> Iterator[bytes]:
        tasks = self._state.tasks
        for number, given in enumerate(published_tasks(batch, batch.first_task - 1), batch.first_task):
            if given.id not in self._touched:
                yield encode_task(begin(given, number=number, at_ms=batch.at_ms))
            elif task := tasks.get(given.id):
                yield encode_task(task)

    # both

    def _batches(self, kind: LogKind) -> Iterator[Batch]:
        """The batches to fold of one log, checked to end where the cut says."""
        upto = self._cut.progress if kind is LogKind.PROGRESS else self._cut.published
        start = self._present.header.through(kind)
        end = start
        for step in walk(self._files, kind, start, upto=upto.number, folders=self._folders):
            yield from step.batches
            end = step.end
        if (end.number, end.epoch) != upto:
            why = f"the cut names epoch {upto.epoch}, the log has epoch {end.epoch}"
            raise CorruptQueue(f"{kind}-*.jsonl", offset=0, batch=upto.number, why=why)
        self.ends[kind] = end

    def _check_rests_on(self, position: Position | None, kind: LogKind) -> None:
        """Progress may rest only on published batches that are there; None: all were seen."""
        if position is not None:
            wanted = self._rests_on.pop(position.number, position.epoch)
            missing = None if wanted == position.epoch else position.number
        else:
            folded = self._present.header.published_through.number
            missing = next((number for number in self._rests_on if number > folded), None)
        if missing is not None:
            why = f"progress rests on published batch {missing} of another epoch, or one that is not there"
            raise CorruptQueue(f"{kind}-*.jsonl", offset=0, batch=missing, why=why)

    def _positions(self) -> dict[str, object]:
        published, progress = self.ends[LogKind.PUBLISHED], self.ends[LogKind.PROGRESS]
        header = self._present.header
        return {
            "saved_ms": self._at_ms,
            "published_through": Position(published.number, published.epoch),
            "progress_through": Position(progress.number, progress.epoch),
            "chains": (f"{published.chain:08x}", f"{progress.chain:08x}"),
            "last_task": self._last_task,
            "epochs": tuple(highest_epoch(self._files, kind, header, self._folders) for kind in LogKind),
        }


def highest_epoch(files: Files, kind: LogKind, header: QueueHeader, folders: Sequence[str] = ("",)) -> int:
    """The highest epoch that a log was ever written under."""
    return max([header.epoch(kind), *(segment.epoch for segment in segments_of(files, kind, folders))])


def _records(batch: Batch) -> list[Progress]:
    try:
        return decode_progress(batch.records)
    except UNREADABLE as error:
        raise damaged(LogKind.PROGRESS, batch, str(error)) from None


def _joined(lines: Iterable[bytes]) -> tuple[bytes, int]:
    kept = list(lines)
    return b",\n".join(kept), len(kept)


# ── from the draft to the new generation ─────────────────────────────────────────────────────────────────────────────


def _replace(files: Files, present: _Present, spent: list[Segment]) -> None:
    """Put the draft in place, keep what it replaces, and only then let go of the segments it covers."""
    files.make_folder(PREVIOUS)
    if present.reader:
        _link_over(files, QUEUE, f"{PREVIOUS}/{QUEUE}")
    names = [segment.name for segment in spent]
    _put_in_place(files, names)
    _unlink(files, [f"{PREVIOUS}/{name}" for name in files.list(PREVIOUS) if name not in {QUEUE, *names}])


def _put_in_place(files: Files, spent: list[str]) -> None:
    files.make_folder(PREVIOUS)
    for name in spent:
        with suppress(FileExistsError):
            files.link(name, f"{PREVIOUS}/{name}")
    files.sync_folder(PREVIOUS)
    files.rename(DRAFT, QUEUE)
    files.sync_folder()  # Not before this line is the new queue.json certain to be found after a power cut.
    _unlink(files, spent)


def _link_over(files: Files, old: str, new: str) -> None:
    draft = new + ".draft"
    _unlink(files, [draft])
    files.link(old, draft)
    files.rename(draft, new)
    _unlink(files, [draft])  # Where both were names of the same file, rename did nothing.


def _clear(files: Files, header: QueueHeader) -> None:
    """Unlink what an earlier checkpoint, cut short, left over."""
    for kind in LogKind:
        _unlink(files, [segment.name for segment in needed_of(files, kind, header.through(kind).number)[1]])


def _unlink(files: Files, names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            files.unlink(name)
