"""A small queue with a history of its own, for the tests of its files."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
from msgspec import Raw

from jsonqueue.config import Config
from jsonqueue.core.records import (
    Cancelled,
    Completed,
    Died,
    Failed,
    Leased,
    Progress,
    Replayed,
    Retired,
    Unleased,
    encode_records,
)
from jsonqueue.core.state import QueueState
from jsonqueue.storage.checkpoint import Cut, checkpoint, final_checkpoint
from jsonqueue.storage.files import Files
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles, PowerCut
from jsonqueue.storage.recovery import Loaded, load_ids, load_state
from jsonqueue.task import Outcome, StoredTask, TaskIn, TaskStatus

__all__ = ["AT_MS", "CONFIG", "Mirror", "Queue", "archived", "archived_tasks", "contents", "crash_at", "tasks_in", "the_history"]

AT_MS = 1_763_000_000_000
CONFIG = Config()


def tasks_in(*ids: str, size: int = 0) -> list[TaskIn[Raw]]:
    return [TaskIn(id=task_id, data=Raw(b'"%b"' % (task_id.encode() + b"x" * size))) for task_id in ids]


def contents(loaded: Loaded) -> dict[str, bytes]:
    """What a state holds, comparable."""
    return {task.id: msgspec.json.encode(task) for task in loaded.state.tasks.values()}


def archived(files: MemoryFiles, loaded: Loaded) -> list[str]:
    """Ids in the committed part of the archive."""
    return [task.id for task in archived_tasks(files, loaded)]


def archived_tasks(files: MemoryFiles, loaded: Loaded) -> list[StoredTask]:
    mark = loaded.header.archive
    lines = files.get(mark.file)[: mark.length].splitlines() if mark.file else []
    return [msgspec.json.decode(line, type=StoredTask) for line in lines]


class Queue:
    """Both writers of a queue, and what they were told is durable."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.published: set[str] = set()
        self.completed: set[str] = set()
        self.retired: set[str] = set()
        """Durable by the word of sync; the attempted ones may or may not be."""
        self.attempted: set[str] = set()
        self.attempted_retired: set[str] = set()
        self.open()

    def open(self) -> None:
        self.pub = LogWriter.open(self.files, LogKind.PUBLISHED)
        self.prog = LogWriter.open(self.files, LogKind.PROGRESS)
        self.last_task = load_ids(self.files).last_task
        self.token = self.prog.epoch << 32

    def publish(self, *ids: str, size: int = 0) -> None:
        self.attempted.update(ids)
        self.pub.append(encode_records(tasks_in(*ids, size=size)), at_ms=AT_MS, first_task=self.last_task + 1)
        self.last_task += len(ids)
        self.pub.sync()
        self.published.update(ids)

    def record(self, *records: Progress) -> None:
        self.prog.append(encode_records(list(records)), at_ms=AT_MS + 5, after=self.pub.position)
        self.prog.sync()

    def lease(self, *ids: str) -> None:
        self.record(Leased("worker@1", self.token + 1, list(ids)))
        self.token += len(ids)

    def complete(self, *ids: str) -> None:
        self.record(Completed(list(ids), [Raw(b'"done"')] * len(ids)))
        self.completed.update(ids)

    def retire(self, *ids: str) -> None:
        self.attempted_retired.update(ids)
        self.record(Retired(list(ids)))
        self.retired.update(ids)

    def rotate(self) -> Cut:
        self.pub.rotate()
        self.prog.rotate()
        return Cut(self.prog.position, self.pub.position)

    def checkpoint(self, at_ms: int = AT_MS + 10) -> None:
        checkpoint(self.files, self.rotate(), config=CONFIG, at_ms=at_ms)

    def load(self) -> Loaded:
        return load_state(self.files, published_through=self.pub.position)

    def close(self) -> None:
        self.pub.close()
        self.prog.close()

    def check(self) -> Loaded:
        """All that was acknowledged is there, once; returns what the files hold."""
        loaded = self.load()
        old = [task.number for task in archived_tasks(self.files, loaded)] if isinstance(self.files, MemoryFiles) else []
        assert len(old) == len(set(old)), "archived twice"
        assert not set(old) & {task.number for task in loaded.state.tasks.values()}, "in the archive and in the queue at once"
        gone = self.attempted_retired - set(loaded.state.tasks)
        assert self.published <= set(loaded.state.tasks) | gone <= self.attempted, "an acknowledged task is lost, or one came from nowhere"
        assert not self.retired & set(loaded.state.tasks), "an acknowledged retirement is lost"
        for task_id in self.completed - gone:
            assert loaded.state.tasks[task_id].status is TaskStatus.COMPLETED, "an acknowledged completion is lost"
        numbers = [task.number for task in loaded.state.tasks.values()]
        assert len(numbers) == len(set(numbers)), "two tasks have the same number"
        return loaded


