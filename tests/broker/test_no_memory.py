"""Want of memory: whoever meets it ends, or puts off what it was about, and says so; nothing that was acknowledged is lost by it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from broker.booting import boot_by
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import BrokerFailed, StorageError
from jsonqueue.task import TaskStatus

pytestmark = pytest.mark.processes
ROLES = ("publisher-broker", "consumer-broker")
QUIET = Config(flush_interval_ms=3_600_000, disk_reserve_bytes=0)


def test_a_checkpoint_for_which_there_is_no_memory_is_put_off_and_not_called_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked for it is told, the status and the log say it, the brokers go on, and the next attempt folds all."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish("x")
        with patch("jsonqueue.broker.checkpointing.checkpoint", side_effect=MemoryError):
            with pytest.raises(StorageError, match="out of memory"):
                manager.checkpoint()
            assert manager.status().checkpoint_error == "out of memory"
            assert "the next try follows: out of memory" in caplog.text
        publisher.publish("y")
        manager.checkpoint()
        assert (manager.status().checkpoints, manager.status().checkpoint_error) == (1, "")


def test_a_last_checkpoint_for_which_there_is_no_memory_leaves_it_to_the_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said, and no failure of the manager: the next start finds all."""
    manager = BrokerManager(tmp_path / "queue", QUIET)
    manager.start()
    manager.wait_ready()
    with Publisher(manager) as publisher:
        publisher.publish("x", id="x")
    with patch("jsonqueue.broker.supervisor.final_checkpoint", side_effect=MemoryError):
        manager.stop()
    assert "stopped without a last checkpoint, the logs keep what queue.json lacks: out of memory" in caplog.text
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        assert publisher.publish("x", id="x").duplicate


def test_a_manager_without_memory_for_a_broker_says_what_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log and in the status, until there is some."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager:
        with patch.object(subprocess, "Popen", side_effect=MemoryError):
            os.kill(manager.status().brokers[0].pid, signal.SIGKILL)
            while not (why := manager.status().brokers[0].waits_for):
                pass
            assert why == "it cannot be started for now: out of memory"
            assert "PublisherBroker is down, out of memory; it is tried again until it works" in caplog.text
        with Publisher(manager) as publisher:
            publisher.publish("x")


# ── brokers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to put a file for brokers that find no memory (:mod:`broker.no_memory`)."""
    boot_by(monkeypatch, "broker.no_memory")
    return tmp_path


@pytest.mark.parametrize("place", ["take", "append", "rotate"])
@pytest.mark.parametrize("role", [0, 1], ids=ROLES)
def test_a_broker_without_memory_ends_and_the_next_one_goes_on(
    short: Path, role: int, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it stands is of no use any more; the files are. Nothing acknowledged is lost, nothing is there twice."""
    with BrokerManager(short / "queue", QUIET) as manager, Publisher(manager) as publisher:
        handles = [publisher.publish("before")]
        handles[0].task()
        (short / f"{ROLES[role]} {place} once").touch()
        if place == "rotate":
            with pytest.raises(StorageError, match=f"the {ROLES[role].replace('-', ' ')} died"):
                manager.checkpoint()
        handles.append(publisher.publish("meanwhile", id="meanwhile"))
        handles[0].cancel()
        handles.append(publisher.publish("after"))
        assert [handle.task().status.value for handle in handles] == ["cancelled", "pending", "pending"]
        manager.checkpoint()
        assert manager.status().brokers[0].counters["known_ids"] == len(handles)
        assert [broker.restarts for broker in manager.status().brokers] == [1 - role, role]
    assert f"the jsonqueue {ROLES[role].replace('-', ' ')} ran out of memory; starting it again" in caplog.text


@pytest.mark.parametrize("role", [0, 1], ids=ROLES)
def test_brokers_that_never_have_the_memory_to_load_are_given_up_with_that_word(short: Path, role: int) -> None:
    """Three times started again, not for ever: another start would find as little. With more memory all is there."""
    with BrokerManager(short / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish("x", id="x")
    nothing_to_load_it_into = short / f"{ROLES[role]} load"
    nothing_to_load_it_into.touch()
    manager = BrokerManager(short / "queue", QUIET)
    words = f"the jsonqueue {ROLES[role].replace('-', ' ')} ran out of memory"
    with patch.object(subprocess, "Popen", wraps=subprocess.Popen) as started:
        manager.start()
        with pytest.raises(BrokerFailed, match=words):
            manager.wait_ready()
        with pytest.raises(BrokerFailed, match=words):
            manager.stop()
    starts = [call.args[0][3] for call in started.call_args_list]
    assert starts.count(f"jsonqueue-{ROLES[role]}") == 4
    assert len(starts) == 5, "the other one was left alone"
    nothing_to_load_it_into.unlink()
    with BrokerManager(short / "queue", QUIET) as manager, Publisher(manager) as publisher:
        assert publisher.publish("x", id="x").duplicate


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
@pytest.mark.parametrize("role", [0, 1], ids=ROLES)
def test_a_broker_that_runs_into_its_limit_of_memory_is_started_again(tmp_path: Path, role: int) -> None:
    """RLIMIT_AS, in the midst of work that needs more: wherever it is met (some C code does not survive that), the files hold all that was
    acknowledged, and whoever was not answered asks again."""
    large = ["x" * 900_000] * 30
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        handle = publisher.publish("before")
        handle.task()
        pid = manager.status().brokers[role].pid
        allowed = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (allowed, allowed))
        assert publisher.publish_many(large).published <= len(large)
        assert handle.task().status is TaskStatus.PENDING
        counters = [broker.counters for broker in manager.status().brokers]
        assert (counters[0]["known_ids"], counters[1]["ready"]) == (len(large) + 1, len(large) + 1)
        assert [broker.restarts for broker in manager.status().brokers] == [1 - role, role]
