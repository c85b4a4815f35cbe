"""One turn of the dispatcher: what time it is, and what is to be done."""

from __future__ import annotations

from typing import NamedTuple

from jsonqueue.core.records import Progress
from jsonqueue.event import Assign, Event
from jsonqueue.task import StoredTask

__all__ = ["Now", "Turn"]


class Now(NamedTuple):
    """Both clocks, read once a turn, in milliseconds."""

    wall_ms: int
    monotonic_ms: int


class Turn:
    """What one turn wants done, in this order: write the records, push, sync, answer."""

    __slots__ = ("answers", "pushes", "records")

    def __init__(self) -> None:
        self.records: list[Progress] = []
        self.pushes: list[tuple[int, Event]] = []
        self.answers: list[tuple[int, Event]] = []

    def hold_back_overdue(self, now_ms: int) -> list[StoredTask]:
        """Leave out of the pushes, and return, the tasks whose deadline is over by now (wall clock)."""
        overdue: list[StoredTask] = []
        pushes: list[tuple[int, Event]] = []
        for peer, event in self.pushes:
            if isinstance(event, Assign) and (late := [task for task in event.tasks if 0 < task.deadline_ms <= now_ms]):
                overdue += late
                in_time = [task for task in event.tasks if not 0 < task.deadline_ms <= now_ms]
                pushes += [(peer, Assign(in_time))] if in_time else []
            else:
                pushes.append((peer, event))
        self.pushes = pushes
        return overdue
