"""Whether a broker that died is started again, when, and what to say when it is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from jsonqueue.broker.child import Child
from jsonqueue.broker.narration import ending
from jsonqueue.channel.control import error_of
from jsonqueue.errors import BrokerFailed, JsonQueueError, words_of
from jsonqueue.event import EventOwner

__all__ = ["DISK_FAILED", "Postponed", "Restarts"]

DISK_FAILED = 74
"""The exit status of a broker whose disk failed it."""

_FOR_GOOD = frozenset({65, 77, 78})
"""Damage, a folder that is refused, a format that is not known: a start that found it would find it again."""

_MAX = 3
_WITHIN_MS = 60_000

_FIRST_PAUSE_MS = 100
_PAUSE_MAX_MS = 5_000


class Postponed:
    """Brokers that could not be started for want of anything: why, and when that is tried again. It is no death, and never given up."""

    def __init__(self) -> None:
        self.why: dict[EventOwner, str] = {}
        self._due_ms = 0
        self._pause_ms = 0

    def postpone(self, roles: Iterable[EventOwner], error: BaseException, now_ms: int) -> None:
        """Try these again after a pause, which grows."""
        for role in roles:
            self.why[role] = f"it cannot be started for now: {getattr(error, 'strerror', None) or words_of(error)}"
        self._pause_ms = min(max(2 * self._pause_ms, _FIRST_PAUSE_MS), _PAUSE_MAX_MS)
        self._due_ms = now_ms + self._pause_ms

    def next_due_ms(self) -> int | None:
        """When the next try is due, if any."""
        return self._due_ms if self.why else None

    def take_due(self, now_ms: int) -> list[EventOwner]:
        """Whom to start now."""
        return list(self.why) if self.why and now_ms >= self._due_ms else []

    def started(self, role: EventOwner) -> None:
        """It has a process again."""
        self.why.pop(role, None)
        if not self.why:
            self._pause_ms = 0


class Restarts:
    """The deaths of one broker."""

    def __init__(self) -> None:
        self.count = 0
        """How often it was started again."""
        self._died_ms: deque[int] = deque()

    def allowed(self, status: int, now_ms: int, *, served: bool) -> bool:
        """Whether it may be started again after it died with this exit status.

        ``served``: it had been up by then. What looked like damage to it may be a log that somebody removed while the other broker, which
        writes it, still has it open. That one saves it when its sibling starts anew; and what is damage is found again by that start.
        """
        while self._died_ms and self._died_ms[0] <= now_ms - _WITHIN_MS:
            self._died_ms.popleft()
        self._died_ms.append(now_ms)
        return (served or status not in _FOR_GOOD) and len(self._died_ms) <= _MAX

    def verdict(self, child: Child, status: int) -> JsonQueueError:
        """Why it is not: its own last words, if it had any."""
        if child.last_words is not None:
            return error_of(child.last_words)
        return BrokerFailed(child.role, why=f"died {len(self._died_ms)} times within a minute, at last with {ending(status)}")
