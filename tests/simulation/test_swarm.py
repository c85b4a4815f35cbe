"""Every run of the tests: 20,000 worlds, each with its own size and its own faults, all judges on; over 20 million events together.

2,000 are of all sizes and paces, and last for a year of virtual time. The others are short: a few milliseconds, few tasks, many faults. A
processor does two and a half of these in the time of one of those, and runs into twice as many faults a second. How many of each:
``JSONQUEUE_WORLDS`` and ``JSONQUEUE_SHORT_WORLDS``. The long run is ``scripts/simulate-long``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest

from jsonqueue.simulation import Verdict, draw, reproduce, run_seed, run_seeds
from jsonqueue.simulation.scenario import FAULTS

WORLDS = int(os.environ.get("JSONQUEUE_WORLDS", "2000"))
SHORT_WORLDS = int(os.environ.get("JSONQUEUE_SHORT_WORLDS", "18000"))
PARTS, SHORT_PARTS = 8, 24
MANY = 200
"""Worlds from which on their averages say something."""


class Sums:
    """What happened in some worlds, none of which broke a promise."""

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        self.faults: Counter[str] = Counter()
        self.events = 0
        """Frames, timers and turns, and operations on the disk."""
        self.virtual_s = self.took_s = 0.0
        for verdict in verdicts:
            assert verdict.ok, explained(verdict)
            self.faults.update(verdict.faults)
            self.events += verdict.events + verdict.operations
            self.virtual_s += verdict.virtual_ms / 1000
            self.took_s += verdict.took_s

    def require(self, *, events: int, faults: int) -> None:
        """At least so many, and some of each kind."""
        assert self.events >= events
        assert self.faults.total() >= faults
        missing = {*FAULTS, "dropped", "duplicated", "reordered", "broken"} - self.faults.keys()
        assert not missing, f"{missing} never happened: the worlds are too kind"


def test_no_world_of_a_few_breaks_a_promise() -> None:
    """The first of those that the next tests have by the thousand."""
    Sums(run_seeds(range(30)))
    Sums(run_seed(seed, draw(seed, short=True)) for seed in range(30))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_world_breaks_a_promise(part: int) -> None:
    """Whatever goes wrong, nothing acknowledged is lost, doubled, out of order or stuck."""
    size = WORLDS // PARTS
    sums = Sums(run_seeds(range(part * size, (part + 1) * size)))
    if size >= MANY:
        sums.require(events=size * 2_000, faults=size * 20)
        assert sums.virtual_s > 1_000 * sums.took_s, "not a thousand times faster than what it simulates"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", range(SHORT_PARTS))
def test_no_short_world_breaks_a_promise(part: int) -> None:
    """The same, where nearly everything happens while something else goes wrong."""
    size = SHORT_WORLDS // SHORT_PARTS
    sums = Sums(run_seed(seed, draw(seed, short=True)) for seed in range(part * size, (part + 1) * size))
    if size >= MANY:
        sums.require(events=size * 900, faults=size * 19)


def test_the_worlds_of_a_run_last_for_a_year() -> None:
    """Together, of virtual time, and with all that happens in it; each lasts for as long as its tasks are published, at least."""
    assert sum(draw(seed).spread_us for seed in range(2_000)) / 1_000_000 > 365 * 86_400


def explained(verdict: Verdict) -> str:
    """A failure as a person wants to see it."""
    return "\n".join([*verdict.last, verdict.violation, reproduce(verdict), msgspec.json.encode(verdict.scenario).decode()])
