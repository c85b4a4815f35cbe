"""Eight starters reach for a lock at once, round after round: one has it, the others are told who, and have written nothing.

The starters are forks that live on from round to round, so that a round costs no more than its calls to the kernel. Mostly they race in a
fresh folder, for the making of the lock file too, else for the file that the round before left. Now and then the winner dies with the
lock in its hands, and another fork takes its place.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from random import Random

from faults.lanes import Lane, arguments, fast_folder
from jsonqueue.errors import ManagerRunning
from jsonqueue.storage.locks import FolderLock, hold

__all__ = ["main"]

STARTERS = 8
REACH, LET_GO, DIE = b"+", b"-", b"!"
WON, LOST, FAILED = b"w", b"l", b"?"


class Starter:
    """A process that reaches for the lock when it is told to, and lets go when it is told to, or dies."""

    def __init__(self, root: Path) -> None:
        self._ears, self._mouth = os.pipe()
        self._ear, self._told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._live(root)

    def tell(self, word: bytes) -> None:
        os.write(self._mouth, word)

    def answer(self) -> bytes:
        return os.read(self._ear, 1)

    def end(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        for fd in (self._ears, self._mouth, self._ear, self._told):
            os.close(fd)
        return os.waitstatus_to_exitcode(status)

    def _live(self, root: Path) -> None:
        """In the fork; never returns."""
        held: FolderLock | None = None
        while word := os.read(self._ears, 1):
            if word == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == LET_GO and held is not None:
                held.release()
                os.write(self._told, LET_GO)
            else:
                try:
                    held = hold(root / "queue", "queue", what="a starter")
                    os.write(self._told, WON)
                except ManagerRunning as error:
                    os.write(self._told, LOST if "process" in error.holder else FAILED)
                except BaseException:  # noqa: BLE001 - counted by whoever told it to
                    os.write(self._told, FAILED)
        os._exit(0)


class Race:
    """Rounds, one after the other."""

    def __init__(self, lane: Lane, root: Path, chance: Random) -> None:
        self._lane, self._root, self._chance = lane, root, chance
        self._queue_dir = root / "queue"
        self._starters = [Starter(root) for _ in range(STARTERS)]

    def round(self) -> None:
        """One round, judged."""
        if not self._queue_dir.exists():
            self._queue_dir.mkdir()
            self._lane.counts["fresh folders"] += 1
        for starter in self._starters:
            starter.tell(REACH)
        answers = [starter.answer() for starter in self._starters]
        assert sorted(answers) == [LOST] * (STARTERS - 1) + [WON], answers
        place = answers.index(WON)
        told = (self._queue_dir / "queue.lock").read_bytes()
        said = json.loads(told)
        assert (said["pid"], said["what"]) == (self._starters[place].pid, "a starter"), told
        assert os.listdir(self._queue_dir) == ["queue.lock"]
        self._part_with(place)
        if self._chance.random() < 0.75:
            shutil.rmtree(self._queue_dir)

    def _part_with(self, place: int) -> None:
        """The winner lets go, or dies."""
        if self._chance.random() < 0.9:
            self._starters[place].tell(LET_GO)
            assert self._starters[place].answer() == LET_GO
        else:
            self._starters[place].tell(DIE)
            os.waitid(os.P_PID, self._starters[place].pid, os.WEXITED | os.WNOWAIT)
            self._starters[place].end()
            self._starters[place] = Starter(self._root)
            self._lane.counts["winners that died"] += 1

    def end(self) -> None:
        for starter in self._starters:
            starter.end()


def main() -> None:
    options = arguments("eight starters, one lock", rounds=1_000)
    lane = Lane(options)
    if sys.platform == "win32":
        sys.exit("it forks")
    with fast_folder() as root:
        race = Race(lane, root, Random(options.seed))
        try:
            for number in range(options.rounds):
                if lane.over:
                    break
                lane.attempt(f"round {number}", race.round)
                lane.counts["rounds"] += 1
        finally:
            race.end()
    lane.end()


if __name__ == "__main__":
    main()