class Mirror(Queue):
    """A queue that also keeps its state in memory, told every record as it is written."""

    def __init__(self, files: MemoryFiles) -> None:
        self.state = QueueState()
        self.retired_ever: set[tuple[str, int]] = set()
        self.free: list[str] = []
        """Ids that a checkpoint let go of: they may be published again."""
        self.cut: Cut | None = None
        super().__init__(files)

    def record(self, *records: Progress) -> None:
        super().record(*records)
        for record in records:
            self.state.apply(record, at_ms=AT_MS + 5)

    def publish(self, *ids: str, size: int = 0) -> None:
        first = self.last_task + 1
        for known in (self.retired, self.attempted_retired, self.completed):
            known.difference_update(ids)
        super().publish(*ids, size=size)
        self.state.publish(tasks_in(*ids, size=size), first=first, at_ms=AT_MS)

    def retire(self, *ids: str) -> None:
        self.retired_ever.update((task_id, self.state.tasks[task_id].number) for task_id in ids)
        super().retire(*ids)

    def step(self, chance: Random) -> None:
        """Something that may happen next."""
        by_status: dict[TaskStatus, list[str]] = {}
        for task in self.state.tasks.values():
            by_status.setdefault(task.status, []).append(task.id)
        pending, leased = by_status.get(TaskStatus.PENDING, []), by_status.get(TaskStatus.IN_PROGRESS, [])
        ended = [task for status in TaskStatus if status.ended for task in by_status.get(status, [])]
        n = self.last_task
        moves: list[Callable[[], None]] = [
            lambda: self.publish(*(f"t{n}-{i}" for i in range(chance.randint(1, 4))), size=chance.choice((0, 900))),
            self.checkpoint_somewhere,
            lambda: (self.close(), self.open())[0],
            lambda: (self.rotate(), None)[1],
        ]
        if pending:
            moves += [lambda: self.lease(*pending[: chance.randint(1, 3)]), lambda: self.record(Cancelled(pending[:1], "no"))]
        if leased:
            one = leased[:1]
            moves += [
                lambda: self.complete(*leased[:2]),
                lambda: self.record(Failed(one[0], "oh\nno", 0)),
                lambda: self.record(Unleased(one, Outcome.LOST, suspect=True)),
                lambda: self.record(Died(one, "enough", Outcome.FAILED, "oh no")),
            ]
        if by_status.get(TaskStatus.DEAD):
            moves.append(lambda: self.record(Replayed(by_status[TaskStatus.DEAD][:1])))
        if ended:
            moves.append(lambda: self.retire(*ended[:2]))
        if self.free:
            moves.append(lambda: self.publish(self.free.pop()))
        chance.choice(moves)()

    def checkpoint_somewhere(self) -> None:
        if self.cut is not None:
            self.free += checkpoint(self.files, self.cut, config=CONFIG, at_ms=AT_MS).left
        self.cut = self.rotate()  # the next checkpoint folds up to here, and by then more has been written


def the_history(queue: Queue) -> None:
    """A life with everything in it: publishing, completing, retiring, checkpoints, a restart, a clean stop, another start."""
    queue.publish("a", "b")
    queue.lease("a")
    queue.complete("a")
    queue.checkpoint()
    queue.publish("c", size=700)
    queue.lease("b", "c")
    queue.retire("a")
    queue.checkpoint()
    queue.publish("d")
    queue.rotate()
    queue.publish("d2")
    queue.complete("c")
    seen = queue.rotate()
    queue.publish("d3")
    queue.pub.rotate()
    queue.publish("d4")
    checkpoint(queue.files, seen, config=CONFIG, at_ms=AT_MS + 20)  # the cut lies before what was published and sealed meanwhile
    queue.publish("d5")
    queue.close()
    queue.open()
    queue.publish("e")
    queue.retire("c")
    queue.checkpoint(at_ms=AT_MS + 40 * 86_400_000)  # another month, another archive file
    queue.publish("f")
    queue.close()
    final_checkpoint(queue.files, config=CONFIG, at_ms=AT_MS + 41 * 86_400_000)
    queue.open()
    queue.publish("g")
    queue.complete("b")


def crash_at(k: int, files: MemoryFiles, *, error: type[BaseException] = PowerCut) -> None:
    """Let the k-th operation from now on, and all after it, fail."""
    start = files.operations

    def fail(number: int, name: str) -> None:
        if number - start >= k and (error is PowerCut or name.startswith("sync")):
            raise error(f"at operation {k}: {name}")

    files.fail = fail
