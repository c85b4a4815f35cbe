"""``jsonqueue show`` and ``jsonqueue result``: one task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from msgspec import Raw

from jsonqueue.cli.app import command
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.options import Seconds
from jsonqueue.cli.reading import Found, find
from jsonqueue.cli.redaction import redaction_of
from jsonqueue.cli.text import clip, duration, json_text, moment, printable, printable_lines
from jsonqueue.errors import JsonQueueError, ResultTimeout, TaskFailed
from jsonqueue.task import Attempt, Outcome, StoredTask, TaskStatus

__all__ = ["Moment", "print_task", "result", "show", "timeline"]

_JSON_LINES = 40
"""Lines of a payload or a result that `show` prints; `result` and `--json` print all."""


@command("show", short_help="Everything about one task, with the history of its attempts.")
@click.argument("task_id", metavar="ID")
def show(settings: Settings, task_id: str) -> None:
    """Everything about one task: its payload, its result, and what happened to it, step by step.

    Reads the queue's files and, for a task that is past its retention, its archive; no broker needs to run. Of several tasks that had this
    id, one after the other, it is the last.
    """
    print_task(settings, find(settings.queue_dir, task_id), now_ms=time.time_ns() // 1_000_000)


def print_task(settings: Settings, found: Found, *, now_ms: int) -> None:
    """The task, for a person or as its line of queue.json; without what the settings want redacted."""
    console, task = settings.console, redaction_of(settings.queue_dir).task(found.task)
    if console.as_json:
        console.line(json_text(Raw(msgspec.json.encode(task))))
        return
    console.facts(_facts(found, now_ms))
    _block(console, "payload", task.data)
    if task.result is not None:
        _block(console, "result", task.result)
    elif task.status is TaskStatus.COMPLETED:
        _block(console, "result", Raw(b"null"))
    console.line()
    console.line(_heading(console, "history"))
    for step in timeline(task, now_ms):
        console.line(f"  {moment(step.at_ms, now_ms=now_ms)}  {_coloured(console, step.what, step.tone)}{step.rest}")
        for line in step.error:
            console.line(click.style(f"      {line}", dim=True) if console.coloured else f"      {line}")


def _facts(found: Found, now_ms: int) -> Iterator[tuple[str, str]]:
    task = found.task
    yield "id", printable(task.id)
    where = f", in {found.archive}" if found.archive else ", past its retention" if found.left else ""
    yield "status", str(task.status) + where
    if task.reason:
        yield "reason", printable(task.reason)
    yield "published", f"{moment(task.published_ms, now_ms=now_ms)}, as number {task.number:,} of this queue"
    yield "attempts", f"{task.attempt}" + (f" of {task.attempts_max}" if task.attempts_max else "")
    if task.priority:
        yield "priority", str(task.priority)
    if task.status is TaskStatus.SCHEDULED:
        yield "due", f"{moment(task.run_at_ms, now_ms=now_ms)}, in {duration(max(0, task.run_at_ms - now_ms))}"
    if task.deadline_ms:
        yield "deadline", moment(task.deadline_ms, now_ms=now_ms)
    if task.retry is not None:
        yield "retry", json_text(task.retry)
    if task.after:
        yield "after", printable(", ".join(task.after))
    if task.consumer:
        yield "consumer", f"{printable(task.consumer)}, for {duration(max(0, now_ms - task.started_ms))}"


def _block(console: Console, name: str, value: Raw) -> None:
    console.line()
    console.line(_heading(console, name))
    lines = json_text(value, indent=True).split("\n")
    for line in lines[:_JSON_LINES]:
        console.line(f"  {clip(line, 2000)}")
    if len(lines) > _JSON_LINES:
        console.line(f"  … {len(lines) - _JSON_LINES} more lines (--json prints all)")


@dataclass(frozen=True)
class Moment:
    """One step of a task's life."""

    at_ms: int
    what: str
    tone: str = ""
    rest: str = ""
    error: tuple[str, ...] = ()


