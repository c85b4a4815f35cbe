"""The power goes at every single operation of a whole life, in every way a disk may take it."""

from __future__ import annotations

from random import Random

import pytest

from jsonqueue.errors import SyncFailed
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.memory import MemoryFiles, PowerCut
from jsonqueue.storage.recovery import load_state
from storage.history import AT_MS, CONFIG, Queue, contents, crash_at, the_history


def _operations() -> int:
    files = MemoryFiles()
    the_history(Queue(files))
    return files.operations


OPERATIONS = _operations()


class _Witness(Queue):
    """A queue that is being opened for the first time when the power goes has acknowledged nothing."""

    def open(self) -> None:
        self.pub = self.prog = None  # type: ignore[assignment]
        super().open()


def _live(files: MemoryFiles) -> Queue:
    """Live the history until the power goes; what was acknowledged by then."""
    queue = _Witness.__new__(_Witness)
    try:
        queue.__init__(files)  # type: ignore[misc]
        the_history(queue)
    except (PowerCut, SyncFailed):
        pass
    return queue


def _recover(queue: Queue) -> None:
    """Start anew from the files, twice, with a checkpoint of each kind: nothing is lost, nothing doubled, and folding changes nothing."""
    queue.open()
    before = contents(queue.check())
    queue.publish("after")
    queue.check()
    queue.checkpoint(at_ms=AT_MS + 20)
    queue.check()
    queue.close()
    final_checkpoint(queue.files, config=CONFIG, at_ms=AT_MS + 21)
    assert not [name for name in queue.files.list() if name.endswith(".jsonl")], "a clean stop leaves segments behind"
    after = contents(load_state(queue.files))
    assert after.pop("after")
    assert after == before


@pytest.mark.parametrize("way", ["all that was not synced is lost", "nothing is lost (kill -9)", "any part of it is lost"])
def test_power_cut_at_every_operation(way: str) -> None:
    """Whatever the k-th operation was, all that was acknowledged before it is there afterwards."""
    for k in range(1, OPERATIONS + 2):
        files = MemoryFiles()
        crash_at(k, files)
        queue = _live(files)
        if way.startswith("nothing"):
            files.fail = lambda number, name: None
        else:
            files.crash(Random(k) if way.startswith("any") else None)
        try:
            _recover(queue)
        except BaseException as error:
            error.add_note(f"{way}; k = {k}; {files.trace[max(0, k - 6) : k]}")
            raise


@pytest.mark.parametrize("seed", range(8))
def test_power_cut_within_the_recovery_from_a_power_cut(seed: int) -> None:
    """Two, three and more cuts in a row, each within the recovery from the one before."""
    chance = Random(seed)
    for k in range(1 + seed, OPERATIONS, 8):
        files = MemoryFiles()
        crash_at(k, files)
        queue = _live(files)
        for _ in range(chance.randint(1, 4)):
            files.crash(chance)
            crash_at(chance.randint(1, 30), files)
            try:
                queue.open()
                queue.checkpoint()
                final_checkpoint(files, config=CONFIG, at_ms=AT_MS + 60 * 86_400_000)
            except PowerCut:
                pass
        files.crash(chance)
        _recover(queue)


def test_failed_sync_at_every_operation_and_then_a_power_cut() -> None:
    """A sync that failed acknowledges nothing, is not tried again, and what it left in the page cache is not trusted."""
    for k in range(1, OPERATIONS + 1):
        files = MemoryFiles()
        crash_at(k, files, error=SyncFailed)
        queue = _live(files)
        files.fail = lambda number, name: None
        queue.open()  # the brokers restart, with a warm page cache
        queue.check()
        files.crash(Random(k))
        _recover(queue)


def test_history_without_a_crash() -> None:
    """The control: nothing happens, and nothing is lost."""
    files = MemoryFiles()
    queue = _live(files)
    assert queue.published == {*"abcdefg", "d2", "d3", "d4", "d5"}
    files.crash()
    _recover(queue)
