"""What a benchmark yields: figures, and what many measurements of one thing come down to."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, median_low
from typing import Any, NamedTuple

from msgspec import Struct

__all__ = ["Figure", "Spread", "median_of_runs", "percentile", "spread_of"]

Spread = dict[str, float]
"""``{"p50": …, "p99": …, "max": …, "count": …}``."""


class Figure(Struct, omit_defaults=True):
    """One measured figure."""

    measure: str
    """``publish``, ``drain`` …: what was run."""
    name: str
    """What of it this is."""
    value: float
    unit: str
    """``tasks/s``, ``ms``, ``s``, ``bytes``, ``%`` …"""
    sync_ms: float
    """The disk's own fdatasync, p50 in ms, measured at the same time: what any durable queue rests on."""
    x: float | None = None
    """Where it stands in a series (backlog, consumers), for a plot."""
    runs: list[float] = []
    """The single values, when it is the median of several runs."""
    detail: dict[str, Any] = {}
    """Of several runs: that of the run in their middle (of two of them, the lower one)."""


class _Place(NamedTuple):
    measure: str
    name: str
    x: float | None


def median_of_runs(runs: Sequence[Sequence[Figure]]) -> list[Figure]:
    """One figure out of the like ones of several runs."""
    alike: dict[_Place, list[Figure]] = {}
    for figures in runs:
        for figure in figures:
            alike.setdefault(_Place(figure.measure, figure.name, figure.x), []).append(figure)
    return [_merged(figures) for figures in alike.values()]


def _merged(figures: list[Figure]) -> Figure:
    first = figures[0]
    if len(figures) == 1:
        return first
    values = [figure.value for figure in figures]
    sync_ms = median(figure.sync_ms for figure in figures)
    detail = next(figure.detail for figure in figures if figure.value == median_low(values))
    return Figure(first.measure, first.name, median(values), first.unit, sync_ms, first.x, values, detail)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the (sorted) values lie; 0 when there is none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def spread_of(values: Sequence[float]) -> Spread:
    """Median, 99th percentile, maximum."""
    ordered = sorted(values)
    return {"p50": percentile(ordered, 0.5), "p99": percentile(ordered, 0.99), "max": percentile(ordered, 1.0), "count": len(ordered)}
