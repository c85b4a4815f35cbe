"""The two logs: one writes, others follow."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jsonqueue.core.records import encode_records
from jsonqueue.errors import CorruptQueue, DiskFull, StorageError, SyncFailed, UnreadableFile, UnsupportedFormat
from jsonqueue.storage import codec, log, repair
from jsonqueue.storage.checkpoint import checkpoint, final_checkpoint
from jsonqueue.storage.codec import START, Position
from jsonqueue.storage.files import Files, RealFiles
from jsonqueue.storage.following import LogReader
from jsonqueue.storage.log import LogKind, LogWriter, consistently, log_bytes
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueWriter
from jsonqueue.storage.recovery import load_ids, load_state
from storage.history import AT_MS, CONFIG, Queue, contents, tasks_in

PUB = LogKind.PUBLISHED


def name(first: int, epoch: int, kind: str = "published") -> str:
    return f"{kind}-{first:012d}-{epoch:08d}.jsonl"


def write(writer: LogWriter, *ids: str, sync: bool = True, first: int | None = None) -> int:
    number = writer.append(encode_records(tasks_in(*ids)), at_ms=AT_MS, first_task=first or writer.position.number + 1)
    if sync:
        writer.sync()
    return number


def numbers(batches: list[codec.Batch]) -> list[int]:
    return [batch.number for batch in batches]


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_start_copies_the_newest_segment_byte_by_byte(files: MemoryFiles) -> None:
    """The batches go, as they are, into a file of a raised epoch; the old file is let go."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    write(writer, "b")
    writer.close()
    old = files.get(name(1, 1)).split(b"\n", 1)
    writer = LogWriter.open(files, PUB)
    new = files.get(name(1, 2)).split(b"\n", 1)
    assert new[1] == old[1]
    assert new[0] != old[0]
    assert (writer.epoch, writer.position) == (2, Position(2, 1))
    assert write(writer, "c") == 3
    assert writer.position == Position(3, 2)
    assert files.list() == [name(1, 2)]


def test_a_torn_tail_is_left_behind_as_evidence(files: MemoryFiles) -> None:
    """It never became a batch: the copy goes on before it, the file that holds it stays."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    files.put(name(1, 1), files.get(name(1, 1)) + b'{"h":"01000')
    writer = LogWriter.open(files, PUB)
    assert writer.position == Position(1, 1)
    assert files.list() == [name(1, 1), name(1, 2)]
    write(writer, "b")
    assert load_ids(files).numbers == {"a": 1, "b": 2}


def test_an_epoch_of_nine_digits_is_one_like_any_other() -> None:
    """Each publish raises it while no broker runs. The files of such a log were seen by nobody, and what they held was lost."""
    files = MemoryFiles()
    with QueueWriter.drafting(files, QUEUE, QueueHeader(epochs=(99_999_998, 99_999_998), closed=True)):
        pass
    for life in range(3):
        queue = Queue(files)
        assert (queue.pub.epoch, queue.prog.epoch) == (99_999_999 + life, 99_999_999 + life)
        queue.publish(f"t{life}")
        queue.lease(f"t{life}")
        queue.close()
        assert list(load_state(files).state.tasks) == [f"t{number}" for number in range(life + 1)]
    final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    assert files.list() == [QUEUE]
    queue = Queue(files)
    queue.publish("last")
    queue.close()
    assert len(load_state(files).state.tasks) == 4


def test_numbers_go_on_where_queue_json_leaves_off(files: MemoryFiles) -> None:
    """With no log left the next number is the one after the last that was folded, and the epoch is above all that ever were."""
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    for left in [left for left in files.list() if left.startswith("published-")]:
        files.unlink(left)
    with pytest.raises(CorruptQueue, match="all files of this log are missing"):
        LogWriter.open(files, PUB)
    queue = Queue(other := MemoryFiles())
    queue.publish("a")
    queue.close()
    final_checkpoint(other, config=CONFIG, at_ms=AT_MS)
    writer = LogWriter.open(other, PUB)
    assert (writer.position.number, writer.epoch) == (1, 2)
    assert write(writer, "b") == 2


def test_rotating_twice_makes_one_segment(files: MemoryFiles) -> None:
    """Nothing since the header: nothing to seal, and no second file of the same name."""
    writer = LogWriter.open(files, PUB)
    assert not writer.rotate()
    write(writer, "a")
    assert writer.rotate()
    assert not writer.rotate()
    assert files.list() == [name(1, 1), name(2, 1)]
    assert writer.bytes == len(files.get(name(2, 1)))
    assert log_bytes(files) == sum(len(files.get(each)) for each in files.list())


def test_a_segment_is_sealed_whole(files: MemoryFiles) -> None:
    """What was appended and not yet synced is durable before anything stands behind it."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a", sync=False)
    writer.rotate()
    write(writer, "b")
    files.crash()
    assert sorted(load_ids(files).numbers) == ["a", "b"]


