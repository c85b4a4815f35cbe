"""A Consumer with handlers in threads, against a broker that the test plays."""

from __future__ import annotations

import os
import pydoc
import re
import resource
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import jsonqueue
from client.fakes import PATIENCE_S, FakeBroker, Peer, Side, assign, delivered, settle, welcome
from forking import signal_to_a_fork
from jsonqueue.client.consumer import Consumer, _Bell
from jsonqueue.client.intake import check_id
from jsonqueue.client.outcome import Cancel, Retry, forks
from jsonqueue.client.session import Session
from jsonqueue.config import Config
from jsonqueue.errors import ConnectionClosed, FolderRefused, InvalidHandler, InvalidTask
from jsonqueue.event import Assign, Complete, Event, EventOwner, Fail, Heartbeat, Join, Return, Revoke, Welcome, encode
from jsonqueue.task import AnyTask


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    broker = FakeBroker(EventOwner.CONSUMER)
    yield broker
    broker.close()


class Gate:
    """A handler that reports its start and waits to be let on."""

    def __init__(self) -> None:
        self._started = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        self.seen: list[str] = []
        self.cancelled: list[bool] = []

    def __call__(self, task: AnyTask) -> Any:
        self.seen.append(task.id)
        self._started.release()
        assert self._open.acquire(timeout=PATIENCE_S)
        self.cancelled.append(jsonqueue.current().cancelled)
        return task.data

    def await_start(self) -> None:
        assert self._started.acquire(timeout=PATIENCE_S)

    def let_on(self, tasks: int = 1) -> None:
        self._open.release(tasks)


@contextmanager
def at_work(broker: FakeBroker, handler: Any, **options: Any) -> Iterator[Consumer]:
    """A consumer that is left behind at the end, not drained: the tests of draining do that themselves."""
    consumer = Consumer("queue_data", handler, connect=broker.connect, **options)
    consumer.start()
    try:
        yield consumer
    finally:
        consumer._session.close()
        consumer.stop(0)


def double(task: AnyTask) -> Any:
    return task.data * 2


async def adouble(task: AnyTask) -> Any:
    return task.data * 2


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_is_run_and_its_result_told(broker: FakeBroker) -> None:
    """With the token under which it came."""
    with at_work(broker, double, name="worker") as consumer:
        peer, join = welcome(broker)
        assert (join.name, join.pid, join.want, join.ids) == ("worker", os.getpid(), 1, [])
        peer.say(assign(21))
        complete = peer.hear(Complete)
        assert (complete.ids, complete.tokens, [bytes(result) for result in complete.results]) == (["t21"], [121], [b"42"])
        settle(peer, complete)
        assert consumer.stats.completed == 1


def test_a_raised_exception_is_a_failure(broker: FakeBroker) -> None:
    """Its traceback travels; the consumer goes on."""

    def handler(task: AnyTask) -> Any:
        return 10 / task.data

    with at_work(broker, handler):
        peer, _ = welcome(broker)
        peer.say(assign(0))
        (failure,) = peer.hear(Fail).failures
        peer.say(assign(5))
        assert peer.hear(Complete).ids == ["t5"]
        assert (failure.id, failure.token) == ("t0", 100)
        assert failure.error.endswith("ZeroDivisionError: division by zero\n")


def test_retry_and_cancel_travel(broker: FakeBroker) -> None:
    def handler(task: AnyTask) -> Any:
        raise Retry(2) if task.data == 1 else Cancel("no such thing")

    with at_work(broker, handler):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2))
        later, never = peer.hear(Fail).failures
        assert later.retry_after_ms == 2000
        assert (never.cancel, never.error) == (True, "no such thing")


def test_a_result_that_is_no_json_is_a_failure(broker: FakeBroker) -> None:
    with at_work(broker, lambda task: {1, 2}):
        peer, _ = welcome(broker)
        peer.say(assign(1))
        assert "of type set" in peer.hear(Fail).failures[0].error


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_of_short_tasks_share_a_frame(broker: FakeBroker) -> None:
    """When the buffer is empty they are told at once, together."""
    with at_work(broker, double):
        peer, _ = welcome(broker)
        peer.say(assign(*range(100)))
        last = peer.hear(Complete)
        ids = last.ids
        while len(ids) < 100:
            last = peer.hear(Complete)
            ids += last.ids
        assert ids == [f"t{number}" for number in range(100)]
        assert last.request < 20


