"""Lines from a stream as they come: in large groups while they flow, at once when they drip.

``tail -f events | jsonqueue publish`` must not wait for a thousand events, and a file of a million lines must neither be read whole nor
published line by line. So a group ends when nothing more is there for the moment, or when it is large.
"""

from __future__ import annotations

import codecs
import os
import select
import stat
from collections.abc import Iterator
from typing import NamedTuple

from jsonqueue.errors import InvalidTask

__all__ = ["Line", "LineGroups"]

_GROUP_LINES = 250_000
"""Their ids are kept until they may be printed, which bounds the memory."""

_LINE_BYTES_MAX = 64 * 1024 * 1024
_READ_BYTES = 1024 * 1024


class Line(NamedTuple):
    """One line, without its line feed, and its number from 1."""

    number: int
    text: bytes


class LineGroups:
    """Iterates over groups of lines of a file descriptor; each must be read to its end before the next one. Blank lines are left out."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begun: list[bytes] = []
        """The pieces of the line that has no end yet. They are put together once: of a long line each chunk would else copy all of it."""
        self._begun_bytes = 0
        self._number = 0
        self._ended = False
        self.bytes_read = 0
        status = os.fstat(fd)
        self.bytes_total = status.st_size if stat.S_ISREG(status.st_mode) else 0
        """Size of the input, if it is a file; 0: nobody knows."""

    def __iter__(self) -> Iterator[Iterator[Line]]:
        while not self._ended:
            lines = self._read()  # waits
            if lines:
                yield self._group(lines)

    def _group(self, lines: list[Line]) -> Iterator[Line]:
        room = _GROUP_LINES
        while True:
            yield from lines
            room -= len(lines)
            if self._ended or room <= 0 or not self._ready():
                return
            lines = self._read()

    def _ready(self) -> bool:
        """Whether reading would not wait. (A moment's patience: a writer at the other end of a pipe fills it anew.)"""
        return bool(select.select([self._fd], [], [], 0.02)[0])

    def _read(self) -> list[Line]:
        """The lines that the next chunk completes; the end of the input completes the last one."""
        chunk = self._chunk()
        self._ended = not chunk
        self.bytes_read += len(chunk)
        *whole, rest = chunk.split(b"\n") if chunk else (b"", b"")
        if whole:
            whole[0] = b"".join((*self._begun, whole[0]))
            self._begun.clear()
            self._begun_bytes = 0
            if not self._number:
                whole[0] = _without_mark(whole[0])
        self._begun.append(rest)
        self._begun_bytes += len(rest)
        if self._begun_bytes > _LINE_BYTES_MAX:
            number = self._number + len(whole) + 1
            raise InvalidTask(f"line {number} is longer than {_LINE_BYTES_MAX:,} bytes", hint="one JSON value a line")
        numbered = [Line(number, text) for number, text in enumerate(whole, self._number + 1) if text.strip()]
        self._number += len(whole)
        return numbered

    def _chunk(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, _READ_BYTES)
            except BlockingIOError:  # the writer, with whom the descriptor is shared, wants it so: that is no error, and no end
                select.select([self._fd], [], [])


def _without_mark(first: bytes) -> bytes:
    """The first line without the mark that editors, those of Windows above all, put before it."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidTask("the input is UTF-16, and JSON is UTF-8", hint="iconv -f UTF-16 -t UTF-8 makes it that")
    return first.removeprefix(codecs.BOM_UTF8)
