"""The soak in small: the same code as ``scripts/soak``, for as long as a test may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from soak.run import Soak, rescues

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path) -> None:
    """Publishers, three kinds of consumers, both brokers and the manager for a few seconds; then the files give account."""
    report = Soak(tmp_path / "queue", seconds=10, seed=12737, every=1.5, rate=200).run()
    assert {"consumer", "publisher_broker", "consumer_broker", "manager"} <= report["kills"].keys(), "this seed strikes all of them early"
    assert report["acknowledged"] > 500
    assert (report["lost"], report["completed_twice"], report["other"]) == (0, 0, [])


def test_whoever_ends_without_being_killed_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher's thread, a consumer and a manager: what is left would go on, and all that it acknowledged would be there."""

    class Broken:
        def __init__(self, *given: object, **options: object) -> None:
            raise TypeError("no")

    monkeypatch.setattr("soak.run.Publisher", Broken)
    soak = Soak(tmp_path / "queue", seconds=1, seed=1, every=1, rate=6)
    with soak.cast:
        soak._publish(2)
        ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        ended.wait()
        monkeypatch.setattr(soak, "_work", lambda number: "another")
        monkeypatch.setattr(soak, "_serve", lambda: "another")
        consumers = [ended]
        soak._look_after(consumers, [ended])
    assert consumers == [soak._manager] == ["another"]
    ends = "ended by itself with status 3"
    assert soak.wrong == ["p2 ended: TypeError: no", f"c0 {ends}", f"the manager {ends}"]


def test_a_dead_consumers_task_is_rescued_at_once(tmp_path: Path) -> None:
    """Far sooner than its lease of ten minutes: how soon is measured by ``scripts/soak --rescues``."""
    assert rescues(tmp_path / "queue", 2)["max_ms"] < 10_000
