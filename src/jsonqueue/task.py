"""What a task is: :class:`TaskIn` as it is handed in, :class:`Task` as it lives in the queue.

Both are generic in the type of their payload. Brokers and files use ``Task[Raw]``: the payload stays the JSON bytes that the publisher
wrote and is never parsed on the way. Users see ``Task[Any]``: plain Python values. All times are integer milliseconds since the Unix
epoch (UTC); 0 means "none". Field order is the order of the members in the queue file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from msgspec import Meta, Raw, Struct

from jsonqueue.retry import RetryPolicy

__all__ = ["ID_PATTERN", "PRIORITY_LIMIT", "AnyTask", "Attempt", "Outcome", "StoredTask", "StoredTaskIn", "Task", "TaskIn", "TaskStatus"]

T = TypeVar("T")

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z"
"""Task ids and consumer names: readable, never a path, nothing that needs escaping in JSON, a shell or a terminal."""

PRIORITY_LIMIT = 1_000_000
"""Priorities lie between minus this and this."""

TaskId = Annotated[str, Meta(pattern=ID_PATTERN)]
WallMs = Annotated[int, Meta(ge=0, le=10**13 - 1)]
"""Milliseconds since the epoch, up to the year 2286."""


class TaskStatus(StrEnum):
    """Where a task stands; the moves between these are in :mod:`jsonqueue.core.transitions`."""

    BLOCKED = "blocked"
    """Waits for other tasks (``after``)."""
    SCHEDULED = "scheduled"
    """Waits for its time (``run_at``, ``delay``, or the pause before a retry)."""
    PENDING = "pending"
    """Ready; waits for a consumer."""
    IN_PROGRESS = "in_progress"
    """Delivered to a consumer that holds its lease."""
    COMPLETED = "completed"
    DEAD = "dead"
    """A dead letter: out of attempts, past its deadline, or without hope. Can be replayed."""
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to the task unless somebody replays it."""
        return self in _ENDED


_ENDED = frozenset({TaskStatus.COMPLETED, TaskStatus.DEAD, TaskStatus.CANCELLED})


class Outcome(StrEnum):
    """How one attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    """The handler raised, exited non-zero, or ran out of its time."""
    LOST = "lost"
    """The consumer is gone: its process died, or its Pipe closed."""
    EXPIRED = "expired"
    """No heartbeat came for the lease's length."""
    RETURNED = "returned"
    """Handed back unstarted; such an attempt is not counted."""
    CANCELLED = "cancelled"


class TaskIn(Struct, Generic[T], kw_only=True, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """A task as its publisher hands it in. ``TaskIn(data={"url": "..."})`` is enough."""

    id: str = ""
    """Name of the task within its queue; publishing it again makes no second task. Empty: a fresh one is made."""
    data: T
    """Payload: any JSON value, falsy ones included."""
    priority: Annotated[int, Meta(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] = 0
    """Higher runs first; equals run in the order they were published."""
    run_at_ms: WallMs = 0
    """Not before this time."""
    deadline_ms: WallMs = 0
    """From this time on it is not started any more, but dead."""
    attempts_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """How often it may be tried; 0: the queue's default."""
    retry: RetryPolicy | None = None
    """The wait between attempts; None: the queue's default."""
    after: tuple[TaskId, ...] = ()
    """Ids of tasks that must complete first. If one of them ends otherwise, this task is dead."""


class Attempt(Struct, omit_defaults=True, gc=False):
    """One delivery of a task, ended."""

    attempt: int
    token: int
    consumer: str
    started_ms: int
    ended_ms: int
    outcome: Outcome
    error: str = ""
    """The traceback, the standard error, or the reason, as the consumer told it."""


class Task(Struct, Generic[T], omit_defaults=True, gc=False):
    """A task as it stands in the queue: one line of ``queue.json``."""

    id: str
    number: int
    """The how-many-th task ever published to this queue, from 1: its place in the order."""
    status: TaskStatus
    published_ms: int
    data: T
    priority: int = 0
    run_at_ms: int = 0
    deadline_ms: int = 0
    attempts_max: int = 0
    retry: RetryPolicy | None = None
    after: tuple[str, ...] = ()
    attempt: int = 0
    """Attempts counted so far, the current one included."""
    token: int = 0
    """Fences the current delivery: ``epoch << 32 | delivery``. 0 while nobody holds the task."""
    consumer: str = ""
    """Who holds it: ``name@pid``."""
    started_ms: int = 0
    suspect: bool = False
    """A consumer died while it held this task among others: it is delivered alone until that is settled."""
    if TYPE_CHECKING:
        result: T | None = None
    else:
        # msgspec reads "Raw | None" as null alone, and would refuse every stored result. Of a default it does not ask the type.
        result: T = None
    reason: str = ""
    """Why it is dead or cancelled, or why the last attempt failed."""
    finished_ms: int = 0
    history: tuple[Attempt, ...] = ()
    """The attempts that have ended, oldest first."""


StoredTaskIn = TaskIn[Raw]
"""A task on its way into the queue: payload as JSON bytes."""

StoredTask = Task[Raw]
"""A task in a broker or a file: payload and result as JSON bytes."""

AnyTask = Task[Any]
"""A task in a user's hands: payload and result as Python values."""
