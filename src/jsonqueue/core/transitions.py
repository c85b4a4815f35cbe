"""The life of a task as one table. Everything else asks it: replay checks each step against it, and the diagram is drawn from it."""

from __future__ import annotations

from collections.abc import Iterator

from jsonqueue.core.records import RecordName
from jsonqueue.task import TaskStatus

__all__ = ["PUBLISHED_AS", "TRANSITIONS", "mermaid"]

_S = TaskStatus

PUBLISHED_AS: tuple[TaskStatus, ...] = (_S.BLOCKED, _S.SCHEDULED, _S.PENDING)
"""How a task can begin: waiting for other tasks, waiting for its time, or ready."""

TRANSITIONS: dict[RecordName, tuple[tuple[TaskStatus, ...], tuple[TaskStatus, ...]]] = {
    RecordName.LEASED: ((_S.PENDING,), (_S.IN_PROGRESS,)),
    RecordName.COMPLETED: ((_S.IN_PROGRESS,), (_S.COMPLETED,)),
    RecordName.FAILED: ((_S.IN_PROGRESS,), (_S.SCHEDULED, _S.PENDING)),
    RecordName.UNLEASED: ((_S.IN_PROGRESS,), (_S.PENDING,)),
    RecordName.DIED: ((_S.BLOCKED, _S.SCHEDULED, _S.PENDING, _S.IN_PROGRESS), (_S.DEAD,)),
    RecordName.CANCELLED: ((_S.BLOCKED, _S.SCHEDULED, _S.PENDING, _S.IN_PROGRESS), (_S.CANCELLED,)),
    RecordName.DUE: ((_S.SCHEDULED,), (_S.PENDING,)),
    RecordName.UNBLOCKED: ((_S.BLOCKED,), (_S.SCHEDULED, _S.PENDING)),
    RecordName.REPLAYED: ((_S.DEAD,), (_S.BLOCKED, _S.PENDING)),
    RecordName.RETIRED: ((_S.COMPLETED, _S.DEAD, _S.CANCELLED), ()),
}
"""Record → (statuses it may find, statuses it may leave). Retired leaves none: the task is gone from the queue."""


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    return "\n".join(["stateDiagram-v2", *(f"    {arrow}" for arrow in _arrows())])


def _arrows() -> Iterator[str]:
    for status in PUBLISHED_AS:
        yield f"[*] --> {status}: published"
    for record, (before, after) in TRANSITIONS.items():
        for source in before:
            for target in after or ("[*]",):
                yield f"{source} --> {target}: {record}"
