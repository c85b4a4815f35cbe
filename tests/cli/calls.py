"""A command line to call in this process, and queues made up for looking at."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import orjson
from msgspec import Raw

from jsonqueue.cli import app
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueWriter, encode_task
from jsonqueue.task import Attempt, Outcome, StoredTask, Task, TaskStatus

NOW_MS = 1_795_000_000_000
ESCAPES = "\x1b[31mred\x1b]0;title\x07\r\nError: forged\u202e\x9b2J\u2028"
"""What a hostile payload tries: colours, the window's title, a forged line, reversed reading direction, C1 controls."""


@dataclass
class Called:
    """What came of a call."""

    status: int
    out: str
    err: str


class _Terminal(io.TextIOWrapper):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def call(*arguments: str, terminal: bool = False, columns: int = 100, environment: dict[str, str] | None = None) -> Called:
    """Run one command line here; what it printed and how it ended."""
    out, err = _Terminal(terminal=terminal), _Terminal(terminal=terminal)
    settings = {"COLUMNS": str(columns), "TERM": "xterm-256color", **(environment or {})}
    with mock.patch.dict(os.environ, settings), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = app.run([*arguments])
    return Called(status, out.text(), err.text())


def task(task_id: str, status: TaskStatus = TaskStatus.PENDING, *, data: Any = None, result: Any = None, **fields: Any) -> StoredTask:
    """A task as it stands in a queue."""
    given: dict[str, Any] = {"number": 1, "published_ms": NOW_MS - 5_000, **fields}
    raw = Raw(b"null") if result is None else Raw(orjson.dumps(result))
    return Task(id=task_id, status=status, data=Raw(orjson.dumps(data)), result=raw if status is TaskStatus.COMPLETED else None, **given)


def ended(outcome: Outcome, *, attempt: int = 1, error: str = "", started_ms: int = NOW_MS - 4_000, took_ms: int = 35) -> Attempt:
    """An attempt that is over."""
    return Attempt(attempt, attempt, f"worker-{attempt}@81{attempt}", started_ms, started_ms + took_ms, outcome, error)


@contextlib.contextmanager
def a_queue_of(folder: Path, *tasks: StoredTask) -> Iterator[Path]:
    """A folder with a queue of these tasks."""
    folder.mkdir(exist_ok=True)
    files = RealFiles(folder)
    writer = QueueWriter(files, QUEUE, QueueHeader(last_task=len(tasks)))
    for one in tasks:
        writer.add(encode_task(one), 1)
    writer.finish()
    writer.close()
    files.shut()
    yield folder
