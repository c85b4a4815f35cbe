"""The fault lanes, in the sizes that every run of the tests affords. ``scripts/faults`` runs the same ones for as long as one likes."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from faults.lanes import run_lane
from faults.power import why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

HALVES = ("0/2", "1/2")


@pytest.mark.parametrize("options", [("--only", "9"), ("--share", "2/2"), ("--share", "1")])
def test_a_lane_that_tries_nothing_is_not_clean(options: tuple[str, ...]) -> None:
    """A part of the work that is none, or a share beyond the last: it says so, and there is no report to take for a good one."""
    report = run_lane("damage", *options)
    assert report["status"] in {1, 2}
    assert "found" not in report


def _clean(name: str, *options: str) -> dict[str, Any]:
    report = run_lane(name, *options, timeout=270)
    assert report["status"] == 0, report["output"]
    assert report["found"] == 0
    return report


@pytest.mark.parametrize("share", HALVES)
def test_killed_at_any_storage_call(share: str) -> None:
    """kill -9 at every storage call, in the midst of writes, and again within recoveries: nothing promised is lost."""
    report = _clean("kill", "--random", "2000", "--share", share)
    assert report["kills"] > 2_500
    assert report["kills within a recovery"] > 500


@pytest.mark.parametrize("share", HALVES)
def test_every_state_a_power_cut_may_leave(share: str) -> None:
    """All states of a disk weaker than any in use, at each operation of each file protocol; from some of them a second time."""
    report = _clean("states", "--second", "400", "--share", share)
    assert report["states"] > 2_400
    assert report["second states"] > 1_000
    assert "operations with more states than looked at" not in report


@pytest.mark.parametrize("share", ["0/4", "1/4", "2/4", "3/4"])
def test_every_prefix_and_every_bit(share: str) -> None:
    """Each prefix of three logs, each bit of one and of its queue.json, each subset of a torn batch's sectors, and wilder damage:
    repaired, or refused; never silent, and never at the price of a snapshot."""
    report = _clean("damage", "--wild", "200", "--share", share)
    assert report["prefixes"] > 40_000
    assert report["bits of a log"] > 120_000
    assert report["bits of queue.json"] > 1_000
    assert report["bits of padding"] > 2_000
    assert report["subsets of sectors"] == 3 * 1_024
    assert sum(number for what, number in report.items() if what.startswith("wild: ")) == 3 * 50
    assert report.get("stale files", 0) == (3 if share == "0/4" else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("share", HALVES)
def test_every_call_to_the_system_fails(share: str) -> None:
    """EIO, ENOSPC, EDQUOT, EMFILE and short writes, once and for ever: a refusal is one, an answer too, and no failed fsync is retried."""
    report = _clean("errors", "--stride", "25", "--share", share)
    assert report["faults"] > 500
    assert report["lived on"] > 50
    assert "faults that nothing ran into" not in report


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done here")
@pytest.mark.parametrize("seed", ["1", "2"])
def test_power_cuts_of_a_real_filesystem(seed: str) -> None:
    """ext4 is shut down without a flush while brokers work on it, and again while they recover: what was promised before is there."""
    report = run_lane("power", "--cuts", "250", "--seed", seed, prefix=("unshare", "-m"), timeout=270)
    assert report["status"] == 0, report["output"]
    assert report["power cuts"] >= 250
    assert report["power cuts within a recovery"]
    assert report["acknowledged"] > report["power cuts"], "else nothing was at stake"


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done here")
def test_a_disk_without_a_byte_to_spare() -> None:
    """On a tmpfs and an ext4 that another program fills: publishing is refused, completions land, brokers that are killed wait for room;
    and service resumes by itself."""
    report = run_lane("full", prefix=("unshare", "-m"), timeout=100)
    assert report["status"] == 0, report["output"]
    assert report["disks"] == 2
    assert report["brokers that waited for room"] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_million_malformed_frames() -> None:
    """Both brokers take each of them for what it is and work on; what they hold does not grow."""
    report = _clean("frames")
    assert report["malformed frames"] >= 1_000_000
    assert report["odd events"] > 50_000, "some of it went deeper"


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_one_of_eight_starters_has_the_lock() -> None:
    """A thousand rounds, most of them in a fresh folder: exactly one wins, the others are told who and have written nothing."""
    report = _clean("race")
    assert report["rounds"] == 1_000
    assert report["fresh folders"] > 600
    assert report["winners that died"] > 50
