"""Each planted bug is found, by the seed that is listed with it; without the bug the same world is sound."""

from __future__ import annotations

import pytest

from jsonqueue.simulation import run_seed
from simulation.planted import BUGS

BUDGET = 500
"""Worlds within which a planted bug must be found: half a minute, and a quarter of those of every run of the tests."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    """The judges see it, within the budget."""
    bug = BUGS[name]
    assert bug.seed < BUDGET
    with bug.plant() as cast:
        found = run_seed(bug.seed, bug.scenario, cast=cast)
    assert not found.ok, "it went unseen"
    sound = run_seed(bug.seed, bug.scenario)
    assert sound.ok, sound.violation
