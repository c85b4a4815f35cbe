"""Looking at a queue: what is seen is what a broker would load, of one moment, and costs little memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsonqueue.core.records import encode_records
from jsonqueue.errors import CorruptQueue
from jsonqueue.storage import looking
from jsonqueue.storage.checkpoint import Cut, final_checkpoint
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.looking import View, look_up, view_of
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueWriter, decode_block
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.repair import examine
from jsonqueue.task import TaskStatus
from storage.history import AT_MS, CONFIG, Mirror, Queue, archived, contents


def seen_in(view: View) -> dict[str, bytes]:
    """What a view shows, comparable with ``contents``."""
    return {decode_block(line)[0].id: line for line in view.lines(lambda task: True)}


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_a_view_shows_what_a_broker_would_load(seed: int, steps: int) -> None:
    """At any moment of any history: one by one, at a glance, and as lines, in the order they were published in; nothing is changed."""
    chance = Random(seed)
    files = MemoryFiles()
    queue = Mirror(files)
    for _ in range(steps):
        queue.step(chance)
    loaded = load_state(files)
    operations, handles = files.operations, len(files._handles)
    with view_of(files) as view:
        assert seen_in(view) == contents(loaded)
        tasks = sorted(loaded.state.tasks.values(), key=lambda task: task.number)
        assert [decode_block(line)[0].number for line in view.lines(lambda task: True)] == [task.number for task in tasks]
        glances = list(view.glances())
        for name in ("id", "status", "published_ms", "priority", "run_at_ms", "finished_ms"):
            assert [getattr(glance, name) for glance in glances] == [getattr(task, name) for task in tasks]
        for task in tasks:
            assert encode_records(view.task(task.id)) == encode_records(task)
        for task_id in {task_id for task_id, _ in queue.retired_ever} - set(loaded.state.tasks):
            assert view.task(task_id) is None
            assert view.left(task_id) is not None or task_id in archived(files, loaded)
        pending = {task.id for task in tasks if task.status is TaskStatus.PENDING}
        assert {decode_block(line)[0].id for line in view.lines(lambda task: task.status is TaskStatus.PENDING)} == pending
        assert (view.last_task, view.count_read()) == (loaded.last_task, len(tasks))
    assert (files.operations, len(files._handles)) == (operations, handles)


def lived(files: MemoryFiles) -> Queue:
    queue = Queue(files)
    queue.publish("a", "b")
    queue.checkpoint()
    queue.lease("a")
    queue.publish("c")
    queue.complete("a")
    return queue


def test_a_view_stays_as_it_is_whatever_becomes_of_the_files() -> None:
    """Checkpoints, restarts and a clean stop take away each file it rests on; it shows the moment it was taken at, again and again."""
    files = MemoryFiles()
    queue = lived(files)
    expected = contents(load_state(files))
    with view_of(files) as view:
        names = files.list()
        for task_id in ("d", "e"):
            queue.publish(task_id)
            queue.checkpoint()
            queue.close()
            queue.open()
        queue.retire("a")
        queue.close()
        final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
        assert set(files.list()) & set(names) == {QUEUE}
        for _ in range(2):
            assert seen_in(view) == expected
        assert (view.task("a") is not None, view.task("d")) == (True, None)


@pytest.mark.parametrize("place", range(3))
def test_a_checkpoint_that_passes_while_the_files_are_opened_is_no_damage(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Old queue.json and new segments do not fit together: then they are opened anew."""
    files = MemoryFiles()
    queue = lived(files)
    opened: list[str] = []
    really_open = files.open

    def open_in_between(name: str, *, create: bool = False) -> int:
        opened.append(name)
        if len(opened) == place + 1:
            queue.publish("d")
            queue.checkpoint()
        return really_open(name, create=create)

    monkeypatch.setattr(files, "open", open_in_between)
    with view_of(files) as view:
        seen = seen_in(view)
    assert len(opened) > place
    assert list(seen) == ["a", "b", "c", "d"]
    queue.close()
    assert not files._handles, "whoever looked has left a file open"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_log_that_goes_on_in_another_file_while_one_looks_is_no_damage(monkeypatch: pytest.MonkeyPatch, restarts: bool) -> None:
    """The progress log that is held grows by what rests on a published batch that is in no file that is held: verify said DAMAGE then."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    queue.publish("b")
    ends_of = looking.ends_of

    def meanwhile(*arguments: Any) -> Cut:
        monkeypatch.setattr(looking, "ends_of", ends_of)
        if restarts:
            queue.pub.close()
            queue.pub = LogWriter.open(files, LogKind.PUBLISHED)
        else:
            queue.pub.rotate()
        made = f"c{queue.last_task}"
        queue.publish(made)
        queue.lease(made)
        return ends_of(*arguments)

    monkeypatch.setattr(looking, "ends_of", meanwhile)
    with view_of(files) as view:
        assert seen_in(view) == contents(queue.load())
    monkeypatch.setattr(looking, "ends_of", meanwhile)
    report = examine(files)
    assert (report.ok, report.tasks) == (True, 4)
    queue.close()
    assert not files._handles


def test_a_segment_that_vanished_for_good_is_damage() -> None:
    """Nobody changed the files meanwhile, so it will not be found by trying again."""
    files = MemoryFiles()
    queue = lived(files)
    files.unlink(next(name for name in files.list() if name.startswith("published")))
    with pytest.raises(CorruptQueue, match="all files of this log are missing"), view_of(files):
        pass
    queue.close()


def test_a_queue_without_a_queue_json_is_its_logs() -> None:
    """Before the first checkpoint; and a second one that passes while it is looked at makes no false alarm."""
    files = MemoryFiles()
    with view_of(files) as view:
        assert (list(view.glances()), view.task("a"), view.last_task) == ([], None, 0)
    queue = Queue(files)
    queue.publish("a", "b")
    with view_of(files) as view:
        queue.checkpoint()
        queue.publish("c")
        queue.checkpoint()
        assert [task.id for task in view.glances()] == ["a", "b"]
        assert view.task("b").number == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("touched", [False, True])
def test_damage_is_told_before_anything_is_shown(touched: bool) -> None:
    """A flipped bit in any block, whether or not the logs have to do with it."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a", "b")
    queue.checkpoint()
    if touched:
        queue.lease("a")
    data = files.get(QUEUE)
    files.put(QUEUE, data.replace(b'"data":"b"', b'"data":"c"'))
    with pytest.raises(CorruptQueue, match="checksum"), view_of(files):
        pytest.fail("it was shown")


