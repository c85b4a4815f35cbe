"""Who runs what, and what becomes of it: transcripts of events and what the dispatcher does about them."""

from __future__ import annotations

import pytest
from msgspec import Raw

from core.stage import START_MS, Stage, answers, assigned, given, stale, welcome, whats
from jsonqueue.config import Config
from jsonqueue.core.dispatching import first_token
from jsonqueue.core.waiting import Seat
from jsonqueue.errors import BrokerFailed
from jsonqueue.event import Assign, Changed, Complete, Fail, Failure, Join, Look, Replay, Result, Revoke, Settled, Watch, Welcome
from jsonqueue.retry import Exponential, Linear, Never

_ONE = first_token(1)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def _failure(held: tuple[str, int], error: str = "ValueError: no", **options: object) -> Failure:
    return Failure(held[0], held[1], error, **options)  # type: ignore[arg-type]


# ── handing out ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_goes_to_who_waits_and_is_settled_by_its_token(stage: Stage) -> None:
    """Publish, deliver, complete: one record each, and an answer for the completion."""
    assert welcome(stage.join(1)).label == "c1@101"
    turn = stage.publish("a")
    assert whats(turn) == ["leased"]
    assert assigned(turn) == [("a", _ONE)]
    turn = stage.complete(1, ("a", _ONE), result={"ok": 1})
    assert whats(turn) == ["completed"]
    assert answers(turn, Settled) == [Settled(7)]
    task = stage.task("a")
    assert (task.status, bytes(task.result or b""), task.attempt, task.token) == ("completed", b'{"ok":1}', 1, 0)
    stage.check()


def test_who_joins_is_welcomed_before_its_first_task_and_before_the_disk_has_it(stage: Stage) -> None:
    """A task that runs needs heartbeats, and there are none without a Welcome: so that waits for no sync that the task does not."""
    stage.publish("a")
    turn = stage.join(1)
    assert whats(turn) == ["leased"]
    assert [(who, type(event)) for who, event in turn.pushes] == [(1, Welcome), (1, Assign)]
    assert turn.answers == []


def test_in_its_drain_nothing_is_handed_out_and_everything_is_heard(stage: Stage) -> None:
    """A broker that is about to end takes outcomes and returns, and starts nothing that it could not see the end of."""
    assert not stage.dispatcher.hungry
    stage.join(1, 3)
    first, second = assigned(stage.publish("a", "b"))
    assert stage.dispatcher.hungry
    stage.dispatcher.drain()
    assert not stage.dispatcher.hungry
    stage.publish("c")
    assert stage.dispatcher.held == 2
    turn = stage.complete(1, first, want=2)
    assert whats(turn) == ["completed"]
    assert answers(turn, Settled) == [Settled(7)]
    assert whats(stage.give_back(1, second, want=2)) == ["unleased"]
    assert stage.dispatcher.held == 0
    assert [stage.task(task_id).status for task_id in "abc"] == ["completed", "pending", "pending"]
    assert assigned(stage.join(2, 5)) == []
    stage.check()


def test_higher_priority_first_then_publish_order(stage: Stage) -> None:
    """Also for tasks that come back: a retry does not go to the end of its lane."""
    stage.publish("a", given("b", priority=5), "c", given("d", priority=5), given("e", priority=-1))
    turn = stage.join(1, 2)
    held = assigned(turn)
    assert [task_id for task_id, _ in held] == ["b", "d"]
    turn = stage.give_back(1, *held, want=5)
    assert [task_id for task_id, _ in assigned(turn)] == ["b", "d", "a", "c", "e"]
    stage.check()


def test_each_delivery_has_a_token_of_its_own(stage: Stage) -> None:
    """Even when an attempt is not counted twice."""
    stage.publish("a")
    first = assigned(stage.join(1))
    second = assigned(stage.give_back(1, *first))
    assert second[0][1] > first[0][1] == (1 << 32) + 1, "the epoch, and which of its deliveries it is"
    assert stage.task("a").attempt == 1


def test_a_broker_that_has_given_out_all_tokens_of_its_epoch_gives_out_none_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and the next one goes on under an epoch of its own: a token is never used again, also after billions of deliveries."""
    monkeypatch.setattr("jsonqueue.core.dispatching._EPOCH_BITS", 3)
    stage = Stage()
    stage.publish(*"abcdefgh")
    held = assigned(stage.join(1, 7))
    assert [token for _, token in held] == list(range(0o11, 0o20))
    with pytest.raises(BrokerFailed, match=r"all tokens of its epoch"):
        stage.join(2)
    after = stage.restarted(epoch=2)
    assert assigned(after.join(2)) == [("h", 0o21)]
    after.check()


def test_a_short_queue_is_shared_among_all_who_wait(stage: Stage) -> None:
    """The first who asks does not get all of it."""
    for peer in (1, 2, 3):
        stage.join(peer, 100)
    turn = stage.publish(*[f"t{n}" for n in range(6)])
    assert [len(assigned(turn, peer)) for peer in (1, 2, 3)] == [2, 2, 2]


def test_nobody_gets_more_than_it_wants(stage: Stage) -> None:
    stage.join(1, 2)
    assert len(assigned(stage.publish("a", "b", "c", "d"))) == 2


def test_whoever_was_served_is_the_last_to_be_asked(stage: Stage) -> None:
    """Tasks that come one by one do not all go to the first who has room."""
    stage.join(1, 4)
    stage.join(2, 4)
    turns = [stage.publish(f"t{number}") for number in range(4)]
    assert [[peer for peer in (1, 2) if assigned(turn, peer)] for turn in turns] == [[1], [2], [1], [2]]


# ── fencing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_late_completion_is_fenced(stage: Stage) -> None:
    """A task handed on cannot be settled by its first consumer."""
    stage.publish("a")
    old = assigned(stage.join(1))
    stage.later(stage.config.lease_ms)
    new = assigned(stage.join(2))
    assert stale(stage.complete(1, *old, result="late", want=0)) == [old[0][1]]
    assert stage.task("a").status == "in_progress"
    assert stale(stage.complete(2, *new, result="right")) == []
    assert bytes(stage.task("a").result or b"") == b'"right"'
    stage.check()


def test_what_is_stale_keeps_nothing_else_from_completing(stage: Stage) -> None:
    """Wherever in the event it stands."""
    held = assigned(stage.join(1, 3)) or assigned(stage.publish("a", "b", "c"))
    turn = stage.complete(1, ("a", 99), held[0], ("b", 98), held[1], held[2])
    assert set(stage.statuses().values()) == {"completed"}
    assert stale(turn) == [99, 98]
    stage.check()


def test_each_task_has_its_own_result(stage: Stage) -> None:
    """Those that come to nothing are not written where all of them do, and only there."""
    for results in ([b"1", b"null"], [b"null", b"2"], [b"null", b"null"]):
        held = assigned(stage.join(1, 2)) or assigned(stage.publish("a", "b"))
        ids, tokens = [task_id for task_id, _ in held], [token for _, token in held]
        stage.dispatcher.complete(1, Complete(7, ids, tokens, [Raw(result) for result in results], 0), stage.now)
        assert [bytes(stage.task(task_id).result or b"null") for task_id in "ab"] == results
        stage.turn()
        stage.check()
        stage = Stage()


def test_what_was_said_of_earlier_attempts_weighs_as_payload_does() -> None:
    """A consumer is given about 8 MiB. With errors of 16 KiB, some thousand tasks came to more than a frame may hold: it was hung up on."""
    stage = Stage(config=Config(attempts_max=9, retry=Exponential(first_ms=0)))
    stage.publish(*(f"t{number}" for number in range(700)))
    held = assigned(stage.join(1, 700))
    assert len(held) == 700
    turn = stage.fail(1, *(_failure(one, error="x\n" * 8_192) for one in held), want=700)
    assert len(assigned(turn)) == 504  # 16 KiB each, and a little for what else is known of an attempt
    stage.check()


def test_a_consumer_that_joins_again_on_its_pipe_begins_anew(stage: Stage) -> None:
    """What it held and does not name is handed on, like that of one who left."""
    stage.publish("a")
    stage.join(1)
    turn = stage.join(1)
    assert whats(turn) == ["unleased", "leased"]
    assert (stage.task("a").attempt, stage.task("a").history[0].outcome) == (2, "lost")
    stage.check()


def test_a_repeated_completion_is_acknowledged_and_changes_nothing(stage: Stage) -> None:
    """Its first answer may have been lost with the Pipe."""
    stage.publish("a")
    held = assigned(stage.join(1))
    stage.complete(1, *held, result=1)
    turn = stage.complete(1, *held, result=2)
    assert turn.records == []
    assert stale(turn) == []
    assert bytes(stage.task("a").result or b"") == b"1"


def test_a_repeated_failure_is_acknowledged(stage: Stage) -> None:
    stage.publish(given("a", retry=Linear(step_ms=50)))
    held = assigned(stage.join(1))
    stage.fail(1, _failure(held[0]))
    assert stale(stage.fail(1, _failure(held[0]))) == []
    assert stage.task("a").attempt == 1


@pytest.mark.parametrize("settle", ["complete", "fail"])
def test_a_consumer_settles_only_what_it_holds(stage: Stage, settle: str) -> None:
    """Another's token, a made-up one, a token with the wrong id, one who never joined: stale, all of them."""
    stage.publish("a", "b")
    mine, other = assigned(stage.join(1, 2))
    stage.join(2)
    for peer, held in ((2, mine), (1, ("a", 99)), (1, (mine[0], other[1])), (3, mine)):
        turn = stage.complete(peer, held) if settle == "complete" else stage.fail(peer, _failure(held))
        assert stale(turn) == [held[1]]
        assert "completed" not in whats(turn)
    assert stage.statuses() == {"a": "in_progress", "b": "in_progress"}


