"""A broker process on a machine whose wall clock jumps: what test_clocks starts in place of the real entry point.

How far it is off is the time of change of a file beside the queue, from the year 2000 on: to look at that opens nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jsonqueue.broker import process
from jsonqueue.clock import SystemClock

__all__ = ["clock_of", "jump", "wall_ms"]

_RIGHT_MS = 946_684_800_000


def clock_of(queue_dir: Path) -> Path:
    """The file that says how far the clock is off, for the brokers of this queue."""
    return queue_dir.parent / "clock"


def jump(clock: Path, off_ms: int) -> None:
    """From now on the wall clock is off by so much."""
    if not clock.exists():
        clock.touch()  # Whoever is there already must not see it touched: for a moment the clock would be decades ahead.
    os.utime(clock, ns=(0, (_RIGHT_MS + off_ms) * 1_000_000))


def wall_ms(clock: Path) -> int:
    """What the wall clock says."""
    return time.time_ns() // 1_000_000 + clock.stat().st_mtime_ns // 1_000_000 - _RIGHT_MS


def main() -> None:
    clock = clock_of(Path(sys.argv[2]))
    SystemClock.wall_ms = lambda self: wall_ms(clock)
    process.main()