def test_an_outcome_does_not_wait_for_a_long_task_behind_it(broker: FakeBroker) -> None:
    """The keeper tells it while the handler is busy with the next."""
    gate = Gate()
    with at_work(broker, gate):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2))
        gate.await_start()
        gate.let_on()
        gate.await_start()
        assert peer.hear(Complete).ids == ["t1"]
        gate.let_on()
        assert peer.hear(Complete).ids == ["t2"]


def test_more_is_wanted_once_tasks_are_known_to_be_short(broker: FakeBroker) -> None:
    with at_work(broker, double):
        peer, join = welcome(broker)
        assert join.want == 1
        peer.say(assign(1))
        assert peer.hear(Complete).want > 1


def test_a_buffer_behind_a_task_that_takes_too_long_is_given_back(broker: FakeBroker) -> None:
    """Somebody else may have time for it."""
    gate, time = Gate(), [0.0]
    with at_work(broker, gate, timer=lambda: time[0]):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2, 3))
        gate.await_start()
        time[0] = 0.2
        returned = peer.hear(Return)
        assert (returned.ids, returned.want) == (["t2", "t3"], 1)
        gate.let_on()
        assert peer.hear(Complete).ids == ["t1"]
    assert gate.seen == ["t1"]


def test_several_slots_work_at_once(broker: FakeBroker) -> None:
    """One waiting worker leads and wakes the others."""
    gate = Gate()
    with at_work(broker, gate, concurrency=3):
        peer, join = welcome(broker)
        assert join.want == 3
        for number in range(3):
            peer.say(assign(number))
            gate.await_start()
        gate.let_on(3)
        assert sorted(completed(peer, 3)) == ["t0", "t1", "t2"]


def completed(peer: Peer, tasks: int) -> list[str]:
    """The ids of so many completed tasks, however their frames were cut."""
    ids: list[str] = []
    while len(ids) < tasks:
        ids += peer.hear(Complete).ids
    return ids


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def await_beat(peer: Peer, ids: list[str]) -> None:
    """Until a heartbeat lists just these: by then the consumer has read all that was said to it."""
    while peer.hear(Heartbeat).ids != ids:
        pass


def test_heartbeats_go_on_while_the_handler_works(broker: FakeBroker) -> None:
    """A third of the lease apart, listing what is held."""
    gate = Gate()
    with at_work(broker, gate):
        peer, _ = welcome(broker, lease_ms=150)
        peer.say(assign(1))
        gate.await_start()
        await_beat(peer, ["t1"])
        assert peer.hear(Heartbeat).tokens == [101]
        gate.let_on()


def test_an_idle_consumer_says_that_it_lives(broker: FakeBroker) -> None:
    with at_work(broker, double):
        peer, _ = welcome(broker, lease_ms=100)
        assert peer.hear(Heartbeat).ids == []


def test_a_revoked_task_that_has_not_started_never_does(broker: FakeBroker) -> None:
    gate = Gate()
    with at_work(broker, gate):
        peer, _ = welcome(broker, lease_ms=100)
        peer.say(assign(1, 2))
        gate.await_start()
        peer.say(Revoke(["t2"], [102]))
        await_beat(peer, ["t1"])
        peer.say(assign(3))
        gate.let_on()
        assert peer.hear(Complete).ids == ["t1"]
        gate.await_start()
        gate.let_on()
        assert peer.hear(Complete).ids == ["t3"]


def test_a_running_handler_can_see_that_its_task_was_revoked(broker: FakeBroker) -> None:
    """A thread cannot be killed, but asked; what it says then is not even sent."""
    started, never = threading.Event(), threading.Event()

    def handler(task: AnyTask) -> Any:
        started.set()
        while task.id == "t1" and not jsonqueue.current().cancelled:
            never.wait(0.001)
        return task.data

    with at_work(broker, handler) as consumer:
        peer, _ = welcome(broker)
        peer.say(assign(1))
        assert started.wait(PATIENCE_S)
        peer.say(Revoke(["t1"], [101]), assign(2))
        assert peer.hear(Complete).ids == ["t2"]
        assert consumer.stats.stale == 1


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_that_were_not_settled_are_told_again(broker: FakeBroker) -> None:
    """To the next broker, under the same tokens; it is also told what is still held."""
    gate = Gate()
    with at_work(broker, gate):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2))
        gate.await_start()
        gate.let_on()
        assert peer.hear(Complete).ids == ["t1"]
        gate.await_start()
        peer.hang_up()
        peer, join = welcome(broker)
        assert sorted(zip(join.ids, join.tokens, strict=True)) == [("t1", 101), ("t2", 102)]
        again = peer.hear(Complete)
        assert (again.ids, again.tokens) == (["t1"], [101])
        settle(peer, again)
        gate.let_on()
        assert peer.hear(Complete).ids == ["t2"]


