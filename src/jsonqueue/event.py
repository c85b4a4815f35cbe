"""The typed envelopes that travel over the Pipes. One frame is one event, as JSON: ``{"type":"write","request":1,"tasks":[...]}``.

Events carry many tasks: one encode, one send, one wake-up for a batch. ``owner`` says who may send an event of that type; a receiver
drops a connection that sends what its role may not. Every request carries a ``request`` number of the sender's choice, which the answer
repeats, so that several may be in flight.

====================  =================  ================================================================================
event                 owner              meaning
====================  =================  ================================================================================
``write``             publisher          store these tasks
``written``           publisher broker   they are durable (or were already, or are refused, and why)
``join``              consumer           first event of a consumer: who it is, what it still holds, how much it wants
``welcome``           consumer broker    its label, the epoch and the lease it works under
``assign``            consumer broker    run these tasks
``complete``          consumer           they are done, here are the results
``fail``              consumer           they are not, here is why
``return``            consumer           take these back, they were not started
``heartbeat``         consumer           still alive, still holding these
``settled``           consumer broker    complete/fail/return is durable; the tokens listed were stale and changed nothing
``revoke``            consumer broker    drop these: cancelled, or handed on
``look``              caller             tell me of this task, now
``watch``             caller             tell me of these tasks when they have ended
``cancel``            caller             cancel these tasks
``replay``            caller             give these dead letters another life
``result``            consumer broker    the task (answer to look and watch)
``changed``           consumer broker    what cancel/replay did, durable
``mark``              publisher broker   "published through batch n": all that passes between the brokers
====================  =================  ================================================================================
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Raw, Struct

from jsonqueue.errors import BadFrame
from jsonqueue.task import ID_PATTERN, StoredTask, StoredTaskIn, Task

__all__ = [
    "EVENTS_BY_OWNER",
    "Assign",
    "AssignedEvent",
    "Cancel",
    "Changed",
    "Complete",
    "Event",
    "EventOwner",
    "EventType",
    "Fail",
    "Failure",
    "Heartbeat",
    "Join",
    "Look",
    "Mark",
    "Refusal",
    "Replay",
    "Result",
    "Return",
    "Revoke",
    "Settled",
    "Watch",
    "Welcome",
    "Write",
    "Written",
    "decoder_for",
    "encode",
]


class EventOwner(StrEnum):
    """Who sends an event."""

    PUBLISHER = "publisher"
    CONSUMER = "consumer"
    CALLER = "caller"
    """Whoever asks after, cancels or replays a task: a TaskHandle, the command line."""
    PUBLISHER_BROKER = "publisher_broker"
    CONSUMER_BROKER = "consumer_broker"
    MANAGER = "manager"


class EventType(StrEnum):
    """What an event says; see the table above."""

    WRITE = "write"
    WRITTEN = "written"
    JOIN = "join"
    WELCOME = "welcome"
    ASSIGN = "assign"
    COMPLETE = "complete"
    FAIL = "fail"
    RETURN = "return"
    HEARTBEAT = "heartbeat"
    SETTLED = "settled"
    REVOKE = "revoke"
    LOOK = "look"
    WATCH = "watch"
    CANCEL = "cancel"
    REPLAY = "replay"
    RESULT = "result"
    CHANGED = "changed"
    MARK = "mark"


Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A whole number that every reader of JSON can hold."""


class Event(Struct, omit_defaults=True, gc=False, tag_field="type", forbid_unknown_fields=True):
    """The common base of all envelopes."""

    type: ClassVar[EventType]
    owner: ClassVar[EventOwner]


# ── publisher and PublisherBroker ────────────────────────────────────────────────────────────────────────────────────


class Write(Event, tag="write"):
    """Store these tasks. Each has an id, given by the publisher, so that sending them again is safe."""

    type: ClassVar = EventType.WRITE
    owner: ClassVar = EventOwner.PUBLISHER

    request: Int64
    tasks: list[StoredTaskIn]


class Refusal(Struct, gc=False):
    """Why one task of a batch is not stored."""

    index: int
    reason: str


