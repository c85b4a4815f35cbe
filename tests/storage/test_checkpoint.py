"""Checkpoints: what they keep, what they let go of, and what they leave for a bad day."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

import pytest

from jsonqueue.config import CONFIG_FILE, Config
from jsonqueue.core.records import Cancelled, encode_records
from jsonqueue.errors import CorruptQueue, DiskFull, FolderRefused, StorageError, UnreadableFile
from jsonqueue.storage.archive import committed_archive
from jsonqueue.storage.checkpoint import DRAFT, Cut, checkpoint, clear_draft, final_checkpoint
from jsonqueue.storage.codec import START, Position
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles, PowerCut
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, ArchiveMark, ChangedQueue, QueueWriter, read_header
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.repair import examine, mend
from storage.history import AT_MS, CONFIG, Queue, archived, archived_tasks, contents, tasks_in


@pytest.fixture
def queue() -> Queue:
    return Queue(MemoryFiles())


def segments(queue: Queue, folder: str = "") -> list[str]:
    return [name for name in queue.files.list(folder) if name.endswith(".jsonl")]


def test_nothing_new_is_nothing_to_do(queue: Queue) -> None:
    """But the first one makes a queue.json, even of nothing, so that there is one to look at."""
    done = checkpoint(queue.files, queue.rotate(), config=CONFIG, at_ms=AT_MS)
    assert (done.tasks, done.folded) == (0, 0)
    assert queue.files.list() == [*segments(queue), QUEUE][-3:] or QUEUE in queue.files.list()
    written = queue.files.get(QUEUE)  # type: ignore[attr-defined]
    again = checkpoint(queue.files, queue.rotate(), config=CONFIG, at_ms=AT_MS + 1)
    assert again == done
    assert queue.files.get(QUEUE) == written  # type: ignore[attr-defined]


def test_an_old_cut_folds_nothing(queue: Queue) -> None:
    """A cut that was overtaken by another is not an error."""
    old = queue.rotate()
    queue.publish("a")
    queue.lease("a")
    queue.checkpoint()
    done = checkpoint(queue.files, old, config=CONFIG, at_ms=AT_MS)
    assert (done.folded, done.tasks, done.through_task) == (0, 1, 1)


def test_nothing_beyond_the_cut_is_folded(queue: Queue) -> None:
    """What was published since is not in queue.json, though it is in the file; its segment stays."""
    queue.publish("a")
    cut = queue.rotate()
    queue.publish("b")
    queue.pub.rotate()
    queue.publish("c")
    done = checkpoint(queue.files, cut, config=CONFIG, at_ms=AT_MS)
    assert (done.tasks, done.through_task) == (1, 1)
    assert read_header(queue.files).published_through == Position(1, 1)
    assert segments(queue) == [
        "progress-000000000001-00000001.jsonl",
        "published-000000000002-00000001.jsonl",
        "published-000000000003-00000001.jsonl",
    ]
    assert list(queue.check().state.tasks) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "cut", [Cut(START, Position(2, 1)), Cut(START, Position(1, 9)), Cut(Position(1, 1), Position(1, 1)), Cut(START, Position(3, 1))]
)
def test_a_cut_that_is_not_in_the_logs_is_refused(queue: Queue, cut: Cut) -> None:
    """Nothing is written then."""
    queue.publish("a")
    if cut.published.number == 2:
        queue.publish("b")
        queue.close()
        queue.open()
        cut = Cut(START, Position(2, 2))
    before = queue.files.list()
    with pytest.raises(CorruptQueue):
        checkpoint(queue.files, cut, config=CONFIG, at_ms=AT_MS)
    assert queue.files.list() == before


def test_a_segment_in_the_making_is_left_alone(queue: Queue) -> None:
    """A file that has a name and no header yet is somebody's rotation, not rubbish."""
    queue.publish("a")
    cut = queue.rotate()
    queue.publish("b")
    queue.files.put("published-000000000003-00000001.jsonl", b"")  # type: ignore[attr-defined]
    checkpoint(queue.files, cut, config=CONFIG, at_ms=AT_MS)
    assert "published-000000000003-00000001.jsonl" in queue.files.list()


def test_leftovers_are_cleared_even_when_nothing_is_to_be_folded(queue: Queue) -> None:
    """A checkpoint that was cut short left them."""
    queue.publish("a")
    name = segments(queue)[-1]
    data = queue.files.get(name)  # type: ignore[attr-defined]
    queue.checkpoint()
    queue.files.put(name, data)  # type: ignore[attr-defined]
    queue.checkpoint()
    assert name not in queue.files.list()


def test_evidence_goes_when_a_checkpoint_has_passed_it(queue: Queue) -> None:
    """A torn segment that was superseded stays until its batches are folded."""
    queue.publish("a")
    name = segments(queue)[-1]
    queue.files.put(name, queue.files.get(name) + b'{"h"')  # type: ignore[attr-defined]
    queue.open()
    assert name in queue.files.list()
    queue.checkpoint()
    assert name not in queue.files.list()


