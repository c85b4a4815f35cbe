"""Questions after the status that wait for the brokers' own figures, but not for long."""

from __future__ import annotations

from collections.abc import Callable

from jsonqueue.channel.control import Ask, Order
from jsonqueue.channel.registration import ManagerStatus, Report
from jsonqueue.clock import Clock
from jsonqueue.event import EventOwner

__all__ = ["Questions"]

_WAIT_MS = 500


class _Question:
    def __init__(self, awaited: set[EventOwner], answer: Callable[[Report], None], until_ms: int) -> None:
        self.awaited = awaited
        self.answer = answer
        self.until_ms = until_ms


class Questions:
    """Asks both brokers, and answers when they have, or when the time is up: a broker that is busy loading holds up nobody."""

    def __init__(self, clock: Clock, status: Callable[[], ManagerStatus], post: Callable[[EventOwner, Order], None]) -> None:
        self._clock = clock
        self._status = status
        self._post = post
        self._open: dict[int, _Question] = {}
        self._last = 0

    def ask(self, brokers: set[EventOwner], answer: Callable[[Report], None]) -> None:
        """Ask these brokers for their figures, then answer."""
        self._last += 1
        self._open[self._last] = _Question(set(brokers), answer, self._clock.monotonic_ms() + _WAIT_MS)
        for role in brokers:
            self._post(role, Ask(self._last))
        self._answer_complete()

    def answered(self, role: EventOwner, request: int) -> None:
        """A broker has told its figures."""
        question = self._open.get(request)
        if question is not None:
            question.awaited.discard(role)
            self._answer_complete()

    def tick(self, now_ms: int) -> None:
        """Answer what has waited long enough."""
        for question in self._open.values():
            if question.until_ms <= now_ms:
                question.awaited.clear()
        self._answer_complete()

    def next_due_ms(self) -> int | None:
        """When :meth:`tick` has something to do."""
        return min((question.until_ms for question in self._open.values()), default=None)

    def close(self) -> None:
        """Answer all, with what is known."""
        for question in self._open.values():
            question.awaited.clear()
        self._answer_complete()

    def _answer_complete(self) -> None:
        for request, question in list(self._open.items()):
            if not question.awaited:
                del self._open[request]
                question.answer(Report(True, self._status()))
