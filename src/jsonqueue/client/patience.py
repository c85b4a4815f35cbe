"""How long somebody is still willing to wait."""

from __future__ import annotations

from jsonqueue.clock import Clock
from jsonqueue.errors import BrokerUnavailable
from jsonqueue.waits import FOR_EVER_S

__all__ = ["Patience", "require_timeout"]


def require_timeout(seconds: float | None) -> float | None:
    """The timeout, if it is one: seconds, or None for ever. Raises ``TypeError`` or ``ValueError``."""
    try:
        is_one = seconds is None or seconds >= 0
    except TypeError:
        raise TypeError(f"timeout is {seconds!r}: give seconds, or None") from None
    if not is_one:
        raise ValueError(f"timeout is {seconds!r}, and must be at least 0 seconds (or None: for ever)")
    return seconds


class Patience:
    """A timeout that runs through several waits. ``seconds`` None (or more than a machine lives): for ever."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        try:
            self.seconds = None if seconds is not None and seconds > FOR_EVER_S else seconds
        except TypeError:
            raise TypeError(f"timeout is {seconds!r}: give seconds, or None") from None
        self._clock = clock
        self._until_ms: float | None = None
        self._told: BrokerUnavailable | None = None

    def renew(self) -> None:
        """Begin anew, with the next look at what is left: there was progress."""
        self._until_ms = None

    @property
    def left(self) -> float | None:
        """Seconds left, never negative; None: for ever."""
        if self.seconds is None:
            return None
        now_ms = self._clock.monotonic_ms()
        if self._until_ms is None:
            self._until_ms = now_ms + self.seconds * 1000
        return max(0.0, (self._until_ms - now_ms) / 1000)

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
