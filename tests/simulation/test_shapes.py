"""Worlds of shapes that no seed draws keep every promise; and bugs that only such a world can show are shown by it."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest

from jsonqueue.core.dispatching import Dispatcher
from jsonqueue.simulation import Verdict
from jsonqueue.storage import segments
from simulation.holes import changed
from simulation.shapes import chain, late_epochs, looked_at

SHAPES = [chain, late_epochs, looked_at]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_sound(shape: Callable[[int], Verdict]) -> None:
    """Two of each."""
    for seed in range(2):
        verdict = shape(seed)
        assert verdict.ok, verdict.violation


def test_a_chain_dies_link_by_link() -> None:
    """All of it, each time."""
    verdict = chain(0, links=100)
    assert verdict.ok, verdict.violation
    assert verdict.totals.dead == 100
    assert verdict.counts["replay"] >= 2


def _dies_by_recursion(self: Dispatcher, record: Any, now: Any) -> None:
    self._note_end(record)
    for died in self._dependencies.died_with(record.ids, self.state.tasks):
        self.turn.records.append(died)
        self.state.apply(died, at_ms=now.wall_ms)
        _dies_by_recursion(self, died, now)


_EIGHT_DIGITS = re.compile(r"(published|progress)-(\d{12})-(\d{8})\.jsonl")
_LOOK_AGAIN = "if tries == PATIENCE or _segments_in(files) == _segments_in(reading):"

BUGS: dict[str, tuple[Callable[[int], Verdict], Callable[[], AbstractContextManager[Any]]]] = {
    "a chain dies by recursion": (
        lambda seed: chain(seed, links=1_100),
        lambda: patch.object(Dispatcher, "_follow_death", _dies_by_recursion),
    ),
    "an epoch has eight digits": (late_epochs, lambda: patch.object(segments, "_NAME", _EIGHT_DIGITS)),
    "what went on in another file is damage": (looked_at, lambda: changed("storage/looking.py", _LOOK_AGAIN, "if tries:")),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    """By the first seed."""
    shape, plant = BUGS[name]
    with plant():
        assert not shape(0).ok, "it went unseen"
