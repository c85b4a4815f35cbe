"""Seeds that once failed, each kept as the scenario it ran under, in tests/regressions; they must never fail again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from jsonqueue.simulation import Scenario, run_seed

FOLDER = Path(__file__).resolve().parents[1] / "regressions"
KEPT = sorted(FOLDER.glob("*.json"))


class Regression(msgspec.Struct, forbid_unknown_fields=True):
    """One file of the folder."""

    what: str
    """What was wrong then."""
    found: str
    """What the judges said."""
    seed: int
    scenario: Scenario


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_was_mended_stays_mended(path: Path) -> None:
    """The run that showed a bug is a run without a fault now."""
    kept = msgspec.json.decode(path.read_bytes(), type=Regression)
    verdict = run_seed(kept.seed, kept.scenario)
    assert verdict.ok, f"{kept.what}: {verdict.violation}"


def test_there_are_some() -> None:
    """An empty folder would pass unseen."""
    assert KEPT
