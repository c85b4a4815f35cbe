"""A TaskHandle: results, statuses and changes, against a broker that the test plays."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from client.fakes import PATIENCE_S, FakeBroker, Side
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client.caller import _AGAIN_MS, _SOON_S, Caller, caller_of
from jsonqueue.client.handle import TaskHandle
from jsonqueue.client.patience import Patience
from jsonqueue.client.publisher import Publisher
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable, InvalidTask, ReplayUnknown, ResultTimeout, TaskFailed, TaskNotFound
from jsonqueue.event import Cancel, Changed, EventOwner, Look, Replay, Result, Watch, encode
from jsonqueue.task import StoredTask, Task, TaskStatus


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    broker = FakeBroker(EventOwner.CALLER)
    yield broker
    broker.close()


@pytest.fixture
def caller(broker: FakeBroker, tmp_path: Path) -> Iterator[Caller]:
    caller = Caller(tmp_path / "q", connect=broker.connect)
    yield caller
    caller.close()


@pytest.fixture
def handle(caller: Caller) -> TaskHandle:
    return TaskHandle(caller.queue_dir, "a", caller=caller)


def ended(status: TaskStatus = TaskStatus.COMPLETED, **fields: Any) -> StoredTask:
    return Task("a", 1, status, 1, Raw(b'{"n":1}'), **fields)


def test_a_result_is_waited_for(broker: FakeBroker, handle: TaskHandle) -> None:
    """It comes as the value that the handler returned."""
    side = Side(handle.result)
    peer = broker.accept()
    watch = peer.hear(Watch)
    assert watch.ids == ["a"]
    assert side.running
    peer.say(Result(watch.request, "a", ended(result=Raw(b'{"ok":[1]}'))))
    assert side.result() == {"ok": [1]}


def test_a_result_of_nothing_is_none(broker: FakeBroker, handle: TaskHandle) -> None:
    side = Side(handle.result)
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended()))
    assert side.result() is None


@pytest.mark.parametrize("status", [TaskStatus.DEAD, TaskStatus.CANCELLED])
def test_a_task_that_ended_without_a_result_raises(broker: FakeBroker, handle: TaskHandle, status: TaskStatus) -> None:
    """With the reason."""
    side = Side(handle.result)
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended(status, reason="no luck")))
    with pytest.raises(TaskFailed, match="no luck") as caught:
        side.result()
    assert caught.value.status == status
    assert caught.value.hint.endswith(f": jsonqueue show a --queue {handle.queue_dir}")


def test_an_unknown_task_is_not_found(broker: FakeBroker, handle: TaskHandle) -> None:
    side = Side(handle.result)
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", None))
    with pytest.raises(TaskNotFound):
        side.result()


def test_patience_ends_and_the_question_stands(broker: FakeBroker, handle: TaskHandle) -> None:
    """Asking again does not make the broker keep a second watch; its one answer serves."""
    with pytest.raises(ResultTimeout) as caught:
        handle.result(timeout=0.01)
    assert caught.value.hint.endswith(f": jsonqueue show a --queue {handle.queue_dir}")
    peer = broker.accept()
    watch = peer.hear(Watch)
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0.01)
    assert peer.silent()
    peer.say(Result(watch.request, "a", ended(result=Raw(b"7"))))
    assert handle.result(timeout=5) == 7
    side = Side(handle.result)
    assert peer.hear(Watch).request != watch.request
    handle.queue_dir.mkdir(mode=0o700)
    broker.up = False
    peer.hang_up()
    with pytest.raises(TaskNotFound):  # the folder holds nothing
        side.result()


def test_what_nobody_waits_for_any_more_is_not_kept(broker: FakeBroker, caller: Caller, handle: TaskHandle) -> None:
    """Its answer has the whole task in it, and would stay for the life of the connection. Who asks again asks anew."""
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0.01)
    peer = broker.accept()
    watch = peer.hear(Watch)
    assert not caller._watches
    side = Side(TaskHandle(caller.queue_dir, "b", caller=caller).status)
    look = peer.hear(Look)
    peer.say(Result(watch.request, "a", ended(result=Raw(b"7"))), Result(look.request, "b", ended()))
    side.result()
    line = caller._exchange.line_at_hand
    assert line is not None
    assert (line._answers, line._left, line._left_about) == ({}, {}, {})
    side = Side(handle.result)
    again = peer.hear(Watch)
    assert again.request != watch.request
    peer.say(Result(again.request, "a", ended(result=Raw(b"8"))))
    assert side.result() == 8
    assert (line._answers, caller._watches) == ({}, {})


def test_an_answer_that_was_there_when_its_asker_gave_up_is_not_kept(broker: FakeBroker, caller: Caller) -> None:
    """It came in the last moment, read by another thread."""
    line = caller._exchange.line(Patience(5, caller.clock))
    line.ask(1, Watch(1, ["a"]), Patience(5, caller.clock))
    line.ask(2, Look(2, "b"), Patience(5, caller.clock))
    broker.accept().say(Result(1, "a", ended()), Result(2, "b", ended()))
    line.answer(2, Patience(5, caller.clock))
    line.abandon(1, "a")
    assert (line._answers, line._left, line.take_up("a")) == ({}, {}, None)


def test_who_gives_up_takes_nothing_from_those_who_wait_on(broker: FakeBroker, caller: Caller, handle: TaskHandle) -> None:
    """One question for all of them, and its answer for those who are left; whoever of them reads for the others."""
    first = Side(lambda: handle.result(timeout=PATIENCE_S))
    peer = broker.accept()
    watch = peer.hear(Watch)
    for _ in range(3):
        with pytest.raises(ResultTimeout):
            handle.result(timeout=0.001)
    assert [watched.waiters for watched in caller._watches.values()] == [1]
    assert peer.silent()
    peer.say(Result(watch.request, "a", ended(result=Raw(b"7"))))
    assert first.result() == 7
    assert not caller._watches


def test_a_question_taken_up_again_is_asked_of_the_next_broker(broker: FakeBroker, handle: TaskHandle) -> None:
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0.01)
    peer = broker.accept()
    peer.hear(Watch)
    side = Side(handle.result)
    peer.hang_up()
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7


@pytest.mark.parametrize("timeout", [30 * 86_400.0, float("inf")], ids=["a month", "for ever"])
def test_a_very_long_patience_is_one(broker: FakeBroker, handle: TaskHandle, timeout: float) -> None:
    """The kernel's own waits end at 24 days, and know no infinity."""
    side = Side(lambda: handle.result(timeout))
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7


