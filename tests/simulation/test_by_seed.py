"""The planted bugs of the fault work are found by seeds; which, docs/track-record.md lists."""

from __future__ import annotations

import re

import pytest

from faults.planted import BUGS, Bug
from simulation.by_seed import PAGE, SEEDS, kept, shown, table, why_unseen
from simulation.holes import changed

FOUND = [bug for bug in BUGS if bug.name in kept()]


@pytest.mark.slow
@pytest.mark.parametrize("bug", FOUND, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_the_seed_that_is_listed_finds_the_bug(bug: Bug) -> None:
    """One world, with the bug and without it."""
    seen = kept()[bug.name]
    assert seen["seed"] < SEEDS
    with changed(bug.file, bug.old, bug.new):
        assert shown(bug, seen["seed"]).partition(":")[0] == seen["kind"]
    assert not shown(bug, seen["seed"])


def test_every_bug_is_found_or_it_is_said_why_not() -> None:
    """Nothing is left out in silence, and the page says what the tests repeat."""
    unexplained = [bug.name for bug in BUGS if bug.name not in kept() and not why_unseen(bug)]
    assert not unexplained
    assert len(FOUND) >= 40
    assert table() in PAGE.read_text()
