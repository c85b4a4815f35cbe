"""What a broker's loop holds in place of sockets: simulated ends of Pipes, and the selector that says which of them can be read.

The loop is that of production, :class:`~jsonqueue.broker.loop.BrokerLoop`; its selector comes in by the door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from selectors import EVENT_READ, BaseSelector, SelectorKey
from typing import TYPE_CHECKING, Any

from jsonqueue.channel.pipe import FRAME_MAX_BYTES
from jsonqueue.errors import BadFrame, ConnectionClosed
from jsonqueue.simulation.trace import VectorClock, merge
from jsonqueue.simulation.verdict import Violation

if TYPE_CHECKING:
    from jsonqueue.simulation.wire import Link

__all__ = ["Readable", "SimulatedPipe", "SimulatedSelector"]


class Readable:
    """Something that a loop watches. It rings when there is something to read."""

    def __init__(self, selector: SimulatedSelector) -> None:
        self._selector = selector

    def ring(self) -> None:
        """There is something to read."""
        self._selector.ring(self)


class SimulatedSelector(BaseSelector):
    """Which of the Readables have rung. Never waits, but notes that a real one would: the scheduler calls for a turn when there is
    something to do."""

    def __init__(self, wake: Callable[[], None], sleeps: Callable[[], None] = lambda: None) -> None:
        """``sleeps`` is called where a real one would wait."""
        self._sleeps = sleeps
        self._wake = wake
        self._keys: dict[Any, SelectorKey] = {}
        self._rung: dict[Any, None] = {}  # a dict, for its order

    @property
    def anything(self) -> bool:
        """Whether the next turn would find something."""
        return any(readable in self._keys for readable in self._rung)

    def ring(self, readable: Readable) -> None:
        """It can be read, from now on until it is hushed."""
        self._rung[readable] = None
        if readable in self._keys:
            self._wake()

    def hush(self, readable: Readable) -> None:
        """Everything was read."""
        self._rung.pop(readable, None)

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = self._keys[fileobj] = SelectorKey(fileobj, 0, events, data)
        if fileobj in self._rung:
            self._wake()
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        found = [(self._keys[readable], EVENT_READ) for readable in self._rung if readable in self._keys]
        if not found and timeout != 0:
            self._sleeps()
        return found

    def get_map(self) -> Mapping[Any, SelectorKey]:
        return self._keys


class SimulatedPipe(Readable):
    """A Pipe as the loop holds it: whole frames, and with each what its sender knew. What it takes is at once on its way.

    Its limits are those of a real one. What a client says beyond them is its own mistake, and none that any weather makes.
    """

    pending = 0

    def __init__(
        self,
        selector: SimulatedSelector,
        knowledge: VectorClock,
        link: Link | None = None,
        closed: Callable[[], None] = lambda: None,
        *,
        frame_max: int = FRAME_MAX_BYTES,
    ) -> None:
        super().__init__(selector)
        self._knowledge = knowledge
        self._link = link
        self._closed = closed
        self._frame_max = frame_max
        self._frames: list[tuple[bytes, VectorClock]] = []
        self._ended = False

    def arrive(self, frame: bytes, clock: VectorClock) -> None:
        """A frame has come."""
        if len(frame) > self._frame_max:
            who = self._link.client.name if self._link else "somebody"  # type: ignore[attr-defined]
            raise Violation("broke", f"{who} says {len(frame):,} bytes at once; a broker takes {self._frame_max:,}, and hangs up")
        self._frames.append((frame, clock))
        self.ring()

    def end(self) -> None:
        """The other end is closed; nothing more will come."""
        self._ended = True
        self.ring()

    def read(self) -> list[bytes]:
        """Everything that has come."""
        if self._frames:
            arrived, self._frames = self._frames, []
            for _, clock in arrived:
                merge(self._knowledge, clock)
            if not self._ended:
                self._selector.hush(self)
            return [frame for frame, _ in arrived]
        if self._ended:
            raise ConnectionClosed("the other end of the Pipe is closed")
        self._selector.hush(self)
        return []

    def post(self, frame: bytes) -> None:
        """Send a frame."""
        if len(frame) > FRAME_MAX_BYTES:
            raise BadFrame(f"a frame of {len(frame)} bytes, where at most {FRAME_MAX_BYTES} are allowed")
        if self._link is None or not self._link.open:
            raise ConnectionClosed("the Pipe broke")
        self._link.carry(self._link.broker, frame, self._knowledge)

    def flush(self) -> bool:
        """Nothing ever waits."""
        return True

    def close(self) -> None:
        """The loop parts from it."""
        if self._link is not None and self._link.open and not self._ended:
            raise Violation("broke", f"the broker's loop dropped the Pipe of {self._link.client.name}, who had said nothing wrong")  # type: ignore[attr-defined]
        if self._link is not None and self._frames:
            said = f"{len(self._frames)} frames of {self._link.client.name}"  # type: ignore[attr-defined]
            raise Violation("wasted", f"the broker's loop dropped a Pipe with {said} unread: what they settle is done again")
        self._selector.hush(self)
        self._closed()
