"""Whoever lost its lock writes nothing more: it may have slept through its own replacement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw

from e2e.cast import Cast
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import connect
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import ConnectionClosed, LockLost, StorageError
from jsonqueue.event import EventOwner, Write, encode
from jsonqueue.task import TaskIn

pytestmark = pytest.mark.processes
LOCKS = ("queue", "published", "progress")
PATIENCE_S = 40.0


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def _write(task_id: str) -> bytes:
    return encode(Write(1, [TaskIn(id=task_id, data=Raw(b"1"))]))


def _contents(queue_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in queue_dir.iterdir() if path.suffix in {".json", ".jsonl", ".lock"}}


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _published(pipe: Pipe, task_id: str) -> None:
    pipe.send(_write(task_id))
    assert pipe.receive(PATIENCE_S)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_brokers_that_slept_while_their_folder_was_taken_over_write_nothing(cast: Cast) -> None:
    """Stopped, their lock files removed, another manager serving: awake again they acknowledge nothing, change nothing, and end."""
    quiet = "flush_interval_ms=3600000"
    first = cast.serve(quiet, stderr=subprocess.PIPE)
    pipe, _ = connect(cast.queue_dir, EventOwner.PUBLISHER)
    _published(pipe, "before")
    sleepers = [*[broker.pid for broker in cast.status().brokers], first.pid]
    for pid in sleepers:
        os.kill(pid, signal.SIGSTOP)
    while any(_state_of(pid) != "T" for pid in sleepers):
        pass
    pipe.post(_write("late"))
    for name in LOCKS:
        (cast.queue_dir / f"{name}.lock").unlink()
    second = cast.serve(quiet)
    with Publisher(cast.queue_dir) as publisher:
        publisher.publish_many([TaskIn(id="after", data=1)])
    held = _contents(cast.queue_dir)
    for pid in sleepers:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(ConnectionClosed):
        pipe.receive(PATIENCE_S)
    pipe.close()
    _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == LockLost.exit_status == 74
    assert b"was removed or replaced" in said
    assert _contents(cast.queue_dir) == held
    assert cast.status().pid == second.pid, "its socket is still there"
    assert set(cast.tasks()) == {"before", "after"}
    assert cast.stop(second) == 0


@pytest.mark.parametrize(("lock", "role"), [("published", 0), ("progress", 1)])
def test_a_broker_whose_lock_was_removed_ends_and_its_successor_goes_on(tmp_path: Path, lock: str, role: int) -> None:
    """Somebody tidied up: nothing is written under the lock that is gone, and the next broker takes a new one."""
    with BrokerManager(tmp_path / "queue") as manager, Publisher(manager) as publisher:
        publisher.publish("x")
        pid = manager.status().brokers[role].pid
        (tmp_path / "queue" / f"{lock}.lock").unlink()
        handle = publisher.publish("y")
        handle.cancel()
        status = manager.status().brokers[role]
        assert (status.pid != pid, status.restarts) == (True, 1)
        assert handle.task().status == "cancelled"


def test_a_manager_whose_lock_was_removed_folds_nothing(tmp_path: Path) -> None:
    """queue.json may be somebody else's by now: the manager stops with that error, and what was acknowledged is in the logs."""
    manager = BrokerManager(tmp_path / "queue", Config(flush_interval_ms=3_600_000))
    manager.start()
    manager.wait_ready()
    with Publisher(manager) as publisher:
        publisher.publish("x")
    (tmp_path / "queue" / "queue.lock").unlink()
    before = (tmp_path / "queue" / "queue.json").read_bytes()
    with pytest.raises(StorageError, match="was removed or replaced"):
        manager.checkpoint()
    with pytest.raises(LockLost):
        manager.stop()
    assert (tmp_path / "queue" / "queue.json").read_bytes() == before
    with BrokerManager(tmp_path / "queue") as again:
        assert sum(broker.counters.get("ready", 0) for broker in again.status().brokers) == 1
