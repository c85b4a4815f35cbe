"""A queue.json that a person edited: taken in any layout, and as a whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Raw, Struct, json

from jsonqueue.errors import CorruptQueue
from jsonqueue.storage.codec import UNREADABLE
from jsonqueue.storage.queue_file import QUEUE, UTF8_MARK, QueueHeader
from jsonqueue.task import ID_PATTERN, Attempt, StoredTask, Task

__all__ = ["read_edit"]

_is_id = re.compile(ID_PATTERN).fullmatch

_Number = Annotated[int, Meta(ge=0, lt=1 << 48)]
_Epoch = Annotated[int, Meta(ge=0, lt=1 << 31)]
"""As large as a line of a log, or a token, has room for."""
_Chain = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]


class _Position(NamedTuple):
    number: _Number
    epoch: _Epoch


class _ArchiveMark(Struct, frozen=True, forbid_unknown_fields=True):
    file: Annotated[str, Meta(pattern=r"^(archive/\d{4,}-\d{2}\.jsonl)?\Z")] = ""
    length: Annotated[int, Meta(ge=0)] = 0


class _Attempt(Attempt, gc=False, forbid_unknown_fields=True):
    pass


class _Task(Task[Raw], gc=False, forbid_unknown_fields=True):
    history: tuple[_Attempt, ...] = ()


class _Document(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file. No member is missing that others rest on, and none is there that nobody would read: it was meant for something."""

    format: Literal["jsonqueue"]
    version: Literal[1]
    saved_ms: int = 0
    published_through: _Position
    progress_through: _Position
    chains: tuple[_Chain, _Chain]
    last_task: _Number
    epochs: tuple[_Epoch, _Epoch]
    closed: bool = False
    archive: _ArchiveMark = _ArchiveMark()
    head: str = ""
    tasks: list[_Task]
    count: int = 0
    checksum: str = ""


def read_edit(data: bytes) -> tuple[QueueHeader, list[StoredTask]]:
    """The header and the tasks of an edited queue.json, in the order of their numbers. Raises :class:`CorruptQueue`, which says why it
    cannot be taken."""
    data = data.removeprefix(UTF8_MARK)
    try:
        header, edited = json.decode(data, type=QueueHeader), json.decode(data, type=_Document).tasks
    except UNREADABLE as error:
        raise CorruptQueue(QUEUE, offset=0, why=f"the edit cannot be taken: {error}") from None
    tasks: list[StoredTask] = [*edited]
    _check(tasks, header)
    for task in tasks:  # One task, one line, however the editor laid it out.
        task.data = Raw(json.format(bytes(task.data), indent=-1))
        task.result = task.result and Raw(json.format(bytes(task.result), indent=-1))
    return header, sorted(tasks, key=lambda task: task.number)


def _check(tasks: list[StoredTask], header: QueueHeader) -> None:
    ids: set[str] = set()
    numbers: set[int] = set()
    for task in tasks:
        wrong = (
            "that is no id: 1 to 128 letters, digits and . _ : @ -, beginning with a letter or a digit" if not _is_id(task.id)
            else "there are two tasks of this id" if task.id in ids
            else f"there are two tasks of number {task.number}" if task.number in numbers
            else f"its number {task.number} is not between 1 and last_task, {header.last_task}" if not 0 < task.number <= header.last_task
            else "a time of it is none: milliseconds since 1970, 13 digits at most" if not all(0 <= ms < 10**13 for ms in _times_of(task))
            else ""
        )  # fmt: skip
        if wrong:
            raise CorruptQueue(QUEUE, offset=0, why=f"the edit cannot be taken: task {task.id}: {wrong}; new tasks are to be published")
        ids.add(task.id)
        numbers.add(task.number)


def _times_of(task: StoredTask) -> Iterator[int]:
    yield from (task.published_ms, task.run_at_ms, task.deadline_ms, task.started_ms, task.finished_ms)
    for attempt in task.history:
        yield from (attempt.started_ms, attempt.ended_ms)