def test_a_result_that_is_too_large_for_the_next_broker_has_failed(broker: FakeBroker) -> None:
    """Its settings were changed: it would hang up on the frame, again and again. The others are said again as they were."""
    with at_work(broker, lambda task: "x" * (200 * (task.id == "t2"))):
        peer, _ = welcome(broker)
        for number in (1, 2):
            peer.say(assign(number))
            peer.hear(Complete)
        broker.config = Config(payload_max_bytes=100)
        peer.hang_up()
        peer, join = welcome(broker)
        assert sorted(join.ids) == ["t1", "t2"]
        assert peer.hear(Complete).ids == ["t1"]
        (failure,) = peer.hear(Fail).failures
        assert (failure.id, failure.token) == ("t2", 102)
        assert "payload_max_bytes" in failure.error


def test_it_works_on_while_there_is_no_broker(broker: FakeBroker) -> None:
    """What it holds gets done, and is told when a broker is back."""
    gate = Gate()
    with at_work(broker, gate):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2))
        gate.await_start()
        broker.up = False
        peer.hang_up()
        gate.let_on(2)
        gate.await_start()
        broker.up = True
        peer, join = welcome(broker)
        assert sorted(join.ids) == ["t1", "t2"]
        assert completed(peer, 2) == ["t1", "t2"]


def test_what_went_to_others_meanwhile_is_dropped(broker: FakeBroker) -> None:
    """The Welcome says which tokens are stale: unstarted ones are forgotten, a running one is told."""
    gate = Gate()
    with at_work(broker, gate):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2))
        gate.await_start()
        peer.hang_up()
        peer, _ = welcome(broker, lease_ms=100, stale=[101, 102])
        await_beat(peer, [])
        peer.say(assign(3))
        gate.let_on()
        gate.await_start()
        gate.let_on()
        assert peer.hear(Complete).ids == ["t3"]
        assert gate.seen == ["t1", "t3"]


