"""How long somebody is still willing to wait."""

from __future__ import annotations

from jsonqueue.clock import Clock
from jsonqueue.errors import BrokerUnavailable

__all__ = ["Patience"]


class Patience:
    """A timeout that runs through several waits. ``seconds`` None: for ever."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._until_ms = 0.0
        self._told: BrokerUnavailable | None = None
        self.renew()

    def renew(self) -> None:
        """Begin anew: there was progress."""
        if self.seconds is not None:
            self._until_ms = self._clock.monotonic_ms() + self.seconds * 1000

    @property
    def left(self) -> float | None:
        """Seconds left, never negative; None: for ever."""
        if self.seconds is None:
            return None
        return max(0.0, (self._until_ms - self._clock.monotonic_ms()) / 1000)

    def left_of(self, most: float) -> float:
        """Seconds left, at most ``most``."""
        left = self.left
        return most if left is None else min(left, most)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.left == 0.0

    def reason(self, error: BrokerUnavailable) -> BrokerUnavailable:
        """What to give as the reason: this; or what was last told before, if this only came of time running out: at the end of a patience
        hardly any is left to be told why."""
        if not error.silent or self._told is None:
            self._told = error
        return self._told.with_traceback(None)

    def forget_reason(self) -> None:
        """There is no reason any more: it worked."""
        self._told = None
