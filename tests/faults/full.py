"""A disk that is really full: a small tmpfs and a small ext4, on which another program leaves no byte.

Publishing is refused, what consumers hold is completed all the same (from the reserve), and everything goes on when there is room again.
Then with real processes and without a reserve: brokers that are killed on the full disk wait for room, and serve when there is some.
Run it under ``unshare -m``, as root.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

import faults.life
from faults.lanes import Lane, arguments, fast_folder
from faults.life import CONFIG, Ledger, Life, judge
from faults.power import Disk, make_folders, run, why_not
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.registration import connect
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable
from jsonqueue.event import EventOwner
from jsonqueue.storage.recovery import inspect

__all__ = ["main"]

RESERVE = 4 << 20
PATIENCE_S = 30.0


def main() -> None:
    lane = Lane(arguments("a disk without room"))
    reason = why_not()
    if reason:
        sys.exit(reason)
    faults.life.CONFIG = replace(CONFIG, disk_reserve_bytes=RESERVE, segment_max_bytes=1 << 20)
    with fast_folder() as folder:
        disk = Disk(folder)
        try:
            lane.attempt("ext4", lambda: _fill_and_go_on(lane, disk.root))
            lane.attempt("ext4, processes", lambda: _wait_for_room(lane, disk.root))
        finally:
            disk.close()
        root = folder / "tmpfs"
        root.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(root))
        try:
            lane.attempt("tmpfs", lambda: _fill_and_go_on(lane, root))
            lane.attempt("tmpfs, processes", lambda: _wait_for_room(lane, root))
        finally:
            run("umount", "-l", str(root))  # Else its folder could not be removed, and stayed.
        lane.counts["disks"] = 2
    lane.end()


def _fill_and_go_on(lane: Lane, root: Path) -> None:
    ledger = Ledger()
    files = make_folders(root / "queue")
    life = Life(files, ledger.hear)
    life.start()
    for number in range(40):
        life.publish(f"a{number}", size=50_000)
    filler = root / "filler"
    _take_everything(filler)
    life.clock.ms += 1_000
    life.publish("refused")
    assert ledger.refused == {"refused"}
    for _ in range(20):
        life.complete(2)
    lane.counts["completed on a full disk"] += len(ledger.completed)
    assert len(ledger.completed) >= 20, f"only {len(ledger.completed)} were completed"
    filler.unlink()
    life.clock.ms += 1_000
    life.publish("refused")
    assert "refused" in ledger.acknowledged
    life.close()
    judge(files, ledger)
    files.shut()


def _wait_for_room(lane: Lane, root: Path) -> None:
    queue_dir, filler = root / "served", root / "filler"
    with BrokerManager(queue_dir, Config(disk_reserve_bytes=0, flush_interval_ms=3_600_000)) as manager:
        with Publisher(manager) as publisher:
            publisher.publish_many("x" * 1_000 for _ in range(1_000))
        _take_everything(filler)
        for broker in manager.status().brokers:
            os.kill(broker.pid, signal.SIGKILL)
        waiting = _await_states(manager, "waiting")
        with pytest.raises(BrokerUnavailable, match="waits for room on the disk"):
            connect(queue_dir, EventOwner.PUBLISHER)
        with Publisher(manager, timeout=0.5) as publisher, pytest.raises(BrokerUnavailable):
            publisher.publish("refused")
        filler.unlink()
        assert _await_states(manager, "ready") == waiting, "the brokers that had waited are not those that serve"
        with Publisher(manager) as publisher:
            publisher.publish("y")
        assert [broker.restarts for broker in manager.status().brokers] == [1, 1]
    tasks = inspect(queue_dir).state.tasks
    assert len(tasks) == 1_001, len(tasks)
    lane.counts["brokers that waited for room"] += 2


def _await_states(manager: BrokerManager, state: str) -> list[int]:
    """Until both brokers are in that state; their processes."""
    until = time.monotonic() + PATIENCE_S
    while True:
        brokers = manager.status().brokers
        if all(broker.state == state for broker in brokers):
            return [broker.pid for broker in brokers]
        assert time.monotonic() < until, brokers
        time.sleep(0.01)


def _take_everything(filler: Path) -> None:
    run("sync", "-f", str(filler.parent))  # What was deleted a moment ago is room only once the journal has it.
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT)
    piece = 1 << 20
    while piece:
        try:
            os.write(handle, b"x" * piece)
            os.fsync(handle)
        except OSError:
            piece //= 2
    os.close(handle)


if __name__ == "__main__":
    main()