def test_a_stale_outcome_is_counted_and_harms_nobody(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    with at_work(broker, double) as consumer:
        peer, _ = welcome(broker)
        peer.say(assign(1))
        settle(peer, peer.hear(Complete), stale=[101])
        peer.say(assign(2))
        settle(peer, peer.hear(Complete))
        assert consumer.stats.stale == 1
    assert "an outcome came too late and counts no more: its task was cancelled, or handed on" in caplog.messages


def test_a_frame_that_is_none_costs_the_connection_only(broker: FakeBroker) -> None:
    with at_work(broker, double):
        peer, _ = welcome(broker)
        peer.say_bytes(b'{"type":"write"}')
        peer, _ = welcome(broker)
        peer.say(assign(1))
        assert peer.hear(Complete).ids == ["t1"]


def test_it_waits_for_a_broker_to_start(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Consumers may be started first; they say what they wait for, once."""
    broker.up = False
    tried = threading.Semaphore(0)

    def connect(timeout: float) -> Any:
        try:
            return broker.connect(timeout)
        finally:
            tried.release()

    consumer = Consumer("queue_data", double, connect=connect)
    consumer.start()
    for _ in range(3):
        assert tried.acquire(timeout=PATIENCE_S)
    broker.up = True
    peer, _ = welcome(broker)
    peer.say(assign(1))
    assert peer.hear(Complete).ids == ["t1"]
    consumer._session.close()
    consumer.stop(0)
    assert caplog.text.count("no broker is running") == 1


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stopping_finishes_what_runs_and_gives_back_the_rest(broker: FakeBroker) -> None:
    """And leaves only when the broker has made all of it durable."""
    gate = Gate()
    consumer = Consumer("queue_data", gate, connect=broker.connect)
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1, 2))
    gate.await_start()
    side = Side(consumer.stop)
    returned = peer.hear(Return)
    assert (returned.ids, returned.want) == (["t2"], 0)
    peer.say(assign(3))  # it crossed the farewell on its way
    late = peer.hear(Return)
    assert late.ids == ["t3"]
    gate.let_on()
    complete = peer.hear(Complete)
    assert complete.ids == ["t1"]
    settle(peer, returned)
    settle(peer, late)
    assert side.running
    settle(peer, complete)
    assert side.result() is True
    assert gate.seen == ["t1"]


def test_its_state_is_that_of_the_moment(broker: FakeBroker) -> None:
    """One that had a broker and lost it waits again, and works on meanwhile."""
    gate = Gate()
    consumer = Consumer("queue_data", gate, connect=broker.connect)
    states = [(consumer.state, consumer.running)]
    consumer.start()
    peer = broker.accept()
    join = peer.hear(Join)
    states.append((consumer.state, consumer.running))
    peer.say(Welcome(f"{join.name}@{join.pid}", 1, 30_000, []), assign(1))
    gate.await_start()
    states.append((consumer.state, consumer.running))
    peer.hang_up()
    peer = broker.accept()
    peer.hear(Join)
    states.append((consumer.state, consumer.running))
    peer.say(Welcome(f"{join.name}@{join.pid}", 1, 30_000, []))
    side = Side(consumer.stop)
    farewell = peer.hear(Return)
    states.append((consumer.state, consumer.running))
    settle(peer, farewell)
    gate.let_on()
    settle(peer, peer.hear(Complete))
    assert side.result() is True
    states.append((consumer.state, consumer.running))
    assert states == [("new", 0), ("waiting", 0), ("working", 1), ("waiting", 1), ("draining", 1), ("stopped", 0)]


def test_a_handler_that_does_not_end_is_left_behind(broker: FakeBroker) -> None:
    """When the time to drain is over; the task will be delivered again."""
    gate = Gate()
    consumer = Consumer("queue_data", gate, connect=broker.connect)
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1))
    gate.await_start()
    side = Side(lambda: consumer.stop(0.01))
    peer.hear(Return)
    gate.let_on()
    assert side.result() is False


def test_what_is_left_running_is_told_but_for_what_was_cancelled(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Of a task that was cancelled nothing is lost."""
    gate = Gate()
    with at_work(broker, gate, concurrency=3) as consumer:
        peer, _ = welcome(broker, lease_ms=100)
        peer.say(assign(1, 2, 3))
        for _ in range(3):
            gate.await_start()
        peer.say(Revoke(["t1"], [101]))
        while sorted(peer.hear(Heartbeat).ids) != ["t2", "t3"]:  # in whichever slots they are
            pass
        assert consumer.stop(0) is False
        gate.let_on(3)
    assert [record.message for record in caplog.records] == [
        "stopped while 2 tasks were still running: their outcomes count no more, and these attempts are lost"
    ]


def test_a_consumer_without_a_broker_stops_at_once(broker: FakeBroker) -> None:
    broker.up = False
    with Consumer("queue_data", double, connect=broker.connect):
        pass


@pytest.fixture
def nobody_minds_hangups() -> Iterator[None]:
    """Whoever runs these tests may do so by ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("nobody_minds_hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains(broker: FakeBroker, number: int) -> None:
    """run() returns when what was running is done and told."""
    gate = Gate()

    def play() -> None:
        peer, _ = welcome(broker)
        peer.say(assign(1))
        gate.await_start()
        os.kill(os.getpid(), number)
        settle(peer, peer.hear(Return))
        gate.let_on()
        settle(peer, peer.hear(Complete))

    side = Side(play)
    Consumer("queue_data", gate, connect=broker.connect).run()
    side.result()
    assert gate.seen == ["t1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_gets_drains_too(broker: FakeBroker, number: int) -> None:
    """The kernel picks the thread; the main one sleeps meanwhile, and must hear of it."""

    def play() -> None:
        welcome(broker)
        signal.pthread_kill(threading.get_ident(), number)

    side = Side(play)
    Consumer("queue_data", Gate(), connect=broker.connect).run()
    side.result()


@pytest.mark.usefixtures("nobody_minds_hangups")
def test_a_hangup_that_is_told_twice_is_one() -> None:
    """Of a terminal that is closed the shell tells, and the kernel when that has ended: what runs may end all the same."""
    bell = _Bell()
    with bell.hung(), bell.rung_by_signals():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert bell.rings == 1
        signal.raise_signal(signal.SIGTERM)
        assert bell.rings == 2


@pytest.mark.usefixtures("nobody_minds_hangups")
def test_a_hangup_is_left_to_who_minds_it() -> None:
    """Whoever started a consumer by ``nohup`` meant it; and a program may read its settings anew then."""
    for minded in (signal.SIG_IGN, lambda number, frame: None):
        signal.signal(signal.SIGHUP, minded)
        bell = _Bell()
        with bell.hung(), bell.rung_by_signals():
            assert signal.getsignal(signal.SIGHUP) == minded


def test_a_process_that_a_handler_forks_has_signals_of_its_own() -> None:
    """``Process.terminate()`` of multiprocessing ends it, and not the consumer; Ctrl-C, which the terminal sends to it too, is left to the
    consumer."""
    bell = _Bell()
    with bell.hung() as ear, bell.rung_by_signals():
        ended = [Side(lambda number=number: signal_to_a_fork(number)).result() for number in (signal.SIGTERM, signal.SIGINT)]
        rung = select.select([ear], [], [], 0)[0]
    assert ended == [-signal.SIGTERM, 7]
    assert not rung


def test_a_second_signal_ends_at_once(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the handler is doing; and the log says that it was cut off."""
    gate = Gate()

    def play() -> None:
        peer, _ = welcome(broker)
        peer.say(assign(1))
        gate.await_start()
        os.kill(os.getpid(), signal.SIGTERM)
        peer.hear(Return)
        os.kill(os.getpid(), signal.SIGTERM)

    side = Side(play)
    Consumer("queue_data", gate, connect=broker.connect).run()
    assert gate.cancelled == []  # it has not ended
    assert [record.message for record in caplog.records] == [
        "stopped while 1 task was still running: its outcome counts no more, and this attempt is lost"
    ]
    side.result()
    gate.let_on()


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (1, "stopped before a broker confirmed 1 outcome: if it is not stored, its task runs again"),
        (2, "stopped before a broker confirmed 2 outcomes: of those that are not stored the tasks run again"),
    ],
)
def test_an_outcome_that_nobody_confirmed_is_told(broker: FakeBroker, caplog: pytest.LogCaptureFixture, tasks: int, said: str) -> None:
    """`work` counted it as completed, and said no more: the brokers were gone, and the task ran again."""

    def handler(task: AnyTask) -> Any:
        if task.id == "t2":
            raise ValueError(task.id)
        return task.data

    with at_work(broker, handler, concurrency=2) as consumer:
        peer, _ = welcome(broker)
        peer.say(assign(*range(1, tasks + 1)))
        heard = {type(hear_any(peer)) for _ in range(tasks)}
        assert heard == {Complete, Fail} if tasks == 2 else {Complete}
        assert consumer.stop(0) is False
    assert [record.message for record in caplog.records] == [said]


