"""A disk that is really full: a small tmpfs and a small ext4, on which another program leaves no byte.

Publishing is refused, what consumers hold is completed all the same (from the reserve), and everything goes on when there is room again.
Run it under ``unshare -m``, as root.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from msgspec.structs import replace

import faults.life
from faults.lanes import Lane, arguments, fast_folder
from faults.life import CONFIG, Ledger, Life, judge
from faults.power import Disk, make_folders, run, why_not

__all__ = ["main"]

RESERVE = 4 << 20


def main() -> None:
    lane = Lane(arguments("a disk without room"))
    reason = why_not()
    if reason:
        sys.exit(reason)
    faults.life.CONFIG = replace(CONFIG, disk_reserve_bytes=RESERVE, segment_max_bytes=1 << 20)
    with fast_folder() as folder:
        disk = Disk(folder)
        try:
            lane.attempt("ext4", lambda: _fill_and_go_on(lane, disk.root))
        finally:
            disk.close()
        root = folder / "tmpfs"
        root.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(root))
        lane.attempt("tmpfs", lambda: _fill_and_go_on(lane, root))
        lane.counts["disks"] = 2
    lane.end()


def _fill_and_go_on(lane: Lane, root: Path) -> None:
    ledger = Ledger()
    files = make_folders(root / "queue")
    life = Life(files, ledger.hear)
    life.start()
    for number in range(40):
        life.publish(f"a{number}", size=50_000)
    filler = root / "filler"
    _take_everything(filler)
    life.clock.ms += 1_000
    life.publish("refused")
    assert ledger.refused == {"refused"}
    for _ in range(20):
        life.complete(2)
    lane.counts["completed on a full disk"] += len(ledger.completed)
    assert len(ledger.completed) >= 20, f"only {len(ledger.completed)} were completed"
    filler.unlink()
    life.clock.ms += 1_000
    life.publish("refused")
    assert "refused" in ledger.acknowledged
    life.close()
    judge(files, ledger)
    files.shut()


def _take_everything(filler: Path) -> None:
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT)
    piece = 1 << 20
    while piece:
        try:
            os.write(handle, b"x" * piece)
            os.fsync(handle)
        except OSError:
            piece //= 2
    os.close(handle)


if __name__ == "__main__":
    main()
