"""The simulated consumer, over the membership and the books of a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonqueue.client.holdings import Holdings, Slot
from jsonqueue.client.membership import Membership
from jsonqueue.client.outcome import Verdict
from jsonqueue.event import Event, EventOwner, Failure, Settled, Welcome, decoder_for
from jsonqueue.simulation.client import Client
from jsonqueue.simulation.wire import Link

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["ConsumerClient"]

_decode = decoder_for(EventOwner.CONSUMER_BROKER, values=True)

_STOP_US = 30_000_000
"""How long a consumer that was asked to stop may take, as `Consumer.stop` has it."""


class ConsumerClient(Client):
    """Runs tasks. Its workers are as many as its slots; what it says and when, its membership decides."""

    owner = EventOwner.CONSUMER

    def __init__(self, world: World, name: str, pid: int, concurrency: int) -> None:
        super().__init__(world, name)
        self.pid = pid
        self.holdings = Holdings(concurrency)
        self.membership = Membership(self.holdings, name=name.partition(".")[0])
        self._tend_us: int | None = None
        self._last_link = 0

    def kill(self, why: str) -> None:
        self.world.pids.discard(self.pid)
        super().kill(why)

    @property
    def pause_us(self) -> int:
        return int(self.membership.next_try() * 1_000_000)

    def has_joined_since(self, link: Link) -> bool:
        """Whether it has had a later Pipe than this one."""
        return self._last_link > link.number

    def connected(self, link: Link) -> None:
        self._last_link = link.number
        self.say(self.membership.join(self.pid))
        self._look_after()

    def lost(self) -> None:
        self.membership.lost()

    @property
    def _now(self) -> float:
        return self.world.scheduler.now_us / 1_000_000

    def enter(self, frame: bytes) -> None:
        event: Any = _decode(frame)
        if isinstance(event, Settled):
            self.world.judge.settled(self, event)
        self.membership.enter(event, self._now)
        if isinstance(event, Welcome) or self.membership.stopping:
            self._speak(self.membership.outgoing())
        self._work()

    def _work(self) -> None:
        for slot in self.holdings.slots:
            if slot.task is None:
                self._start_next(slot, None)
        self._leave_if_done()
        self._look_after()

    def _start_next(self, slot: Slot, verdict: Verdict | None) -> None:
        task, speak = self.membership.next_task(slot, verdict, self._now)
        if speak:
            self._speak(self.membership.outgoing())
        task = task or self.holdings.take(slot, self._now)
        if task is None:
            return
        self.note("run", f"attempt {task.attempt}", (task.id,))
        self.world.meter.started(task.id, self.world.scheduler.now_us)
        self.world.judge.runs(self, task)
        plan = self.world.agenda.arrival(task.id)
        if plan.kills(task.attempt):
            self.world.scheduler.after(plan.lasts_us, self.world.lose_consumer, self, f"poisoned by {task.id}")
        else:
            # Its effects come at the beginning: all the time that it takes, its consumer may die with them done and its outcome unsaid.
            self.world.scheduler.after(plan.lasts_us, self._finish, slot, task.token, self.world.agenda.handle(task))

    def _finish(self, slot: Slot, token: int, verdict: Verdict) -> None:
        if not self.when_awake(self._finish, slot, token, verdict) or slot.task is None or slot.task.token != token:
            return
        task = slot.task
        self.note("failed" if isinstance(verdict, Failure) else "done", "", (task.id,))
        self.world.meter.finished(self.name, task.id, slot.started, self._now)
        self.world.judge.waste.run_begins_or_ends(self)
        self._start_next(slot, verdict)
        self._leave_if_done()
        self._look_after()

    def _speak(self, events: list[Event]) -> None:
        if events:
            self.world.judge.says(self, events)
        for event in events:
            self.say(event)

    def _look_after(self) -> None:
        """See that the membership is tended when its patience is over."""
        if self.link is None:
            return
        when_us = self.world.scheduler.now_us + int(self.membership.patience(self._now) * 1_000_000) + 1
        if self._tend_us is None or when_us < self._tend_us:
            self._tend_us = when_us
            self.world.scheduler.at(when_us, self._tend, when_us)

    def _tend(self, when_us: int) -> None:
        if when_us == self._tend_us and self.when_awake(self._tend, when_us):
            self._tend_us = None
            self._speak(self.membership.tend(self._now))
            self._look_after()

    def leave(self) -> None:
        """SIGTERM: start nothing more, end what runs, say everything, and go once the broker knows it all, or the time is up."""
        if self.alive and not self.membership.stopping:
            self.note("stops")
            self.membership.drain(self._now, connected=self.link is not None)
            self._speak(self.membership.outgoing())
            self.world.scheduler.after(_STOP_US, self.world.lose_consumer, self, "did not finish in time")
            self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self.membership.stopping and self.holdings.idle:
            self.world.lose_consumer(self, "left")
