"""Real brokers on a machine whose wall clock jumps: what has a time of its own is neither early nor lost, and nothing else notices."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from broker import jumping_clock
from broker.booting import boot_by
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.publisher import Publisher
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.task import AnyTask, TaskStatus

pytestmark = pytest.mark.processes
PATIENCE_S = 40.0
HOUR_MS, YEAR_MS = 3_600_000, 365 * 86_400_000
QUIET = Config(lease_ms=600_000, flush_interval_ms=3_600_000, disk_reserve_bytes=0)
"""Nothing stirs by itself: no heartbeat, no checkpoint."""

Jump = Callable[[int], None]


@pytest.fixture
def jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Sets the wall clock of this process and of all brokers so much (ms) before or behind what it was at first."""
    clock = jumping_clock.clock_of(tmp_path / "queue")
    jumping_clock.jump(clock, 0)
    monkeypatch.setattr(SystemClock, "wall_ms", lambda self: jumping_clock.wall_ms(clock))
    boot_by(monkeypatch, "broker.jumping_clock")
    return lambda off_ms: jumping_clock.jump(clock, off_ms)


class Runs:
    """A handler that notes what it runs; payloads that say "wait" wait."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, task: AnyTask) -> str:
        self.ids.append(task.id)
        if task.data == "wait":
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        return task.id


def _kill_both(manager: BrokerManager) -> None:
    """And wait until there are two others."""
    before = {broker.pid for broker in manager.status().brokers}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    while any(broker.pid in before or broker.state != "ready" for broker in manager.status().brokers):
        pass


def test_after_a_jump_back_what_has_its_time_is_neither_early_nor_lost(tmp_path: Path, jump: Jump) -> None:
    """A year back: it waits until its hour comes, also through a new start of both brokers and a checkpoint, and runs once then."""
    runs = Runs()
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher, Consumer(manager, runs):
        later, before = publisher.publish("later", delay=3_600), publisher.publish("before")
        assert before.result(timeout=PATIENCE_S) == before.id
        jump(-YEAR_MS)
        assert later.task().status is TaskStatus.SCHEDULED
        after = publisher.publish("after")
        assert after.result(timeout=PATIENCE_S) == after.id
        _kill_both(manager)
        manager.checkpoint()
        assert later.task().status is TaskStatus.SCHEDULED
        jump(HOUR_MS - 60_000)
        assert later.task().status is TaskStatus.SCHEDULED, "a minute is left"
        assert runs.ids == [before.id, after.id]
        jump(HOUR_MS)
        assert later.result(timeout=PATIENCE_S) == later.id
        assert runs.ids == [before.id, after.id, later.id]


def test_after_a_jump_ahead_what_has_its_time_runs_once_and_nothing_else_is_early(tmp_path: Path, jump: Jump) -> None:
    """A month ahead: what was to run within it runs, once; back again it is not run a second time, and what is further off still waits."""
    runs = Runs()
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher, Consumer(manager, runs):
        runs.go_on.set()
        soon, far = publisher.publish("wait", delay=3_600), publisher.publish("far", delay=YEAR_MS / 1000)
        while (heard := manager.status().brokers[1].counters)["scheduled"] < 2 or heard["waiting"] < 1:
            pass  # until nobody has anything more to say to the broker
        jump(YEAR_MS // 12)
        assert runs.begun.wait(PATIENCE_S), "the broker looks at the clock by itself"
        assert soon.result(timeout=PATIENCE_S) == soon.id
        jump(0)
        _kill_both(manager)
        assert (soon.task().status, far.task().status) == (TaskStatus.COMPLETED, TaskStatus.SCHEDULED)
        assert runs.ids == [soon.id]


@pytest.mark.parametrize("off_ms", [YEAR_MS, -YEAR_MS, HOUR_MS, -HOUR_MS], ids=["a year ahead", "a year back", "summer", "winter"])
def test_no_lease_ends_by_the_wall_clock(tmp_path: Path, jump: Jump, off_ms: int) -> None:
    """A consumer in the midst of a task notices nothing: it keeps the task, and its outcome counts."""
    runs = Runs()
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        with Consumer(manager, runs):
            handle = publisher.publish("wait")
            assert runs.begun.wait(PATIENCE_S)
            jump(off_ms)
            assert handle.task().status is TaskStatus.IN_PROGRESS
            runs.go_on.set()
            assert handle.result(timeout=PATIENCE_S) == handle.id
        assert [(past.attempt, past.outcome) for past in handle.task().history] == [(1, "completed")]
        assert [broker.restarts for broker in manager.status().brokers] == [0, 0]