def test_the_previous_generation_leads_to_the_present_one(queue: Queue) -> None:
    """previous/ and the logs beside queue.json tell the same queue as queue.json does."""
    for n in range(4):
        queue.publish(f"a{n}", f"b{n}")
        queue.lease(f"a{n}")
        queue.checkpoint()
        queue.publish(f"c{n}")
        before = contents(queue.load())
        files: MemoryFiles = queue.files.copy()  # type: ignore[attr-defined]
        files.put(QUEUE, files.get(f"{PREVIOUS}/{QUEUE}")) if n else files.unlink(QUEUE)
        for name in segments(queue, PREVIOUS):
            files.put(name, files.get(f"{PREVIOUS}/{name}"))
        assert contents(load_state(files)) == before
        assert len(segments(queue, PREVIOUS)) <= 4


def test_a_final_checkpoint_leaves_queue_json_alone(queue: Queue) -> None:
    """It holds everything; there are no logs; and doing it again changes nothing."""
    queue.publish("a", "b")
    queue.lease("a")
    queue.checkpoint()
    queue.complete("a")
    queue.publish("c")
    expected = contents(queue.load())
    queue.close()
    for _ in range(2):
        final_checkpoint(queue.files, config=CONFIG, at_ms=AT_MS)
        assert not segments(queue)
        assert contents(load_state(queue.files)) == expected
    assert read_header(queue.files).closed


def test_blocks_are_copied_where_nothing_was_touched(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Touched, untouched and mixed blocks, and tasks that leave: the order stays."""
    monkeypatch.setattr("jsonqueue.storage.queue_file.CHUNK", 600)
    monkeypatch.setattr("jsonqueue.storage.archive.CHUNK", 200)
    ids = [f"t{n:02d}" for n in range(40)]
    queue.publish(*ids)
    queue.checkpoint()
    queue.lease("t03", "t04", "t20")
    queue.complete("t03", "t04", "t20")
    queue.retire("t03", "t20")
    expected = contents(queue.load())
    done = checkpoint(queue.files, queue.rotate(), config=CONFIG, at_ms=AT_MS)
    assert done.left == {"t03": 4, "t20": 21}
    assert contents(load_state(queue.files)) == expected
    assert list(queue.check().state.tasks) == [task_id for task_id in ids if task_id not in done.left]
    assert archived(queue.files, queue.load()) == ["t03", "t20"]  # type: ignore[arg-type]


def _retire_one(queue: Queue, task_id: str, at_ms: int, config: Config = CONFIG) -> None:
    queue.publish(task_id)
    queue.lease(task_id)
    queue.complete(task_id)
    queue.retire(task_id)
    checkpoint(queue.files, queue.rotate(), config=config, at_ms=at_ms)


def test_the_archive_is_cut_to_what_is_committed(queue: Queue) -> None:
    """Lines of a checkpoint that never ended are not in it twice."""
    _retire_one(queue, "a", AT_MS)
    mark = read_header(queue.files).archive
    queue.files.put(mark.file, queue.files.get(mark.file) + b'{"id":"b"}\n')  # type: ignore[attr-defined]
    _retire_one(queue, "b", AT_MS)
    assert archived(queue.files, queue.load()) == ["a", "b"]  # type: ignore[arg-type]
    assert queue.files.get(mark.file).count(b"\n") == 2  # type: ignore[attr-defined]


def test_the_archive_never_goes_back_to_an_older_month(queue: Queue) -> None:
    """A clock that jumps back would otherwise have it cut a file whose committed length it does not know."""
    month = 31 * 86_400_000
    _retire_one(queue, "a", AT_MS)
    first = queue.files.get("archive/2025-11.jsonl")  # type: ignore[attr-defined]
    queue.files.put("archive/2025-12.jsonl", b"from a checkpoint that never ended")  # type: ignore[attr-defined]
    _retire_one(queue, "b", AT_MS + month)
    _retire_one(queue, "c", AT_MS)
    assert queue.files.list("archive") == ["2025-11.jsonl", "2025-12.jsonl"]
    assert queue.files.get("archive/2025-11.jsonl") == first  # type: ignore[attr-defined]
    assert queue.files.get("archive/2025-12.jsonl").count(b"\n") == 2  # type: ignore[attr-defined]
    assert committed_archive(queue.files) == read_header(queue.files).archive


@pytest.mark.parametrize("error", [DiskFull("no room"), StorageError("Operation not permitted"), ChangedQueue()])
@pytest.mark.parametrize("closing", [False, True])
def test_what_ends_a_checkpoint_behind_its_draft_leaves_nothing_of_that(error: StorageError, closing: bool) -> None:
    """A second name needs room too, and not every file system has them; the next try may be long in coming."""
    for operation in (f"link {QUEUE}", "link published", f"sync_folder {PREVIOUS}", f"rename {DRAFT} {QUEUE}"):
        files = MemoryFiles()
        queue = Queue(files)
        queue.publish("a")
        queue.checkpoint()
        queue.publish("b")
        cut, names = queue.rotate(), files.list()

        def refuse(number: int, name: str, operation: str = operation) -> None:
            if name.startswith(operation):
                raise error

        files.fail = refuse
        with pytest.raises(type(error)):
            final_checkpoint(files, config=CONFIG, at_ms=AT_MS) if closing else checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
        assert files.list() == names, operation
        files.fail = lambda number, name: None
        queue.check()


@pytest.mark.parametrize("error", [DiskFull("no room"), StorageError("Operation not permitted"), ChangedQueue()])
@pytest.mark.parametrize("closing", [False, True])
def test_what_ends_a_checkpoint_behind_its_draft_leaves_nothing_in_the_archive(error: StorageError, closing: bool) -> None:
    """That takes room as the draft does. But what is in place rests on it, though its end may fail."""
    in_place = {f"rename {PREVIOUS}/{QUEUE}.draft": True, "unlink published": True}
    for operation, is_in_place in {f"link {QUEUE}": False, f"sync_folder {PREVIOUS}": False, **in_place}.items():
        files = MemoryFiles()
        queue = Queue(files)
        _retire_one(queue, "a", AT_MS)
        queue.publish("b", "c")
        queue.lease("b")
        queue.complete("b")
        queue.retire("b")
        cut, committed = queue.rotate(), read_header(files).archive

        def refuse(number: int, name: str, operation: str = operation) -> None:
            if name.startswith(operation):
                raise error

        files.fail = refuse
        with pytest.raises(type(error)):
            final_checkpoint(files, config=CONFIG, at_ms=AT_MS) if closing else checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
        files.fail = lambda number, name: None
        assert (read_header(files).archive != committed) is is_in_place, operation
        assert len(files.get(committed.file)) == read_header(files).archive.length, operation
        assert archived(files, queue.check()) == ["a", "b"] if is_in_place else ["a"]


@pytest.mark.parametrize("closing", [False, True])
def test_what_another_life_of_the_queue_left_in_previous_is_not_kept_for_this_one(closing: bool) -> None:
    """Somebody put back an older copy of the queue's files, and not of those in previous/: what the other life wrote since stands there
    under names that come again. Damage to queue.json must not bring that back."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    other = files.copy()
    other_life = Queue(other)
    other_life.publish("x")
    queue.close()
    queue = Queue(files)
    queue.publish("b")
    [name] = [name for name in segments(queue) if name.startswith("published")]
    files.put(f"{PREVIOUS}/{name}", other.get(name))
    expected = contents(queue.load())
    assert list(expected) == ["a", "b"]
    if not closing:
        queue.checkpoint()
    queue.close()
    if closing:
        final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    files.put(QUEUE, files.get(QUEUE).replace(b'"id":"b"', b'"id":!b"'))
    report = mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS)
    assert report.ok, report
    assert contents(load_state(files)) == expected


