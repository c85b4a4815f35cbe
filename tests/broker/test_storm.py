"""That a storm of malformed frames finds what it is for, and that real brokers outlive one. The million of them is a lane of the faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.storm import Storm
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import connect, operate
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, ConnectionClosed
from jsonqueue.event import EventOwner, decoder_for


class _Careless(decoder_for):
    """A planted bug: it expects nothing but errors of grammar."""

    def __call__(self, frame: Any) -> Any:
        try:
            return self._decode(frame)
        except msgspec.DecodeError as error:
            raise BadFrame(str(error)) from None


def test_a_storm_finds_what_nobody_catches(tmp_path: Path) -> None:
    """A decoder that forgets bytes that are no text, or brackets without end, does not live through the first thousands."""
    storm = Storm(9, tmp_path / "queue", decoder=_Careless)
    try:
        with pytest.raises((UnicodeDecodeError, RecursionError)):
            storm.rage(10_000)
    finally:
        storm.close()


@pytest.mark.processes
@pytest.mark.slow
def test_real_brokers_outlive_their_share_of_it(tmp_path: Path) -> None:
    """A few hundred connections that each end with a frame that is none: the same two processes serve on."""
    with BrokerManager(tmp_path / "queue", Config(lease_ms=60_000)) as manager:
        before = _pids(manager.queue_dir)
        storm = Storm(3, tmp_path / "elsewhere")
        refused = 0
        for owner in (EventOwner.PUBLISHER, EventOwner.CONSUMER, EventOwner.CALLER):
            decode = decoder_for(owner)
            frames = [frame for _ in range(3) for frame in storm._frames(owner)]
            for frame in frames[:200]:
                try:
                    decode(frame)
                except BadFrame:
                    _is_hung_up_on(manager.queue_dir, owner, frame)
                    refused += 1
        storm.close()
        assert refused > 300
        with Publisher(manager) as publisher, Consumer(manager, lambda task: task.data + 1):
            assert publisher.publish(1).result(timeout=20) == 2
        assert _pids(manager.queue_dir) == before


def _is_hung_up_on(queue_dir: Path, owner: EventOwner, frame: bytes) -> None:
    pipe, _ = connect(queue_dir, owner)
    try:
        pipe.send(frame)
        with pytest.raises(ConnectionClosed):
            _read_to_the_end(pipe)
    finally:
        pipe.close()


def _read_to_the_end(pipe: Pipe) -> None:
    while pipe.receive(10):
        pass


def _pids(queue_dir: Path) -> list[tuple[int, int]]:
    return [(broker.pid, broker.restarts) for broker in operate(queue_dir, "status").status.brokers]
