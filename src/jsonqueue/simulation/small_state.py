"""A state of a small world, as a value, and what clients make of what they hear."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

from msgspec import Raw

from jsonqueue.config import Config
from jsonqueue.event import (
    Assign,
    Complete,
    Event,
    EventOwner,
    Fail,
    Failure,
    Heartbeat,
    Join,
    Revoke,
    Settled,
    Welcome,
    decoder_for,
    encode,
)
from jsonqueue.retry import Linear
from jsonqueue.simulation.calls import CONSUMER_BROKER, PUBLISHER_BROKER

__all__ = [
    "CONFIG",
    "FROM_CB",
    "Consumer",
    "Faults",
    "Scope",
    "State",
    "changed",
    "completion",
    "disturbed",
    "failure",
    "heard",
    "joined",
    "peer_of",
    "publisher",
    "saying",
    "slot_of",
    "told",
    "with_consumer",
    "with_slot",
]

CONFIG = Config(retry=Linear(step_ms=20), attempts_max=1_000, disk_reserve_bytes=0)
FROM_CB = lru_cache(maxsize=None)(decoder_for(EventOwner.CONSUMER_BROKER))
NEVER: frozenset[str] = frozenset()


class Faults(NamedTuple):
    """How often what may still happen."""

    kills: int = 0
    cuts: int = 0
    syncs: int = 0
    """Fsyncs that fail."""
    checkpoints: int = 0
    stops: int = 0
    """Clean ones."""
    ticks: int = 0
    """Steps of the clock to when something is due."""
    fails: int = 0
    """Attempts that fail."""


class Scope(NamedTuple):
    """A small world."""

    writes: tuple[tuple[tuple[str, ...], ...], ...] = ((("t1", "t2"),), (("t3",),))
    """Of each publisher, the batches, one after the other."""
    consumers: int = 2
    faults: Faults = Faults()
    config: Config = CONFIG
    pauses: frozenset[str] = NEVER
    """Which calls others may come between the operations of: ``write``, ``open`` (of either broker), ``fold``."""
    torn: bool = False
    """Whether a power cut may leave half of what was not synced."""
    note: str = ""


class Consumer(NamedTuple):
    life: int = 1
    pipe: int = 0
    joined: bool = False
    again: bool = False
    """Whether it was joined before."""
    up: tuple[bytes, ...] = ()
    down: tuple[bytes, ...] = ()
    held: tuple[str, int] | None = None
    unsettled: tuple[tuple[tuple[str, int], bytes], ...] = ()
    """What it said of a task and has no answer to, in full."""


class State(NamedTuple):
    """A state of the world."""

    pb: int
    cb: int
    manager: int
    """Its process, while it folds."""
    planes: tuple[int, ...]
    phase: tuple[Any, ...]
    """How far a checkpoint is."""
    mark: tuple[int, int] | None
    """The last that the PublisherBroker announced."""
    forget: tuple[Any, ...]
    """What a checkpoint has to tell the PublisherBroker."""
    publishers: tuple[tuple[int, str], ...]
    """Of each: at which batch it is, and whether that is idle, asked or answered."""
    consumers: tuple[Consumer, ...]
    hung_up: tuple[int, ...]
    """Pipes whose end the ConsumerBroker has not noticed yet."""
    left: Faults
    ms: int
    anew: bool
    """An fsync failed: both brokers are to start again."""
    acknowledged: frozenset[str]
    settled: frozenset[tuple[str, int]]
    token: int
    """The highest that was ever handed out."""


# ── consumers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def joined(me: Consumer, index: int) -> Consumer:
    held = [it for it, _ in me.unsettled] + ([me.held] if me.held else [])
    join = encode(Join(f"c{index}", 10 * index + me.life, 1, [it[0] for it in held], [it[1] for it in held], again=me.again))
    return me._replace(joined=True, again=True, up=(join, *(frame for _, frame in me.unsettled)), down=())


def heard(me: Consumer, event: Any) -> Consumer:
    if isinstance(event, Assign):
        return me._replace(held=(event.tasks[0].id, event.tasks[0].token))
    if isinstance(event, Settled):
        return me._replace(unsettled=tuple([it for it in me.unsettled if it[0][1] != event.request]))
    lost = event.stale if isinstance(event, Welcome) else event.tokens if isinstance(event, Revoke) else ()
    if me.held and me.held[1] in lost:
        me = me._replace(held=None)
    if isinstance(event, Revoke) and me.joined:
        return me._replace(up=(*me.up, encode(Heartbeat([], [], 1))))
    return me


# ── parts of a state ─────────────────────────────────────────────────────────────────────────────────────────────────


def changed(planes: tuple[int, ...], changes: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    if not changes:
        return planes
    new = list(planes)
    for group, plane in changes:
        new[group] = plane
    return tuple(new)


def slot_of(state: State, who: int) -> int:
    """The process of a broker, or of the manager."""
    return state.pb if who == PUBLISHER_BROKER else state.cb if who == CONSUMER_BROKER else state.manager


def with_slot(state: State, who: int, slot: int) -> State:
    if who == PUBLISHER_BROKER:
        return state._replace(pb=slot)
    return state._replace(cb=slot) if who == CONSUMER_BROKER else state._replace(manager=slot)


def disturbed(state: State) -> State:
    """A checkpoint that is being made meanwhile may find the files in motion."""
    phase = state.phase
    return state._replace(phase=(*phase, "disturbed")) if phase[:1] in {("cut",), ("fold",)} and phase[-1] != "disturbed" else state


def publisher(state: State, index: int, stands: tuple[int, str]) -> State:
    return state._replace(publishers=(*state.publishers[:index], stands, *state.publishers[index + 1 :]))


def with_consumer(state: State, index: int, me: Consumer) -> State:
    return state._replace(consumers=(*state.consumers[:index], me, *state.consumers[index + 1 :]))


def peer_of(me: Consumer, index: int) -> int:
    return index + 1 + 100 * me.pipe


def saying(me: Consumer, held: tuple[str, int], frame: bytes) -> Consumer:
    return me._replace(held=None, unsettled=(*me.unsettled, (held, frame)), up=(*me.up, frame))


@cache
def completion(held: tuple[str, int]) -> bytes:
    return encode(Complete(held[1], [held[0]], [held[1]], [Raw(b"1")], 1))


@cache
def failure(held: tuple[str, int]) -> bytes:
    return encode(Fail(held[1], [Failure(held[0], held[1], "no")], 1))


def told(event: Event) -> str:
    return f"{type(event).__name__.lower()} {getattr(event, 'request', '')}".strip()