def test_a_draft_that_cannot_be_removed_does_not_hide_why_it_is_of_no_use(queue: Queue) -> None:
    """The lock may be lost: then nothing may be changed any more."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    queue.publish("a")
    cut = queue.rotate()

    def refuse(number: int, name: str) -> None:
        if name.startswith(("rename", f"unlink {DRAFT}")) and files.identity(DRAFT):
            raise StorageError(name)

    files.fail = refuse
    with pytest.raises(StorageError, match="rename"):
        checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)


def test_an_archive_that_cannot_be_cut_is_closed(queue: Queue) -> None:
    """Each minute there is another try."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    _retire_one(queue, "a", AT_MS)
    queue.publish("b")
    queue.lease("b")
    queue.complete("b")
    queue.retire("b")
    cut, before, handles = queue.rotate(), files.get("archive/2025-11.jsonl"), len(files._handles)

    def refuse(number: int, operation: str) -> None:
        if operation.startswith("truncate archive"):
            raise DiskFull("no room")

    files.fail = refuse
    for _ in range(2):
        with pytest.raises(DiskFull):
            checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
        assert (len(files._handles), files.get("archive/2025-11.jsonl")) == (handles, before)
    files.fail = lambda number, operation: None
    checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    assert archived(files, queue.load()) == ["a", "b"]


