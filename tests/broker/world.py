"""Both real brokers, the real storage code and checkpoints, on a disk in memory: a world driven by a seed, which can end at any operation.

Publishers retry what was not acknowledged, consumers complete, fail, or die; brokers are killed one by one or together, the power fails in
the middle of any disk operation, an fsync reports an error. After each restart :meth:`World.judge` compares what is there with what was
promised.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from msgspec import Raw, json

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.config import Config
from jsonqueue.errors import SyncFailed
from jsonqueue.event import Assign, Complete, Event, Fail, Failure, Join, Mark, Revoke, Settled, Write, Written
from jsonqueue.retry import Linear
from jsonqueue.storage.checkpoint import checkpoint, final_checkpoint
from jsonqueue.storage.memory import MemoryFiles, PowerCut
from jsonqueue.storage.recovery import load_state
from jsonqueue.task import Outcome, TaskIn

CONFIG = Config(
    retry=Linear(step_ms=50), attempts_max=1_000, lease_ms=5_000, finished_keep_max=12, segment_max_bytes=8_192, disk_reserve_bytes=0
)


class Killed(BaseException):
    """kill -9 of the process that was at work: it is gone, the disk's volatile plane is not."""


class FakeClock:
    def __init__(self) -> None:
        self.ms = 1_000

    def wall_ms(self) -> int:
        return 1_763_000_000_000 + self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class _Consumer:
    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.held: dict[int, str] = {}
        self.unsettled: dict[int, tuple[str, int]] = {}  # request → (id, token)


