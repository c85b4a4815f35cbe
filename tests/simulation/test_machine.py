"""The whole, by random rules: both real brokers on a disk that fails, clients, checkpoints, a clock; the model is a dict of tasks.

The small worlds are complete and small; this is neither. Hypothesis draws what happens, in histories of forty steps, with more tasks, mixed
batches, longer silences and power cuts that keep any sectors, and shrinks what fails. The model knows nothing of logs or leases: only which
ids were acknowledged, what was said of each task, and what was answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from msgspec import Raw, json

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.config import Config
from jsonqueue.errors import SyncFailed
from jsonqueue.event import (
    Assign,
    Cancel,
    Changed,
    Complete,
    Event,
    Fail,
    Failure,
    Heartbeat,
    Join,
    Mark,
    Return,
    Revoke,
    Settled,
    Write,
    Written,
)
from jsonqueue.retry import Linear
from jsonqueue.storage.checkpoint import checkpoint, final_checkpoint
from jsonqueue.storage.memory import MemoryFiles, PowerCut
from jsonqueue.storage.recovery import load_state
from jsonqueue.task import Outcome, TaskIn
from simulation.holes import HOLES, changed

CONFIG = Config(
    retry=Linear(step_ms=50), attempts_max=1_000, lease_ms=5_000, finished_keep_max=6, segment_max_bytes=4_096, disk_reserve_bytes=0
)
CALLER = 1


class Killed(BaseException):
    """kill -9 of the process that was at work: it is gone, the disk's volatile plane is not."""


class Clock:
    ms = 1_000

    def wall_ms(self) -> int:
        return 1_763_000_000_000 + self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Known:
    """What the model knows of a task."""

    def __init__(self) -> None:
        self.acknowledged = False
        self.said: set[str] = set()
        """Ends that somebody asked for, answered or not."""
        self.end = ""
        """The end that was acknowledged; it stays."""
        self.token = 0

    def may_be(self) -> set[str]:
        return {self.end} if self.end else {"pending", "scheduled", "in_progress", *self.said}


