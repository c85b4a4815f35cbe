"""One line on standard error that changes in place while a command runs; nothing at all when nobody watches.

Plain escape sequences instead of rich: ``publish`` and ``work`` would spend more time on importing it than on their first task.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO, cast

import click

from jsonqueue.cli.text import clip, printable
from jsonqueue.errors import JsonQueueError

__all__ = ["LiveLine", "bar"]


class LiveLine:
    """Shows ``text()`` a few times a second until the ``with`` block ends, then clears the line. Warnings go above it; ``shared``: so does
    what else this process prints on a terminal."""

    def __init__(self, text: Callable[[], str], *, watched: bool, every_s: float = 0.2, shared: bool = False) -> None:
        self._text = text
        self._every_s = every_s
        self._shared = shared
        self._over = threading.Event()
        self._above = _Above(logging.WARNING)
        self._thread = threading.Thread(target=self._run, name="live-line", daemon=True) if watched else None

    def __enter__(self) -> Self:
        self._terminal = sys.stderr
        self._streams = sys.stdout, sys.stderr
        if self._thread:
            _logger.addHandler(self._above)
            if self._shared:
                sys.stdout, sys.stderr = (_Beside.of(stream, self._terminal) for stream in self._streams)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
            sys.stdout, sys.stderr = self._streams
            _logger.removeHandler(self._above)

    def _run(self) -> None:
        # The first look comes after a moment: what is over at once needs no progress.
        while not self._over.wait(self._every_s):
            with suppress(JsonQueueError):  # nothing to be told at this moment: the next look may tell something
                text = clip(printable(self._text()), _columns(self._terminal) - 1)
                with _turns.taken:
                    if not _turns.begun:
                        _put(text, self._terminal)
        with _turns.taken:
            if not _turns.begun:
                _put("", self._terminal)


class _Turns:
    """Who may write to the terminal: the line, or what others print."""

    def __init__(self) -> None:
        self.taken = threading.RLock()
        self.begun = False
        """What others print has not ended its line yet: until then ours stays away."""


class _Beside:
    """A stream to the terminal on which the line stands: what is written to it begins where that was, which then comes back below it."""

    def __init__(self, stream: TextIO, terminal: TextIO) -> None:
        self._stream, self._terminal = stream, terminal

    @classmethod
    def of(cls, stream: TextIO, terminal: TextIO) -> TextIO:
        """The same stream, if it leads elsewhere."""
        return cast("TextIO", cls(stream, terminal)) if stream.isatty() else stream

    def write(self, text: str) -> int:
        with _turns.taken:
            if not _turns.begun:
                _put("", self._terminal)
            written = self._stream.write(text)
            self._stream.flush()
            _turns.begun = not text.endswith("\n") if text else _turns.begun
            return written

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_turns = _Turns()


def _after_fork() -> None:
    global _turns  # noqa: PLW0603 - whoever held the old one stayed behind in the parent
    _turns = _Turns()


os.register_at_fork(after_in_child=_after_fork)


class _Above(logging.Handler):
    """Puts a record where the line is, which then comes back below it."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{printable(record.getMessage())}\n"
        with _turns.taken, suppress(OSError):  # a terminal that is gone: whoever has something to say goes on
            if not isinstance(sys.stderr, _Beside):
                _put("", sys.stderr)
            sys.stderr.write(text)
            sys.stderr.flush()


_logger = logging.getLogger("jsonqueue")


def _columns(terminal: TextIO) -> int:
    """How wide the terminal is on which the line stands. (Python asks standard output, which may well be a file.)"""
    with suppress(OSError):
        if columns := os.get_terminal_size(terminal.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


def _put(text: str, terminal: TextIO) -> None:
    dim = not os.environ.get("NO_COLOR")
    with suppress(OSError):  # a terminal that is gone
        # One write for the whole line, so that it cannot be torn apart by what another thread prints.
        terminal.write(f"\r\x1b[K{click.style(text, dim=True) if dim and text else text}")
        terminal.flush()


def bar(share: float, width: int) -> str:
    """A bar of ``width`` characters, filled to ``share`` (0 to 1)."""
    filled = round(min(1.0, max(0.0, share)) * width)
    return "━" * filled + "╌" * (width - filled)
