"""Where a command prints: results on standard output, everything else on standard error.

One :class:`Console` for each run. It knows whether a person is looking (a terminal) or a program (a pipe, ``--json``). rich is imported
only when a person is looking; piped output is plain text in aligned columns, never cut to a width. ``NO_COLOR`` is respected throughout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from jsonqueue.cli.text import json_text, printable
from jsonqueue.errors import JsonQueueError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

__all__ = ["DEFAULT_DIR", "Console", "OutputFailed", "Settings", "is_terminal"]

DEFAULT_DIR = Path("queue_data")
"""The queue's folder where nothing names another."""

ACCENT = "cyan"
"""The one colour that is ours; green, yellow and red keep their meaning."""

STATUS_STYLE = {
    "blocked": "magenta",
    "scheduled": "blue",
    "pending": "cyan",
    "in_progress": "yellow",
    "completed": "green",
    "dead": "red",
    "cancelled": "bright_black",
}


class OutputFailed(JsonQueueError):
    """Standard output cannot be written to. ``done``: what happened all the same, so that nobody does it again."""

    exit_status = 74

    def __init__(self, why: str, *, done: str = "", hint: str = "") -> None:
        super().__init__(f"standard output cannot be written to: {why.lower()}{'; ' + done if done else ''}", hint=hint)
        self.why = why


class Console:
    """Prints for a person or for a program."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._rich: dict[int, RichConsole] = {}

    @property
    def person(self) -> bool:
        """Whether somebody reads along: standard output is a terminal, and no JSON was asked for."""
        return not self.as_json and is_terminal(sys.stdout)

    @property
    def coloured(self) -> bool:
        """Whether somebody reads along who has nothing against colours."""
        return self.person and not os.environ.get("NO_COLOR")

    @property
    def watched(self) -> bool:
        """Whether somebody reads standard error, where progress is shown."""
        return not self.as_json and is_terminal(sys.stderr)

    def rich(self, *, err: bool = False) -> RichConsole:
        """rich's console on standard output (or error), with nothing in the data interpreted as markup."""
        stream = sys.stderr if err else sys.stdout
        console = self._rich.get(id(stream))
        if console is None:
            from rich.console import Console as RichConsole

            console = self._rich[id(stream)] = RichConsole(
                file=stream, markup=False, highlight=False, emoji=False, no_color=bool(os.environ.get("NO_COLOR")) or None
            )
        return console

    def line(self, text: str = "") -> None:
        """One line of the result. Raises :class:`OutputFailed`."""
        try:
            click.echo(text)
        except BrokenPipeError:  # its reader had enough, which is no failure
            raise
        except OSError as error:
            raise OutputFailed(error.strerror or str(error)) from error

    def json(self, value: Any) -> None:
        """One JSON value on a line of its own."""
        self.line(json_text(value))

    def note(self, text: str) -> None:
        """A remark beside the result: on standard error, so that it never ends up in a pipe."""
        with suppress(OSError):  # what was done is done, and counts, whether or not it can be remarked on
            click.echo(text, err=True)

    def show(self, renderable: Any, *, err: bool = False) -> None:
        """Something of rich's, for a person."""
        self.rich(err=err).print(renderable)

    def table(
        self,
        headings: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        right: Sequence[int] = (),
        style: int | None = None,
        spare: Sequence[int] = (),
    ) -> None:
        """Rows under headings; the columns in ``right`` are aligned right, the one in ``style`` is coloured as a task status.

        On a terminal that is too narrow the columns in ``spare`` are left out, in that order, until the others fit.
        """
        if self.person:
            self.show(_rich_table(headings, [*rows], right, style, _Fit(spare, self.rich().width)))
        else:
            for text in plain_table(headings, rows, right):
                self.line(text)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one pair a line. The values are printed as they come: make them printable first."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            label = click.style(name.ljust(width), dim=True) if self.coloured else name.ljust(width)
            self.line(f"{label}  {value}".rstrip())


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream leads to a terminal that knows escape sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class _Fit:
    """Which columns of a table have room on a terminal, and how wide they may be."""

    GAP = 3
    LAST_LEAST = 10
    """The last column may be cut, but less than this of it says nothing."""

    def __init__(self, spare: Sequence[int], width: int) -> None:
        self._spare, self._width = spare, width

    def columns(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[int, int]:
        """The columns that are shown, with their widths."""
        from rich.cells import cell_len

        kept = {at: max(cell_len(printable(row[at])) for row in (headings, *rows)) for at in range(len(headings))}
        last = len(headings) - 1
        for spare in self._spare:
            if self._over(kept | ({last: min(kept[last], self.LAST_LEAST)} if last in kept else {})) > 0:
                del kept[spare]
        for flexible in (last, 0):  # the first one, an id, goes on in the next line rather than be cut
            if flexible in kept:
                kept[flexible] = max(1, kept[flexible] - max(0, self._over(kept)))
        return kept

    def _over(self, kept: dict[int, int]) -> int:
        return sum(kept.values()) + self.GAP * (len(kept) - 1) - self._width


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int], style: int | None, fit: _Fit) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    shown = fit.columns(headings, rows)
    for index, width in shown.items():
        side: Any = "right" if index in right else "left"
        cut: Any = "ellipsis" if index else "fold"
        table.add_column(headings[index], justify=side, no_wrap=index > 0, overflow=cut, width=width)
    for row in rows:
        table.add_row(*(Text(printable(row[index]), style=STATUS_STYLE.get(row[index], "") if index == style else "") for index in shown))
    return table


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Iterable[str]:
    """The rows as text: columns as wide as they need to be, two spaces between them, headings in capitals."""
    cells = [[heading.upper() for heading in headings], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        aligned = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(aligned).rstrip()


@dataclass
class Settings:
    """What the global options said."""

    queue_dir: Path = DEFAULT_DIR
    queue_given: bool = False
    """Whether ``--queue`` was typed, as against the default or the environment."""
    as_json: bool = False
    _console: Console | None = field(default=None, repr=False)

    @property
    def console(self) -> Console:
        """Where this run prints. Made when first asked for, because ``--json`` may stand behind the command's name as well."""
        if self._console is None:
            self._console = Console(as_json=self.as_json)
        return self._console
