"""The simulated publishers, consumers and callers.

A consumer keeps the books of production (:class:`~jsonqueue.client.holdings.Holdings`: what to take, what to say when, what to say again);
the simulation stands in for the threads and the Pipe of its session. A publisher re-asks as :class:`~jsonqueue.client.flow.Flow` does: a
window of batches in flight, taken back when the Pipe breaks or the patience is over, and sent again under the same ids.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from jsonqueue.client.flow import WINDOW
from jsonqueue.client.holdings import OVERDUE_S, STALL_S, Holdings, Slot
from jsonqueue.event import (
    Cancel,
    Changed,
    Event,
    EventOwner,
    Failure,
    Heartbeat,
    Join,
    Look,
    Replay,
    Result,
    Revoke,
    Settled,
    Welcome,
    Write,
    Written,
    decoder_for,
)
from jsonqueue.simulation.process import Actor
from jsonqueue.simulation.trace import VectorClock, merge
from jsonqueue.simulation.wire import Link
from jsonqueue.task import StoredTaskIn

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["CallerClient", "ConsumerClient", "PublisherClient"]

_from_publisher_broker = decoder_for(EventOwner.PUBLISHER_BROKER)
_from_consumer_broker = decoder_for(EventOwner.CONSUMER_BROKER, values=True)
_to_caller = decoder_for(EventOwner.CONSUMER_BROKER)


class _Client(Actor):
    owner: EventOwner

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.link: Link | None = None
        self._connecting = False
        self._backoff_us = 0

    def connect(self) -> None:
        """Ask the manager for a Pipe, soon."""
        if self.alive and self.link is None and not self._connecting:
            self._connecting = True
            self.world.scheduler.after(self._backoff_us, self._register)

    def _register(self) -> None:
        if self.when_awake(self._register):
            self.world.manager.register(self, self.owner, self._answered)

    def _answered(self, link: Link | None) -> None:
        self._connecting = False
        self._backoff_us = min(max(2 * self._backoff_us, 2_000), 100_000)
        if link is None:
            self.unavailable()
            self.connect()
        else:
            self.link = link
            self.connected(link)

    def unavailable(self) -> None:
        """There is no broker."""

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


class PublisherClient(_Client):
    """Publishes a list of tasks, each at its time, until every one of them is answered for good."""

    owner = EventOwner.PUBLISHER

    def __init__(self, world: World, name: str, unsent: deque[list[StoredTaskIn]]) -> None:
        super().__init__(world, name)
        self.unsent = unsent
        self._in_flight: deque[tuple[int, list[StoredTaskIn]]] = deque()
        self._requests = 0
        self._appending = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to say."""
        return not self.unsent and not self._in_flight

    @property
    def unanswered(self) -> list[list[StoredTaskIn]]:
        """What its successor has to publish."""
        return [*(batch for _, batch in self._in_flight), *self.unsent]

    def asked(self, request: int) -> list[StoredTaskIn] | None:
        """The batch of a question that is not answered yet."""
        return next((batch for number, batch in self._in_flight if number == request), None)

    def push(self, batch: list[StoredTaskIn]) -> None:
        """Publish these."""
        self.unsent.append(batch)
        self._advance()

    def connected(self, link: Link) -> None:
        self._advance()

    def lost(self) -> None:
        self.unsent.extendleft(batch for _, batch in reversed(self._in_flight))
        self._in_flight.clear()

    def _advance(self) -> None:
        if self._appending or not self.when_awake(self._advance):
            return
        if self.link is None:
            if self.unsent:
                self.connect()
            return
        while self.unsent and len(self._in_flight) < WINDOW and self.link is not None:
            self._requests += 1
            batch = self.unsent.popleft()
            self._in_flight.append((self._requests, batch))
            ids = [task.id for task in batch]
            self.note("publish", f"request {self._requests}", ids)
            self.world.judge.publishing(self, self._requests, ids)
            self.world.scheduler.after(self.world.scenario.patience_us, self._impatient, self.link, self._requests)
            self.say(Write(self._requests, batch))

    def enter(self, frame: bytes) -> None:
        answer: Written = _from_publisher_broker(frame)
        batch = self.asked(answer.request)
        if batch is None:
            return  # of an answer that came twice
        self._in_flight = deque(entry for entry in self._in_flight if entry[0] != answer.request)
        self._backoff_us = 0
        self.settle(batch, answer)
        self._advance()

    def settle(self, batch: list[StoredTaskIn], answer: Written) -> None:
        """A batch was answered."""
        refused = {refusal.index for refusal in answer.refused}
        ids = [task.id for index, task in enumerate(batch) if index not in refused]
        self.note("acknowledged", f"request {answer.request}", ids)
        self.world.judge.acknowledged(self, answer, ids)
        # No room on the disk, or a dependency that is not there (yet, or any more): a user would try again later, or without it.
        again = [_alone(batch[refusal.index]) if "wait for" in refusal.reason else batch[refusal.index] for refusal in answer.refused]
        if again:
            self.world.scheduler.after(50_000, self._again, again)
            self.world.refused += len(again)

    def _again(self, batch: list[StoredTaskIn]) -> None:
        self.world.refused -= len(batch)
        if self.alive:
            self.push(batch)
        else:
            self.world.publish_elsewhere(self.name, batch)

    def _impatient(self, link: Link, request: int) -> None:
        """No answer came: a late one would be to a question that is no longer remembered, so the Pipe is given up."""
        if self.when_awake(self._impatient, link, request) and link is self.link and any(r == request for r, _ in self._in_flight):
            self.note("impatient", f"request {request}")
            self.drop_link()

    def unavailable(self) -> None:
        """With no manager there, it appends by itself if the log's lock is to be had."""
        if self.world.scenario.direct and self.unsent:
            batches = list(self.unsent)
            for batch in batches:
                self.world.judge.publishing(self, 0, [task.id for task in batch])
            self._appending = True
            for answer in self.world.append_directly(self, batches):
                self.settle(self.unsent.popleft(), answer)
            self._appending = False
            self._advance()


