"""A Consumer with an ``async def`` handler."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import jsonqueue
from client.fakes import PATIENCE_S, FakeBroker, Side, assign, delivered, settle, welcome
from client.test_consumer import adouble, at_work, await_beat, completed, hear_any
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.coroutines import Coroutines
from jsonqueue.client.holdings import Slot
from jsonqueue.client.outcome import Retry
from jsonqueue.config import Config
from jsonqueue.event import Complete, EventOwner, Fail, Return, Revoke
from jsonqueue.task import AnyTask


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    broker = FakeBroker(EventOwner.CONSUMER)
    yield broker
    broker.close()


class Gate:
    """A coroutine handler that reports its start and waits to be let on, or to be cancelled."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.ended: list[str] = []
        self._open: asyncio.Event
        self._loop: asyncio.AbstractEventLoop

    async def __call__(self, task: AnyTask) -> Any:
        if not hasattr(self, "_open"):
            self._open, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self.started.release()
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.ended.append(f"{task.id} cancelled: {jsonqueue.current().cancelled}")
            raise
        return task.data

    def await_start(self, runs: int = 1) -> None:
        for _ in range(runs):
            assert self.started.acquire(timeout=PATIENCE_S)

    def let_on(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)


def test_coroutines_run_side_by_side_up_to_the_concurrency(broker: FakeBroker) -> None:
    """In one thread; the next begins when one has ended."""
    gate = Gate()
    with at_work(broker, gate, concurrency=3):
        peer, join = welcome(broker)
        assert join.want == 3
        peer.say(assign(1, 2, 3, 4))
        gate.await_start(3)
        assert not gate.started.acquire(timeout=0.02)
        gate.let_on()
        assert sorted(completed(peer, 4)) == ["t1", "t2", "t3", "t4"]


def test_each_coroutine_knows_its_own_task(broker: FakeBroker) -> None:
    async def handler(task: AnyTask) -> Any:
        await asyncio.sleep(0)
        mine = jsonqueue.current().task
        assert mine is not None
        return mine.id == task.id

    with at_work(broker, handler, concurrency=5):
        peer, _ = welcome(broker)
        peer.say(assign(*range(50)))
        results: list[bytes] = []
        while len(results) < 50:
            results += [bytes(result) for result in peer.hear(Complete).results]
        assert set(results) == {b"true"}


def test_exceptions_and_retries_are_told(broker: FakeBroker) -> None:
    async def handler(task: AnyTask) -> Any:
        if task.data == 1:
            raise Retry(1)
        raise SystemExit(task.data)

    with at_work(broker, handler):
        peer, _ = welcome(broker)
        peer.say(assign(1))
        assert peer.hear(Fail).failures[0].retry_after_ms == 1000
        peer.say(assign(2))
        assert "SystemExit: 2" in peer.hear(Fail).failures[0].error


def test_a_revoked_coroutine_is_cancelled(broker: FakeBroker) -> None:
    """And its place is free for the next task."""
    gate = Gate()
    with at_work(broker, gate) as consumer:
        peer, _ = welcome(broker, lease_ms=100)
        peer.say(assign(1))
        gate.await_start()
        peer.say(Revoke(["t1"], [101]))
        await_beat(peer, [])
        peer.say(assign(2))
        gate.await_start()
        gate.let_on()
        assert peer.hear(Complete).ids == ["t2"]
        assert gate.ended == ["t1 cancelled: True"]
        assert consumer.stats.stale == 1


def test_a_task_that_is_revoked_while_it_is_taken_keeps_no_slot() -> None:
    """Its coroutine never takes its first step, and the slot is for others then."""
    slot, handed_out, ended, ran = Slot(), [delivered(2), delivered(1)], threading.Event(), []

    class Taken:
        """A session whose first task is revoked between its being taken and its being begun."""

        config = Config()

        def try_next(self, slot: Slot, verdict: Any = None) -> Any:
            if not handed_out:
                ended.set()
                return None
            slot.task, slot.cancelled = handed_out.pop(), len(handed_out) == 1
            return slot.task

    async def handler(task: AnyTask) -> None:
        ran.append(task.id)

    crew = Coroutines(handler, [slot])
    crew.session = Taken()  # type: ignore[assignment]
    crew.start()
    crew.on_tasks()
    assert ended.wait(PATIENCE_S)
    crew.stop()
    assert ran == ["t2"]