_TONE = {Outcome.COMPLETED: "green", Outcome.CANCELLED: "bright_black", Outcome.RETURNED: "bright_black"}
_ENDING = {
    Outcome.COMPLETED: "completed after", Outcome.FAILED: "failed after", Outcome.LOST: "lost its consumer after",
    Outcome.EXPIRED: "lease expired after", Outcome.RETURNED: "handed back after", Outcome.CANCELLED: "cancelled after",
}  # fmt: skip


def timeline(task: StoredTask, now_ms: int) -> Iterator[Moment]:
    """What happened to the task, oldest first."""
    yield Moment(task.published_ms, "published")
    for ended in task.history:
        yield _attempt(ended)
    if task.status is TaskStatus.IN_PROGRESS:
        running = duration(max(0, now_ms - task.started_ms))
        yield Moment(task.started_ms, "in progress", "yellow", f"  attempt {task.attempt}, {printable(task.consumer)}, for {running}")
    elif task.status is TaskStatus.SCHEDULED:
        yield Moment(task.run_at_ms, "due", "blue", f"  in {duration(max(0, task.run_at_ms - now_ms))}")
    elif task.status in {TaskStatus.DEAD, TaskStatus.CANCELLED}:
        tone = "red" if task.status is TaskStatus.DEAD else "bright_black"
        yield Moment(task.finished_ms, str(task.status), tone, f"  {printable(task.reason)}")


def _attempt(ended: Attempt) -> Moment:
    took = duration(max(0, ended.ended_ms - ended.started_ms))
    return Moment(
        ended.started_ms,
        f"attempt {ended.attempt}",
        _TONE.get(ended.outcome, "red"),
        f"  {_ENDING[ended.outcome]} {took}, by {printable(ended.consumer)}",
        tuple(printable_lines(ended.error)) if ended.error else (),
    )


def _heading(console: Console, text: str) -> str:
    return click.style(text, bold=True) if console.coloured else text


def _coloured(console: Console, text: str, tone: str) -> str:
    return click.style(text, fg=tone) if tone and console.coloured else text


@command("result", short_help="Print the result of a task, or wait for it.")
@click.argument("task_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until the task has ended (a broker must be running).")
@click.option("--timeout", type=Seconds(), help="Wait at most so many seconds (implies --wait).")
def result(settings: Settings, task_id: str, wait: bool, timeout: float | None) -> None:
    """Print the result of a task as JSON, whole: this is for who needs it (redact_keys is for what list and show print).

    Exit status 1 if the task is dead or cancelled, 66 if there is no such task, 75 if it has not ended (in time).
    """
    task = find(settings.queue_dir, task_id).task  # an id that was never published is told at once
    if task.status.ended or not (wait or timeout is not None):
        value: object = _ended(task, settings.queue_dir)  # from the archive, perhaps, of which no broker knows
    else:
        value = _wait_for(settings.queue_dir, task_id, timeout)
    settings.console.line(json_text(value))


def _ended(task: StoredTask, queue_dir: Path) -> Raw:
    if task.status is TaskStatus.COMPLETED:
        return task.result if task.result is not None else Raw(b"null")
    if task.status.ended:
        raise TaskFailed(task.id, status=str(task.status), reason=task.reason, queue_dir=str(queue_dir))
    raise NotEnded(task)


class NotEnded(JsonQueueError):
    """The task is still waiting or running, and nobody asked to wait for it."""

    exit_status = ResultTimeout.exit_status

    def __init__(self, task: StoredTask) -> None:
        super().__init__(f"task {task.id} is {task.status}: it has no result yet", hint="--wait waits for it")
        self.task_id = task.id


def _wait_for(queue_dir: Path, task_id: str, timeout: float | None) -> object:
    from jsonqueue.client.handle import TaskHandle

    return TaskHandle(queue_dir, task_id).result(timeout=timeout)
