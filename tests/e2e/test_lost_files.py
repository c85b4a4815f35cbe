"""Somebody tidies up, or edits, in the folder of a queue that is served: what was acknowledged is there, or its loss is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import CorruptQueue, DiskFull, StorageError
from jsonqueue.main import main
from jsonqueue.storage import checkpoint as checkpoint_module
from jsonqueue.storage.recovery import inspect

pytestmark = pytest.mark.processes
QUIET = Config(flush_interval_ms=3_600_000)


def _replace(path: Path) -> None:
    """As an editor does that saves what it was given."""
    copy = path.with_suffix(".swp")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


HOW: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one log removed": ("published-*.jsonl", Path.unlink),
    "the other one moved": ("progress-*.jsonl", lambda path: path.rename(path.with_suffix(".bak"))),
    "both removed": ("*.jsonl", Path.unlink),
    "both replaced": ("*.jsonl", _replace),
}
taken_away = pytest.mark.parametrize(("pattern", "take"), HOW.values(), ids=HOW)


def _statuses(queue_dir: Path) -> dict[str, str]:
    return {task_id: str(task.status) for task_id, task in inspect(queue_dir).state.tasks.items()}


def _folded(manager: BrokerManager) -> bool:
    """Whether a checkpoint succeeds: each broker that has to be started again is in its way once."""
    with suppress(StorageError):
        manager.checkpoint()
        return True
    return False


@taken_away
def test_a_queue_whose_logs_are_taken_away_goes_on_and_has_lost_nothing(
    tmp_path: Path, pattern: str, take: Callable[[Path], object]
) -> None:
    """Not what was acknowledged before, nor after, nor what came to pass in between; the broker that finds it is started again."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish(1, id="before").cancel()
        for path in (tmp_path / "queue").glob(pattern):
            take(path)
        publisher.publish(2, id="after")
        publisher.publish(3, id="later").cancel()
        assert publisher.publish(1, id="before").task().status == "cancelled"
        assert sum(broker.restarts for broker in manager.status().brokers) > 0
        manager.checkpoint()
    assert _statuses(tmp_path / "queue") == {"before": "cancelled", "after": "pending", "later": "cancelled"}


@pytest.mark.parametrize("looks", ["a checkpoint", "the end"])
def test_logs_that_are_taken_away_are_missed_though_nothing_happens(tmp_path: Path, looks: str) -> None:
    """A checkpoint finds it, or the stop: nobody has to publish first."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish(1, id="before").cancel()
        for path in (tmp_path / "queue").glob("*.jsonl"):
            path.unlink()
        if looks == "a checkpoint":
            while not _folded(manager):
                assert manager.running
            assert [broker.restarts for broker in manager.status().brokers] == [1, 1]
    assert _statuses(tmp_path / "queue") == {"before": "cancelled"}


@pytest.mark.parametrize("it", ["lives", "starts"])
def test_a_broker_that_misses_the_log_of_its_sibling_lets_that_one_look(tmp_path: Path, it: str) -> None:
    """It finds no file where something was announced, in the midst of its life or as it starts. The other broker has it still."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        handle = publisher.publish(1, id="read")
        handle.cancel()
        consumer_broker = manager.status().brokers[1].pid
        manager.checkpoint()  # The next batch is in a file that only its writer has open.
        os.kill(consumer_broker, signal.SIGSTOP)
        publisher.publish(2, id="announced")
        for path in (tmp_path / "queue").glob("*.jsonl" if it == "lives" else "published-*.jsonl"):
            path.unlink()
        os.kill(consumer_broker, signal.SIGCONT if it == "lives" else signal.SIGKILL)
        handle.cancel()
        publisher.publish(3, id="after").cancel()
        assert [broker.restarts for broker in manager.status().brokers] == [1, 1]
    assert _statuses(tmp_path / "queue") == {"read": "cancelled", "announced": "pending", "after": "cancelled"}