def test_another_thread_ends_run(broker: FakeBroker) -> None:
    consumer = Consumer("queue_data", double, connect=broker.connect)
    side = Side(consumer.run)
    peer, _ = welcome(broker)
    stopper = Side(consumer.stop)
    settle(peer, peer.hear(Return))
    assert stopper.result() is True
    side.result()


def test_who_runs_it_a_second_time_does_not_end_the_first(broker: FakeBroker) -> None:
    """It is refused, and was so before; but it took away the bell by which the first one is called, which then ended."""
    consumer = Consumer("queue_data", double, connect=broker.connect)
    side = Side(consumer.run)
    peer, _ = welcome(broker)
    with pytest.raises(RuntimeError, match="make a new one"):
        consumer.run()
    assert peer.silent()  # ended, it would take its leave
    stopper = Side(consumer.stop)
    settle(peer, peer.hear(Return))
    assert stopper.result() is True
    side.result()


def test_a_forked_child_that_stops_it_does_nothing(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a ``with`` block that both leave: it has none of the threads, and its Pipe is its parent's."""
    with at_work(broker, double) as consumer:
        peer, _ = welcome(broker)
        with monkeypatch.context() as forked:
            forked.setattr("jsonqueue.client.consumer.forks", lambda: forks() + 1)
            assert consumer.stop()
        assert peer.silent()
        peer.say(assign(1))
        settle(peer, peer.hear(Complete))


def test_a_handler_may_stop_its_consumer(broker: FakeBroker) -> None:
    """It does not wait for itself: what it returns still counts, and run() returns."""
    told: list[bool] = []

    def handler(task: AnyTask) -> Any:
        told.append(consumer.stop(PATIENCE_S))
        return task.data

    consumer = Consumer("queue_data", handler, connect=broker.connect)
    side = Side(consumer.run)
    peer, _ = welcome(broker)
    peer.say(assign(1))
    heard = {type(event): event for event in (hear_any(peer) for _ in range(2))}
    for event in heard.values():
        settle(peer, event)
    assert heard.keys() == {Complete, Return}
    side.result()
    assert told == [False]
    assert consumer.stop() is True


def hear_any(peer: Peer) -> Any:
    """The next event that is no heartbeat."""
    while True:
        event = peer.hear(Event)
        if not isinstance(event, Heartbeat):
            return event


def test_who_stops_it_second_waits_as_well(broker: FakeBroker) -> None:
    """The handler is still at work: it is not said that all was finished, nor is the end of the process let come."""
    gate = Gate()
    consumer = Consumer("queue_data", gate, connect=broker.connect)
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1))
    gate.await_start()
    first = Side(lambda: consumer.stop(None))
    settle(peer, peer.hear(Return))
    assert consumer.stop(0) is False
    assert first.running
    gate.let_on()
    first.result()
    assert consumer.stop() is False


