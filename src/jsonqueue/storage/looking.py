"""Looking at a queue of any size from its files alone: no lock is taken, nothing is written, brokers may run or not.

The queue is read as a :mod:`~jsonqueue.storage.stream`: in memory are the tasks that progress spoke of since the last checkpoint, not the
whole queue. What is seen is the queue of one moment, however long the looking takes, because its files are held open. All of it is checked
before any of it is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TypeVar, cast

from msgspec import Struct, json

from jsonqueue.core.taken import TakenIds
from jsonqueue.errors import CorruptQueue
from jsonqueue.storage.codec import UNREADABLE
from jsonqueue.storage.files import Files
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.log import PATIENCE, consistently
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, decode_block
from jsonqueue.storage.segments import LogKind, Segment, begun_name, begun_of, segments_of
from jsonqueue.storage.stream import Generation, Stream, ends_of
from jsonqueue.task import StoredTask, TaskStatus

__all__ = ["Glance", "View", "look_up", "looking_at", "view_of"]


_T = TypeVar("_T")


class Glance(Struct, gc=False):
    """What tells at a glance how a task stands; its payload is passed over."""

    id: str
    status: TaskStatus
    published_ms: int
    priority: int = 0
    run_at_ms: int = 0
    finished_ms: int = 0


_glances = json.Decoder(list[Glance])


@contextmanager
def looking_at(queue_dir: str | Path) -> Iterator[View]:
    """The queue in this folder as it is now; what it shows may be a moment ahead of what is durable.

    Raises :class:`~jsonqueue.errors.FolderRefused`, :class:`~jsonqueue.errors.CorruptQueue`, :class:`~jsonqueue.errors.UnsupportedFormat`.
    """
    files = open_folder(queue_dir, create=False, read_only=True)
    try:
        with view_of(files) as view:
            yield view
    finally:
        files.shut()


def look_up(queue_dir: str | Path, task_id: str) -> StoredTask | None:
    """One task as it stands now; None when the queue does not hold it. Raises as :func:`looking_at` does."""
    with looking_at(queue_dir) as view:
        return view.task(task_id)


@contextmanager
def view_of(files: Files) -> Iterator[View]:
    """The same, of files that are open."""
    with ExitStack() as stack:
        yield _view(files, stack)


def _view(files: Files, stack: ExitStack) -> View:
    tries = 0
    while True:
        tries += 1
        # All that are taken are given back in the end, those too that a checkpoint made worthless while they were taken.
        held = consistently(files, lambda: stack.enter_context(_Held(files)))
        reading = cast("Files", held)
        generation = stack.enter_context(Generation(reading))
        try:
            return View(reading, generation)
        except CorruptQueue:
            # A segment that is held may still grow by what rests on the other log, which has gone on in a segment that is not held.
            if tries == PATIENCE or _segments_in(files) == _segments_in(reading):
                raise
        stack.close()


def _segments_in(files: Files) -> list[Segment]:
    return [segment for kind in LogKind for segment in segments_of(files, kind)]


class View:
    """A queue at one moment."""

    def __init__(self, files: Files, generation: Generation) -> None:
        """Use :func:`looking_at`."""
        self._generation = generation
        self._left: dict[str, StoredTask] = {}
        self._stream = Stream(files, generation, ends_of(files, generation.header), retire=self._leave)
        self._stream.fold()
        if not self._stream.touched:
            deque(generation.blocks(), maxlen=0)  # The fold had no need of them; they are checked all the same.
        self.last_task = self._stream.last_task
        """The highest task number ever given."""

    def glances(self) -> Iterator[Glance]:
        """All tasks, in the order they were published in."""
        for block, _ in self._stream.blocks():
            yield from self._glances_of(block)

    def lines(self, wanted: Callable[[Glance], bool]) -> Iterator[bytes]:
        """The tasks that are ``wanted``, each as it stands (or would stand) in queue.json, in the order they were published in."""
        for block, _ in self._stream.blocks():
            chosen = [wanted(glance) for glance in self._glances_of(block)]
            if any(chosen):
                yield from (line for line, is_wanted in zip(block.split(b",\n"), chosen, strict=True) if is_wanted)

    def count_read(self) -> int | None:
        """How many tasks there are, once every one of them was read; None when two of them have the same id."""
        taken = TakenIds()
        for block, _ in self._stream.blocks():
            tasks = self._decoded(decode_block, block)
            ids = [task.id for task in tasks]
            if not taken.all_free(ids) and (len({*ids}) < len(ids) or any(task_id in taken for task_id in ids)):
                return None
            taken.add_loaded(ids, [task.number for task in tasks])
        return len(taken)

    def task(self, task_id: str) -> StoredTask | None:
        """One task; None when the queue does not hold it."""
        if task_id in self._stream.touched:
            return self._stream.task(task_id)
        begins = b'\n{"id":"%b"' % task_id.encode(errors="surrogateescape")
        # Nothing happened to it, so that it stands in queue.json as it is.
        for block in chain(self._generation.blocks(), (block for block, _ in self._stream.published_blocks())):
            at = (b"\n" + block).find(begins)
            if at >= 0:
                return self._decoded(decode_block, block[at:].partition(b",\n")[0])[0]
        return None

    def left(self, task_id: str) -> StoredTask | None:
        """One that has left the queue since the last checkpoint, as it was then: the archive has it only from the next one on."""
        return self._left.get(task_id)

    def _leave(self, task: StoredTask) -> None:
        self._left[task.id] = task

    def _glances_of(self, block: bytes) -> list[Glance]:
        return self._decoded(lambda block: _glances.decode(b"[%b]" % block), block)

    def _decoded(self, decode: Callable[[bytes], list[_T]], block: bytes) -> list[_T]:
        try:
            return decode(block)
        except UNREADABLE as error:
            raise self._generation.unreadable(error) from None


class _Held:
    """The files that make up a queue, held open: what a checkpoint or a starting writer takes away can still be read.

    The reading half of :class:`Files`. That it has no other half is meant.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._handles: dict[str, int] = {}
        self._previous = files.list(PREVIOUS)

    def __enter__(self) -> _Held:
        try:
            with suppress(FileNotFoundError):
                self._handles[QUEUE] = self._files.open(QUEUE)
            self._begun = [begun_name(kind, epoch) for kind in LogKind for epoch in begun_of(self._files, kind)]
            for segment in _segments_in(self._files):
                self._handles[segment.name] = self._files.open(segment.name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        while self._handles:
            self._files.close(self._handles.popitem()[1])

    def open(self, name: str) -> int:
        if name not in self._handles:
            raise FileNotFoundError(name)
        return self._handles[name]

    def close(self, handle: int) -> None:
        """Nothing yet: it may be asked for again."""

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return self._files.read(handle, offset, size)

    def size(self, handle: int) -> int:
        return self._files.size(handle)

    def list(self, folder: str = "") -> list[str]:
        return self._previous if folder == PREVIOUS else sorted([*self._handles, *self._begun])