@pytest.mark.parametrize("looks", ["a checkpoint", "the end"])
def test_sealed_segments_that_are_taken_away_before_they_are_folded_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: str
) -> None:
    """The disk is full, no checkpoint finds room, and somebody tidies up: the brokers still have what they sealed. It was lost."""
    full = Mock(side_effect=DiskFull("no room"))
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish(1, id="folded")
        manager.checkpoint()
        publisher.publish(2, id="sealed").cancel()
        with monkeypatch.context() as patch:
            patch.setattr("jsonqueue.broker.checkpointing.checkpoint", full)
            assert not _folded(manager)
        publisher.publish(3, id="open").cancel()
        sealed = [min((tmp_path / "queue").glob(f"{kind}-*.jsonl")) for kind in ("published", "progress")]
        for path in sealed:
            path.unlink()
        publisher.publish(4, id="after")
        if looks == "a checkpoint":
            while not _folded(manager):
                assert manager.running
            assert [broker.restarts for broker in manager.status().brokers] == [1, 1]
    assert _statuses(tmp_path / "queue") == {"folded": "pending", "sealed": "cancelled", "open": "cancelled", "after": "pending"}


def test_a_log_that_is_emptied_in_its_place_is_damage(tmp_path: Path) -> None:
    """What was in it is nowhere any more: the queue stops, and does not start without."""
    manager = BrokerManager(tmp_path / "queue", QUIET)
    manager.start()
    manager.wait_ready()
    with Publisher(manager) as publisher:
        publisher.publish(1)
        for path in (tmp_path / "queue").glob("published-*.jsonl"):
            os.truncate(path, 0)
        publisher.publish(2)
    with pytest.raises(StorageError):
        manager.checkpoint()
    with pytest.raises(CorruptQueue, match="published-"):
        manager.stop()
    with pytest.raises(CorruptQueue, match="published-"), BrokerManager(tmp_path / "queue"):
        pytest.fail("it must not serve")


EDITS: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "edited": lambda path: path.write_bytes(path.read_bytes().replace(b'"pending"', b'"running"')),
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_queue_json_that_somebody_changes_is_not_folded_and_mended_without_loss(
    tmp_path: Path, edit: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Publishing goes on meanwhile; the next checkpoint stops the queue, and a plain repair makes the file anew."""
    manager = BrokerManager(tmp_path / "queue", QUIET)
    manager.start()
    manager.wait_ready()
    with Publisher(manager) as publisher:
        publisher.publish(1, id="folded")
        manager.checkpoint()
        edit(tmp_path / "queue" / "queue.json")
        publisher.publish(2, id="logged")
    with pytest.raises(StorageError):
        manager.checkpoint()
    with pytest.raises(CorruptQueue, match=r"queue\.json") as caught:
        manager.stop()
    assert "jsonqueue repair" in caught.value.hint
    with pytest.raises(CorruptQueue, match=r"queue\.json"), BrokerManager(tmp_path / "queue"):
        pytest.fail("it must not serve")
    assert main(["--queue", str(tmp_path / "queue"), "repair"]) == 0, capsys.readouterr()
    assert _statuses(tmp_path / "queue") == {"folded": "pending", "logged": "pending"}


def test_an_edit_while_queue_json_is_folded_is_told_of_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint that it met says so and gives way; the next one finds what it is, and stops the queue. It was overtaken."""
    path, sync_folded = tmp_path / "queue" / "queue.json", checkpoint_module._sync_folded

    def edit(*args: object) -> None:
        sync_folded(*args)
        monkeypatch.undo()
        path.with_suffix(".swp").write_bytes(path.read_bytes().replace(b'"pending"', b'"running"'))
        path.with_suffix(".swp").rename(path)

    manager = BrokerManager(tmp_path / "queue", QUIET)
    manager.start()
    manager.wait_ready()
    with Publisher(manager) as publisher:
        publisher.publish(1, id="folded")
        manager.checkpoint()
        publisher.publish(2, id="logged")
        monkeypatch.setattr(checkpoint_module, "_sync_folded", edit)
        with pytest.raises(StorageError, match="was changed, replaced or removed by somebody"):
            manager.checkpoint()
        assert "was changed, replaced or removed" in manager.status().checkpoint_error
        assert "the next try follows: queue.json was changed" in caplog.text
        with pytest.raises(StorageError):
            manager.checkpoint()
    with pytest.raises(CorruptQueue, match="most likely it was changed outside of jsonqueue"):
        manager.stop()
    assert b'"running"' in path.read_bytes()
    assert main(["--queue", str(tmp_path / "queue"), "repair"]) == 0
    assert _statuses(tmp_path / "queue") == {"folded": "pending", "logged": "pending"}
