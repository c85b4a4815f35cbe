"""A machine that sleeps: every process of a queue stands still for longer than any of them may be silent, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cast import PATIENCE_S, Cast
from jsonqueue.client.publisher import Publisher
from jsonqueue.task import Outcome

pytestmark = pytest.mark.processes
LEASE_MS = 400


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _suspend(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    while any(_state_of(pid) != "T" for pid in pids):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("first", ["brokers", "consumers"])
def test_a_queue_that_slept_for_longer_than_its_leases_goes_on(cast: Cast, first: str) -> None:
    """Nobody is taken for dead. What a consumer held is confirmed, or handed on and fenced; each task is completed once, none is lost, what
    came due meanwhile runs, and whoever was asked in its sleep answers."""
    manager = cast.serve(f"lease_ms={LEASE_MS}", stderr=subprocess.PIPE)
    gate, gate_writer = os.pipe()
    fds, environment = (cast.witness.writer, gate), {"GATE_FD": str(gate)}
    workers = [cast.start("work", "handlers:wait_for_gate", pass_fds=fds, environment=environment) for _ in range(2)]
    brokers = [broker.pid for broker in cast.status().brokers]
    with Publisher(cast.queue_dir) as publisher:
        handles = [publisher.publish(n) for n in range(2)]
        cast.witness.wait_for(2)  # One is in the hands of each of them.
        handles += [*(publisher.publish(n) for n in range(20)), publisher.publish("due meanwhile", delay=LEASE_MS / 1000)]
        parts = {"brokers": [manager.pid, *brokers], "consumers": [worker.pid for worker in workers]}
        _suspend([pid for pids in parts.values() for pid in pids])
        asking = threading.Thread(target=lambda: handles.append(publisher.publish("asked in its sleep")))
        asking.start()
        time.sleep(2 * LEASE_MS / 1000)  # Time itself has to pass, for all of them alike.
        for part in sorted(parts, key=lambda part: part != first):
            for pid in parts[part]:
                os.kill(pid, signal.SIGCONT)
        os.write(gate_writer, b"!!")
        asking.join(PATIENCE_S)
        assert [handle.result(timeout=PATIENCE_S) for handle in handles] == ["late"] * 24
        outcomes = [[past.outcome for past in handle.task().history] for handle in handles]
        assert [past.count(Outcome.COMPLETED) for past in outcomes] == [1] * 24
        assert {outcome for past in outcomes for outcome in past} <= {Outcome.COMPLETED, Outcome.EXPIRED, Outcome.RETURNED}
        assert [broker.pid for broker in cast.status().brokers] == brokers
    assert [worker.poll() for worker in workers] == [None, None]
    manager.send_signal(signal.SIGTERM)
    _, said = manager.communicate(timeout=PATIENCE_S)
    assert manager.returncode == 0
    assert b"died" not in said, said
    assert b"killed" not in said, said
    for fd in (gate, gate_writer):
        os.close(fd)
