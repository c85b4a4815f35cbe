"""Small worlds, walked completely: no interleaving breaks a promise; with a rule taken away, one does, and the shortest trace is told."""

from __future__ import annotations

import re

import pytest

from jsonqueue.errors import SyncFailed
from jsonqueue.simulation.scopes import CAP, CAPPED, LONG, SHORT
from jsonqueue.simulation.small import Faults, Scope, State, explore
from jsonqueue.simulation.still import EMPTY, GROUPS, StillFiles, cuts_of, lost_of
from jsonqueue.simulation.verdict import Violation
from simulation.holes import HOLES, IMMUNE, Hole, changed, run

NAMES = list(SHORT)


@pytest.mark.parametrize("name", ["a clean stop and a power cut", "retired, and published again, two checkpoints"])
def test_no_interleaving_of_a_little_world_breaks_a_promise(name: str) -> None:
    """Two of the short list that are walked in a moment; the next test has them all."""
    assert explore(SHORT[name]).complete


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("half", "states_min"), [(0, 195_000), (1, 135_000)])
def test_no_interleaving_breaks_a_promise(half: int, states_min: int) -> None:
    """Every world of the short list is explored to its end; and from every one of its states a fair schedule ends with everything done."""
    states = 0
    for name in NAMES[half::2]:
        explored = explore(SHORT[name], states_max=200_000)
        assert explored.complete, name
        states += explored.states
    assert states >= states_min


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_three_tasks_and_two_crashes_as_far_as_the_cap() -> None:
    """Two publishers, two consumers, three tasks, a kill and a power cut: every history of twelve steps, 200,000 distinct states.

    A cap is no end: what takes more steps is not walked. But from each of these states, too, a fair schedule ends with everything done.
    """
    explored = explore(LONG[CAPPED], states_max=CAP)
    assert CAP <= explored.states < CAP + 1_000
    assert explored.depth > 12
    assert not explored.complete, "then it belongs to those that are explored to their end"


@pytest.mark.slow
@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: re.sub(r"\W+", "-", f"{hole.hole} {hole.what}".strip()))
def test_a_rule_taken_away_is_missed(hole: Hole) -> None:
    """The exploration finds the hole without any luck, and says which steps lead to it."""
    found = run(hole)
    assert found, "it went unseen"
    assert "open pb" in found.splitlines()[1]


@pytest.mark.slow
@pytest.mark.parametrize("hole", IMMUNE, ids=lambda hole: hole.hole)
def test_a_rule_that_nothing_rests_on_yet(hole: Hole) -> None:
    """With tasks dispatched only when they are durable, this hole is none: its world is explored to its end without the rule."""
    assert explore(hole.scope, explorer=hole.explorer).complete


def test_a_change_is_taken_back() -> None:
    """A hole is there while it is looked for, and not for the tests that follow."""
    hole = next(hole for hole in HOLES if hole.old)
    with changed(hole.file, hole.old, hole.new), pytest.raises(Violation):
        explore(hole.scope)
    assert explore(hole.scope).complete


def test_a_world_that_is_stuck_is_seen() -> None:
    """Nothing false is ever answered in it: only that a fair schedule leads nowhere gives it away."""
    hole = next(hole for hole in HOLES if hole.what == "a restart forgets what was ready")
    found = run(hole)
    assert found.startswith("deadlock")
    assert "then: " in found


def test_states_are_values() -> None:
    """The same world explored twice is the same, state by state."""
    scope = Scope(((("t1",),),), 1, Faults(kills=1))
    assert explore(scope) == explore(scope)
    assert hash(State(*range(len(State._fields))))  # type: ignore[arg-type]


def written(*syncs: bool) -> StillFiles:
    """A log with a batch of three bytes for each, synced or not."""
    files = StillFiles(1)
    files.thaw((EMPTY,) * len(GROUPS))
    handle = files.open("published-1-1.jsonl", create=True)
    for sync in syncs:
        files.write_at(handle, files.size(handle), b"abc")
        if sync:
            files.sync(handle)
            files.sync_folder()
    return files


def test_a_power_cut_leaves_names_and_bytes_apart() -> None:
    """What was not synced is lost or kept, or half of it; what was synced is there."""
    published = dict(written(True, False).changes())[0]
    left = {(plane.names != (), plane.sheets[0].volatile if plane.sheets else b"") for plane in cuts_of(published, torn=True)}
    assert left == {(True, b"abc"), (True, b"abcabc"), (True, b"abca")}
    fresh = dict(written(False).changes())[0]
    assert lost_of(fresh) == EMPTY
    assert {plane.sheets[0].volatile for plane in cuts_of(fresh) if plane.names} == {b"", b"abc"}


def test_a_second_fsync_after_a_failed_one_means_nothing() -> None:
    """The pages count as clean: it reports success, and a power cut takes what was never written."""
    files = written(True, False)

    def fail(op: object) -> None:
        raise SyncFailed("no")

    files.before = fail
    with pytest.raises(SyncFailed):
        files.sync(100)
    files.before = lambda op: None
    again = files.open("published-1-1.jsonl")
    files.sync(again)
    assert files.read(again, 0, 99) == b"abcabc"
    assert lost_of(dict(files.changes())[0]).sheets[0].volatile == b"abc"
    files.write_at(again, files.size(again), b"xyz")
    files.sync(again)
    assert lost_of(dict(files.changes())[0]).sheets[0].volatile == b"abc\0\0\0xyz"
