"""``jsonqueue list``."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Raw

from jsonqueue.cli.app import command
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.text import clip, duration, json_text, plural
from jsonqueue.task import StoredTask, TaskStatus

if TYPE_CHECKING:
    from jsonqueue.storage.looking import Glance

__all__ = ["Filter", "attempts", "detail", "list_tasks", "print_tasks"]

_DETAIL_WIDTH = 120
"""On a terminal; a pipe gets all of it."""
_SPARE = (4, 2, 3, 5)
"""Columns that a narrow terminal goes without: age, prio, tries, detail. An id that is cut could not be typed again."""
_decode_task = msgspec.json.Decoder(StoredTask).decode


@dataclass(frozen=True)
class Filter:
    """Which tasks are listed."""

    statuses: frozenset[str] = frozenset()
    id_prefix: str = ""
    priority: int | None = None
    newest: bool = False

    def matches(self, task: Glance) -> bool:
        """Whether a task is listed."""
        return (
            (not self.statuses or task.status in self.statuses)
            and task.id.startswith(self.id_prefix)
            and (self.priority is None or task.priority == self.priority)
        )


@command("list", short_help="List tasks.")
@click.option("--status", "statuses", multiple=True, type=click.Choice([*map(str, TaskStatus)]), help="Only this status (repeatable).")
@click.option("--id-prefix", default="", help="Only ids that begin like this.")
@click.option("--priority", type=int, help="Only this priority.")
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="At most so many; 0: all.")
def list_tasks(settings: Settings, statuses: tuple[str, ...], id_prefix: str, priority: int | None, newest: bool, limit: int) -> None:
    """List tasks, in the order they were published.

    Reads the queue's files; no broker needs to run. With --json each task is a line, as it stands in queue.json (but for
    redact_keys).
    """
    wanted = Filter(frozenset(statuses), id_prefix, priority, newest)
    print_tasks(settings, wanted, limit=limit, now_ms=time.time_ns() // 1_000_000)


def print_tasks(settings: Settings, wanted: Filter, *, limit: int, now_ms: int) -> None:
    """The first ``limit`` of the tasks that are ``wanted`` (0: all), and how many more there are."""
    from jsonqueue.cli.reading import looking
    from jsonqueue.cli.redaction import redaction_of

    limit = min(limit, sys.maxsize)  # beyond it neither islice() nor a deque takes one

    with looking(settings.queue_dir) as view:
        redaction = redaction_of(settings.queue_dir)
        lines = view.lines(wanted.matches)
        shown, more = _newest(lines, limit) if wanted.newest else (islice(lines, limit or None), lines)
        if settings.console.as_json:
            for line in shown:
                settings.console.line(json_text(Raw(redaction.line(line))))
        else:
            most = _DETAIL_WIDTH if settings.console.person else None
            _print_table(settings.console, [_row(redaction.task(_decode_task(line)), now_ms, most) for line in shown], more, limit)


def _newest(lines: Iterator[bytes], limit: int) -> tuple[Iterable[bytes], Iterable[object]]:
    """The last ``limit`` lines, the newest first, and as many others as were before them."""
    kept: deque[bytes] = deque(maxlen=limit or None)
    total = 0
    for line in lines:
        kept.append(line)
        total += 1
    return reversed(kept), range(total - len(kept))


def _print_table(console: Console, rows: list[tuple[str, ...]], left_out: Iterable[object], limit: int) -> None:
    if not rows:
        console.note("No tasks.")
        return
    console.table(("id", "status", "prio", "tries", "age", "detail"), rows, right=(2, 3, 4), style=1, spare=_SPARE)
    more = sum(1 for _ in left_out)
    if more:
        console.note(f"… and {plural(more, 'more task')}: --limit {limit + more}, or --limit 0 for all.")


def _row(task: StoredTask, now_ms: int, most: int | None) -> tuple[str, ...]:
    age = duration(max(0, now_ms - task.published_ms))
    told = detail(task, now_ms)
    return (task.id, str(task.status), str(task.priority), attempts(task), age, told if most is None else clip(told, most))


def attempts(task: StoredTask) -> str:
    """``1/3``: attempts counted so far, of how many."""
    return f"{task.attempt}/{task.attempts_max}" if task.attempts_max else str(task.attempt)


def detail(task: StoredTask, now_ms: int) -> str:
    """The one thing worth knowing about the task: why it ended, what it waits for, who holds it; else its payload."""
    if task.status in {TaskStatus.DEAD, TaskStatus.CANCELLED}:
        return task.reason
    if task.status is TaskStatus.SCHEDULED:
        wait = f"in {duration(max(0, task.run_at_ms - now_ms))}"
        return f"{wait}, after {task.reason}" if task.reason else wait
    if task.status is TaskStatus.BLOCKED:
        return "waits for " + ", ".join(task.after)
    if task.status is TaskStatus.IN_PROGRESS:
        return f"{task.consumer}, for {duration(max(0, now_ms - task.started_ms))}"
    return bytes(task.data).decode("utf-8", "replace")
