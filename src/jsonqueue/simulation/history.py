"""Linearizability: whether there is *one* order of all operations on a task that explains every answer, and respects who came after whom.

An operation takes effect at one moment between its question and its answer; one that was never answered may have taken effect at any
moment after its question, or never. Each task is looked at by itself, which suffices: linearizability is a local property. The search is
that of Wing and Gong with Lowe's memory of configurations already tried, exact and exponential; so it is for histories of at most
:data:`SMALL` operations, and the cheap check in ``judges.py`` (each answer against the durable log at the moment it is sent) is for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

from msgspec import Struct

__all__ = ["SMALL", "History", "Operation", "explained"]

SMALL = 14

_ABSENT, _LIVE, _COMPLETED, _DEAD, _CANCELLED = "absent", "live", "completed", "dead", "cancelled"
_ENDED = {_COMPLETED, _DEAD, _CANCELLED}
_NEVER = 1 << 62


class Operation(Struct):
    """One question, and its answer if there was one. ``invoked`` and ``returned`` count all questions and answers."""

    what: str
    task_id: str
    invoked: int
    returned: int = _NEVER
    outcome: str = ""


class History:
    """Collects the operations of a run."""

    def __init__(self) -> None:
        self._operations: dict[Hashable, Operation] = {}
        self._moment = 0

    def invoke(self, key: Hashable, what: str, task_id: str) -> None:
        """A question leaves. (The same question may be said again on another Pipe; it stays one operation.)"""
        self._moment += 1
        self._operations.setdefault(key, Operation(what, task_id, self._moment))

    def answer(self, key: Hashable, outcome: str) -> None:
        """Its answer arrives."""
        self._moment += 1
        operation = self._operations.get(key)
        if operation is not None and operation.returned == _NEVER:
            operation.returned, operation.outcome = self._moment, outcome

    def answered_before(self, what: str, task_id: str, key: Hashable) -> bool:
        """Whether such an operation on the task had been answered when the operation ``key`` was asked."""
        asked = self._operations[key].invoked
        return any(
            operation.returned < asked
            for operation in self._operations.values()
            if operation.what == what and operation.task_id == task_id and operation.outcome == "stored"
        )

    def by_task(self) -> dict[str, list[Operation]]:
        """The operations on each task, in the order of their questions."""
        tasks: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in self._operations.values():
            tasks[operation.task_id].append(operation)
        tasks.pop("", None)
        return tasks


def explained(operations: list[Operation], *, died: bool = False, replayed: bool = False, retired: bool = False) -> bool:
    """Whether some order explains all answers. The flags say what else the log shows to have happened to the task."""
    hidden = (died, replayed, retired)
    everything = (1 << len(operations)) - 1
    must = sum(1 << index for index, operation in enumerate(operations) if operation.returned != _NEVER)
    seen: set[tuple[int, str]] = set()
    todo = [(0, _ABSENT)]
    while todo:
        done, state = configuration = todo.pop()
        if configuration in seen:
            continue
        seen.add(configuration)
        if done & must == must:
            return True
        todo += [(done, changed) for changed in _changes(state, hidden)]
        left = [index for index in range(len(operations)) if not done >> index & 1]
        first_answer = min(operations[index].returned for index in left)
        for index in left:
            operation = operations[index]
            if operation.invoked < first_answer:  # else another one was over before this one was asked
                todo += [(done | 1 << index & everything, after) for after in _effects(state, operation)]
    return False


def _changes(state: str, hidden: tuple[bool, bool, bool]) -> Iterator[str]:
    died, replayed, retired = hidden
    if died and state == _LIVE:
        yield _DEAD
    if replayed and state == _DEAD:
        yield _LIVE
    if retired and state in _ENDED:
        yield _ABSENT


def _effects(state: str, operation: Operation) -> Iterator[str]:
    """The states that the operation may leave, if it can have had this answer in this state."""
    what, outcome = operation.what, operation.outcome
    if what == "publish":
        yield _LIVE if state == _ABSENT else state
    elif what == "complete":
        if outcome == "stale":
            yield state
        elif state == _LIVE:
            yield _COMPLETED
    elif what == "cancel":
        yield from _cancel(state, outcome)
    elif what == "look" and outcome == state:
        yield state


def _cancel(state: str, outcome: str) -> Iterator[str]:
    if outcome in {"", "cancelled"} and state == _LIVE:
        yield _CANCELLED
    elif (outcome == "already over" and state in _ENDED) or (outcome == "absent" and state == _ABSENT):
        yield state
