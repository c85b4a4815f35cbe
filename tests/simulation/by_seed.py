"""Which worlds of the swarm find the planted bugs of the fault work (tests/faults/planted.py): ``python -m simulation.by_seed``.

Each bug is planted in the running program, and the swarm's worlds are run from seed 0 on, until one of them shows it or the budget is
spent. Some need a world of their own.
What was found is kept in ``by_seed.json``, from where a test repeats it, and as a table in docs/track-record.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from msgspec.structs import replace

from faults.planted import BUGS, Bug
from jsonqueue.config import Config
from jsonqueue.retry import Linear
from jsonqueue.simulation import Fault, Habits, Scenario, run_seed
from simulation.holes import changed

SEEDS, SECONDS = 300, 60
"""The budget of a bug: so many worlds, and so much time of a processor."""
FILE = Path(__file__).with_name("by_seed.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "track-record.md"
_BEGIN, _END = "<!-- found by seeds -->\n", "<!-- end of found by seeds -->"

ELSEWHERE = (
    "broker/checkpointing.py", "broker/crew.py", "broker/manager.py", "broker/process.py", "broker/reception.py", "broker/restarts.py",
    "broker/sides.py", "channel/registration.py", "storage/files.py", "storage/locks.py", "storage/repair.py", "storage/salvage.py",
)  # fmt: skip
"""What a simulated world does not run: real processes, sockets, locks and files, and the repair."""

_ROT = "the disks of these worlds lose what was not synced, and alter nothing that was"
UNSEEN: dict[str, tuple[str, ...]] = {
    _ROT: (
        "a successor is not checked to continue its predecessor",
        "a log is not checked against what queue.json folded of it",
        "a missing log is taken for an empty one",
        "the log is cut at the first wrong checksum",
        "any NUL means torn",
        "any newline means torn",
        "a sector of newlines anywhere means torn",
        "a wrong byte in padding is a torn write",
        "no checksum of the header",
        "no checksum of the payload",
        "a batch behind the damage does not count",
        "queue.json's checksum is not checked",
        "a missing queue.json is an empty queue",
        "a log that is gone after a clean stop is not missed",
        "that a queue had its first queue.json is not known",
        "a damaged version is a newer one",
    ),
    "it takes from the repair alone what that needs": (
        "the generation before is not kept",
        "a queue.json has the name of the generation before while it is read",
        "the generation before is let go before the one in its place is certain",
        "what a checkpoint replaced counts for nothing before it has its name",
        "the segments between two generations are not kept",
        "a repair cuts off what was archived since the generation before",
    ),
    "a file of these disks can always be cut": ("a batch that cannot be cut back may be written over",),
    "with the durability of these worlds each batch is synced": ("queue.json holds what nobody synced in the log",),
    "the ids of these worlds are no run of numbers, and no write holds one twice": (
        "two tasks of one write may have one id",
        "an id that was forgotten in a run stays taken",
        "a second run of the same ids is taken for new ones",
    ),
    "the ids of these worlds are too few for shelves": (
        "an id that has moved to another shelf is free again",
        "a forget message about an earlier task drops a new one's id from its shelf",
    ),
    "it costs room, a file or a false report, and breaks no promise": (
        "a batch is refused because its padding does not fit",
        "a segment with padding is not known to be in its copy",
        "padding is a torn write",
        "a client that is to be dropped is answered on",
        "sealed segments are held without end",
        "a checkpoint that fails behind its draft keeps it",
        "a checkpoint that fails behind its draft keeps what it archived",
    ),
    "no disk of these worlds takes longer than a lease": (
        "consumers have to come back before they are let in",
        "a consumer is welcomed only once its first lease is durable",
        "a delivery whose write took long goes out as if it had not",
    ),
    "where a disk may be full, these worlds allow a run that is lost": (
        "a delivery that waited for room is leased from when it was decided",
    ),
    "no process of these worlds runs out of memory": ("a checkpoint for which there was no memory is told as done",),
    "no call of these worlds is seen half done": ("what is read in the midst of a write is damage at once",),
    "these disks tear a write between sectors, and never within one": ("a line that ends early in padding is damage",),
    "it guards what another rule already sees to, that nothing rests on what is not durable": (
        "progress may rest on batches that are not there",
    ),
    "nobody edits or takes away a file of these worlds": (
        "a checkpoint keeps an edit for the generation before",
        "a checkpoint replaces a queue.json that somebody put there meanwhile",
        "what has the name of a segment in previous/ is taken for it",
        "a segment that is removed behind the fold is missed",
        "a gap in a log is called damage of the file before it",
        "a publish is acknowledged in a file that somebody removed",
        "an outcome is acknowledged in a file that somebody removed",
        "what a removed log held is not saved",
        "a log that was removed and cannot be saved is not missed",
        "a rotation lets go of a file that was removed",
        "a sealed segment is let go of before it is folded",
        "what is folded is put back",
        "a sealed segment that was removed is not put back at the end",
        "a file is known by its name alone",
    ),
    "the numbers of the tasks are compared too, which does the same": ("a late forget message drops a new task's id",),
}
"""Why no world shows them."""

MISSED = {
    "a checkpoint leans on a queue.json that another one left half named",
    "a checkpoint that fails in place takes back what it archived",
}
"""No world shows them within the budget, for no reason that is known; other harnesses do, the small worlds among them."""

_BUSY = Config(
    retry=Linear(step_ms=20), attempts_max=1_000, flush_interval_ms=15, finished_keep_ms=400, segment_max_bytes=4_096, disk_reserve_bytes=0
)
_FULL_DISK = Scenario(
    tasks=80,
    batch=3,
    spread_us=2_000_000,
    habits=Habits(data_bytes=3_000),
    config=replace(_BUSY, flush_interval_ms=1_000),
)
FULL = replace(_FULL_DISK, faults=tuple(Fault(60_000 * n, "full disk", 2 * (n % 2), 50_000) for n in range(30)))
"""A disk with hardly any room, most of the time, and payloads that need some."""


def _full_and_cut(times: int, *, tasks: int, data_bytes: int, full_us: int, every_us: int, within: int) -> Scenario:
    """The disk is full so many times, for so long each, and each time the power goes within so many operations."""
    faults = []
    for n in range(times):
        faults.append(Fault(every_us * n, "full disk", 0, full_us))
        faults.append(Fault(every_us * n + 13_000 * n % every_us, "power cut at operation", 0, 1 + n % within))
    return replace(_FULL_DISK, tasks=tasks, batch=4, habits=Habits(data_bytes=data_bytes), faults=tuple(faults))


FULL_AND_CUT = _full_and_cut(26, tasks=200, data_bytes=1_500, full_us=60_000, every_us=80_000, within=5)
"""The same, and the power goes while there is no room, or soon after."""
LONG_FULL_AND_CUT = _full_and_cut(18, tasks=120, data_bytes=3_000, full_us=90_000, every_us=110_000, within=9)
"""The same, with larger batches and longer times without room."""
LATE = replace(
    _FULL_DISK,
    tasks=600,
    batch=10,
    spread_us=4_000_000,
    habits=Habits(failing=0.6, delayed=0.5, deadlines=0.7, deadline_ms=(20, 400)),
    faults=tuple(Fault(400_000 * n, "full disk", 0, 300_000) for n in range(10)),
)
"""Deadlines pass while there is no room."""
CUTS = Scenario(
    publishers=2,
    tasks=160,
    batch=4,
    spread_us=2_000_000,
    habits=Habits(data_bytes=300),
    faults=tuple(Fault(90_000 * n + 7_000, "power cut at operation", 0, 1 + 7 * n % 29) for n in range(22)),
    config=replace(_BUSY, segment_max_bytes=2_048),
)
"""One power cut after the other, each at another operation, while segments are short and checkpoints many."""
AGAIN = Scenario(
    publishers=3,
    tasks=120,
    batch=1,
    habits=Habits(again=1.0, again_us=3_000_000),
    faults=(
        Fault(0, "slow disk", 0, 4_000_000),
        *(Fault(400_000 + 100_000 * n, "kill in checkpoint", 0, 1 + n % 25) for n in range(36)),
    ),
    config=replace(_BUSY, flush_interval_ms=200),
)
"""Ids that come again and again, a slow disk, and a PublisherBroker that dies in the midst of checkpoints."""
SPECIAL: dict[str, tuple[str, Scenario]] = {
    "refused after it was stored, for want of room to rotate": ("FULL", FULL),
    "a delivery that waited for room goes out after its deadline": ("LATE", LATE),
    "a short write without room is kept": ("LONG_FULL_AND_CUT", LONG_FULL_AND_CUT),
    "a cut back is not durable before the next batch is written": ("FULL_AND_CUT", FULL_AND_CUT),
    "a cut back leaves a byte of the batch": ("FULL_AND_CUT", FULL_AND_CUT),
    "a torn header is damage": ("CUTS", CUTS),
    "segments are deleted before queue.json is replaced": ("CUTS", CUTS),
    "a forget message about an earlier task drops a new one's id": ("AGAIN", AGAIN),
}
"""Those that need a world of their own: what they take is too rare to be drawn by chance."""


class _Over(BaseException):
    """The budget is spent. Not an Exception, so that nothing under test can swallow it."""


def found_by(bug: Bug, *, seeds: int = SEEDS, seconds: float = SECONDS) -> tuple[int, str] | None:
    """The first seed that shows the bug, and what is seen; None: none within the budget."""

    def over(number: int, frame: object) -> None:
        raise _Over

    before = signal.signal(signal.SIGPROF, over)
    try:
        with suppress(_Over), changed(bug.file, bug.old, bug.new):
            signal.setitimer(signal.ITIMER_PROF, seconds)
            for seed in range(seeds):
                if seen := shown(bug, seed):
                    return seed, seen
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return None


def shown(bug: Bug, seed: int) -> str:
    """What the judges say of the world in which this bug is looked for; empty: all is well."""
    return run_seed(seed, SPECIAL[bug.name][1] if bug.name in SPECIAL else None).violation


def why_unseen(bug: Bug) -> str:
    """Why no world shows it; empty: nothing is known to be in the way."""
    if bug.file in ELSEWHERE:
        return "not simulated: " + {"storage/repair.py": "repair", "storage/salvage.py": "repair"}.get(
            bug.file, "real processes, sockets, locks and files"
        )
    if bug.name in MISSED:
        return f"not found in {SEEDS} worlds; `{bug.harness}` finds it"
    return next((why for why, names in UNSEEN.items() if bug.name in names), "")


class Found(TypedDict):
    """What is kept of a bug that was found."""

    seed: int
    kind: str


def kept() -> dict[str, Found]:
    """Bug → the seed that shows it, and what is seen."""
    found: dict[str, Found] = json.loads(FILE.read_text())
    return found


def table() -> str:
    """For docs/track-record.md."""
    found, rows = kept(), ["| planted | seed | seen as |", "|---|---|---|"]
    for bug in BUGS:
        seen = found.get(bug.name)
        world = f" of `{SPECIAL[bug.name][0]}`" if bug.name in SPECIAL else ""
        rows.append(
            f"| {bug.name} | {seen['seed']}{world} | {seen['kind']} |"
            if seen
            else f"| {bug.name} | – | {why_unseen(bug) or '**missed**'} |"
        )
    return "\n".join(rows) + "\n"


def write_table() -> None:
    """Bring the page up to date."""
    head, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(head + _BEGIN + table() + _END + rest.partition(_END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description="find the planted bugs of the fault work by seeds")
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--all", action="store_true", help="those too of which it is known why no world shows them")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a processor, for each")
    options = parser.parse_args()
    found = kept() if FILE.exists() else {}
    for bug in BUGS:
        if options.only not in bug.name or bug.file in ELSEWHERE or (why_unseen(bug) and not options.all):
            continue
        began = time.process_time()
        seen = found_by(bug, seeds=options.seeds, seconds=options.seconds)
        print(f"{time.process_time() - began:5.1f} s  {bug.name}: {f'seed {seen[0]}: {seen[1]}' if seen else 'NOT FOUND'}", flush=True)
        found.pop(bug.name, None)
        if seen:
            found[bug.name] = Found(seed=seen[0], kind=seen[1].partition(":")[0])
        FILE.write_text(json.dumps({bug.name: found[bug.name] for bug in BUGS if bug.name in found}, indent=1, ensure_ascii=False) + "\n")
    write_table()
    missed = [bug.name for bug in BUGS if bug.name not in found and not why_unseen(bug)]
    print(f"{len(found)} of {len(BUGS)} found; {len(missed)} missed that could be seen")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