def test_a_peer_that_never_joined_gets_no_work(stage: Stage) -> None:
    stage.publish("a")
    assert assigned(stage.heartbeat(5, want=10)) == []
    assert assigned(stage.give_back(5, want=10)) == []


@pytest.mark.parametrize(
    ("result", "fault"), [(b'"\xff"', "not valid UTF-8"), (b'"' + b"x" * 99 + b'"', "101 bytes"), (b"[" * 5 + b"]" * 5, "deep")]
)
def test_a_result_that_may_not_be_stored_is_a_failure(result: bytes, fault: str) -> None:
    """Nobody could read it later; the others of the same event complete."""
    stage = Stage(config=Config(retry=Never(), payload_max_bytes=100, depth_max=4))
    stage.publish("a", "b")
    a, b = assigned(stage.join(1, 2))
    stage.dispatcher.complete(1, Complete(7, [a[0], b[0]], [a[1], b[1]], [Raw(result), Raw(b"1")], 2), stage.now)
    stage.turn()
    assert stage.statuses() == {"a": "dead", "b": "completed"}
    assert fault in stage.task("a").reason
    stage.check()


def test_large_payloads_are_handed_out_few_at_a_time(stage: Stage) -> None:
    """However many tasks a consumer wants: what it does not read waits in the broker's memory."""
    stage.join(1, 100)
    turn = stage.publish(*[given(f"t{n}", "x" * 3_000_000) for n in range(5)])
    assert len(assigned(turn)) == 3
    assert len(assigned(stage.complete(1, *assigned(turn), want=100))) == 2
    stage.check()


def test_who_is_full_to_the_byte_gets_no_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seat, "_HELD_MAX_BYTES", len('"full"'))
    stage.publish(given("a", "full"), given("b"))
    held = assigned(stage.join(1, 2))
    assert [task_id for task_id, _ in held] == ["a"]
    assert [task_id for task_id, _ in assigned(stage.complete(1, *held, want=2))] == ["b"]


def test_nobody_may_want_the_whole_queue(stage: Stage) -> None:
    stage.join(1, 1_000_000)
    assert len(assigned(stage.publish(*[f"t{n}" for n in range(5_000)]))) == 4_096


# ── failing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failure_waits_by_its_policy_and_dies_at_its_limit(stage: Stage) -> None:
    """Three attempts, the pauses of the policy between them, then a dead letter with its whole history."""
    stage.publish(given("a", retry=Linear(step_ms=1_000), attempts_max=3))
    held = assigned(stage.join(1))
    for wait in (1_000, 2_000):
        assert whats(stage.fail(1, _failure(held[0]))) == ["failed"]
        assert stage.task("a").status == "scheduled"
        assert stage.later(wait - 1).records == []
        turn = stage.later(1)
        assert whats(turn) == ["due", "leased"]
        held = assigned(turn)
    assert whats(stage.fail(1, _failure(held[0]))) == ["died"]
    task = stage.task("a")
    assert (task.status, task.reason) == ("dead", "attempt 3 of 3 failed: ValueError: no")
    assert [(past.attempt, past.outcome, past.error) for past in task.history] == [(n, "failed", "ValueError: no") for n in (1, 2, 3)]
    stage.check()


def test_never_means_one_attempt(stage: Stage) -> None:
    stage.publish(given("a", retry=Never()))
    assert whats(stage.fail(1, _failure(assigned(stage.join(1))[0]))) == ["died"]


def test_the_handler_may_choose_the_pause_or_none(stage: Stage) -> None:
    """Retry(after) overrides the policy; 0 means at once."""
    stage.publish("a")
    held = assigned(stage.join(1))
    turn = stage.fail(1, _failure(held[0], retry_after_ms=0))
    assert assigned(turn)[0][0] == "a"
    stage.fail(1, _failure(assigned(turn)[0], retry_after_ms=5_000))
    assert stage.task("a").run_at_ms == START_MS + 5_000
    stage.check()


def test_the_handler_may_give_up(stage: Stage) -> None:
    stage.publish("a")
    stage.fail(1, _failure(assigned(stage.join(1))[0], error="not wanted", cancel=True))
    assert (stage.task("a").status, stage.task("a").reason) == ("cancelled", "not wanted")


def test_no_attempt_starts_at_or_after_the_deadline(stage: Stage) -> None:
    """Waiting, it dies there; failing, it dies if the next attempt would come too late."""
    stage.publish(given("waits", deadline_ms=START_MS + 500), given("fails", deadline_ms=START_MS + 500, retry=Linear(step_ms=600)))
    assert whats(stage.later(500)) == ["died"]
    assert stage.statuses() == {"waits": "dead", "fails": "dead"}

    stage.publish(given("late", deadline_ms=stage.wall_ms + 500, retry=Linear(step_ms=600)))
    held = assigned(stage.join(1))
    stage.fail(1, _failure(held[0]))
    assert "deadline comes before the next" in stage.task("late").reason
    stage.check()


def test_a_task_that_runs_over_its_deadline_may_still_complete_but_not_come_back(stage: Stage) -> None:
    stage.publish(given("a", deadline_ms=START_MS + 500), given("b", deadline_ms=START_MS + 500))
    a, b = assigned(stage.join(1, 2))
    assert stage.later(600).records == []
    stage.complete(1, a, want=2)
    turn = stage.give_back(1, b, want=2)
    assert whats(turn) == ["unleased", "died"]
    assert stage.statuses() == {"a": "completed", "b": "dead"}
    stage.check()


# ── consumers that vanish ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dead_consumers_task_is_delivered_again_at_once(stage: Stage) -> None:
    """It held one task: that attempt counts."""
    stage.publish("a")
    stage.join(1)
    stage.join(2)
    turn = stage.leave(1)
    assert whats(turn) == ["unleased", "leased"]
    assert stage.task("a").attempt == 2
    assert stage.task("a").history[0].outcome == "lost"
    stage.check()


def test_a_poison_task_dies_and_costs_the_others_nothing(stage: Stage) -> None:
    """It kills whoever holds it. Everything else completes in its first attempt."""
    names = ["a", "b", "poison", "c"]
    stage.publish(*names)
    killed = 0
    for peer in range(1, 50):
        if set(stage.statuses().values()) <= {"completed", "dead"}:
            break
        held = assigned(stage.join(peer, 10))
        while held:
            if any(task_id == "poison" for task_id, _ in held):
                killed += 1
                stage.leave(peer)
                break
            held = assigned(stage.complete(peer, *held, want=10))
    assert stage.statuses() == {"a": "completed", "b": "completed", "poison": "dead", "c": "completed"}
    assert killed == 1 + stage.config.attempts_max
    assert [stage.task(name).attempt for name in "abc"] == [1, 1, 1]
    assert "consumer was lost in attempt 3 of 3" in stage.task("poison").reason
    stage.check()