def test_a_consumer_that_has_failed_gives_back_what_it_holds(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if nobody looks after it: its heartbeats would keep the leases for as long as its process lives."""
    hurdle, told = threading.Event(), threading.Event()

    def next_task(self: Session, slot: Any, verdict: Any = None) -> None:
        hurdle.wait()
        raise OSError("no more threads")

    monkeypatch.setattr(Session, "next_task", next_task)
    consumer = Consumer("queue_data", double, connect=broker.connect)
    monkeypatch.setattr(consumer._session, "_on_failure", told.set)
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1, 2))
    hurdle.set()
    assert told.wait(PATIENCE_S)
    returned: list[str] = []
    while len(returned) < 2:  # what comes later goes straight back
        event = peer.hear(Return)
        returned += event.ids
        assert event.want == 0
        settle(peer, event)
    assert returned == ["t1", "t2"]
    with pytest.raises(OSError, match="no more threads"):
        consumer.__exit__(None, None, None)


def test_what_ran_where_a_consumer_failed_has_failed_too(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heartbeats kept that task, which nobody ran any more."""
    consumer = Consumer("queue_data", double, connect=broker.connect)

    def run(task: AnyTask) -> None:
        raise LookupError("no such verdict")

    monkeypatch.setattr(consumer._crew._runners[0], "run", run)  # type: ignore[attr-defined]
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1))
    event: Any = None
    while not isinstance(event, Fail):
        event = hear_any(peer)
        settle(peer, event)
    assert [failure.id for failure in event.failures] == ["t1"]
    assert "no such verdict" in event.failures[0].error
    with pytest.raises(LookupError):
        consumer.__exit__(None, None, None)


@pytest.mark.parametrize("handler", [double, adouble])
@pytest.mark.parametrize(
    "place", ["jsonqueue.client.threads.Threads", "jsonqueue.client.coroutines.Coroutines", "jsonqueue.client.session.Session"]
)
def test_a_consumer_that_is_stopped_while_it_starts_leaves_nothing_behind(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, place: str, handler: Any
) -> None:
    """By another thread, wherever the start is. It is stopped then, and that it was is no error."""
    before = threading.enumerate()
    consumer = Consumer("queue_data", handler, connect=broker.connect, concurrency=2)
    start = pydoc.locate(f"{place}.start")
    stopped: list[bool] = []

    def start_late(self: Any) -> None:
        stopped.append(Side(consumer.stop).result())
        start(self)  # type: ignore[operator]

    monkeypatch.setattr(f"{place}.start", start_late)
    consumer.start()
    assert consumer.state == "stopped" or not stopped
    consumer.stop()
    assert set(threading.enumerate()) <= set(before)
    rope = consumer._session._rope
    assert rope is None or rope.fileno() < 0


class NoThreads:
    """Threads of this name are not to be had for now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.refused = threading.Semaphore(0)
        self.over = False
        start = threading.Thread.start

        def start_or_not(thread: threading.Thread) -> None:
            if thread.name == name and not self.over:
                self.refused.release()
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_not)

    def await_refusals(self, count: int) -> None:
        for _ in range(count):
            assert self.refused.acquire(timeout=PATIENCE_S)


PLACES = [(double, "jsonqueue-worker-1"), (double, "jsonqueue-worker-2"), (double, "jsonqueue-keeper"), (adouble, "jsonqueue-loop")]


@pytest.mark.parametrize(("handler", "name"), PLACES)
def test_a_consumer_that_gets_no_threads_waits_for_some(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, handler: Any, name: str
) -> None:
    """As it does for processes; what it has of them it keeps, and it says so once. Then it works as ever."""
    threads = NoThreads(monkeypatch, name)
    consumer = Consumer("queue_data", handler, connect=broker.connect, concurrency=2)
    side = Side(consumer.run)
    threads.await_refusals(3)
    assert consumer.state == "waiting"
    threads.over = True
    peer, _ = welcome(broker)
    peer.say(assign(1))
    complete = peer.hear(Complete)
    assert complete.ids == ["t1"]
    settle(peer, complete)
    stopper = Side(consumer.stop)
    settle(peer, peer.hear(Return))
    assert stopper.result() is True
    side.result()
    assert [record.message for record in caplog.records if "thread" in record.message] == [
        "can't start new thread; the consumer takes no tasks yet, and tries again after a pause, until that works"
    ]


@pytest.mark.parametrize(("handler", "name"), PLACES)
def test_a_consumer_that_waits_for_threads_can_be_stopped(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, handler: Any, name: str
) -> None:
    """Its run() returns."""
    threads = NoThreads(monkeypatch, name)
    consumer = Consumer("queue_data", handler, connect=broker.connect, concurrency=2)
    side = Side(consumer.run)
    threads.await_refusals(1)
    consumer._bell.ring()  # as a signal does
    side.result()
    assert consumer.state == "stopped"


@pytest.mark.parametrize(("handler", "name"), PLACES)
def test_a_start_that_gets_no_threads_says_so_and_leaves_none(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handler: Any, name: str
) -> None:
    """It is to return at once, so it cannot wait."""
    before = threading.enumerate()
    NoThreads(monkeypatch, name)
    consumer = Consumer(tmp_path, handler, connect=broker.connect, concurrency=2, name="worker")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        consumer.start()
    assert set(threading.enumerate()) <= set(before)
    assert (consumer.state, consumer.stop()) == ("stopped", True)
    assert Consumer(tmp_path, handler, name="worker").name == "worker", "who tries again has the name"


def test_a_run_ends_though_no_thread_is_to_be_had_for_that(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is running may end first, as ever."""
    gate = Gate()
    NoThreads(monkeypatch, "jsonqueue-stop")
    consumer = Consumer("queue_data", gate, connect=broker.connect)
    side = Side(consumer.run)
    peer, _ = welcome(broker)
    peer.say(assign(1))
    gate.await_start()
    consumer._bell.ring()  # as a signal does
    settle(peer, peer.hear(Return))
    gate.let_on()
    settle(peer, peer.hear(Complete))
    side.result()
    assert consumer.state == "stopped"


