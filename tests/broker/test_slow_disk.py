"""A disk that takes its time: whoever waits for it waits, nobody else does, and nothing is taken for what it is not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from broker import slow_disk
from broker.booting import boot_by
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import connect, operate
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.membership import Membership
from jsonqueue.client.publisher import Publisher
from jsonqueue.client.window import WINDOW
from jsonqueue.config import Config
from jsonqueue.errors import PublishUnknown
from jsonqueue.event import EventOwner, Heartbeat, Write, decoder_for, encode
from jsonqueue.task import AnyTask, TaskIn, TaskStatus

pytestmark = pytest.mark.processes
PATIENCE_S = 40.0
PUBLISHER_SYNCS, CONSUMER_SYNCS, CONSUMER_LOADS = slow_disk.NAMES
QUIET = Config(lease_ms=800, flush_interval_ms=3_600_000, disk_reserve_bytes=0)


class Disk:
    """What the brokers' disk is about to do, and when it may."""

    def __init__(self) -> None:
        self._ear, self._told = os.pipe()
        self._gates = {name: os.pipe() for name in slow_disk.NAMES}
        for name in self._gates:
            self.open(name)

    @property
    def fds(self) -> list[int]:
        """What a broker process needs of it."""
        return [self._told, *(read for read, _ in self._gates.values())]

    def shut(self, name: str) -> None:
        """From now on, whoever comes to this gate waits there."""
        assert os.read(self._gates[name][0], 1)

    def open(self, name: str) -> None:
        """Let go whoever waits."""
        os.write(self._gates[name][1], b"!")

    def await_somebody(self, name: str) -> None:
        """Until somebody waits at this gate."""
        assert select.select([self._ear], [], [], PATIENCE_S)[0], f"no {name} began"
        assert slow_disk.NAMES[os.read(self._ear, 1)[0]] == name

    def close(self) -> None:
        for fd in [self._ear, self._told, *(end for gate in self._gates.values() for end in gate)]:
            os.close(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Of every broker that a manager starts from now on."""
    disk, popen = Disk(), subprocess.Popen

    def with_gates(command: list[str], *, pass_fds: list[int], **options: Any) -> Any:
        return popen(command, pass_fds=[*pass_fds, *disk.fds], **options)

    monkeypatch.setenv(slow_disk.GATES, ",".join(map(str, disk.fds)))
    boot_by(monkeypatch, "broker.slow_disk")
    monkeypatch.setattr(subprocess, "Popen", with_gates)
    yield disk
    disk.close()


class Pulse:
    """The heartbeats of the consumers of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._beats = threading.Semaphore(0)
        heartbeat = Membership._heartbeat

        def counted(membership: Membership) -> Heartbeat:
            self._beats.release()
            return heartbeat(membership)

        monkeypatch.setattr(Membership, "_heartbeat", counted)

    def await_lease(self) -> None:
        """Until the one consumer has lived through more than a lease, from now on: it has a heartbeat each third of it."""
        while self._beats.acquire(blocking=False):
            pass
        for _ in range(5):
            assert self._beats.acquire(timeout=PATIENCE_S)


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Pulse:
    return Pulse(monkeypatch)


class Handler:
    """Its first run goes on until it is told to end."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.begun = threading.Event()
        self.end = threading.Event()

    def __call__(self, task: AnyTask) -> str:
        self.runs.append(task.id)
        self.begun.set()
        assert self.end.wait(PATIENCE_S)
        return "done"


def _in_background(act: Any, *arguments: Any, **options: Any) -> tuple[threading.Thread, list[Any]]:
    """What it returns will be in the list."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(act(*arguments, **options)))
    thread.start()
    return thread, got


def _restarts(manager: BrokerManager) -> list[int]:
    return [broker.restarts for broker in manager.status().brokers]


# ── consumers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_living_consumer_keeps_its_lease_however_long_a_sync_takes(tmp_path: Path, disk: Disk, pulse: Pulse) -> None:
    """What it said meanwhile is heard before its lease is judged: nothing is handed on, and its outcome counts. Nobody is told of what the
    disk does not have yet; publishers, and whoever asks for the status, do not wait."""
    handler = Handler()
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        with Consumer(manager, handler):
            running, other = publisher.publish("x"), publisher.publish("y", delay=3_600)
            assert handler.begun.wait(PATIENCE_S)
            disk.shut(CONSUMER_SYNCS)
            cancelling, cancelled = _in_background(other.cancel)
            disk.await_somebody(CONSUMER_SYNCS)
            pulse.await_lease()
            meanwhile = publisher.publish("z", delay=3_600)
            told = operate(manager.queue_dir, "status").status
            assert [broker.state for broker in told.brokers] == ["ready", "ready"]
            assert cancelled == []
            disk.open(CONSUMER_SYNCS)
            cancelling.join(PATIENCE_S)
            assert len(cancelled) == 1
            handler.end.set()
            assert running.result(timeout=PATIENCE_S) == "done"
        assert handler.runs == [running.id]
        assert [(past.attempt, past.outcome) for past in running.task().history] == [(1, "completed")]
        assert meanwhile.task().status is TaskStatus.SCHEDULED
        assert _restarts(manager) == [0, 0]


def test_a_consumer_that_joins_keeps_its_first_task_however_long_the_sync_takes(tmp_path: Path, disk: Disk, pulse: Pulse) -> None:
    """It is given the task before the disk has its lease; so is it welcomed, without which it sends no heartbeat."""
    handler = Handler()
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        running = publisher.publish("x")
        assert running.task().status is TaskStatus.PENDING
        disk.shut(CONSUMER_SYNCS)
        with Consumer(manager, handler):
            assert handler.begun.wait(PATIENCE_S)
            disk.await_somebody(CONSUMER_SYNCS)
            pulse.await_lease()
            disk.open(CONSUMER_SYNCS)
            handler.end.set()
            assert running.result(timeout=PATIENCE_S) == "done"
        assert handler.runs == [running.id]
        assert [(past.attempt, past.outcome) for past in running.task().history] == [(1, "completed")]


def test_a_living_consumer_keeps_its_lease_however_long_a_broker_takes_to_load(tmp_path: Path, disk: Disk) -> None:
    """It cannot come back before the broker serves, so its time to do so does not begin before that."""
    handler = Handler()
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        with Consumer(manager, handler):
            running = publisher.publish("x")
            assert handler.begun.wait(PATIENCE_S)
            disk.shut(CONSUMER_LOADS)
            os.kill(manager.status().brokers[1].pid, signal.SIGKILL)
            disk.await_somebody(CONSUMER_LOADS)
            time.sleep(1.25 * QUIET.lease_ms / 1000)  # Time itself has to pass: nobody says anything meanwhile.
            disk.open(CONSUMER_LOADS)
            assert running.task().status is TaskStatus.IN_PROGRESS
            handler.end.set()
            assert running.result(timeout=PATIENCE_S) == "done"
        assert handler.runs == [running.id]
        assert [(past.attempt, past.outcome) for past in running.task().history] == [(1, "completed")]
        assert _restarts(manager) == [0, 1]


# ── publishers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_gathers_while_a_sync_takes_long_is_one_batch(tmp_path: Path, disk: Disk) -> None:
    """Whoever waits for the disk waits for one sync more, not for one each; nothing is acknowledged before it."""
    with BrokerManager(tmp_path / "queue", QUIET), ExitStack() as open_pipes:
        pipes = [connect(tmp_path / "queue", EventOwner.PUBLISHER)[0] for _ in range(20)]
        for place, pipe in enumerate(pipes):
            open_pipes.callback(pipe.close)
            pipe.send(_write(f"t{place}"))
        before = max(number for pipe in pipes for number in _told(pipe, 1))
        disk.shut(PUBLISHER_SYNCS)
        pipes[0].send(_write("first"))
        disk.await_somebody(PUBLISHER_SYNCS)
        for place, pipe in enumerate(pipes[1:]):
            for number in range(3):
                pipe.send(_write(f"t{place}.{number}"))
        assert [pipe.receive(0) for pipe in pipes] == [[]] * 20
        disk.open(PUBLISHER_SYNCS)
        assert _told(pipes[0], 1) == [before + 1]
        assert [_told(pipe, 3) for pipe in pipes[1:]] == [[before + 2] * 3] * 19


def _write(task_id: str) -> bytes:
    return encode(Write(1, [TaskIn(id=task_id, data=Raw(b"1"))]))


def _told(pipe: Pipe, count: int) -> list[int]:
    """The batches in which that was stored which came over this Pipe, in so many writes."""
    decode, frames = decoder_for(EventOwner.PUBLISHER_BROKER), []
    while len(frames) < count and (more := pipe.receive(PATIENCE_S)):
        frames += more
    return [decode(frame).number for frame in frames]


def test_a_publisher_reads_on_only_as_far_as_the_disk_follows(tmp_path: Path, disk: Disk) -> None:
    """A few batches are on their way, and the rest stays where it is: memory is bounded, however slow the disk."""
    ahead_max, batch_max, tasks = 0, 10, 1_000
    answered = drawn = 0

    def given() -> Iterator[int]:
        nonlocal ahead_max, drawn
        for drawn in range(1, tasks + 1):
            ahead_max = max(ahead_max, drawn - answered)
            yield drawn

    def progress(so_far: int) -> None:
        nonlocal answered
        answered = so_far

    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        disk.shut(PUBLISHER_SYNCS)
        publishing, published = _in_background(publisher.publish_many, given(), batch_max=batch_max, on_progress=progress)
        disk.await_somebody(PUBLISHER_SYNCS)
        before = -1
        while drawn != before:
            before = drawn
            operate(manager.queue_dir, "status")  # answered without the broker that waits for its disk, a moment later
        assert answered == 0
        disk.open(PUBLISHER_SYNCS)
        publishing.join(PATIENCE_S)
    assert published[0].published == tasks
    assert WINDOW <= ahead_max <= (WINDOW + 2) * batch_max


def test_a_publisher_whose_patience_ends_before_the_sync_knows_that_it_knows_nothing(tmp_path: Path, disk: Disk) -> None:
    """It may be stored, and is: asked again under the same id, the queue has one task."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish("connected")
        disk.shut(PUBLISHER_SYNCS)
        publisher.timeout = 0.1
        with pytest.raises(PublishUnknown, match=r"did not answer within 0\.1 s"):
            publisher.publish("x", id="x")
        disk.open(PUBLISHER_SYNCS)
        publisher.timeout = PATIENCE_S
        assert publisher.publish("x", id="x").duplicate
        assert manager.status().brokers[0].counters["known_ids"] == 2
        assert _restarts(manager) == [0, 0]
