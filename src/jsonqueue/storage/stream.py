"""queue.json with its logs folded in, as a stream of lines: what a checkpoint writes down, and whoever looks at a large queue reads.

Only the tasks that the progress log speaks of are held in memory. Pass A finds them and applies the records, by the same fold as a starting
broker; pass B gives the lines of all tasks in the order they were published in: those of the touched ones as they are now, all others as
they stand in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jsonqueue.core.records import Progress, Retired, decode_progress
from jsonqueue.core.state import QueueState, begin, ids_of
from jsonqueue.errors import CorruptQueue, StorageError
from jsonqueue.storage.codec import UNREADABLE, Batch, Position
from jsonqueue.storage.files import Files
from jsonqueue.storage.log import log_end
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueReader, decode_block, encode_task
from jsonqueue.storage.recovery import Fold, damaged, published_tasks
from jsonqueue.storage.segments import LogKind, walk
from jsonqueue.task import StoredTask, StoredTaskIn

__all__ = ["Cut", "Generation", "Stream", "ends_of"]


class Cut(NamedTuple):
    """Up to where to fold: a batch of progress, and the last published batch that its writer had read by then."""

    progress: Position
    published: Position


def ends_of(files: Files, header: QueueHeader, folders: Sequence[str] = ("",)) -> Cut:
    """All there is. Progress is looked at first: a published batch is durable before any progress refers to it."""
    ends = (log_end(files, kind, header, folders=folders) for kind in (LogKind.PROGRESS, LogKind.PUBLISHED))
    return Cut(*(Position(end.number, end.epoch) for end in ends))


class Generation:
    """A queue.json, held open; an empty one where the queue has none yet."""

    def __init__(self, files: Files, name: str = QUEUE) -> None:
        self.reader = QueueReader.open(files, name)
        self.header = self.reader.header if self.reader else QueueHeader()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.reader:
            self.reader.close()

    def blocks(self) -> Iterator[bytes]:
        return self.reader.blocks() if self.reader else iter(())

    def unreadable(self, error: Exception) -> StorageError:
        assert self.reader is not None
        return self.reader.unreadable(error)


class Stream:
    """One fold of the logs into a generation, up to a cut."""

    def __init__(
        self,
        files: Files,
        generation: Generation,
        cut: Cut,
        *,
        retire: Callable[[StoredTask], None] = lambda task: None,
        folders: Sequence[str] = ("",),
    ) -> None:
        """``retire`` is given each task that leaves the queue, as it was then."""
        self._files, self._generation, self._cut, self._folders = files, generation, cut, folders
        self.touched: set[str] = set()
        """Ids of the tasks that progress speaks of: those that :meth:`task` knows."""
        self._touched_bytes: set[bytes] = set()
        self._mixed: set[int] = set()
        """Places of the blocks of queue.json that hold a touched task."""
        self._state = _Touched(self.touched, retire)
        self.ends = {kind: generation.header.through(kind) for kind in LogKind}
        self.last_task = generation.header.last_task
        """Number of the last task that is folded in."""

    @property
    def folded(self) -> int:
        """How many batches the fold takes in, of both logs."""
        return sum(self.ends[kind].number - self._generation.header.through(kind).number for kind in LogKind)

    def task(self, task_id: str) -> StoredTask | None:
        """A touched task as it is now; None when it has left the queue."""
        return self._state.tasks.get(task_id)

    # ── pass A ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def fold(self) -> None:
        """Bring the touched tasks up to the cut. Raises :class:`CorruptQueue`."""
        self._find_touched()
        if self.touched:
            for place, block in enumerate(self._generation.blocks()):
                self._load_from(place, block)
        fold = Fold(self._state, self._generation.header, self.batches(LogKind.PUBLISHED))
        for batch in self.batches(LogKind.PROGRESS):
            fold.apply(batch)
        fold.publish_rest()
        self.last_task = fold.last_task

    def _find_touched(self) -> None:
        for batch in self.batches(LogKind.PROGRESS):
            try:
                records = decode_progress(batch.records)
            except UNREADABLE as error:
                raise damaged(LogKind.PROGRESS, batch, str(error)) from None
            for record in records:
                self.touched.update(ids_of(record))
        self._touched_bytes = {task_id.encode() for task_id in self.touched}

    def _load_from(self, place: int, block: bytes) -> None:
        try:
            lines = block.split(b"\n")
            if self._touched_bytes.isdisjoint([line[7 : line.index(b'"', 7)] for line in lines]):
                return
            self._mixed.add(place)
            found = [line for line in lines if line[7 : line.index(b'"', 7)] in self._touched_bytes]
            tasks = decode_block(b"\n".join(found).removesuffix(b","))
        except (*UNREADABLE, ValueError) as error:
            raise self._generation.unreadable(error) from None
        self._state.tasks.update([(task.id, task) for task in tasks])

    # ── pass B ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def blocks(self) -> Iterator[tuple[bytes, int]]:
        """The lines of all tasks, in blocks (some of them empty), each with how many tasks it holds."""
        for place, block in enumerate(self._generation.blocks()):
            if place in self._mixed:
                yield _joined(self._lines_of(block))
            else:
                yield block, block.count(b"\n") + 1
        yield from self.published_blocks()

    def published_blocks(self) -> Iterator[tuple[bytes, int]]:
        """The same, of the tasks alone that are not in queue.json yet."""
        for batch in self.batches(LogKind.PUBLISHED):
            yield _joined(self._published_lines(batch))

    def _lines_of(self, block: bytes) -> Iterator[bytes]:
        tasks, last = self._state.tasks, self._generation.header.last_task
        for line in block.split(b"\n"):
            task_id = line[7 : line.index(b'"', 7)]
            if task_id not in self._touched_bytes:
                yield line.removesuffix(b",")
            # A higher number is that of another task: this one was retired, and its id published again.
            elif (task := tasks.get(task_id.decode())) and task.number <= last:
                yield encode_task(task)

    def _published_lines(self, batch: Batch) -> Iterator[bytes]:
        tasks = self._state.tasks
        for number, given in enumerate(published_tasks(batch, batch.first_task - 1), batch.first_task):
            if given.id not in self.touched:
                yield encode_task(begin(given, number=number, at_ms=batch.at_ms))
            elif (task := tasks.get(given.id)) and task.number == number:
                yield encode_task(task)

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def batches(self, kind: LogKind) -> Iterator[Batch]:
        """The batches to fold of one log, checked to end where the cut says."""
        upto = self._cut.progress if kind is LogKind.PROGRESS else self._cut.published
        start = self._generation.header.through(kind)
        end = start
        for step in walk(self._files, kind, start, upto=upto.number, folders=self._folders):
            yield from step.batches
            end = step.end
        if (end.number, end.epoch) != upto:
            why = f"the cut names epoch {upto.epoch}, the log has epoch {end.epoch}"
            raise CorruptQueue(f"{kind}-*.jsonl", offset=0, batch=upto.number, why=why)
        self.ends[kind] = end


class _Touched(QueueState):
    """The state of those tasks alone that progress speaks of."""

    __slots__ = ("_ids", "_retire")

    def __init__(self, ids: set[str], retire: Callable[[StoredTask], None]) -> None:
        super().__init__()
        self._ids, self._retire = ids, retire

    def publish(self, batch: Iterable[StoredTaskIn], *, first: int, at_ms: int) -> list[StoredTask]:
        made: list[StoredTask] = []
        for number, given in enumerate(batch, first):
            if given.id in self._ids:
                made += super().publish([given], first=number, at_ms=at_ms)
        return made

    def apply(self, record: Progress, *, at_ms: int) -> None:
        if isinstance(record, Retired):
            for task_id in record.ids:
                if task := self.tasks.get(task_id):
                    self._retire(task)
        super().apply(record, at_ms=at_ms)


def _joined(lines: Iterable[bytes]) -> tuple[bytes, int]:
    kept = list(lines)
    return b",\n".join(kept), len(kept)
