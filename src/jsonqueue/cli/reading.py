"""Reading a queue from its files alone, whether or not brokers are running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jsonqueue.errors import JsonQueueError, StorageError, TaskNotFound, UnreadableFile, command_for
from jsonqueue.task import StoredTask

if TYPE_CHECKING:
    from jsonqueue.storage.looking import View
    from jsonqueue.storage.recovery import Loaded

__all__ = ["Found", "NoQueue", "find", "load", "looking", "require_queue"]

ARCHIVE = "archive"

_decode_task = msgspec.json.Decoder(StoredTask).decode


class NoQueue(JsonQueueError):
    """There is no queue in this folder."""

    exit_status = 66

    def __init__(self, queue_dir: Path, *, option: str = "--queue") -> None:
        there = "does not exist" if not queue_dir.is_dir() else "holds no queue"
        super().__init__(
            f"{queue_dir} {there}", hint=f"{option} DIR names another folder; `jsonqueue serve` and `jsonqueue publish` make one"
        )
        self.queue_dir = queue_dir


def require_queue(queue_dir: Path, *, option: str = "--queue") -> None:
    """Raise :class:`NoQueue` unless the folder, which ``option`` names, holds a queue, or what is left of one: asking must not make one."""
    for folder in (queue_dir, queue_dir / "previous"):
        if folder.is_dir() and any(_belongs(name) for name in os.listdir(folder)):
            return
    raise NoQueue(queue_dir, option=option)


def _belongs(name: str) -> bool:
    return name == "queue.json" or (name.startswith(("published-", "progress-")) and name.endswith(".jsonl"))


@contextmanager
def looking(queue_dir: Path) -> Iterator[View]:
    """The queue as it is now, of any size: it is read as a stream."""
    from jsonqueue.storage.looking import looking_at

    require_queue(queue_dir)
    with looking_at(queue_dir) as view:
        yield view


def load(queue_dir: Path) -> Loaded:
    """The whole queue, folded from its files into memory: for the demo, which made it and knows its size."""
    from jsonqueue.storage.recovery import inspect

    require_queue(queue_dir)
    return inspect(queue_dir)


@dataclass(frozen=True)
class Found:
    """A task, and the archive file it lies in (empty: it is in the queue, or was until a moment ago)."""

    task: StoredTask
    archive: str = ""
    left: bool = False
    """It is past its retention, and in no archive file yet."""


def find(queue_dir: Path, task_id: str) -> Found:
    """The task of this id, from the queue or else from its archive; of several in there, the last. Raises :class:`TaskNotFound`."""
    with looking(queue_dir) as view:
        task, left = view.task(task_id), view.left(task_id)
    if task is not None:
        return Found(task)
    if left is not None:
        return Found(left, left=True)
    unread: StorageError | None = None
    for file in sorted((queue_dir / ARCHIVE).glob("*.jsonl"), reverse=True):
        try:
            last = _last_line(file, task_id)
        except StorageError as error:
            unread = unread or error
            continue
        if last is not None:
            archive = f"{ARCHIVE}/{file.name}"
            return Found(_archived(archive, *last), archive)
    raise unread or TaskNotFound(
        task_id,
        where=f"{queue_dir} or its archive",
        hint=f"what is there is listed by: {command_for(str(queue_dir), 'list')}",
    )


def _last_line(file: Path, task_id: str) -> tuple[bytes, int] | None:
    """The last line of this id in one archive file, and where it begins: the id was free again when one had left.

    A last line without its end is one that a checkpoint was writing when it was cut off; the task is in the queue still. Raises
    :class:`UnreadableFile`.
    """
    begins = b'{"id":"' + task_id.encode(errors="surrogateescape") + b'"'
    at, last = 0, None
    try:
        with file.open("rb") as lines:
            for line in lines:
                if line.startswith(begins) and line.endswith(b"\n"):
                    last = line, at
                at += len(line)
        return last
    except FileNotFoundError:
        return None  # The archive is the user's, who may have taken it away just now.
    except OSError as error:
        raise UnreadableFile(f"{ARCHIVE}/{file.name}", offset=at, why=f"{error.strerror}") from error


def _archived(archive: str, line: bytes, at: int) -> StoredTask:
    """The task of that line. Where that cannot be read, an earlier one of its id is not the last."""
    try:
        return _decode_task(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableFile(archive, offset=at, why=f"the line there is no task ({error})") from None
