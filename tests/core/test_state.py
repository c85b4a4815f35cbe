"""Records and what they make of a task."""

from __future__ import annotations

import pytest
from msgspec import Raw

from core.stage import START_MS, given
from jsonqueue.core.records import Cancelled, Completed, Died, Due, Failed, Leased, Progress, Replayed, Retired, Unblocked, Unleased
from jsonqueue.core.state import BrokenHistory, QueueState, ids_of
from jsonqueue.core.transitions import TRANSITIONS, mermaid
from jsonqueue.task import Outcome, TaskStatus


@pytest.fixture
def state() -> QueueState:
    state = QueueState()
    state.publish([given("a", {"x": 1})], first=1, at_ms=START_MS)
    return state


@pytest.mark.parametrize(
    ("options", "status"),
    [({}, "pending"), ({"run_at_ms": START_MS}, "pending"), ({"run_at_ms": START_MS + 1}, "scheduled"), ({"after": ("x",)}, "blocked")],
)
def test_how_a_task_begins(options: dict[str, object], status: str) -> None:
    (task,) = QueueState().publish([given("a", **options)], first=7, at_ms=START_MS)
    assert (task.number, task.status, task.published_ms) == (7, status, START_MS)


def test_an_id_is_published_once(state: QueueState) -> None:
    with pytest.raises(BrokenHistory, match="task a, which is published already"):
        state.publish([given("a")], first=2, at_ms=START_MS)


_MISFITS: list[Progress] = [
    Completed(["a"]),
    Failed("a", "", 0),
    Unleased(["a"], Outcome.LOST),
    Due(["a"]),
    Unblocked(["a"]),
    Replayed(["a"]),
    Retired(["a"]),
    Leased("c", 1, ["nope"]),
    Completed(["nope"]),
    Died(["nope"], "why"),
    Cancelled(["nope"], "why"),
]


@pytest.mark.parametrize("record", _MISFITS, ids=lambda record: f"{type(record).__name__}-{','.join(ids_of(record))}")
def test_a_record_that_does_not_fit_is_refused(state: QueueState, record: Progress) -> None:
    """A bug or damage: nothing may rest on it."""
    found = "unknown" if "nope" in ids_of(record) else "pending"
    with pytest.raises(BrokenHistory, match=f"^{type(record).__name__} does not fit task .*, which is {found}$"):
        state.apply(record, at_ms=START_MS)


def test_two_leases_at_once_are_impossible(state: QueueState) -> None:
    state.apply(Leased("c@1", 5, ["a"]), at_ms=START_MS)
    with pytest.raises(BrokenHistory, match="in_progress"):
        state.apply(Leased("c@2", 6, ["a"]), at_ms=START_MS)


_LEASED = Leased("c@1", 5, ["a"])
_SUSPECT = [_LEASED, Unleased(["a"], Outcome.LOST, suspect=True), Leased("c@2", 6, ["a"])]
_DIED = Died(["a"], "enough", Outcome.FAILED, "Traceback\nno")


@pytest.mark.parametrize(
    ("records", "expected", "ended"),
    [
        ([*_SUSPECT, Completed(["a"])], {"status": "completed", "suspect": False, "reason": "", "finished_ms": 9}, ("completed", "")),
        (
            [*_SUSPECT, Failed("a", "oh\nno", 0)],
            {"status": "pending", "suspect": False, "reason": "no", "attempt": 2},
            ("failed", "oh\nno"),
        ),
        ([_LEASED, Failed("a", "no", 10)], {"status": "scheduled", "run_at_ms": 10}, ("failed", "no")),
        ([_LEASED, Unleased(["a"], Outcome.EXPIRED)], {"status": "pending", "suspect": False, "attempt": 1}, ("expired", "")),
        ([_LEASED, _DIED], {"status": "dead", "reason": "enough", "finished_ms": 9}, ("failed", "Traceback\nno")),
        ([_LEASED, Died(["a"], "lost", Outcome.LOST)], {"status": "dead", "reason": "lost"}, ("lost", "")),
        ([_LEASED, Cancelled(["a"], "no use")], {"status": "cancelled", "reason": "no use", "finished_ms": 9}, ("cancelled", "no use")),
        (
            [_LEASED, _DIED, Replayed(["a"])],
            {"status": "pending", "reason": "", "attempt": 0, "finished_ms": 0, "run_at_ms": 0, "deadline_ms": 0, "suspect": False},
            ("failed", "Traceback\nno"),
        ),
    ],
    ids=["completed", "failed", "retried later", "expired", "died of an error", "died of a loss", "cancelled while it ran", "replayed"],
)
def test_what_a_record_makes_of_a_task_and_of_its_attempt(
    state: QueueState, records: list[Progress], expected: dict[str, object], ended: tuple[str, str]
) -> None:
    """Nobody holds it any more; the attempt is in its history, with how it ended; the rest is as the record says."""
    for record in records:
        state.apply(record, at_ms=9)
    task = state.tasks["a"]
    assert (task.token, task.consumer, task.started_ms) == (0, "", 0)
    assert {name: getattr(task, name) for name in expected} == expected
    assert (task.history[-1].outcome, task.history[-1].error) == ended
    assert task.history[-1].ended_ms == 9


def test_a_null_result_is_no_result(state: QueueState) -> None:
    """It is left out of the file; the status says that it completed."""
    state.publish([given("b")], first=2, at_ms=START_MS)
    state.apply(Leased("c@1", 5, ["a", "b"]), at_ms=START_MS)
    state.apply(Completed(["a", "b"], [Raw(b"null"), Raw(b"0")]), at_ms=START_MS)
    assert state.tasks["a"].result is None
    assert bytes(state.tasks["b"].result or b"") == b"0"


def test_history_is_bounded(state: QueueState) -> None:
    """Of a task that is tried for ever the last hundred attempts are kept; deliveries that came back unstarted are none."""
    for n in range(150):
        state.apply(Leased("c@1", n + 1, ["a"]), at_ms=START_MS)
        state.apply(Failed("a", "no", 0), at_ms=START_MS)
    assert [past.attempt for past in state.tasks["a"].history] == list(range(51, 151))
    state.apply(Leased("c@1", 200, ["a"]), at_ms=START_MS)
    state.apply(Unleased(["a"], Outcome.RETURNED, counted=False), at_ms=START_MS)
    assert state.tasks["a"].history[-1].attempt == 150


def test_a_task_that_dies_waiting_has_no_attempt_for_it(state: QueueState) -> None:
    state.apply(Died(["a"], "too late"), at_ms=START_MS)
    assert (state.tasks["a"].reason, state.tasks["a"].history) == ("too late", ())


def test_the_table_is_drawn_whole() -> None:
    """Every move of the table is an arrow of the diagram."""
    diagram = mermaid()
    assert "pending --> in_progress: leased" in diagram
    assert "completed --> [*]: retired" in diagram
    assert diagram.count("-->") == 3 + sum(len(before) * max(1, len(after)) for before, after in TRANSITIONS.values())
    assert all(status in diagram for status in TaskStatus)
