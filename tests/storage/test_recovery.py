"""From files to memory: the same state, whichever way it is told."""

from __future__ import annotations

import gc
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from jsonqueue.core.records import Leased, encode_records
from jsonqueue.errors import CorruptQueue
from jsonqueue.storage.checkpoint import Cut, checkpoint, final_checkpoint
from jsonqueue.storage.codec import Position
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import QUEUE
from jsonqueue.storage.recovery import inspect, load_ids, load_state
from storage.history import AT_MS, CONFIG, Mirror, Queue, archived_tasks, contents


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_folding_is_the_same_as_replaying_everything(seed: int, steps: int) -> None:
    """queue.json + logs, at any moment of any history, are the state of a queue that never forgot anything."""
    chance = Random(seed)
    files = MemoryFiles()
    queue = Mirror(files)
    for _ in range(steps):
        queue.step(chance)
    expected = {task.id: encode_records(task) for task in queue.state.tasks.values()}
    loaded = queue.check()
    assert contents(loaded) == expected
    assert contents(load_state(files)) == expected
    known = load_ids(files)
    assert set(expected) <= set(known.numbers)
    assert all(known.numbers[task.id] == task.number for task in queue.state.tasks.values())
    assert known.last_task == loaded.last_task == queue.last_task
    queue.close()
    done = final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    after = load_state(files)
    assert contents(after) == expected
    assert {(task.id, task.number) for task in archived_tasks(files, after)} == queue.retired_ever
    assert (done.tasks, done.through_task) == (len(expected), queue.last_task)
    assert [task.number for task in after.state.tasks.values()] == sorted(task.number for task in after.state.tasks.values())


def test_a_broker_reads_only_what_was_announced() -> None:
    """A published batch that is in the file, but not announced, is not there yet."""
    queue = Queue(MemoryFiles())
    queue.publish("a")
    mark = queue.pub.position
    queue.publish("b")
    loaded = load_state(queue.files, published_through=mark)
    assert list(loaded.state.tasks) == ["a"]
    assert loaded.published == mark
    assert list(load_state(queue.files).state.tasks) == ["a", "b"]


@pytest.mark.parametrize("mark", [Position(1, 7), Position(2, 1), Position(0, 3)])
def test_a_mark_that_does_not_fit_is_refused(mark: Position) -> None:
    """Another epoch, or a batch that is not there."""
    queue = Queue(MemoryFiles())
    queue.publish("a")
    with pytest.raises(CorruptQueue):
        load_state(queue.files, published_through=mark)


@pytest.mark.parametrize("after", [Position(2, 1), Position(1, 2)])
def test_progress_that_rests_on_what_is_not_there_is_corruption(after: Position) -> None:
    """Neither a start nor a checkpoint builds on it."""
    queue = Queue(MemoryFiles())
    queue.publish("a")
    queue.prog.append(encode_records([Leased("w@1", 1, ["a"])]), at_ms=AT_MS, after=after)
    queue.prog.sync()
    with pytest.raises(CorruptQueue, match="rests on published batch"):
        load_state(queue.files)
    with pytest.raises(CorruptQueue, match="rests on published batch"):
        queue.checkpoint()


@pytest.mark.parametrize(
    "records",
    [
        b'[{"what":"leased","consumer":"w","first":1,"ids":["nobody"]}]',
        b'[{"what":"retired","ids":["nobody"]}]',
        b'[{"what":"retired","ids":["a"]}]',
        b'[{"what":"slept"}]',
        b"[1",
    ],
)
def test_records_that_make_no_sense_are_corruption(records: bytes) -> None:
    """Named by log and batch; neither a start nor a checkpoint goes on."""
    queue = Queue(MemoryFiles())
    queue.publish("a")
    queue.prog.append(records, at_ms=AT_MS, after=queue.pub.position)
    for read in (lambda: load_state(queue.files), queue.checkpoint):
        with pytest.raises(CorruptQueue) as caught:
            read()
        assert (caught.value.file, caught.value.batch) == ("progress-*.jsonl", 1)


