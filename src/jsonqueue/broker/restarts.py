"""Whether a broker that died is started again, and what to say when it is not."""

from __future__ import annotations

from collections import deque

from jsonqueue.broker.child import Child
from jsonqueue.broker.narration import ending
from jsonqueue.channel.control import error_of
from jsonqueue.errors import BrokerFailed, JsonQueueError

__all__ = ["DISK_FAILED", "Restarts"]

DISK_FAILED = 74
"""The exit status of a broker whose disk failed it."""

_FOR_GOOD = frozenset({65, 77, 78})
"""Damage, a folder that is refused, a format that is not known: the next start would find the same."""

_MAX = 3
_WITHIN_MS = 60_000


class Restarts:
    """The deaths of one broker."""

    def __init__(self) -> None:
        self.count = 0
        """How often it was started again."""
        self._died_ms: deque[int] = deque()

    def allowed(self, status: int, now_ms: int) -> bool:
        """Whether it may be started again after it died with this exit status."""
        while self._died_ms and self._died_ms[0] <= now_ms - _WITHIN_MS:
            self._died_ms.popleft()
        self._died_ms.append(now_ms)
        return status not in _FOR_GOOD and len(self._died_ms) <= _MAX

    def verdict(self, child: Child, status: int) -> JsonQueueError:
        """Why it is not: its own last words, if it had any."""
        if child.last_words is not None:
            return error_of(child.last_words)
        return BrokerFailed(child.role, why=f"died {len(self._died_ms)} times within a minute, at last with {ending(status)}")