def test_an_archive_that_was_taken_away_begins_anew(queue: Queue) -> None:
    """The files are the user's to move, as a whole or in part, and to write to: what is left is gone on from, in a line of its own, but for
    half a line."""
    assert committed_archive(queue.files) == ArchiveMark()
    _retire_one(queue, "a", AT_MS)
    queue.files.unlink("archive/2025-11.jsonl")
    _retire_one(queue, "b", AT_MS)
    assert archived(queue.files, queue.load()) == ["b"]  # type: ignore[arg-type]
    noted = b'{"note":"%b"}\n' % (b"x" * read_header(queue.files).archive.length)
    for left, lines in ((b"", ["c"]), (b"{}\nhalf", ["{}", "d"]), (noted + b"{}\n", [noted.decode().strip(), "{}", "e"])):
        queue.files.put("archive/2025-11.jsonl", left)  # type: ignore[attr-defined]
        _retire_one(queue, lines[-1], AT_MS)
        *before, last = queue.files.get("archive/2025-11.jsonl").decode().splitlines()  # type: ignore[attr-defined]
        assert (before, json.loads(last)["id"]) == (lines[:-1], lines[-1])


def test_an_archive_that_was_changed_and_cannot_be_read_is_gone_on_from(queue: Queue) -> None:
    """Nobody knows what is in it, so nothing is cut off."""
    files, name = queue.files, "archive/2025-11.jsonl"
    assert isinstance(files, MemoryFiles)
    _retire_one(queue, "a", AT_MS)
    files.put(name, b"lost\nhalf")
    files.spoil(name, range(4))
    _retire_one(queue, "b", AT_MS)
    files.spoil(name)
    assert files.get(name).startswith(b'lost\nhalf\n{"id":"b"')
    files.spoil(name, range(read_header(files).archive.length - 1, 1 << 20))
    with pytest.raises(UnreadableFile, match=name):
        _retire_one(queue, "c", AT_MS)
    files.spoil(name)
    checkpoint(files, queue.rotate(), config=CONFIG, at_ms=AT_MS)
    assert files.get(name).count(b"\n") == 4


def test_an_archive_that_was_taken_away_for_room_is_no_damage(queue: Queue) -> None:
    """The disk is full, somebody deletes the archive, and the first checkpoint that begins it anew still finds too little room: its file
    was shorter then than what was archived in it, which stopped the manager for good, and nothing could mend it."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    _retire_one(queue, "a", AT_MS)
    files.unlink("archive/2025-11.jsonl")
    queue.publish("b")
    queue.lease("b")
    queue.complete("b")
    queue.retire("b")
    cut, files.room = queue.rotate(), 10
    with pytest.raises(DiskFull):
        checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    files.room = 1 << 20
    checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    assert archived(files, queue.load()) == ["b"]


def test_a_checkpoint_cut_short_before_a_new_month_leaves_nothing_in_the_old_one(queue: Queue) -> None:
    """What it had archived there is archived anew, in the new file; it would be there twice, and maybe half of it."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    month = 31 * 86_400_000
    _retire_one(queue, "a", AT_MS)
    committed = files.get("archive/2025-11.jsonl")
    files.put("archive/2025-11.jsonl", committed + b'{"id":"b"}\n{"id":"c')
    files.put("archive/2025-12.jsonl", b'{"id":"b"}\n')
    files.put("archive/notes.txt", b"mine")
    _retire_one(queue, "b", AT_MS + 2 * month)
    assert files.get("archive/2025-11.jsonl") == committed
    assert files.get("archive/2025-12.jsonl") == b""
    assert files.get("archive/notes.txt") == b"mine"
    assert archived(files, queue.load()) == ["b"]


@pytest.mark.parametrize("months", [0, 1, -1, 2])
def test_a_first_archiving_that_was_cut_short_leaves_nothing_twice(queue: Queue, months: int) -> None:
    """No queue.json names an archive yet. Tried again in another month, by whatever clock, it left what it had archived in both."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    _end(queue, "a", "b")
    _die_at(files, f"create {DRAFT}", queue.rotate(), AT_MS)
    assert files.get("archive/2025-11.jsonl").count(b"\n") == 2
    files.put("archive/2025-11.jsonl", files.get("archive/2025-11.jsonl") + b'{"id":"c","num')
    _end(queue, "c")
    checkpoint(files, queue.rotate(), config=CONFIG, at_ms=AT_MS + months * 31 * 86_400_000)
    assert [task_id for _, task_id in _in_the_archive(files)] == ["a", "b", "c"]
    assert archived(files, queue.check()) == ["a", "b", "c"]


def test_what_an_earlier_queue_archived_in_the_folder_is_gone_on_from(queue: Queue) -> None:
    """Somebody began anew, and kept the archive. The first task that left cut off all that the other queue had archived in that month."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    other = MemoryFiles()
    _retire_one(Queue(other), "x", AT_MS - 1)
    before, month = other.get("archive/2025-11.jsonl").replace(b'"published_ms":1763', b'"published_ms":1762'), "archive/2025-11.jsonl"
    files.put("archive/2025-10.jsonl", before)
    files.put(month, before)
    _end(queue, "a")
    _die_at(files, f"create {DRAFT}", queue.rotate(), AT_MS)
    checkpoint(files, queue.rotate(), config=CONFIG, at_ms=AT_MS)
    assert _in_the_archive(files) == [("2025-10", "x"), ("2025-11", "x"), ("2025-11", "a")]
    assert files.get("archive/2025-10.jsonl") == before


