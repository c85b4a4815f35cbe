"""Folding the logs into queue.json, as a :mod:`~jsonqueue.storage.stream`: a task that nothing happened to is copied as it is.

What a checkpoint writes, in this order, each step durable before the next::

    1  archive/…            cut to the length in queue.json, the retired tasks appended
    2  queue.json.draft     the new generation (and by ``process-crash`` the logs, as far as they are folded in)
    3  previous/            second names for the present queue.json and for the segments that lead from it to the new one
    4  queue.json           replaced by the draft
    5  previous/queue.json  replaced by what was queue.json until 4
    6  segments             unlinked: those that have a successor and no batch beyond the cut; in previous/ those of older generations

A queue.json that somebody changed since it was read is not replaced in 4: the next checkpoint judges what he did. A crash at any point
leaves a queue that the next checkpoint starts from again. With ``previous/``, damage to queue.json costs nothing, at any of these points:
:mod:`~jsonqueue.storage.repair` folds it anew. Nothing beyond the cut is folded, for it might vanish in a power cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from msgspec.structs import replace

from jsonqueue.config import Config
from jsonqueue.errors import CorruptQueue, StorageError
from jsonqueue.storage.archive import Archive, Archived, archived_since, committed_archive
from jsonqueue.storage.codec import Position
from jsonqueue.storage.files import Files, Identity
from jsonqueue.storage.log import log_bytes
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, ChangedQueue, QueueHeader, QueueWriter, read_header
from jsonqueue.storage.segments import LogKind, Segment, begun_name, begun_of, needed_of, segments_of
from jsonqueue.storage.stream import Cut, Generation, Stream, ends_of
from jsonqueue.task import StoredTask

__all__ = ["DRAFT", "CheckpointDone", "Cut", "checkpoint", "clear_draft", "final_checkpoint", "highest_epoch", "log_bytes", "rebuild"]

DRAFT = "queue.json.draft"
_REPLACED = f"{PREVIOUS}/{QUEUE}.draft"
"""The queue.json that is about to be replaced."""


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


def checkpoint(files: Files, cut: Cut, *, config: Config, at_ms: int, left: dict[str, int] | None = None) -> CheckpointDone:
    """Fold both logs up to ``cut`` into a new queue.json. The caller holds ``queue.lock``; brokers may be running.

    ``left``: who left in earlier attempts that came to nothing. One may have come as far as to put its queue.json in place, and then nobody
    leaves any more: so they are among those who left with this one. It is added to, whatever comes of this one.

    Raises :class:`CorruptQueue`, :class:`~jsonqueue.errors.DiskFull` and :class:`ChangedQueue`; the queue is then what it was before.
    """
    left = {} if left is None else left
    found = files.identity(QUEUE)
    with Generation(files) as present:
        header = present.header
        cut = Cut(max(cut.progress, header.progress_through), max(cut.published, header.published_through))
        if present.reader and cut == (header.progress_through, header.published_through):
            _clear(files, header, certain=bool(left))
            return CheckpointDone(left, header.last_task, present.reader.count, present.reader.size, 0)
        with _Folding(files, present, cut, config, at_ms, left=left) as fold:
            done = fold.run(closed=False)
            _sync_folded(files, fold, LogKind.PUBLISHED)
            spent = [segment for kind in LogKind for segment in needed_of(files, kind, fold.stream.ends[kind].number)[1]]
            _replace(files, present, found, spent)
            return done


def final_checkpoint(files: Files, *, config: Config, at_ms: int) -> CheckpointDone:
    """Fold both logs to their ends, so that queue.json alone holds everything. The caller holds all three locks."""
    found = files.identity(QUEUE)
    with Generation(files) as present, _Folding(files, present, ends_of(files, present.header), config, at_ms) as fold:
        done = fold.run(closed=True)
        _sync_folded(files, fold, *LogKind)
        _replace(files, present, found, [segment for kind in LogKind for segment in segments_of(files, kind)])
        return done


def rebuild(files: Files, *, config: Config, at_ms: int, at_least: Cut | None) -> CheckpointDone:
    """Make queue.json anew from the generation before it and all logs, for repair. The caller holds all three locks, and has put the
    damaged queue.json aside: it is replaced, not kept. ``at_least``: how far that one went, if it can be told. Nothing is taken from the
    archive, which is ahead of the generation before: should this not succeed, the damaged queue.json may be taken as it is (an edit).

    Raises :class:`CorruptQueue` when something that is needed for it is missing, or damaged too.
    """
    try:
        return _rebuilt(files, f"{PREVIOUS}/{QUEUE}", config, at_ms, at_least)
    except CorruptQueue:
        # Where there is none, as behind an edit that was accepted, it may not have its name yet.
        if files.identity(_REPLACED) is not None:
            with suppress(CorruptQueue):
                return _rebuilt(files, _REPLACED, config, at_ms, at_least)
        raise


def _rebuilt(files: Files, before: str, config: Config, at_ms: int, at_least: Cut | None) -> CheckpointDone:
    folders = ("", PREVIOUS)
    with Generation(files, before) as present:
        cut = ends_of(files, present.header, folders)
        nothing = present.reader is None and not segments_of(files, LogKind.PUBLISHED, folders)
        if nothing or (at_least and (cut.progress < at_least.progress or cut.published < at_least.published)):
            raise CorruptQueue(before, offset=0, why="what would lead from it to the damaged queue.json is not there")
        with _Folding(files, present, cut, config, at_ms, folders=folders, again=True) as fold:
            done = fold.run(closed=True)
            _sync_folded(files, fold, *LogKind)
            spent = [segment.name for kind in LogKind for segment in segments_of(files, kind)]
            _keep(files, spent)
            _put_in_place(files)
            _let_go(files, spent)
            return done


def clear_draft(files: Files) -> None:
    """Remove what a checkpoint that was cut short left of its draft: on a full disk the brokers may want its room before there is another
    one. The caller holds ``queue.lock``."""
    _unlink(files, [DRAFT])


class _Folding:
    """One checkpoint on its way: what it makes counts once its draft is in place. What ends it before that, be it the want of room for a
    second name, leaves neither the draft nor what was archived."""

    def __init__(
        self,
        files: Files,
        present: Generation,
        cut: Cut,
        config: Config,
        at_ms: int,
        *,
        folders: Sequence[str] = ("",),
        left: dict[str, int] | None = None,
        again: bool = False,
    ) -> None:
        """``again``: some of it was folded before, so that those who left with it are in the archive already."""
        self._files, self._header, self._folders, self._at_ms = files, present.header, folders, at_ms
        self.config = config
        self._left = {} if left is None else left
        mark = present.header.archive
        self._archived = archived_since(files, mark) if again else set()
        self._archive = Archive(files, committed_archive(files) if again else mark, at_ms=at_ms)
        self._drafted = False
        self.stream = Stream(files, present, cut, retire=self._retire, folders=folders)

    def __enter__(self) -> _Folding:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if isinstance(error, (StorageError, OSError)):
                with suppress(StorageError, OSError):  # That which ended it is what is to be told.
                    self._withdraw()
        finally:
            self._archive.close()

    def _withdraw(self) -> None:
        if self._drafted and self._files.identity(DRAFT) is None:
            return  # It is in place: what was archived counts.
        _unlink(self._files, [DRAFT])
        self._archive.withdraw()

    def run(self, *, closed: bool) -> CheckpointDone:
        """Leave the new generation in the draft, and the retired tasks in the archive, both durable."""
        self.stream.fold()
        mark = self._archive.finish()
        done = self._write(replace(self._header, archive=mark, closed=closed, **self._positions()))
        self._drafted = True
        return done

    def _retire(self, task: StoredTask) -> None:
        self._left[task.id] = task.number
        if self.config.archive and Archived.of(task) not in self._archived:
            self._archive.add(task)

    def _write(self, header: QueueHeader) -> CheckpointDone:
        with QueueWriter.drafting(self._files, DRAFT, header) as writer:
            for block, count in self.stream.blocks():
                writer.add(block, count)
        return CheckpointDone(self._left, self.stream.last_task, writer.count, writer.size, self.stream.folded)

    def _positions(self) -> dict[str, object]:
        published, progress = self.stream.ends[LogKind.PUBLISHED], self.stream.ends[LogKind.PROGRESS]
        return {
            "saved_ms": self._at_ms,
            "published_through": Position(published.number, published.epoch),
            "progress_through": Position(progress.number, progress.epoch),
            "chains": (f"{published.chain:08x}", f"{progress.chain:08x}"),
            "last_task": self.stream.last_task,
            "epochs": tuple(highest_epoch(self._files, kind, self._header, self._folders) for kind in LogKind),
        }


def highest_epoch(files: Files, kind: LogKind, header: QueueHeader, folders: Sequence[str] = ("",)) -> int:
    """The highest epoch that a log was ever written under."""
    return max([header.epoch(kind), *(segment.epoch for segment in segments_of(files, kind, folders))])


# ── from the draft to the new generation ─────────────────────────────────────────────────────────────────────────────


def _sync_folded(files: Files, fold: _Folding, *kinds: LogKind) -> None:
    """Make durable what these logs hold of the batches that are folded in, where they are not synced one by one: a queue.json that survives
    a power cut would speak of batches that did not, and the log would be missed; or be damaged, where a clean stop's unlinking did not."""
    for segment in [fold.stream.ends[kind].segment for kind in kinds]:
        if segment is not None and fold.config.durability != "power-cut":  # Those before it are sealed.
            _sync_log(files, segment)