def test_a_handler_may_stop_its_consumer_though_no_thread_is_to_be_had(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs it sees to the rest."""
    NoThreads(monkeypatch, "jsonqueue-stop")
    told: list[bool] = []

    def handler(task: AnyTask) -> Any:
        told.append(consumer.stop())
        return task.data

    consumer = Consumer("queue_data", handler, connect=broker.connect)
    side = Side(consumer.run)
    peer, _ = welcome(broker)
    peer.say(assign(1))
    heard = [hear_any(peer) for _ in range(2)]
    for event in heard:
        settle(peer, event)
    assert {type(event) for event in heard} == {Complete, Return}
    side.result()
    assert told == [False]
    assert consumer.state == "stopped"


def test_a_killed_consumer_is_missed_though_what_it_forked_lives_on(broker: FakeBroker) -> None:
    """Its tasks would wait for the end of their leases: a copy of its Pipe was open still."""
    with at_work(broker, double) as consumer:
        peer, _ = welcome(broker)
        pipe = consumer._session._pipe
        assert pipe is not None
        forked = os.fork()
        if not forked:
            signal.pause()
        try:
            pipe.let_go()  # as when it is killed
            with pytest.raises(ConnectionClosed):
                peer.hear(Join)
        finally:
            os.kill(forked, signal.SIGKILL)
            os.waitpid(forked, 0)


def test_an_error_that_waiting_does_not_mend_is_raised() -> None:
    """A folder that must not be used is no broker that will come back."""

    def connect(timeout: float) -> Any:
        raise FolderRefused("it is somebody else's")

    with pytest.raises(FolderRefused):
        Consumer("queue_data", double, connect=connect).run()


def test_it_works_beside_more_than_a_thousand_open_files(broker: FakeBroker) -> None:
    """select() takes no fd above 1023, and the keeper is to outlive a broker, there too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("no room for so many")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        consumer = Consumer("queue_data", double, connect=broker.connect)
        side = Side(consumer.run)
        for _ in range(3):
            broker.accept().hang_up()  # the third is called after a pause
        welcome(broker)
        consumer.stop()
        side.result()
    finally:
        for fd in others:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_consumer_works_once(broker: FakeBroker) -> None:
    broker.up = False
    consumer = Consumer("queue_data", double, connect=broker.connect)
    consumer.start()
    consumer.stop()
    assert consumer.stop() is True
    with pytest.raises(RuntimeError, match="make a new one"):
        consumer.start()


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("double", "names no handler"),
        (":double", "names no handler"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("jsonqueue.no_such:f", "no module 'jsonqueue.no_such'"),
        ("json:no_such", "has no 'no_such'"),
        ("json:__name__", "json:__name__ is no function, but of type str"),
        ("../tasks:double", "'../tasks:double' names a path, and no module"),
        ("tasks/more.py:double", "names a path"),
        ("os:getcwd", "os:getcwd cannot be called with a task: too many positional arguments"),
        ("operator:add", "cannot be called with a task: missing a required argument: 'b'"),
        (lambda: 1, "<lambda> cannot be called with a task: too many positional arguments"),
        (Gate, "Gate cannot be called with a task"),
        (None, "None is no handler"),
    ],
)
def test_a_handler_that_is_not_found_is_the_callers_to_know(handler: Any, said: str) -> None:
    with pytest.raises(InvalidHandler, match=said):
        Consumer("queue_data", handler)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"concurrency": 0}, ValueError), ({"timeout": 0}, ValueError), ({"timeout": -1}, ValueError), ({"name": "a b"}, InvalidTask)],
)
def test_a_mistaken_option_is_told(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Consumer("queue_data", double, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": "2"}, "concurrency is '2': give a whole number"),
        ({"concurrency": 2.0}, "concurrency is 2.0: give a whole number"),
        ({"timeout": timedelta(seconds=3)}, "timeout is datetime.timedelta(seconds=3): give seconds, or None"),
        ({"limits": {"memory_bytes": 2**30}}, "limits is {'memory_bytes': 1073741824}: give Limits(...), or None"),
    ],
)
def test_an_option_of_another_type_is_told_what_it_takes(options: dict[str, Any], said: str) -> None:
    """Limits in a dict were taken, and bounded the handler, until its first failure ended the consumer."""
    with pytest.raises(TypeError, match=f"^{re.escape(said)}$"):
        Consumer("queue_data", double, **options)


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        ("json:dumps", "json:dumps"),
        (double, f"{__name__}.double"),
        (lambda task: None, f"{__name__}.-lambda"),
        (Gate(), f"{__name__}.Gate"),
    ],
)
def test_its_name_tells_what_it_does(handler: Any, name: str, tmp_path: Path) -> None:
    """Unless it is given one."""
    assert Consumer(tmp_path, handler).name == name
    assert Consumer(tmp_path, handler, name="me").name == "me"


