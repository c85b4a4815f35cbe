"""All states a disk may be found in after a power cut, at each operation of each file protocol, and what becomes of them.

The disk is weaker than any in use: each name that was created, renamed, linked or unlinked and not synced is there or not by itself (the
two halves of a rename too, and what stood under the name in between), each unsynced sector is there or not, a file ends at any sector.
Every different state is judged. With ``--second``, one in so many of them is recovered on such a disk again, and up to 400 states of that
are judged too. With ``--third``, one in so many of these is recovered from once more, and up to 20 states of that are judged.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from itertools import islice, product
from random import Random
from typing import Any

from faults.lanes import Lane, arguments
from faults.life import Ledger, Life, damage_queue, judge, recover
from jsonqueue.storage import log
from jsonqueue.storage.files import write_all
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.repair import mend
from jsonqueue.storage.segments import LogKind, segments_of

__all__ = ["PROTOCOLS", "WeakDisk", "main"]

SECTOR = 512
State = tuple[tuple[str, bytes], ...]
"""(name, bytes) of every file, by name."""


class WeakDisk(MemoryFiles):
    """Remembers what each name stood for since its folder was last synced."""

    def __init__(self, state: State = ()) -> None:
        super().__init__()
        self.pending: dict[str, list[Any]] = {}
        for name, data in state:
            self.put(name, data)

    def open(self, name: str, *, create: bool = False) -> int:
        handle = super().open(name, create=create)
        if create:
            self._note(name)
        return handle

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self._note(old, new)

    def link(self, old: str, new: str) -> None:
        super().link(old, new)
        self._note(new)

    def unlink(self, name: str) -> None:
        super().unlink(name)
        self._note(name)

    def sync_folder(self, name: str = "") -> None:
        super().sync_folder(name)
        self.pending = {known: what for known, what in self.pending.items() if known.rpartition("/")[0] != name}

    def _note(self, *names: str) -> None:
        for name in names:
            self.pending.setdefault(name, []).append(self._names.get(name))

    def states(self) -> Iterator[State]:
        """Every state the disk may be found in, if the power goes now."""
        names = sorted({*self._durable, *self.pending})
        choices = [_different([self._durable.get(name), *self.pending.get(name, ())]) for name in names]
        for chosen in product(*choices):
            there = {name: inode for name, inode in zip(names, chosen, strict=True) if inode is not None}
            inodes = _different(list(there.values()))
            for contents in product(*(list(_contents(inode)) for inode in inodes)):
                data = {id(inode): found for inode, found in zip(inodes, contents, strict=True)}
                yield tuple((name, data[id(inode)]) for name, inode in there.items())


def _different(found: list[Any]) -> list[Any]:
    return list({id(one): one for one in found}.values())


def _contents(inode: Any) -> Iterator[bytes]:
    old, new = bytes(inode.durable), bytes(inode.volatile)
    if old == new:
        yield old
        return
    planes = [old, new, *([bytes(inode.cut)] if inode.cut else ())]
    low, high = min(len(old), len(new)), max(len(old), len(new))
    for size in sorted({len(old), len(new), *range(-(-low // SECTOR) * SECTOR, high, SECTOR)}):
        cut = [plane[:size].ljust(size, b"\0") for plane in planes]
        sectors = [dict.fromkeys(plane[at : at + SECTOR] for plane in cut) for at in range(0, size, SECTOR)]
        yield from map(b"".join, product(*sectors))


# ── the protocols ────────────────────────────────────────────────────────────────────────────────────────────────────


def _busy(files: MemoryFiles, ledger: Ledger) -> Life:
    """A queue with a previous generation, logs that go on from it, a task in flight, others that have ended."""
    life = Life(files, ledger.hear)
    life.start()
    life.publish("a0", "a1", "a2")
    life.complete()
    life.checkpoint()
    life.publish("b0", "b1", size=600)
    life.complete(3)
    return life


def _append(life: Life, ledger: Ledger) -> None:
    """Large ones, small ones; within the padding, up to its end and beyond; over what is left of it."""
    life.publish("x0", size=3_300)
    life.complete()
    life.publish("y0", size=900)
    life.publish("y1")
    life.publish("y2", size=400)


def _full(life: Life, ledger: Ledger) -> None:
    """A line of which a part fits is cut back; then there is room again. One that fits is kept, though its padding does not."""
    disk = life.files
    assert isinstance(disk, MemoryFiles)
    disk.room = 100
    life.publish("x0", size=1_750)
    assert "x0" in ledger.refused
    disk.room = 1 << 30
    life.clock.ms += 1_000
    life.publish("x1")
    disk.room = 400
    for number in range(2, 9):
        life.publish(f"x{number}", size=200)
    assert "x2" in ledger.acknowledged
    assert "x8" in ledger.refused
    disk.room = 1 << 30
    life.clock.ms += 1_000
    life.publish("x6")


def _checkpoint(life: Life, ledger: Ledger) -> None:
    life.checkpoint()


def _rotate(life: Life, ledger: Ledger) -> None:
    life.pb.rotate()
    life.cb.cut()
    life.publish("x0")


def _start(life: Life, ledger: Ledger) -> None:
    """Both brokers, each after a write that never became a batch."""
    for kind in LogKind:
        handle = life.files.open(segments_of(life.files, kind)[-1].name)
        lines = life.files.read(handle, 0, life.files.size(handle)).rstrip(b"\n")
        write_all(life.files, handle, len(lines) + 1, b'{"h":"02000')
        life.files.close(handle)
    again = Life(life.files, ledger.hear, generation=1)
    again.start()
    again.publish("x0")


def _final(life: Life, ledger: Ledger) -> None:
    life.stop()
    again = Life(life.files, ledger.hear, generation=1)
    again.start()
    again.publish("x0")


def _repair(life: Life, ledger: Ledger) -> None:
    life.close()
    damage_queue(life.files, ledger.hear)
    recover(life.files, ledger, ledger.hear, generation=1)


def _repair_log(life: Life, ledger: Ledger) -> None:
    """A wrong byte in the fixed part of a line."""
    life.close()
    name = segments_of(life.files, LogKind.PUBLISHED)[-1].name
    disk = life.files
    assert isinstance(disk, MemoryFiles)
    data = bytearray(disk.get(name))
    data[data.index(b"\n") + 20] ^= 4
    disk.put(name, bytes(data))
    ledger.hear("damaged")
    report = mend(disk, accept_loss=False, accept_edit=False, at_ms=life.clock.wall_ms())
    assert report.ok
    ledger.hear("mended")


def _first_start(life: Life, ledger: Ledger) -> None:
    first = Life(life.files, ledger.hear)
    first.start()
    first.publish("x0")
    first.complete()


Act = Callable[[Life, Ledger], None]
PROTOCOLS: dict[str, Act] = {
    "append": _append,
    "append on a full disk": _full,
    "checkpoint": _checkpoint,
    "rotate": _rotate,
    "start": _start,
    "final checkpoint": _final,
    "repair of queue.json": _repair,
    "repair of a log": _repair_log,
    "first start": _first_start,
}

# ── the lane ─────────────────────────────────────────────────────────────────────────────────────────────────────────

Case = tuple[str, State, Ledger]


def main() -> None:
    options = arguments("every crash state of every file protocol", second=0, third=0, most=200_000, only=-1)
    log.PADDING, log.SMALL = 1_024, 2_048  # Of a hundred sectors of padding any may be missing; a few show the same.
    lane = Lane(options)
    number = 0
    for place, (name, act) in enumerate(PROTOCOLS.items()):
        if options.only not in {-1, place}:
            continue
        for where, state, ledger in _cases(lane, name, act):
            number += 1
            if lane.over:
                break
            if not lane.is_mine(number):
                continue
            lane.counts["states"] += 1
            lane.counts[f"states of {name}"] += 1
            lane.attempt(f"{name}: {where}: {_shown(state)}", lambda state=state, ledger=ledger, n=number: _judged(state, ledger, n))
            if options.second and number // options.share[1] % options.second == 0:
                _again(lane, f"{name}: {where}", state, ledger)
    lane.end()


def _cases(lane: Lane, name: str, act: Act) -> Iterator[Case]:
    """Each different state, with the operation before which it was met and what was promised by then."""
    disk, ledger = WeakDisk(), Ledger()
    life = Life(disk, ledger.hear) if act is _first_start else _busy(disk, ledger)
    if act is not _first_start:
        disk.sync_folder()
        disk.sync_folder("previous")
        disk.sync_folder("archive")
    yield from _watch(lane, disk, ledger, lambda: act(life, ledger))


def _watch(lane: Lane, disk: WeakDisk, ledger: Ledger, work: Callable[[], None]) -> list[Case]:
    cases: list[Case] = []
    seen: set[bytes] = set()

    def look(number: int, operation: str) -> None:
        frozen = copy.deepcopy(ledger)
        met = islice(disk.states(), lane.options.most)
        for state in met:
            key = _key(state, frozen.words)
            if key not in seen:
                seen.add(key)
                cases.append((f"before {operation}", state, frozen))
        lane.counts["operations"] += 1
        if next(met, None) is not None:
            lane.counts["operations with more states than looked at"] += 1

    disk.fail = look
    work()
    look(0, "the end")
    return cases


def _key(state: State, words: int) -> bytes:
    """Another for another state, or for another number of words said by then."""
    digest = hashlib.blake2b(b"%d" % words, digest_size=12)
    for name, data in state:
        digest.update(b"\0%s\0%d\0" % (name.encode(), len(data)))
        digest.update(data)
    return digest.digest()


def _judged(state: State, ledger: Ledger, number: int) -> None:
    disk = MemoryFiles()
    for name, data in state:
        disk.put(name, data)
    judge(disk, copy.deepcopy(ledger), drain=number % 8 == 0)


def _again(lane: Lane, where: str, state: State, ledger: Ledger, *, cut: str = "second") -> None:
    """The power goes again while the state is recovered from; after that, maybe, a third time."""
    disk, ledger = WeakDisk(state), copy.deepcopy(ledger)
    try:
        cases = _watch(lane, disk, ledger, lambda: recover(disk, ledger, ledger.hear, generation=5))
    except Exception as error:  # noqa: BLE001 - any error is a finding
        lane.find(f"{where}: recovery of {_shown(state)}: {error!r}")
        return
    chance = Random(len(cases))
    for then, found, promised in chance.sample(cases, min(len(cases), 400 if cut == "second" else 20)):
        if lane.over:
            return
        lane.counts[f"{cut} states"] += 1
        so_far = f"{where}, then {then}"
        lane.attempt(f"{so_far}: {_shown(found)}", lambda found=found, promised=promised: _judged(found, promised, 1))
        if cut == "second" and lane.options.third and lane.counts["second states"] % lane.options.third == 0:
            _again(lane, so_far, found, promised, cut="third")


def _shown(state: State) -> str:
    return " ".join(f"{name}:{len(data)}" for name, data in state)


if __name__ == "__main__":
    main()
