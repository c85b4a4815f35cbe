"""The only reader of time. Everything else is told what time it is."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "stopwatch"]


class Clock(Protocol):
    """Two clocks, for two purposes; both in milliseconds."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch. It may jump; only run_at, deadlines and what people read rest on it."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds since some start, never backwards. Leases, heartbeats and timeouts rest on it."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


stopwatch = time.perf_counter
"""Seconds since some start, finely: for measuring how long something took."""
