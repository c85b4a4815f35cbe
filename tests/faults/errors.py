"""Every call to the system fails, once and for ever, with each error it may give.

The real storage code runs with a stand-in for the ``os`` module. When an error makes the brokers give up, they are started again: first
while the disk still fails (for ever means for ever), then after it was put right. A refusal must be a refusal, an answer an answer; and a
file whose fsync failed is neither synced nor written to again.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any, NamedTuple

from faults.lanes import Lane, arguments, fast_folder
from faults.life import Ledger, Life, StillOpenError, judge, recover, the_life
from jsonqueue.errors import CorruptQueue, JsonQueueError
from jsonqueue.storage import files as real
from jsonqueue.storage.files import RealFiles

__all__ = ["main"]

CALLS = (
    "open", "pread", "pwrite", "ftruncate", "fstat", "fdatasync", "fsync", "replace", "link", "unlink", "listdir", "stat", "lstat",
    "fstatvfs",
)  # fmt: skip
CREATE = "open, to create"
NO_ROOM = frozenset({"pwrite", CREATE, "link", "replace"})
SHORT = -1


class Fault(NamedTuple):
    call: int
    error: int
    """An errno, or SHORT: half of what was to be written is."""
    for_ever: bool

    def __str__(self) -> str:
        name = "short write" if self.error == SHORT else errno.errorcode[self.error]
        return f"{name} at call {self.call}{' and ever after' if self.for_ever else ''}"


class FaultyOs:
    """``os``, as the storage code sees it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fault: Fault | None = None
        self.fired = False
        self.failed_syncs: set[str] = set()
        self.broken_rule = ""
        self.calls = 0
        self._armed = False
        for name in CALLS:
            setattr(self, name, self._tapped(name, getattr(os, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def arm(self, fault: Fault | None) -> None:
        """From now on calls are counted, and this one of them fails."""
        self.fault, self.fired, self.calls, self._armed = fault, False, 0, True
        self.names.clear()

    def put_right(self) -> None:
        self.fault, self._armed = None, False

    def _tapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def tapped(*given: Any, **options: Any) -> Any:
            if self._armed:
                self.calls += 1
                self.names.append(_kind_of(name, given))
            if name in {"fdatasync", "pwrite"} and os.readlink(f"/proc/self/fd/{given[0]}") in self.failed_syncs:
                self.broken_rule = f"{name} of a file whose fsync had failed"
            fault = self.fault
            due = fault is not None and self.calls >= fault.call and (fault.for_ever or not self.fired)
            if fault is not None and due and _may_fail(name, given, fault.error):
                return self._fail(name, call, given, fault)
            return call(*given, **options)

        return tapped

    def _fail(self, name: str, call: Callable[..., Any], given: tuple[Any, ...], fault: Fault) -> Any:
        self.fired = True
        if fault.error == SHORT:
            return call(given[0], given[1][: max(1, len(given[1].rstrip(b"\n")) // 2)], given[2])
        if name == "fdatasync":
            path = os.readlink(f"/proc/self/fd/{given[0]}")
            if path.endswith(".jsonl") and "/archive/" not in path:  # What was not committed of an archive is cut away, and written anew.
                self.failed_syncs.add(path)
        raise OSError(fault.error, os.strerror(fault.error))


def _kind_of(name: str, given: tuple[Any, ...]) -> str:
    return CREATE if name == "open" and given[1] & os.O_CREAT else name


def _may_fail(name: str, given: tuple[Any, ...], error: int) -> bool:
    if error in {errno.ENOSPC, errno.EDQUOT}:
        return _kind_of(name, given) in NO_ROOM
    if error == errno.EMFILE:
        return name == "open"
    if error == SHORT:
        return name == "pwrite"
    return True


def main() -> None:
    options = arguments("every call to the system fails", stride=1, pairs=0)
    lane = Lane(options)
    faulty = FaultyOs()
    real.os = faulty  # type: ignore[assignment]
    real._data_sync = faulty.fdatasync
    with fast_folder() as base:
        recovery = _calls_of_recovery(base, faulty)
        _trial(lane, base, faulty, None)
        names = list(faulty.names)
        lane.counts["calls to the system in the life"] = len(names)
        faults = [
            Fault(at, error, for_ever)
            for at, name in enumerate(names, 1)
            for error in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, SHORT)
            for for_ever in (False, True)
            if name in _candidates(error)
        ]
        for number, fault in enumerate(faults):
            if lane.over:
                break
            # Reads of every kind are many and alike; what changes something is never left out.
            common = names[fault.call - 1] in {"open", CREATE, "pread", "fstat", "listdir", "stat"}
            if lane.is_mine(number) and (not common or number // options.share[1] % options.stride == 0):
                lane.attempt(f"{fault} ({names[fault.call - 1]})", lambda fault=fault: _trial(lane, base, faulty, fault))
        mine, of = options.share
        chance = Random(options.seed * 1_000 + mine)
        for _ in range(options.pairs // of + (mine < options.pairs % of)):
            if lane.over:
                break
            fault, then = chance.choice(faults), chance.choice(faults)._replace(call=chance.randint(1, recovery))
            lane.attempt(f"{fault}, then {then}", lambda fault=fault, then=then: _trial(lane, base, faulty, fault, then=then))
    lane.end()


def _calls_of_recovery(base: Path, faulty: FaultyOs) -> int:
    """How many there are in what follows a life that was cut short in its middle, about."""
    files, ledger = _files(base / "queue"), Ledger()
    with suppress(OSError, JsonQueueError):
        faulty.arm(Fault(300, errno.EIO, for_ever=True))
        the_life(Life(files, ledger.hear), ledger.hear)
    faulty.arm(None)
    recover(files, ledger, ledger.hear, generation=1)
    faulty.put_right()
    faulty.failed_syncs.clear()
    files.shut()
    rmtree(base / "queue")
    return faulty.calls


def _files(root: Path) -> RealFiles:
    root.mkdir(mode=0o700)
    for name in ("archive", "previous"):
        (root / name).mkdir(mode=0o700)
    return RealFiles(root)


def _candidates(error: int) -> frozenset[str] | set[str]:
    if error in {errno.ENOSPC, errno.EDQUOT}:
        return NO_ROOM
    return {"open", CREATE} if error == errno.EMFILE else {"pwrite"} if error == SHORT else {*CALLS, CREATE}


def _trial(lane: Lane, base: Path, faulty: FaultyOs, fault: Fault | None, *, then: Fault | None = None) -> None:
    root = base / "queue"
    files, ledger = _files(root), Ledger()
    outcome: Counter[str] = Counter()
    try:
        faulty.failed_syncs.clear()
        faulty.broken_rule = ""
        faulty.arm(fault)
        outcome[_lived(lambda: the_life(Life(files, ledger.hear), ledger.hear))] += 1
        _count(outcome, fault, faulty)
        if then:
            faulty.arm(then)
        if fault and (fault.for_ever or then):
            outcome[_lived(lambda: recover(files, ledger, ledger.hear, generation=1))] += 1
        if then:
            _count(outcome, then, faulty)
        faulty.put_right()
        judge(files, ledger, generation=9, drain=fault is None or fault.call % 4 == 0)
        assert not faulty.broken_rule, faulty.broken_rule
    finally:
        faulty.put_right()
        files.shut()
        rmtree(root)
        _close_leftovers()
    lane.counts.update(outcome)


def _count(outcome: Counter[str], fault: Fault | None, faulty: FaultyOs) -> None:
    """A fault that nothing ran into has tried nothing out."""
    if fault is not None:
        outcome["faults" if faulty.fired else "faults that nothing ran into"] += 1


def _lived(work: Callable[[], None]) -> str:
    """How it ended: an error of the kinds that end a broker's process in good order, or not at all."""
    try:
        work()
    except CorruptQueue as error:
        raise AssertionError(f"a sound queue is called damaged for an error of the system: {error}") from error
    except (JsonQueueError, OSError):
        return "ended by the error"
    except StillOpenError:
        return "stood still"  # As long as there is no room; the judgement, with room, does not forgive it.
    return "lived on"


def _close_leftovers() -> None:
    """A process that ends closes its files; this one goes on."""
    os.closerange(10, 200)


if __name__ == "__main__":
    main()