def test_an_archive_that_was_shortened_is_gone_on_from_once(queue: Queue) -> None:
    """What a checkpoint appended that never ended counted as what the user had left, and was archived again."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    for name in ("a", "b", "c"):
        _retire_one(queue, name, AT_MS)
    for left, stays in ((None, []), (b'{"id":"z"}\n', [("2025-11", "z")])):
        files.unlink("archive/2025-11.jsonl")
        if left is not None:
            files.put("archive/2025-11.jsonl", left)
        for name in ("b", "c"):
            _end(queue, name)
            _die_at(files, f"create {DRAFT}", queue.rotate(), AT_MS)
        checkpoint(files, queue.rotate(), config=CONFIG, at_ms=AT_MS)
        assert _in_the_archive(files) == [*stays, ("2025-11", "b"), ("2025-11", "c")]


def test_who_archives_nothing_does_not_look_at_the_archive(tmp_path: Path) -> None:
    """Somebody put a link in its place. That is refused where it would be used."""
    files = open_folder(tmp_path / "queue", create=True)
    queue = Queue(files)
    (tmp_path / "queue" / "archive").rename(tmp_path / "archive")
    (tmp_path / "queue" / "archive").symlink_to(tmp_path / "archive")
    queue.publish("a")
    queue.checkpoint()
    with pytest.raises(FolderRefused, match="archive is not a folder of ours"):
        _retire_one(queue, "b", AT_MS)
    queue.close()
    files.shut()


def _end(queue: Queue, *ids: str) -> None:
    queue.publish(*ids)
    queue.lease(*ids)
    queue.complete(*ids)
    queue.retire(*ids)


def _die_at(files: MemoryFiles, operation: str, cut: Cut, at_ms: int) -> None:
    """A checkpoint whose manager is killed there."""

    def kill(number: int, name: str) -> None:
        if name.startswith(operation):
            raise PowerCut(name)

    files.fail = kill
    with pytest.raises(PowerCut):
        checkpoint(files, cut, config=CONFIG, at_ms=at_ms)
    files.fail = lambda number, name: None


def _in_the_archive(files: MemoryFiles) -> list[tuple[str, str]]:
    """Month and id of each line that is there, counted or not."""
    names = files.list("archive")
    return [(name[:7], json.loads(line)["id"]) for name in names for line in files.get(f"archive/{name}").splitlines()]


def test_what_was_cut_off_an_older_month_does_not_come_back(queue: Queue) -> None:
    """A checkpoint that failed behind its draft took back what it had archived, and did not sync that. The next one found the file as
    short as it should be, and began a new month; then the power went, and the disk held the longer file still."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    _retire_one(queue, "a", AT_MS)
    committed = files.get("archive/2025-11.jsonl")
    _end(queue, "b")
    cut = queue.rotate()

    def refuse(number: int, operation: str) -> None:
        if operation.startswith("link"):
            raise DiskFull("no room")

    files.fail = refuse
    with pytest.raises(DiskFull):
        checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    files.fail = lambda number, operation: None
    checkpoint(files, cut, config=CONFIG, at_ms=AT_MS + 31 * 86_400_000)
    files.crash()
    assert files.get("archive/2025-11.jsonl") == committed
    assert _in_the_archive(files) == [("2025-11", "a"), ("2025-12", "b")]


def test_an_older_month_that_may_not_be_written_to_any_more_is_left_alone(tmp_path: Path) -> None:
    """Once it is past, its file is often made read-only, or moved away with a link in its place."""
    files = open_folder(tmp_path, create=True)
    queue = Queue(files)
    _retire_one(queue, "a", AT_MS)
    november = tmp_path / "archive" / "2025-11.jsonl"
    november.rename(tmp_path / "elsewhere")
    november.symlink_to("../elsewhere")
    _retire_one(queue, "b", AT_MS + 31 * 86_400_000)
    assert (tmp_path / "archive" / "2025-12.jsonl").read_bytes().startswith(b'{"id":"b"')
    (tmp_path / "archive" / "2026-01.jsonl").symlink_to("../elsewhere")
    with pytest.raises(FolderRefused, match="2026-01"):  # One of a month to come is what a checkpoint left, or goes on with.
        _retire_one(queue, "c", AT_MS + 31 * 86_400_000)
    queue.close()
    files.shut()


