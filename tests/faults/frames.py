"""Malformed frames without end, and no broker ends or grows of them.

Each million is a storm of its own: both brokers on fresh files, warmed up by the first tenth of it.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

from broker.storm import Storm
from faults.lanes import Lane, arguments

__all__ = ["main"]

_STORM = 1_000_000
_GROWTH_MAX_BYTES = 16 * 1024 * 1024


def _storm(lane: Lane, folder: Path, seed: int, frames: int) -> None:
    storm = Storm(seed, folder)
    try:
        warm = storm.rage(frames // 10)
        before = _resident_bytes()
        count = storm.rage(frames - warm.refused)
        grown = _resident_bytes() - before
        lane.counts["malformed frames"] += warm.refused + count.refused
        lane.counts["odd events"] += warm.stepped + count.stepped
        lane.counts["answers"] += count.answers
        lane.counts["KiB grown at the most"] = max(lane.counts["KiB grown at the most"], grown // 1024)
        assert grown < _GROWTH_MAX_BYTES, f"{grown:,} bytes grown"
        # And yet work went on.
        assert storm.publisher_broker.counters()["published"] > frames // 10_000, storm.publisher_broker.counters()
        assert storm.consumer_broker.counters()["deliveries"] > frames // 10_000, storm.consumer_broker.counters()
    finally:
        storm.close()


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    options = arguments("malformed frames", frames=_STORM)
    lane = Lane(options)
    if sys.platform != "linux":
        sys.exit("it reads its memory from /proc")
    for number in range(-(-options.frames // _STORM)):
        if lane.is_mine(number) and not lane.over:
            frames = min(_STORM, options.frames - number * _STORM)
            seed = options.seed * 1_000_000 + number
            with tempfile.TemporaryDirectory(prefix="jsonqueue-") as folder:
                lane.attempt(f"storm {seed}", lambda f=frames, s=seed, at=folder: _storm(lane, Path(at) / "queue", s, f))
    lane.end()


if __name__ == "__main__":
    main()
