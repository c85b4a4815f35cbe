"""From files to memory: what a starting broker knows, and what anyone may look at.

The fold is the same for all: "apply the published batches up to ``after``, then this batch of progress", and at the end the rest of what
was published. Where it does not fit (a record for a task in another state, an ``after`` that is not there, a task number that skips), the
files are damaged or we are wrong; either way :class:`~jsonqueue.errors.CorruptQueue` is raised, and nothing rests on it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, json

from jsonqueue.core.records import decode_progress, decode_published
from jsonqueue.core.state import BrokenHistory, QueueState
from jsonqueue.core.taken import TakenIds
from jsonqueue.errors import CorruptQueue
from jsonqueue.storage.codec import UNREADABLE, Batch, Position
from jsonqueue.storage.files import Files
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.log import consistently, require_log
from jsonqueue.storage.queue_file import QueueHeader, QueueReader, decode_block
from jsonqueue.storage.segments import LogKind, walk
from jsonqueue.task import StoredTaskIn

__all__ = ["Fold", "KnownIds", "Loaded", "damaged", "fold_logs", "inspect", "load_ids", "load_state", "published_tasks"]


class KnownIds(NamedTuple):
    """What the PublisherBroker refuses as duplicates."""

    numbers: TakenIds
    """Id → task number: the ids in queue.json, and those published after its cut. (Retired ones included until a checkpoint has passed.)"""
    last_task: int
    """The highest task number ever given."""


class Loaded(NamedTuple):
    """The queue as its files tell it."""

    state: QueueState
    published: Position
    """The last published batch that is in it."""
    progress: Position
    """The last progress batch that is in it."""
    last_task: int
    """The highest task number that is, or was, in it."""
    header: QueueHeader
    """The first line of queue.json."""


class _IdAndNumber(Struct, gc=False):
    id: str
    number: int


_ids_decoder = json.Decoder(list[_IdAndNumber])


def load_ids(files: Files) -> KnownIds:
    """The ids that are taken, for a PublisherBroker that has opened its log. Raises :class:`CorruptQueue`."""
    with _no_collector():
        return consistently(files, lambda: _load_ids(files))


def _load_ids(files: Files) -> KnownIds:
    header = QueueHeader()
    numbers = TakenIds()
    reader = QueueReader.open(files)
    if reader:
        with reader:
            header = reader.header
            for block in reader.blocks():
                try:
                    found = _ids_decoder.decode(b"[%b]" % block)
                except UNREADABLE as error:
                    raise reader.unreadable(error) from None
                numbers.add_loaded([task.id for task in found], [task.number for task in found])
    last_task = header.last_task
    for batches, _ in walk(files, LogKind.PUBLISHED, header.through(LogKind.PUBLISHED)):
        for batch in batches:
            tasks = published_tasks(batch, last_task)
            numbers.add([task.id for task in tasks], batch.first_task)
            last_task += len(tasks)
    return KnownIds(numbers, last_task)


def load_state(files: Files, *, published_through: Position | None = None) -> Loaded:
    """The queue: queue.json and both logs, folded. Raises :class:`CorruptQueue`, :class:`~jsonqueue.errors.UnsupportedFormat`.

    ``published_through``: read the published log up to this batch, which its writer announced, and not beyond. None: to its end, as far
    as there are whole batches; that is for looking, while nobody's answer rests on it.
    """
    with _no_collector():
        return consistently(files, lambda: _load_state(files, published_through))


def inspect(queue_dir: str | Path) -> Loaded:
    """The queue as it is now, from its files alone: no lock is taken, nothing is written, brokers may run or not.

    What it shows may be a moment ahead of what is durable.
    """
    files = open_folder(queue_dir, create=False, read_only=True)
    try:
        return load_state(files)
    finally:
        files.shut()


def _load_state(files: Files, published_through: Position | None) -> Loaded:
    return fold_logs(files, *_load_queue(files), published_through)


def fold_logs(files: Files, header: QueueHeader, state: QueueState, published_through: Position | None = None) -> Loaded:
    """``state`` as ``header`` describes it, and on top of it what the logs say."""
    for kind in LogKind:
        require_log(files, kind, header)
    # Progress to its end first, published second: a published batch is durable before any progress refers to it.
    progress = [batch for step in walk(files, LogKind.PROGRESS, header.through(LogKind.PROGRESS)) for batch in step.batches]
    fold = Fold(state, header, _batches(files, header, published_through))
    for batch in progress:
        fold.apply(batch)
    fold.publish_rest()
    if published_through is not None and fold.published != published_through:
        why = f"epoch {published_through.epoch} was announced, epoch {fold.published.epoch} is there"
        raise CorruptQueue("published-*.jsonl", offset=0, batch=published_through.number, why=why)
    return Loaded(state, fold.published, fold.progress, fold.last_task, header)


def _load_queue(files: Files) -> tuple[QueueHeader, QueueState]:
    state = QueueState()
    reader = QueueReader.open(files)
    if reader is None:
        return QueueHeader(), state
    with reader:
        for block in reader.blocks():
            try:
                tasks = decode_block(block)
            except UNREADABLE as error:
                raise reader.unreadable(error) from None
            state.tasks.update([(task.id, task) for task in tasks])
        if len(state.tasks) != reader.count:
            raise CorruptQueue(reader.name, offset=reader.offset, why="two tasks in it have the same id")
        return reader.header, state


def _batches(files: Files, header: QueueHeader, through: Position | None) -> Iterator[Batch]:
    upto = through.number if through else None
    for batches, _ in walk(files, LogKind.PUBLISHED, header.through(LogKind.PUBLISHED), upto=upto):
        yield from batches


class Fold:
    """One order out of two logs: takes progress batches, and draws the published ones they rest on from ``published``."""

    def __init__(self, state: QueueState, header: QueueHeader, published: Iterator[Batch]) -> None:
        self.state = state
        self.published, self.progress = header.published_through, header.progress_through
        self.last_task = header.last_task
        self._coming = published

    def apply(self, batch: Batch) -> None:
        """Fold in one progress batch, and before it the published ones up to its ``after``."""
        while self.published.number < batch.after.number and self._publish_next():
            pass
        # Beyond is fine: queue.json may have been folded further than its progress rested on.
        if self.published.number < batch.after.number or (self.published.number == batch.after.number and self.published != batch.after):
            why = f"it rests on published batch {batch.after.number} of epoch {batch.after.epoch}, which is not there"
            raise damaged(LogKind.PROGRESS, batch, why)
        try:
            for record in decode_progress(batch.records):
                self.state.apply(record, at_ms=batch.at_ms)
        except (BrokenHistory, *UNREADABLE) as error:
            raise damaged(LogKind.PROGRESS, batch, str(error)) from error
        self.progress = batch.position

    def publish_rest(self) -> None:
        """Fold in what was published after the last progress."""
        while self._publish_next():
            pass

    def _publish_next(self) -> bool:
        batch = next(self._coming, None)
        if batch is None:
            return False
        tasks = published_tasks(batch, self.last_task)
        try:
            self.state.publish(tasks, first=batch.first_task, at_ms=batch.at_ms)
        except BrokenHistory as error:
            raise damaged(LogKind.PUBLISHED, batch, str(error)) from error
        self.last_task += len(tasks)
        self.published = batch.position
        return True


def published_tasks(batch: Batch, last_task: int) -> list[StoredTaskIn]:
    """The tasks of a published batch, whose first must follow ``last_task``."""
    try:
        tasks = decode_published(batch.records)
    except UNREADABLE as error:
        raise damaged(LogKind.PUBLISHED, batch, str(error)) from None
    if batch.first_task != last_task + 1:
        raise damaged(LogKind.PUBLISHED, batch, f"its first task has number {batch.first_task} where {last_task + 1} belongs")
    return tasks


def damaged(kind: LogKind, batch: Batch, why: str) -> CorruptQueue:
    """A batch whose bytes are whole, but whose contents do not fit."""
    return CorruptQueue(f"{kind}-*.jsonl", offset=0, batch=batch.number, why=why)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the cyclic garbage collector from walking a growing heap again and again: nothing made while loading is garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
