"""How long somebody is still willing to wait."""

from __future__ import annotations

from jsonqueue.clock import Clock

__all__ = ["Patience"]


class Patience:
    """A timeout that runs through several waits. ``seconds`` None: for ever."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._until_ms = 0.0
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
