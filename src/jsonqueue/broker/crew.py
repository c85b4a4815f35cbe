"""The two broker processes of a manager: started, started again, told things, ended. What they say is the supervisor's to hear."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Sequence
from functools import partial

from jsonqueue.broker.child import Child, ChildState
from jsonqueue.broker.narration import Narration
from jsonqueue.broker.restarts import Postponed, Restarts
from jsonqueue.channel.control import Marks, Order
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import BrokerStatus
from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.errors import is_want, words_of
from jsonqueue.event import EventOwner

__all__ = ["ROLES", "Crew", "other_than"]

_PUBLISHER, _CONSUMER = ROLES = (EventOwner.PUBLISHER_BROKER, EventOwner.CONSUMER_BROKER)


class Crew:
    """Calls ``serve(child)`` when a child has said something, has room for more, or has hung up."""

    def __init__(
        self,
        queue_dir: str,
        config: Config,
        clock: Clock,
        say: Narration,
        selector: selectors.BaseSelector,
        serve: Callable[[Child], None],
    ) -> None:
        self._queue_dir = queue_dir
        self._config = config
        self._clock = clock
        self._say = say
        self._selector = selector
        self._serve = serve
        self.children: dict[EventOwner, Child] = {}
        """Those that have a process, be it a dying one."""
        self.restarts = {role: Restarts() for role in ROLES}
        self.postponed = Postponed()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_both(self) -> None:
        """Start both, with a Pipe for the marks between them."""
        publisher_end, consumer_end = Pipe.pair()
        try:
            self._start(_PUBLISHER, publisher_end)
        except BaseException:
            os.close(consumer_end)
            raise
        self._start(_CONSUMER, consumer_end)

    def start_again(self, roles: Sequence[EventOwner]) -> None:
        """Start these, or put it off where there is a want of processes, open files or memory."""
        try:
            if len(roles) == len(ROLES):
                self.start_both()
            else:
                self._start_one(*roles)
        except (OSError, MemoryError) as error:
            if not is_want(error):
                raise
            self._postpone([role for role in roles if role not in self.children], error)

    def kill_all(self, why: str) -> None:
        """End all of them at once."""
        for child in self.children.values():
            if child.state is not ChildState.DYING:
                self._selector.unregister(child.control)
            if child.reap() is None:
                self._say.broker_killed(child.role, pid=child.pid, why=why)
            child.kill()
        self.children.clear()

    def _start_one(self, role: EventOwner) -> None:
        ours, others = Pipe.pair()
        other = self.children.get(other_than(role))
        if other is None:
            os.close(others)  # It is down as well, and brings a new one when it comes back.
        else:
            other.post(Marks(), others)
        self._start(role, ours)

    def _start(self, role: EventOwner, marks: int) -> None:
        child = Child(role, self._queue_dir, self._config, marks, now_ms=self._clock.monotonic_ms())
        try:
            self._selector.register(child.control, selectors.EVENT_READ, partial(self._serve, child))
        except BaseException:
            child.kill()
            raise
        self.children[role] = child
        self.postponed.started(role)

    def _postpone(self, roles: Sequence[EventOwner], error: BaseException) -> None:
        for role in roles:
            if role not in self.postponed.why:
                self._say.broker_postponed(role, words_of(error))
        self.postponed.postpone(roles, error, self._clock.monotonic_ms())

    # ── what they are told ───────────────────────────────────────────────────────────────────────────────────────────

    def post(self, role: EventOwner, order: Order) -> None:
        """Tell a broker something, if there is one to hear it."""
        child = self.children.get(role)
        if child is not None and child.state is not ChildState.DYING:
            child.post(order)
            self.mind_backlog(child)

    def mind_backlog(self, child: Child) -> None:
        """See to it that what its Pipe had no room for goes out when there is some."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.control.pending else 0)
        if self._selector.get_key(child.control).events != events:
            self._selector.modify(child.control, events, partial(self._serve, child))

    # ── how they stand ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_ready(self) -> bool:
        """Whether both serve."""
        return all(role in self.children and self.children[role].state is ChildState.READY for role in ROLES)

    @property
    def dying(self) -> list[Child]:
        """Those that have hung up, and are to be reaped."""
        return [child for child in self.children.values() if child.state is ChildState.DYING]

    def waits_for(self, role: EventOwner) -> str:
        """Why a broker is not up that should be, if it waits for something; else empty."""
        child = self.children.get(role)
        return child.waits_for if child is not None else self.postponed.why.get(role, "")

    def status(self) -> list[BrokerStatus]:
        """Of both, with the figures that they told last."""
        return [self._status_of(role, self.restarts[role].count) for role in ROLES]

    def _status_of(self, role: EventOwner, restarts: int) -> BrokerStatus:
        child = self.children.get(role)
        if child is None or child.state is ChildState.DYING:
            return BrokerStatus(role, "down", restarts=restarts, waits_for=self.waits_for(role))
        up_ms = self._clock.monotonic_ms() - child.started_ms
        return BrokerStatus(role, child.state, child.pid, child.epoch, restarts, up_ms, child.peers, child.counters, child.waits_for)


def other_than(role: EventOwner) -> EventOwner:
    """The other one of the two."""
    return _CONSUMER if role is _PUBLISHER else _PUBLISHER
