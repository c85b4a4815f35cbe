"""``jsonqueue demo``, which is also ``jsonqueue`` without a command."""

from __future__ import annotations

import os
from pathlib import Path

import click

from jsonqueue.cli.app import command, terminated_as_interrupted
from jsonqueue.cli.console import Settings

__all__ = ["demo"]

_WORKERS_MAX = 32


def _workers_default() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_WORKERS_MAX, max(2, usable))


@command("demo", short_help="Watch real work go through a queue (what happens without a command).")
@click.option(
    "--input", "given", type=click.Path(exists=True, path_type=Path),
    help="A folder (each file is a task) or a JSON Lines file (each line is one).  [default: this Python's standard library]",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 256), default=_workers_default, show_default="one a CPU", help="Consumer processes.")
@click.option("--publishers", type=click.IntRange(1, 64), default=2, show_default=True, help="Publisher processes.")
@click.option("--keep", is_flag=True, help="Leave the brokers serving at the end, until Ctrl-C.")
def demo(settings: Settings, given: Path | None, workers: int, publishers: int, keep: bool) -> int:
    """Watch real work go through a queue: each source file of this Python's standard library is a task.

    Several processes publish and parse them. At the end the totals are compared with a direct pass over the same files, figure by figure,
    and the queue's files are asked what the queue did. The queue is DIR/demo, so that yours is left alone; --queue names another folder.

    Exit status 1 if a total differs, or if anything was lost or done twice.
    """
    from jsonqueue.cli.demo.performance import Performance

    queue_dir = settings.queue_dir if settings.queue_given else settings.queue_dir / "demo"
    with terminated_as_interrupted():
        return Performance(settings.console, queue_dir, workers=workers, publishers=publishers).run(given, keep=keep)
