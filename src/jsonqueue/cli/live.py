"""One line on standard error that changes in place while a command runs; nothing at all when nobody watches.

Plain escape sequences instead of rich: ``publish`` and ``work`` would spend more time on importing it than on their first task.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import click

from jsonqueue.cli.text import clip, printable
from jsonqueue.errors import JsonQueueError

__all__ = ["LiveLine", "bar"]


class LiveLine:
    """Shows ``text()`` a few times a second until the ``with`` block ends, then clears the line. Warnings go above it."""

    def __init__(self, text: Callable[[], str], *, watched: bool, every_s: float = 0.2) -> None:
        self._text = text
        self._every_s = every_s
        self._over = threading.Event()
        self._above = _Above(logging.WARNING)
        self._thread = threading.Thread(target=self._run, name="live-line", daemon=True) if watched else None

    def __enter__(self) -> Self:
        if self._thread:
            _logger.addHandler(self._above)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
            _logger.removeHandler(self._above)

    def _run(self) -> None:
        # The first look comes after a moment: what is over at once needs no progress.
        while not self._over.wait(self._every_s):
            with suppress(JsonQueueError):  # nothing to be told at this moment: the next look may tell something
                _put(clip(printable(self._text()), _columns() - 1))
        _put("")


class _Above(logging.Handler):
    """Puts a record where the line is, which then comes back below it."""

    def emit(self, record: logging.LogRecord) -> None:
        _put("")
        sys.stderr.write(f"{printable(record.getMessage())}\n")
        sys.stderr.flush()


_logger = logging.getLogger("jsonqueue")


def _columns() -> int:
    """How wide the terminal is on which the line stands. (Python asks standard output, which may well be a file.)"""
    with suppress(OSError):
        if columns := os.get_terminal_size(sys.stderr.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


def _put(text: str) -> None:
    dim = not os.environ.get("NO_COLOR")
    # One write for the whole line, so that it cannot be torn apart by what another thread prints.
    sys.stderr.write(f"\r\x1b[K{click.style(text, dim=True) if dim and text else text}")
    sys.stderr.flush()


def bar(share: float, width: int) -> str:
    """A bar of ``width`` characters, filled to ``share`` (0 to 1)."""
    filled = round(min(1.0, max(0.0, share)) * width)
    return "━" * filled + "╌" * (width - filled)
