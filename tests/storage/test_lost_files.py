"""A log whose file somebody removes, moves or replaces while it is written to: what it held is saved, or missed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jsonqueue.errors import CorruptQueue, DiskFull, FileLost, StorageError, SyncFailed
from jsonqueue.storage.checkpoint import checkpoint
from jsonqueue.storage.log import LogWriter
from jsonqueue.storage.memory import MemoryFiles
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
