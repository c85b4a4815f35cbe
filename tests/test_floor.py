"""What benchmarks/floor.py measures."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def floor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    import floor

    return floor


def test_each_line_is_timed_from_its_publisher_to_its_worker(floor, tmp_path: Path) -> None:
    """But for those that warm up; and it leaves nothing behind."""
    waited = floor.latencies_ms(tmp_path, tasks=3)
    assert len(waited) == 3
    assert min(waited) > 0, "none is there before it was sent"
    assert list(tmp_path.iterdir()) == []


def test_all_lines_of_all_publishers_are_counted(floor, tmp_path: Path) -> None:
    """Two publishers and two workers, who share what there is."""
    assert floor.publish_rate(tmp_path, publishers=2, tasks=20) > 0
    assert floor.both_rate(tmp_path, publishers=2, workers=2, tasks=20) > 0
    assert list(tmp_path.iterdir()) == []
