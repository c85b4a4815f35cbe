"""The way of many tasks into the queue: in batches, several in flight, none out of sight until it is answered.

A batch waits in ``_unsent``, travels in ``_in_flight`` and leaves with its answer. When the connection breaks, whatever was in flight goes
back to the front of the line and is sent again under the same ids, which the queue knows if it has them. So there are three ends to a flow:
all is answered, the patience is over (which each answer renews), or the queue refuses a whole batch, and it makes no sense to go on.

With no broker running, batches are appended directly, in growing bursts: opening the log costs what the queue is large.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jsonqueue.client import direct
from jsonqueue.client.exchange import Exchange, Line, NoAnswer
from jsonqueue.client.patience import Patience
from jsonqueue.clock import Clock
from jsonqueue.errors import BrokerUnavailable, ConnectionClosed, PublishUnknown
from jsonqueue.event import Write, Written
from jsonqueue.task import StoredTaskIn

__all__ = ["WINDOW", "Batch", "Flow"]

WINDOW = 8
"""Batches in flight: enough that the broker never waits for the publisher, few enough to bound the memory."""

_BURST_MAX_BYTES = 32 * 1024 * 1024
_PAUSE_S = 0.02


class Batch(NamedTuple):
    """Tasks that travel together, and where they stood in what the caller gave."""

    tasks: list[StoredTaskIn]
    indexes: list[int]
    bytes: int


class Flow:
    """Takes batches, sees each of them answered. For one thread."""

    def __init__(
        self,
        queue_dir: Path,
        exchange: Exchange,
        answered: Callable[[Batch, Written], None],
        *,
        patience: Patience,
        clock: Clock,
        pause: Callable[[float], None],
    ) -> None:
        self._queue_dir = queue_dir
        self._exchange = exchange
        self._answered = answered
        self._patience = patience
        self._clock = clock
        self._pause = pause
        self._unsent: deque[Batch] = deque()
        self._in_flight: deque[tuple[int, Batch]] = deque()
        self._leave = WINDOW
        self._largest = 1
        self._uncertain = False

    def push(self, batch: Batch) -> None:
        """Take a batch; blocks while too many are unanswered."""
        self._unsent.append(batch)
        if self._exchange.connected:
            self._advance(lambda: not self._unsent and len(self._in_flight) < WINDOW)
        else:
            self._advance(lambda: len(self._unsent) < self._leave)

    def finish(self) -> None:
        """Return when everything is answered. Raises :class:`PublishUnknown` or :class:`BrokerUnavailable` when the patience is over."""
        self._advance(lambda: not self._unsent and not self._in_flight)

    def _advance(self, enough: Callable[[], bool]) -> None:
        self._patience.renew()
        while not enough():
            try:
                self._over_the_line(enough)
            except ConnectionClosed:
                self._uncertain = self._uncertain or bool(self._in_flight)
                self._take_back()
            except BrokerUnavailable as error:
                self._take_back()
                self._directly(error)

    def _over_the_line(self, enough: Callable[[], bool]) -> None:
        line = self._exchange.line(self._patience)
        self._leave = WINDOW
        while self._unsent and len(self._in_flight) < WINDOW:
            request, batch = self._exchange.number(), self._unsent[0]
            line.ask(request, Write(request, batch.tasks), self._patience)
            self._in_flight.append((request, self._unsent.popleft()))
        if self._in_flight and not enough():
            self._fetch(line)

    def _fetch(self, line: Line) -> None:
        request, batch = self._in_flight[0]
        try:
            answer = line.answer(request, self._patience)
        except NoAnswer:
            line.close()  # a late answer would be one to a question that is no longer remembered
            raise PublishUnknown(self._ids(), cause=f"the broker did not answer within {self._patience.seconds:g} s") from None
        self._in_flight.popleft()
        self._settle(batch, answer)

    def _take_back(self) -> None:
        self._unsent.extendleft(batch for _, batch in reversed(self._in_flight))
        self._in_flight.clear()

    def _directly(self, unavailable: BrokerUnavailable) -> None:
        answers = direct.append(self._queue_dir, [batch.tasks for batch in self._unsent], clock=self._clock)
        if answers is not None:
            for answer in answers:
                self._settle(self._unsent.popleft(), answer)
            self._grow()
        elif self._patience.over:
            if self._uncertain:
                raise PublishUnknown(self._ids(), cause="the connection was lost, and no broker came back") from unavailable
            raise unavailable
        else:
            self._pause(_PAUSE_S)

    def _grow(self) -> None:
        if self._leave * self._largest < _BURST_MAX_BYTES:
            self._leave *= 2

    def _settle(self, batch: Batch, answer: Written) -> None:
        self._largest = max(self._largest, batch.bytes)
        self._patience.renew()
        self._answered(batch, answer)

    def _ids(self) -> tuple[str, ...]:
        batches = [*(batch for _, batch in self._in_flight), *self._unsent]
        return tuple(task.id for batch in batches for task in batch.tasks)
