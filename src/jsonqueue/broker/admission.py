"""How clients get to their brokers: one that is up gets a Pipe to the client, and for one that is starting the client is held back."""

from __future__ import annotations

from jsonqueue.broker.child import ChildState
from jsonqueue.broker.crew import ROLES, Crew
from jsonqueue.broker.reception import Guest, Reception
from jsonqueue.channel.control import Attach
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import Refused, Register, Registered
from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.event import EventOwner

__all__ = ["HELD_BACK_MS", "Admission", "not_up"]

HELD_BACK_MS = 30_000
"""How long a client waits at most while its broker starts."""
_HELD_BACK_MAX = 1_024
"""When they are so many, those of them who have left are forgotten: half as many are at the desk at the most."""
_PUBLISHER, _CONSUMER = ROLES
_SERVED_BY = {EventOwner.PUBLISHER: _PUBLISHER, EventOwner.CONSUMER: _CONSUMER, EventOwner.CALLER: _CONSUMER}


class Admission:
    """Answers each guest who wants to register, at once or when its broker is up."""

    def __init__(self, reception: Reception, crew: Crew, config: Config, clock: Clock) -> None:
        self._reception = reception
        self._crew = crew
        self._config = config
        self._clock = clock
        self._held_back: list[tuple[Guest, Register]] = []
        self._last_peer = 0

    def let_in_held_back(self) -> None:
        """A broker is up, or it is known why it is not."""
        held_back, self._held_back = self._held_back, []
        for guest, register in held_back:
            self.let_in(guest, register)

    def let_in(self, guest: Guest, register: Register) -> None:
        """Give the guest a Pipe to its broker, or say why there is none, or hold it back."""
        if not self._reception.is_here(guest):
            return  # Its patience ended before the broker was up.
        role = _SERVED_BY[register.owner]
        if why := self._crew.waits_for(role):
            self._reception.answer(guest, Refused(not_up(role, why)))
            return
        child = self._crew.children.get(role)
        if child is not None and self._clock.monotonic_ms() < child.crowded_until_ms:
            self._reception.answer(guest, Refused(f"the {role.replace('_', ' ')} has no room for another client: {child.crowded}"))
            return
        # A process may have ended a moment ago, with the end of its control Pipe still to be read.
        if child is None or child.state is not ChildState.READY or child.reap() is not None:
            self._hold_back(guest, register)
            return
        try:
            brokers_end, clients_end = Pipe.pair()
        except OSError as error:
            self._reception.complain(error)
            self._reception.answer(guest, Refused(f"the manager has no room for another client: {error.strerror}"))
            return
        self._last_peer += 1
        pid = register.pid if guest.visitor.pid is None else guest.visitor.pid
        child.post(Attach(self._last_peer, register.owner, register.name, pid), brokers_end)
        self._crew.mind_backlog(child)
        self._reception.answer(guest, Registered(self._config), (clients_end,))

    def _hold_back(self, guest: Guest, register: Register) -> None:
        if len(self._held_back) >= _HELD_BACK_MAX:
            self._held_back = [held for held in self._held_back if self._reception.is_here(held[0])]
        self._held_back.append((guest, register))
        self._reception.keep_waiting(guest, HELD_BACK_MS)


def not_up(role: EventOwner, why: str) -> str:
    """In words, for whoever wants to get to it."""
    return f"the {role.replace('_', ' ')} is not up: {why}"