def test_a_suspect_is_delivered_alone_and_waits_for_an_idle_consumer(stage: Stage) -> None:
    """A busy consumer gets nothing more until it is idle; then the suspect, alone; then the rest."""
    stage.publish("a", "b")
    stage.join(1, 2)
    stage.leave(1)
    assert stage.task("a").suspect
    assert stage.task("b").suspect
    stage.publish("c", "d", "e")
    turn = stage.join(2, 2)
    assert [task_id for task_id, _ in assigned(turn)] == ["a"]
    turn = stage.complete(2, *assigned(turn), want=2)
    assert [task_id for task_id, _ in assigned(turn)] == ["b"]
    turn = stage.complete(2, *assigned(turn), want=2)
    assert [task_id for task_id, _ in assigned(turn)] == ["c", "d"]
    stage.check()


def test_a_suspect_that_was_ready_twice_before_is_delivered_alone_too(stage: Stage) -> None:
    """It died unseen and was replayed: so it stands among the ready tasks a second time, and is none of them any more."""
    stage.publish(given("a", deadline_ms=START_MS + 1))
    stage.later(1)
    stage.replay("a")
    held = assigned(stage.join(1, 1))
    stage.publish(given("urgent", priority=5))
    stage.heartbeat(1, *held, want=2)
    stage.leave(1)
    assert [stage.task(task_id).suspect for task_id in ("a", "urgent")] == [True, True]
    stage.publish("b")
    assert [task_id for task_id, _ in assigned(stage.join(2, 5))] == ["urgent"]
    assert [task_id for task_id, _ in assigned(stage.join(3, 5))] == ["b"]
    stage.check()


def test_of_several_idle_consumers_one_is_left_to_the_tasks_that_are_no_suspects(stage: Stage) -> None:
    """So a healthy task waits for no suspect, however long that one takes; and a suspect waits for nobody where nothing else is ready."""
    stage.publish(*"pqr")
    stage.join(1, 3)
    stage.leave(1)
    stage.publish("c")
    assert [task_id for task_id, _ in assigned(stage.join(2, 1))] == ["p"]
    healthy = assigned(stage.join(3, 1))
    assert [task_id for task_id, _ in healthy] == ["c"]
    assert [task_id for task_id, _ in assigned(stage.join(4, 1))] == ["q"], "of three one is left"
    assert [task_id for task_id, _ in assigned(stage.complete(3, *healthy, want=1))] == ["r"]
    stage.check()


def test_a_suspect_is_not_starved_by_a_busy_consumer(stage: Stage) -> None:
    stage.join(1, 2)
    busy = assigned(stage.publish("x", "y"))
    stage.join(2, 2)
    stage.publish("p", "q")
    stage.leave(2)
    turn = stage.publish(*[f"more{n}" for n in range(9)])
    assert assigned(turn) == []
    turn = stage.complete(1, busy[0], want=2)
    assert assigned(turn) == [], "the reserved consumer is emptied first"
    turn = stage.complete(1, busy[1], want=2)
    assert [task_id for task_id, _ in assigned(turn)] == ["p"]
    stage.check()


def test_a_suspect_is_not_starved_by_another_one(stage: Stage) -> None:
    """Of several busy consumers all but one are emptied for suspects: a long one holds up no other, nor do both hold up the rest."""
    stage.publish(*"uvwxyz")
    busy = {peer: assigned(stage.join(peer, 2)) for peer in (1, 2, 3)}
    stage.publish(*"pqr")
    stage.join(4, 3)
    stage.leave(4)
    assert [stage.task(name).suspect for name in "pqr"] == [True, True, True]
    stage.publish(*[f"more{n}" for n in range(9)])
    got = {}
    for peer in (1, 2):
        assert assigned(stage.complete(peer, busy[peer][0], want=2)) == [], f"{peer} is emptied first"
        got[peer] = assigned(stage.complete(peer, busy[peer][1], want=2))
    assert {peer: [task_id for task_id, _ in tasks] for peer, tasks in got.items()} == {1: ["p"], 2: ["q"]}
    assert [task_id for task_id, _ in assigned(stage.complete(3, busy[3][0], want=2))] == ["more0"], "the last one is not"
    assert [task_id for task_id, _ in assigned(stage.complete(1, *got[1], want=2))] == ["r"]
    assert [task_id for task_id, _ in assigned(stage.complete(2, *got[2], want=2))] == ["more1", "more2"]
    stage.check()


def test_a_consumer_that_is_about_to_leave_is_not_the_one_that_stays_for_the_rest(stage: Stage) -> None:
    """It takes nothing more: the other one is all there is, and serves suspects as one does that is alone."""
    stage.publish(*"uv")
    busy = assigned(stage.join(1, 2))
    stage.publish(*"pq")
    stage.join(2, 2)
    stage.leave(2)
    stage.publish(*[f"more{n}" for n in range(9)])
    held = assigned(stage.join(3))
    assert [task_id for task_id, _ in held] == ["p"]
    stage.heartbeat(3, *held, want=0)
    assert assigned(stage.complete(1, busy[0], want=2)) == []
    assert [task_id for task_id, _ in assigned(stage.complete(1, busy[1], want=2))] == ["q"]
    stage.check()


def test_nor_is_it_the_one_that_is_emptied_for_a_suspect(stage: Stage) -> None:
    """It is empty already, and would be chosen each time: the suspect would wait for as long as there is other work."""
    stage.join(1, 0)
    stage.publish(*"uv")
    busy = assigned(stage.join(2, 2))
    stage.publish("p", "q")
    stage.join(3, 2)
    stage.leave(3)
    stage.publish(*[f"more{n}" for n in range(9)])
    assert assigned(stage.complete(2, busy[0], want=2)) == []
    assert [task_id for task_id, _ in assigned(stage.complete(2, busy[1], want=2))] == ["p"]
    stage.check()


def test_a_silent_consumer_loses_its_lease_and_gets_nothing_more(stage: Stage) -> None:
    """It is told; what it says later is fenced; when it speaks again it gets work again."""
    stage.publish("a")
    held = assigned(stage.join(1))
    assert stage.later(stage.config.lease_ms - 1).records == []
    turn = stage.later(1)
    assert whats(turn) == ["unleased"]
    assert answers(turn, Revoke) == [Revoke(["a"], [held[0][1]])]
    assert stage.task("a").history[0].outcome == "expired"
    turn = stage.heartbeat(1, want=1)
    assert [task_id for task_id, _ in assigned(turn)] == ["a"]
    stage.check()


