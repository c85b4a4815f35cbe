"""A broker made of socketpairs: the test says, line by line, what it hears and what it answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Raw

from jsonqueue.channel.pipe import Pipe
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable
from jsonqueue.event import Assign, Event, EventOwner, Heartbeat, Join, Settled, Welcome, decoder_for, encode
from jsonqueue.task import StoredTask, Task, TaskStatus

PATIENCE_S = 30.0
"""Nothing here takes long; a test that waits so long has failed."""

E = TypeVar("E", bound=Event)


class Peer:
    """The broker's end of one client's Pipe."""

    def __init__(self, pipe: Pipe, owner: EventOwner) -> None:
        self._pipe = pipe
        self._decode = decoder_for(owner)
        self._heard: list[Any] = []

    def hear(self, kind: type[E]) -> E:
        """The next event, which must be of this kind. (Heartbeats come when they come.)"""
        while True:
            while not self._heard:
                frames = self._pipe.receive(PATIENCE_S)
                assert frames, f"no {kind.__name__} came"
                self._heard += [self._decode(frame) for frame in frames]
            event = self._heard.pop(0)
            if isinstance(event, kind):
                return event
            assert isinstance(event, Heartbeat), event

    def say(self, *events: Event) -> None:
        self._pipe.post(*map(encode, events))

    def say_bytes(self, frame: bytes) -> None:
        self._pipe.post(frame)

    def silent(self, seconds: float = 0.0) -> bool:
        """Whether nothing (more) has come. For things that would have come at once."""
        self._heard += [self._decode(frame) for frame in self._pipe.receive(seconds)]
        return not self._heard

    def hang_up(self) -> None:
        self._pipe.close()


class FakeBroker:
    """Where clients connect to. ``up = False``: there is none."""

    def __init__(self, owner: EventOwner, config: Config | None = None) -> None:
        self.config = config or Config()
        self.up = True
        self._owner = owner
        self._calls: queue.Queue[Peer] = queue.Queue()
        self._peers: list[Peer] = []

    def connect(self, timeout: float) -> tuple[Pipe, Config]:
        """Handed to the client as its way to connect."""
        if not self.up:
            raise BrokerUnavailable("queue_data")
        ours, theirs = Pipe.pair()
        peer = Peer(Pipe(ours), self._owner)
        self._peers.append(peer)
        self._calls.put(peer)
        return Pipe(theirs), self.config

    def accept(self) -> Peer:
        """The next client that connects."""
        return self._calls.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.up = False
        for peer in self._peers:
            peer.hang_up()


class Side:
    """Runs a call in a thread beside the test, which plays the broker meanwhile."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._result = call()
        except BaseException as error:  # noqa: BLE001 - raised again where the test can see it
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it is still waiting"
        if self._error is not None:
            raise self._error
        return self._result


def welcome(broker: FakeBroker, *, lease_ms: int = 30_000, stale: list[int] | None = None) -> tuple[Peer, Join]:
    """Let a consumer in."""
    peer = broker.accept()
    join = peer.hear(Join)
    peer.say(Welcome(f"{join.name}@{join.pid}", 1, lease_ms, stale or []))
    return peer, join


def delivered(number: int, data: bytes = b"null", *, attempt: int = 1) -> StoredTask:
    """A task as it comes in an Assign; its token is its number and a hundred."""
    return Task(f"t{number}", number, TaskStatus.IN_PROGRESS, 1, Raw(data), attempt=attempt, token=100 + number)


def assign(*numbers: int) -> Assign:
    return Assign([delivered(number, str(number).encode()) for number in numbers])


def settle(peer: Peer, event: Any, stale: list[int] | None = None) -> None:
    peer.say(Settled(event.request, stale or []))
