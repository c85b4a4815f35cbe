"""The soak in small: the same code as ``scripts/soak``, for as long as a test may take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from soak.run import Soak, rescues

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path) -> None:
    """Publishers, three kinds of consumers, both brokers and the manager for a few seconds; then the files give account."""
    report = Soak(tmp_path / "queue", seconds=10, seed=1, every=1.5, rate=200).run()
    assert report["acknowledged"] > 500
    assert (report["lost"], report["completed_twice"], report["other"]) == (0, 0, [])


def test_a_dead_consumers_task_is_rescued_at_once(tmp_path: Path) -> None:
    """Far sooner than its lease of ten minutes: how soon is measured by ``scripts/soak --rescues``."""
    assert rescues(tmp_path / "queue", 2)["max_ms"] < 10_000