@pytest.mark.parametrize("timeout", ["3", timedelta(seconds=3)])
def test_a_patience_of_another_type_is_told_what_it_takes(handle: TaskHandle, timeout: Any) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(f'timeout is {timeout!r}: give seconds, or None')}$"):
        handle.result(timeout)


def test_who_has_no_time_at_all_is_told_how_it_stands(broker: FakeBroker, handle: TaskHandle) -> None:
    """A task that has ended gives its result at the first call: the answer to a question that is answered at once comes behind it."""
    side = Side(lambda: handle.result(timeout=0))
    peer = broker.accept()
    watch, look = peer.hear(Watch), peer.hear(Look)
    peer.say(Result(watch.request, "a", ended(result=Raw(b"7"))), Result(look.request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7


def test_who_has_no_time_at_all_is_given_what_is_there(broker: FakeBroker, caller: Caller, handle: TaskHandle) -> None:
    """So that ``result(timeout=0)`` may be asked again and again: nothing more is said for it."""
    side = Side(lambda: handle.result(timeout=0))
    peer = broker.accept()
    watch, look = peer.hear(Watch), peer.hear(Look)
    peer.say(Result(look.request, "a", ended(TaskStatus.PENDING)))
    with pytest.raises(ResultTimeout):
        side.result()
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0)
    assert peer.silent()
    peer.say(Result(watch.request, "a", ended(result=Raw(b"7"))))
    assert handle.result(timeout=0) == 7
    line = caller._exchange.line_at_hand
    assert line is not None
    assert line._answers == {}


def test_who_has_no_time_at_all_does_not_wait_for_a_broker_that_stands_still(
    broker: FakeBroker, caller: Caller, handle: TaskHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not twice either, and on the same connection; and nothing is kept of a question that nobody answered."""
    monkeypatch.setattr("jsonqueue.client.caller._SOON_S", 0.01)
    for _ in range(2):
        with pytest.raises(ResultTimeout):
            handle.result(timeout=0)
    peer = broker.accept()
    assert (peer.hear(Watch).ids, peer.hear(Look).id, peer.silent()) == (["a"], "a", True)
    line = caller._exchange.line_at_hand
    assert line is not None
    assert line._answers == {}


def test_who_has_no_time_at_all_is_connected_all_the_same(broker: FakeBroker, tmp_path: Path) -> None:
    """It serves every later call; without it each would register anew, and hang up before it is let in. Where the broker hangs up on
    everybody, it is not tried again."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    times: list[float] = []

    def connect(timeout: float) -> Any:
        times.append(timeout)
        if not timeout:
            raise BrokerUnavailable("q", cause="the manager did not answer in time", silent=True)
        pipe = broker.connect(timeout)
        broker.accept().hang_up()
        return pipe

    with pytest.raises(ResultTimeout):
        TaskHandle(tmp_path / "q", "a", caller=Caller(tmp_path / "q", connect=connect)).result(timeout=0)
    assert times == [_SOON_S, 0.0]


class StoppedClock(SystemClock):
    """Goes on when it is told to."""

    now_ms = 1_000

    def monotonic_ms(self) -> int:
        return self.now_ms


def test_who_has_no_time_at_all_does_not_wait_again_and_again_for_a_manager_that_stands_still(tmp_path: Path) -> None:
    """Each call took a quarter of a second, and registered anew: a look at a hundred tasks half a minute. One with a little time takes no
    more than that, and when it has passed, a manager that goes on is found again."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    times: list[float] = []

    def connect(timeout: float) -> Any:
        times.append(timeout)
        clock.now_ms += round(timeout * 1000)
        raise BrokerUnavailable("q", cause="the manager did not answer in time", silent=True)

    clock = StoppedClock()
    handle = TaskHandle(tmp_path / "q", "a", caller=Caller(tmp_path / "q", connect=connect, clock=clock))

    def ask(*timeouts: float) -> list[float]:
        times.clear()
        for timeout in timeouts:
            with pytest.raises(ResultTimeout):
                handle.result(timeout)
        return times

    assert ask(0, 0, 0) == [_SOON_S]
    assert ask(0.125, 0) == [0.125]
    clock.now_ms += _AGAIN_MS
    assert ask(0, 0) == [_SOON_S]


def test_that_time_ran_out_is_not_that_there_is_no_broker(tmp_path: Path) -> None:
    """Who gives it no time to answer has not been told that nobody is there."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")

    def connect(timeout: float) -> Any:
        raise BrokerUnavailable("q", cause="the manager did not answer in time", silent=True)

    with pytest.raises(ResultTimeout):
        TaskHandle(tmp_path / "q", "a", caller=Caller(tmp_path / "q", connect=connect)).result(timeout=0)


def test_who_waits_for_anothers_call_waits_no_longer_than_its_own_patience(tmp_path: Path) -> None:
    """All share one connection, which one thread makes: for ten seconds it may, where a manager stands still."""
    called, over = threading.Event(), threading.Event()

    def connect(timeout: float) -> Any:
        called.set()
        over.wait(PATIENCE_S)
        raise BrokerUnavailable("q", cause="no answer in time", silent=True)

    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    handle = TaskHandle(tmp_path / "q", "a", caller=Caller(tmp_path / "q", connect=connect))
    patient = Side(lambda: handle.result(timeout=2))
    assert called.wait(PATIENCE_S)
    hasty = Side(lambda: handle.result(timeout=0.01))
    hasty._thread.join(5)
    assert patient.running
    assert not hasty.running
    over.set()
    for side in (hasty, patient):
        with pytest.raises(ResultTimeout):
            side.result()


def test_an_interrupted_wait_leaves_nobody_else_waiting(broker: FakeBroker, caller: Caller) -> None:
    """Ctrl-C hits the thread that reads for all, with another's answer in its hand: that one asks again."""
    ctrl_c = [KeyboardInterrupt()]
    decode = caller._exchange._decode

    def interrupted(frame: bytes) -> Any:
        if ctrl_c:
            raise ctrl_c.pop()
        return decode(frame)

    caller._exchange._decode = interrupted
    first = Side(TaskHandle(caller.queue_dir, "a", caller=caller).result)
    peer = broker.accept()
    watch = peer.hear(Watch)
    second = Side(TaskHandle(caller.queue_dir, "b", caller=caller).result)
    other = peer.hear(Watch)
    peer.say(Result(other.request, "b", ended()), Result(watch.request, "a", ended()))
    peer = broker.accept()
    again = peer.hear(Watch)
    peer.say(Result(again.request, "b", ended(result=Raw(b"7"))))
    assert sorted(str(outcome(side)) for side in (first, second)) == ["7", "KeyboardInterrupt()"]


def outcome(side: Side) -> Any:
    try:
        return side.result()
    except KeyboardInterrupt as error:
        return repr(error)


def test_a_question_that_was_not_asked_is_asked_the_next_time(broker: FakeBroker, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C hit the thread before it was out: who asks again would wait for ever for its answer."""
    handle = TaskHandle(caller.queue_dir, "a", caller=caller)
    with monkeypatch.context() as hit:

        def encode(event: Any) -> bytes:
            raise KeyboardInterrupt

        hit.setattr("jsonqueue.client.exchange.encode", encode)
        with pytest.raises(KeyboardInterrupt):
            handle.result()
    side = Side(handle.result)
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7


def test_many_threads_wait_for_one_task_with_one_question(broker: FakeBroker, handle: TaskHandle) -> None:
    sides = [Side(handle.result) for _ in range(5)]
    peer = broker.accept()
    watch = peer.hear(Watch)
    peer.say(Result(watch.request, "a", ended(result=Raw(b"7"))))
    for side in sides:
        while side.running and not peer.silent(0.01):  # one that came too late for the first answer asks for itself
            peer.say(Result(peer.hear(Watch).request, "a", ended(result=Raw(b"7"))))
        assert side.result() == 7


def test_threads_share_one_connection(broker: FakeBroker, caller: Caller) -> None:
    """Answers come in any order, each to who waits for it."""
    sides = {name: Side(TaskHandle(caller.queue_dir, name, caller=caller).result) for name in "abcdef"}
    peer = broker.accept()
    watches = [peer.hear(Watch) for _ in sides]
    for watch in reversed(watches):
        (name,) = watch.ids
        peer.say(Result(watch.request, name, Task(name, 1, TaskStatus.COMPLETED, 1, Raw(b"1"), result=Raw(f'"{name}"'.encode()))))
    assert {name: side.result() for name, side in sides.items()} == {name: name for name in "abcdef"}


def test_a_watch_survives_the_broker(broker: FakeBroker, handle: TaskHandle) -> None:
    """A new broker is asked anew."""
    side = Side(handle.result)
    first = broker.accept()
    first.hear(Watch)
    first.hang_up()
    second = broker.accept()
    second.say(Result(second.hear(Watch).request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7


def test_status_and_task_look(broker: FakeBroker, handle: TaskHandle) -> None:
    """The task as it stands now, payload and all."""
    side = Side(handle.status)
    peer = broker.accept()
    peer.say(Result(peer.hear(Look).request, "a", ended(TaskStatus.SCHEDULED)))
    assert side.result() is TaskStatus.SCHEDULED
    side = Side(handle.task)
    peer.say(Result(peer.hear(Look).request, "a", ended(TaskStatus.SCHEDULED, priority=3)))
    task = side.result()
    assert (task.data, task.priority, task.result) == ({"n": 1}, 3, None)


def test_a_cancel_tells_whether_it_did(broker: FakeBroker, handle: TaskHandle) -> None:
    """False: it had ended. Not there at all: that is an error."""
    side = Side(lambda: handle.cancel("not needed"))
    peer = broker.accept()
    cancel = peer.hear(Cancel)
    assert (cancel.ids, cancel.reason) == (["a"], "not needed")
    peer.say(Changed(cancel.request, ["a"]))
    assert side.result() is True

    side = Side(handle.cancel)
    peer.say(Changed(peer.hear(Cancel).request, [], {"a": "already completed"}))
    peer.say(Result(peer.hear(Look).request, "a", ended()))
    assert side.result() is False

    side = Side(handle.cancel)
    peer.say(Changed(peer.hear(Cancel).request, [], {"a": "not in the queue"}))
    peer.say(Result(peer.hear(Look).request, "a", None))
    with pytest.raises(TaskNotFound):
        side.result()


def test_a_broker_that_gives_no_answer_has_told_no_reason(broker: FakeBroker, handle: TaskHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only came of time running out, as with a manager that gives none: the command said that the manager answers, and what."""
    monkeypatch.setattr("jsonqueue.client.caller._ANSWER_S", 0.0)
    with pytest.raises(BrokerUnavailable, match="it did not answer within 0 s") as unavailable:
        handle.cancel()
    assert unavailable.value.silent


def test_a_cancel_whose_answer_got_lost_was_ours(broker: FakeBroker, handle: TaskHandle) -> None:
    """The second try finds the task cancelled already: by the first one."""
    side = Side(handle.cancel)
    first = broker.accept()
    first.hear(Cancel)
    first.hang_up()
    second = broker.accept()
    second.say(Changed(second.hear(Cancel).request, [], {"a": "already cancelled"}))
    assert side.result() is True


def test_many_are_cancelled_some_at_once(broker: FakeBroker, caller: Caller) -> None:
    """As many as go into a frame that the broker takes; what came of them is told together."""
    ids = [f"t{number:0>127}" for number in range(20_001)]
    side = Side(lambda: caller.cancel(ids, reason="\x01" * 65_536))
    peer = broker.accept()
    for _ in range(3):
        cancel = peer.hear(Cancel)
        assert len(encode(cancel)) < Config(payload_max_bytes=1).frame_max_bytes
        peer.say(Changed(cancel.request, cancel.ids[:-1], {cancel.ids[-1]: "already completed"}))
    changed = side.result()
    assert sorted([*changed.ids, *changed.refused]) == ids
    assert list(changed.refused) == [ids[9_999], ids[19_999], ids[20_000]]


def test_a_dead_letter_is_replayed(broker: FakeBroker, handle: TaskHandle) -> None:
    side = Side(handle.replay)
    peer = broker.accept()
    replay = peer.hear(Replay)
    peer.say(Changed(replay.request, ["a"]))
    assert side.result() is True


@pytest.mark.parametrize("said", ["pending, not dead", "completed, not dead", "not in the queue"])
def test_a_replay_whose_answer_got_lost_is_not_called_none(broker: FakeBroker, handle: TaskHandle, said: str) -> None:
    """The second try finds the task alive: by the first one, or it never was dead. Neither True nor False would be known to be so."""
    side = Side(handle.replay)
    first = broker.accept()
    first.hear(Replay)
    first.hang_up()
    second = broker.accept()
    second.say(Changed(second.hear(Replay).request, [], {"a": said}))
    with pytest.raises(ReplayUnknown, match="a cannot be replayed now, because of this replay or without it") as caught:
        side.result()
    assert caught.value.task_ids == ("a",)


def test_a_second_replay_that_did_it_did_it(broker: FakeBroker, handle: TaskHandle) -> None:
    side = Side(handle.replay)
    first = broker.accept()
    first.hear(Replay)
    first.hang_up()
    second = broker.accept()
    second.say(Changed(second.hear(Replay).request, ["a"]))
    assert side.result() is True


def test_a_replay_of_all_whose_answer_got_lost_does_not_say_which(broker: FakeBroker, caller: Caller) -> None:
    """The second answer lists those that have died since."""
    side = Side(caller.replay)
    first = broker.accept()
    first.hear(Replay)
    first.hang_up()
    second = broker.accept()
    second.say(Changed(second.hear(Replay).request, []))
    with pytest.raises(ReplayUnknown, match="all dead letters live again, which these were is not known"):
        side.result()


def test_what_was_never_sent_is_no_second_try(broker: FakeBroker, handle: TaskHandle) -> None:
    """The broker of the last question is gone when this one comes: whoever answers it first heard it first."""
    side = Side(handle.status)
    first = broker.accept()
    first.say(Result(first.hear(Look).request, "a", ended()))
    side.result()
    first.hang_up()
    side = Side(handle.replay)
    second = broker.accept()
    second.say(Changed(second.hear(Replay).request, [], {"a": "completed, not dead"}))
    second.say(Result(second.hear(Look).request, "a", ended()))
    assert side.result() is False


def test_a_frame_that_is_none_costs_the_connection_only(broker: FakeBroker, handle: TaskHandle) -> None:
    side = Side(handle.status)
    first = broker.accept()
    first.hear(Look)
    first.say_bytes(b"[1")
    second = broker.accept()
    second.say(Result(second.hear(Look).request, "a", ended()))
    assert side.result() is TaskStatus.COMPLETED


# ── without a broker ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_broker_the_files_tell(tmp_path: Path) -> None:
    """Status and task are read from them; what needs somebody to act says so at once, or when its time is up."""
    with Publisher(tmp_path / "q") as publisher:
        handle = publisher.publish({"n": 1}, id="a")
    assert handle.status() is TaskStatus.PENDING
    assert handle.task().data == {"n": 1}
    with pytest.raises(BrokerUnavailable, match="no broker is running"):
        handle.result()
    with pytest.raises(BrokerUnavailable):
        handle.result(timeout=0.01)
    with pytest.raises(BrokerUnavailable):
        handle.cancel()
    with pytest.raises(TaskNotFound):
        TaskHandle(tmp_path / "q", "b").status()


def test_who_waits_for_a_result_is_told_the_last_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that no answer came in the last moment."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    words = [BrokerUnavailable("q", cause="waits for room on the disk")]

    def connect(timeout: float) -> Any:
        raise words.pop() if words else BrokerUnavailable("q", cause="no answer in time", silent=True)

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(BrokerUnavailable, match="waits for room on the disk"):
        TaskHandle(tmp_path / "q", "a", caller=Caller(tmp_path / "q", connect=connect)).result(timeout=0.05)
    assert not words


def test_a_result_waits_for_a_broker_to_start(broker: FakeBroker, tmp_path: Path) -> None:
    """As long as its timeout lasts."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    broker.up = False
    caller = Caller(tmp_path / "q", connect=broker.connect)
    side = Side(lambda: TaskHandle(tmp_path / "q", "a", caller=caller).result(timeout=9))
    broker.up = True
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7
    caller.close()


class ClockThatLeaps(SystemClock):
    ahead_ms = 0

    def monotonic_ms(self) -> int:
        return super().monotonic_ms() + self.ahead_ms


def test_each_time_that_its_broker_goes_a_result_waits_for_it_to_come_back(broker: FakeBroker, tmp_path: Path) -> None:
    """Also hours after it did so for the first time."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    noticed = threading.Semaphore(0)

    def connect(timeout: float) -> Any:
        try:
            return broker.connect(timeout)
        except BrokerUnavailable:
            noticed.release()
            raise

    clock = ClockThatLeaps()
    caller = Caller(tmp_path / "q", connect=connect, clock=clock)
    side = Side(TaskHandle(tmp_path / "q", "a", caller=caller).result)
    for _ in range(2):
        peer = broker.accept()
        peer.hear(Watch)
        clock.ahead_ms += 3_600_000
        broker.up = False
        peer.hang_up()
        assert noticed.acquire(timeout=PATIENCE_S)
        broker.up = True
    peer = broker.accept()
    peer.say(Result(peer.hear(Watch).request, "a", ended(result=Raw(b"7"))))
    assert side.result() == 7
    caller.close()


def test_handles_are_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal by queue and id, however its path is written, be it by a manager; only a folder and a valid id make one."""
    assert TaskHandle(tmp_path, "a") == TaskHandle(str(tmp_path), "a", duplicate=True)
    assert len({TaskHandle(tmp_path, "a"), TaskHandle(tmp_path, "a"), TaskHandle(tmp_path, "b")}) == 2
    assert repr(TaskHandle("/q", "a")) == "TaskHandle('/q', 'a')"
    monkeypatch.chdir(tmp_path)
    published = Publisher("q").publish(1, id="a")
    assert TaskHandle("q", "a") == TaskHandle(Path("q"), "a") == TaskHandle(tmp_path / "x" / ".." / "q", "a") == published
    assert TaskHandle(BrokerManager("q"), "a") == published
    with pytest.raises(TypeError, match="5 is no queue folder"):
        TaskHandle(5, "a")
    with pytest.raises(InvalidTask):
        TaskHandle(tmp_path, "../a")


def test_a_process_has_one_caller_for_a_queue(tmp_path: Path) -> None:
    """However its path is written."""
    (tmp_path / "q").mkdir()
    assert caller_of(tmp_path / "q") is caller_of(tmp_path / "." / "q")
    assert caller_of(tmp_path / "q") is not caller_of(tmp_path)


def test_a_very_long_reason_is_cut(broker: FakeBroker, caller: Caller) -> None:
    """A broker takes 65,536 characters, and hangs up on more: it was asked again and again, and nobody was told why."""
    side = Side(lambda: caller.cancel(["a"], reason="x" * 70_000))
    peer = broker.accept()
    cancel = peer.hear(Cancel)
    assert 1_000 < len(cancel.reason) < 65_536
    peer.say(Changed(cancel.request, ["a"]))
    side.result()
