"""What people see on standard error: one line for one thing, and none for what is as it should be."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cast import Cast
from jsonqueue.client.publisher import Publisher

pytestmark = pytest.mark.processes
PATIENCE_S = 40.0


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def test_a_worker_without_a_broker_says_once_that_it_waits(cast: Cast) -> None:
    """And goes on by itself when there is one."""
    worker = cast.start("work", "handlers:note", stderr=subprocess.PIPE)
    assert worker.stderr is not None
    first = worker.stderr.readline()
    assert b"no broker is running on" in first
    assert b"waiting for one" in first
    cast.serve()
    with Publisher(cast.queue_dir) as publisher:
        publisher.publish("x").result(timeout=PATIENCE_S)
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=PATIENCE_S)
    assert said.startswith(b"1 task completed in"), said
    assert said.count(b"\n") == 1, said


def test_brokers_say_nothing_of_workers_that_are_interrupted(cast: Cast) -> None:
    """Ctrl-C, once and twice, in the midst of work: that is what workers are for."""
    manager = cast.serve(stderr=subprocess.PIPE)
    with Publisher(cast.queue_dir) as publisher:
        publisher.publish_many(range(20_000))
        for signals in (1, 2, 1):
            before = len(cast.witness.runs)
            worker = cast.start("work", "handlers:note", "--concurrency", "4", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            cast.witness.wait_for(before + 200)
            for _ in range(signals):
                worker.send_signal(signal.SIGINT)
            worker.wait(PATIENCE_S)
    manager.send_signal(signal.SIGTERM)
    _, said = manager.communicate(timeout=PATIENCE_S)
    assert (manager.returncode, said.count(b"\n")) == (0, 1), said
    assert said.startswith(b"Stopped."), said
