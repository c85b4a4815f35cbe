"""Which small worlds are explored: each run of the tests walks the first list to its end, and one of the second as far as :data:`CAP`;
``scripts/small-worlds --long`` walks the second as far as it is told to."""

from __future__ import annotations

from msgspec.structs import replace

from jsonqueue.simulation.small_state import CONFIG, Faults, Scope

__all__ = ["AGAIN", "CAP", "CAPPED", "LONG", "ONE", "SHORT", "THREE", "TWICE"]

ONE = ((("t1",),),)
"""One publisher, one task."""
TWICE = ((("t1",),), (("t1",),))
"""Two publishers with the same id."""
AGAIN = ((("t1",), ("t1",)),)
"""One that publishes an id again, once it has been acknowledged."""
THREE = ((("t1", "t2"),), (("t3",),))

_AT_ONCE = replace(CONFIG, finished_keep_ms=0)
"""What has ended is retired in the same turn."""
_A_SECOND = replace(CONFIG, finished_keep_ms=1_000)
_WRITE, _FOLD, _OPEN = frozenset({"write"}), frozenset({"fold"}), frozenset({"open", "fold"})

SHORT: dict[str, Scope] = {
    "one task, a kill": Scope(ONE, 1, Faults(kills=1)),
    "one task, a power cut that tears": Scope(ONE, 1, Faults(cuts=1), torn=True),
    "one task, two kills": Scope(ONE, 1, Faults(kills=2)),
    "one task, a kill and a power cut, within a write too": Scope(ONE, 1, Faults(kills=1, cuts=1), pauses=_WRITE),
    "two tasks, two consumers, a kill": Scope(((("t1", "t2"),),), 2, Faults(kills=1)),
    "the same id twice, two kills": Scope(TWICE, 0, Faults(kills=2), pauses=_WRITE),
    "the same id twice, two power cuts": Scope(TWICE, 1, Faults(cuts=2)),
    "the same id twice, a failed fsync and a power cut": Scope(TWICE, 0, Faults(cuts=1, syncs=1), pauses=_WRITE),
    "a failed fsync and a kill": Scope(ONE, 1, Faults(kills=1, syncs=1)),
    "a failed fsync and a power cut": Scope(ONE, 1, Faults(cuts=1, syncs=1)),
    "a checkpoint and a kill, step by step": Scope(ONE, 1, Faults(kills=1, checkpoints=1), pauses=_FOLD),
    "a checkpoint and a power cut, step by step": Scope(ONE, 1, Faults(cuts=1, checkpoints=1), pauses=_FOLD | _WRITE),
    "two checkpoints, a kill and a power cut": Scope(ONE, 0, Faults(kills=1, cuts=1, checkpoints=2)),
    "brokers that start while a checkpoint is made": Scope(ONE, 0, Faults(kills=1, checkpoints=1), pauses=_OPEN),
    "retired, and published again, two checkpoints": Scope(TWICE, 1, Faults(checkpoints=2), _AT_ONCE),
    "retired after a second, a checkpoint and a kill": Scope(ONE, 1, Faults(kills=1, ticks=1, checkpoints=1), _A_SECOND),
    "a clean stop and a power cut": Scope(AGAIN, 0, Faults(cuts=1, stops=1)),
    "a lease that runs out, two consumers": Scope(ONE, 2, Faults(ticks=2)),
    "a lease that runs out, and a kill": Scope(ONE, 1, Faults(kills=1, ticks=2)),
    "a failure, its wait, and a power cut": Scope(ONE, 1, Faults(cuts=1, ticks=2, fails=1)),
}
"""Each is explored to its end."""

LONG: dict[str, Scope] = {
    "retired, and published again, a checkpoint and a kill": Scope(TWICE, 1, Faults(kills=1, checkpoints=1), _AT_ONCE),
    "retired, and published again, a checkpoint and a power cut": Scope(TWICE, 1, Faults(cuts=1, checkpoints=1), _AT_ONCE),
    "a clean stop between two tasks, and a kill": Scope(((("t1",), ("t2",)),), 1, Faults(kills=1, stops=1)),
    "a clean stop between two tasks, and a power cut": Scope(((("t1",), ("t2",)),), 1, Faults(cuts=1, stops=1)),
    "brokers that start while a checkpoint is made, one consumer": Scope(ONE, 1, Faults(kills=1, checkpoints=1), pauses=_OPEN),
    "three kills": Scope(ONE, 1, Faults(kills=3)),
    "two kills and a power cut": Scope(ONE, 1, Faults(kills=2, cuts=1)),
    "two checkpoints, a kill and a power cut, one consumer": Scope(ONE, 1, Faults(kills=1, cuts=1, checkpoints=2), _AT_ONCE),
    "a failed fsync, a kill and a power cut": Scope(ONE, 1, Faults(kills=1, cuts=1, syncs=1)),
    "a failed fsync in a checkpoint, and a power cut": Scope(ONE, 1, Faults(cuts=1, syncs=1, checkpoints=2)),
    "two publishers, two consumers, a kill": Scope(((("t1",),), (("t2",),)), 2, Faults(kills=1)),
    "two publishers, two consumers, a power cut": Scope(((("t1",),), (("t2",),)), 2, Faults(cuts=1)),
    "three tasks, two publishers, two consumers, two crashes": Scope(THREE, 2, Faults(kills=1, cuts=1)),
    "three tasks, two publishers, two consumers, two crashes, a checkpoint": Scope(THREE, 2, Faults(kills=1, cuts=1, checkpoints=1)),
    "leases that run out, two consumers, a kill": Scope(ONE, 2, Faults(kills=1, ticks=3)),
}
"""Each is explored as far as one likes."""

CAPPED = "three tasks, two publishers, two consumers, two crashes"
"""The one of them that each run of the tests walks too, though it has no end in sight."""
CAP = 200_000
"""So many distinct states of it. Since the walk is breadth first, that is *every* history of a certain length, and some that are one step
longer: what takes more steps than that goes unseen, but for the one fair schedule by which each state comes to its end."""
