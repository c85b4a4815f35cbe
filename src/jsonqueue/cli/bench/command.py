"""``jsonqueue bench``."""

from __future__ import annotations

from pathlib import Path

import click

from jsonqueue.cli.app import command, terminated_as_interrupted
from jsonqueue.cli.console import Settings
from jsonqueue.cli.options import Output, typed

__all__ = ["bench"]

_WHAT = ("publish", "drain", "both", "latency", "backlog", "restart", "fan-out", "written")
_QUICK = _WHAT[:4]


@command("bench", of_queue=False, short_help="Measure how fast the queue is here, on this disk.")
@click.argument("what", nargs=-1, type=click.Choice(_WHAT), metavar="[publish|drain|both|latency|backlog|restart|fan-out|written]...")
@click.option("--tasks", type=click.IntRange(min=50), default=100_000, show_default=True, help="How many; one by one, a fiftieth of it.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Consumers; publishers, where it is one by one.")
@click.option("--batch/--no-batch", default=None, help="Publish in batches, or one by one.  [default: measure either]")
@click.option("--matrix", is_flag=True, help="50 tasks on 4 workers, 500 on 8, 1000 on 16, each of 10 ms: rate, and how many complete.")
@click.option("--runs", type=click.IntRange(1, 99), default=1, show_default=True, help="Runs of everything, in turns; medians are shown.")
@click.option("--plot", type=Output(), metavar="FILE", help="Draw the figures into FILE.svg or FILE.png.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), default=Path(), show_default="here",
    help="Where the queues are made, and taken away again: the disk that is measured.",
)  # fmt: skip
def bench(
    settings: Settings, what: tuple[str, ...], tasks: int, workers: int, batch: bool | None, matrix: bool, runs: int, plot: Path | None,
    folder: Path,
) -> None:  # fmt: skip
    """Measure how fast the queue is here, on this disk: publish, drain, both, latency unless told otherwise.

    Every task is durable before it is acknowledged, and so is every result. Brokers, publishers and consumers run in processes of their
    own, on queues of their own: yours is not touched. Beside each figure stands the median fdatasync of this disk at that time.

    \b
    publish   tasks into the queue: in batches, and one by one
    drain     tasks out of it, by consumers whose handler does nothing
    both      publishing and consuming at once
    latency   from the call of publish to the start of the handler; and the CPU used while idle
    backlog   publishing and draining with 1,000 to a million (at most --tasks) waiting; latency during a checkpoint
    restart   time until ready with --tasks waiting, after a crash and after a stop; memory of each process
    fan-out   1 to 16 consumers of 10 ms tasks, and such beside others of 40 ms: how much of its ideal each reaches
    written   bytes that a task costs in its whole life, checkpoints and archive included

    With --json each figure is a line: measure, name, value, unit, sync_ms (the fdatasync beside it); x, its place in a series;
    runs, the single values; detail.
    """
    from jsonqueue.cli.bench.measures import Measuring
    from jsonqueue.cli.bench.plot import check_plot, draw
    from jsonqueue.cli.bench.report import measure_all, print_figures

    if plot is not None:
        check_plot(plot)
    names = ["matrix", *what] if matrix else list(what or _QUICK)
    _refuse_what_would_not_count(settings, names, batch)
    batches = (True, False) if batch is None else (batch,)
    run = Measuring(folder, tasks=tasks, workers=workers, batches=batches)
    with terminated_as_interrupted():
        figures = measure_all(run, names, runs=runs, watched=settings.console.watched)
    print_figures(settings.console, figures)
    if plot is not None:
        draw(figures, plot)
        settings.console.note(f"Drawn into {plot}.")


_COUNTS = {
    "publish": {"tasks", "workers", "batch"},
    "drain": {"tasks", "workers"},
    "both": {"tasks", "workers", "batch"},
    "latency": set[str](),
    "backlog": {"tasks", "workers"},
    "restart": {"tasks"},
    "fan-out": set[str](),
    "written": {"tasks", "workers", "batch"},
    "matrix": set[str](),
}
"""Which options there are to a measure, beside those of all."""
_WORKERS_ONE_BY_ONE = {"publish", "both"}
"""In batches, these have publishers and consumers of their own number."""


def _refuse_what_would_not_count(settings: Settings, names: list[str], batch: bool | None) -> None:
    if settings.queue_given:
        raise click.UsageError("--queue does not go with bench, whose queues are its own: --folder names the disk to measure")
    given = typed()
    for option in sorted({"tasks", "workers", "batch"} & given.keys()):
        counts = {name for name in names if option in _COUNTS[name]}
        if option == "workers" and batch:
            counts -= _WORKERS_ONE_BY_ONE
        if not counts:
            which = ", ".join(names) + (" in batches" if option == "workers" and batch else "")
            raise click.UsageError(f"{given[option]} counts for nothing with {which}: leave it out")
