"""What the simulated clients have in common: a Pipe that they ask the manager for, and lose, and ask for anew.

What they decide is decided by the objects of production: a consumer's :class:`~jsonqueue.client.membership.Membership` and
:class:`~jsonqueue.client.holdings.Holdings`, a publisher's :class:`~jsonqueue.client.window.Window` and
:class:`~jsonqueue.client.patience.Patience`. Here and in ``publisher``, ``consumer`` and ``caller`` is what stands in for their threads,
their sockets and their users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonqueue.client.flow import PAUSE_S
from jsonqueue.event import Event, EventOwner
from jsonqueue.simulation.process import Actor
from jsonqueue.simulation.trace import VectorClock, merge
from jsonqueue.simulation.wire import Link

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["Client"]


class Client(Actor):
    """One of them."""

    owner: EventOwner

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.link: Link | None = None
        self._connecting = False
        self.wait_us = 0
        """How long it waits before it calls the manager."""

    @property
    def pause_us(self) -> int:
        """The same, asked for once before each call."""
        return self.wait_us

    def connect(self) -> None:
        """Ask the manager for a Pipe, soon."""
        if self.alive and self.link is None and not self._connecting:
            self._connecting = True
            self.world.scheduler.after(self.pause_us, self._register)

    def _register(self) -> None:
        if self.when_awake(self._register):
            self.world.manager.register(self, self.owner, self._answered)

    def _answered(self, link: Link | None) -> None:
        self._connecting = False
        if link is None:
            self.unavailable()
            self.connect()
        else:
            self.link = link
            self.connected(link)

    def unavailable(self) -> None:
        """There is no broker."""
        self.wait_us = int(PAUSE_S * 1_000_000)

    def connected(self, link: Link) -> None:
        """There is a Pipe."""

    def lost(self) -> None:
        """The Pipe is gone."""

    def say(self, event: Event) -> None:
        if self.link is not None:
            self.link.say(self, event, self.clock)

    def receive(self, link: Link, frame: bytes, clock: VectorClock) -> None:
        if self.when_awake(self.receive, link, frame, clock) and link is self.link:
            merge(self.clock, clock)
            self.enter(frame)

    def enter(self, frame: bytes) -> None:
        """A frame has come."""

    def hung_up(self, link: Link) -> None:
        if self.when_awake(self.hung_up, link) and link is self.link:
            self.link = None
            self.lost()
            self.connect()

    def drop_link(self) -> None:
        """Close the Pipe from this side."""
        link, self.link = self.link, None
        if link is not None:
            link.close(self)
            self.lost()
            self.connect()

    def kill(self, why: str) -> None:
        """kill -9."""
        if self.alive:
            self.note("dies", why)
            self.alive = False
            if self.link is not None:
                self.link.close(self)
