"""What benchmarks/compare.py counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_task_that_warms_up_is_in_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody timed it: counted as done, it was one more than its time had room for, and its latency is that of a connection."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compare

    done = SimpleNamespace(value=0)
    waited: list[int] = []
    sent: list[dict[str, object]] = []
    sender = SimpleNamespace(one=sent.append, close=lambda: None)
    report = SimpleNamespace(send=lambda span: None)
    compare.publisher(SimpleNamespace(sender=lambda: sender), 3, "single", 0.0, report)
    handle = compare.counting(done, waited)
    for given in sent:
        handle(given)
    assert (len(sent), done.value, len(waited)) == (4, 3, 3)
