"""Small worlds, completely: every interleaving of a few participants and a few crashes, through the real brokers.

A state of the world is that of each component: the PublisherBroker with its files, the ConsumerBroker with its files, what is in each Pipe,
what each client knows. A component reacts to an input in one way only, so each reaction is computed once, by the code of production on a
copy of it, and remembered; the exploration then walks all combinations, breadth first, each distinct state once. Time stands still:
nothing here rests on a clock.

Crashes: kill -9 of either broker, of a consumer, at every disk operation of a step or between two; and power cuts, with everything unsynced
lost or everything kept. What is checked at each step: what is acknowledged is durable, no id is stored twice, no token comes twice, a
settled completion stays, every broker starts.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from random import Random
from typing import Any, NamedTuple

from msgspec import Raw, Struct

from jsonqueue.config import Config
from jsonqueue.errors import JsonQueueError
from jsonqueue.event import Assign, Complete, Event, EventOwner, Join, Settled, Welcome, Write, Written, decoder_for, encode
from jsonqueue.retry import Linear
from jsonqueue.simulation.verdict import Violation
from jsonqueue.simulation.world import PRODUCTION, Cast
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.recovery import load_ids
from jsonqueue.task import TaskIn

__all__ = ["Explored", "explore"]

_CONFIG = Config(retry=Linear(step_ms=20), attempts_max=1_000, disk_reserve_bytes=0)
_FROM_CB = decoder_for(EventOwner.CONSUMER_BROKER)
_FROM_CONSUMER = decoder_for(EventOwner.CONSUMER)


class Explored(NamedTuple):
    """What was seen."""

    states: int
    transitions: int
    reactions: int
    """Steps that the real code took; all others were known."""
    complete: bool
    """Whether nothing was left to explore."""


class _Still:
    """A clock that stands."""

    def wall_ms(self) -> int:
        return 1_763_000_000_000

    def monotonic_ms(self) -> int:
        return 1_000


class _Part(Struct):
    """A component: its broker (None while it is down) and its files."""

    broker: Any
    files: Any


_Act = Callable[[_Part, list[Any]], None]
_STILL = _Still()


class _Consumer(NamedTuple):
    life: int
    joined: bool
    up: tuple[bytes, ...]
    down: tuple[bytes, ...]
    held: tuple[str, int] | None
    unsettled: tuple[str, int] | None


class _State(NamedTuple):
    pb: int
    cb: int
    publishers: tuple[str, ...]
    """Of each: idle, asked, answered, done."""
    consumers: tuple[_Consumer, ...]
    crashes: int
    acknowledged: frozenset[str]
    settled: frozenset[str]
    token: int
    """The highest that was ever handed out."""


class _Explorer:
    def __init__(self, cast: Cast, writes: tuple[tuple[str, ...], ...], consumers: int, crashes: int) -> None:
        self.cast = cast
        self.writes = writes
        self.parts: list[_Part] = []
        self._numbers: dict[Any, int] = {}
        self._known: dict[Any, Any] = {}
        self.reactions = 0
        fresh = _Consumer(1, False, (), (), None, None)
        down = self._enter(_Part(None, MemoryFiles()))
        self.start = _State(down, down, ("idle",) * len(writes), (fresh,) * consumers, crashes, frozenset(), frozenset(), 0)

    def _enter(self, part: _Part) -> int:
        key = _frozen((part.broker, part.files), {})
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.parts)
            self.parts.append(part)
        return number

    # ── reactions of the real code, each computed once ───────────────────────────────────────────────────────────────

    def react(self, number: int, what: str, act: _Act, *also: Any) -> list[tuple[int, Any, bool]]:
        """All that can come of it: (the component afterwards, what it said, whether it died in the midst)."""
        key = (number, what, also)
        outcomes = self._known.get(key)
        if outcomes is None:
            outcomes = self._known[key] = list(self._react(number, act))
        return outcomes

    def _react(self, number: int, act: _Act) -> Iterator[tuple[int, Any, bool]]:
        self.reactions += 1
        part = _copied(self.parts[number])
        said: list[Any] = []
        deaths: list[tuple[MemoryFiles, tuple[Any, ...]]] = []
        # What is there just before an operation is what a process leaves that dies at it.
        part.files.fail = lambda operation, name: deaths.append((_copied_files(part.files), tuple(said)))
        try:
            act(part, said)
        except JsonQueueError as error:
            raise Violation("refused", f"{error}") from error
        part.files.fail = _nothing
        part.files.trace.clear()
        yield self._enter(part), tuple(said), False
        for files, heard in deaths:
            yield self._enter(_Part(None, files)), heard, True

    # ── what each state leads to ─────────────────────────────────────────────────────────────────────────────────────

    def next(self, state: _State) -> Iterator[_State]:
        yield from self._starts(state)
        yield from self._publishing(state)
        for index in range(len(state.consumers)):
            yield from self._consuming(state, index)
        if state.crashes:
            yield from self._crashes(state)

    def _starts(self, state: _State) -> Iterator[_State]:
        if self.parts[state.pb].broker is None:
            for number, _, died in self.react(state.pb, "open", self._open_pb):
                yield from self._after(state, died, pb=number)
        elif self.parts[state.cb].broker is None:
            for number, _, died in self.react(state.cb, "open", self._open_cb(state.pb), state.pb):
                if not died:
                    self._check_settled(number, state)
                yield from self._after(state, died, cb=number)

    def _open_pb(self, part: _Part, _said: list[Any]) -> None:
        part.broker = self.cast.publisher_broker(part.files, _STILL, _CONFIG)
        part.broker.open()

    def _open_cb(self, pb: int) -> _Act:
        def act(part: _Part, _said: list[Any]) -> None:
            _show_published(part.files, self.parts[pb].files)
            part.broker = self.cast.consumer_broker(part.files, _STILL, _CONFIG, chance=Random(1), is_alive=lambda pid: False)
            part.broker.open()
            part.broker.step([(0, self.parts[pb].broker.mark)], lambda peer, event: None)

        return act

    def _publishing(self, state: _State) -> Iterator[_State]:
        for index, stands in enumerate(state.publishers):
            if stands == "idle":
                yield state._replace(publishers=_with(state.publishers, index, "asked"))
            elif stands == "answered":
                acknowledged = state.acknowledged | set(self.writes[index])
                yield state._replace(publishers=_with(state.publishers, index, "done"), acknowledged=acknowledged)
            elif stands == "asked" and self.parts[state.pb].broker is not None:
                for number, said, died in self.react(state.pb, f"write {index}", self._write(index)):
                    if said:
                        self._check_stored(number, index)
                    then = state._replace(publishers=_with(state.publishers, index, "answered" if said else "asked"))
                    yield from self._after(then, died, pb=number)

    def _write(self, index: int) -> _Act:
        def act(part: _Part, said: list[Any]) -> None:
            write = Write(1, [TaskIn(id=task_id, data=Raw(b"1")) for task_id in self.writes[index]])
            part.broker.step([(index + 1, write)], lambda peer, event: said.append(encode(event)) if isinstance(event, Written) else None)

        return act

    def _consuming(self, state: _State, index: int) -> Iterator[_State]:
        me = state.consumers[index]
        if not me.joined:
            if self.parts[state.cb].broker is not None:
                held = [it for it in (me.held, me.unsettled) if it]
                join = Join(f"c{index}", index + 10 * me.life, 1, [it[0] for it in held], [it[1] for it in held])
                again = (self._outcome(me.unsettled),) if me.unsettled else ()
                yield self._put(state, index, me._replace(joined=True, up=(encode(join), *again), down=()))
            return
        if me.held and not me.unsettled:
            yield self._put(state, index, me._replace(held=None, unsettled=me.held, up=(*me.up, self._outcome(me.held))))
        if me.down:
            yield self._put(state, index, self._hear(me._replace(down=me.down[1:]), me.down[0]))
        if self.parts[state.cb].broker is not None:
            if me.up:
                yield from self._turn(self._put(state, index, me._replace(up=me.up[1:])), index, me.up[0])
            yield from self._tell_mark(state)

    def _outcome(self, held: tuple[str, int] | None) -> bytes:
        assert held is not None
        return encode(Complete(held[1], [held[0]], [held[1]], [Raw(b"1")], 1))

    def _hear(self, me: _Consumer, frame: bytes) -> _Consumer:
        event = _FROM_CB(frame)
        if isinstance(event, Assign):
            return me._replace(held=(event.tasks[0].id, event.tasks[0].token))
        if isinstance(event, Settled) and me.unsettled and event.request == me.unsettled[1]:
            return me._replace(unsettled=None)
        if isinstance(event, Welcome) and event.stale and me.held and me.held[1] in event.stale:
            return me._replace(held=None)
        return me

    def _tell_mark(self, state: _State) -> Iterator[_State]:
        if self.parts[state.pb].broker is None or self.parts[state.pb].broker.mark.number <= self.parts[state.cb].broker._read.number:
            return
        mark = self.parts[state.pb].broker.mark
        yield from self._step(state, f"mark {mark.number} {mark.epoch}", [(0, mark)])

    def _turn(self, state: _State, index: int, frame: bytes) -> Iterator[_State]:
        peer = index + 1 + 100 * state.consumers[index].life
        yield from self._step(state, f"{peer} {frame.decode()}", [(peer, _FROM_CONSUMER(frame))])

    def _step(self, state: _State, what: str, arrivals: list[tuple[int, Event]]) -> Iterator[_State]:
        def act(part: _Part, said: list[Any]) -> None:
            _show_published(part.files, self.parts[state.pb].files)
            part.broker.step(arrivals, lambda peer, event: said.append((peer, encode(event))))

        shown = self.parts[state.pb].files if arrivals[0][0] == 0 else None
        for number, said, died in self.react(state.cb, what, act, state.pb if shown is not None else 0):
            then = state
            for peer, frame in said:
                then = self._deliver(then, peer, frame, number)
            yield from self._after(then, died, cb=number)

    def _deliver(self, state: _State, peer: int, frame: bytes, cb: int) -> _State:
        event = _FROM_CB(frame)
        index, life = peer % 100 - 1, peer // 100
        if isinstance(event, Assign):
            first = event.tasks[0].token
            if first <= state.token:
                raise Violation("two leases", f"token {first} came again")
            state = state._replace(token=first)
        elif isinstance(event, Settled) and not event.stale:
            state = self._settle(state, event.request, cb)
        me = state.consumers[index]
        return self._put(state, index, me._replace(down=(*me.down, frame))) if me.life == life else state

    def _settle(self, state: _State, token: int, cb: int) -> _State:
        tasks = self.parts[cb].broker._dispatcher.state.tasks if self.parts[cb].broker is not None else {}
        done = {task.id for task in tasks.values() if any(past.token == token and past.outcome == "completed" for past in task.history)}
        return state._replace(settled=state.settled | done)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────

    def _after(self, state: _State, died: bool, *, pb: int | None = None, cb: int | None = None) -> Iterator[_State]:
        """The state with a component replaced; if it died in the midst, that was one of the crashes, or the power went for all."""
        then = state._replace(pb=state.pb if pb is None else pb, cb=state.cb if cb is None else cb)
        if not died:
            yield then
        elif state.crashes:
            yield self._orphaned(then, pb=pb is not None, cb=cb is not None)._replace(crashes=state.crashes - 1)
            yield from self._power_cut(then)

    def _orphaned(self, state: _State, *, pb: bool, cb: bool) -> _State:
        """The Pipes to a broker that died are gone, with what was in them."""
        if pb:
            state = state._replace(publishers=tuple("idle" if stands in {"asked", "answered"} else stands for stands in state.publishers))
        if cb:
            state = state._replace(consumers=tuple(me._replace(joined=False, up=(), down=(), life=me.life + 1) for me in state.consumers))
        return state

    def _crashes(self, state: _State) -> Iterator[_State]:
        fewer = state._replace(crashes=state.crashes - 1)
        if self.parts[state.pb].broker is not None:
            yield self._orphaned(fewer._replace(pb=self._dead(state.pb)), pb=True, cb=False)
        if self.parts[state.cb].broker is not None:
            yield self._orphaned(fewer._replace(cb=self._dead(state.cb)), pb=False, cb=True)
        yield from self._power_cut(state)

    def _power_cut(self, state: _State) -> Iterator[_State]:
        for keep in (False, True):
            pb, cb = (self._cut(number, keep) for number in (state.pb, state.cb))
            consumers = tuple(_Consumer(me.life + 1, False, (), (), None, None) for me in state.consumers)
            publishers = tuple("done" if stands == "done" else "idle" for stands in state.publishers)
            yield state._replace(pb=pb, cb=cb, consumers=consumers, publishers=publishers, crashes=state.crashes - 1)

    def _dead(self, number: int) -> int:
        return self._once(("dead", number), lambda: _without_broker(self.parts[number]))

    def _cut(self, number: int, keep: bool) -> int:
        return self._once(("cut", number, keep), lambda: _cut(self.parts[number], keep))

    def _once(self, key: tuple[Any, ...], make: Callable[[], _Part]) -> int:
        if key not in self._known:
            self._known[key] = self._enter(make())
        return self._known[key]  # type: ignore[no-any-return]

    # ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_stored(self, pb: int, index: int) -> None:
        key = ("durable ids", pb)
        if key not in self._known:
            disk = _copied_files(self.parts[pb].files)
            disk.crash(None)
            self._known[key] = frozenset(load_ids(disk).numbers)
        missing = set(self.writes[index]) - self._known[key]
        if missing:
            raise Violation("not durable", f"{sorted(missing)} acknowledged, and a power cut would take it")

    def _check_settled(self, cb: int, state: _State) -> None:
        tasks = self.parts[cb].broker._dispatcher.state.tasks
        if lost := sorted(state.acknowledged - tasks.keys()):
            raise Violation("lost", f"{lost} were acknowledged, and are not in the queue")
        if undone := [task_id for task_id in sorted(state.settled) if tasks[task_id].status != "completed"]:
            raise Violation("not durable", f"{undone} had been settled as completed")

    @staticmethod
    def _put(state: _State, index: int, me: _Consumer) -> _State:
        return state._replace(consumers=_with(state.consumers, index, me))


def explore(
    *,
    writes: tuple[tuple[str, ...], ...] = (("t1", "t2"), ("t3",)),
    consumers: int = 2,
    crashes: int = 2,
    cast: Cast = PRODUCTION,
    states_max: int = 200_000,
) -> Explored:
    """Explore until everything, or so many distinct states, has been seen. Raises :class:`Violation` where a promise is broken."""
    explorer = _Explorer(cast, writes, consumers, crashes)
    seen = {explorer.start}
    todo = deque(seen)
    transitions = 0
    while todo and len(seen) < states_max:
        for state in explorer.next(todo.popleft()):
            transitions += 1
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return Explored(len(seen), transitions, explorer.reactions, not todo)


def _with(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _nothing(operation: int, name: str) -> None:
    pass


def _show_published(into: MemoryFiles, source: MemoryFiles) -> None:
    """Let the ConsumerBroker's copy of the disk show the other one's files."""
    for name in [name for name in into._names if name.startswith("published-")]:
        if name not in source._names:
            del into._names[name], into._durable[name]
    for name in source.list():
        if name.startswith("published-") and (name not in into._names or into.get(name) != source.get(name)):
            known = into._names.get(name)
            if known is None:
                into.put(name, source.get(name))
            else:
                known.volatile[:] = source.get(name)
                known.durable = bytes(known.volatile)


def _without_broker(part: _Part) -> _Part:
    return _Part(None, _copied_files(part.files))


def _cut(part: _Part, keep: bool) -> _Part:
    files = _copied_files(part.files)
    if keep:
        for inode in files._names.values():
            inode.durable = bytes(inode.volatile)
        files._durable = dict(files._names)
    files.crash(None)
    return _Part(None, files)


def _copied(part: _Part) -> _Part:
    """Broker and files together, so that its handles are those of the copy; what never changes is shared."""
    part.files.fail = _nothing
    return copy.deepcopy(part, {id(_CONFIG): _CONFIG, id(_STILL): _STILL})


def _copied_files(files: MemoryFiles) -> MemoryFiles:
    """The files as nobody has them open."""
    other = MemoryFiles()
    inodes = {id(inode): copy.copy(inode) for inode in (*files._names.values(), *files._durable.values())}
    for inode in inodes.values():
        inode.volatile = bytearray(inode.volatile)
    other._names = {name: inodes[id(inode)] for name, inode in files._names.items()}
    other._durable = {name: inodes[id(inode)] for name, inode in files._durable.items()}
    other._next = files._next
    return other


_LEFT_OUT = {
    "_clock",
    "_config",
    "_chance",
    "_is_alive",
    "_announce",
    "_looked_ms",
    "trace",
    "operations",
    "fail",
    "_next",
    "changed",
    "room",
}


def _frozen(value: Any, seen: dict[int, int]) -> Any:
    """A value that is equal for equal states, and can be hashed."""
    if value is None or isinstance(value, (int, str, bytes, float, Enum)):
        return value
    if isinstance(value, (bytearray, Raw)):
        return bytes(value)
    if id(value) in seen:
        return ("seen", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, (list, tuple, deque, range)):
        return tuple(_frozen(item, seen) for item in value)
    if isinstance(value, dict):
        return tuple((_frozen(key, seen), _frozen(item, seen)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(value))
    if callable(value) or isinstance(value, (Random, Config)):
        return ""
    names = getattr(value, "__struct_fields__", None) or [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
    return (type(value).__name__, *((name, _frozen(getattr(value, name, None), seen)) for name in names if name not in _LEFT_OUT))
