"""A storm of frames that are almost right: events of every kind, bent where JSON and events can be bent, as fast as they can be made.

Each is taken apart and stepped through as the loop does it with what a Pipe brings (``broker/test_frames.py`` does the same, more slowly,
with real Pipes). What is no event must be a :class:`BadFrame`; what still is one must be answered, and the answer must be one, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from msgspec.structs import replace

from broker.speech import CONFIG, Audience, said_by
from jsonqueue.errors import BadFrame
from jsonqueue.event import Assign, Event, EventOwner, Mark, decoder_for, encode
from jsonqueue.storage.folder import open_folder

__all__ = ["Count", "Storm"]

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\[\]{}:,"]+')
_ODD = [
    b"null", b"true", b"0", b"-1", b"1.5", b"1e999", b"9223372036854775807", b"9223372036854775808", b"9" * 30, b"9" * 5000, b"NaN",
    b"-Infinity", b"01", b'""', b'"t1"', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', rb'"\ud800"', rb'"\u0000"', b'"\x00"', b'"../../etc"',
    b'"\x1b[2J"', b'"' + b"x" * 300 + b'"', b"[]", b"{}", b"[[]]", b'{"a":1,"a":2}', b"[" * 2000, b"[" * 70 + b"]" * 70, b"{", b"}", b"]",
    b",", b":", b'"', b"\\", b"\xef\xbb\xbf", b"\0", b" ", b"\n", b'"type"', b'"write"', b'"assign"', b'"mark"', b'"__class__"',
    b'{"__reduce__":["os.system",["x"]]}',
]  # fmt: skip
_AT_ONCE = 64


class Count(NamedTuple):
    """What a storm was made of."""

    refused: int
    """Frames that were no event."""
    stepped: int
    """Events, however odd."""
    answers: int


class Storm:
    """Both brokers on files in ``folder``, and what beats upon them. ``decoder``: what takes the frames apart."""

    def __init__(self, seed: int, folder: Path, *, decoder: Callable[[EventOwner], Any] = decoder_for) -> None:
        self._chance = Random(seed)
        self.files = open_folder(folder, create=True)
        self._marks: list[Mark] = []
        # Nothing waits for the disk.
        config = replace(CONFIG, durability="process-crash", segment_max_bytes=2**30)
        self._audience = Audience(self.files, seed, self._marks.append, config)
        self.publisher_broker, self.consumer_broker = self._audience.publisher_broker, self._audience.consumer_broker
        self._brokers: dict[EventOwner, Any] = {
            EventOwner.PUBLISHER: self.publisher_broker,
            EventOwner.CONSUMER: self.consumer_broker,
            EventOwner.CALLER: self.consumer_broker,
        }
        for peer, broker in enumerate(self._brokers.values(), 1):
            broker.attach(peer)
        self._decode = {owner: decoder(owner) for owner in self._brokers}
        self._held: list[tuple[str, int]] = []
        self._answers = 0

    def close(self) -> None:
        self._audience.close()
        self.files.shut()

    def rage(self, refused_min: int) -> Count:
        """Until so many frames were refused."""
        refused = stepped = 0
        owners = list(self._brokers)
        while refused < refused_min:
            for peer, owner in enumerate(owners, 1):
                arrivals: list[tuple[int, Event]] = []
                decode = self._decode[owner]
                for frame in self._frames(owner):
                    try:
                        arrivals.append((peer, decode(frame)))
                    except BadFrame:
                        refused += 1
                stepped += len(arrivals)
                self._step(owner, arrivals)
        return Count(refused, stepped, self._answers)

    def _step(self, owner: EventOwner, arrivals: list[tuple[int, Event]]) -> None:
        marks, self._marks[:] = [(0, mark) for mark in self._marks[-1:]], []
        if owner is EventOwner.PUBLISHER:
            self._marks += [mark for _, mark in marks]
            self.publisher_broker.step(arrivals, self._hear)
        else:
            self.consumer_broker.step([*marks, *arrivals], self._hear)

    def _hear(self, peer: int, event: Event) -> None:
        self._answers += 1
        encode(event)
        if isinstance(event, Assign):
            self._held = [*self._held, *((task.id, task.token) for task in event.tasks)][-20:]

    # ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _frames(self, owner: EventOwner) -> list[bytes]:
        """A right one, so that work goes on, and it bent in many ways."""
        right = encode(said_by(owner, self._chance, self._held, names=2_000))
        tokens = _TOKENS.findall(right)
        return [right, *(self._bent(tokens) for _ in range(_AT_ONCE))]

    def _bent(self, tokens: list[bytes]) -> bytes:
        """One to three of its tokens left out, doubled, swapped or replaced; now and then a byte, or the end."""
        draw, bent = self._chance.random, list(tokens)
        while True:
            place = int(draw() * len(bent))
            how = int(draw() * 4)
            if how == 0:
                bent[place] = _ODD[int(draw() * len(_ODD))]
            elif how == 1:
                bent[place] = b""
            elif how == 2:
                bent[place] *= 2
            else:
                other = int(draw() * len(bent))
                bent[place], bent[other] = bent[other], bent[place]
            if draw() < 0.7:
                break
        frame = b"".join(bent)
        if draw() < 0.1 and frame:
            place = int(draw() * len(frame))
            frame = frame[:place] if draw() < 0.3 else frame[:place] + bytes((int(draw() * 256),)) + frame[place + 1 :]
        return frame
