"""Runs the measures, with a line of progress, and prints their figures."""

from __future__ import annotations

from collections.abc import Sequence

from jsonqueue.cli.bench.figures import Figure, median_of_runs
from jsonqueue.cli.bench.measures import MEASURES, Measuring
from jsonqueue.cli.console import Console
from jsonqueue.cli.live import LiveLine

__all__ = ["measure_all", "print_figures", "shown"]

_FROM = 100.0
"""From here on, decimals say nothing."""


def measure_all(run: Measuring, names: Sequence[str], *, runs: int, watched: bool) -> list[Figure]:
    """All figures of these measures. Several runs take turns, so that a machine that is slow for a while is slow for all."""
    rounds = []
    for number in range(1, runs + 1):
        turn = f" (run {number} of {runs})" if runs > 1 else ""
        figures: list[Figure] = []
        for place, name in enumerate(names, 1):
            step = f"[{place}/{len(names)}] " if len(names) > 1 else ""
            with LiveLine(lambda step=step, turn=turn: f"{step}{run.doing}{turn} … {run.for_s:.0f} s", watched=watched):  # type: ignore[misc]
                figures += MEASURES[name](run)
        rounds.append(figures)
    return median_of_runs(rounds)


def print_figures(console: Console, figures: Sequence[Figure]) -> None:
    """A table, or one JSON object a line."""
    if console.as_json:
        for figure in figures:
            console.json(figure)
        return
    ranged = any(figure.runs for figure in figures)
    headings = ["measure", "what", "figure", *(["range"] if ranged else []), "fdatasync p50"]
    right = range(2, len(headings))
    console.table(headings, (_row(figure, ranged) for figure in figures), right=right)


def _row(figure: Figure, ranged: bool) -> list[str]:
    at = "" if figure.x is None else f", {figure.x:,.0f} {'waiting' if figure.measure == 'backlog' else 'consumers'}"
    spread = f"{shown(min(figure.runs))} – {shown(max(figure.runs))}" if figure.runs else ""
    middle = [spread] if ranged else []
    return [figure.measure, figure.name + at, f"{shown(figure.value)} {figure.unit}", *middle, f"{figure.sync_ms:.2f} ms"]


def shown(value: float) -> str:
    """A figure with as many digits as say something."""
    if value >= _FROM:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
