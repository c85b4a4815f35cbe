"""``archive/2026-11.jsonl``: tasks past their retention, a line each, as they stood when they left the queue.

``queue.json`` says how much of which file is committed. What lies beyond was appended by a checkpoint that never ended; the next one
cuts it off before it appends, so that no task is in the archive twice, or in the archive and the queue at once.
"""

from __future__ import annotations

from datetime import UTC, datetime

from jsonqueue.errors import CorruptQueue
from jsonqueue.storage.files import Files, write_all
from jsonqueue.storage.queue_file import ArchiveMark, encode_task
from jsonqueue.storage.segments import CHUNK
from jsonqueue.task import StoredTask

__all__ = ["Archive", "committed_archive"]

FOLDER = "archive"


class Archive:
    """Takes the tasks that one checkpoint retires."""

    def __init__(self, files: Files, mark: ArchiveMark, *, at_ms: int) -> None:
        self.mark = mark
        """How much is committed by the queue.json to be written, once :meth:`finish` has returned."""
        self._files = files
        self._file = max(mark.file, _file_for(at_ms))  # Never back to an older file, whatever the clock says.
        self._handle = -1
        self._lines: list[bytes] = []
        self._bytes = self._length = self._committed = 0

    def add(self, task: StoredTask) -> None:
        """Append one task."""
        line = encode_task(task) + b"\n"
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= CHUNK:
            self._flush()

    def finish(self) -> ArchiveMark:
        """Make durable what was appended; the new mark."""
        self._flush()
        if self._handle >= 0:
            self._files.sync(self._handle)
            self._files.sync_folder(FOLDER)
            self.mark = ArchiveMark(self._file, self._length)
        return self.mark

    def withdraw(self) -> None:
        """Give back the room of what was appended: without a queue.json that says so it counts for nothing."""
        if self._handle >= 0:
            self._files.truncate(self._handle, self._committed)

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            self._files.close(self._handle)
            self._handle = -1

    def _flush(self) -> None:
        if not self._lines:
            return
        if self._handle < 0:
            self._handle, self._committed = self._open()
            self._length = self._committed
        self._length = write_all(self._files, self._handle, self._length, b"".join(self._lines))
        self._lines.clear()
        self._bytes = 0

    def _open(self) -> tuple[int, int]:
        """The file, cut to what is committed of it, and that length."""
        self._files.make_folder(FOLDER)
        committed = self.mark.length if self.mark.file == self._file else 0
        try:
            handle = self._files.open(self._file)
        except FileNotFoundError:
            handle = self._files.open(self._file, create=True)
            committed = 0  # Somebody took the old one away; that is theirs to do.
        if self._files.size(handle) < committed:
            self._files.close(handle)
            raise CorruptQueue(self._file, offset=committed, why="it is shorter than what was archived in it")
        self._files.truncate(handle, committed)
        return handle, committed


def committed_archive(files: Files) -> ArchiveMark:
    """The newest archive file, all of it: the mark to go on from when the one in queue.json is lost."""
    names = [name for name in files.list(FOLDER) if name.endswith(".jsonl")]
    if not names:
        return ArchiveMark()
    identity = files.identity(f"{FOLDER}/{names[-1]}")
    return ArchiveMark(f"{FOLDER}/{names[-1]}", identity[1] if identity else 0)


def _file_for(at_ms: int) -> str:
    return f"{FOLDER}/{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m}.jsonl"
