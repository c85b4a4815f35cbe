"""queue.json: what is in it, and every way in which it may not be what was written."""

from __future__ import annotations

import json
from zlib import crc32

import msgspec
import pytest
from msgspec import Raw

from jsonqueue.errors import CorruptQueue, StorageError, UnsupportedFormat
from jsonqueue.storage.codec import Position
from jsonqueue.storage.log import LogWriter
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import (
    PREVIOUS,
    QUEUE,
    ArchiveMark,
    EditedQueue,
    QueueHeader,
    QueueReader,
    QueueWriter,
    decode_block,
    encode_task,
    read_header,
)
from jsonqueue.storage.recovery import load_ids, load_state
from jsonqueue.task import StoredTask, Task, TaskStatus
from storage.history import AT_MS, Queue, contents, the_history

HEADER = QueueHeader(saved_ms=AT_MS, last_task=3, archive=ArchiveMark("archive/2025-11.jsonl", 5))


def some_tasks(count: int = 3, size: int = 3) -> list[StoredTask]:
    return [Task(f"t{n}", n, TaskStatus.PENDING, AT_MS, Raw(b'"%b"' % (b"x" * size))) for n in range(1, count + 1)]


def written(tasks: list[StoredTask]) -> MemoryFiles:
    files = MemoryFiles()
    writer = QueueWriter(files, QUEUE, HEADER)
    for task in tasks:
        writer.add(encode_task(task), 1)
    writer.add(b"", 0)
    writer.finish()
    assert writer.size == len(files.get(QUEUE))
    writer.close()
    return files