def test_without_an_archive_retired_tasks_are_dropped(queue: Queue) -> None:
    """As the setting says."""
    _retire_one(queue, "a", AT_MS, Config(archive=False))
    assert not queue.files.list("archive")
    assert not queue.load().state.tasks


@pytest.mark.parametrize("room", [0, 100, 400, 600])
def test_a_full_disk_leaves_the_queue_as_it_was(queue: Queue, room: int) -> None:
    """Wherever the room ran out; and when there is some again, it goes on."""
    queue.publish("a", "b")
    queue.checkpoint()
    queue.lease("a")
    queue.complete("a")
    queue.retire("a")
    cut = queue.rotate()
    expected = contents(queue.load())
    queue.files.room = room  # type: ignore[attr-defined]
    with pytest.raises(DiskFull):
        checkpoint(queue.files, cut, config=CONFIG, at_ms=AT_MS)
    assert contents(queue.check()) == expected
    queue.files.room = 1 << 20  # type: ignore[attr-defined]
    assert checkpoint(queue.files, cut, config=CONFIG, at_ms=AT_MS).left == {"a": 1}
    queue.check()


def test_a_checkpoint_without_room_leaves_nothing_behind(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the room ends: no draft and no archived lines that take what there is, and no file that stays open, try after try."""
    monkeypatch.setattr("jsonqueue.storage.archive.CHUNK", 300)
    files = queue.files
    assert isinstance(files, MemoryFiles)
    _retire_one(queue, "z", AT_MS)
    queue.publish("a", "b", "c", size=400)
    queue.lease("a", "b", "c")
    queue.complete("a", "b")
    queue.retire("a", "b")
    cut, committed = queue.rotate(), read_header(files).archive
    names, handles, ends_at = files.list(), len(files._handles), set()
    for room in range(0, 4000, 100):
        files.room = room
        try:
            checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
            break
        except DiskFull:
            ends_at.add(next(step for step in reversed(files.trace) if step.startswith("write")).split()[1])
        assert files.list() == names
        assert len(files.get(committed.file)) == committed.length
        assert len(files._handles) == handles
    assert ends_at == {committed.file, f"{QUEUE}.draft"}, "it was to end in both"
    queue.check()


def test_a_draft_that_was_left_can_be_cleared_and_one_that_was_not_is_no_error(queue: Queue) -> None:
    """A manager that was killed in the midst of a checkpoint left it; the next one gives its room back, and touches nothing else."""
    queue.publish("a")
    names = queue.files.list()
    queue.files.put(DRAFT, b"half of a queue")  # type: ignore[attr-defined]
    clear_draft(queue.files)
    assert queue.files.list() == names
    clear_draft(queue.files)
    assert queue.files.list() == names


def test_a_damaged_queue_json_is_not_folded_into_a_sound_one(queue: Queue) -> None:
    """A new checksum over damaged lines would hide the damage for ever."""
    queue.publish("a", "b")
    queue.checkpoint()
    data = queue.files.get(QUEUE)  # type: ignore[attr-defined]
    queue.files.put(QUEUE, data.replace(b'"bx', b'"by').replace(b'"data":"b"', b'"data":"c"'))  # type: ignore[attr-defined]
    queue.publish("c")
    with pytest.raises(CorruptQueue, match="checksum"):
        queue.checkpoint()
    assert queue.files.get(QUEUE) != data  # type: ignore[attr-defined]
    assert segments(queue)


def test_a_task_that_came_twice_is_noticed_by_the_fold(queue: Queue) -> None:
    """Progress speaks of an id that is both in queue.json and in the log."""
    queue.publish("a")
    queue.checkpoint()
    queue.publish("a")
    queue.prog.append(b'[{"what":"leased","consumer":"w@1","first":1,"ids":["a"]}]', at_ms=AT_MS, after=queue.pub.position)
    queue.prog.sync()
    with pytest.raises(CorruptQueue, match="published already"):
        queue.checkpoint()


def test_an_id_that_was_published_again_costs_nothing_when_queue_json_is_made_anew(queue: Queue) -> None:
    """From the generation before, the fold comes past both: the task that was retired, and the one that has its id now."""
    queue.publish("a", "b")
    queue.lease("a")
    queue.complete("a")
    queue.checkpoint()
    queue.publish("c")
    queue.lease("c")
    queue.complete("c")
    queue.retire("a", "c")
    queue.checkpoint()
    queue.publish("c", "a")
    queue.lease("b")
    queue.close()
    expected = contents(load_state(queue.files))
    data = queue.files.get(QUEUE)  # type: ignore[attr-defined]
    queue.files.put(QUEUE, data[:-5] + b"x" + data[-4:])  # type: ignore[attr-defined]
    report = mend(queue.files, accept_loss=False, accept_edit=False, at_ms=AT_MS)
    assert (report.ok, report.lost) == (True, [])
    loaded = load_state(queue.files)
    assert contents(loaded) == expected
    assert [task.number for task in loaded.state.tasks.values()] == [2, 4, 5]
    assert [(task.id, task.number) for task in archived_tasks(queue.files, loaded)] == [("a", 1), ("c", 3)]  # type: ignore[arg-type]


EDIT = b'{"format":"jsonqueue","version":1,"by":"hand"}'


def _put_another(files: MemoryFiles) -> None:
    """As most editors save a file."""
    files.put(QUEUE, EDIT)


def _write_over(files: MemoryFiles) -> None:
    """As the others do: in the file itself."""
    handle = files.open(QUEUE)
    files.truncate(handle, 0)
    files.write_at(handle, 0, EDIT)
    files.close(handle)


def _kill(files: MemoryFiles) -> None:
    raise PowerCut


def _folded_meanwhile(edit: Callable[[MemoryFiles], None], at: int, *, closing: bool) -> tuple[MemoryFiles, dict[str, bytes], str]:
    """A disk on which this happened before such an operation of a checkpoint, what the queue held, and the operation, if there is one."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in ("a", "b"):
        queue.publish(task_id)
        queue.checkpoint()
    queue.publish("c")
    expected, cut = contents(load_state(files)), queue.rotate()
    at += len(files.trace)

    def interfere(number: int, name: str) -> None:
        if len(files.trace) > at:
            files.fail = lambda number, name: None
            edit(files)

    files.fail = interfere
    with suppress(StorageError, PowerCut):
        if closing:
            final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
        else:
            checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    files.fail = lambda number, name: None
    return files, expected, next(iter(files.trace[at:]), "")


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("edit", [_put_another, _write_over])
def test_an_edit_while_queue_json_is_folded_is_not_overtaken(edit: Callable[[MemoryFiles], None], closing: bool) -> None:
    """Before whichever operation of a checkpoint it comes it is there afterwards, and `repair` loses nothing. Only in the last moment it is
    too late: then the queue goes on, and has lost nothing either; and what goes with it is not the generation before."""
    for at in count():
        files, expected, operation = _folded_meanwhile(edit, at, closing=closing)
        if files.get(QUEUE) != EDIT:
            break
        assert mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS).ok, operation
        assert (contents(load_state(files)), files.get(f"damaged-1/{QUEUE}")) == (expected, EDIT), operation
    assert (operation, contents(load_state(files))) == (f"rename {DRAFT} {QUEUE}", expected)
    files.put(QUEUE, EDIT)
    assert mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS).ok
    assert contents(load_state(files)) == expected


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("power_cut", [None, *range(12)])
def test_damage_to_queue_json_costs_nothing_wherever_a_checkpoint_ended(power_cut: int | None, closing: bool) -> None:
    """At no moment both generations are one file, or the one before does not lead to what was acknowledged."""
    operation = "none yet"
    for at in count():
        if not operation:
            break
        files, expected, operation = _folded_meanwhile(_kill, at, closing=closing)
        if power_cut is not None:
            files.crash(Random(power_cut))
        _write_over(files)
        assert mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS).ok, operation
        assert contents(load_state(files)) == expected, operation


