"""The simulated Pipes: they delay, drop, duplicate, reorder and break.

A real Pipe is a socket pair on one machine: it delays and breaks, and what was written before a break may still be read. Dropping,
duplicating and reordering are harsher than anything it can do. They are simulated nevertheless, since whatever survives them is sound for
reasons better than "the kernel is kind", with two exceptions that the protocol openly leaves to the Pipe: a ``join`` and its ``welcome``
have no timeout of their own, so where one of them is drawn to be dropped, the Pipe breaks instead; and marks, all that passes between the
brokers, are delayed by nothing but the reader's own pace and never lost while both live.

Frames are the bytes of production, encoded and decoded by the code of production.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Annotated, Protocol

from msgspec import Meta, Struct

from jsonqueue.event import Event, encode
from jsonqueue.simulation.scheduler import Scheduler
from jsonqueue.simulation.trace import VectorClock

__all__ = ["End", "Link", "Share", "Weather", "require_order"]

Share = Annotated[float, Meta(ge=0, le=1)]
_Us = Annotated[int, Meta(ge=0)]

_NEVER_DROPPED = (b'{"type":"join"', b'{"type":"welcome"')


class Weather(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What Pipes do, each as a share of the frames."""

    delay_us: tuple[_Us, _Us] = (5, 60)
    """Shortest and longest way."""
    drop: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    """These may be overtaken by later frames."""

    def __post_init__(self) -> None:
        require_order(delay_us=self.delay_us)


def require_order(**ranges: tuple[int, int]) -> None:
    """Raises ``ValueError`` where the least of a range is more than its most."""
    for name, (least, most) in ranges.items():
        if least > most:
            raise ValueError(f"{name} goes from {least} to {most}: the smaller one comes first")


class End(Protocol):
    """Who holds one end of a link."""

    @property
    def reachable(self) -> bool:
        """Whether the process lives."""
        ...

    def receive(self, link: Link, frame: bytes, clock: VectorClock) -> None:
        """A frame has come."""
        ...

    def hung_up(self, link: Link) -> None:
        """The other end is closed, and all it said before has been read."""
        ...


class Link:
    """One connection between a client and a broker."""

    def __init__(
        self, scheduler: Scheduler, weather: Callable[[], Weather], chance: Random, *, number: int, client: End, broker: End
    ) -> None:
        self.number = number
        """The broker's number for this peer."""
        self.client, self.broker = client, broker
        self.fates: dict[str, int] = {}
        self._scheduler = scheduler
        self._weather = weather
        self._chance = chance
        self._latest = {True: 0, False: 0}
        self._gone = False
        self.open = True

    def say(self, sender: End, event: Event, clock: VectorClock) -> None:
        """Send an event to the other end."""
        if self.open:
            self.carry(sender, encode(event), clock)

    def carry(self, sender: End, frame: bytes, clock: VectorClock) -> None:
        """Send a frame to the other end; what becomes of it is a matter of the weather."""
        weather, chance = self._weather(), self._chance
        upwards = sender is self.client
        if weather.drop and chance.random() < weather.drop:
            if frame.startswith(_NEVER_DROPPED):
                self.snap()
            else:
                self._count("dropped")
            return
        known = dict(clock)
        self._carry(upwards, frame, known, weather)
        if weather.duplicate and chance.random() < weather.duplicate:
            self._count("duplicated")
            self._carry(upwards, frame, known, weather)

    def close(self, closer: End) -> None:
        """One end closes, or its process died: what it had said still arrives, then the other end learns of it."""
        if not self.open:
            return
        self.open = False
        other = self.broker if closer is self.client else self.client
        self._scheduler.at(self._arrival(closer is self.client, self._weather()), self._hang_up, other)

    def snap(self) -> None:
        """It breaks in the middle: both ends learn of it."""
        if self.open:
            self._count("broken")
            self.open = False
            for end in (self.client, self.broker):
                self._scheduler.after(self._weather().delay_us[0], self._hang_up, end)

    def vanish(self) -> None:
        """The machine is off: nothing of it is left, and nobody is there to notice."""
        self.open, self._gone = False, True

    def _carry(self, upwards: bool, frame: bytes, clock: VectorClock, weather: Weather) -> None:
        if weather.reorder and self._chance.random() < weather.reorder:
            self._count("reordered")
            late = self._chance.randint(weather.delay_us[1], 4 * weather.delay_us[1] + 1)
            self._scheduler.after(late, self._deliver, upwards, frame, clock)
        else:
            self._scheduler.at(self._arrival(upwards, weather), self._deliver, upwards, frame, clock)

    def _arrival(self, upwards: bool, weather: Weather) -> int:
        when = max(self._latest[upwards], self._scheduler.now_us + self._chance.randint(*weather.delay_us))
        self._latest[upwards] = when
        return when

    def _deliver(self, upwards: bool, frame: bytes, clock: VectorClock) -> None:
        end = self.broker if upwards else self.client
        if end.reachable and not self._gone:
            end.receive(self, frame, clock)

    def _hang_up(self, end: End) -> None:
        if end.reachable and not self._gone:
            end.hung_up(self)

    def _count(self, fate: str) -> None:
        self.fates[fate] = self.fates.get(fate, 0) + 1
