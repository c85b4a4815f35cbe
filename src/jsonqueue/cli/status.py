"""``jsonqueue status``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jsonqueue.cli.app import command, terminated_as_interrupted
from jsonqueue.cli.console import STATUS_STYLE, Console, Settings
from jsonqueue.cli.options import Seconds, typed
from jsonqueue.cli.text import count, duration, moment, plural, printable, rate, size
from jsonqueue.task import TaskStatus

if TYPE_CHECKING:
    from jsonqueue.channel.registration import ManagerStatus
    from jsonqueue.storage.looking import Glance

__all__ = ["Overview", "Sizes", "bar_parts", "overview", "sizes", "status"]

_RATE_WINDOW_MS = 60_000
_BAR_WIDTH = 60
_FRAME_WIDTH = 6
"""What the panel takes of a terminal's width."""


@command("status", short_help="How the queue stands.")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option("--interval", type=Seconds(0.1), default=1.0, show_default=True, help="Seconds between two looks of --watch.")
def status(settings: Settings, watch: bool, interval: float) -> None:
    """How the queue stands: brokers, tasks by status, rates of the last minute, files.

    Reads the queue's files; no broker needs to run.
    """
    if "interval" in typed() and not watch:
        raise click.UsageError("--interval goes with --watch: without it there is one look")
    if watch and settings.console.person:
        _watch(settings, interval)
        return
    while True:
        _print(settings.console, overview(settings.queue_dir, now_ms=time.time_ns() // 1_000_000))
        if not watch:
            return
        time.sleep(interval)


def _watch(settings: Settings, interval: float) -> None:
    from rich.live import Live

    with terminated_as_interrupted(), Live(console=settings.console.rich(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(_panel(overview(settings.queue_dir, now_ms=time.time_ns() // 1_000_000), live.console.width), refresh=True)
            time.sleep(interval)


@dataclass(frozen=True)
class Sizes:
    """What lies in the folder, in bytes."""

    queue_json: int = 0
    queue_json_saved_ms: int = 0
    logs: int = 0
    log_files: int = 0
    archive: int = 0
    previous: int = 0


@dataclass
class Overview:
    """Everything `status` says."""

    queue_dir: Path
    now_ms: int
    tasks: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    last_task: int = 0
    oldest_pending_ms: int = 0
    published_last_minute: int = 0
    completed_last_minute: int = 0
    sizes: Sizes = Sizes()
    manager: ManagerStatus | None = None
    held_by: str = ""
    """Who holds the queue, when it does not answer as a manager."""
    held_why: str = ""

    def count(self, tasks: Iterable[Glance]) -> None:
        """Look at each task once."""
        since = self.now_ms - _RATE_WINDOW_MS
        for task in tasks:
            self.tasks += 1
            self.by_status[task.status] += 1
            self.published_last_minute += task.published_ms > since
            if task.status is TaskStatus.PENDING:
                if not self.oldest_pending_ms or task.published_ms < self.oldest_pending_ms:
                    self.oldest_pending_ms = task.published_ms
            elif task.finished_ms > since and task.status is TaskStatus.COMPLETED:
                self.completed_last_minute += 1


def overview(queue_dir: Path, *, now_ms: int) -> Overview:
    """How the queue stands, from its files and, if it is running, its manager."""
    from jsonqueue.cli.reading import looking

    with looking(queue_dir) as view:
        seen = Overview(queue_dir, now_ms, last_task=view.last_task, sizes=sizes(queue_dir))
        seen.count(view.glances())
    _ask_manager(seen)
    return seen


def sizes(queue_dir: Path) -> Sizes:
    """Sizes of the queue's files. A file that a checkpoint takes away meanwhile counts as nothing."""
    logs = [_size(file) for file in queue_dir.glob("*.jsonl")]
    try:
        saved = (queue_dir / "queue.json").stat()
    except FileNotFoundError:
        saved = None
    return Sizes(
        queue_json=saved.st_size if saved else 0,
        queue_json_saved_ms=saved.st_mtime_ns // 1_000_000 if saved else 0,
        logs=sum(logs),
        log_files=len(logs),
        archive=sum(_size(file) for file in (queue_dir / "archive").glob("*.jsonl")),
        previous=sum(_size(file) for file in (queue_dir / "previous").glob("*")),
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _ask_manager(seen: Overview) -> None:
    from jsonqueue.channel.registration import operate
    from jsonqueue.client.presence import why_silent
    from jsonqueue.errors import BrokerUnavailable
    from jsonqueue.storage.locks import holder

    try:
        seen.manager = operate(seen.queue_dir, "status", timeout=2.0).status
    except BrokerUnavailable as error:
        seen.held_by = holder(seen.queue_dir, "queue")
        seen.held_why = why_silent(seen.held_by, error)


def _print(console: Console, seen: Overview) -> None:
    if console.as_json:
        console.json(as_json(seen))
    elif console.person:
        console.show(_panel(seen, console.rich().width))
    else:
        console.facts([("queue", printable(str(seen.queue_dir.resolve()))), *_lines(seen)])


def as_json(seen: Overview) -> dict[str, Any]:
    """The overview as `status --json` prints it."""
    import msgspec

    return {
        "queue_dir": str(seen.queue_dir.resolve()).encode(errors="backslashreplace").decode(),
        "at_ms": seen.now_ms,
        "running": seen.manager is not None,
        "held_by": seen.held_by,
        "tasks": seen.tasks,
        "by_status": {str(status): seen.by_status[status] for status in TaskStatus},
        "published_ever": seen.last_task,
        "oldest_pending_ms": seen.oldest_pending_ms,
        "published_last_minute": seen.published_last_minute,
        "completed_last_minute": seen.completed_last_minute,
        "files": {
            "queue_json_bytes": seen.sizes.queue_json, "queue_json_saved_ms": seen.sizes.queue_json_saved_ms, "log_bytes": seen.sizes.logs,
            "log_files": seen.sizes.log_files, "archive_bytes": seen.sizes.archive, "previous_bytes": seen.sizes.previous,
        },
        "manager": msgspec.to_builtins(seen.manager) if seen.manager else None,
    }  # fmt: skip


def _panel(seen: Overview, width: int) -> Any:
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(seen, with_tasks=False):
        table.add_row(name, Text(value))
    parts = [_status_bar(seen, min(_BAR_WIDTH, width - _FRAME_WIDTH)), Text(""), table] if seen.tasks else [table]
    title = Text(f" {printable(str(seen.queue_dir))} ", style="bold")
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, border_style="dim", padding=(1, 2))


def _status_bar(seen: Overview, width: int) -> Any:
    """The tasks as one bar in proportion, and the legend under it."""
    from rich.table import Table
    from rich.text import Text

    bar, legend = Text(no_wrap=True), Text()
    parts = bar_parts({name: seen.by_status[name] for name in TaskStatus}, width)
    for name in TaskStatus:
        number = seen.by_status[name]
        if number:
            bar.append("━" * parts[name], style=STATUS_STYLE[name])
            legend.append("● ", style=STATUS_STYLE[name]).append(f"{count(number)} {name}   ")
    grid = Table.grid()
    grid.add_row(bar)
    grid.add_row(legend)
    return grid


def bar_parts(numbers: dict[TaskStatus, int], width: int) -> dict[TaskStatus, int]:
    """How much of a bar is whose: what there is shows, and what that and rounding take or leave, the longest part bears."""
    total = sum(numbers.values())
    parts = {name: max(1, round(width * number / total)) for name, number in numbers.items() if number}
    longest = max(parts, key=lambda name: parts[name])
    parts[longest] = max(1, parts[longest] + width - sum(parts.values()))
    return parts


def _lines(seen: Overview, *, with_tasks: bool = True) -> Iterator[tuple[str, str]]:
    yield from _brokers(seen)
    if with_tasks:
        yield "tasks", count(seen.tasks)
        for name in TaskStatus:
            if seen.by_status[name]:
                yield f"  {name}", count(seen.by_status[name])
    if seen.oldest_pending_ms:
        yield "oldest pending", f"waiting for {duration(max(0, seen.now_ms - seen.oldest_pending_ms))}"
    published, completed = seen.published_last_minute, seen.completed_last_minute
    yield "last minute", f"{count(published)} published ({rate(published / 60)}), {count(completed)} completed ({rate(completed / 60)})"
    yield "published ever", plural(seen.last_task, "task")
    yield "queue.json", _queue_json(seen)
    yield "logs", f"{size(seen.sizes.logs)} in {plural(seen.sizes.log_files, 'file')} beside queue.json" if seen.sizes.log_files else "none"
    if seen.sizes.archive:
        yield "archive", size(seen.sizes.archive)


def _queue_json(seen: Overview) -> str:
    if not seen.sizes.queue_json:
        return "not written yet"
    saved = seen.sizes.queue_json_saved_ms
    text = f"{size(seen.sizes.queue_json)}, saved {moment(saved, now_ms=seen.now_ms)} ({duration(max(0, seen.now_ms - saved))} ago)"
    if seen.manager and seen.manager.checkpoint_error:
        text += f"; the last checkpoint failed: {printable(seen.manager.checkpoint_error)}"
    return text


def _brokers(seen: Overview) -> Iterator[tuple[str, str]]:
    if seen.manager is None:
        yield "brokers", printable(f"held by {seen.held_by}, which {seen.held_why}") if seen.held_by else "not running"
        return
    yield "brokers", f"running for {duration(seen.manager.up_ms)}, manager pid {seen.manager.pid}"
    for broker in seen.manager.brokers:
        restarts = f", {plural(broker.restarts, 'restart')}" if broker.restarts else ""
        waits = f": {printable(broker.waits_for)}" if broker.waits_for else ""
        who = f"pid {broker.pid}, {plural(broker.peers, 'client')}{restarts}"
        yield f"  {broker.role.removesuffix('_broker')}", f"{broker.state}, {who}{waits}"
    if seen.manager.durability != "power-cut":
        yield "durability", f"{seen.manager.durability}: relaxed, the last moments may be missing after a power cut"
