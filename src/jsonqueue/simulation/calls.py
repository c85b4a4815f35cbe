"""What the processes of a small world can be called for. Each call runs the code of production, and says to the world what it says."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.event import Event, EventOwner, Mark, Write, Written, decoder_for, encode
from jsonqueue.simulation.reactions import EPOCH_MS
from jsonqueue.storage.checkpoint import Cut, final_checkpoint
from jsonqueue.storage.codec import Position
from jsonqueue.task import TaskIn

if TYPE_CHECKING:
    from jsonqueue.simulation.cast import Cast
    from jsonqueue.simulation.reactions import Act, Reactions
    from jsonqueue.simulation.still import StillFiles

__all__ = ["CONSUMER_BROKER", "MANAGER", "PUBLISHER_BROKER", "Calls"]

PUBLISHER_BROKER, CONSUMER_BROKER, MANAGER = 1, 2, 3
"""Who is called: the owner of what it opens."""

_FROM_CONSUMER = decoder_for(EventOwner.CONSUMER)
Say = Callable[[Any], None]


class Calls:
    """Each takes the broker (None: there is none yet), its files, where to say things, and its own arguments; it returns the broker."""

    def __init__(self, cast: Cast, real: Reactions) -> None:
        self._cast, self._real = cast, real

    def named(self) -> dict[str, Act]:
        """The calls, by name."""
        return {name.replace("_", " "): getattr(self, name) for name in vars(Calls) if name[0] != "_" and name != "named"}

    def open_pb(self, _: Any, files: StillFiles, say: Say, *paused: Any) -> PublisherBroker:
        broker = self._cast.publisher_broker(files, self._real.clock, self._real.config, announce=self._real.announce)
        broker.open()
        return broker

    def open_cb(self, _: Any, files: StillFiles, say: Say, *paused: Any) -> ConsumerBroker:
        real = self._real
        broker = self._cast.consumer_broker(files, real.clock, real.config, chance=Random(1), is_alive=real.is_alive)
        broker.open()
        return broker

    def write(
        self, broker: PublisherBroker, files: StillFiles, say: Say, asked: tuple[tuple[int, tuple[str, ...]], ...]
    ) -> PublisherBroker:
        def send(peer: int, event: Event) -> None:
            assert isinstance(event, Written)
            assert not event.refused
            say(("written", peer))

        broker.step([(index, Write(1, [TaskIn(id=task_id, data=Raw(b"1")) for task_id in ids])) for index, ids in asked], send)
        return broker

    def rotate(self, broker: PublisherBroker, files: StillFiles, say: Say) -> PublisherBroker:
        broker.rotate()
        say(("sealed",))
        return broker

    def forget(
        self, broker: PublisherBroker, files: StillFiles, say: Say, left: tuple[tuple[str, int], ...], through: int
    ) -> PublisherBroker:
        broker.forget(dict(left), through)
        return broker

    def mark(self, broker: ConsumerBroker, files: StillFiles, say: Say, number: int, epoch: int, *paused: Any) -> ConsumerBroker:
        return _turn(broker, say, [(0, Mark(number, epoch))])

    def turn(self, broker: ConsumerBroker, files: StillFiles, say: Say, peer: int, frame: bytes) -> ConsumerBroker:
        return _turn(broker, say, [(peer, _FROM_CONSUMER(frame))])

    def tick(self, broker: ConsumerBroker, files: StillFiles, say: Say) -> ConsumerBroker:
        return _turn(broker, say, [])

    def hung_up(self, broker: ConsumerBroker, files: StillFiles, say: Say, peer: int) -> ConsumerBroker:
        broker.detach(peer)
        return _turn(broker, say, [])

    def cut(self, broker: ConsumerBroker, files: StillFiles, say: Say) -> ConsumerBroker:
        cut = broker.cut()
        say(("cut", *cut) if cut else ("cut",))
        return broker

    def fold(self, _: Any, files: StillFiles, say: Say, progress: Position, published: Position, ms: int) -> None:
        done = self._cast.checkpoint(files, Cut(progress, published), config=self._real.config, at_ms=EPOCH_MS + ms)
        say(("left", tuple(sorted(done.left.items())), done.through_task))

    def stop(self, _: Any, files: StillFiles, say: Say, ms: int) -> None:
        final_checkpoint(files, config=self._real.config, at_ms=EPOCH_MS + ms)


def _turn(broker: ConsumerBroker, say: Say, arrivals: list[tuple[int, Event]]) -> ConsumerBroker:
    broker.step(arrivals, lambda peer, event: say(("frame", peer, encode(event))))
    return broker
