"""The simulated caller: what a TaskHandle and the commands ask of the consumer broker."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from jsonqueue.event import Cancel, Changed, Event, EventOwner, Look, Replay, Result, decoder_for
from jsonqueue.simulation.client import Client
from jsonqueue.simulation.wire import Link

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["CallerClient"]

_decode = decoder_for(EventOwner.CONSUMER_BROKER)


class CallerClient(Client):
    """Looks, cancels, replays; asks again when no answer comes."""

    owner = EventOwner.CALLER

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._unsent: deque[tuple[str, str]] = deque()
        self._asked: dict[int, tuple[str, str]] = {}
        self._requests = 0

    @property
    def done(self) -> bool:
        """Whether everything was answered."""
        return not self._unsent and not self._asked

    @property
    def unanswered(self) -> list[tuple[str, str]]:
        """What its successor has to ask."""
        return [*self._asked.values(), *self._unsent]

    def ask(self, what: str, task_id: str) -> None:
        """Ask this, now."""
        self._unsent.append((what, task_id))
        self._advance()

    def connected(self, link: Link) -> None:
        self.wait_us = 0
        self._advance()

    def lost(self) -> None:
        # What was asked may have happened or not; it is asked again, as production does, and counts as an operation of its own.
        self._unsent.extendleft(reversed(self._asked.values()))
        self._asked.clear()

    def _advance(self) -> None:
        if not self.when_awake(self._advance):
            return
        if self.link is None:
            self.connect()
            return
        while self._unsent and self.link is not None:
            self._requests += 1
            what, task_id = self._asked[self._requests] = self._unsent.popleft()
            self.note(what, f"request {self._requests}", (task_id,) if task_id else ())
            self.world.judge.history.invoke((self.name, self._requests), what, task_id)
            self.world.scheduler.after(self.world.scenario.patience_us, self._impatient, self.link, self._requests)
            self.say(_question(what, self._requests, task_id))

    def enter(self, frame: bytes) -> None:
        answer: Result | Changed = _decode(frame)
        asked = self._asked.pop(answer.request, None)
        if asked is None:
            return
        self.note("answered", f"request {answer.request}", (asked[1],) if asked[1] else ())
        self.world.judge.answered(self, asked, answer)

    def _impatient(self, link: Link, request: int) -> None:
        if self.when_awake(self._impatient, link, request) and link is self.link and request in self._asked:
            self.drop_link()


def _question(what: str, request: int, task_id: str) -> Event:
    if what == "look":
        return Look(request, task_id)
    return Cancel(request, [task_id]) if what == "cancel" else Replay(request)