def test_a_consumer_that_gets_no_open_files_for_its_loop_waits_for_some(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with threads does for its own: its run() ended, with the error."""
    refused, runner = threading.Semaphore(0), asyncio.Runner

    def runner_or_not() -> asyncio.Runner:
        if over:
            return runner()
        refused.release()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    over: list[bool] = []
    monkeypatch.setattr(asyncio, "Runner", runner_or_not)
    consumer = Consumer("queue_data", adouble, connect=broker.connect)
    side = Side(consumer.run)
    for _ in range(3):
        assert refused.acquire(timeout=PATIENCE_S)
    assert consumer.state == "waiting"
    over.append(True)
    peer, _ = welcome(broker)
    peer.say(assign(1))
    complete = peer.hear(Complete)
    settle(peer, complete)
    stopper = Side(consumer.stop)
    settle(peer, peer.hear(Return))
    assert stopper.result() is True
    side.result()


def test_a_handler_that_cancels_itself_has_failed(broker: FakeBroker) -> None:
    async def handler(task: AnyTask) -> Any:
        raise asyncio.CancelledError

    with at_work(broker, handler):
        peer, _ = welcome(broker)
        peer.say(assign(1))
        assert "cancelled" in peer.hear(Fail).failures[0].error


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt("of its own")], ids=repr)
def test_an_exit_in_a_part_of_a_handler_fails_that_task_alone(broker: FakeBroker, raised: BaseException) -> None:
    """asyncio lets these two through its loop, and would end it: all that runs beside would be cancelled, and the consumer end."""
    beside = asyncio.Event()

    async def part() -> None:
        raise raised

    async def handler(task: AnyTask) -> Any:
        if task.id == "t1":
            await asyncio.gather(part())
        elif task.id == "t2":
            await beside.wait()
        else:
            beside.set()
        return task.data

    with at_work(broker, handler, concurrency=2):
        peer, _ = welcome(broker)
        peer.say(assign(2, 1))
        fail = peer.hear(Fail)
        assert [failure.id for failure in fail.failures] == ["t1"]
        assert repr(raised).partition("(")[0] in fail.failures[0].error
        settle(peer, fail)
        peer.say(assign(3))
        assert sorted(completed(peer, 2)) == ["t2", "t3"]


def test_a_consumer_whose_loop_a_handler_stops_holds_on_to_nothing(broker: FakeBroker) -> None:
    """It takes no more tasks, and says so. While its loop cancelled what ran, each slot took another, and its heartbeats kept these."""

    async def handler(task: AnyTask) -> None:
        if task.id == "t1":
            asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    with at_work(broker, handler, concurrency=2):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2, 3, 4))
        failed: list[str] = []
        returned: list[str] = []
        while len(failed) + len(returned) < 4:
            event = hear_any(peer)
            if isinstance(event, Fail):
                failed += [failure.id for failure in event.failures]
            else:
                returned += event.ids
            settle(peer, event)
    assert (sorted(failed), sorted(returned)) == (["t1", "t2"], ["t3", "t4"])


def test_a_coroutine_that_is_cancelled_before_its_first_step_frees_its_slot(broker: FakeBroker) -> None:
    """By a handler that cancels whatever runs in its loop, say. The task was held for as long as the consumer lived."""

    async def handler(task: AnyTask) -> Any:
        if task.id == "t1":
            for run in consumer._crew._runs - {asyncio.current_task()}:  # type: ignore[attr-defined]
                run.cancel()
        return task.data

    with at_work(broker, handler, concurrency=2) as consumer:
        peer, _ = welcome(broker)
        peer.say(assign(1, 2))
        heard = {type(event): event for event in (hear_any(peer) for _ in range(2))}
        for event in heard.values():
            settle(peer, event)
        assert heard[Complete].ids == ["t1"]
        assert [failure.id for failure in heard[Fail].failures] == ["t2"]
        peer.say(assign(3, 4))
        assert sorted(completed(peer, 2)) == ["t3", "t4"]


def test_heartbeats_go_on_while_the_loop_is_blocked(broker: FakeBroker) -> None:
    """The keeper is a thread of its own."""
    free = threading.Event()

    async def handler(task: AnyTask) -> Any:
        free.wait(PATIENCE_S)

    with at_work(broker, handler):
        peer, _ = welcome(broker, lease_ms=100)
        peer.say(assign(1))
        await_beat(peer, ["t1"])
        await_beat(peer, ["t1"])
        free.set()
        assert peer.hear(Complete).ids == ["t1"]


def test_stopping_waits_for_coroutines(broker: FakeBroker) -> None:
    gate = Gate()
    consumer = Consumer("queue_data", gate, connect=broker.connect, concurrency=2)
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1, 2))
    gate.await_start(2)
    side = Side(consumer.stop)
    settle(peer, peer.hear(Return))
    gate.let_on()
    told = 0
    while told < 2:
        complete = peer.hear(Complete)
        told += len(complete.ids)
        settle(peer, complete)
    assert side.result() is True
    assert consumer.stats.completed == 2


def test_coroutines_that_do_not_end_are_cancelled(broker: FakeBroker) -> None:
    """When the time to drain is over."""
    gate = Gate()
    consumer = Consumer("queue_data", gate, connect=broker.connect)
    consumer.start()
    peer, _ = welcome(broker)
    peer.say(assign(1))
    gate.await_start()
    assert consumer.stop(0.01) is False
    assert gate.ended == ["t1 cancelled: False"]
