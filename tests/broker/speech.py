"""What clients say, of every kind and rightly put, and both brokers to say it to: for tests that bend it afterwards, each in its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from msgspec import Raw

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.config import Config
from jsonqueue.event import (
    Cancel,
    Complete,
    Event,
    EventOwner,
    Fail,
    Failure,
    Heartbeat,
    Join,
    Look,
    Mark,
    Replay,
    Return,
    Watch,
    Write,
)
from jsonqueue.storage.files import Files
from jsonqueue.task import TaskIn

__all__ = ["CONFIG", "Audience", "TickingClock", "said_by"]

CONFIG = Config(lease_ms=100, finished_keep_max=50, disk_reserve_bytes=0)
"""Nothing piles up."""


class TickingClock:
    """A millisecond passes with each look at it."""

    ms = 0

    def wall_ms(self) -> int:
        return 1_763_000_000_000 + self.ms

    def monotonic_ms(self) -> int:
        self.ms += 1
        return self.ms


class Audience:
    """Both brokers, open."""

    def __init__(self, files: Files, seed: int, announce: Callable[[Mark], None], config: Config = CONFIG) -> None:
        self.clock = TickingClock()
        self.publisher_broker = PublisherBroker(files, self.clock, config, announce=announce)
        self.consumer_broker = ConsumerBroker(files, self.clock, config, chance=Random(seed), is_alive=lambda pid: True)
        self.publisher_broker.open()
        self.consumer_broker.open()

    def close(self) -> None:
        self.publisher_broker.close()
        self.consumer_broker.close()


def said_by(owner: EventOwner, chance: Random, held: Sequence[tuple[str, int]], *, names: int) -> Event:
    """An event that such a client may say. ``held``: ids and tokens for a consumer to speak of; ``names``: how many tasks there are."""

    def name() -> str:
        return f"t{chance.randrange(names)}"

    if owner is EventOwner.PUBLISHER:
        after = (name(),) if chance.random() < 0.1 else ()
        return Write(1, [TaskIn(id=name(), data=Raw(b'{"n":[1,"a"]}'), after=after, attempts_max=chance.choice((0, 1)))])
    if owner is EventOwner.CALLER:
        return chance.choice([Look(1, name()), Watch(2, [name()] * 2), Cancel(3, [name()]), Replay(4, [name()])])
    pairs = chance.sample(held, min(len(held), chance.randrange(3)))
    ids, tokens, want = [task_id for task_id, _ in pairs], [token for _, token in pairs], chance.randrange(5)
    says = [
        Join("odd", 1, want, ids, tokens),
        Complete(2, ids, tokens, [Raw(b"null")] * len(ids), want),
        Fail(3, [Failure(*pair, "no", retry_after_ms=5) for pair in pairs], want),
        Return(4, ids, tokens, want),
        Heartbeat(ids, tokens, want),
    ]
    return chance.choice(says)
