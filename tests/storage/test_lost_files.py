"""A log whose file somebody removes, moves or replaces while it is written to: what it held is saved, or missed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jsonqueue.errors import CorruptQueue, DiskFull, FileLost, StorageError, SyncFailed
from jsonqueue.storage.checkpoint import checkpoint
from jsonqueue.storage.log import SEALED_KEPT, LogWriter
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE
from jsonqueue.storage.recovery import load_ids
from jsonqueue.storage.reserve import RESERVE
from storage.history import AT_MS, CONFIG, Queue
from storage.test_log import PUB, name, write

HOW: dict[str, Callable[[MemoryFiles, str], None]] = {
    "removed": lambda files, name: files.unlink(name),
    "moved": lambda files, name: files.rename(name, "elsewhere"),
    "replaced": lambda files, name: files.put(name, files.get(name)),
    "replaced by another": lambda files, name: files.put(name, b"something else\n"),
}
taken_away = pytest.mark.parametrize("take", HOW.values(), ids=HOW)


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def writer(files: MemoryFiles) -> LogWriter:
    """Of a log of two segments."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    writer.rotate()
    write(writer, "b")
    return writer


@taken_away
@pytest.mark.parametrize("power", ["power", "power cut"])
def test_all_that_was_in_the_file_is_where_the_next_writer_finds_it(
    files: MemoryFiles, writer: LogWriter, take: Callable[[MemoryFiles, str], None], power: str
) -> None:
    """Also what was written to it after it had lost its name; and the writer is at its end."""
    writer.assure()
    take(files, name(2, 1))
    write(writer, "c")
    with pytest.raises(FileLost, match="was removed, moved or replaced") as caught:
        writer.assure()
    assert (caught.value.file, caught.value.saved_as) == (name(2, 1), name(2, 2))
    with pytest.raises(SyncFailed):
        write(writer, "d")
    writer.close()
    if power == "power cut":
        files.crash()
    again = LogWriter.open(files, PUB)
    assert (again.position.number, again.epoch) == (3, 3)
    assert load_ids(files).numbers == {"a": 1, "b": 2, "c": 3}


@taken_away
@pytest.mark.parametrize("last_act", [LogWriter.rotate, LogWriter.close])
def test_a_file_is_not_let_go_of_before_it_was_looked_for(
    files: MemoryFiles, writer: LogWriter, take: Callable[[MemoryFiles, str], None], last_act: Callable[[LogWriter], object]
) -> None:
    """Behind a rotation, or the end of its writer, nobody would have it any more."""
    take(files, name(2, 1))
    try:
        last_act(writer)
    except FileLost:
        assert last_act is LogWriter.rotate
    assert load_ids(files).numbers == {"a": 1, "b": 2}
    assert LogWriter.open(files, PUB).position.number == 2


def test_a_file_that_was_moved_and_moved_back_was_never_away(files: MemoryFiles, writer: LogWriter) -> None:
    """It is the same file."""
    files.rename(name(2, 1), "elsewhere")
    write(writer, "c")
    files.rename("elsewhere", name(2, 1))
    writer.assure()
    assert write(writer, "d") == 4


def test_an_empty_segment_is_missed_like_any_other(files: MemoryFiles) -> None:
    """A log that is not there at all would be taken for damage."""
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    for writer, kind in ((queue.pub, "published"), (queue.prog, "progress")):
        (segment,) = [each for each in files.list() if each.startswith(f"{kind}-")]
        files.unlink(segment)
        with pytest.raises(FileLost):
            writer.assure()
    queue.open()
    queue.check()


def test_a_full_disk_gives_up_its_reserve_for_what_was_in_the_file(files: MemoryFiles, writer: LogWriter) -> None:
    """Whoever removes a log may want its room; while it is open that is still taken."""
    files.put(RESERVE, bytes(1 << 20))
    files.unlink(name(2, 1))
    files.room = 0
    with pytest.raises(FileLost) as caught:
        writer.assure()
    assert caught.value.saved_as == name(2, 2)
    assert load_ids(files).numbers == {"a": 1, "b": 2}


@pytest.mark.parametrize("error", [DiskFull("no room"), StorageError("EIO")])
def test_what_cannot_be_saved_is_missed_by_the_next_start(files: MemoryFiles, writer: LogWriter, error: StorageError) -> None:
    """Though it was the newest of several segments, of which nobody else would know. Moved back it is what it was."""
    files.rename(name(2, 1), "elsewhere")

    def refuse(number: int, operation: str) -> None:
        if operation.startswith("write published.draft"):
            raise error

    files.fail = refuse
    with pytest.raises(FileLost, match="could not be saved") as caught:
        writer.assure()
    assert (caught.value.saved_as, caught.value.why) == ("", str(error))
    assert "move it back" in caught.value.hint
    files.fail = lambda number, operation: None
    with pytest.raises(CorruptQueue, match="batch 2"):
        load_ids(files)
    files.rename("elsewhere", name(2, 1))
    assert LogWriter.open(files, PUB).position.number == 2
    assert load_ids(files).numbers == {"a": 1, "b": 2}