def _killed_with_nothing_before(operation: str, *, closing: bool) -> tuple[MemoryFiles, dict[str, bytes]]:
    """A disk whose queue.json had no generation before it, as behind an accepted edit, and what the queue held; killed in a checkpoint."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    for name in files.list(PREVIOUS):
        files.unlink(f"{PREVIOUS}/{name}")
    queue.publish("b")
    expected, cut = contents(load_state(files)), queue.rotate()
    files.fail = lambda number, name: _kill(files) if name == operation else None
    with pytest.raises(PowerCut):
        final_checkpoint(files, config=CONFIG, at_ms=AT_MS) if closing else checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    files.fail = lambda number, name: None
    return files, expected


@pytest.mark.parametrize("harm", [_write_over, lambda files: files.unlink(QUEUE)], ids=["damaged", "removed"])
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("closing", [False, True])
def test_what_a_checkpoint_replaced_leads_to_the_new_queue_json_before_it_has_its_name(
    harm: Callable[[MemoryFiles], None], power_cut: bool, closing: bool
) -> None:
    """Where there is no generation before it, nothing else does."""
    files, expected = _killed_with_nothing_before(f"rename {PREVIOUS}/{QUEUE}.draft {PREVIOUS}/{QUEUE}", closing=closing)
    if power_cut:
        files.crash()
    harm(files)
    assert mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS).ok
    assert contents(load_state(files)) == expected


def test_a_queue_json_that_nothing_leads_to_is_told_damaged_by_its_own_name() -> None:
    """The draft in previous/ is the same file as yet: as damaged, and nobody's concern."""
    files, _ = _killed_with_nothing_before(f"rename {DRAFT} {QUEUE}", closing=False)
    _write_over(files)
    report = mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS)
    assert not report.ok
    assert not any(".draft" in finding.what for finding in report.findings)
    assert files.get(QUEUE) == EDIT