def test_a_line_that_is_no_task_is_named() -> None:
    """Even under a checksum that fits, whichever way it is come upon."""
    files = MemoryFiles()
    writer = QueueWriter(files, QUEUE, QueueHeader(last_task=1))
    writer.add(b'{"id":"a","number":"x"', 1)
    writer.finish()
    looks: list[Callable[[View], object]] = [
        lambda view: list(view.glances()), lambda view: list(view.lines(lambda task: True)), lambda view: view.task("a")
    ]  # fmt: skip
    for look in looks:
        with view_of(files) as view, pytest.raises(CorruptQueue, match="cannot be read"):
            look(view)


@pytest.mark.parametrize("task_id", ["", 'a"b', "tas", 'task-1"', "\udcff", "\n"])
def test_what_no_id_can_be_is_not_found(tmp_path: Path, task_id: str) -> None:
    """A part of an id, the beginning of a line, bytes that are no text: an answer, and no error."""
    files = open_folder(tmp_path / "q", create=True)
    queue = Queue(files)
    queue.publish("task-1", "task-2")
    queue.checkpoint()
    queue.close()
    files.shut()
    assert look_up(tmp_path / "q", task_id) is None
    assert look_up(tmp_path / "q", "task-2") is not None


@pytest.mark.parametrize("many", [1, 40])
def test_an_id_that_is_there_twice_is_found_by_who_counts(many: int) -> None:
    """In one batch, in two, and in queue.json and a log; nothing else looks at ids that no progress speaks of."""
    names = [f"t-{n}" for n in range(1, many + 1)]
    for again in (names[-1:], names, [*names[-1:], "x"]):
        queue = Queue(MemoryFiles())
        queue.publish("a", *names)
        queue.checkpoint()
        with view_of(queue.files) as view:
            assert view.count_read() == many + 1
        queue.publish(*again)
        with view_of(queue.files) as view:
            assert view.count_read() is None
        [finding] = examine(queue.files).findings
        assert (finding.file, finding.batch) == ("published-*.jsonl", 2)
    queue = Queue(MemoryFiles())
    queue.publish("b", "b")
    assert not examine(queue.files).ok
