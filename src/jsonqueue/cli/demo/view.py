"""What one sees while the demo runs: a few bars that grow, in 80 columns as well as in 120. Piped, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from jsonqueue.cli.console import Console
from jsonqueue.cli.text import clip, count, duration, printable, rate, size

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

__all__ = ["Scene", "View", "WorkerLine", "render"]

_WIDTH_MAX = 100
_WORKERS_SHOWN = 12
_NOTE_EVERY_S = 2.0
_BAR_LEAST = 9
"""Where a bar would be shorter, nothing stands behind its figure."""
_REST = 13
"""The room of what does."""


@dataclass(frozen=True)
class WorkerLine:
    """One consumer process."""

    name: str
    done: int = 0
    current: str = ""


@dataclass(frozen=True)
class Scene:
    """How far everything is."""

    title: str
    total: int
    published: int = 0
    in_progress: int = 0
    completed: int = 0
    checked: int | None = None
    """Files seen by the direct pass; None: it has not begun."""
    publish_rate: float = 0
    complete_rate: float = 0
    elapsed_s: float = 0
    queue_json: int = 0
    logs: int = 0
    workers: Sequence[WorkerLine] = ()


class View:
    """Shows scenes: live on a terminal, as lines where nobody watches, not at all with ``--json``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._next_note = 0.0

    def __enter__(self) -> Self:
        if self._console.watched and self._console.person:
            from rich.live import Live

            self._live = Live(console=self._console.rich(), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the picture down."""
        if self._live:
            self._live.stop()

    def show(self, scene: Scene) -> None:
        """Show how far everything is now."""
        if self._live:
            self._live.update(render(scene, min(_WIDTH_MAX, self._console.rich().width)), refresh=True)
        elif not self._console.as_json and time.monotonic() >= self._next_note:
            self._next_note = time.monotonic() + _NOTE_EVERY_S
            self._console.note(_note(scene))


def _note(scene: Scene) -> str:
    if scene.checked is not None:
        return f"direct pass: {count(scene.checked)} of {count(scene.total)}"
    done = f"completed {count(scene.completed)} of {count(scene.total)}"
    return f"published {count(scene.published)}, in progress {count(scene.in_progress)}, {done}"


def render(scene: Scene, width: int) -> Any:
    """The scene, ``width`` columns wide."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(), _headline(scene.title), Text()]
    lines.append(_bar_line("published", scene.published, scene.total, "cyan", _speed(scene.publish_rate), width))
    lines.append(_bar_line("in progress", scene.in_progress, scene.total, "yellow", "", width))
    lines.append(_bar_line("completed", scene.completed, scene.total, "green", _speed(scene.complete_rate), width))
    if scene.checked is not None:
        lines.append(_bar_line("direct pass", scene.checked, scene.total, "magenta", "to compare", width))
    lines.append(Text())
    lines += _worker_lines(scene.workers, width)
    lines += [Text(), _footer(scene), Text()]
    return Group(*lines)


def _headline(title: str) -> Text:
    from rich.text import Text

    return Text.assemble((" jsonqueue ", "bold reverse cyan"), "  ", (title, "bold"), no_wrap=True, overflow="ellipsis")


def _speed(each_second: float) -> str:
    return rate(each_second) if each_second else ""


def _bar_line(name: str, done: int, total: int, colour: str, rest: str, width: int) -> Text:
    from rich.text import Text

    figures = f"{count(done):>9}"
    room = width - 15 - len(figures) - 14
    if room < _BAR_LEAST:  # a rate that is cut is another one
        rest, room = "", max(1, room + _REST)
    line = Text(f" {name:<13}", style="", no_wrap=True)
    line.append_text(_bar(done, total, room, colour))
    return line.append(figures, style="bold").append(f"{rest:>{_REST}}" if rest else "", style="dim")


def _bar(done: int, total: int, width: int, colour: str) -> Text:
    """A bar in half-cell steps. What is more than nothing shows, and what is not yet all does not look like all."""
    from rich.text import Text

    halves = round(2 * width * done / total) if total else 0
    halves = min(2 * width - (done < total), max(halves, done > 0))
    bar = Text("━" * (halves // 2), style=colour)
    if halves % 2:
        bar.append("╸")
    return bar.append("─" * (width - len(bar)), style="grey30")


def _worker_lines(workers: Sequence[WorkerLine], width: int) -> list[Text]:
    from rich.text import Text

    most = max((worker.done for worker in workers), default=0)
    room = max(8, width // 4)
    lines = []
    for worker in workers[:_WORKERS_SHOWN]:
        line = Text(f" {worker.name:<13}", no_wrap=True, overflow="ellipsis")
        line.append("▪" * (round(room * worker.done / most) if most else 0), style="green")
        line.pad_right(max(0, 14 + room - len(line)))
        line.append(f"{count(worker.done):>7}", style="bold")
        lines.append(line.append(f"   {clip(printable(worker.current), width - len(line) - 4)}", style="dim"))
    if len(workers) > _WORKERS_SHOWN:
        lines.append(Text(f" … and {len(workers) - _WORKERS_SHOWN} more workers", style="dim"))
    return lines


def _footer(scene: Scene) -> Text:
    from rich.text import Text

    parts = [f"queue.json {size(scene.queue_json)}", f"logs {size(scene.logs)}", duration(scene.elapsed_s * 1000)]
    return Text(" " + " · ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")