class Written(Event, tag="written"):
    """Every task of the write is durable in batch ``number``, or was before (``duplicates``), but for the ``refused``."""

    type: ClassVar = EventType.WRITTEN
    owner: ClassVar = EventOwner.PUBLISHER_BROKER

    request: int
    number: int
    """Number of the batch after which all that was acknowledged here is durable."""
    duplicates: list[int] = []
    """Indexes of the tasks whose id the queue already knew."""
    refused: list[Refusal] = []
    durability: str = ""
    """Empty for the full promise; ``process-crash`` where the queue runs relaxed."""


class Mark(Event, tag="mark"):
    """The published log is durable through batch ``number``, written under ``epoch``."""

    type: ClassVar = EventType.MARK
    owner: ClassVar = EventOwner.PUBLISHER_BROKER

    number: int
    epoch: int


def _in_parallel(first: list[Any], *others: list[Any]) -> None:
    """What a sender lists side by side is of one length, or it is no event: a ValueError in here becomes a :class:`BadFrame`."""
    for other in others:
        if len(other) != len(first):
            raise ValueError("lists that run in parallel are of different lengths")


# ── consumer and ConsumerBroker ──────────────────────────────────────────────────────────────────────────────────────


class Join(Event, tag="join"):
    """First event of a consumer, on every new Pipe."""

    type: ClassVar = EventType.JOIN
    owner: ClassVar = EventOwner.CONSUMER

    name: Annotated[str, Meta(pattern=ID_PATTERN)]
    pid: Annotated[int, Meta(ge=0, le=2**31)]
    want: Int64
    """How many tasks it is willing to hold at once."""
    ids: list[str] = []
    """Tasks it still holds from an earlier Pipe ..."""
    tokens: list[Int64] = []
    """... and their tokens, in the same order."""
    again: bool = False
    """Whether it had an earlier Pipe. What was handed out to it on that, and is not among these, never reached it."""

    def __post_init__(self) -> None:
        _in_parallel(self.ids, self.tokens)


class Welcome(Event, tag="welcome"):
    """The consumer is known as ``label``; tokens it named in Join that are stale come back in ``stale``."""

    type: ClassVar = EventType.WELCOME
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    label: str
    epoch: int
    lease_ms: int
    stale: list[int] = []


class Assign(Event, tag="assign"):
    """Run these tasks, in this order."""

    type: ClassVar = EventType.ASSIGN
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    tasks: list[StoredTask]


class AssignedEvent(Struct, gc=False, tag="assign", tag_field="type"):
    """An :class:`Assign` as the consumer reads it: the payloads become Python values in the same pass."""

    type: ClassVar = EventType.ASSIGN
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    tasks: list[Task[Any]]


class Complete(Event, tag="complete"):
    """These tasks are done. The three lists run in parallel."""

    type: ClassVar = EventType.COMPLETE
    owner: ClassVar = EventOwner.CONSUMER

    request: Int64
    ids: list[str]
    tokens: list[Int64]
    results: list[Raw]
    want: Int64

    def __post_init__(self) -> None:
        _in_parallel(self.ids, self.tokens, self.results)