class Consumer:
    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.held: dict[int, str] = {}
        self.unsettled: dict[int, tuple[Event, str, int]] = {}


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files, self.clock = MemoryFiles(), Clock()
        self.model: dict[str, Known] = {}
        self.unanswered: list[str] = []
        self.consumers: list[Consumer] = []
        self.cancelling: dict[int, str] = {}
        self.forget: list[Callable[[PublisherBroker], None]] = []
        self.to_cb: list[tuple[int, Event]] = []
        self.mark: Mark | None = None
        self.pb: PublisherBroker | None = None
        self.cb: ConsumerBroker | None = None
        self.numbers = 100
        self._start()

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """What a rule does may end in a crash, if one was armed; then everything that died starts again."""
        try:
            yield
        except PowerCut:
            self._power_cut(None)
        except (Killed, SyncFailed):  # after a failed fsync both brokers start again
            self.pb = self.cb = None
        while self.pb is None or self.cb is None:
            try:
                self._start()
            except PowerCut:
                self._power_cut(None)
            except (Killed, SyncFailed):
                self.pb = self.cb = None

    def _start(self) -> None:
        if self.pb is None:
            pb = PublisherBroker(self.files, self.clock, CONFIG, announce=self._announced)
            pb.open()
            self.pb, self.mark = pb, pb.mark
        if self.cb is None:
            self.to_cb, self.cancelling = [], {}
            cb = ConsumerBroker(self.files, self.clock, CONFIG, chance=Random(1), is_alive=lambda pid: pid in self._pids())
            cb.open()
            self.cb = cb
            for consumer in self.consumers:
                self._joins(consumer)
        self.files.fail = lambda number, name: None
        self._judge()

    def _announced(self, mark: Mark) -> None:
        self.mark = mark

    def _pids(self) -> set[int]:
        return {consumer.peer % 1_000 for consumer in self.consumers}

    def _power_cut(self, chance: Random | None) -> None:
        self.files.crash(chance)
        self.pb = self.cb = self.mark = None
        self.consumers, self.forget = [], []

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    # ── publishers ───────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(count=st.integers(1, 4), anew=st.booleans())
    def publish(self, count: int, anew: bool) -> None:
        """New tasks, or (also) again those that were not answered."""
        if anew or not self.unanswered:
            self.unanswered += [f"t{self._number()}" for _ in range(count)]
        for task_id in self.unanswered:
            self.model.setdefault(task_id, Known())
        write = Write(self._number(), [TaskIn(id=task_id, data=Raw(b'"%d"' % count)) for task_id in self.unanswered])
        with self._surviving():
            assert self.pb is not None
            self.pb.step([(2, write)], self._told_publisher)

    def _told_publisher(self, peer: int, event: Event) -> None:
        assert isinstance(event, Written)
        assert not event.refused
        for task_id in self.unanswered:
            self.model[task_id].acknowledged = True
        self.unanswered = []

    # ── consumers and callers ────────────────────────────────────────────────────────────────────────────────────────

    @rule()
    def turn(self) -> None:
        """The ConsumerBroker takes in what has come."""
        arrivals, self.to_cb = self.to_cb, []
        if self.mark is not None:
            arrivals.insert(0, (0, self.mark))
        with self._surviving():
            assert self.cb is not None
            self.cb.step(arrivals, self._told)

    def _told(self, peer: int, event: Event) -> None:
        if isinstance(event, Changed):
            task_id = self.cancelling.pop(event.request)
            if event.ids:
                self._ends(task_id, "cancelled", 0)
        consumer = next((consumer for consumer in self.consumers if consumer.peer == peer), None)
        if consumer is None:
            return
        if isinstance(event, Assign):
            consumer.held |= {task.token: task.id for task in event.tasks}
        elif isinstance(event, Settled):
            outcome, task_id, token = consumer.unsettled.pop(event.request)
            if not event.stale and isinstance(outcome, Complete):
                self._ends(task_id, "completed", token)
        elif isinstance(event, Revoke):
            for token in event.tokens:
                consumer.held.pop(token, None)

    def _ends(self, task_id: str, end: str, token: int) -> None:
        known = self.model[task_id]
        assert (known.end or end, known.token or token) == (end, token), f"{task_id} had ended as {known.end}, and now as {end} too"
        known.end, known.token = end, token

    @precondition(lambda self: len(self.consumers) < 3)
    @rule(want=st.integers(1, 4))
    def join(self, want: int) -> None:
        consumer = Consumer(self._number())
        self.consumers.append(consumer)
        self._joins(consumer, want)

    def _joins(self, consumer: Consumer, want: int = 3) -> None:
        """On a new Pipe, with what it holds, and what it never heard back about."""
        again, pid, consumer.peer = consumer.peer > 1_000, consumer.peer % 1_000, consumer.peer + 1_000
        held = dict(consumer.held) | {token: task_id for _, task_id, token in consumer.unsettled.values()}
        self.to_cb.append((consumer.peer, Join(f"c{pid}", pid, want, list(held.values()), list(held), again=again)))
        self.to_cb += [(consumer.peer, outcome) for outcome, _, _ in consumer.unsettled.values()]

    @precondition(lambda self: any(consumer.held for consumer in self.consumers))
    @rule(data=st.data(), how=st.sampled_from(["complete", "complete", "fail", "return"]), want=st.integers(0, 4))
    def say(self, data: st.DataObject, how: str, want: int) -> None:
        consumer = data.draw(st.sampled_from([consumer for consumer in self.consumers if consumer.held]))
        token = data.draw(st.sampled_from(sorted(consumer.held)))
        self._says(consumer, token, how, want)

    def _says(self, consumer: Consumer, token: int, how: str, want: int) -> None:
        task_id, request = consumer.held.pop(token), self._number()
        if how == "complete":
            self.model[task_id].said.add("completed")
            outcome: Event = Complete(request, [task_id], [token], [Raw(b"%d" % token)], want)
        elif how == "fail":
            outcome = Fail(request, [Failure(task_id, token, "no")], want)
        else:
            outcome = Return(request, [task_id], [token], want)
        consumer.unsettled[request] = (outcome, task_id, token)
        self.to_cb.append((consumer.peer, outcome))

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def lose_a_consumer(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from(self.consumers))
        self.consumers.remove(consumer)
        if self.cb is not None:
            self.cb.detach(consumer.peer)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id, request = data.draw(st.sampled_from(sorted(self.model))), self._number()
        self.model[task_id].said.add("cancelled")
        self.cancelling[request] = task_id
        self.to_cb.append((CALLER, Cancel(request, [task_id])))

    # ── the manager, time, and what goes wrong ───────────────────────────────────────────────────────────────────────

    @rule(first=st.booleans(), tell=st.booleans())
    def checkpoint(self, first: bool, tell: bool) -> None:
        """Either log may be rotated first; the PublisherBroker may hear of it late."""
        with self._surviving():
            assert self.pb is not None
            assert self.cb is not None
            if first:
                self.pb.rotate()
            cut = self.cb.cut()
            self.pb.rotate()
            if cut is not None:
                done = checkpoint(self.files, cut, config=CONFIG, at_ms=self.clock.wall_ms())
                self.forget.append(lambda pb: pb.forget(done.left, done.through_task))
            if tell:
                self.hear_who_left()

    @rule()
    def hear_who_left(self) -> None:
        while self.forget and self.pb is not None:
            self.forget.pop()(self.pb)

    @rule(ms=st.sampled_from([1, 60, 1_700, 6_000]), beat=st.booleans())
    def wait(self, ms: int, beat: bool) -> None:
        """Time passes, with or without a sign of life from the consumers."""
        self.clock.ms += ms
        for consumer in self.consumers if beat else ():
            self.to_cb.append((consumer.peer, Heartbeat(list(consumer.held.values()), list(consumer.held), 3)))

    @rule(kind=st.sampled_from([PowerCut, Killed, SyncFailed]), after=st.integers(1, 14))
    def arm(self, kind: type[BaseException], after: int) -> None:
        """One of the next operations on the disk is the last of its process, or an fsync that fails."""
        at = self.files.operations + after

        def fail(number: int, name: str) -> None:
            if number >= at and (kind is not SyncFailed or name.startswith("sync ")):
                self.files.fail = lambda number, name: None
                raise kind("no") if kind is SyncFailed else kind

        self.files.fail = fail

    @rule(which=st.sampled_from(["pb", "cb", "both"]))
    def kill(self, which: str) -> None:
        with self._surviving():
            self.pb = None if which != "cb" else self.pb
            self.cb = None if which != "pb" else self.cb

    @rule(seed=st.integers(0, 99), all_lost=st.booleans())
    def cut_the_power(self, seed: int, all_lost: bool) -> None:
        """What was not synced is lost, or any sectors and names of it are."""
        with self._surviving():
            self._power_cut(None if all_lost else Random(seed))

    # ── what was promised ────────────────────────────────────────────────────────────────────────────────────────────

    def _judge(self) -> None:
        """The files, against the model; and what they say when they are replayed, against what they say when they are folded."""
        disk = self.files.copy()
        replayed = load_state(disk).state.tasks
        final_checkpoint(disk, config=CONFIG, at_ms=self.clock.wall_ms())
        loaded = load_state(disk)
        assert json.encode(loaded.state.tasks) == json.encode(replayed), "the fold differs from the replay"
        archive = _archived(disk, loaded.header.archive)
        assert not replayed.keys() & archive.keys(), "in the queue and in the archive"
        found = {task_id: json.decode(json.encode(task)) for task_id, task in replayed.items()} | archive
        assert found.keys() <= self.model.keys(), "nobody published it"
        lost = [task_id for task_id, known in self.model.items() if known.acknowledged and task_id not in found]
        assert not lost, f"acknowledged, and not there: {lost}"
        for task_id, task in found.items():
            known = self.model[task_id]
            assert task["status"] in known.may_be(), f"{task_id} is {task['status']}; it may be {sorted(known.may_be())}"
            assert not known.token or task["result"] == known.token, f"{task_id} has another result than was acknowledged"
            assert sum(past["outcome"] == Outcome.COMPLETED for past in task.get("history", ())) <= 1

    def teardown(self) -> None:
        """Nothing goes wrong any more: what was published is stored, and every task ends."""
        self.files.fail = lambda number, name: None
        if self.unanswered:
            self.publish(1, anew=False)
        for _ in range(400):
            if not self.consumers:
                self.join(4)
            self.wait(500, beat=True)
            self.turn()
            for consumer in self.consumers:
                for token in list(consumer.held):
                    self._says(consumer, token, "complete", 4)
            if not self.to_cb and not self._open():
                break
        self.checkpoint(first=True, tell=True)
        self._judge()
        assert not self._open()

    def _open(self) -> list[str]:
        return [task.id for task in load_state(self.files).state.tasks.values() if not task.status.ended]


def _archived(disk: MemoryFiles, vouched: Any) -> dict[str, Any]:
    """What the archive holds, up to the length that queue.json vouches for."""
    found: dict[str, Any] = {}
    for name in disk.list("archive"):
        data = disk.get(f"archive/{name}")
        if vouched and vouched.file == f"archive/{name}":
            data = data[: vouched.length]
        for line in data.split(b"\n")[:-1]:
            task = json.decode(line)
            assert task["id"] not in found, "archived twice"
            found[task["id"]] = task
    return found


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    "what",
    ["a completion is answered before its fsync", "ids in the log may be published again"],
)
def test_the_machine_is_awake(what: str) -> None:
    """With a rule taken away it fails."""
    hole = next(hole for hole in HOLES if hole.what == what)
    found = settings(max_examples=2000, stateful_step_count=40, deadline=None, derandomize=True, phases=[Phase.generate], database=None)
    with changed(hole.file, hole.old, hole.new), pytest.raises(BaseException, match=r".") as caught:
        run_state_machine_as_test(Machine, settings=found)
    assert not isinstance(caught.value, (KeyboardInterrupt, TypeError, AttributeError, NameError)), caught.value
