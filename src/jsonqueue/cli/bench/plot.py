"""Draws figures: SVG by itself, PNG through matplotlib where that is installed (``pip install 'jsonqueue[plot]'``).

One chart a measure. What is a series (against the backlog, against the number of consumers) becomes lines over a logarithmic axis, one unit
a chart, two charts side by side; everything else bars, each under its name and with its value and unit beside it. The layout is worked out
once, as plain shapes, and only they are drawn in one format or the other. Readable on white and on black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple
from xml.sax.saxutils import escape

import click

from jsonqueue.cli.bench.figures import Figure
from jsonqueue.cli.options import written

__all__ = ["check_plot", "draw", "svg_of"]

_WIDTH, _MARGIN = 760, 32
_COLOURS = ("#3b7dd8", "#d8743b", "#3ba55d", "#a04bc0")
_INK, _FAINT = "#777777", "#bbbbbb"
_BAR, _ROW, _BARS_WIDTH = 14, 42, 520
_CHART, _PLOT_HEIGHT, _PLOT_TOP, _PLOT_LEFT = 348, 150, 62, 48
_X_TITLES = {"backlog": "tasks waiting", "fan-out": "consumers"}


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
        written(path, svg_of(figures))
    else:
        _draw_png(*_layout(figures), path)


# ── the layout ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Text(NamedTuple):
    x: float
    y: float
    text: str
    size: int = 12
    anchor: str = "start"
    bold: bool = False
    colour: str = _INK


class _Bar(NamedTuple):
    x: float
    y: float
    width: float
    colour: str


class _Line(NamedTuple):
    points: tuple[tuple[float, float], ...]
    colour: str
    width: float


class _Dot(NamedTuple):
    x: float
    y: float
    colour: str


_Shape = _Text | _Bar | _Line | _Dot


def _layout(figures: Sequence[Figure]) -> tuple[list[_Shape], int]:
    """Everything to draw, and the height it takes."""
    sync_ms = median(figure.sync_ms for figure in figures)
    shapes: list[_Shape] = [
        _Text(_MARGIN, 38, "jsonqueue bench", 18, bold=True),
        _Text(_MARGIN, 58, f"fdatasync of one line on this disk: {sync_ms:.2f} ms (p50)"),
    ]
    top = 84
    for measure, members in groupby(sorted(figures, key=lambda figure: _place_of(figure.measure, figures)), lambda figure: figure.measure):
        shapes.append(_Text(_MARGIN, top + 16, measure, 15, bold=True))
        top += 30
        some = list(members)
        for part, height in _charts(measure, some, top):
            shapes += part
            top += height
        top += 14
    return shapes, top + 6


def _place_of(measure: str, figures: Sequence[Figure]) -> int:
    return next(place for place, figure in enumerate(figures) if figure.measure == measure)


def _charts(measure: str, figures: list[Figure], top: int) -> Iterator[tuple[list[_Shape], int]]:
    """Parts of a measure's chart from the top down, with their heights."""
    plots: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.x is not None:
            plots.setdefault(figure.unit, []).append(figure)
    pairs = list(plots.items())
    for first in range(0, len(pairs), 2):
        lines = max(len({figure.name for figure in members}) for _, members in pairs[first : first + 2])
        height = _PLOT_TOP + 16 * lines + _PLOT_HEIGHT + 14
        shapes: list[_Shape] = []
        for column, (unit, members) in enumerate(pairs[first : first + 2]):
            shapes += _plot(members, unit, _X_TITLES.get(measure, ""), left=_MARGIN + column * (_CHART + 8), top=top, lines=lines)
        yield shapes, height
        top += height
    bars = [figure for figure in figures if figure.x is None]
    if bars:
        yield list(_bars(bars, top)), _ROW * len(bars)


def _bars(figures: Sequence[Figure], top: int) -> Iterator[_Shape]:
    """One bar a figure; those of one unit can be compared by their lengths."""
    most: dict[str, float] = {}
    for figure in figures:
        whole = 100.0 if figure.unit == "%" else 0.0
        most[figure.unit] = max([most.get(figure.unit, whole), figure.value, *figure.runs])
    for row, figure in enumerate(figures):
        y, scale = top + row * _ROW, _BARS_WIDTH / (most[figure.unit] or 1.0)
        colour = _COLOURS[list(most).index(figure.unit) % len(_COLOURS)]
        yield _Text(_MARGIN, y + 12, figure.name)
        yield _Bar(_MARGIN, y + 18, max(1.0, figure.value * scale), colour)
        ends = max([figure.value, *figure.runs]) * scale
        if figure.runs:
            least = _MARGIN + min(figure.runs) * scale
            yield _Line(((least, y + 18 + _BAR / 2), (_MARGIN + ends, y + 18 + _BAR / 2)), _INK, 1.5)
        yield _Text(_MARGIN + ends + 8, y + 29, f"{_short(figure.value)} {figure.unit}", bold=True)


