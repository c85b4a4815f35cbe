"""Small worlds, walked completely: no interleaving breaks a promise; with a rule taken away, one does."""

from __future__ import annotations

import pytest

from jsonqueue.simulation.small import explore
from jsonqueue.simulation.verdict import Violation
from simulation.planted import BUGS


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_hundred_thousand_states_and_no_hole() -> None:
    """2 publishers, 2 consumers, 3 tasks, 2 crashes, at every operation."""
    explored = explore(states_max=200_000)
    assert explored.states >= 200_000
    assert explored.transitions > explored.states


def test_a_smaller_world_is_walked_to_its_end() -> None:
    """Of 1 publisher, 1 consumer, 1 task and 1 crash, nothing is left to explore."""
    explored = explore(writes=(("t1",),), consumers=1, crashes=1)
    assert explored.complete
    assert explored.states > 300


@pytest.mark.parametrize(
    "name",
    [
        "publish answered without fsync",
        "publish answered before it is stored",
        "token without a fresh epoch",
    ],
)
def test_a_rule_taken_away_is_missed(name: str) -> None:
    """The exploration finds it without any luck."""
    with BUGS[name].plant() as cast, pytest.raises(Violation):
        explore(writes=(("t1",),), consumers=1, crashes=1, cast=cast)
