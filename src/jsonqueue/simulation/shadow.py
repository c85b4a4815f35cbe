"""The judges' own queue: what the durable log says, applied record by record, each checked as it comes.

The shadow sees nothing but the bytes on the durable plane. It is folded as recovery folds ("the published batches up to ``after``, then
this one"), so at every point of the log it can say who holds which lease, and what should have been handed out next.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jsonqueue.core.records import Completed, Died, Leased, Progress, Replayed, Retired, decode_progress, decode_published
from jsonqueue.core.state import BrokenHistory, QueueState, ids_of
from jsonqueue.simulation.verdict import Violation
from jsonqueue.storage.codec import Batch, Position
from jsonqueue.task import Outcome, StoredTask, StoredTaskIn, TaskStatus

__all__ = ["Ended", "Shadow"]


class Ended(NamedTuple):
    """What is remembered of a task that has left the queue."""

    number: int
    status: TaskStatus


class Shadow:
    """See the module."""

    def __init__(self, look: Callable[[Progress, Batch], None] = lambda record, batch: None) -> None:
        """``look``: is shown each record of the progress log with its batch, before it is applied."""
        self._look = look
        self.state = QueueState()
        self.published = Position(0, 0)
        self.progress = Position(0, 0)
        self.numbers: dict[str, int] = {}
        """Every id that was ever durable, and its task number."""
        self.completed_by: dict[str, int] = {}
        """Id → the token that completed it."""
        self.retired: dict[str, Ended] = {}
        self.archived: set[str] = set()
        """Every id that has ever left the queue."""
        self.ever: dict[str, set[str]] = {}
        """Id → "died", "replayed", "retired": what made its state change, beside consumers and callers."""
        self.open = 0
        """Tasks that have not ended, as far as progress has been read."""
        self.deliveries = 0
        self._coming: deque[tuple[Batch, list[StoredTaskIn]]] = deque()
        self._ready: list[tuple[int, int, str]] = []
        self._last_token = 0

    def begin(self, tasks: Iterable[StoredTask], *, published: Position, progress: Position) -> None:
        """Start from a queue file, in place of an empty queue."""
        self.state = QueueState(tasks)
        self.published, self.progress = published, progress
        self.numbers = {task.id: task.number for task in self.state.tasks.values()}
        self._last_token = max([task.token for task in self.state.tasks.values()], default=0)
        self._queue(self.state.tasks.values())
        self.open = sum(not task.status.ended for task in self.state.tasks.values())

    # ── what was published ───────────────────────────────────────────────────────────────────────────────────────────

    def add_published(self, batch: Batch) -> list[str]:
        """A batch of the published log has become durable; the ids in it."""
        tasks = decode_published(batch.records)
        ids = []
        for number, task in enumerate(tasks, batch.first_task):
            if task.id in self.numbers and task.id not in self.retired:
                raise Violation("duplicated", f"{task.id} is published twice, as {self.numbers[task.id]} and {number}", task_id=task.id)
            self.numbers[task.id] = number
            self.retired.pop(task.id, None)
            ids.append(task.id)
        self._coming.append((batch, tasks))
        self.open += len(tasks)
        return ids

    def status_of(self, task_id: str) -> str | None:
        """How a task stands by all that is durable: a status, ``published`` if no progress follows it yet, None if it is not there."""
        task = self.state.tasks.get(task_id)
        if task is not None:
            return task.status
        return "published" if task_id in self.numbers and task_id not in self.retired else None

    # ── what became of it ────────────────────────────────────────────────────────────────────────────────────────────

    def add_progress(self, batch: Batch) -> None:
        """A batch of the progress log has become durable."""
        if batch.after.number > self.published.number:
            self._publish(batch.after.number)
        if self.published.number < batch.after.number:
            raise Violation("acausal", f"progress batch {batch.number} rests on published batch {batch.after.number}, which is not durable")
        for record in decode_progress(batch.records):
            self._check(record)
            self._look(record, batch)
            try:
                self.state.apply(record, at_ms=batch.at_ms)
            except BrokenHistory as error:
                kind = "two leases" if isinstance(record, Leased) else "duplicated" if isinstance(record, Completed) else "forked"
                raise Violation(kind, f"progress batch {batch.number}: {error}", task_id=error.task_id) from error
            self._follow(record)
        self.progress = batch.position

    def catch_up(self) -> QueueState:
        """The state with all that is durable in it."""
        self._publish(None)
        return self.state

    def _publish(self, through: int | None) -> None:
        while self._coming and (through is None or self._coming[0][0].number <= through):
            batch, tasks = self._coming.popleft()
            self._queue(self.state.publish(tasks, first=batch.first_task, at_ms=batch.at_ms))
            self.published = batch.position

    def _queue(self, tasks: Iterable[StoredTask]) -> None:
        for task in tasks:
            if task.status is TaskStatus.PENDING and not task.suspect:
                heapq.heappush(self._ready, (-task.priority, task.number, task.id))

    def _check(self, record: Progress) -> None:
        if isinstance(record, Leased):
            self._check_tokens(record)
            taken: set[str] = set()
            for task_id in record.ids:
                self._check_turn(task_id, taken)
                taken.add(task_id)
        elif isinstance(record, Retired):
            for task_id in record.ids:
                leaving = self.state.tasks[task_id]
                self.retired[task_id] = Ended(leaving.number, leaving.status)
                self.archived.add(task_id)
                self.ever.setdefault(task_id, set()).add("retired")
        elif isinstance(record, Completed):
            for task_id in record.ids:
                task = self.state.tasks.get(task_id)
                if task is not None:
                    self.completed_by[task_id] = task.token

    def _check_tokens(self, record: Leased) -> None:
        if record.first <= self._last_token:
            raise Violation("two leases", f"token {record.first} came again", task_id=record.ids[0])
        self._last_token = record.first + len(record.ids) - 1
        self.deliveries += len(record.ids)

    def _check_turn(self, task_id: str, taken: set[str]) -> None:
        """Whether it is this task's turn: nothing more urgent, and nothing older as urgent, is ready."""
        task = self.state.tasks.get(task_id)
        if task is None or task.suspect:
            return
        while self._ready:
            _, number, first = heapq.heappop(self._ready)
            known = self.state.tasks.get(first)
            if known is None or known.status is not TaskStatus.PENDING or known.suspect or known.number != number or first in taken:
                continue
            if first == task_id:
                return
            heapq.heappush(self._ready, (-known.priority, number, first))
            if task.status is TaskStatus.PENDING:
                raise Violation("order", f"{task_id} was handed out while {first} was ready and came first", task_id=task_id)
            return  # it has a lease already, which is worse and said by whoever applies the record

    def _follow(self, record: Progress) -> None:
        if isinstance(record, (Leased, Retired)):
            return
        followed = [self.state.tasks[task_id] for task_id in ids_of(record)]
        ended = sum(task.status.ended for task in followed)
        self.open -= ended
        if isinstance(record, Replayed):
            self.open += len(followed)
            self._remember(followed, "replayed")
        elif isinstance(record, Died):
            self._remember(followed, "died")
        for task in followed:
            completions = sum(attempt.outcome is Outcome.COMPLETED for attempt in task.history)
            if completions > 1:
                raise Violation("duplicated", f"{task.id} was completed {completions} times", task_id=task.id)
        if not ended:
            self._queue(followed)

    def _remember(self, tasks: Iterable[StoredTask], what: str) -> None:
        for task in tasks:
            self.ever.setdefault(task.id, set()).add(what)
