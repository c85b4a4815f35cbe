"""kill -9 of any process, at any moment: what was acknowledged is there, everything completes, each task once."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from e2e.cast import PATIENCE_S, Cast
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import JsonQueueError
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.locks import hold
from jsonqueue.task import Outcome

pytestmark = pytest.mark.processes

TASKS = 10_000


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def _kill_consumer(cast: Cast, manager: subprocess.Popen[bytes], consumers: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    cast.kill(consumers[0])
    cast.work()
    return manager


def _kill_publisher_broker(cast: Cast, manager: subprocess.Popen[bytes], _: object) -> subprocess.Popen[bytes]:
    os.kill(cast.broker_pid("publisher_broker"), signal.SIGKILL)
    return manager


def _kill_consumer_broker(cast: Cast, manager: subprocess.Popen[bytes], _: object) -> subprocess.Popen[bytes]:
    os.kill(cast.broker_pid("consumer_broker"), signal.SIGKILL)
    return manager


def _kill_manager(cast: Cast, manager: subprocess.Popen[bytes], _: object) -> subprocess.Popen[bytes]:
    cast.kill(manager)
    return cast.serve()


def _kill_all(cast: Cast, manager: subprocess.Popen[bytes], consumers: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    pids = [broker.pid for broker in cast.status().brokers]
    for process in [manager, *consumers]:
        process.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for process in [manager, *consumers]:
        cast.kill(process)
    manager = cast.serve()
    cast.work()
    return manager


_VICTIMS = [_kill_consumer, _kill_publisher_broker, _kill_consumer_broker, _kill_manager, _kill_all]


@pytest.mark.parametrize("kill", _VICTIMS, ids=lambda kill: kill.__name__.removeprefix("_kill_"))
def test_ten_thousand_tasks_complete_once_each(cast: Cast, kill: Callable[..., subprocess.Popen[bytes]]) -> None:
    """One process (or all) is killed in the middle of 10,000 tasks; afterwards all 10,000 are completed, each once."""
    manager = cast.serve()
    consumers = [cast.work(), cast.work()]
    with Publisher(cast.queue_dir, timeout=40) as publisher:
        publishing = threading.Thread(target=publisher.publish_many, args=(({"n": n} for n in range(TASKS)),), kwargs={"batch_max": 100})
        publishing.start()
        cast.witness.wait_for(TASKS // 5)
        manager = kill(cast, manager, consumers)
        publishing.join()
    cast.witness.wait_for(TASKS)
    cast.await_settled()
    assert cast.stop(manager) == 0

    document = json.loads((cast.queue_dir / "queue.json").read_bytes())
    assert len(document["tasks"]) == TASKS
    assert {task["status"] for task in document["tasks"]} == {"completed"}
    assert [task["result"]["seen"]["n"] for task in document["tasks"]] == list(range(TASKS))
    completions = [sum(past["outcome"] == Outcome.COMPLETED for past in task["history"]) for task in document["tasks"]]
    assert completions == [1] * TASKS
    assert not list(cast.queue_dir.glob("*.jsonl")), "after a clean stop queue.json alone holds everything"
    # Run twice, if at all, only what was in the hands of whoever was killed.
    assert sum(cast.witness.runs.values()) - TASKS < 3_000


def test_all_that_was_acknowledged_survives_a_kill_of_everything(cast: Cast) -> None:
    """Publishers, one task at a time, until the brokers are killed in the midst of it; every acknowledged id is in the files."""
    manager = cast.serve()
    acknowledged: list[str] = []
    enough = threading.Event()

    def publish() -> None:
        with Publisher(cast.queue_dir, timeout=1) as publisher:
            try:
                while True:
                    acknowledged.append(publisher.publish("x").id)
                    if len(acknowledged) >= 1_000:
                        enough.set()
                    if killed.is_set():
                        return
            except JsonQueueError:
                return

    killed = threading.Event()
    publishers = [threading.Thread(target=publish) for _ in range(8)]
    for thread in publishers:
        thread.start()
    assert enough.wait(40)
    pids = [broker.pid for broker in cast.status().brokers]
    for pid in (manager.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    killed.set()
    for thread in publishers:
        thread.join()
    cast.kill(manager)
    assert set(acknowledged) <= set(cast.tasks())


# ── orphans ──────────────────────────────────────────────────────────────────────────────────────────────────────────


CENSUS = "JSONQUEUE_TESTS_CENSUS"


def _counted(mark: str) -> set[int]:
    """All processes that were started, by whomever, with this mark in their environment. (One that is not reaped yet has none any more.)"""
    wanted, found = f"{CENSUS}={mark}".encode(), set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # of another user, or gone meanwhile
            if wanted in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def _serving(cast: Cast, mark: str) -> subprocess.Popen[bytes]:
    manager = cast.serve(environment={CENSUS: mark})
    assert len(_counted(mark)) == 3
    return manager


def _starting(cast: Cast, mark: str) -> subprocess.Popen[bytes]:
    """Its brokers exist, and are not far."""
    manager = cast.start("serve", environment={CENSUS: mark})
    while len(_counted(mark)) < 3:
        assert manager.poll() is None
    return manager


def _waiting_for_a_lock(cast: Cast, mark: str) -> subprocess.Popen[bytes]:
    """One of its brokers waits for somebody who does not let go."""
    manager = cast.start("serve", environment={CENSUS: mark})
    while not (cast.serving() and any(broker.state == "waiting" for broker in cast.status().brokers)):
        assert manager.poll() is None
    return manager


def _after_deaths(cast: Cast, mark: str) -> subprocess.Popen[bytes]:
    """Its brokers are others than those it began with."""
    manager = _serving(cast, mark)
    before = {broker.pid for broker in cast.status().brokers}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    while any(broker.pid in before or broker.state != "ready" for broker in cast.status().brokers):
        pass
    return manager


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("moment", [_serving, _starting, _waiting_for_a_lock, _after_deaths], ids=lambda moment: moment.__name__.strip("_"))
def test_no_process_outlives_its_manager(cast: Cast, moment: Callable[..., subprocess.Popen[bytes]]) -> None:
    """kill -9 of the manager, whatever it was about: of all processes that it had started, and that these had started, none is left, and
    the folder is free."""
    mark = str(cast.queue_dir)
    with _held_progress(cast) if moment is _waiting_for_a_lock else nullcontext():
        manager = moment(cast, mark)
        while len(others := _counted(mark) - {manager.pid}) < 2:  # one that is about to be another program has no mark for a moment
            assert manager.poll() is None
        watched = [os.pidfd_open(pid) for pid in others]
        cast.kill(manager)
        for fd in watched:
            assert select.select([fd], [], [], PATIENCE_S)[0], "it outlived its manager"
            os.close(fd)
        assert len(others) == 2
        assert _counted(mark) == set()
        assert not cast.serving()
    assert cast.stop(cast.serve()) == 0


@contextmanager
def _held_progress(cast: Cast) -> Iterator[None]:
    """The folder is there, and its progress log in our hands."""
    open_folder(cast.queue_dir, create=True).shut()
    with hold(cast.queue_dir, "progress"):
        yield