def test_a_first_queue_json_that_somebody_else_puts_there_is_not_overtaken(queue: Queue) -> None:
    """There was none when the checkpoint began."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    queue.publish("a")
    cut = queue.rotate()
    files.fail = lambda number, name: _put_another(files) if name == f"sync_folder {PREVIOUS}" else None
    with pytest.raises(ChangedQueue, match="was left as it is"):
        checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    assert files.get(QUEUE) == EDIT


def test_a_sealed_segment_that_is_removed_behind_the_fold_is_not_missed(queue: Queue) -> None:
    """What it held is in the draft."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    queue.publish("a")
    queue.checkpoint()
    queue.publish("b")
    sealed = segments(queue)[-1]
    cut = queue.rotate()
    files.fail = lambda number, name: files.unlink(sealed) if name == f"link {QUEUE} {PREVIOUS}/{QUEUE}.draft" else None
    checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    files.fail = lambda number, name: None
    assert list(queue.check().state.tasks) == ["a", "b"]


@pytest.mark.parametrize("rotated", [False, True])
def test_what_queue_json_holds_is_durable_in_the_log_too(queue: Queue, rotated: bool) -> None:
    """Also of batches that nobody synced, as by `process-crash`: else a log that ends before them would be missed after a power cut."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    queue.publish("a")
    queue.rotate()
    queue.pub.append(encode_records(tasks_in("b")), at_ms=AT_MS, first_task=2)
    cut = Cut(queue.prog.position, queue.pub.position)
    if rotated:
        queue.pub.rotate()
    queue.pub.append(encode_records(tasks_in("c")), at_ms=AT_MS, first_task=3)
    files.trace.clear()
    checkpoint(files, cut, config=Config(durability="process-crash"), at_ms=AT_MS)
    trace = tuple(files.trace)
    files.crash()
    assert examine(files).ok
    queue.open()
    assert list(load_state(files).state.tasks)[:2] == ["a", "b"]
    synced = [place for place, operation in enumerate(trace) if operation.startswith("sync published")]
    assert len(synced) == 1
    assert synced[0] < trace.index(f"rename {DRAFT} {QUEUE}")


def test_what_is_synced_by_its_writer_costs_a_checkpoint_nothing(queue: Queue) -> None:
    """With the durability that is the default."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    queue.publish("a")
    cut = queue.rotate()
    files.trace.clear()
    checkpoint(files, cut, config=CONFIG, at_ms=AT_MS)
    assert not [operation for operation in files.trace if operation.startswith("sync published")]


def test_a_log_that_began_anew_meanwhile_is_durable_by_itself(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer has copied and synced what was in the segment that is gone. And where nothing was published there is nothing to sync."""
    files = queue.files
    assert isinstance(files, MemoryFiles)
    relaxed = Config(durability="process-crash")
    assert checkpoint(files, queue.rotate(), config=relaxed, at_ms=AT_MS).tasks == 0
    queue.publish("a")
    finish = QueueWriter.finish

    def restarts(writer: QueueWriter) -> None:
        finish(writer)
        queue.pub.close()
        queue.pub = LogWriter.open(files, LogKind.PUBLISHED)

    monkeypatch.setattr(QueueWriter, "finish", restarts)
    assert checkpoint(files, Cut(queue.prog.position, queue.pub.position), config=relaxed, at_ms=AT_MS).tasks == 1
    files.crash()
    assert list(load_state(files).state.tasks) == ["a"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("again", [False, True])
def test_a_clean_stop_is_durable_in_the_logs_that_it_leaves(seed: int, again: bool) -> None:
    """Also of batches that nobody synced: a power cut may take back that the logs are gone, and leave pieces of them, which would be
    damage. So may it behind a repair that makes queue.json anew."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    ids = [f"b{number}" for number in range(6)]
    for number, task_id in enumerate(ids, 2):
        queue.pub.append(encode_records(tasks_in(task_id, size=15_000)), at_ms=AT_MS, first_task=number)
    for task_id in ids:
        queue.prog.append(encode_records([Cancelled([task_id], "x" * 15_000)]), at_ms=AT_MS, after=queue.pub.position)
    queue.close()
    files.put(CONFIG_FILE, b'durability = "process-crash"\n')
    if again:
        files.put(QUEUE, files.get(QUEUE)[:-3])
        assert mend(files, accept_loss=False, accept_edit=False, at_ms=AT_MS).ok
    else:
        final_checkpoint(files, config=Config(durability="process-crash"), at_ms=AT_MS)
    expected = contents(load_state(files))
    files.crash(Random(seed))
    assert examine(files).ok
    assert contents(Queue(files).load()) == expected