def test_no_two_consumers_of_a_process_are_called_alike_on_one_queue(tmp_path: Path) -> None:
    """By its name and its process a broker knows who comes back, and that what it does not hold any more nobody holds."""
    (tmp_path / "link").symlink_to(tmp_path)
    first, second, third = Consumer(tmp_path, double), Consumer(tmp_path / "link", double), Consumer(tmp_path / "other", double)
    assert second.name == f"{first.name}-2"
    assert third.name == first.name
    first.start()
    first.stop()
    assert Consumer(tmp_path, double).name == first.name
    longest = Consumer(tmp_path, double, name="x" * 128), Consumer(tmp_path, double, name="x" * 128)
    assert check_id(longest[1].name) == "x" * 120 + "-2"


def test_it_says_that_it_was_here_before_and_takes_nothing_more_from_then(broker: FakeBroker) -> None:
    """What it was given on an earlier Pipe, and has not said on the next one that it has, is somebody else's by now."""
    with at_work(broker, double) as consumer:
        session = consumer._session
        peer, first = welcome(broker)
        earlier = session._pipe
        assert earlier is not None
        peer.hang_up()
        _, second = welcome(broker)
        session._enter(earlier, session._decode(encode(Assign([delivered(1)]))))
        assert (first.again, second.again) == (False, True)
        assert session._holdings.held() == ([], [])


def test_payloads_arrive_as_values(broker: FakeBroker) -> None:
    seen: list[Callable[..., Any] | Any] = []
    with at_work(broker, lambda task: seen.append(task.data)):
        peer, _ = welcome(broker)
        peer.say(Assign([delivered(1, b'{"a":[1,2.5,null]}')]))
        peer.hear(Complete)
    assert seen == [{"a": [1, 2.5, None]}]


def test_the_join_comes_first_on_every_connection(broker: FakeBroker) -> None:
    with at_work(broker, double):
        for _ in range(2):
            peer = broker.accept()
            assert peer.hear(Join).want == 1
            assert peer.silent(0.02)  # nothing else before the Welcome
            peer.hang_up()


def test_who_takes_calls_and_hangs_up_is_called_ever_less_often(broker: FakeBroker) -> None:
    """Only a Welcome shows that a broker is well again."""
    with at_work(broker, double) as consumer:
        for _ in range(3):
            peer = broker.accept()
            peer.hear(Join)
            peer.hang_up()
        peer = broker.accept()
        peer.hear(Join)
        assert consumer._session._membership.backoff_s == 0.4
        peer.say(Welcome("", 1, 30_000), assign(1))
        peer.hear(Complete)
        assert consumer._session._membership.backoff_s == 0.0
