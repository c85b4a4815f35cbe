"""The tasks that are ready to run, in the order they run: higher priority first, then publish order.

A lane a priority. Fresh tasks come in publish order, so they queue in a deque at constant cost however long the backlog; tasks that come
back (a retry, a lost consumer) or come late (a delay) re-enter by their number through a heap. Removal is lazy: whoever takes skips what is
no longer pending, so that cancelling one task out of a million costs nothing. Where nobody takes, those that have ended are cleared out
when they come to as many as the others.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque

from jsonqueue.core.timetable import are_a_burden, are_miscounted
from jsonqueue.task import StoredTask, TaskStatus

__all__ = ["ReadyQueue", "weight_of"]


_ATTEMPT_BYTES = 256
"""What an earlier attempt comes to, but for its error."""


def weight_of(task: StoredTask) -> int:
    """Bytes that its delivery comes to, about: its payload, the ids it waited for, and what is known of earlier attempts."""
    weight = len(memoryview(task.data))
    if task.after:
        weight += sum([len(needed) + 3 for needed in task.after])
    if task.history:
        weight += len(task.reason) + sum([len(attempt.error) + _ATTEMPT_BYTES for attempt in task.history])
    return weight


class _Lane:
    __slots__ = ("fresh", "last", "returned")

    def __init__(self) -> None:
        self.fresh: deque[StoredTask] = deque()
        self.returned: list[tuple[int, int, StoredTask]] = []
        self.last = 0


class ReadyQueue:
    """Ready tasks by priority and number: the suspects among them, or all others."""

    def __init__(self, *, suspects: bool = False) -> None:
        self._suspects = suspects
        self._lanes: dict[int, _Lane] = {}
        self._order: list[int] = []  # negated priorities, ascending: the most urgent first
        self._entries = 0
        self._ended = 0
        self._stamp = 0

    def __len__(self) -> int:
        """An upper bound: tasks that left in the meantime are counted until their turn comes."""
        return self._entries

    def add(self, task: StoredTask) -> None:
        """Queue a pending task."""
        lane = self._lanes.get(task.priority)
        if lane is None:
            lane = self._lanes[task.priority] = _Lane()
            insort(self._order, -task.priority)
        self._entries += 1
        if task.number > lane.last:
            lane.last = task.number
            lane.fresh.append(task)
        else:
            self._stamp += 1  # breaks ties: tasks cannot be compared
            heapq.heappush(lane.returned, (task.number, self._stamp, task))

    def ended(self, count: int) -> None:
        """So many tasks have ended, some of which may be queued here."""
        self._ended += count
        if are_a_burden(self._ended, self._entries):
            self._clear_out()

    def count(self) -> int:
        """How many are ready: exactly, where they are not too many to look at; or else a 64th more at most."""
        if are_miscounted(self._ended, self._entries):
            self._clear_out()
        return self._entries

    def _clear_out(self) -> None:
        for lane in self._lanes.values():
            lane.fresh = deque(filter(self._is_meant, lane.fresh))
            lane.returned = [entry for entry in lane.returned if self._is_meant(entry[2])]
            heapq.heapify(lane.returned)
        self._lanes = {priority: lane for priority, lane in self._lanes.items() if lane.fresh or lane.returned}
        self._order = sorted(-priority for priority in self._lanes)
        self._entries = sum(len(lane.fresh) + len(lane.returned) for lane in self._lanes.values())
        self._ended = 0

    def _is_meant(self, task: StoredTask) -> bool:
        return task.status is TaskStatus.PENDING and task.suspect is self._suspects

    def take(self, most: int, room_bytes: int) -> list[StoredTask]:
        """Remove and return the next ready tasks, ``most`` at the most, and none more once they fill ``room_bytes`` (:func:`weight_of`)."""
        taken: list[StoredTask] = []
        for negated in tuple(self._order):
            lane = self._lanes[-negated]
            room_bytes = self._take_from(lane, most, room_bytes, taken)
            if lane.fresh or lane.returned:
                break
            if -negated != 0:  # the common lane stays; the others go when they are empty
                del self._lanes[-negated]
                self._order.remove(negated)
        return taken

    def _take_from(self, lane: _Lane, most: int, room_bytes: int, taken: list[StoredTask]) -> int:
        fresh, returned, pending = lane.fresh, lane.returned, TaskStatus.PENDING
        while len(taken) < most and room_bytes > 0 and (fresh or returned):
            if returned and (not fresh or returned[0][0] < fresh[0].number):
                task = heapq.heappop(returned)[2]
            else:
                task = fresh.popleft()
            self._entries -= 1
            # Queued twice (left unseen, came back), a task surfaces twice in a row.
            if task.status is pending and task.suspect is self._suspects and not (taken and taken[-1] is task):
                taken.append(task)
                room_bytes -= weight_of(task)
        return room_bytes