def test_a_file_that_was_emptied_before_it_was_removed_is_missed(files: MemoryFiles) -> None:
    """There is nothing left to save."""
    queue = Queue(files)
    queue.publish("a")
    checkpoint(files, queue.rotate(), config=CONFIG, at_ms=AT_MS)
    queue.publish("b")
    (segment,) = [each for each in files.list() if each.startswith("published-")]
    files.truncate(files.open(segment), 0)
    files.unlink(segment)
    with pytest.raises(FileLost, match="became shorter"):
        queue.pub.assure()
    with pytest.raises(CorruptQueue):
        LogWriter.open(files, PUB)


def test_a_disk_that_takes_nothing_at_all_is_told_all_the_same(files: MemoryFiles, writer: LogWriter) -> None:
    """The error is that of the file; the rest is for the next start to find."""

    def refuse(number: int, operation: str) -> None:
        raise StorageError("EIO")

    files.unlink(name(2, 1))
    files.fail = refuse
    with pytest.raises(FileLost, match="could not be saved"):
        writer.assure()


# ── sealed segments ──────────────────────────────────────────────────────────────────────────────────────────────────


@taken_away
@pytest.mark.parametrize("last_act", [LogWriter.rotate, LogWriter.close])
def test_a_sealed_segment_that_is_not_folded_yet_is_put_back(
    files: MemoryFiles, writer: LogWriter, take: Callable[[MemoryFiles, str], None], last_act: Callable[[LogWriter], object]
) -> None:
    """Before the next checkpoint needs it, or at the end: byte by byte, under its own name, and durable."""
    before = files.get(name(1, 1))
    take(files, name(1, 1))
    if last_act is LogWriter.rotate:
        with pytest.raises(FileLost) as caught:
            last_act(writer)
        assert (caught.value.file, caught.value.saved_as) == (name(1, 1), name(1, 1))
        with pytest.raises(SyncFailed):
            write(writer, "c")
    writer.close()
    files.crash()
    assert files.get(name(1, 1)) == before
    assert load_ids(files).numbers == {"a": 1, "b": 2}
    assert LogWriter.open(files, PUB).position.number == 2


@pytest.mark.parametrize("tidy", [False, True])
def test_sealed_segments_that_are_folded_are_let_go_of(files: MemoryFiles, tidy: bool) -> None:
    """At the next rotation: their names are gone, and nothing is missed, though somebody cleared previous/ as well."""
    queue = Queue(files)
    opened = len(files._handles)
    for task_id in "abc":
        queue.publish(task_id)
        queue.lease(task_id)
        queue.checkpoint()
        assert len(files._handles) == opened + 2  # One each: the last that was sealed.
        for kept in [kept for kept in files.list(PREVIOUS) if tidy and kept != QUEUE]:
            files.unlink(f"{PREVIOUS}/{kept}")
    queue.rotate()
    assert len(files._handles) == opened
    assert list(queue.check().state.tasks) == ["a", "b", "c"]


def test_only_the_last_of_many_sealed_segments_are_held_open(files: MemoryFiles) -> None:
    """Where no checkpoint succeeds they are sealed one after the other. An older one that is taken away is missed."""
    writer, held = LogWriter.open(files, PUB), []
    for number in range(2 * SEALED_KEPT):
        write(writer, f"t{number}")
        writer.rotate()
        held.append(len(files._handles) - 1)
    assert held == [*range(1, SEALED_KEPT + 1), *[SEALED_KEPT] * SEALED_KEPT]
    files.unlink(name(2 * SEALED_KEPT, 1))
    files.unlink(name(SEALED_KEPT, 1))
    with pytest.raises(FileLost, match=name(2 * SEALED_KEPT, 1)):
        writer.rotate()
    assert name(SEALED_KEPT, 1) not in files.list()
    with pytest.raises(CorruptQueue, match=f"batch {SEALED_KEPT}:"):
        load_ids(files)
    writer.close()
    assert not files._handles


def test_a_sealed_segment_is_put_back_though_queue_json_is_edited(files: MemoryFiles) -> None:
    """Whether it was folded cannot be told while that is so; the edit is the checkpoint's to find, and the segment waits."""
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    queue.publish("b")
    queue.pub.rotate()
    whole = files.get(QUEUE)
    files.put(QUEUE, b"{}")
    files.unlink(name(2, 1))
    assert not queue.pub.rotate()
    files.put(QUEUE, whole)
    queue.close()
    assert list(queue.check().state.tasks) == ["a", "b"]


def test_a_sealed_segment_is_put_back_into_the_reserve(files: MemoryFiles, writer: LogWriter) -> None:
    """On a full disk, where somebody is most likely to tidy up. Without one it is held on, and tried again."""
    files.unlink(name(1, 1))
    room, files.room = files.room, 0
    for _ in range(2):
        with pytest.raises(DiskFull):
            writer.rotate()
    files.room = room
    files.put(RESERVE, bytes(64 * 1024))
    files.room = 0
    with pytest.raises(FileLost):
        writer.rotate()
    assert load_ids(files).numbers == {"a": 1, "b": 2}