class ConsumerClient(_Client):
    """Runs tasks."""

    owner = EventOwner.CONSUMER

    def __init__(self, world: World, name: str, pid: int, concurrency: int) -> None:
        super().__init__(world, name)
        self.pid = pid
        self.holdings = Holdings(concurrency)
        self._joined = False
        self._lease_us = 0
        self._tending = False

    def kill(self, why: str) -> None:
        self.world.pids.discard(self.pid)
        super().kill(why)

    def connected(self, link: Link) -> None:
        ids, tokens = self.holdings.held()
        self.holdings.stats.connections += 1
        self.say(Join(self.name.partition(".")[0], self.pid, self.holdings.want, ids, tokens))

    def lost(self) -> None:
        self._joined = False

    @property
    def _now(self) -> float:
        return self.world.scheduler.now_us / 1_000_000

    def enter(self, frame: bytes) -> None:
        event: Any = _from_consumer_broker(frame)
        if isinstance(event, Welcome):
            self._welcome(event)
        elif isinstance(event, Settled):
            self.world.judge.settled(self, event)
            self.holdings.settled(event.request, event.stale)
        elif isinstance(event, Revoke):
            self.holdings.revoke(event.tokens)
        elif hasattr(event, "tasks"):
            self.holdings.assign(event.tasks, self._now)
            self._work()

    def _welcome(self, event: Welcome) -> None:
        self.holdings.revoke(event.stale)
        self._joined = True
        self._backoff_us = 0
        self._lease_us = event.lease_ms * 1000
        self.world.scheduler.after(self._lease_us // 3, self._beat, self.link)
        for said in list(self.holdings.unsettled.values()):
            self.say(said)
        self._flush()
        self._work()

    def _beat(self, link: Link) -> None:
        if self.when_awake(self._beat, link) and link is self.link and self._joined:
            ids, tokens = self.holdings.leased()
            self.say(Heartbeat(ids, tokens, self.holdings.want))
            self.world.scheduler.after(self._lease_us // 3, self._beat, link)

    def _work(self) -> None:
        for slot in self.holdings.slots:
            if slot.task is None and not self.holdings.frame_full:
                self._start_next(slot)
        if self.holdings.ready:
            self._tend_later(STALL_S)

    def _start_next(self, slot: Slot) -> None:
        task = self.holdings.take(slot, self._now)
        if task is None:
            self._flush()
            return
        self.note("run", f"attempt {task.attempt}", (task.id,))
        self.world.meter.started(task.id, self.world.scheduler.now_us)
        self.world.judge.runs(self, task)
        plan = self.world.plan_of(task.id)
        if plan.kills(task.attempt):
            self.world.scheduler.after(plan.lasts_us, self.world.lose_consumer, self, f"poisoned by {task.id}")
        else:
            self.world.scheduler.after(plan.lasts_us, self._finish, slot, task.token)

    def _finish(self, slot: Slot, token: int) -> None:
        if not self.when_awake(self._finish, slot, token) or slot.task is None or slot.task.token != token:
            return
        task = slot.task
        verdict = self.world.handle(task)
        self.note("failed" if isinstance(verdict, Failure) else "done", "", (task.id,))
        self.world.meter.finished(self.name, task.id, slot.started, self._now)
        self.holdings.settle(slot, verdict, self._now)
        if self.holdings.frame_full:
            self._flush()
        self._start_next(slot)
        if self.holdings.unsent:
            self._tend_later(OVERDUE_S)

    def _flush(self) -> None:
        if self.holdings.unsent and self._joined:
            frames = self.holdings.pack()
            self.world.judge.says(self, frames)
            for frame in frames:
                self.say(frame)

    def _tend_later(self, wait_s: float) -> None:
        if not self._tending:
            self._tending = True
            self.world.scheduler.after(int(wait_s * 1_000_000), self._tend)

    def _tend(self) -> None:
        if not self.when_awake(self._tend):
            return
        self._tending = False
        self.holdings.unstall(self._now)
        self._flush()
        if self.holdings.ready or (self.holdings.unsent and self._joined):
            self._tend_later(STALL_S if self.holdings.ready else OVERDUE_S)


class CallerClient(_Client):
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
        answer: Result | Changed = _to_caller(frame)
        asked = self._asked.pop(answer.request, None)
        if asked is None:
            return
        self._backoff_us = 0
        self.note("answered", f"request {answer.request}", (asked[1],) if asked[1] else ())
        self.world.judge.answered(self, asked, answer)

    def _impatient(self, link: Link, request: int) -> None:
        if self.when_awake(self._impatient, link, request) and link is self.link and request in self._asked:
            self.drop_link()


def _alone(task: StoredTaskIn) -> StoredTaskIn:
    return replace(task, after=())


def _question(what: str, request: int, task_id: str) -> Event:
    if what == "look":
        return Look(request, task_id)
    return Cancel(request, [task_id]) if what == "cancel" else Replay(request)
