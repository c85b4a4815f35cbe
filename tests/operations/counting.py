"""A whole queue in one thread, on real Pipes and a disk in memory, with everything counted that costs something.

Publisher, both brokers in their loops, and a consumer's books take turns, so that each run does exactly the same: what is counted is a
property of the code, not of the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from msgspec import Raw

from jsonqueue.broker import consumer_broker, loop, publisher_broker
from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.broker.marks import MarksOutlet
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.holdings import Holdings
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.event import EventOwner, Join, Settled, Welcome, decoder_for, encode
from jsonqueue.storage.memory import MemoryFiles

_COUNTED_FILE_CALLS = ("open", "read", "write_at", "sync", "sync_folder", "has_name", "list", "rename", "unlink")


class FixedClock:
    """It is always the same moment: nothing is ever due."""

    def wall_ms(self) -> int:
        return 1_763_000_000_000

    def monotonic_ms(self) -> int:
        return 1_000


class CountingFiles(MemoryFiles):
    """Counts each call, and the bytes written."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        for name in _COUNTED_FILE_CALLS:
            setattr(self, name, _counted(getattr(self, name), f"file {name}", counts))
        write_at = self.write_at

        def measured(handle: int, offset: int, data: bytes) -> int:
            counts["bytes written"] += len(data)
            return write_at(handle, offset, data)

        self.write_at = measured  # type: ignore[method-assign]


class CountingPipe(Pipe):
    """Counts the calls to the kernel, the frames and the bytes sent."""

    def __init__(self, fd: int, counts: Counter[str]) -> None:
        super().__init__(fd)
        self._counts = counts

    def _framed(self, frames: Any) -> bytes:
        frames = tuple(frames)
        data = super()._framed(frames)
        self._counts["frames"] += len(frames)
        self._counts["bytes sent"] += len(data)
        return data

    def _send_some(self, data: memoryview) -> int:
        self._counts["pipe send"] += 1
        return super()._send_some(data)

    def _receive_into(self, view: memoryview) -> int:
        self._counts["pipe recv"] += 1
        return super()._receive_into(view)


def _counted(call: Callable[..., Any], name: str, counts: Counter[str]) -> Callable[..., Any]:
    def count(*arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        return call(*arguments, **options)

    return count


class OneThread:
    """The queue, a publisher and a consumer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._count_json(monkeypatch)
        config, clock, files = Config(disk_reserve_bytes=0), FixedClock(), CountingFiles(self.counts)
        marks = self._marks = [CountingPipe(fd, self.counts) for fd in Pipe.pair()]
        outlet = MarksOutlet()
        self._publisher_broker = PublisherBroker(files, clock, config, announce=outlet.announce)
        self._publisher_broker.open()
        self._publisher_loop = BrokerLoop(self._publisher_broker, clock)
        outlet.renew(marks[0], self._publisher_loop)
        outlet.announce(self._publisher_broker.mark)
        self._consumer_broker = ConsumerBroker(files, clock, config, chance=Random(1))
        self._consumer_broker.open()
        self._consumer_loop = BrokerLoop(self._consumer_broker, clock)
        self._consumer_loop.listen_to(marks[1])
        self.publisher = Publisher(
            "queue", clock=clock, chance=Random(2), connect=lambda timeout: (self._pipe_to_publisher_broker(), config)
        )
        self._consumer = self._pipe_to(self._consumer_loop, EventOwner.CONSUMER)
        self._decode = _counted(decoder_for(EventOwner.CONSUMER_BROKER, values=True), "JSON decode", self.counts)
        self._books = Holdings(concurrency=1)

    def _count_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name in ((loop, "encode"), (publisher_broker, "encode_records"), (consumer_broker, "encode_records")):
            monkeypatch.setattr(module, name, _counted(getattr(module, name), "JSON encode", self.counts))
        monkeypatch.setattr(consumer_broker, "decode_published", _counted(consumer_broker.decode_published, "JSON decode", self.counts))
        monkeypatch.setattr(loop, "_decode_mark", _counted(loop._decode_mark, "JSON decode", self.counts))
        decoders = {owner: _counted(decode, "JSON decode", self.counts) for owner, decode in loop._DECODERS.items()}
        monkeypatch.setattr(loop, "_DECODERS", decoders)

    def close(self) -> None:
        """Hang up everywhere."""
        self.publisher.close()
        self._consumer.close()
        self._marks[0].close()
        for turns in (self._publisher_loop, self._consumer_loop):
            turns.close()

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """What is counted within."""
        self.counts.clear()
        yield self.counts

    def consume(self, *, at_most: int | None = None) -> int:
        """Work until the queue has nothing more to hand out, by a handler that takes no time; how many tasks were settled."""
        if not self._books.stats.connections:
            self._books.stats.connections = 1
            self._say(Join("books", 1, self._books.want))
        before = self._books.stats.completed
        while self._hear() or self._consumer_loop.turn(0):
            self._work()
        return self._books.stats.completed - before

    def _work(self) -> None:
        slot = self._books.slots[0]
        while self._books.take(slot, 0.0) is not None:
            self._books.settle(slot, Raw(b"null"), 0.0)
            if self._books.frame_full:
                self._flush()
        self._flush()

    def _flush(self) -> None:
        if self._books.unsent:
            self._say(*self._books.pack())

    def _say(self, *events: Any) -> None:
        self._consumer.post(*map(_counted(encode, "JSON encode", self.counts), events))

    def _hear(self) -> bool:
        frames = self._consumer.read()
        for event in map(self._decode, frames):
            if isinstance(event, Settled):
                self._books.settled(event.request, event.stale)
            elif not isinstance(event, Welcome):
                self._books.assign(event.tasks, 0.0)
        return bool(frames)

    def _pipe_to_publisher_broker(self) -> Pipe:
        pipe = self._pipe_to(self._publisher_loop, EventOwner.PUBLISHER)
        receive = pipe.receive

        def served_first(timeout: float | None = None) -> list[bytes]:
            self._publisher_loop.turn(0)
            return receive(timeout)

        pipe.receive = served_first  # type: ignore[method-assign]
        return pipe

    def _pipe_to(self, broker: BrokerLoop, owner: EventOwner) -> Pipe:
        ours, theirs = (CountingPipe(fd, self.counts) for fd in Pipe.pair())
        broker.attach(1, theirs, owner, "")
        return ours
