"""kill -9 at every storage call of the canonical life, and again within what follows.

A fork server: everything is imported once; each trial is a fork of this process that lives the life on real files and kills itself with
SIGKILL at the n-th call (or in the middle of it, when that is a write). What it was promised goes through a pipe to this process, which is
the witness, and which then looks at the files. With ``depth``, the recovery is lived by another fork that is killed as well, and so on.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

from faults.lanes import Lane, arguments, fast_folder
from faults.life import Ledger, Life, judge, recover, the_life
from faults.tapped import Tapped
from jsonqueue.storage.files import RealFiles

__all__ = ["main"]

NEVER = 1 << 60
Work = Callable[[Any, Callable[[str], None]], None]


def main() -> None:
    options = arguments("kill -9 at every storage call", random=0, every=1, depth=3)
    lane = Lane(options)
    with fast_folder() as base:
        calls = _calls_of_life(base)
        lane.counts["storage calls in the life"] = calls
        if options.every:
            for at in range(1, calls + 1):
                if lane.is_mine(at) and not lane.over:
                    _trial(lane, base, [at], tear=False)
                    lane.counts["every call once"] += 1
        chance = Random(options.seed * 1_000 + options.share[0])
        mine, of = options.share
        for _ in range(options.random // of + (mine < options.random % of)):
            if lane.over:
                break
            kills = [chance.randint(1, calls), *(chance.randint(1, 160) for _ in range(chance.randint(0, options.depth - 1)))]
            _trial(lane, base, kills, tear=chance.random() < 0.5)
            lane.counts["random trials"] += 1
    lane.end()


def _calls_of_life(base: Path) -> int:
    files = _folder(base / "whole")
    tapped = Tapped(files, lambda *_: None)
    ledger = Ledger()
    the_life(Life(tapped, ledger.hear), ledger.hear)
    judge(files, ledger)
    files.shut()
    rmtree(base / "whole")
    return tapped.calls


def _trial(lane: Lane, base: Path, kills: list[int], *, tear: bool) -> None:
    root = base / "queue"
    ledger = Ledger()
    files = _folder(root)
    try:
        for generation, at in enumerate(kills):
            works: Work = _live if generation == 0 else _recovery(ledger, generation)
            killed = _fork(root, works, at, tear, ledger)
            lane.counts["kills"] += killed
            if generation and killed:
                lane.counts["kills within a recovery"] += 1
        lane.attempt(f"kill at {kills}{' torn' if tear else ''}", lambda: judge(files, ledger))
        lane.counts["acknowledged"] += len(ledger.acknowledged)
    except AssertionError as error:
        lane.find(f"kill at {kills}{' torn' if tear else ''}: {error}")
    finally:
        files.shut()
        rmtree(root)


def _folder(root: Path) -> RealFiles:
    root.mkdir(mode=0o700)
    for name in ("archive", "previous"):
        (root / name).mkdir(mode=0o700)
    return RealFiles(root)


def _live(files: Any, say: Callable[[str], None]) -> None:
    the_life(Life(files, say), say)


def _recovery(ledger: Ledger, generation: int) -> Work:
    return lambda files, say: recover(files, ledger, say, generation=generation)


def _fork(root: Path, work: Work, at: int, tear: bool, ledger: Ledger) -> bool:
    """Do the work in a fork that is killed at its n-th storage call; whether it was. Its words go to the ledger."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_killed(root, work, at, tear, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        words = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    whole, _, _ = words.rpartition(b"\n")
    for line in whole.decode().split("\n") if whole else ():
        ledger.hear(line)
    assert status in {0, -signal.SIGKILL}, f"it ended with {status}"
    return status != 0


def _be_killed(root: Path, work: Work, at: int, tear: bool, writer: int) -> None:
    """In the fork; never returns."""
    real = RealFiles(root)

    def tap(number: int, name: str, given: tuple[Any, ...]) -> None:
        if number >= at:
            if tear and name == "write_at":
                real.write_at(*given[:2], given[2][: len(given[2].rstrip(b"\n")) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        work(Tapped(real, tap), lambda word: os.write(writer, word.encode() + b"\n") and None)
    except BaseException:  # noqa: BLE001 - the parent hears of it by the exit status
        traceback.print_exc()
        os._exit(3)
    os._exit(0)


if __name__ == "__main__":
    main()