def _sync_log(files: Files, segment: Segment) -> None:
    try:
        handle = files.open(segment.name)
    except FileNotFoundError:
        return  # Its writer has begun anew: from a copy, which it has synced.
    try:
        files.sync(handle)
    finally:
        files.close(handle)


def _replace(files: Files, present: Generation, found: Identity | None, spent: list[Segment]) -> None:
    """Put the draft in place, keep what it replaces, and only then let go of the segments it covers. ``found``: which file it replaces.

    That one is the generation before only when it is queue.json no more. Until then it has another name in previous/, beside the generation
    before it: whatever is done to queue.json meanwhile, that one leads to what was in it.
    """
    files.make_folder(PREVIOUS)
    if present.reader:
        _make_certain(files)
        _unlink(files, [_REPLACED])
        files.link(QUEUE, _REPLACED)
    names = [segment.name for segment in spent]
    _keep(files, names)
    if files.identity(QUEUE) != found:
        raise ChangedQueue  # What somebody did to it nobody would see any more.
    _put_in_place(files)
    if present.reader and files.identity(_REPLACED) == found:  # Else it was written to in the last moment, and leads nowhere.
        files.rename(_REPLACED, f"{PREVIOUS}/{QUEUE}")
        files.sync_folder(PREVIOUS)
        _unlink(files, [f"{PREVIOUS}/{name}" for name in files.list(PREVIOUS) if name not in {QUEUE, *names}])
    _let_go(files, names)


