"""How long somebody is still willing to wait."""

from __future__ import annotations

from jsonqueue.clock import Clock
from jsonqueue.errors import BrokerUnavailable
from jsonqueue.waits import FOR_EVER_S

__all__ = ["Patience", "is_longer", "require_timeout"]


def is_longer(timeout: float | None, seconds: float) -> bool:
    """Whether a timeout (None: for ever) is longer than so many seconds. Raises ``TypeError`` for what is none."""
    try:
        return timeout is None or timeout > seconds
    except TypeError:
        raise TypeError(f"timeout is {timeout!r}: give seconds, or None") from None


def require_timeout(seconds: float | None) -> float | None:
    """The timeout, if it is one: seconds, or None for ever. Raises ``TypeError`` or ``ValueError``."""
    if not (is_longer(seconds, 0) or seconds == 0):
        raise ValueError(f"timeout is {seconds!r}, and must be at least 0 seconds (or None: for ever)")
    return seconds


class Patience:
    """A timeout that runs through several waits. ``seconds`` None (or more than a machine lives): for ever."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        self.seconds = None if is_longer(seconds, FOR_EVER_S) else seconds
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