@pytest.mark.parametrize("padding", [1, 600, log.PADDING])
def test_a_batch_without_room_is_cut_back_and_may_be_tried_again(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch, padding: int) -> None:
    """The next one stands where it would have stood, and nothing of it is left, on the disk either."""
    monkeypatch.setattr(log, "PADDING", padding)
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    files.room = 100
    for _ in range(2):
        with pytest.raises(DiskFull):
            write(writer, "b" * padding, "b" * 600)
    assert writer.position.number == 1
    files.crash()
    assert len(files.get(name(1, 1))) == writer.bytes
    files.room = 1 << 20
    writer = LogWriter.open(files, PUB)
    with pytest.raises(DiskFull):
        write(writer, "d" * (1 << 20))
    assert write(writer, "c") == 2
    assert load_ids(files).numbers == {"a": 1, "c": 2}


def test_a_start_that_cannot_leave_word_of_its_log_is_none(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be acknowledged that nobody would miss; when there is room again, the next start does it."""
    final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    opened = files.open

    def full(name: str, *, create: bool = False) -> int:
        if "begun" in name:
            raise DiskFull("no room")
        return opened(name, create=create)

    with monkeypatch.context() as during:
        during.setattr(files, "open", full)
        with pytest.raises(DiskFull):
            LogWriter.open(files, PUB)
    write(LogWriter.open(files, PUB), "a")
    assert [made for made in files.list() if made.startswith("published")] == [name(1, 2), "published.begun-00000002"]
    LogWriter.open(files, PUB)  # it is said once
    files.crash()
    assert [made for made in files.list() if "begun" in made] == ["published.begun-00000002"]


# ── padding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def padded(files: MemoryFiles, first: int, epoch: int) -> tuple[int, int]:
    """How long the lines of a segment are, and its file."""
    data = files.get(name(first, epoch))
    return len(data.rstrip(b"\n")) + 1, len(data)


def test_small_batches_are_written_over_padding(files: MemoryFiles) -> None:
    """One in many makes the file longer, by newlines up to the next multiple; what they say of their length goes by the batches."""
    writer = LogWriter.open(files, PUB)
    sizes = set()
    for number in range(600):
        write(writer, f"a{number}")
        lines, size = padded(files, 1, 1)
        assert lines == writer.bytes <= size
        sizes.add(size)
    assert sizes == {log.PADDING, 2 * log.PADDING, 3 * log.PADDING}
    assert len(load_ids(files).numbers) == 600


def test_large_batches_write_no_padding(files: MemoryFiles) -> None:
    """They write over what is left of it, and make the file as long as they need."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    for number in range(12):
        write(writer, f"b{number}" + "x" * log.SMALL)
        assert padded(files, 1, 1) == (writer.bytes, max(writer.bytes, log.PADDING))
    write(writer, "c")
    assert padded(files, 1, 1) == (writer.bytes, -(-writer.bytes // log.PADDING) * log.PADDING)
    assert len(load_ids(files).numbers) == 14


def test_a_batch_that_fits_while_its_padding_does_not_is_kept(files: MemoryFiles) -> None:
    """On a disk with just enough room for it; and what fits into the padding that is there needs none."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    line = writer.bytes - files.get(name(1, 1)).index(b"\n") - 1
    while padded(files, 1, 1)[1] - writer.bytes >= line:
        write(writer, "b")
    files.room = line
    assert write(writer, "c") == writer.position.number
    while writer.bytes + line <= padded(files, 1, 1)[1]:
        write(writer, "d")
    with pytest.raises(DiskFull):
        write(writer, "e")
    files.crash()
    assert padded(files, 1, 1) == (writer.bytes, writer.bytes)


def test_a_closed_segment_has_no_padding(files: MemoryFiles) -> None:
    """It ends with its last line: whoever looks at it sees that. A writer that was killed leaves its padding; that is no damage."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    killed = files.copy()
    assert padded(files, 1, 1)[1] == log.PADDING
    assert repair.examine(killed) == ([], [], [], 1)
    writer.close()
    files.crash()
    assert padded(files, 1, 1) == (writer.bytes, writer.bytes)
    for disk in (killed, files):
        again = LogWriter.open(disk, PUB)
        assert (again.position.number, again.bytes) == (1, writer.bytes)
        assert disk.list() == [name(1, 2)]  # Padding or not, all of the old one is in the copy.
        assert padded(disk, 1, 2) == (again.bytes, again.bytes)
        assert len(load_ids(disk).numbers) == 1


def test_a_closing_that_cannot_cut_the_padding_off_is_one_all_the_same(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on it."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")

    def refuse(handle: int, size: int) -> None:
        raise StorageError("EIO")

    monkeypatch.setattr(files, "truncate", refuse)
    writer.close()
    assert padded(files, 1, 1)[1] == log.PADDING
    assert LogWriter.open(files, PUB).position.number == 1


def test_a_sealed_segment_has_padding(files: MemoryFiles) -> None:
    """Readers pass over it, to the next segment."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    reader, late = LogReader(files, PUB, START), LogReader(files, PUB, START)
    assert numbers(reader.read_through(Position(1, 1))) == [1]
    writer.rotate()
    write(writer, "b")
    assert padded(files, 1, 1)[1] == padded(files, 2, 1)[1] == log.PADDING
    assert numbers(reader.read_through(Position(2, 1))) == [2]
    assert numbers(late.read_through(Position(2, 1))) == [1, 2]
    assert len(load_ids(files).numbers) == 2
    assert repair.examine(files).findings == []
    assert LogWriter.open(files, PUB).position.number == 2


def test_padding_is_nothing_to_salvage(files: MemoryFiles) -> None:
    """Where something is lost for good, what is listed as lost is that alone; and one wrong byte in the padding costs nothing."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    before = writer.bytes
    write(writer, "b")
    write(writer, "c")
    data = files.get(name(1, 1))
    for at in (writer.bytes, writer.bytes + 1, 512, len(data) - 1):
        files.put(name(1, 1), data[:at] + b"J" + data[at + 1 :])
        with pytest.raises(CorruptQueue):
            load_ids(files)
        report = repair.mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS)
        assert report.ok
        assert "padding" in report.done[0]
        assert files.get(name(1, 1)) == data.rstrip(b"\n") + b"\n"
    files.put(name(1, 1), data[: before + 90] + b"J" + data[before + 91 :])
    report = repair.mend(files, accept_loss=True, accept_edit=False, at_ms=AT_MS)
    assert report.ok
    assert len(report.lost) == 1
    assert sorted(load_state(files).state.tasks) == ["a", "c"]


def test_jq_reads_the_active_segment(tmp_path: Path) -> None:
    """Newlines are white space to it, however many."""
    if not shutil.which("jq"):
        pytest.skip("there is no jq")
    files = RealFiles(tmp_path)
    writer = LogWriter.open(files, PUB)
    write(writer, "a", "b")
    write(writer, "c")
    assert (tmp_path / name(1, 1)).stat().st_size == log.PADDING
    done = subprocess.run(["jq", "-r", ".b[]?.id", name(1, 1)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["a", "b", "c"]
    writer.close()
    files.shut()


def test_who_reads_while_another_writes_may_see_half_of_it(files: MemoryFiles) -> None:
    """The first page as it was before two batches, the second as it is after them: that is no damage, it is read again."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    before = files.get(name(1, 1))
    write(writer, "b", *(f"b{n}" for n in range(20)))
    write(writer, "c", first=23)
    after = files.get(name(1, 1))
    for edge in range(len(before.rstrip(b"\n")) + 1, len(after.rstrip(b"\n")), 7):
        for mixed in (before[:edge] + after[edge:], after[:edge] + before[edge:]):
            racing = _Mixing(files, mixed, reads=3)
            assert len(load_ids(racing).numbers) in {1, 22, 23}
            assert repair.examine(_Mixing(files, mixed, reads=3)).ok
    files.put(name(1, 1), before[: len(before.rstrip(b"\n")) + 20] + after[len(before.rstrip(b"\n")) + 20 :])
    with pytest.raises(CorruptQueue):
        load_ids(files)


class _Mixing:
    """Files of which the first few reads see one segment as it is in the midst of a write."""

    def __init__(self, files: MemoryFiles, mixed: bytes, *, reads: int) -> None:
        self._files, self._mixed, self._reads = files, mixed, reads

    def read(self, handle: int, offset: int, size: int) -> bytes:
        data = self._files.read(handle, offset, size)
        if self._files.size(handle) == len(self._mixed) and self._reads > 0:
            self._reads -= 1
            return self._mixed[offset : offset + len(data)]
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)


def test_a_rotation_without_room_leaves_the_old_segment_in_use(files: MemoryFiles) -> None:
    """Whether the header does not fit at all, or only in part."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    for room in (0, 50):
        files.room = room
        with pytest.raises(DiskFull):
            writer.rotate()
        assert files.list() == [name(1, 1)]
    files.room = 1 << 20
    write(writer, "b")
    assert writer.rotate()
    write(writer, "c")
    assert len(load_ids(files).numbers) == 3


def test_a_failed_sync_is_final(files: MemoryFiles) -> None:
    """It is never tried again: the writer takes nothing any more."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a", sync=False)

    def fail(number: int, operation: str) -> None:
        raise SyncFailed("EIO")

    files.fail = fail
    with pytest.raises(SyncFailed):
        writer.sync()
    files.fail = lambda number, operation: None
    for action in (writer.sync, writer.rotate, lambda: write(writer, "b")):
        with pytest.raises(SyncFailed, match="takes no more writes: EIO"):
            action()
    writer.close()
    writer.close()


def test_a_rotation_whose_sync_fails_is_final(files: MemoryFiles) -> None:
    """The new segment may or may not be there: only a restart can tell."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")

    def fail(number: int, operation: str) -> None:
        if operation.startswith("sync_folder"):
            raise SyncFailed("EIO")

    files.fail = fail
    with pytest.raises(SyncFailed):
        writer.rotate()
    with pytest.raises(SyncFailed):
        write(writer, "b")


def test_a_cut_back_that_fails_is_final(files: MemoryFiles) -> None:
    """With the remains of a batch in place nothing may be written behind it."""
    writer = LogWriter.open(files, PUB)
    files.room = 10

    def fail(number: int, operation: str) -> None:
        if operation.startswith("truncate"):
            raise StorageError("EIO")

    files.fail = fail
    with pytest.raises(StorageError):
        write(writer, "a")
    with pytest.raises(SyncFailed):
        write(writer, "b")


def test_a_file_without_a_header_never_held_a_batch(files: MemoryFiles) -> None:
    """A rotation cut short leaves one; the log goes on in the segment before, under an epoch above its."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    files.put(name(2, 7), b"")
    writer = LogWriter.open(files, PUB)
    assert (writer.epoch, writer.position.number) == (8, 1)
    write(writer, "b")
    assert load_ids(files).last_task == 2


@pytest.mark.parametrize("damage", ["header", "name", "gap", "chain"])
def test_a_log_that_does_not_hang_together_is_refused(files: MemoryFiles, damage: str) -> None:
    """A start over it would build on sand; nothing is written."""
    writer = LogWriter.open(files, PUB)
    for task_id in "abc":
        write(writer, task_id)
        writer.rotate()
    data = files.get(name(2, 1))
    if damage == "header":
        files.put(name(2, 1), data.replace(b'"version"', b'"Version"'))
    elif damage == "name":
        files.rename(name(2, 1), name(2, 2))
    elif damage == "gap":
        files.unlink(name(2, 1))
    else:
        end = data.index(b"\n") + 1
        files.put(name(2, 1), codec.encode_segment_head("published", first=2, epoch=1, chain=7) + data[end:])
    before = files.list()
    for read in (lambda: LogWriter.open(files, PUB), lambda: load_ids(files)):
        with pytest.raises(CorruptQueue) as caught:
            read()
        assert caught.value.file.startswith("published-")
    assert files.list() == before


def test_a_newer_format_is_named(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to do, and touches nothing."""
    monkeypatch.setattr("jsonqueue.storage.codec.VERSION", 3)
    write(LogWriter.open(files, PUB), "a")
    monkeypatch.undo()
    with pytest.raises(UnsupportedFormat, match="version 3") as caught:
        load_ids(files)
    assert "upgrade" in caught.value.hint


def test_leftovers_of_a_clean_stop_cut_short_are_not_a_log(files: MemoryFiles) -> None:
    """Of the segments that a clean stop deletes any may survive a power cut."""
    queue = Queue(files)
    queue.publish("a")
    queue.pub.rotate()
    queue.publish("b")
    queue.close()
    survivor = files.get(name(1, 1))
    final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    files.put(name(1, 1), survivor)
    queue.open()
    assert queue.pub.position == Position(2, 1)
    queue.publish("c")
    assert sorted(queue.check().state.tasks) == ["a", "b", "c"]


def test_a_log_that_became_shorter_than_what_was_folded_is_refused(files: MemoryFiles) -> None:
    """queue.json knows of a batch that the running log does not reach."""
    queue = Queue(files)
    queue.publish("a")
    queue.publish("b")
    data = files.get(name(1, 1))
    queue.checkpoint()
    for left in [left for left in files.list() if left.startswith("published-")]:
        files.unlink(left)
    lines = data.split(b"\n")
    files.put(name(1, 1), b"\n".join(lines[:2]) + b"\n")
    with pytest.raises(CorruptQueue, match="ends before batch 2"):
        load_ids(files)
    # Another batch of the same number is not the one that was folded.
    files.unlink(name(1, 1))
    other = LogWriter.open(MemoryFiles(), PUB)
    write(other, "x")
    write(other, "y")
    files.put(name(1, 1), other._files.get(name(1, 1)))  # type: ignore[attr-defined]
    with pytest.raises(CorruptQueue, match="not the batch of that number"):
        load_ids(files)


# ── following ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_goes_no_further_than_it_is_told(files: MemoryFiles) -> None:
    """What lies behind the mark might vanish in a power cut."""
    writer = LogWriter.open(files, PUB)
    for task_id in "abcd":
        write(writer, task_id)
    reader = LogReader(files, PUB, START)
    assert numbers(reader.read_through(Position(2, 1))) == [1, 2]
    assert reader.read_through(Position(2, 1)) == []
    assert reader.read_through(Position(1, 1)) == []
    assert numbers(reader.read_through(Position(4, 1))) == [3, 4]
    assert reader.position == Position(4, 1)
    reader.close()
    reader.close()


def test_a_reader_follows_through_rotations(files: MemoryFiles) -> None:
    """Several segments in one read, or one at a time; also when it starts in the middle."""
    writer = LogWriter.open(files, PUB)
    reader, late = LogReader(files, PUB, START), LogReader(files, PUB, Position(2, 1))
    for round_ in range(3):
        write(writer, f"a{round_}")
        writer.rotate()
        write(writer, f"b{round_}")
        if round_ != 1:
            got = numbers(reader.read_through(writer.position))
            assert got == ([1, 2] if round_ == 0 else [3, 4, 5, 6])
    assert numbers(late.read_through(Position(4, 1))) == [3, 4]
    assert numbers(late.read_through(Position(6, 1))) == [5, 6]


def test_a_reader_follows_through_restarts_of_the_writer(files: MemoryFiles) -> None:
    """The file it stood in is gone; the batches it has not read stand in the copy."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    write(writer, "b")
    reader = LogReader(files, PUB, START)
    assert numbers(reader.read_through(Position(1, 1))) == [1]
    writer = LogWriter.open(files, PUB)
    write(writer, "c")
    writer.rotate()
    write(writer, "d")
    writer = LogWriter.open(files, PUB)
    write(writer, "e")
    assert [batch.position for batch in reader.read_through(writer.position)] == [(2, 1), (3, 2), (4, 2), (5, 3)]
    assert reader.read_through(Position(4, 2)) == [], "a mark that comes late"


def test_a_reader_takes_the_writers_word_over_a_stale_file(files: MemoryFiles) -> None:
    """A batch that was lost, and another that got its number under a later epoch: the mark says which one counts."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    reader = LogReader(files, PUB, START)
    reader.read_through(writer.position)
    stale = files.get(name(1, 1))
    write(writer, "lost", sync=False)
    files.put(name(1, 1), stale)  # the page was dropped after a failed sync; the reader's handle still sees it
    writer = LogWriter.open(files, PUB)
    write(writer, "b")
    assert b'"b"' in reader.read_through(Position(2, 2))[0].records


@pytest.mark.parametrize("rotated", [False, True])
def test_a_reader_that_read_what_vanished_says_so(files: MemoryFiles, rotated: bool) -> None:
    """Its own position stands in another batch now: whatever rests on that is void. So it is for one that begins there."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    stale = files.get(name(1, 1))
    write(writer, "lost", sync=False)
    reader = LogReader(files, PUB, START)
    reader.read_through(Position(2, 1))
    files.put(name(1, 1), stale)
    writer = LogWriter.open(files, PUB)
    write(writer, "b")
    if rotated:
        writer.rotate()
    write(writer, "c")
    for who in (reader, *([] if rotated else [LogReader(files, PUB, Position(2, 1))])):
        with pytest.raises(CorruptQueue, match="the log was rewritten"):
            who.read_through(Position(3, 2))


def test_a_reader_has_one_file_open_and_in_the_end_none(files: MemoryFiles) -> None:
    """However many segments it goes through, at once or one by one, and whether it finds what was announced or not."""
    writer = LogWriter.open(files, PUB)
    reader = LogReader(files, PUB, START)
    others = len(files._handles)
    for number, rotations in enumerate((0, 1, 1, 3), 1):
        for _ in range(rotations):
            writer.rotate()
            write(writer, "a")
        write(writer, f"b{number}")
        others = len(files._handles) - (number > 1)
        for _ in range(2):
            with pytest.raises(CorruptQueue, match="announced"):
                reader.read_through(Position(writer.position.number + 1, 1))
            assert len(files._handles) == others + 1
            reader.read_through(writer.position)
            assert len(files._handles) == others + 1
    reader.close()
    assert len(files._handles) == others


def test_a_reader_whose_log_is_gone_says_what_was_announced(files: MemoryFiles) -> None:
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    reader = LogReader(files, PUB, START)
    reader.read_through(Position(1, 1))
    write(writer, "b", sync=False)
    files.unlink(name(1, 1))
    with pytest.raises(CorruptQueue, match="announced"):
        reader.read_through(Position(3, 1))


@pytest.mark.parametrize("there", [0, 1])
def test_a_reader_is_not_fobbed_off(files: MemoryFiles, there: int) -> None:
    """A batch that was announced and is not there is corruption, not something to wait for."""
    if there:
        write(LogWriter.open(files, PUB), "a")
    with pytest.raises(CorruptQueue, match="announced"):
        LogReader(files, PUB, START).read_through(Position(2, 1))
    with pytest.raises(CorruptQueue, match="announced"):
        LogReader(files, PUB, Position(5, 1)).read_through(Position(6, 1))


def test_a_reader_starts_where_a_segment_begins(files: MemoryFiles) -> None:
    """The segments before may be gone by then."""
    writer = LogWriter.open(files, PUB)
    write(writer, "a")
    writer.rotate()
    write(writer, "b")
    files.unlink(name(1, 1))
    assert numbers(LogReader(files, PUB, Position(1, 1)).read_through(Position(2, 1))) == [2]


@pytest.mark.parametrize("chunk", [64, 150, 400])
def test_batches_are_read_in_chunks_of_any_size(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Smaller than a batch or larger than several: that is a matter of speed."""
    monkeypatch.setattr("jsonqueue.storage.segments.CHUNK", chunk)
    monkeypatch.setattr("jsonqueue.storage.log.CHUNK", chunk)
    queue = Queue(files)
    queue.publish("a", size=3000)
    queue.publish("b", "c")
    queue.open()
    assert sorted(load_ids(files).numbers) == ["a", "b", "c"]
    assert numbers(LogReader(files, PUB, START).read_through(Position(2, 1))) == [1, 2]


def test_segments_that_vanish_while_they_are_read_are_read_again(files: MemoryFiles) -> None:
    """A checkpoint or a restart that passes is no corruption, neither for a start nor for a reader."""
    queue = Queue(files)
    queue.publish("a")
    expected = contents(queue.load())
    racing = _Racing(files, lambda: (queue.checkpoint(), queue.close(), queue.open()))
    assert contents(load_state(racing)) == expected
    assert racing.raced
    queue.publish("b")
    racing = _Racing(files, lambda: (queue.close(), queue.open()))
    assert numbers(LogReader(racing, PUB, Position(1, 1)).read_through(queue.pub.position)) == [2]
    assert racing.raced


def test_a_checkpoint_that_passes_unnoticed_is_read_behind(files: MemoryFiles) -> None:
    """Even where all that was read fits together: what it was read from is not the queue any more."""
    queue = Queue(files)
    queue.publish("a")
    reads = []

    def read() -> int:
        reads.append(1)
        if len(reads) == 1:
            queue.checkpoint()
        return len(reads)

    assert consistently(files, read) == 2


def test_a_log_that_is_not_there_holds_no_mark(files: MemoryFiles) -> None:
    """Nor does one that was folded to its end."""
    with pytest.raises(CorruptQueue, match="no segment"):
        load_state(files, published_through=Position(1, 1))
    queue = Queue(files)
    queue.publish("a")
    cut = queue.rotate()
    queue.close()
    final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    assert checkpoint(files, cut, config=CONFIG, at_ms=AT_MS).folded == 0


def test_a_mark_beyond_two_segments_moves_nothing(files: MemoryFiles) -> None:
    """The reader looked into the next file and beyond, and still stands where it stood."""
    writer = LogWriter.open(files, PUB)
    reader = LogReader(files, PUB, START)
    write(writer, "a")
    reader.read_through(Position(1, 1))
    write(writer, "b")
    writer.rotate()
    write(writer, "c")
    with pytest.raises(CorruptQueue, match="announced"):
        reader.read_through(Position(9, 1))
    assert numbers(reader.read_through(Position(3, 1))) == [2, 3]


class _Racing:
    """Files on which something happens between the listing of the segments and the opening of one."""

    def __init__(self, files: Files, happen: Callable[[], object]) -> None:
        self._files, self._happen, self.raced = files, happen, False

    def open(self, name: str, *, create: bool = False) -> int:
        if not self.raced and name.startswith("published"):
            self.raced = True
            self._happen()
        return self._files.open(name, create=create)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)


def test_a_folder_that_changes_while_it_is_listed_is_listed_again(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was replaced meanwhile may be missing along with its successor."""
    write(LogWriter.open(files, PUB), "a")
    listings = iter([[], ["published-x"], files.list(), files.list()])
    monkeypatch.setattr(files, "list", lambda folder="": next(listings, [name(1, 1)]))
    assert load_ids(files).numbers == {"a": 1}


def test_a_large_segment_with_a_damaged_header_is_read_to_its_end(files: MemoryFiles) -> None:
    """More than a torn header lies behind it: it is damage, not a file that never held a batch."""
    writer = LogWriter.open(files, PUB)
    for number in range(9):
        write(writer, f"a{number}")
    data = files.get(name(1, 1))
    files.put(name(1, 1), bytes(132) + data[132:])
    with pytest.raises(CorruptQueue):
        load_ids(files)
    files.put(name(1, 1), bytes(1200))
    assert load_ids(files).numbers == {}


def test_files_that_never_come_to_rest_are_not_read_for_ever(files: MemoryFiles) -> None:
    """It gives up, and says why."""

    def read() -> None:
        files.put(QUEUE, files.get(QUEUE) + b" ")
        raise FileNotFoundError

    files.put(QUEUE, b"")
    with pytest.raises(StorageError, match="change faster"):
        consistently(files, read)


def test_a_folder_that_never_comes_to_rest_is_listed_all_the_same(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes files beside the queue's own, all the time: that keeps nobody from the segments."""
    write(LogWriter.open(files, PUB), "a")
    others = itertools.count()
    monkeypatch.setattr(files, "list", lambda folder="": [*MemoryFiles.list(files, folder), f"z{next(others)}"])
    assert load_ids(files).numbers == {"a": 1}
    assert next(others) < 1_000


def test_a_reader_does_not_wait_for_ever_for_segments_that_come_and_go(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look finds others than the one before, and none of them can be opened: in the end it says what is missing."""
    looks = itertools.count()

    def vanished(handle: str, *, create: bool = False) -> int:
        next(looks)
        raise FileNotFoundError(handle)

    write(LogWriter.open(files, PUB), "a")
    reader = LogReader(files, PUB, START)
    monkeypatch.setattr(files, "open", vanished)
    with pytest.raises(CorruptQueue, match=r"was announced .* and is not there"):
        reader.read_through(Position(1, 1))
    assert 10 < next(looks) < 1_000


def test_a_reader_looks_again_when_the_segments_changed_while_it_looked(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer restarted between its look at the folder and its look into the file."""
    write(LogWriter.open(files, PUB), "a")
    reader = LogReader(files, PUB, START)
    seek, restarted = reader._seek, []

    def seek_too_early() -> None:
        seek()
        if not restarted:
            restarted.append(LogWriter.open(files, PUB))
            write(restarted[0], "b")

    monkeypatch.setattr(reader, "_seek", seek_too_early)
    assert [batch.number for batch in reader.read_through(Position(2, 2))] == [1, 2]


def test_a_cut_in_the_midst_of_a_large_segment_is_a_cut(files: MemoryFiles) -> None:
    """More than one read long, and more behind it: not one batch too many is read, and none too few."""
    writer = LogWriter.open(files, PUB)
    for number in range(1, 5):
        writer.append(b'[{"id":"t%d","data":"%b"}]' % (number, b"x" * 600_000), at_ms=1, first_task=number)
        writer.sync()
    for number in range(1, 5):
        assert list(load_state(files, published_through=Position(number, 1)).state.tasks) == [f"t{n}" for n in range(1, number + 1)]


@pytest.mark.parametrize("step", ["truncate", "sync"])
@pytest.mark.parametrize("error", [DiskFull("no room"), StorageError("Input/output error"), SyncFailed("Input/output error")])
def test_a_batch_that_cannot_be_cut_back_is_the_last_of_its_writer(step: str, error: StorageError) -> None:
    """Not even want of room to cut a file (a disk that copies on write needs some) may be tried again: a shorter batch, written over the
    remains of a longer one, would stand before what looks like damage."""
    files = MemoryFiles()
    writer = LogWriter.open(files, PUB)
    writer.append(encode_records(tasks_in("a")), at_ms=AT_MS, first_task=1)
    writer.sync()
    room, files.room = files.room, 6_000

    def fail(number: int, operation: str) -> None:
        if operation.startswith(step):
            raise error

    files.fail = fail
    with pytest.raises(StorageError) as raised:
        writer.append(encode_records(tasks_in("long", size=90_000)), at_ms=AT_MS, first_task=2)
    assert not isinstance(raised.value, DiskFull)
    files.fail, files.room = lambda number, operation: None, room
    with pytest.raises(SyncFailed):
        writer.append(encode_records(tasks_in("b", size=5_000)), at_ms=AT_MS, first_task=2)
    writer.close()
    assert repair.examine(files).ok
    assert list(load_state(files).state.tasks) == ["a"]
    assert LogWriter.open(files, PUB).position == (1, 1)


@pytest.mark.parametrize("error", [StorageError("Input/output error"), SyncFailed("Input/output error"), DiskFull("no room")])
def test_a_log_that_cannot_be_opened_leaves_no_file_open(error: StorageError) -> None:
    """Whichever of its operations it is: who appends by himself lives on, and tries again."""
    step = 0
    while True:
        files = MemoryFiles()
        LogWriter.open(files, PUB).close()
        before, step = files.operations, step + 1

        def fail(number: int, operation: str, last: int = before + step) -> None:
            if number == last:
                raise error

        files.fail = fail
        try:
            writer = LogWriter.open(files, PUB)
        except StorageError:
            assert not files._handles, files.trace[-1]
        else:
            writer.close()
            break
    assert step > 5


def test_a_reader_that_cannot_read_up_to_where_it_stood_leaves_no_file_open() -> None:
    """It looks for its place anew in each segment that a writer began anew."""
    files = MemoryFiles()
    writer = LogWriter.open(files, PUB)
    writer.append(encode_records(tasks_in("a", size=5_000)), at_ms=AT_MS, first_task=1)
    writer.sync()
    write(writer, "b")
    files.spoil(name(1, 1), range(4_000, 4_512))
    handles = len(files._handles)
    with pytest.raises(UnreadableFile, match="at byte 4000"):
        LogReader(files, PUB, Position(1, 1)).read_through(Position(2, 1))
    assert len(files._handles) == handles
