"""Planted bugs are found: a sample in each run of the tests, all of them by ``scripts/planted-bugs``."""

from __future__ import annotations

import re

import pytest

from faults.planted import BUGS, HARNESSES, SOURCE, Bug, try_out

SAMPLE = [
    bug
    for bug in BUGS
    if bug.name
    in {
        "a refused publish stays known, so that its retry is a duplicate",
        "the archive is not cut to what is committed of it",
        "no checksum of the header",
        "a failed fsync is tried again",
        "salvage does not list the lines it cannot read",
        "a missing queue.json is an empty queue",
        "segments are deleted whatever queue.json holds",
        "a late forget message drops a new task's id",
    }
]


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("bug", SAMPLE, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """By the harness that is named beside it, which would be worth nothing if it let it pass."""
    verdict = try_out(bug)
    assert verdict.found, verdict.words


def test_every_bug_can_still_be_planted() -> None:
    """The line that it changes is there, once; names are unique; there are enough of them, from every harness."""
    for bug in BUGS:
        assert (SOURCE / bug.file).read_text().count(bug.old) == 1, bug.name
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 50
    assert {bug.harness for bug in BUGS} == set(HARNESSES)
    assert len(SAMPLE) == 8
