"""Which batches are on their way: what a publisher sends next, what an answer settles, what is sent again. Decisions alone, no I/O.

A batch waits in ``unsent``, travels in ``in_flight`` and leaves with its answer. When the connection breaks, whatever was in flight goes
back to the front of the line, to be sent again under the same ids, which the queue knows if it has them.

:class:`~jsonqueue.client.flow.Flow` drives one over a real Pipe; the simulator drives the same class over a simulated one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from jsonqueue.task import StoredTaskIn

__all__ = ["WINDOW", "Batch", "Window"]

WINDOW = 8
"""Batches in flight: enough that the broker never waits for the publisher, few enough to bound the memory."""

_BURST_MAX_BYTES = 32 * 1024 * 1024


class Batch(NamedTuple):
    """Tasks that travel together, and where they stood in what the caller gave."""

    tasks: list[StoredTaskIn]
    indexes: list[int]
    bytes: int

    def only(self, places: Iterable[int]) -> Batch:
        """Those of it that stand at these places in it."""
        places = list(places)
        tasks = [self.tasks[place] for place in places]
        return Batch(tasks, [self.indexes[place] for place in places], sum(len(memoryview(task.data)) for task in tasks))


class Window:
    """The batches of one flow, from being handed in to being answered."""

    def __init__(self) -> None:
        self.unsent: deque[Batch] = deque()
        self.in_flight: deque[tuple[int, Batch]] = deque()
        self._doubtful: list[Batch] = []
        """Those not answered that may be stored: they were on their way when a connection broke."""
        self._burst = WINDOW
        self._largest = 1

    @property
    def empty(self) -> bool:
        """Whether everything is answered."""
        return not self.unsent and not self.in_flight

    @property
    def uncertain(self) -> bool:
        """Whether a batch that is not answered may be stored."""
        return bool(self._doubtful)

    def doubts(self, batch: Batch) -> bool:
        """Whether this batch, which is not answered, may be stored."""
        return any(one is batch for one in self._doubtful)

    @property
    def has_room(self) -> bool:
        """Over a line: whether another batch could be sent at once."""
        return not self.unsent and len(self.in_flight) < WINDOW

    @property
    def burst_has_room(self) -> bool:
        """Without a line: whether to gather more before the log is opened for it, which costs what the queue is large."""
        return len(self.unsent) < self._burst

    @property
    def unanswered(self) -> list[Batch]:
        """All that is not answered, in order."""
        return [*(batch for _, batch in self.in_flight), *self.unsent]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all that is not answered."""
        return tuple(task.id for batch in self.unanswered for task in batch.tasks)

    def push(self, batch: Batch, *, doubtful: bool = False) -> None:
        """One more to be sent. ``doubtful``: it may be stored, since it was on its way before."""
        self.unsent.append(batch)
        if doubtful:
            self._doubtful.append(batch)

    # ── over a line ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connected(self) -> None:
        """There is a line: bursts begin small again."""
        self._burst = WINDOW

    def head(self) -> Batch | None:
        """What to send now; None: nothing, or too much is in flight."""
        return self.unsent[0] if self.unsent and len(self.in_flight) < WINDOW else None

    def sent(self, request: int) -> None:
        """The head is on its way, under this number."""
        self.in_flight.append((request, self.unsent.popleft()))

    def asked(self, request: int) -> Batch | None:
        """The batch of a question that is not answered yet."""
        return next((batch for number, batch in self.in_flight if number == request), None)

    def answered(self, request: int) -> Batch | None:
        """A question is answered; its batch, or None of an answer that nobody waits for (any more)."""
        batch = self.asked(request)
        if batch is not None:
            self.in_flight.remove((request, batch))
            self._settled(batch)
            self._largest = max(self._largest, batch.bytes)
        return batch

    def broken(self) -> None:
        """The line is gone: what was in flight is to be sent again, in the order it had."""
        self._doubtful += [batch for _, batch in self.in_flight if not self.doubts(batch)]
        self.unsent.extendleft(batch for _, batch in reversed(self.in_flight))
        self.in_flight.clear()

    def replace(self, batch: Batch, *parts: Batch) -> None:
        """In place of this batch, which waits to be sent, these go: those of them in which there is something."""
        if self.doubts(batch):
            self._settled(batch)
            self._doubtful += [part for part in parts if part.tasks]
        place = self.unsent.index(batch)
        del self.unsent[place]
        for part in reversed(parts):
            if part.tasks:
                self.unsent.insert(place, part)

    # ── without one ──────────────────────────────────────────────────────────────────────────────────────────────────

    def appended(self) -> Batch:
        """The head was appended to the log and is answered."""
        batch = self.unsent.popleft()
        self._settled(batch)
        self._largest = max(self._largest, batch.bytes)
        return batch

    def burst_over(self) -> None:
        """A burst was appended: the next may be larger."""
        if self._burst * self._largest < _BURST_MAX_BYTES:
            self._burst *= 2

    def _settled(self, batch: Batch) -> None:
        self._doubtful = [one for one in self._doubtful if one is not batch]