def _keep(files: Files, spent: list[str]) -> None:
    files.make_folder(PREVIOUS)
    for name in spent:
        # One that somebody has removed is folded in by now, and missed no more.
        with suppress(FileNotFoundError):
            _link(files, name, f"{PREVIOUS}/{name}")
    files.sync_folder(PREVIOUS)


def _link(files: Files, name: str, second: str) -> None:
    try:
        files.link(name, second)
    except FileExistsError:
        if files.identity(name) not in {None, files.identity(second)}:
            # Of another life of the queue, say, of which somebody put back an older copy: it leads nowhere.
            files.unlink(second)
            files.link(name, second)


def _put_in_place(files: Files) -> None:
    files.rename(DRAFT, QUEUE)
    files.sync_folder()  # Not before this line is the new queue.json certain to be found after a power cut.


def _let_go(files: Files, spent: list[str]) -> None:
    _unlink(files, spent)
    header = read_header(files)
    known = ((kind, epoch) for kind in LogKind for epoch in begun_of(files, kind) if epoch <= header.epoch(kind))
    _unlink(files, [begun_name(kind, epoch) for kind, epoch in known])


def _clear(files: Files, header: QueueHeader, *, certain: bool) -> None:
    """Unlink what an earlier checkpoint, cut short, left over. ``certain``: make its queue.json certain in any case."""
    spent = [segment.name for kind in LogKind for segment in needed_of(files, kind, header.through(kind).number)[1]]
    if spent or certain:
        _make_certain(files)
        _unlink(files, spent)


def _make_certain(files: Files) -> None:
    """Make the name of the present queue.json durable: an earlier checkpoint may have been cut short between giving it and syncing it.

    Until then nothing that leans on it may become durable: no segment may go, and nothing in previous/ may say that there is a queue.json.
    """
    files.sync_folder()


def _unlink(files: Files, names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            files.unlink(name)