@pytest.mark.parametrize(("records", "first"), [(b'[{"id":"a","data":1}]', 3), (b'[{"id":"b","data":1}]', 2), (b'[{"ID":1}]', 3)])
def test_published_tasks_that_make_no_sense_are_corruption(records: bytes, first: int) -> None:
    """An id twice, a number that skips, a task that is none."""
    queue = Queue(MemoryFiles())
    queue.publish("a")
    queue.lease("a")
    queue.publish("c")
    queue.pub.append(records, at_ms=AT_MS, first_task=first)
    for read in (lambda: load_state(queue.files), queue.checkpoint):
        with pytest.raises(CorruptQueue) as caught:
            read()
        assert (caught.value.file, caught.value.batch) == ("published-*.jsonl", 3)


@pytest.mark.parametrize("broken", [b'{"id":"a","number":"x"', b'{"id":"a","number":1}'])
def test_a_line_that_is_no_task_is_named(broken: bytes) -> None:
    """Even under a checksum that fits."""
    from jsonqueue.storage.queue_file import QueueHeader, QueueWriter

    files = MemoryFiles()
    writer = QueueWriter(files, QUEUE, QueueHeader(last_task=1))
    writer.add(broken, 1)
    writer.finish()
    with pytest.raises(CorruptQueue, match="cannot be read"):
        load_state(files)
    if b"x" in broken:
        with pytest.raises(CorruptQueue, match="cannot be read"):
            load_ids(files)
        log = LogWriter.open(files, LogKind.PUBLISHED)
        log.append(b'[{"id":"b","data":1}]', at_ms=1, first_task=2)
        progress = LogWriter.open(files, LogKind.PROGRESS)
        progress.append(encode_records([Leased("w@1", 1, ["a"])]), at_ms=1, after=log.position)
        with pytest.raises(CorruptQueue, match="cannot be read"):
            checkpoint(files, Cut(progress.position, log.position), config=CONFIG, at_ms=1)


def test_ids_are_known_until_a_checkpoint_has_passed_their_retirement() -> None:
    """Forgetting them earlier might let a second task of the id in, and a power cut bring the first one back."""
    queue = Queue(MemoryFiles())
    queue.publish("a")
    queue.lease("a")
    queue.complete("a")
    queue.retire("a")
    assert load_ids(queue.files) == ({"a": 1}, 1)
    assert checkpoint(queue.files, queue.rotate(), config=CONFIG, at_ms=AT_MS).left == {"a": 1}
    assert load_ids(queue.files) == ({}, 1)
    queue.publish("a")
    assert load_ids(queue.files) == ({"a": 2}, 2)


def test_loading_leaves_the_collector_as_it_was() -> None:
    """Switched off by somebody, it stays off."""
    queue = Queue(MemoryFiles())
    assert gc.isenabled()
    gc.disable()
    try:
        queue.load()
        assert not gc.isenabled()
    finally:
        gc.enable()
    queue.load()
    assert gc.isenabled()


def test_inspect_reads_a_running_queue_and_changes_nothing(tmp_path: Path) -> None:
    """No lock, no write; a line that is just being written is not there yet."""
    files = open_folder(tmp_path / "q", create=True)
    queue = Queue(files)
    queue.publish("a", "b")
    queue.lease("a")
    queue.checkpoint()
    queue.complete("a")
    active = next(name for name in files.list() if name.startswith("progress"))
    with (tmp_path / "q" / active).open("ab") as log:
        log.write(b'{"h":"01')
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "q").iterdir()}
    loaded = inspect(tmp_path / "q")
    assert {task.id: task.status for task in loaded.state.tasks.values()} == {"a": "completed", "b": "pending"}
    assert bytes(loaded.state.tasks["a"].result or Raw()) == b'"done"'
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "q").iterdir()} == before
    queue.close()
    files.shut()
    files.shut()
