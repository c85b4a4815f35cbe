"""``archive/2026-11.jsonl``: tasks past their retention, a line each, as they stood when they left the queue.

``queue.json`` says how much of which file is committed. What lies beyond, in that file or a newer one, was appended by a checkpoint that
never ended; the next one cuts it off before it appends, so that no task is in the archive twice, or in the archive and the queue at once.

The files are the user's to read, move, shorten and delete: nothing of the queue rests on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from msgspec import Struct, json

from jsonqueue.errors import FolderRefused, StorageError
from jsonqueue.storage.codec import UNREADABLE
from jsonqueue.storage.files import Files, write_all
from jsonqueue.storage.queue_file import ArchiveMark, encode_task
from jsonqueue.storage.segments import CHUNK
from jsonqueue.task import StoredTask

__all__ = ["Archive", "archive_files", "archived_since", "committed_archive"]

FOLDER = "archive"
_NAME = re.compile(r"\d{4,}-\d{2}\.jsonl")


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
            self._open()
            self._length = self._committed
        self._length = write_all(self._files, self._handle, self._length, b"".join(self._lines))
        self._lines.clear()
        self._bytes = 0

    def _open(self) -> None:
        """Open the file, cut to what is committed of it."""
        self._files.make_folder(FOLDER)
        if self.mark.file:
            for name in archive_files(self._files):
                if self.mark.file <= name != self._file:
                    self._cut(name)
        committed = self.mark.length if self.mark.file == self._file else 0
        try:
            handle = self._files.open(self._file)
        except FileNotFoundError:
            handle = self._files.open(self._file, create=True)
        # Somebody may have taken it away, or a part of it.
        committed = min(committed, self._files.size(handle))
        self._handle, self._committed = handle, committed  # Now, to be closed also where it cannot be cut.
        self._files.truncate(handle, committed)
        if committed and self._files.read(handle, committed - 1, 1) != b"\n":
            self._lines.insert(0, b"\n")

    def _cut(self, name: str) -> None:
        """Another month's file, which is never appended to again, cut to what is committed of it."""
        identity, committed = self._files.identity(name), self.mark.length if name == self.mark.file else 0
        if identity is None or identity[1] <= committed:
            return  # It is not opened: it may be elsewhere by now, with a link in its place.
        handle = self._files.open(name)
        try:
            self._files.truncate(handle, committed)
            self._files.sync(handle)
        finally:
            self._files.close(handle)


def archive_files(files: Files) -> list[str]:
    """The names of the archive's files, oldest first."""
    return [f"{FOLDER}/{name}" for name in files.list(FOLDER) if _NAME.fullmatch(name)]


def committed_archive(files: Files) -> ArchiveMark:
    """The newest archive file up to its last line that can be read: the mark to go on from when the one in queue.json is lost."""
    names = archive_files(files)
    if not names:
        return ArchiveMark()
    at = length = 0
    try:
        for line in _lines_behind(files, names[-1], 0):
            at += len(line) + 1
            with suppress(*UNREADABLE):
                json.decode(line)
                length = at
    except StorageError:  # It is elsewhere, with a link in its place: nothing of that is to be cut off.
        identity = files.identity(names[-1])
        length = identity[1] if identity else 0
    return ArchiveMark(names[-1], length)


class _Archived(Struct):
    number: int


def archived_since(files: Files, mark: ArchiveMark) -> set[int]:
    """The numbers of the tasks that stand in the archive behind ``mark``."""
    found: set[int] = set()
    for name in archive_files(files):
        if name >= mark.file:
            with suppress(FolderRefused, FileNotFoundError):  # It is the user's, who may have put a link in its place.
                for line in _lines_behind(files, name, mark.length if name == mark.file else 0):
                    with suppress(*UNREADABLE):
                        found.add(json.decode(line, type=_Archived).number)
    return found


def _lines_behind(files: Files, name: str, offset: int) -> Iterator[bytes]:
    handle, rest = files.open(name), b""
    try:
        while data := files.read(handle, offset, CHUNK):
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
    finally:
        files.close(handle)


def _file_for(at_ms: int) -> str:
    return f"{FOLDER}/{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m}.jsonl"
