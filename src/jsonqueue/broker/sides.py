"""What is different between the processes of the two brokers: their locks, the marks that one says and the other hears, what they leave."""

from __future__ import annotations

from random import Random
from typing import Protocol

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.liveness import is_alive
from jsonqueue.broker.loop import Broker, BrokerLoop
from jsonqueue.broker.marks import MarksOutlet
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.channel.control import Forget, News, Rotated, Start
from jsonqueue.channel.pipe import Pipe
from jsonqueue.clock import SystemClock
from jsonqueue.event import EventOwner
from jsonqueue.storage.files import Files
from jsonqueue.storage.locks import LockName

__all__ = ["Side", "side_of"]


class Side(Protocol):
    """What a process asks of its broker, whichever of the two it is."""

    @property
    def lock(self) -> LockName:
        """Which one is its own for life."""
        ...

    @property
    def broker(self) -> Broker: ...

    @property
    def ready(self) -> bool:
        """Whether it can serve what comes."""
        ...

    @property
    def unsettled(self) -> int:
        """How many tasks are out there, of which it may still hear before it ends."""
        ...

    def use_marks(self, loop: BrokerLoop, pipe: Pipe) -> None:
        """The way to its sibling, from now on."""

    def met(self, peer: int, pid: int) -> None:
        """The manager knows the process of this client."""

    def drain(self) -> None:
        """Hand out nothing more."""

    def rotate(self, request: int) -> News:
        """Begin a new segment, for a checkpoint; what the manager is told of it."""
        ...

    def forget(self, order: Forget) -> None:
        """These tasks have left the queue."""


class PublisherSide:
    """Says marks."""

    lock: LockName = "published"
    ready = True
    unsettled = 0
    """What a publisher has said is answered in the same turn."""

    def __init__(self, start: Start, files: Files, clock: SystemClock) -> None:
        self._outlet = MarksOutlet()
        self._broker = PublisherBroker(files, clock, start.config, announce=self._outlet.announce)

    @property
    def broker(self) -> Broker:
        return self._broker

    def use_marks(self, loop: BrokerLoop, pipe: Pipe) -> None:
        self._broker.assure()  # A ConsumerBroker that starts opens the log by its name.
        self._outlet.renew(pipe, loop)
        self._outlet.announce(self._broker.mark)

    def met(self, peer: int, pid: int) -> None:
        """It holds nothing of theirs."""

    def drain(self) -> None:
        """It hands out nothing."""

    def rotate(self, request: int) -> News:
        self._broker.rotate()
        return Rotated(request)

    def forget(self, order: Forget) -> None:
        self._broker.forget(order.ids, order.through)


class ConsumerSide:
    """Hears marks."""

    lock: LockName = "progress"

    def __init__(self, start: Start, files: Files, clock: SystemClock) -> None:
        self._broker = ConsumerBroker(files, clock, start.config, chance=Random(start.seed), is_alive=is_alive)

    @property
    def broker(self) -> Broker:
        return self._broker

    @property
    def ready(self) -> bool:
        return self._broker.ready

    @property
    def unsettled(self) -> int:
        return self._broker.unsettled

    def met(self, peer: int, pid: int) -> None:
        self._broker.met(peer, pid)

    def drain(self) -> None:
        self._broker.drain()

    def use_marks(self, loop: BrokerLoop, pipe: Pipe) -> None:
        loop.listen_to(pipe)

    def rotate(self, request: int) -> News:
        cut = self._broker.cut()
        return Rotated(request) if cut is None else Rotated(request, progress=cut.progress, published=cut.published)

    def forget(self, order: Forget) -> None:
        """It holds the tasks themselves, and retires them by its own records."""


def side_of(start: Start, files: Files, clock: SystemClock) -> Side:
    """That of the broker which the manager asks for."""
    return (PublisherSide if start.role is EventOwner.PUBLISHER_BROKER else ConsumerSide)(start, files, clock)
