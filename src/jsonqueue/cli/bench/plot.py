"""Draws figures: SVG by itself, PNG through matplotlib where that is installed (``pip install 'jsonqueue[plot]'``).

Series (a cost against the backlog, against the number of consumers) become lines over a logarithmic axis, everything else bars. Each chart
has one unit. The SVG is plain: no script, no font but the reader's own, readable on white and on black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import click

from jsonqueue.cli.bench.figures import Figure

__all__ = ["check_plot", "draw", "svg_of"]

_WIDTH, _CHART_HEIGHT, _LEFT, _TOP = 760, 260, 300, 46
_BAR, _GAP = 22, 12
_COLOURS = ("#3b7dd8", "#d8743b", "#3ba55d", "#a04bc0", "#888888")
_INK = "#777777"

Chart = tuple[str, str, bool, list[Figure]]
"""Title, unit, whether it is a series, figures."""


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, what could not be drawn afterwards."""
    if path.suffix not in {".svg", ".png"}:
        raise click.BadParameter(f"{path.name}: the name must end in .svg or .png", param_hint="--plot")
    if path.suffix == ".png":
        from importlib.util import find_spec

        if find_spec("matplotlib") is None:
            raise click.BadParameter("a PNG needs matplotlib: pip install 'jsonqueue[plot]', or name a .svg", param_hint="--plot")


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Draw them all into one file."""
    if path.suffix == ".svg":
        path.write_text(svg_of(figures), encoding="utf-8")
    else:
        _draw_png(_charts(figures), path)


def _charts(figures: Sequence[Figure]) -> list[Chart]:
    charts: dict[tuple[str, str, bool], list[Figure]] = {}
    for figure in figures:
        series = figure.x is not None
        charts.setdefault((figure.measure if series else "", figure.unit, series), []).append(figure)
    return [(measure, unit, series, members) for (measure, unit, series), members in charts.items()]


# ── SVG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def svg_of(figures: Sequence[Figure]) -> str:
    """The figures as an SVG document."""
    parts: list[str] = []
    top = 0
    for chart in _charts(figures):
        drawn, height = _series(chart) if chart[2] else _bars(chart)
        parts.append(f'<g transform="translate(0 {top})">{drawn}</g>')
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(chart: Chart) -> tuple[str, int]:
    _, unit, _, figures = chart
    most = max(figure.value for figure in figures) or 1.0
    parts = [_text(_LEFT, 24, unit, weight="bold")]
    for place, figure in enumerate(figures):
        y = _TOP + place * (_BAR + _GAP)
        width = (_WIDTH - _LEFT - 110) * figure.value / most
        parts += [
            _text(_LEFT - 10, y + 15, f"{figure.measure}: {figure.name}", anchor="end"),
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" fill="{_COLOURS[0]}"/>',
            _text(_LEFT + width + 8, y + 15, _short(figure.value)),
        ]
    return "".join(parts), _TOP + len(figures) * (_BAR + _GAP) + 20


def _series(chart: Chart) -> tuple[str, int]:
    measure, unit, _, figures = chart
    lines: dict[str, list[Figure]] = {}
    for figure in figures:
        lines.setdefault(figure.name, []).append(figure)
    xs = sorted({figure.x or 0.0 for figure in figures})
    most = max(figure.value for figure in figures) or 1.0
    parts = [_text(60, 24, f"{measure}, {unit}", weight="bold"), _axes(xs, most)]
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(_at(xs, figure.x or 0.0), _up(figure.value, most)) for figure in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(60 + 230 * number, _CHART_HEIGHT + 46, name, colour=colour))
    return "".join(parts), _CHART_HEIGHT + 70


def _axes(xs: Sequence[float], most: float) -> str:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _up(most * share, most)
        parts.append(f'<line x1="60" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_INK}" stroke-opacity="0.3"/>')
        parts.append(_text(54, y + 4, _short(most * share), anchor="end"))
    parts += [_text(_at(xs, x), _CHART_HEIGHT + 22, f"{x:,.0f}", anchor="middle") for x in xs]
    return "".join(parts)


def _at(xs: Sequence[float], x: float) -> float:
    low, high = math.log(xs[0]), math.log(xs[-1])
    return 90 + (_WIDTH - 150) * ((math.log(x) - low) / (high - low) if high > low else 0.5)


def _up(value: float, most: float) -> float:
    return _CHART_HEIGHT - (_CHART_HEIGHT - _TOP) * value / most


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:.2g} M"
    return f"{value / 1000:,.0f} k" if value >= 10_000 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw_png(charts: Sequence[Chart], path: Path) -> None:
    from matplotlib.figure import Figure as Canvas  # type: ignore[import-not-found,unused-ignore]

    canvas = Canvas(figsize=(9, 3.5 * len(charts)), layout="constrained")
    for axes, chart in zip(canvas.subplots(len(charts), squeeze=False)[:, 0], charts, strict=True):
        _plot_chart(axes, chart)
    canvas.savefig(path, dpi=120)


def _plot_chart(axes: Any, chart: Chart) -> None:
    measure, unit, series, figures = chart
    if series:
        for name in dict.fromkeys(figure.name for figure in figures):
            line = [figure for figure in figures if figure.name == name]
            axes.plot([figure.x for figure in line], [figure.value for figure in line], marker="o", label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(measure)
        axes.legend()
    else:
        axes.barh([f"{figure.measure}: {figure.name}" for figure in figures], [figure.value for figure in figures])
        axes.invert_yaxis()
    axes.set_ylabel("" if not series else unit)
    axes.set_xlabel("" if series else unit)