def _plot(figures: Sequence[Figure], unit: str, x_title: str, *, left: int, top: int, lines: int) -> Iterator[_Shape]:
    xs = sorted({figure.x or 0.0 for figure in figures})
    steps = _steps(max(figure.value for figure in figures))
    bottom = top + _PLOT_TOP - 36 + 16 * lines + _PLOT_HEIGHT
    right = left + _CHART - 14

    def at(x: float) -> float:
        low, high = math.log(xs[0]), math.log(xs[-1])
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return left + _PLOT_LEFT + 16 + (right - left - _PLOT_LEFT - 40) * share

    def up(value: float) -> float:
        return bottom - (_PLOT_HEIGHT - 12) * value / steps[-1]

    yield _Text(left, top + 12, unit, bold=True)
    for step in steps:
        yield _Line(((left + _PLOT_LEFT, up(step)), (right, up(step))), _FAINT, 0.7)
        yield _Text(left + _PLOT_LEFT - 6, up(step) + 4, _short(step), 11, "end")
    for x in xs:
        yield _Text(at(x), bottom + 18, f"{x:,.0f}", 11, "middle")
    yield _Text((left + _PLOT_LEFT + right) / 2, bottom + 36, x_title, 11, "middle")
    for number, name in enumerate(dict.fromkeys(figure.name for figure in figures)):
        colour = _COLOURS[number % len(_COLOURS)]
        points = tuple((at(figure.x or 0.0), up(figure.value)) for figure in figures if figure.name == name)
        yield _Dot(left + 4, top + 26 + 16 * number, colour)
        yield _Text(left + 14, top + 30 + 16 * number, name, colour=colour)
        yield _Line(points, colour, 2)
        yield from (_Dot(x, y, colour) for x, y in points)


def _steps(most: float) -> list[float]:
    """Round values from 0 up to at least ``most``, about four of them."""
    if most <= 0:
        return [0.0, 1.0]
    unit = 10 ** math.floor(math.log10(most / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10, 20) if unit * factor * 4 >= most)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:.3g} M"
    return f"{value / 1000:,.0f} k" if value >= 10_000 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


# ── SVG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def svg_of(figures: Sequence[Figure]) -> str:
    """The figures as an SVG document: no script, no font but the reader's own."""
    shapes, height = _layout(figures)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif">\n' + "\n".join(map(_element, shapes)) + "\n</svg>\n"
    )


def _element(shape: _Shape) -> str:
    if isinstance(shape, _Text):
        style = f'font-size="{shape.size}" text-anchor="{shape.anchor}" fill="{shape.colour}"' + ' font-weight="600"' * shape.bold
        return f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" {style}>{escape(shape.text)}</text>'
    if isinstance(shape, _Bar):
        return f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{_BAR}" rx="2" fill="{shape.colour}"/>'
    if isinstance(shape, _Dot):
        return f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="3.5" fill="{shape.colour}"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
    return f'<polyline points="{points}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width}"/>'


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw_png(shapes: Iterable[_Shape], height: int, path: Path) -> None:
    from matplotlib.figure import Figure as Canvas  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.patches import Rectangle  # type: ignore[import-not-found,unused-ignore]

    canvas = Canvas(figsize=(_WIDTH / 100, height / 100), facecolor="white")
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    in_points = 0.72  # a point is 1/72 inch, and a hundred of our units make an inch
    for shape in shapes:
        if isinstance(shape, _Text):
            anchor = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
            weight = "bold" if shape.bold else "normal"
            axes.text(shape.x, shape.y, shape.text, size=shape.size * in_points, ha=anchor, weight=weight, color=shape.colour)
        elif isinstance(shape, _Bar):
            axes.add_patch(Rectangle((shape.x, shape.y), shape.width, _BAR, color=shape.colour, linewidth=0))
        elif isinstance(shape, _Dot):
            axes.plot([shape.x], [shape.y], marker="o", markersize=7 * in_points, color=shape.colour)
        else:
            axes.plot(*zip(*shape.points, strict=True), color=shape.colour, linewidth=shape.width * in_points)
    canvas.savefig(path, dpi=200)