class Failure(Struct, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """How one task went wrong."""

    id: str
    token: Int64
    error: Annotated[str, Meta(max_length=65_536)]
    """What is kept in its history: a traceback, a standard error."""
    retry_after_ms: Annotated[int, Meta(ge=0, le=10**12)] | None = None
    """Set by ``Retry(after)``: wait this long, whatever the policy says."""
    cancel: bool = False
    """Set by ``Cancel(reason)``: no further attempt, by the handler's own wish; ``error`` is the reason."""


class Fail(Event, tag="fail"):
    """These tasks failed."""

    type: ClassVar = EventType.FAIL
    owner: ClassVar = EventOwner.CONSUMER

    request: Int64
    failures: list[Failure]
    want: Int64


class Return(Event, tag="return"):
    """These tasks were delivered but not started; their attempt is not counted."""

    type: ClassVar = EventType.RETURN
    owner: ClassVar = EventOwner.CONSUMER

    request: Int64
    ids: list[str]
    tokens: list[Int64]
    want: Int64

    def __post_init__(self) -> None:
        _in_parallel(self.ids, self.tokens)


class Heartbeat(Event, tag="heartbeat"):
    """Still alive, and still holding these."""

    type: ClassVar = EventType.HEARTBEAT
    owner: ClassVar = EventOwner.CONSUMER

    ids: list[str]
    tokens: list[Int64]
    want: Int64

    def __post_init__(self) -> None:
        _in_parallel(self.ids, self.tokens)


class Settled(Event, tag="settled"):
    """What the request said is durable, but for the ``stale`` tokens, which changed nothing."""

    type: ClassVar = EventType.SETTLED
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    request: int
    stale: list[int] = []


class Revoke(Event, tag="revoke"):
    """Drop these deliveries: their tasks were cancelled, or handed on."""

    type: ClassVar = EventType.REVOKE
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    ids: list[str]
    tokens: list[int]


# ── caller and ConsumerBroker ────────────────────────────────────────────────────────────────────────────────────────


class Look(Event, tag="look"):
    """How does this task stand?"""

    type: ClassVar = EventType.LOOK
    owner: ClassVar = EventOwner.CALLER

    request: Int64
    id: str


class Watch(Event, tag="watch"):
    """Tell me when these tasks have ended: one :class:`Result` each."""

    type: ClassVar = EventType.WATCH
    owner: ClassVar = EventOwner.CALLER

    request: Int64
    ids: list[str]


class Cancel(Event, tag="cancel"):
    """Cancel these tasks, whatever they are doing."""

    type: ClassVar = EventType.CANCEL
    owner: ClassVar = EventOwner.CALLER

    request: Int64
    ids: list[str]
    reason: Annotated[str, Meta(max_length=65_536)] = "cancelled by a caller"


class Replay(Event, tag="replay"):
    """Give these dead letters another life; no ids: all of them."""

    type: ClassVar = EventType.REPLAY
    owner: ClassVar = EventOwner.CALLER

    request: Int64
    ids: list[str] = []


class Result(Event, tag="result"):
    """The task as it stands; None when the queue holds no task of this id."""

    type: ClassVar = EventType.RESULT
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    request: int
    id: str
    task: StoredTask | None


class Changed(Event, tag="changed"):
    """Durable: these ids were changed; of the others, why not."""

    type: ClassVar = EventType.CHANGED
    owner: ClassVar = EventOwner.CONSUMER_BROKER

    request: int
    ids: list[str]
    refused: dict[str, str] = {}


_ALL: tuple[type[Event], ...] = (
    Write, Written, Mark, Join, Welcome, Assign, Complete, Fail, Return, Heartbeat, Settled, Revoke, Look, Watch, Cancel, Replay,
    Result, Changed,
)  # fmt: skip

EVENTS_BY_OWNER: dict[EventOwner, tuple[type[Event], ...]] = {
    owner: tuple(event for event in _ALL if event.owner is owner) for owner in EventOwner
}

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
"""An event as the bytes of its frame."""


class decoder_for:  # noqa: N801 - reads as the function it is
    """Decodes the frames of one kind of sender; raises :class:`BadFrame` for anything that such a sender may not say."""

    def __init__(self, owner: EventOwner, *, values: bool = False) -> None:
        kinds: tuple[Any, ...] = EVENTS_BY_OWNER[owner]
        if values:
            kinds = tuple(AssignedEvent if kind is Assign else kind for kind in kinds)
        union: Any = kinds[0]
        for kind in kinds[1:]:
            union = union | kind
        self._decode = msgspec.json.Decoder(union).decode
        self._owner = owner

    def __call__(self, frame: bytes | bytearray | memoryview) -> Any:
        try:
            return self._decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # What it quotes of the frame may hold anything, and this will be printed.
            raise BadFrame(f"not an event that a {self._owner} may send: {ascii(str(error))[1:-1]}") from None
