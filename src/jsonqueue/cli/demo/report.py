"""What the demo says at the end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from jsonqueue.cli.console import Console
from jsonqueue.cli.demo.account import Account, Latency
from jsonqueue.cli.demo.totals import Figure
from jsonqueue.cli.text import count, duration, plural, printable, rate, size

__all__ = ["Outcome", "command_name", "print_outcome"]


@dataclass(frozen=True)
class Outcome:
    """Everything there is to say about a run."""

    title: str
    things: str
    figures: list[Figure]
    account: Account
    duplicates: int
    publishers: int
    workers: int
    publish_s: float
    queue_s: float
    """From the first publish to the last completion, as the demo's own clock saw it."""
    direct_s: float
    queue_file: Path
    queue_bytes: int
    longest: str
    """The longest function, as a person says it."""
    example: str
    """Id of a task worth looking at."""
    cleared: int = 0
    """Tasks of an earlier, interrupted run that were cancelled first."""

    @property
    def good(self) -> bool:
        """Whether every figure is equal, and nothing was lost or done twice."""
        return all(figure.equal for figure in self.figures) and not self.account.lost and not self.account.completed_twice


def print_outcome(console: Console, outcome: Outcome) -> None:
    """For a person, or as one JSON object."""
    if console.as_json:
        console.json(_as_json(outcome))
        return
    for text in _lines(outcome, Paint(on=console.coloured)):
        console.line(text)


@dataclass(frozen=True)
class Paint:
    """Colours, or none."""

    on: bool

    def __call__(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self.on else text


def _lines(outcome: Outcome, paint: Paint) -> Iterator[str]:
    yield ""
    yield from _headline(outcome, paint)
    yield ""
    yield from _figures(outcome, paint)
    yield ""
    yield from _account(outcome, paint)
    yield ""
    yield from _next_steps(outcome, paint)


def _headline(outcome: Outcome, paint: Paint) -> Iterator[str]:
    done = f"{count(outcome.account.completed)} {outcome.things} went through the queue in {duration(outcome.queue_s * 1000)}"
    if outcome.good:
        yield f" {paint('✓', fg='green', bold=True)} {paint(done, bold=True)}"
        yield f"   Every total equals a direct pass over the same {outcome.things}."
    else:
        yield f" {paint('✗', fg='red', bold=True)} {paint(done, bold=True)}"
        yield f"   {paint('Not all is as it should be', fg='red', bold=True)}: see below."
    if outcome.cleared:
        yield f"   ({plural(outcome.cleared, 'task')} that an interrupted run had left were cancelled first.)"


def _figures(outcome: Outcome, paint: Paint) -> Iterator[str]:
    yield paint(f" {'What the tasks found':<26}{'through the queue':>20}{'direct pass':>16}", bold=True)
    for figure in outcome.figures:
        verdict = paint("equal", fg="green") if figure.equal else paint("DIFFERS", fg="red", bold=True)
        yield f"   {figure.name:<24}{_shown(figure.queue):>20}{_shown(figure.direct):>16}   {verdict}"
    if outcome.longest:
        yield paint(f"   The longest function: {printable(outcome.longest)}.", dim=True)
    processes = plural(outcome.workers, "process", "processes")
    yield paint(f"   The direct pass, with {processes} as well, took {duration(outcome.direct_s * 1000)}.", dim=True)


def _shown(value: int | str) -> str:
    return count(value) if isinstance(value, int) else printable(value)


def _account(outcome: Outcome, paint: Paint) -> Iterator[str]:
    account = outcome.account
    publish_rate = rate(account.published / outcome.publish_s) if outcome.publish_s else "–"
    work_rate = rate(account.completed / account.working_s) if account.working_s else "–"
    rows: list[tuple[str, int, str, bool]] = [
        ("published", account.published, f"{publish_rate} by {plural(outcome.publishers, 'publisher')}, each one durable", True),
        ("completed", account.completed, f"{work_rate} by {plural(outcome.workers, 'worker')}", True),
        ("retried", account.retried, "took more than one attempt", True),
        ("duplicates", outcome.duplicates, "published again under an id the queue knew", True),
        ("lost", account.lost, "acknowledged, but not completed", account.lost == 0),
        ("completed twice", account.completed_twice, "settled by more than one attempt", account.completed_twice == 0),
    ]
    yield paint(" What the queue did", bold=True) + paint(", as its files tell it", dim=True)
    for name, number, remark, fine in rows:
        figure = f"{count(number):>9}"
        yield f"   {name:<17}{figure if fine else paint(figure, fg='red', bold=True)}   {paint(remark, dim=True)}"
    yield f"   {'publish → start':<17}{_latency(account.to_start)}"
    yield f"   {'publish → done':<17}{_latency(account.to_done)}"
    yield paint("   (All were published at once: most of the time they wait for a free worker.)", dim=True)


def _latency(latency: Latency) -> str:
    return f"p50 {duration(latency.p50):>9}   p99 {duration(latency.p99):>9}"


def _next_steps(outcome: Outcome, paint: Paint) -> Iterator[str]:
    file = _relative(outcome.queue_file)
    yield f"{paint(' The queue', bold=True)} is {paint(file, fg='cyan')}: {size(outcome.queue_bytes)} of JSON, one task a line. Try:"
    yield ""
    for line in commands(outcome):
        yield f"   {paint(line, fg='cyan')}"
    yield ""


def commands(outcome: Outcome) -> list[str]:
    """Three things to do next, correct as typed in the current folder."""
    file, name = _relative(outcome.queue_file), command_name()
    queue = f"{name} --queue {_relative(outcome.queue_file.parent)}"
    if shutil.which("jq"):
        first = f"jq '.tasks[] | select(.id==\"{outcome.example}\")' {file}"
    else:
        first = f"{queue} result {outcome.example}"
    return [first, f"{queue} show {outcome.example}", f"{queue} list --newest --limit 5"]


def _relative(path: Path) -> str:
    """The path as one would type it here."""
    relative = os.path.relpath(path)
    shown = relative if not relative.startswith("..") else os.path.abspath(path)
    return shlex.quote(shown)


def command_name() -> str:
    """How ``jsonqueue`` is called from the current folder, so that it is this very one."""
    beside = Path(sys.executable).parent / "jsonqueue"
    found = shutil.which("jsonqueue")
    # `uv run` puts the environment's programs on the PATH of what it runs, and of nothing else.
    if found and not os.environ.get("UV_RUN_RECURSION_DEPTH") and (not beside.exists() or Path(found).resolve() == beside.resolve()):
        return "jsonqueue"
    if beside.exists():
        return _relative(beside)
    return f"{_relative(Path(sys.executable))} -m jsonqueue"


def _as_json(outcome: Outcome) -> dict[str, Any]:
    account = asdict(outcome.account)
    del account["totals"]
    return {
        "ok": outcome.good,
        "input": outcome.title,
        "figures": [{**asdict(figure), "equal": figure.equal} for figure in outcome.figures],
        "queue": {**account, "duplicates": outcome.duplicates, "seconds": round(outcome.queue_s, 3)},
        "direct_seconds": round(outcome.direct_s, 3),
        "publishers": outcome.publishers,
        "workers": outcome.workers,
        "queue_file": str(outcome.queue_file.resolve()),
        "queue_bytes": outcome.queue_bytes,
        "cleared": outcome.cleared,
        "try": commands(outcome),
    }
