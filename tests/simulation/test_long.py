"""The long run keeps account, goes on where it stopped, and keeps the seeds that fail."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from jsonqueue.simulation import run_seed
from simulation.long import Account, LongRun, run_chunk
from simulation.planted import BUGS
from simulation.test_regressions import Regression


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Two runs of a few seeds are one account, without a gap and without a repetition."""
    for _ in range(2):
        run = LongRun(tmp_path, seeds=7, jobs=2, until_s=float("inf"), first=None)
        run.run()
        assert run.this.seeds == 7
    account = msgspec.json.decode((tmp_path / "account.json").read_bytes(), type=Account)
    assert (account.seeds, account.next_seed, account.failed) == (14, 1_000_014, [])
    assert account.virtual_s > 0


def test_a_seed_that_fails_is_kept_as_a_regression(tmp_path: Path) -> None:
    """Shrunk, in the form of tests/regressions: it fails as long as the bug is there, and no longer."""
    with BUGS["newest first"].plant():
        chunk = run_chunk(0, 1)
        run = LongRun(tmp_path, seeds=1, jobs=1, until_s=0.0, first=0)
        run._take(0, chunk)
        kept = msgspec.json.decode((tmp_path / "seed-0.json").read_bytes(), type=Regression)
        again = run_seed(kept.seed, kept.scenario)
        assert again.violation == kept.found != ""
    assert run_seed(kept.seed, kept.scenario).ok
    assert json.loads((tmp_path / "account.json").read_text())["failed"] == [0]
