"""What the code of production does with an input, computed once for each distinct case.

A call of a broker, or of a checkpoint, depends on the broker's memory, on what it looks at on the disk, and on nothing else. So what comes
of it is computed by running it on a copy, and remembered together with what it looked at; wherever these are the same again, so is what
comes of it. What may come of one call: it ends; it pauses before an operation that the scope names, for others to go on meanwhile; it dies
before any of its operations; or an fsync of it fails.

A call that paused goes on by being run anew: what its operations returned so far is answered from its journal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jsonqueue.config import Config
from jsonqueue.errors import JsonQueueError, SyncFailed
from jsonqueue.event import Mark
from jsonqueue.simulation.copies import copied, frozen
from jsonqueue.simulation.still import Item, Op, Paused, Plane, StillFiles, is_settled, listing_of

__all__ = ["EPOCH_MS", "Case", "Outcome", "Reactions", "Said"]

Act = Callable[..., Any]
"""Takes the broker (None: there is none), its files, where to say things, and the arguments; returns the broker afterwards."""
EPOCH_MS = 1_763_000_000_000
"""What the wall clock of a small world says at its beginning."""
_BOOTED_MS = 1_000


class Case(NamedTuple):
    """The surroundings of a call."""

    planes: tuple[int, ...]
    ms: int
    alive: frozenset[int]


class Said(NamedTuple):
    """Something that a process let others know, and what it had changed on the disk by then."""

    what: Any
    changes: tuple[tuple[int, int], ...]


class Outcome(NamedTuple):
    """One thing that may come of a call."""

    slot: int
    """Its process afterwards; 0: it is gone, or was none."""
    changes: tuple[tuple[int, int], ...]
    said: tuple[Said, ...]
    end: str
    """``done``, ``paused``, ``died``, ``exit 74`` (an fsync failed), ``refused`` (it took the files for damaged) or ``broke``."""
    why: str = ""
    syncs: int = 0
    """How many fsyncs were in it."""


class _Clock:
    """Both clocks, as of the call that is being run."""

    def __init__(self) -> None:
        self.ms = 0
        self.looked: set[Item] = set()

    def wall_ms(self) -> int:
        self.looked.add(("time",))
        return EPOCH_MS + self.ms

    def monotonic_ms(self) -> int:
        self.looked.add(("time",))
        return _BOOTED_MS + self.ms

    @staticmethod
    def ms_at(monotonic_ms: int) -> int:
        """How late it is in the world when the monotonic clock shows this."""
        return monotonic_ms - _BOOTED_MS


class _Running(NamedTuple):
    broker: Any
    files: StillFiles
    owner: int


class _Busy(NamedTuple):
    slot: int
    call: tuple[Any, ...]
    journal: tuple[Any, ...]
    said: int
    ms: int
    owner: int


class Reactions:
    """See the module. ``pauses``: (call, operation) → whether it may pause there."""

    def __init__(self, config: Config, pauses: Callable[[tuple[Any, ...], Op], bool], *, mortal: bool = True) -> None:
        self.clock = _Clock()
        self.config = config
        self.computed = 0
        """How many calls were run."""
        self.parts: list[_Running | _Busy | None] = [None]
        self.planes: list[Plane] = []
        self.calls: dict[str, Act] = {}
        """What can be called, by name."""
        self.mortal = mortal
        """Whether processes may die in this world."""
        self._pauses = pauses
        self._alive: frozenset[int] = frozenset()
        self._say: Callable[[Any], None] = lambda what: None
        self._part_numbers: dict[Any, int] = {}
        self._plane_numbers: dict[Plane, int] = {}
        self._known: dict[Any, list[tuple[tuple[Item, ...], dict[Any, list[Outcome]]]]] = {}
        self._values: dict[Any, Any] = {}

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────

    def plane(self, plane: Plane) -> int:
        """The number of this plane."""
        number = self._plane_numbers.get(plane)
        if number is None:
            number = self._plane_numbers[plane] = len(self.planes)
            self.planes.append(plane)
        return number

    def broker(self, slot: int) -> Any:
        """The broker of this process, unless it is gone or in the midst of a call. It is not to be changed."""
        part = self.parts[slot]
        return part.broker if isinstance(part, _Running) else None

    def call_of(self, slot: int) -> tuple[Any, ...]:
        """What this process is in the midst of; () for nothing."""
        part = self.parts[slot]
        return part.call if isinstance(part, _Busy) else ()

    def is_alive(self, pid: int) -> bool:
        """As the broker under test asks it."""
        self.clock.looked.add(("alive", pid))
        return pid in self._alive

    # ── what comes of it ─────────────────────────────────────────────────────────────────────────────────────────────

    def react(self, slot: int, owner: int, call: tuple[Any, ...], case: Case, failing: tuple[int, bool] | None = None) -> list[Outcome]:
        """All that can come of this call; ``failing``: with this fsync of it (by its number) failing, and its pages thrown away or not."""
        tables = self._known.setdefault((slot, owner, call, failing), [])
        for items, table in tables:
            outcomes = table.get(tuple([self._value(item, case) for item in items]))
            if outcomes is not None:
                return outcomes
        looked, outcomes = self._run(slot, owner, call, case, failing)
        values = tuple([self._value(item, case) for item in looked])
        for items, table in tables:
            if items == looked:
                table[values] = outcomes
                break
        else:
            tables.append((looked, {values: outcomes}))
        return outcomes

    def go_on(self, slot: int, case: Case) -> list[Outcome]:
        """All that can come of going on with what it is in the midst of."""
        part = self.parts[slot]
        assert isinstance(part, _Busy)
        return self.react(slot, part.owner, part.call, case)

    def _value(self, item: Item, case: Case) -> Any:
        kind = item[0]
        if kind == "content":
            return case.planes[item[1]]
        if kind == "time":
            return case.ms
        if kind == "alive":
            return item[1] in case.alive
        groups = case.planes if kind == "names" else (case.planes[item[1]],)
        known = self._values.get((item, groups))
        if known is None:
            planes = [self.planes[number] for number in groups]
            known = tuple(listing_of(plane, item[1]) for plane in planes) if kind == "names" else is_settled(planes[0], item[2])
            self._values[item, groups] = known
        return known

    def _run(
        self, slot: int, owner: int, call: tuple[Any, ...], case: Case, failing: tuple[int, bool] | None
    ) -> tuple[tuple[Item, ...], list[Outcome]]:
        self.computed += 1
        part = self.parts[slot]
        busy = part if isinstance(part, _Busy) else None
        files = StillFiles(owner)
        files.thaw(tuple(self.planes[number] for number in case.planes), busy.journal if busy else ())
        self.clock.ms, self.clock.looked, self._alive = busy.ms if busy else case.ms, files.looked, case.alive
        before = self.parts[busy.slot] if busy else part
        run = _Run(self, files, call, busy.said if busy else 0, failing)
        self._say = run.say
        outcomes = run.all(before, busy.slot if busy else slot, self.calls[call[0]])
        looked = tuple(sorted(files.looked, key=repr))
        files.end()
        return looked, outcomes

    def announce(self, mark: Mark) -> None:
        """As the PublisherBroker under test says how far its log is durable."""
        self._say(("mark", mark.number, mark.epoch))

    def paused(self, run: _Run, slot: int) -> int:
        """The process of a call that paused; ``slot``: before it began."""
        busy = _Busy(slot, run.call, tuple(run.files.journal), len(run.said) + run.skipped, self.clock.ms, run.files.owner)
        return self._part(busy, busy)

    def running(self, broker: Any, files: StillFiles) -> int:
        """The slot of a broker that has done what it was called for."""
        return self._part((files.owner, frozen(broker, {})), _Running(broker, files, files.owner)) if broker is not None else 0

    def _part(self, key: Any, part: _Running | _Busy) -> int:
        number = self._part_numbers.get(key)
        if number is None:
            number = self._part_numbers[key] = len(self.parts)
            self.parts.append(part)
        return number

    def numbered(self, changes: tuple[tuple[int, Plane], ...]) -> tuple[tuple[int, int], ...]:
        """Changed planes, by their numbers."""
        return tuple((group, self.plane(plane)) for group, plane in changes)

    def copied(self, part: _Running, files: StillFiles) -> Any:
        """A copy of the broker, on other files; what never changes is shared."""
        return copied(part.broker, {id(self.config): self.config, id(self.clock): self.clock, id(part.files): files})

    def may_pause(self, call: tuple[Any, ...], op: Op) -> bool:
        """Whether this call may pause before this operation."""
        return self._pauses(call, op)


class _Run:
    """One run of the code."""

    def __init__(
        self, reactions: Reactions, files: StillFiles, call: tuple[Any, ...], skipped: int, failing: tuple[int, bool] | None
    ) -> None:
        self.reactions, self.files, self.call = reactions, files, call
        self.said: list[Said] = []
        self.skipped = skipped
        """How much of what it says was said before it paused."""
        self._to_skip = skipped
        self._failing = failing
        self._syncs = 0
        self._deaths: dict[Any, Outcome] = {}
        files.before = self._before
        if failing is None:
            files.pauses = lambda op: reactions.may_pause(call, op)

    def all(self, before: _Running | _Busy | None, before_slot: int, act: Act) -> list[Outcome]:
        """What comes of it, for the process as it was before."""
        reactions, files = self.reactions, self.files
        broker = reactions.copied(before, files) if isinstance(before, _Running) else None
        slot, end, why = 0, "done", ""
        try:
            slot = reactions.running(act(broker, files, self.say, *self.call[1:]), files)
        except Paused:
            slot, end = reactions.paused(self, before_slot), "paused"
        except SyncFailed as error:
            end, why = "exit 74", str(error)
        except JsonQueueError as error:
            end, why = "refused", str(error)
        except Exception as error:  # noqa: BLE001 - whatever the code under test raises is what the exploration is after
            end, why = "broke", f"{type(error).__name__}: {error}"
        changes = files.changes() if slot or end == "done" else files.changes(dead=True)
        outcome = Outcome(slot, reactions.numbered(changes), tuple(self.said), end, why, self._syncs)
        return [outcome, *self._deaths.values()]

    def _before(self, op: Op) -> None:
        if self.reactions.mortal and self._failing is None:
            # What is there just before an operation is what a process leaves that dies at it.
            outcome = Outcome(0, self.reactions.numbered(self.files.changes(dead=True)), tuple(self.said), "died", f"{op.what} {op.name}")
            self._deaths.setdefault(outcome[:3], outcome)
        if op.what in {"sync", "sync_folder"}:
            if self._failing and self._failing[0] == self._syncs:
                self.files.lie_dropped = self._failing[1]
                raise SyncFailed("the simulated disk reports EIO")
            self._syncs += 1

    def say(self, what: Any) -> None:
        """Let others know something."""
        if self._to_skip:
            self._to_skip -= 1
        else:
            self.said.append(Said(what, self.reactions.numbered(self.files.changes())))