def test_heartbeats_keep_the_lease_of_what_they_list_and_of_nothing_else(stage: Stage) -> None:
    """A delivery that never reached its consumer is not kept alive by the consumer's heartbeats."""
    stage.publish("a", "b")
    a, b = assigned(stage.join(1, 2))
    for _ in range(10):
        turn = stage.later(stage.config.lease_ms // 3)
        stage.heartbeat(1, a, want=1)
    assert stage.statuses() == {"a": "in_progress", "b": "pending"}
    assert stage.task("a").token == a[1]
    turn = stage.heartbeat(1, a, b, want=1)
    assert answers(turn, Revoke) == [Revoke(["b"], [b[1]])]
    stage.check()


def test_what_heartbeats_have_kept_is_lost_a_lease_after_the_last_of_them(stage: Stage) -> None:
    """All of it, and to the millisecond: nothing wakes the broker for it again."""
    stage.publish("a", "b")
    held = assigned(stage.join(1, 2))
    stage.later(stage.config.lease_ms // 3)
    stage.heartbeat(1, *held, want=2)
    assert stage.later(stage.config.lease_ms - 1).records == []
    assert stage.dispatcher.next_monotonic_ms() == stage.monotonic_ms + 1
    stage.later(1)
    assert stage.statuses() == {"a": "pending", "b": "pending"}
    stage.check()


def test_what_is_pushed_late_is_leased_from_then_on(stage: Stage) -> None:
    """Its turn waited for room on the disk, longer than a lease: its consumer could not name in a heartbeat what it had not heard of."""
    stage.publish("a", "b")
    late = stage.join(1)
    stage.monotonic_ms += 2 * stage.config.lease_ms
    stage.dispatcher.pushed_late(late, [], stage.now)
    assert stage.heartbeat(1).records == [], "it was sent before"
    assert stage.later(stage.config.lease_ms - 1).records == []
    assert whats(stage.later(1)) == ["unleased"]
    stage.check()


def test_all_that_is_pushed_late_is_leased_from_then_on_and_nothing_that_comes_after_it(stage: Stage) -> None:
    stage.publish("a", "b")
    late = stage.join(1, 3)
    stage.monotonic_ms += 2 * stage.config.lease_ms
    stage.dispatcher.pushed_late(late, [], stage.now)
    stage.later(1_000)
    stage.publish("c")
    stage.later(stage.config.lease_ms - 1_000)
    assert stage.statuses() == {"a": "pending", "b": "pending", "c": "in_progress"}
    stage.check()


def test_what_is_written_after_its_deadline_is_not_pushed(stage: Stage) -> None:
    """Its turn waited for room on the disk. It dies of its deadline; whoever was to have it is free for another, and loses nothing else."""
    late, held = given("late", deadline_ms=START_MS + 10), given("held", deadline_ms=START_MS + 11)
    stage.publish(late, held, given("free"))
    waited = stage.join(1, 2)
    stage.publish(given("alone", deadline_ms=START_MS + 10))
    also_waited = stage.join(2, 2)
    stage.wall_ms += 10
    overdue = [*waited.hold_back_overdue(stage.wall_ms), *also_waited.hold_back_overdue(stage.wall_ms)]
    assert [task.id for task in overdue] == ["late", "alone"]
    assert [task_id for task_id, _ in assigned(waited)] == ["held"]
    assert [task_id for task_id, _ in assigned(also_waited)] == ["free"]
    stage.dispatcher.pushed_late(waited, overdue, stage.now)
    stage.publish("next")
    assert whats(stage.turn()) == []
    assert stage.statuses() == {"late": "dead", "held": "in_progress", "free": "in_progress", "alone": "dead", "next": "in_progress"}
    assert stage.task("late").attempt == 0
    stage.check()


def test_who_joined_with_what_is_not_pushed_is_welcomed_and_gets_no_empty_handful(stage: Stage) -> None:
    stage.publish(given("late", deadline_ms=START_MS + 10))
    waited = stage.join(1)
    assert [task.id for task in waited.hold_back_overdue(START_MS + 10)] == ["late"]
    assert [type(event) for _, event in waited.pushes] == [Welcome]


def test_who_comes_back_is_welcomed_late_and_keeps_its_leases(stage: Stage) -> None:
    """Before it is welcomed it says nothing, not even that it lives. Who holds nothing, or has left by then, loses nothing."""
    stage.publish("a")
    held = assigned(stage.join(1))
    stage = stage.restarted(epoch=2)
    late = [stage.join(11, name="c1", holds=(stage.task("a"),)), stage.join(12), stage.join(13)]
    stage.leave(13)
    stage.monotonic_ms += 2 * stage.config.lease_ms
    for turn in late:
        stage.dispatcher.pushed_late(turn, [], stage.now)
    assert stage.later(stage.config.lease_ms - 1).records == []
    assert whats(stage.complete(11, *held)) == ["completed"]
    stage.check()


def test_losing_the_last_attempt_is_death(stage: Stage) -> None:
    """The attempt that killed it is in its history, as lost."""
    stage.publish(given("a", attempts_max=1), given("b", deadline_ms=START_MS + 10))
    stage.join(1)
    stage.leave(1)
    assert stage.task("a").status == "dead"
    assert [past.outcome for past in stage.task("a").history] == ["lost"]
    held = assigned(stage.join(2))
    assert [task_id for task_id, _ in held] == ["b"]
    stage.wall_ms += 10
    stage.leave(2)
    assert stage.task("b").reason == "its consumer was lost, and its deadline has passed"
    assert [past.outcome for past in stage.task("b").history] == ["lost"]
    stage.check()


# ── a broker that starts again ───────────────────────────────────────────────────────────────────────────────────────


def test_a_consumer_that_comes_back_keeps_its_leases(stage: Stage) -> None:
    """After a broker's restart a live consumer is re-confirmed under its old tokens."""
    stage.publish("a", "b")
    held = assigned(stage.join(1, 2))
    tasks = (stage.task("a"), stage.task("b"))
    stage = stage.restarted(epoch=2)
    assert stage.dispatcher.orphan_holders == {"c1@101"}
    turn = stage.join(1, 2, holds=tasks)
    assert welcome(turn).stale == []
    assert stale(stage.complete(1, *held, want=2)) == []
    assert stage.statuses() == {"a": "completed", "b": "completed"}
    stage.check()


def test_what_never_reached_a_consumer_that_is_back_goes_on_at_once(stage: Stage) -> None:
    """A broker dies after it has written leases, and before it has pushed them: its consumer knows nothing of them, and says so."""
    stage.publish("a", "b", "c")
    stage.join(1, 3)
    tasks = (stage.task("a"),)
    stage = stage.restarted(epoch=2)
    turn = stage.join(1, 1, holds=tasks, again=True)
    assert whats(turn) == ["unleased"]
    assert stage.statuses() == {"a": "in_progress", "b": "pending", "c": "pending"}
    assert [stage.task(name).attempt for name in "bc"] == [0, 0]
    assert not any(stage.task(name).suspect for name in "bc")
    assert [task_id for task_id, _ in assigned(stage.join(2, 2))] == ["b", "c"]
    stage.check()


@pytest.mark.parametrize(("pid", "again"), [(101, False), (0, True)], ids=["it was not here before", "nobody can tell who it is"])
def test_what_somebody_of_the_same_label_held_waits_for_its_lease(stage: Stage, pid: int, again: bool) -> None:
    """It may be the one that its task killed, with all that was there, and that has got the same number since; or it is in a container,
    as others of that name are. A task that kills whoever runs it would else be handed out for ever."""
    stage.publish("a")
    stage.join(1, pid=pid)
    stage = stage.restarted(epoch=2)
    assert whats(stage.join(1, pid=pid, again=again)) == []
    stage.later(stage.config.lease_ms)
    assert stage.task("a").history[0].outcome == "expired"
    stage.check()


def test_what_got_lost_on_a_broken_pipe_goes_on_before_its_end_is_seen(stage: Stage) -> None:
    """Its consumer is back on another one: nobody was lost with it, and nothing more is handed out on it."""
    stage.publish("a", "b")
    stage.join(1, 2)
    held = (stage.task("a"),)
    turn = stage.join(2, 1, name="c1", pid=101, holds=held, again=True)
    assert whats(turn) == ["unleased"]
    assert stage.statuses() == {"a": "in_progress", "b": "pending"}
    stage.leave(1)
    assert stage.task("a").status == "in_progress"
    assert not stage.task("b").suspect
    stage.check()


def test_who_is_back_takes_nothing_from_anybody_else(stage: Stage) -> None:
    """Neither as lost on the way to itself, nor by naming its token."""
    stage.publish("a", "b")
    held, others = assigned(stage.join(1)), assigned(stage.join(2))
    turn = stage.join(3, name="c1", pid=101, holds=(stage.task("a"), stage.task("b")), again=True)
    assert turn.records == []
    assert welcome(turn).stale == [others[0][1]]
    assert stale(stage.complete(2, *others)) == []
    assert stale(stage.complete(3, *held)) == []
    stage.check()


def test_new_tokens_never_repeat_old_ones(stage: Stage) -> None:
    stage.publish("a")
    old = assigned(stage.join(1))
    stage = stage.restarted(epoch=2)
    stage.dispatcher.bury("c1@101", stage.now)
    new = assigned(stage.join(2))
    assert new[0][1] >= first_token(2) > old[0][1]


def test_a_stream_of_leases_makes_none_of_them_longer_by_more_than_a_16th(stage: Stage) -> None:
    """A consumer falls silent while it is handed one task a second: each of them ends a lease after it was handed out, not up to two."""
    stage.join(1, 100)
    for number in range(30):
        stage.publish(f"t{number}")
        stage.later(1_000)
    assert stage.statuses()["t0"] == "pending"
    assert stage.statuses()["t1"] == "in_progress"
    for number in range(1, 30):
        stage.later(1_000)
        ended = [stage.task(f"t{other}").status == "pending" for other in range(30)]
        assert all(ended[: number - 1]), f"the lease of one of the first {number - 1} goes on"
        assert not any(ended[number + 1 :])
    stage.check()


def test_orphans_of_a_proved_death_go_on_at_once_the_others_after_a_lease(stage: Stage) -> None:
    stage.publish("a", "b")
    stage.join(1)
    stage.join(2)
    stage = stage.restarted(epoch=2)
    stage.dispatcher.bury("c1@101", stage.now)
    stage.turn()
    assert stage.statuses() == {"a": "pending", "b": "in_progress"}
    assert stage.dispatcher.next_monotonic_ms() == stage.monotonic_ms + stage.config.lease_ms
    stage.later(stage.config.lease_ms)
    assert stage.statuses() == {"a": "pending", "b": "pending"}
    assert stage.task("b").history[0].outcome == "expired"
    stage.check()


def test_what_was_settled_under_its_token_is_not_stale_at_rejoin(stage: Stage) -> None:
    """The consumer will repeat the outcome, and it will be acknowledged; a token that lost its task is stale."""
    stage.publish("a", "b")
    a, _ = assigned(stage.join(1, 2))
    held = (stage.task("a"), stage.task("b"))
    joined = [(task.id, task.token) for task in held]
    stage.complete(1, a, want=2)
    stage.leave(1)
    for task, (_, token) in zip(held, joined, strict=True):
        task.token = token  # as the consumer still sees them
    turn = stage.join(1, 2, holds=held)
    assert welcome(turn).stale == [joined[1][1]]


def test_who_names_a_token_with_the_wrong_task_takes_nothing_from_its_holder(stage: Stage) -> None:
    """Neither from one whose Pipe is to be seen to end, nor of what is left of an earlier life: it was held by nobody any more then."""
    stage.publish("a", "b")
    held = assigned(stage.join(1))
    stage.dispatcher.join(2, Join("c1", 101, 0, ["b"], [held[0][1]]), stage.now)
    assert welcome(stage.turn()).stale == [held[0][1]]
    assert stage.dispatcher.held == 1
    stage = stage.restarted(epoch=2)
    stage.dispatcher.join(2, Join("c1", 101, 0, ["b"], [held[0][1]]), stage.now)
    assert welcome(stage.turn()).stale == [held[0][1]]
    stage.later(stage.config.lease_ms)
    assert stage.statuses() == {"a": "pending", "b": "pending"}
    stage.check()


def test_a_consumer_may_be_back_before_its_old_pipe_is_seen_to_end(stage: Stage) -> None:
    stage.publish("a")
    held = assigned(stage.join(1))
    stage.dispatcher.join(2, _join_of(stage, "c1", 101), stage.now)
    stage.turn()
    stage.leave(1)
    assert stage.task("a").status == "in_progress"
    assert stale(stage.complete(2, *held)) == []
    stage.check()


def test_so_it_may_be_more_than_once(stage: Stage) -> None:
    """Its lease is with one of its earlier Pipes, and not with each of them."""
    stage.publish("a")
    held = assigned(stage.join(1))
    for peer in (2, 3):
        assert welcome(stage.join(peer, name="c1", pid=101, holds=(stage.task("a"),))).stale == []
    assert stale(stage.complete(3, *held)) == []
    stage.check()


def _join_of(stage: Stage, name: str, pid: int):  # type: ignore[no-untyped-def]
    return Join(name, pid, 1, ["a"], [stage.task("a").token])


def test_a_restarted_broker_knows_what_is_ready_scheduled_blocked_and_old(stage: Stage) -> None:
    """Everything derived is rebuilt from the state."""
    stage.publish("ready", given("later", run_at_ms=START_MS + 1_000))
    stage.publish(given("waits", after=("ready",)), given("deadline", deadline_ms=START_MS + 2_000))
    stage.join(1)
    stage.leave(1)
    stage = stage.restarted(epoch=2)
    assert stage.dispatcher.next_wall_ms() == START_MS + 1_000
    turn = stage.join(2, 1)
    assert assigned(turn)[0][0] == "ready"
    turn = stage.complete(2, *assigned(turn), want=1)
    assert whats(turn) == ["completed", "unblocked", "leased"]
    stage.later(2_000)
    assert stage.statuses() == {"ready": "completed", "later": "pending", "waits": "in_progress", "deadline": "dead"}
    stage.check()


def test_ended_tasks_keep_their_age_over_a_restart() -> None:
    stage = Stage(config=Config(finished_keep_ms=1_000))
    stage.publish("a")
    stage.complete(1, *assigned(stage.join(1)))
    stage = stage.restarted(epoch=2)
    assert whats(stage.later(999)) == []
    assert whats(stage.later(1)) == ["retired"]
    assert stage.statuses() == {}
    stage.check()


# ── months ───────────────────────────────────────────────────────────────────────────────────────────────────────────

FAR_MS = START_MS + 365 * 24 * 3_600_000


def test_tasks_that_end_without_having_run_are_let_go(stage: Stage) -> None:
    """Nobody takes them, or only others that are more urgent: what was cancelled, or too late, is not kept until somebody does."""
    stage.publish(*(f"kept{number}" for number in range(100)))
    for turn in range(5):
        ids = [f"t{turn}-{number}" for number in range(1_000)]
        stage.publish(*(given(task_id, priority=number % 5) for number, task_id in enumerate(ids)))
        stage.cancel(*ids)
    assert len(stage.dispatcher._ready) <= 2_200
    stage.join(1, 200)
    assert [task for task, _ in _held(stage)] == [f"kept{number}" for number in range(100)]
    stage.check()


def test_far_times_do_not_hold_what_ended_long_before() -> None:
    """A start in a year that was cancelled; a deadline in a year, met today, and noted again with each attempt."""
    stage = Stage(config=Config(attempts_max=9, retry=Exponential(first_ms=0)))
    for turn in range(4):
        late = [f"s{turn}-{number}" for number in range(1_000)]
        stage.publish(*(given(task_id, run_at_ms=FAR_MS) for task_id in late))
        stage.cancel(*late)
        stage.publish(*(given(f"d{turn}-{number}", deadline_ms=FAR_MS) for number in range(1_000)))
        held = assigned(stage.join(1, 1_000))
        for _ in range(3):
            held = assigned(stage.fail(1, *map(_failure, held), want=1_000))
        stage.complete(1, *held, want=0)
    assert len(stage.dispatcher._scheduled) <= 1_024
    assert len(stage.dispatcher._deadlines) <= 1_024 + 1_000
    stage.check()


def test_many_that_end_at_once_are_let_go_though_nothing_comes_after_them() -> None:
    """A year's plan, cancelled as a whole, behind one task that is due before all of it."""
    stage = Stage()
    stage.publish(given("soon", run_at_ms=START_MS + 1_000, deadline_ms=START_MS + 2_000))
    ids = [f"t{number}" for number in range(3_000)]
    stage.publish(*(given(task_id, run_at_ms=FAR_MS, deadline_ms=FAR_MS + 1) for task_id in ids))
    stage.cancel(*ids)
    assert len(stage.dispatcher._scheduled) <= 1_025
    assert len(stage.dispatcher._deadlines) <= 1_025
    ids = [f"d{number}" for number in range(3_000)]
    stage.publish(*(given(task_id, deadline_ms=FAR_MS) for task_id in ids))
    stage.complete(1, *assigned(stage.join(1, 3_000)), want=0)
    assert len(stage.dispatcher._deadlines) <= 1_025
    stage.check()


def test_what_is_long_in_coming_does_not_hold_those_that_waited_for_it(stage: Stage) -> None:
    """Cancelled, or dead of something else they waited for, they are let go, and not when it ends; replayed, they wait again."""
    stage.publish(given("late", run_at_ms=FAR_MS), "other", *(given(f"t{number}", after=("late",)) for number in range(50)))
    stage.publish(given("dead", after=("other", "late")), given("waits", after=("late",)))
    stage.cancel("other", *(f"t{number}" for number in range(50)))
    assert stage.task("dead").status == "dead"
    assert list(stage.dispatcher._dependencies._waiting) == ["late"]
    assert list(stage.dispatcher._dependencies._waiting["late"]) == ["waits"]
    stage.cancel("waits")
    assert not stage.dispatcher._dependencies
    assert not stage.dispatcher._dependencies._missing
    stage.check()


def test_whoever_waited_and_ended_is_no_longer_counted_in(stage: Stage) -> None:
    """And the next task of that id is none of its business."""
    stage.publish("a", "x", given("b", after=("a", "x")), given("c", after=("a",)))
    stage.cancel("b", "c")
    stage.later(stage.config.finished_keep_ms)
    stage.publish(given("b", after=("x",)))
    a, x = assigned(stage.join(1, 2))
    stage.complete(1, a, want=0)
    assert stage.task("b").status == "blocked"
    stage.complete(1, x, want=0)
    assert stage.task("b").status == "pending"
    assert not stage.dispatcher._dependencies._missing
    stage.check()


def _held(stage: Stage) -> list[tuple[str, int]]:
    return [(task.id, task.number) for task in stage.dispatcher.state.tasks.values() if task.status == "in_progress"]


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_runs_after_all_it_waits_for(stage: Stage) -> None:
    stage.publish("a", "b", given("c", after=("a", "b", "a")))
    a, b = assigned(stage.join(1, 5))
    assert stage.statuses()["c"] == "blocked"
    assert whats(stage.complete(1, a, want=5)) == ["completed"]
    turn = stage.complete(1, b, want=5)
    assert whats(turn) == ["completed", "unblocked", "leased"]
    stage.check()


def test_dependants_always_end(stage: Stage) -> None:
    """If what they wait for dies, is cancelled or is gone, they are dead, and theirs with them."""
    stage.publish("a", given("b", after=("a",)), given("c", after=("b",)), given("d", after=("gone",)))
    assert stage.statuses()["d"] == "dead"
    stage.cancel("a")
    assert stage.statuses() == {"a": "cancelled", "b": "dead", "c": "dead", "d": "dead"}
    assert stage.task("c").reason == "waits for b, which is dead"
    stage.publish(given("e", after=("a",)))
    assert stage.task("e").reason == "waits for a, which is cancelled"
    stage.check()


def test_a_chain_of_dependants_may_be_of_any_length(stage: Stage) -> None:
    """Their end goes along it link by link, however deep that is: the broker did not survive one of four hundred."""
    stage.publish("t0", *(given(f"t{number}", after=(f"t{number - 1}",)) for number in range(1, 2_000)))
    stage.cancel("t0")
    assert set(stage.statuses().values()) == {"cancelled", "dead"}
    assert stage.task("t1999").reason == "waits for t1998, which is dead"
    stage.check()


def test_one_that_waits_for_two_which_end_at_once_dies_once(stage: Stage) -> None:
    soon = START_MS + 5
    stage.publish(given("a", deadline_ms=soon), given("b", deadline_ms=soon), given("c", after=("a", "b")), given("d", after=("b", "c")))
    assert whats(stage.later(5)) == ["died", "died", "died"]
    assert set(stage.statuses().values()) == {"dead"}
    stage.check()


def test_one_that_ends_at_once_with_what_it_waits_for_ends_once(stage: Stage) -> None:
    soon = START_MS + 5
    stage.publish(given("a", deadline_ms=soon), given("b", after=("a",), deadline_ms=soon), given("c", after=("b",)))
    assert whats(stage.later(5)) == ["died", "died"]
    assert set(stage.statuses().values()) == {"dead"}
    stage.check()


def test_a_task_that_waits_for_what_is_done_already_runs(stage: Stage) -> None:
    stage.publish("a")
    stage.complete(1, *assigned(stage.join(1)))
    assert whats(stage.publish(given("b", after=("a",)), given("c", after=("a",), run_at_ms=START_MS + 50))) == [
        "unblocked",
        "unblocked",
        "leased",
    ]
    assert stage.statuses()["c"] == "scheduled"
    stage.check()


@pytest.mark.parametrize("limit", [{"finished_keep_ms": 1_000}, {"finished_keep_max": 0}, {"finished_keep_bytes": 0}])
def test_what_is_complete_stays_while_somebody_waits_for_it_and_for_more(limit: dict[str, int]) -> None:
    """Retired, it could not be told from what never completed: a broker that started killed who waited, though nothing had gone wrong."""
    stage = Stage(config=Config(retry=Never(), **limit))
    stage.publish("a", given("late", run_at_ms=START_MS + 10_000), given("b", after=("a", "late")), given("c", after=("late", "a")))
    stage.complete(1, *assigned(stage.join(1)), want=0)
    stage.later(2_000)
    assert stage.dispatcher.next_wall_ms() == START_MS + 10_000, "nothing is due before"
    stage = stage.restarted(epoch=2)
    stage.later(0)
    assert stage.statuses() == {"a": "completed", "late": "scheduled", "b": "blocked", "c": "blocked"}
    stage.later(8_000)
    stage.cancel("b")
    stage.later(0)
    assert "a" in stage.statuses(), "one of two is left"
    stage.complete(1, *assigned(stage.join(1)), want=0)
    stage.later(0)
    assert stage.statuses()["c"] == "pending"
    assert "a" not in stage.statuses()
    stage.later(2_000)
    assert not stage.dispatcher._dependencies._needed
    stage.check()


def test_a_dependant_that_was_cancelled_is_not_woken(stage: Stage) -> None:
    stage.publish("a", given("b", after=("a",)))
    stage.cancel("b")
    assert whats(stage.complete(1, *assigned(stage.join(1)))) == ["completed"]
    stage.publish("x", given("y", after=("x",)))
    stage.cancel("y")
    assert whats(stage.cancel("x")) == ["cancelled"]
    stage.check()


def test_a_replayed_dependant_does_not_wait_twice(stage: Stage) -> None:
    """It died of one task it waited for and waits again for the other, which never ended: that one's end counts once."""
    stage.publish(given("a", attempts_max=1), "b", given("c", after=("a", "b")))
    stage.fail(1, _failure(assigned(stage.join(1))[0]), want=0)
    assert stage.task("c").status == "dead"
    stage.replay("a")
    stage.replay("c")
    assert stage.task("c").status == "blocked"
    assert whats(stage.cancel("b")) == ["cancelled", "died"]
    stage.check()


def test_what_has_run_once_waits_no_more_when_it_is_replayed(stage: Stage) -> None:
    """All that it waited for was complete then. By now it may have left the queue, and another task may have its id."""
    stage = Stage(config=Config(retry=Never(), finished_keep_ms=100))
    stage.publish("a", "x", given("b", after=("a",), attempts_max=1), given("y", after=("x",), attempts_max=1))
    turn = stage.complete(1, *assigned(stage.join(1, 9)), want=9)
    stage.fail(1, *map(_failure, assigned(turn)), want=0)
    assert stage.statuses() == {"a": "completed", "x": "completed", "b": "dead", "y": "dead"}
    stage.later(101)
    stage.publish("x")
    assert whats(stage.replay()) == ["replayed", "unblocked", "unblocked"]
    assert stage.statuses() == {"b": "pending", "y": "pending", "x": "pending"}
    stage.check()


def test_what_never_ran_is_judged_anew_when_it_is_replayed(stage: Stage) -> None:
    """What it waits for is gone, and was never complete: it is dead again at once."""
    stage = Stage(config=Config(retry=Never(), finished_keep_ms=100))
    stage.publish("a", given("b", after=("a",)))
    stage.cancel("a")
    stage.later(101)
    assert whats(stage.replay("b")) == ["replayed", "died"]
    assert stage.task("b").reason == "waits for a, which is no longer in the queue"
    stage.check()


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_takes_a_running_task_away_from_its_consumer(stage: Stage) -> None:
    stage.publish("a", "b")
    held = assigned(stage.join(1))
    turn = stage.cancel("a", "b", "nope")
    assert answers(turn, Changed) == [Changed(1, ["a", "b"], {"nope": "not in the queue"})]
    assert answers(turn, Revoke) == [Revoke(["a"], [held[0][1]])]
    assert stale(stage.complete(1, *held)) == [held[0][1]]
    assert stage.statuses() == {"a": "cancelled", "b": "cancelled"}
    assert answers(stage.cancel("a"), Changed)[0].refused == {"a": "already cancelled"}
    stage.check()


def test_a_cancelled_orphan_is_not_given_back(stage: Stage) -> None:
    stage.publish("a")
    stage.join(1)
    held = (stage.task("a"),)
    token = held[0].token
    stage = stage.restarted(epoch=2)
    stage.cancel("a")
    turn = stage.join(1, 1, holds=held)
    assert welcome(turn).stale == [token]
    stage.check()


def test_replay_gives_dead_letters_another_life(stage: Stage) -> None:
    """Attempts from zero, the deadline lifted, the history kept."""
    stage.publish(given("a", attempts_max=1), given("b", deadline_ms=START_MS + 1), "c")
    stage.fail(1, _failure(assigned(stage.join(1))[0]), want=0)
    stage.later(1)
    turn = stage.replay()
    assert answers(turn, Changed) == [Changed(2, ["a", "b"])]
    assert stage.statuses() == {"a": "pending", "b": "pending", "c": "pending"}
    assert (stage.task("a").attempt, len(stage.task("a").history), stage.task("b").deadline_ms) == (0, 1, 0)
    assert answers(stage.replay("c", "nope"), Changed)[0].refused == {"c": "pending, not dead", "nope": "not in the queue"}
    assert [task_id for task_id, _ in assigned(stage.join(2, 5))] == ["a", "b", "c"]
    stage.check()


def test_what_is_replayed_before_its_deadline_is_not_ended_by_it(stage: Stage) -> None:
    stage.publish(given("a", deadline_ms=START_MS + 1_000))
    stage.fail(1, _failure(assigned(stage.join(1))[0]), want=0)
    stage.replay()
    stage.later(1_000)
    assert stage.statuses() == {"a": "pending"}
    stage.check()


def test_a_replayed_dependant_waits_again(stage: Stage) -> None:
    """Both dead: replaying both in one go lets the second wait for the first."""
    stage.publish(given("a", attempts_max=1), given("b", after=("a",)))
    stage.fail(1, _failure(assigned(stage.join(1))[0]), want=0)
    assert stage.statuses() == {"a": "dead", "b": "dead"}
    stage.replay()
    assert stage.statuses() == {"a": "pending", "b": "blocked"}
    stage.check()


def test_look_and_watch(stage: Stage) -> None:
    """Look answers now; watch when the task has ended, or at once if there is nothing to wait for."""
    stage.publish("a")
    stage.dispatcher.callers.look(50, Look(1, "a"))
    stage.dispatcher.callers.look(50, Look(2, "nope"))
    stage.dispatcher.callers.watch(50, Watch(3, ["a", "nope"]))
    found = answers(stage.turn(), Result)
    assert [(result.request, result.id, result.task and result.task.status) for result in found] == [
        (1, "a", "pending"),
        (2, "nope", None),
        (3, "nope", None),
    ]
    turn = stage.complete(1, *assigned(stage.join(1)))
    assert [(result.request, result.task.status) for result in answers(turn, Result)] == [(3, "completed")]
    stage.dispatcher.callers.watch(50, Watch(4, ["a"]))
    assert [result.request for result in answers(stage.turn(), Result)] == [4]


def test_a_watcher_hears_of_the_end_also_if_another_life_begins_in_the_same_turn(stage: Stage) -> None:
    """What it waited for is the end: a task that is pending, or runs, is none."""
    stage.publish("a")
    (held,) = assigned(stage.join(1))
    callers = stage.dispatcher.callers
    callers.watch(50, Watch(1, ["a"]))
    stage.dispatcher.fail(1, Fail(2, [_failure(held)], 1), stage.now)
    callers.watch(51, Watch(1, ["a"]))
    callers.replay(90, Replay(3), stage.now)
    turn = stage.turn()
    assert stage.statuses() == {"a": "in_progress"}
    assert [(result.task.status, result.task.attempt) for result in answers(turn, Result)] == [("dead", 1), ("dead", 1)]
    stage.check()


def test_a_watcher_that_left_is_not_told(stage: Stage) -> None:
    stage.publish("a", "b")
    stage.dispatcher.callers.watch(50, Watch(1, ["a", "b"]))
    stage.dispatcher.callers.watch(51, Watch(1, ["a"]))
    stage.dispatcher.callers.leave(50)
    turn = stage.cancel("a", "b")
    assert [peer for peer, event in turn.answers if isinstance(event, Result)] == [51]


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scheduled_task_runs_at_its_time_whatever_the_clock_does(stage: Stage) -> None:
    """A wall clock that jumps back delays it and does not lose it."""
    stage.join(1)
    stage.publish(given("a", run_at_ms=START_MS + 1_000))
    assert stage.dispatcher.next_wall_ms() == START_MS + 1_000
    stage.wall_ms -= 10_000_000
    assert assigned(stage.later(2_000)) == []
    stage.wall_ms = START_MS + 1_000
    assert [task_id for task_id, _ in assigned(stage.turn())] == ["a"]


def test_what_comes_late_goes_where_its_number_belongs(stage: Stage) -> None:
    """Behind those that were published before it, and not before all that are fresh."""
    stage.publish("a", "b", given("late", run_at_ms=START_MS + 1), "c")
    stage.later(1)
    assert [task_id for task_id, _ in assigned(stage.join(1, 9))] == ["a", "b", "late", "c"]
    stage.check()


def test_a_cancelled_schedule_leaves_nothing_to_wake_for(stage: Stage) -> None:
    stage.publish(given("a", run_at_ms=START_MS + 1_000))
    stage.cancel("a")
    assert stage.dispatcher.next_wall_ms() == START_MS + stage.config.finished_keep_ms


def test_leases_run_on_the_monotonic_clock(stage: Stage) -> None:
    """A wall clock that jumps ahead expires nothing."""
    stage.publish("a")
    stage.join(1)
    stage.wall_ms += 10_000_000
    assert stage.turn().records == []


def test_retention_by_age_number_and_bytes() -> None:
    """Whichever is reached first; a dead letter has an age of its own, and none once it is replayed."""
    stage = Stage(config=Config(finished_keep_max=2, finished_keep_ms=1_000, dead_keep_ms=5_000, retry=Never()))
    stage.join(1, 10)
    held = assigned(stage.publish("a", "b", "c", "d", "e"))
    turn = stage.complete(1, *held[:3], want=10)
    assert whats(turn) == ["completed", "retired"]
    assert [name for name in "abc" if name in stage.statuses()] == ["b", "c"]
    stage.fail(1, _failure(held[3]), _failure(held[4]), want=0)
    stage.replay("d")
    assert stage.dispatcher.next_wall_ms() == START_MS + 1_000
    stage.later(1_000)
    assert stage.statuses() == {"d": "pending", "e": "dead"}
    stage.later(4_000)
    assert stage.statuses() == {"d": "pending"}
    stage.check()


def test_deaths_before_a_replay_are_let_go_long_before_their_time() -> None:
    """Dead letters that are replayed every hour, and die again, stay as many as they are."""
    stage = Stage(config=Config(retry=Never()))
    ids = [f"t{number}" for number in range(800)]
    stage.publish(*ids)
    stage.join(1, 0)
    for _ in range(6):
        stage.later(3_600_000)
        turn = stage.heartbeat(1, want=800)
        stage.fail(1, *(_failure(held) for held in assigned(turn)), want=0)
        stage.replay()
    assert len(stage.dispatcher._retention._dead) <= 2 * 800
    assert set(stage.statuses().values()) == {"pending"}
    stage.fail(1, *(_failure(held) for held in assigned(stage.heartbeat(1, want=800))), want=0)
    stage.later(stage.config.dead_keep_ms - 1)
    assert set(stage.statuses().values()) == {"dead"}
    stage.later(1)
    assert stage.statuses() == {}
    stage.check()


def test_the_oldest_dead_letter_is_the_next_to_leave() -> None:
    """Of several, and though nothing else has ended."""
    stage = Stage(config=Config(dead_keep_ms=5_000, retry=Never()))
    stage.join(1, 10)
    held = assigned(stage.publish("a", "b"))
    stage.fail(1, _failure(held[0]), want=10)
    stage.later(100)
    stage.fail(1, _failure(held[1]), want=10)
    assert stage.dispatcher.next_wall_ms() == START_MS + 5_000
    stage.later(4_900)
    assert stage.statuses() == {"b": "dead"}
    assert stage.dispatcher.next_wall_ms() == START_MS + 5_100


@pytest.mark.parametrize("restart", [False, True])
def test_what_ended_while_the_clock_was_ahead_does_not_outlive_what_ended_since(restart: bool) -> None:
    """By their dates those were the youngest for a year: where as many had ended as are kept, each that ended since left at once."""
    stage = Stage(config=Config(finished_keep_max=2, finished_keep_ms=10_000))
    stage.publish("a1", "a2", "b1", "b2")
    stage.wall_ms = FAR_MS
    turn = stage.join(1)
    for _ in "a1", "a2":
        turn = stage.complete(1, *assigned(turn))
    stage.wall_ms = START_MS
    if restart:
        stage.leave(1)
        stage = stage.restarted(epoch=2)
        turn = stage.join(1)
    left = []
    for _ in "b1", "b2":
        turn = stage.complete(1, *assigned(turn))
        left.append([task_id for task_id, status in stage.statuses().items() if status == "completed"])
    assert left == [["a2", "b1"], ["b1", "b2"]]
    stage.later(10_000)
    assert stage.statuses() == {}
    stage.check()


def test_a_clock_that_was_ahead_for_a_moment_keeps_nobody_else() -> None:
    """What ended meanwhile, by a date in the future, has its time from when the clock went back; a dead letter, from that date. Those that
    ended after it leave when they are due."""
    stage = Stage(config=Config(finished_keep_ms=1_000, dead_keep_ms=5_000, retry=Never()))
    stage.join(1, 10)
    held = assigned(stage.publish("a", "b", "c", "d"))
    stage.wall_ms += 1_000_000
    stage.complete(1, held[0], want=10)
    stage.fail(1, _failure(held[1]), want=10)
    stage.wall_ms -= 1_000_000
    stage.complete(1, held[2], want=10)
    stage.fail(1, _failure(held[3]), want=10)
    assert stage.dispatcher.next_wall_ms() == START_MS + 1_000
    stage.later(1_000)
    assert stage.statuses() == {"b": "dead", "d": "dead"}
    assert stage.dispatcher.next_wall_ms() == START_MS + 5_000
    stage.later(4_000)
    assert stage.statuses() == {"b": "dead"}
    stage.later(1_000_000)
    assert stage.statuses() == {}
    stage.check()


def test_retention_by_bytes() -> None:
    """Of payloads and results together, to the byte."""
    stage = Stage(config=Config(finished_keep_bytes=100))
    stage.join(1, 10)
    held = assigned(stage.publish(given("a", "x" * 38), given("b", "x" * 34), given("c", 3)))
    stage.complete(1, *held[:2], result="y" * 10, want=10)
    assert stage.statuses() == {"a": "completed", "b": "completed", "c": "in_progress"}
    stage.complete(1, held[2], result="y" * 10, want=10)
    assert stage.statuses() == {"b": "completed", "c": "completed"}


def test_what_somebody_waited_for_counts_again_once_nobody_does() -> None:
    """It is the oldest that ended, and the next to leave."""
    stage = Stage(config=Config(finished_keep_bytes=100))
    stage.join(1, 10)
    held = assigned(stage.publish(given("a", "x" * 60), given("b", "x" * 60), "c", given("d", after=("a", "c"))))
    stage.complete(1, *held[:2], want=10)
    assert stage.statuses() == {"a": "completed", "b": "completed", "c": "in_progress", "d": "blocked"}
    stage.complete(1, held[2], want=0)
    assert stage.statuses() == {"b": "completed", "c": "completed", "d": "pending"}


def test_jitter_comes_in_by_the_door() -> None:
    """Two dispatchers with the same source of chance decide the same."""
    times = []
    for _ in range(2):
        stage = Stage(config=Config(retry=Exponential()))
        stage.publish("a")
        stage.fail(1, _failure(assigned(stage.join(1))[0]))
        times.append(stage.task("a").run_at_ms)
    assert times[0] == times[1]
    assert START_MS + 50 <= times[0] <= START_MS + 100


def test_the_counters_tell_what_there_is(stage: Stage) -> None:
    stage.publish("a", "b", given("c", run_at_ms=START_MS + 9))
    stage.join(1)
    assert stage.dispatcher.counters() == {
        "tasks": 3,
        "ready": 1,
        "scheduled": 1,
        "in_progress": 1,
        "consumers": 1,
        "waiting": 0,
        "deliveries": 1,
    }


def test_what_was_cancelled_is_neither_ready_nor_scheduled(stage: Stage) -> None:
    """Nobody has asked for a task since: it stands in its queue, and is counted in it no more."""
    stage.publish("a", "b", "c", given("d", run_at_ms=FAR_MS), given("e", run_at_ms=FAR_MS))
    stage.cancel("a", "c", "e")
    counted = stage.dispatcher.counters()
    assert (counted["ready"], counted["scheduled"]) == (1, 1)
    assert [task_id for task_id, _ in assigned(stage.join(1, 9))] == ["b"]
    stage.check()


def test_what_is_left_when_the_cancelled_are_cleared_out_keeps_its_order(stage: Stage) -> None:
    """What comes back as what has a time: the first of each is gone, and the one behind it is the first now."""
    ids = [f"t{number:02}" for number in range(12)]
    stage.publish(*ids, *(given(f"at-{ms}", run_at_ms=START_MS + ms) for ms in (1, 10, 2, 11, 12, 3)))
    held = assigned(stage.join(1, 12))
    stage.give_back(1, *(held[place] for place in (0, 9, 1, 10, 11, 2)), want=0)
    stage.cancel("t00", "at-1")
    counted = stage.dispatcher.counters()
    assert (counted["ready"], counted["scheduled"]) == (5, 5)
    assert stage.dispatcher.next_wall_ms() == START_MS + 2
    assert [task_id for task_id, _ in assigned(stage.join(2, 9))] == ["t01", "t02", "t09", "t10", "t11"]
    stage.check()


def test_so_do_the_priorities(stage: Stage) -> None:
    """Also where nothing is left of one of them."""
    stage.publish(*(given(f"p{priority}", priority=priority) for priority in (1, 9, 5, 3)))
    stage.cancel("p9")
    assert stage.dispatcher.counters()["ready"] == 3
    assert [task_id for task_id, _ in assigned(stage.join(1, 9))] == ["p5", "p3", "p1"]
    stage.check()


def test_of_many_a_few_too_many_may_be_counted(stage: Stage) -> None:
    """To look through all of them, each time that somebody asks, would take longer than the answer is worth."""
    ids = [f"t{number}" for number in range(20_000)]
    stage.publish(*ids)
    stage.cancel(*ids[:300])
    assert stage.dispatcher.counters()["ready"] == 20_000
    stage.cancel(*ids[300:313])
    assert stage.dispatcher.counters()["ready"] == 20_000 - 313


def test_it_knows_when_to_look_at_the_leases_again(stage: Stage) -> None:
    """At the end of the oldest lease that is held; never, while nothing is held."""
    assert stage.dispatcher.next_monotonic_ms() is None
    stage.join(1, 2)
    assert stage.dispatcher.next_monotonic_ms() is None
    held = assigned(stage.publish("a"))
    assert stage.dispatcher.next_monotonic_ms() == stage.monotonic_ms + stage.config.lease_ms
    oldest_ms = stage.dispatcher.next_monotonic_ms()
    stage.later(1)
    stage.complete(1, want=0)
    stage.join(2)
    others = assigned(stage.publish("b"), 2)
    assert stage.dispatcher.next_monotonic_ms() == oldest_ms
    stage.complete(1, *held, want=2)
    assert stage.dispatcher.next_monotonic_ms() == stage.monotonic_ms + stage.config.lease_ms
    stage.complete(2, *others, want=2)
    assert stage.dispatcher.next_monotonic_ms() is None


def test_a_busy_consumers_leases_are_watched_in_few_terms(stage: Stage) -> None:
    """However many batches it gets, and none of them runs out early."""
    stage.join(1, 1_000)
    held = []
    for n in range(300):
        held += assigned(stage.publish(f"t{n}"))
        stage.later(10)
    seat = stage.dispatcher._seats.get(1)
    assert len(seat._terms) < 20
    stage.later(stage.config.lease_ms - 3_000 - 1)
    assert set(stage.statuses().values()) == {"in_progress"}
    stage.later(3_000)
    assert set(stage.statuses().values()) == {"pending"}
