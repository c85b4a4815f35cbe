"""Virtual time: one heap of what will happen, and nothing else.

Time is integer microseconds and moves only from one event to the next, so an hour costs as much as happens in it. Events of the same moment
happen in the order in which they were asked for.

A process that does something slow, such as an fsync, calls :meth:`Scheduler.advance` in the midst of it: what is due meanwhile happens then
and there, on top of it, and afterwards it goes on. So other processes run *between* the operations of one that is at work, without threads
and without any code under test having to give way.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

__all__ = ["Scheduler"]


class Scheduler:
    """Runs events in the order of their times."""

    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0
        """Events that have happened so far."""
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def after(self, wait_us: int, act: Callable[..., None], *arguments: Any) -> None:
        """Let this happen so long from now."""
        self.at(self.now_us + wait_us, act, *arguments)

    def at(self, when_us: int, act: Callable[..., None], *arguments: Any) -> None:
        """Let this happen at that time (now, if that has passed)."""
        self._asked += 1  # breaks ties: acts cannot be compared
        now_us = self.now_us
        when_us = when_us if when_us > now_us else now_us  # noqa: FURB136 - max() is a call, millions of times
        heappush(self._heap, (when_us, self._asked, act, arguments))

    def advance(self, spent_us: int) -> None:
        """Let time pass for whoever is at work; what is due meanwhile happens first."""
        until_us, heap = self.now_us + spent_us, self._heap
        while heap and heap[0][0] <= until_us:
            self._next()
        self.now_us = max(self.now_us, until_us)

    def run(self, until_us: int, *, enough: Callable[[], bool] = lambda: False) -> None:
        """Let happen what is due until then, or until ``enough`` says so."""
        heap = self._heap
        while heap and heap[0][0] <= until_us and not enough():
            self._next()
        if not enough():
            self.now_us = max(self.now_us, until_us)

    def clear(self) -> None:
        """Nothing of what was asked for will happen."""
        self._heap.clear()

    def _next(self) -> None:
        when_us, _, act, arguments = heappop(self._heap)
        if when_us > self.now_us:  # noqa: PLR1730 - as above
            self.now_us = when_us
        self.events += 1
        act(*arguments)
