"""``archive/2026-11.jsonl``: tasks past their retention, a line each, as they stood when they left the queue.

``queue.json`` says how much of which file is committed. What lies beyond, in that file or a newer one, was appended by a checkpoint that
never ended; the next one cuts it off before it appends, so that no task is in the archive twice, or in the archive and the queue at once.
Where queue.json cannot say how much that is (nothing was archived yet, but there are files: by such a checkpoint, or an earlier queue in
this folder; or somebody changed the file), the lines themselves tell: those of the tasks that leave now are cut off.

The files are the user's to read, move, shorten and delete: nothing of the queue rests on them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime

from msgspec import Struct, json

from jsonqueue.errors import FolderRefused, StorageError
from jsonqueue.storage.codec import UNREADABLE
from jsonqueue.storage.files import Files, write_all
from jsonqueue.storage.queue_file import ArchiveMark, encode_task
from jsonqueue.storage.segments import CHUNK
from jsonqueue.task import StoredTask

__all__ = ["Archive", "Archived", "archive_files", "archived_since", "committed_archive"]

FOLDER = "archive"
_NAME = re.compile(r"\d{4,}-\d{2}\.jsonl")


class Archived(Struct, frozen=True):
    """Which task a line is of: also where another queue in this folder had given its id, or its number."""

    id: str = ""
    number: int = 0
    published_ms: int = 0

    @classmethod
    def of(cls, task: StoredTask) -> Archived:
        """What the line of this one is found by."""
        return cls(task.id, task.number, task.published_ms)


_archived_in = json.Decoder(Archived).decode


class Archive:
    """Takes the tasks that one checkpoint retires."""

    def __init__(self, files: Files, mark: ArchiveMark, *, at_ms: int) -> None:
        self.mark = mark
        """How much is committed by the queue.json to be written, once :meth:`finish` has returned."""
        self._files, self._at_ms = files, at_ms
        self._file = ""
        self._unsure: list[str] = []
        """The files of which nobody says how much is committed."""
        self._handle = -1
        self._lines: list[bytes] = []
        self._leaving: set[Archived] = set()
        self._bytes = self._length = self._committed = 0

    def add(self, task: StoredTask) -> None:
        """Append one task."""
        if not self._file:
            self._look()
        line = encode_task(task) + b"\n"
        self._lines.append(line)
        self._bytes += len(line)
        if self._unsure:
            self._leaving.add(Archived.of(task))  # What is in the files already is told once all are here.
        elif self._bytes >= CHUNK:
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

    def _look(self) -> None:
        """Which file it goes on in: never in an older one, whatever the clock says."""
        self._files.make_folder(FOLDER)
        self._unsure = [name for name in archive_files(self._files) if _is_unsure(self._files, self.mark, name)]
        self._file = max([self.mark.file, *self._unsure, _file_for(self._at_ms)])

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
        for name in archive_files(self._files):
            if self.mark.file <= name != self._file:
                self._cut(name)
        committed = self._committed_of(self._file)
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

    def _committed_of(self, name: str) -> int:
        if name in self._unsure:
            return _length_without(self._files, name, self._leaving)
        return self.mark.length if name == self.mark.file else 0

    def _cut(self, name: str) -> None:
        """Another month's file, which is never appended to again, cut to what is committed of it; durably, whoever cut it."""
        identity, committed = self._files.identity(name), self._committed_of(name)
        try:
            handle = self._files.open(name)
        except (StorageError, FileNotFoundError):
            if identity is None or identity[1] <= committed:
                return  # It may be elsewhere by now, with a link in its place, or not to be written to any more.
            raise
        try:
            if self._files.size(handle) > committed:
                self._files.truncate(handle, committed)
            self._files.sync(handle)
        finally:
            self._files.close(handle)


def archive_files(files: Files) -> list[str]:
    """The names of the archive's files, oldest first."""
    return [f"{FOLDER}/{name}" for name in files.list(FOLDER) if _NAME.fullmatch(name)]


def _is_unsure(files: Files, mark: ArchiveMark, name: str) -> bool:
    """Whether ``mark`` does not tell how much of a file counts: it names none, or this one is no more what it was."""
    if name != mark.file or not mark.length:
        return not mark.file
    try:
        handle = files.open(name)
    except (StorageError, FileNotFoundError):
        return False  # It is elsewhere by now, with a link in its place, say.
    try:
        with suppress(StorageError):
            return files.read(handle, mark.length - 1, 1) != b"\n"
        return False
    finally:
        files.close(handle)


def committed_archive(files: Files) -> ArchiveMark:
    """The newest archive file up to its last line that can be read: the mark to go on from when the one in queue.json is lost."""
    names = archive_files(files)
    return ArchiveMark(names[-1], _length_without(files, names[-1], ())) if names else ArchiveMark()


def _length_without(files: Files, name: str, leaving: Collection[Archived]) -> int:
    """The length of a file up to its last line that can be read, and is of none of these tasks."""
    at = length = 0
    try:
        for line in _lines_behind(files, name, 0):
            at += len(line) + 1
            with suppress(*UNREADABLE):
                if _archived_in(line) not in leaving:
                    length = at
    except StorageError:  # It is elsewhere, with a link in its place: nothing of that is to be cut off.
        identity = files.identity(name)
        length = identity[1] if identity else 0
    return length


def archived_since(files: Files, mark: ArchiveMark) -> set[Archived]:
    """The tasks that stand in the archive behind ``mark``: durably, as nobody archives them again."""
    found: set[Archived] = set()
    for name in archive_files(files):
        if name >= mark.file:
            with suppress(FolderRefused, FileNotFoundError):  # It is the user's, who may have put a link in its place.
                _make_durable(files, name)
                for line in _lines_behind(files, name, mark.length if name == mark.file else 0):
                    with suppress(*UNREADABLE):
                        found.add(_archived_in(line))
    return found


def _make_durable(files: Files, name: str) -> None:
    """What a checkpoint wrote that was killed before it had done so."""
    handle = files.open(name)
    try:
        files.sync(handle)
    finally:
        files.close(handle)
    files.sync_folder(FOLDER)


def _lines_behind(files: Files, name: str, offset: int) -> Iterator[bytes]:
    handle, rest = files.open(name), b""
    if files.size(handle) < offset:
        offset = 0  # It was shortened, or begun anew: what it held there is somewhere else.
    try:
        while data := files.read(handle, offset, CHUNK):
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
    finally:
        files.close(handle)


def _file_for(at_ms: int) -> str:
    return f"{FOLDER}/{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m}.jsonl"
