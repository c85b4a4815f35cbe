"""The state of the queue as its logs tell it: the same code for the live broker, recovery, inspection and checkpoints.

Applying a record judges nothing, for the judging was done before it was written. It checks, though, that the record fits the task's status
(:mod:`jsonqueue.core.transitions`): one that does not is a bug or damage, and raises :class:`BrokenHistory` before anything rests on it.

Each record changes each of its tasks by itself, whatever the others are. So a fold may keep in memory only those tasks that the records
name, and stream the rest past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Raw

from jsonqueue.core.records import (
    Cancelled,
    Completed,
    Died,
    Due,
    Failed,
    Leased,
    Progress,
    RecordName,
    Replayed,
    Retired,
    Unblocked,
    Unleased,
)
from jsonqueue.core.transitions import TRANSITIONS
from jsonqueue.task import Attempt, Outcome, StoredTask, StoredTaskIn, Task, TaskStatus

__all__ = ["BrokenHistory", "QueueState", "begin", "ids_of"]

_FINDS: dict[RecordName, frozenset[TaskStatus]] = {name: frozenset(before) for name, (before, _) in TRANSITIONS.items()}
_PENDING, _IN_PROGRESS, _COMPLETED = TaskStatus.PENDING, TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED


class BrokenHistory(AssertionError):
    """A record that does not fit the state it is applied to."""

    def __init__(self, record: object, task_id: str, found: str) -> None:
        super().__init__(f"{type(record).__name__} does not fit task {task_id}, which is {found}")
        self.record, self.task_id, self.found = record, task_id, found


def begin(given: StoredTaskIn, *, number: int, at_ms: int) -> StoredTask:
    """The task that a published record brings to life."""
    if given.after:
        status = TaskStatus.BLOCKED
    elif given.run_at_ms > at_ms:
        status = TaskStatus.SCHEDULED
    else:
        status = _PENDING
    # The copy frees the payload from the batch it came in, which would otherwise live as long as its last task.
    return Task(
        given.id, number, status, at_ms, given.data.copy(), given.priority, given.run_at_ms, given.deadline_ms, given.attempts_max,
        given.retry, given.after,
    )  # fmt: skip


def ids_of(record: Progress) -> Iterable[str]:
    """The tasks that a record speaks of."""
    return (record.id,) if isinstance(record, Failed) else record.ids


class QueueState:
    """Tasks by id."""

    __slots__ = ("tasks",)

    def __init__(self, tasks: Iterable[StoredTask] = ()) -> None:
        self.tasks: dict[str, StoredTask] = {task.id: task for task in tasks}

    def publish(self, batch: Iterable[StoredTaskIn], *, first: int, at_ms: int) -> list[StoredTask]:
        """Apply one published batch, whose first task has number ``first``; the tasks it made."""
        tasks = self.tasks
        made = []
        for number, given in enumerate(batch, first):
            if given.id in tasks:
                raise BrokenHistory(given, given.id, "published already")
            tasks[given.id] = task = begin(given, number=number, at_ms=at_ms)
            made.append(task)
        return made

    def apply(self, record: Progress, *, at_ms: int) -> None:
        """Apply one progress record of a batch written at ``at_ms``."""
        _APPLY[type(record)](self, record, at_ms)

    def _found(self, record: Progress, task_id: str, expected: frozenset[TaskStatus]) -> StoredTask:
        task = self.tasks.get(task_id)
        if task is None or task.status not in expected:
            raise BrokenHistory(record, task_id, "unknown" if task is None else task.status)
        return task

    def _leased(self, record: Leased, at_ms: int) -> None:
        tasks, consumer = self.tasks, record.consumer
        for token, task_id in enumerate(record.ids, record.first):
            task = tasks.get(task_id)
            if task is None or task.status is not _PENDING:
                raise BrokenHistory(record, task_id, "unknown" if task is None else task.status)
            task.status = _IN_PROGRESS
            task.attempt += 1
            task.token = token
            task.consumer = consumer
            task.started_ms = at_ms

    def _completed(self, record: Completed, at_ms: int) -> None:
        tasks = self.tasks
        for position, task_id in enumerate(record.ids):
            task = tasks.get(task_id)
            if task is None or task.status is not _IN_PROGRESS:
                raise BrokenHistory(record, task_id, "unknown" if task is None else task.status)
            _end_attempt(task, Outcome.COMPLETED, at_ms)
            task.status = _COMPLETED
            task.finished_ms = at_ms
            task.suspect = False
            task.reason = ""
            if record.results:
                task.result = _result(record.results[position])

    def _failed(self, record: Failed, at_ms: int) -> None:
        task = self._found(record, record.id, _FINDS[RecordName.FAILED])
        _end_attempt(task, Outcome.FAILED, at_ms, record.error)
        task.status = TaskStatus.SCHEDULED if record.retry_at_ms > at_ms else _PENDING
        task.run_at_ms = record.retry_at_ms
        task.suspect = False
        task.reason = _last_line(record.error)

    def _unleased(self, record: Unleased, at_ms: int) -> None:
        for task_id in record.ids:
            task = self._found(record, task_id, _FINDS[RecordName.UNLEASED])
            _end_attempt(task, record.outcome, at_ms)
            task.status = _PENDING
            task.suspect = record.suspect
            if not record.counted:
                task.attempt -= 1

    def _died(self, record: Died, at_ms: int) -> None:
        for task_id in record.ids:
            task = self._found(record, task_id, _FINDS[RecordName.DIED])
            if task.token and record.outcome is not None:
                _end_attempt(task, record.outcome, at_ms, record.error)
            _end(task, TaskStatus.DEAD, record.reason, at_ms)

    def _cancelled(self, record: Cancelled, at_ms: int) -> None:
        for task_id in record.ids:
            task = self._found(record, task_id, _FINDS[RecordName.CANCELLED])
            if task.token:
                _end_attempt(task, Outcome.CANCELLED, at_ms, record.reason)
            _end(task, TaskStatus.CANCELLED, record.reason, at_ms)

    def _due(self, record: Due, at_ms: int) -> None:
        for task_id in record.ids:
            self._found(record, task_id, _FINDS[RecordName.DUE]).status = _PENDING

    def _unblocked(self, record: Unblocked, at_ms: int) -> None:
        for task_id in record.ids:
            task = self._found(record, task_id, _FINDS[RecordName.UNBLOCKED])
            task.status = TaskStatus.SCHEDULED if task.run_at_ms > at_ms else _PENDING

    def _replayed(self, record: Replayed, at_ms: int) -> None:
        for task_id in record.ids:
            task = self._found(record, task_id, _FINDS[RecordName.REPLAYED])
            task.status = TaskStatus.BLOCKED if task.after else _PENDING
            task.attempt = task.finished_ms = task.deadline_ms = 0
            task.run_at_ms = 0
            task.suspect = False
            task.reason = ""

    def _retired(self, record: Retired, at_ms: int) -> None:
        for task_id in record.ids:
            self._found(record, task_id, _FINDS[RecordName.RETIRED])
            del self.tasks[task_id]


_APPLY: dict[type, Callable[..., None]] = {
    Leased: QueueState._leased,
    Completed: QueueState._completed,
    Failed: QueueState._failed,
    Unleased: QueueState._unleased,
    Died: QueueState._died,
    Cancelled: QueueState._cancelled,
    Due: QueueState._due,
    Unblocked: QueueState._unblocked,
    Replayed: QueueState._replayed,
    Retired: QueueState._retired,
}


_HISTORY_MAX = 100
"""Attempts kept with a task; of one that is tried for ever, the last so many."""


def _end_attempt(task: StoredTask, outcome: Outcome, at_ms: int, error: str = "") -> None:
    if outcome is not Outcome.RETURNED:  # never started: nothing to remember
        ended = Attempt(task.attempt, task.token, task.consumer, task.started_ms, at_ms, outcome, error)
        task.history = (*task.history, ended)[-_HISTORY_MAX:]
    task.token = task.started_ms = 0
    task.consumer = ""


def _end(task: StoredTask, status: TaskStatus, reason: str, at_ms: int) -> None:
    task.status = status
    task.reason = reason
    task.finished_ms = at_ms


def _result(raw: Raw) -> Raw | None:
    return None if bytes(raw) == b"null" else raw.copy()


def _last_line(error: str) -> str:
    """What a traceback comes down to."""
    return error.strip().rpartition("\n")[2]
