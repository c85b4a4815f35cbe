"""Every run of the tests: thousands of worlds, each with its own size and its own faults, all judges on.

How many: ``JSONQUEUE_WORLDS`` (2,000 by default, in parts that run beside each other). The long run is ``scripts/simulate-long``.
"""

from __future__ import annotations

import os
from collections import Counter

import msgspec
import pytest

from jsonqueue.simulation import Verdict, draw, reproduce, run_seeds
from jsonqueue.simulation.scenario import FAULTS

WORLDS = int(os.environ.get("JSONQUEUE_WORLDS", "2000"))
PARTS = 8
EVENTS_A_WORLD = 1_000
"""At least, on average: frames, timers and turns, and operations on the disk."""


def test_no_world_of_a_few_breaks_a_promise() -> None:
    """The first of those that the next test has by the thousand."""
    for verdict in run_seeds(range(40)):
        assert verdict.ok, explained(verdict)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_world_breaks_a_promise(part: int) -> None:
    """Whatever goes wrong, nothing acknowledged is lost, doubled, out of order or stuck."""
    size = WORLDS // PARTS
    faults: Counter[str] = Counter()
    events = virtual_ms = 0
    took_s = 0.0
    for verdict in run_seeds(range(part * size, (part + 1) * size)):
        assert verdict.ok, explained(verdict)
        faults.update(verdict.faults)
        events += verdict.events + verdict.operations
        virtual_ms += verdict.virtual_ms
        took_s += verdict.took_s
    if size >= 200:
        assert events >= size * EVENTS_A_WORLD
        assert virtual_ms / 1000 > 1_000 * took_s, "not a thousand times faster than what it simulates"
        missing = {*FAULTS, "dropped", "duplicated", "reordered", "broken"} - faults.keys()
        assert not missing, f"{missing} never happened: the worlds are too kind"


def test_the_worlds_of_a_run_last_for_a_year() -> None:
    """Together, of virtual time, and with all that happens in it; each lasts for as long as its tasks are published, at least."""
    assert sum(draw(seed).spread_us for seed in range(2_000)) / 1_000_000 > 365 * 86_400


def explained(verdict: Verdict) -> str:
    """A failure as a person wants to see it."""
    return "\n".join([*verdict.last, verdict.violation, reproduce(verdict), msgspec.json.encode(verdict.scenario).decode()])
