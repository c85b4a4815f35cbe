"""Tasks by time: a heap whose stale entries are recognised when they surface, and cleared out where they do not."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from jsonqueue.task import StoredTask

__all__ = ["Timetable", "are_a_burden", "are_miscounted", "earliest"]


_FEW = 1_024
"""To hold so many stale entries is no burden."""
_SOON_LOOKED_THROUGH = 10_000
_SHARE = 64
"""Of more entries than that, one in so many may be counted too many."""


def are_a_burden(ended: int, entries: int) -> bool:
    """Whether of so many entries those that have ended, at most so many, are to be let go."""
    return ended > _FEW and 2 * ended > entries


def are_miscounted(ended: int, entries: int) -> bool:
    """Whether whoever wants to know how many there are is to be told without those that have ended."""
    return ended > 0 and (entries <= _SOON_LOOKED_THROUGH or _SHARE * ended > entries)


def earliest(*moments: int | None) -> int | None:
    """The first of these moments, None among them aside. Asked for in every turn."""
    first = None
    for moment in moments:
        if moment is not None and (first is None or moment < first):
            first = moment
    return first


class Timetable:
    """Tasks ordered by one of their times. ``still`` says whether an entry (task, time) is still meant."""

    def __init__(self, still: Callable[[StoredTask, int], bool]) -> None:
        self._heap: list[tuple[int, int, int, StoredTask]] = []
        self._still = still
        self._entries = 0
        self._most = _FEW
        self._ended = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, task: StoredTask, at_ms: int) -> None:
        """Note the task at this time."""
        self._entries += 1  # breaks ties: tasks cannot be compared
        heapq.heappush(self._heap, (at_ms, task.number, self._entries, task))
        if len(self._heap) > self._most:
            self._clear_out()

    def ended(self, count: int) -> None:
        """So many tasks have ended, some of which may be noted here."""
        self._ended += count
        if are_a_burden(self._ended, len(self._heap)):
            self._clear_out()

    def count(self) -> int:
        """How many are meant: exactly, where they are not too many to look at; or else a 64th more at most."""
        if are_miscounted(self._ended, len(self._heap)):
            self._clear_out()
        return len(self._heap)

    def _clear_out(self) -> None:
        """Of a time that is far off, a task that ended long ago would be held until then, once for each time that it was noted."""
        self._heap = list({entry[:2]: entry for entry in self._heap if self._still(entry[3], entry[0])}.values())
        heapq.heapify(self._heap)
        self._most = max(_FEW, 2 * len(self._heap))
        self._ended = 0

    def due(self, now_ms: int) -> list[StoredTask]:
        """Remove and return what is due, earliest first."""
        due: list[StoredTask] = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, _, task = heapq.heappop(self._heap)
            if self._still(task, at_ms) and not (due and due[-1] is task):  # noted twice, it surfaces twice in a row
                due.append(task)
        return due

    def next_ms(self) -> int | None:
        """The earliest time that is still meant."""
        while self._heap and not self._still(self._heap[0][3], self._heap[0][0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
