"""Frames that are almost right, to both real brokers: whatever a client says, at worst its own connection is closed."""

from __future__ import annotations

import logging
import socket
import struct
from random import Random
from typing import Any

import msgspec
import pytest

from broker.speech import Audience, said_by
from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.channel.pipe import Pipe
from jsonqueue.errors import BadFrame, ConnectionClosed
from jsonqueue.event import Assign, Event, EventOwner, Mark, decoder_for, encode
from jsonqueue.storage.memory import MemoryFiles

FRAMES = 6_000
ODD: list[Any] = [None, 0, -1, 2**53, 2**63, 2**64, 1e308, "", "t1", "\u2028", "x" * 300, [], {}, [[]], True, "..", [None], ["t1"] * 3]
_decode_told = decoder_for(EventOwner.CONSUMER_BROKER)


class Clients:
    """One client of each kind, which say all sorts of things; a new one comes for each that was dropped."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        marks, self.marks = (Pipe(end) for end in Pipe.pair())
        audience = Audience(MemoryFiles(), seed, lambda mark: self.marks.post(encode(mark)))
        self.publisher_broker, self.consumer_broker = audience.publisher_broker, audience.consumer_broker
        self.loops = {EventOwner.PUBLISHER: BrokerLoop(self.publisher_broker, audience.clock)}
        self.loops[EventOwner.CONSUMER] = self.loops[EventOwner.CALLER] = BrokerLoop(self.consumer_broker, audience.clock)
        self.loops[EventOwner.CONSUMER].listen_to(marks)
        self.marks.post(encode(Mark(0, 0)))
        self.pipes: dict[EventOwner, Pipe] = {}
        self.attached = 0
        self.tokens: dict[str, int] = {}

    def say_something(self) -> None:
        owner = self.chance.choice(list(self.loops))
        pipe = self.pipes.get(owner) or self._come_in(owner)
        frame = self._bent(said_by(owner, self.chance, list(self.tokens.items()) or [("t1", 5)], names=40))
        try:
            with socket.socket(fileno=_copy(pipe)) as raw:
                raw.sendall(self._framed(frame))
            self.loops[owner].turn(0)
            self._learn(pipe.read())
        except (ConnectionClosed, BrokenPipeError):
            self.pipes.pop(owner).close()

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.close()
        for loop in set(self.loops.values()):
            loop.close()
        self.marks.close()

    def _come_in(self, owner: EventOwner) -> Pipe:
        ours, theirs = Pipe.pair()
        self.attached += 1
        self.loops[owner].attach(self.attached, Pipe(theirs), owner, "odd")
        self.pipes[owner] = Pipe(ours)
        return self.pipes[owner]

    def _learn(self, frames: list[bytes]) -> None:
        for frame in frames:
            if b'"assign"' in frame:
                told = _decode_told(frame)
                assert isinstance(told, Assign)
                self.tokens.update((task.id, task.token) for task in told.tasks)
        while len(self.tokens) > 20:
            del self.tokens[next(iter(self.tokens))]

    def _bent(self, event: Event) -> bytes:
        """Most events as they are; the others with a member less, or odd, or with a byte that does not belong there."""
        told = msgspec.json.decode(msgspec.json.encode(event))
        while self.chance.random() < 0.3:
            member = self.chance.choice(list(told))
            if self.chance.random() < 0.3 and len(told) > 1:
                del told[member]
            elif isinstance(told[member], list):
                told[member] = told[member] * self.chance.randrange(3)
            else:
                told[member] = self.chance.choice(ODD)
        body = bytearray(msgspec.json.encode(told))
        if self.chance.random() < 0.05:
            body[self.chance.randrange(len(body))] = self.chance.randrange(256)
        return bytes(body)

    def _framed(self, body: bytes) -> bytes:
        size = len(body) if self.chance.random() < 0.98 else self.chance.choice((-1, 0, 3, 2**31 - 1))
        return struct.pack("!i", size) + body


def _copy(pipe: Pipe) -> int:
    with socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as copy:
        return copy.detach()


@pytest.mark.parametrize("seed", range(2))
def test_no_frame_ends_a_broker(seed, caplog):
    """Thousands of frames, many of them bent: both brokers take every turn to its end, and still work afterwards."""
    caplog.set_level(logging.CRITICAL, "jsonqueue.broker")
    clients = Clients(seed)
    try:
        for _ in range(FRAMES):
            clients.say_something()
        dropped = clients.attached - len(clients.pipes)
        assert dropped > 100, "the frames were bent"
        assert clients.publisher_broker.counters()["published"] > 0
        assert clients.consumer_broker.counters()["deliveries"] > 10, "and yet work went on"
    finally:
        clients.close()


def test_nothing_that_a_client_says_acts_upon_the_terminal_that_shows_the_log(caplog):
    """Neither its name nor what an error quotes of its frame can clear a screen or forge a line."""
    clients = Clients(0)
    ours, theirs = Pipe.pair()
    peer = Pipe(ours)
    clients.loops[EventOwner.CALLER].attach(1, Pipe(theirs), EventOwner.CALLER, "x\x1b[2J\nforged")
    peer.send(b'{"type":"look","request":1,"id":"a","\\u001b]52;c;x\\u0007\\r\\nforged":1}')
    clients.loops[EventOwner.CALLER].turn(0)
    (said,) = caplog.messages
    assert "x\\x1b[2J\\nforged" in said
    assert "\\x1b]52;c;x\\x07" in said
    assert said.isprintable()
    peer.close()
    clients.close()


@pytest.mark.parametrize(
    ("owner", "frame"),
    [
        (EventOwner.CONSUMER, b'{"type":"complete","request":1,"ids":["a"],"tokens":[1],"results":[],"want":1}'),
        (EventOwner.CONSUMER, b'{"type":"return","request":1,"ids":["a"],"tokens":[],"want":1}'),
        (EventOwner.CONSUMER, b'{"type":"heartbeat","ids":[],"tokens":[1],"want":1}'),
        (EventOwner.CONSUMER, b'{"type":"join","name":"c","pid":1,"want":1,"ids":["a"]}'),
        (EventOwner.CALLER, b'{"type":"look","request":1,"id":"\xff"}'),
        (EventOwner.CALLER, b'{"type":"look","request":1,"i\xc7":"a"}'),
    ],
)
def test_what_only_looks_like_an_event_costs_the_connection(owner, frame):
    """Lists that do not fit together, and bytes that are no text, are found while decoding: no step sees them."""
    with pytest.raises(BadFrame):
        decoder_for(owner)(frame)