class World:
    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.files = MemoryFiles()
        self.clock = FakeClock()
        self.config = CONFIG
        self.pb: PublisherBroker | None = None
        self.cb: ConsumerBroker | None = None
        self.mark: Mark | None = None
        self.to_cb: list[tuple[int, Event]] = []
        self.peers = 100
        self.requests = 0
        self.names = 0
        self.unanswered: dict[str, TaskIn[Raw]] = {}
        self.acknowledged: set[str] = set()
        self.completed: dict[str, int] = {}  # id → token of the completion that was acknowledged
        self.consumers: list[_Consumer] = []
        self.happened: Counter[str] = Counter()

    # ── what may happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, steps: int) -> None:
        acts = [self.publish] * 6 + [self.hand_out] * 8 + [self.consume] * 8 + [self.checkpoint] * 2
        faults = [self.kill_publisher_broker, self.kill_consumer_broker, self.kill_all, self.power_cut, self.lose_consumer]
        self.start()
        for _ in range(steps):
            act = self.chance.choice(acts if self.chance.random() < 0.93 else faults)
            if self.chance.random() < 0.04:
                self._arm(self.chance.choice((PowerCut, Killed, SyncFailed)))
            self._perform(act)
            self.files.fail = lambda number, name: None
            self.clock.ms += self.chance.choice((0, 1, 20, 300))
        self.heal()

    def _perform(self, act: Any) -> None:
        self.happened[act.__name__] += 1
        try:
            act()
        except PowerCut:
            self.happened["power cut in the midst of it"] += 1
            self.power_cut()
        except Killed:
            self.happened["kill in the midst of it"] += 1
            self.kill_all()
        except SyncFailed:
            # A failed fsync is never tried again: both brokers start anew from the disk.
            self.happened["failed sync"] += 1
            self.kill_all()

    def _arm(self, kind: type[BaseException]) -> None:
        """Let the n-th operation from now on fail."""
        at = self.files.operations + self.chance.randint(1, 12)

        def fail(number: int, name: str) -> None:
            if number == at or (number > at and kind is SyncFailed and name.startswith("sync ") and not self.happened[f"armed {at}"]):
                if kind is SyncFailed and not name.startswith("sync "):
                    return
                self.happened[f"armed {at}"] += 1
                raise kind("no") if kind is SyncFailed else kind

        self.files.fail = fail

    def publish(self) -> None:
        """New tasks, or again those that were not answered."""
        assert self.pb is not None
        if not self.unanswered:
            for _ in range(self.chance.randint(1, 4)):
                self.names += 1
                self.unanswered[f"t{self.names}"] = TaskIn(id=f"t{self.names}", data=Raw(b'"%d"' % self.names))
        self.requests += 1
        self.pb.step([(1, Write(self.requests, list(self.unanswered.values())))], self._told)

    def _told(self, peer: int, event: Event) -> None:
        if isinstance(event, Written):
            assert not event.refused
            self.acknowledged |= set(self.unanswered)
            self.unanswered = {}
        consumer = next((consumer for consumer in self.consumers if consumer.peer == peer), None)
        if consumer is None:
            return
        if isinstance(event, Assign):
            # Encoded and decoded, as on a Pipe: the consumer has its own copy.
            for task in json.decode(json.encode(event), type=Assign).tasks:
                consumer.held[task.token] = task.id
        elif isinstance(event, Settled):
            task_id, token = consumer.unsettled.pop(event.request)
            if token not in event.stale and task_id:
                assert self.completed.get(task_id, token) == token, f"{task_id} completed twice"
                self.completed[task_id] = token
        elif isinstance(event, Revoke):
            for token in event.tokens:
                consumer.held.pop(token, None)

    def hand_out(self) -> None:
        """A turn of the ConsumerBroker over what has come."""
        assert self.cb is not None
        arrivals, self.to_cb = self.to_cb, []
        if self.mark is not None:
            arrivals.insert(0, (0, self.mark))
        self.cb.step(arrivals, self._told)

    def consume(self) -> None:
        """A consumer says something of a task it holds; a new one comes when there are too few."""
        if len(self.consumers) < 2:
            self._join(_Consumer(0))
            return
        consumer = self.chance.choice(self.consumers)
        if not consumer.held:
            return
        token = self.chance.choice(sorted(consumer.held))
        task_id = consumer.held.pop(token)
        self.requests += 1
        want = self.chance.randint(1, 4)
        if self.chance.random() < 0.75:
            consumer.unsettled[self.requests] = (task_id, token)
            result = Raw(b'{"token":%d}' % token)
            self.to_cb.append((consumer.peer, Complete(self.requests, [task_id], [token], [result], want)))
        else:
            consumer.unsettled[self.requests] = ("", token)
            self.to_cb.append((consumer.peer, Fail(self.requests, [Failure(task_id, token, "no")], want)))

    def _join(self, consumer: _Consumer) -> None:
        """On a new Pipe; what it holds, and what it never heard back about, goes with it."""
        self.peers += 1
        consumer.peer = self.peers
        if consumer not in self.consumers:
            self.consumers.append(consumer)
        held = dict(consumer.held) | {token: task_id for task_id, token in consumer.unsettled.values() if task_id}
        self.to_cb.append((consumer.peer, Join(f"c{id(self) % 7}", 1, 3, list(held.values()), list(held))))
        for request, (task_id, token) in consumer.unsettled.items():
            if task_id:
                result = Raw(b'{"token":%d}' % token)
                self.to_cb.append((consumer.peer, Complete(request, [task_id], [token], [result], 3)))
        consumer.unsettled = {request: said for request, said in consumer.unsettled.items() if said[0]}

    def checkpoint(self) -> None:
        """As the manager does it; either log may be rotated first."""
        assert self.pb is not None
        assert self.cb is not None
        if self.chance.random() < 0.5:
            self.pb.rotate()
        cut = self.cb.cut()
        self.pb.rotate()
        if cut is not None:
            done = checkpoint(self.files, cut, config=self.config, at_ms=self.clock.wall_ms())
            self.pb.forget(done.left, done.through_task)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────

    def kill_publisher_broker(self) -> None:
        self.pb = None
        self.start()

    def kill_consumer_broker(self) -> None:
        self.cb = None
        self.start()

    def kill_all(self) -> None:
        self.pb = self.cb = None
        if self.chance.random() < 0.5:
            self.consumers.clear()
        self.start()

    def power_cut(self) -> None:
        self.files.crash(self.chance if self.chance.random() < 0.7 else None)
        self.pb = self.cb = None
        self.consumers.clear()
        self.start()

    def lose_consumer(self) -> None:
        if self.consumers and self.cb is not None:
            self.cb.detach(self.consumers.pop().peer)

    def start(self) -> None:
        """Start whichever broker is down; a fault may strike in here as well."""
        if self.chance.random() < 0.1:
            self._arm(self.chance.choice((PowerCut, Killed)))
        try:
            self._start()
        except PowerCut:
            self.happened["power cut while starting"] += 1
            self.power_cut()
        except Killed:
            self.happened["kill while starting"] += 1
            self.kill_all()

    def _start(self) -> None:
        if self.pb is None:
            self.pb = PublisherBroker(self.files, self.clock, self.config, announce=self._announced)
            self.pb.open()
            self.mark = self.pb.mark
        if self.cb is None:
            self.to_cb = []
            self.cb = ConsumerBroker(self.files, self.clock, self.config, chance=self.chance, is_alive=lambda pid: bool(self.consumers))
            self.cb.open()
            for consumer in self.consumers:
                self._join(consumer)
        self.files.fail = lambda number, name: None
        self.judge()

    def _announced(self, mark: Mark) -> None:
        self.mark = mark

    # ── what was promised ────────────────────────────────────────────────────────────────────────────────────────────

    def judge(self) -> None:
        """Everything acknowledged is in the files, once; no completion that was acknowledged is undone or replaced."""
        disk = self.files.copy()
        tasks = load_state(disk).state.tasks
        final_checkpoint(disk, config=self.config, at_ms=self.clock.wall_ms())
        folded = load_state(disk)
        assert json.encode(folded.state.tasks) == json.encode(tasks), "the fold differs from the replay"
        archived = _archived(disk, folded.header.archive)
        assert not tasks.keys() & archived.keys(), "in the queue and in the archive"
        known = {**{task_id: json.decode(json.encode(task)) for task_id, task in tasks.items()}, **archived}
        assert self.acknowledged <= known.keys(), f"lost: {sorted(self.acknowledged - known.keys())}"
        for task_id, token in self.completed.items():
            assert known[task_id]["status"] == "completed", f"{task_id} is {known[task_id]['status']} again"
            assert known[task_id]["result"] == {"token": token}
        for task in known.values():
            assert sum(past["outcome"] == Outcome.COMPLETED for past in task.get("history", ())) <= 1

    def heal(self) -> None:
        """No more faults: whatever is unanswered is published, and everything there is completes."""
        if self.unanswered:
            self.publish()
        for _ in range(2_000):
            self.clock.ms += 100
            self.hand_out()
            for _ in range(10):
                self.consume()
            if not self.to_cb and not self._open():
                break
        self.checkpoint()
        self.judge()
        assert not self._open()

    def _open(self) -> dict[str, str]:
        return {task.id: task.status for task in load_state(self.files).state.tasks.values() if not task.status.ended}


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