@pytest.mark.parametrize(("count", "size"), [(0, 1), (1, 1), (3, 3), (40, 100), (3, 2000)])
def test_what_is_written_is_read(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> None:
    """In blocks of any size; and any JSON reader reads it too, one task a line."""
    monkeypatch.setattr("jsonqueue.storage.queue_file.CHUNK", 512)
    tasks = some_tasks(count, size)
    files = written(tasks)
    reader = QueueReader.open(files)
    assert reader is not None
    with reader:
        assert (reader.header, reader.count) == (HEADER, count)
        read = [task for block in reader.blocks() for task in decode_block(block)]
    assert read == tasks
    document = json.loads(files.get(QUEUE))
    assert [task["id"] for task in document["tasks"]] == [task.id for task in tasks]
    assert document["count"] == count
    assert files.get(QUEUE).count(b"\n") == count + 2


def test_no_flipped_bit_goes_unnoticed() -> None:
    """Each one is refused, by whoever reads; and never for a wrong reason such as a task that is not there."""
    queue = Queue(MemoryFiles())
    queue.publish("a", "b")
    queue.lease("a")
    queue.checkpoint()
    whole = queue.files.get(QUEUE)  # type: ignore[attr-defined]
    expected = contents(load_state(queue.files))
    files = queue.files.copy()  # type: ignore[attr-defined]
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        files.put(QUEUE, bytes(damaged))
        for read in (load_state, load_ids):
            with pytest.raises((CorruptQueue, UnsupportedFormat)):
                read(files)
    files.put(QUEUE, whole)
    assert contents(load_state(files)) == expected


def test_no_prefix_is_taken_for_the_whole() -> None:
    """However it was cut off."""
    files = written(some_tasks())
    whole = files.get(QUEUE)
    for size in range(len(whole)):
        files.put(QUEUE, whole[:size])
        with pytest.raises(CorruptQueue):
            load_ids(files)


def test_a_first_line_with_a_flipped_bit_starts_no_writer() -> None:
    """A writer reads nothing but the first line, and would go on from a wrong number: the line has a checksum of its own."""
    files = written([])
    whole = files.get(QUEUE)
    for bit in range(8 * whole.index(b"\n")):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        files.put(QUEUE, bytes(damaged))
        with pytest.raises(StorageError):
            read_header(files)


EDITS = {
    "payload": lambda text: text.replace('"xxx"', '"yyy"', 1),
    "first line": lambda text: text.replace('"last_task":3', '"last_task":4'),
    "a task removed": lambda text: text.replace(text.split("\n")[1] + "\n", ""),
    "formatted anew": lambda text: json.dumps(json.loads(text), indent=2),
    "a space at the end": lambda text: text + " ",
    "a status nobody knows": lambda text: text.replace('"pending"', '"asleep"', 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_by_hand_is_told_from_damage(edit: str) -> None:
    """It is still JSON: the text says what happened, and names both ways out."""
    files = written(some_tasks())
    files.put(f"{PREVIOUS}/{QUEUE}", files.get(QUEUE))
    files.put(QUEUE, EDITS[edit](files.get(QUEUE).decode()).encode())
    with pytest.raises(EditedQueue, match="changed outside of jsonqueue") as caught:
        load_state(files)
    assert "repair --accept-edit" in caught.value.hint
    assert "previous/" in caught.value.hint
    assert caught.value.__notes__ == [f"Hint: {caught.value.hint}"]


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_version_is_named(version: int) -> None:
    """In a form of today or in one that nobody knows yet."""
    files = written(some_tasks())
    first, rest = files.get(QUEUE).split(b"\n", 1)
    members = first[: first.index(b',"head"')].replace(b'"version":1', b'"version":%d' % version)
    changed = members + b',"head":"%08x","tasks":[' % crc32(members)  # else it would be this version, damaged
    for text in (changed + b"\n" + rest, b'{"format":"jsonqueue","version":%d,"other":[]}' % version):
        files.put(QUEUE, text)
        with pytest.raises(UnsupportedFormat, match=f"version {version}") as caught:
            LogWriter.open(files, "published")  # type: ignore[arg-type]
        assert "upgrade" in caught.value.hint
        assert files.list() == [QUEUE]


def test_a_newer_version_with_a_sound_first_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum fits; that does not make it ours."""
    monkeypatch.setattr("jsonqueue.storage.queue_file.VERSION", 3)
    files = written([])
    monkeypatch.undo()
    with pytest.raises(UnsupportedFormat, match="version 3"):
        read_header(files)


def test_a_queue_json_that_is_gone_is_missed() -> None:
    """A queue that had one does not start empty."""
    files = written(some_tasks())
    files.put(f"{PREVIOUS}/{QUEUE}", files.get(QUEUE))
    files.unlink(QUEUE)
    with pytest.raises(CorruptQueue, match="missing"):
        load_state(files)
    assert read_header(MemoryFiles()) == QueueHeader()


def test_a_reader_keeps_its_generation() -> None:
    """A checkpoint that replaces the file does not disturb one who reads it."""
    files = written(some_tasks())
    reader = QueueReader.open(files)
    assert reader is not None
    files.put(QUEUE, b"")
    assert sum(len(decode_block(block)) for block in reader.blocks()) == 3


def test_a_file_that_shrinks_while_it_is_read_is_noticed() -> None:
    """Somebody truncates it in place."""
    files = written(some_tasks())
    reader = QueueReader.open(files)
    assert reader is not None
    handle = files.open(QUEUE)
    files.truncate(handle, files.get(QUEUE).index(b"\n") + 1)
    with pytest.raises(CorruptQueue, match="shorter"):
        list(reader.blocks())


def test_two_tasks_of_one_id_are_refused() -> None:
    """No checkpoint writes that, so something is wrong with whoever did."""
    one, two, _ = some_tasks()
    two.id = one.id
    with pytest.raises(CorruptQueue, match="same id"):
        load_state(written([one, two]))


def test_a_header_knows_both_logs() -> None:
    """Where it leaves off in each, and under which epoch."""
    files = MemoryFiles()
    the_history(Queue(files))
    header = read_header(files)
    assert header.published_through == Position(9, 2)
    assert header.epochs == (2, 2)
    assert header.closed
    assert msgspec.json.decode(files.get(QUEUE))["progress_through"] == [header.progress_through.number, 2]


def test_a_newer_version_may_have_another_first_line() -> None:
    """Whole by its own checksum, and with members that this version cannot read: newer, and no damage."""
    members = b'{"format":"jsonqueue","version":9,"published_through":{"batch":1,"epoch":1},"checkpoints":[1,2]'
    files = MemoryFiles()
    body = b'%b,"head":"%08x","tasks":[\n],"count":0' % (members, crc32(members))
    files.put(QUEUE, b'%b,"checksum":"%08x"}\n' % (body, crc32(body)))
    with pytest.raises(UnsupportedFormat, match="version 9"):
        read_header(files)
