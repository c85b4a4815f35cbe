"""The sum of many facts, and whether two sums are equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jsonqueue.cli.demo.facts import Facts

__all__ = ["Figure", "Totals"]

SUMMED = {
    "bytes": "bytes", "lines": "lines", "functions": "functions", "async_functions": "async functions", "classes": "classes",
    "imports": "imported names", "values": "values", "keys": "keys", "characters": "characters of text",
}  # fmt: skip
"""Facts that add up → what a person calls them."""


@dataclass(frozen=True)
class Figure:
    """One line of the comparison."""

    name: str
    queue: int | str
    direct: int | str
    equal: bool
    """Of everything behind the figures; a longest function is more than its number of lines."""


@dataclass
class Totals:
    """Everything the tasks found, added up."""

    tasks: int = 0
    errors: int = 0
    sums: dict[str, int] = field(default_factory=dict)
    deepest: int = 0
    longest: tuple[int, str, str] = (0, "", "")
    """Lines, name and file of the longest function."""

    def add(self, where: str, facts: Facts) -> None:
        """Add one task's facts. The order of additions makes no difference."""
        self.tasks += 1
        self.errors += "error" in facts
        for name in SUMMED:
            if name in facts:
                self.sums[name] = self.sums.get(name, 0) + facts[name]
        self.deepest = max(self.deepest, facts.get("depth", 0))
        # Of two functions of one length the one whose name comes last counts, whichever was seen first.
        self.longest = max(self.longest, (facts.get("longest_function_lines", 0), facts.get("longest_function", ""), where))

    def merge(self, other: Totals) -> None:
        """Add another sum."""
        self.tasks += other.tasks
        self.errors += other.errors
        for name, number in other.sums.items():
            self.sums[name] = self.sums.get(name, 0) + number
        self.deepest = max(self.deepest, other.deepest)
        self.longest = max(self.longest, other.longest)

    def compare(self, direct: Totals, *, things: str) -> list[Figure]:
        """Each figure beside the one of a direct pass."""
        figures = [_figure(things, self.tasks, direct.tasks)]
        figures += [
            _figure(title, self.sums.get(name, 0), direct.sums.get(name, 0))
            for name, title in SUMMED.items()
            if name in self.sums or name in direct.sums
        ]
        if self.longest[0] or direct.longest[0]:
            ours, theirs = (f"{longest[0]:,} lines" for longest in (self.longest, direct.longest))
            figures.append(Figure("longest function", ours, theirs, self.longest == direct.longest))
        if self.deepest or direct.deepest:
            figures.append(_figure("deepest nesting", self.deepest, direct.deepest))
        if self.errors or direct.errors:
            figures.append(_figure("not valid Python", self.errors, direct.errors))
        return figures

    @property
    def longest_function(self) -> str:
        """The longest function as a person says it."""
        lines, name, where = self.longest
        return f"{name} in {where}, {lines:,} lines" if lines else ""

    @classmethod
    def told(cls, said: dict[str, Any]) -> Totals:
        """The totals that another process said."""
        lines, name, where = said["longest"]
        return cls(said["tasks"], said["errors"], said["sums"], said["deepest"], (lines, name, where))


def _figure(name: str, queue: int, direct: int) -> Figure:
    return Figure(name, queue, direct, queue == direct)
