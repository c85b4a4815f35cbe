"""The simulated publishers, consumers and callers.

What they decide is decided by the objects of production: a consumer's :class:`~jsonqueue.client.membership.Membership` and
:class:`~jsonqueue.client.holdings.Holdings`, a publisher's :class:`~jsonqueue.client.window.Window` and
:class:`~jsonqueue.client.patience.Patience`. Here is what stands in for their threads, their sockets and their users.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from jsonqueue.client.flow import PAUSE_S
from jsonqueue.client.holdings import Holdings, Slot
from jsonqueue.client.membership import Membership
from jsonqueue.client.outcome import Verdict
from jsonqueue.client.patience import Patience
from jsonqueue.client.window import Batch, Window
from jsonqueue.event import (
    Cancel,
    Changed,
    Event,
    EventOwner,
    Failure,
    Look,
    Replay,
    Result,
    Settled,
    Welcome,
    Write,
    Written,
    decoder_for,
)
from jsonqueue.simulation.appending import append_directly
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

_BATCH_MAX_BYTES = 1024 * 1024

_STOP_US = 30_000_000
"""How long a consumer that was asked to stop may take, as `Consumer.stop` has it."""


class _Client(Actor):
    owner: EventOwner

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.link: Link | None = None
        self._connecting = False
        self._wait_us = 0

    @property
    def pause_us(self) -> int:
        """How long to wait before calling the manager."""
        return self._wait_us

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
        self._wait_us = int(PAUSE_S * 1_000_000)

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
    """Publishes what it is given, until every task of it is answered for good."""

    owner = EventOwner.PUBLISHER

    def __init__(self, world: World, name: str, index: int, batches: Iterable[list[StoredTaskIn]]) -> None:
        """``index``: its place among the publishers of the world, which its successor takes."""
        super().__init__(world, name)
        self.index = index
        self.window = Window()
        for batch in batches:
            self._push(batch)
        self._patience = Patience(world.scenario.patience_us / 1_000_000, world.clock)
        self._watched = False
        self._requests = 0
        self._appending = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to say."""
        return self.window.empty

    @property
    def unanswered(self) -> list[list[StoredTaskIn]]:
        """What its successor has to publish."""
        return [batch.tasks for batch in self.window.unanswered]

    def asked(self, request: int) -> list[StoredTaskIn] | None:
        """The tasks of a question that is not answered yet."""
        batch = self.window.asked(request)
        return None if batch is None else batch.tasks

    def push(self, batch: list[StoredTaskIn]) -> None:
        """Publish these."""
        self._push(batch)
        self._patience.renew()
        self._advance()

    def _push(self, batch: list[StoredTaskIn]) -> None:
        for part in _in_parts(batch):
            self.window.push(_batch(part))

    def connected(self, link: Link) -> None:
        self._wait_us = 0
        self.window.connected()
        self._advance()

    def lost(self) -> None:
        self.window.broken()

    def _advance(self) -> None:
        if self._appending or not self.when_awake(self._advance):
            return
        if self.link is None:
            if not self.window.empty:
                self.connect()
            return
        while (batch := self.window.head()) is not None:
            self._requests += 1
            self.window.sent(self._requests)
            ids = [task.id for task in batch.tasks]
            self.note("publish", f"request {self._requests}", ids)
            self.world.judge.publishing(self, self._requests, ids)
            self.say(Write(self._requests, batch.tasks))
        self._watch_patience()

    def enter(self, frame: bytes) -> None:
        answer: Written = _from_publisher_broker(frame)
        batch = self.window.answered(answer.request)
        if batch is None:
            return  # of an answer that came twice
        self._patience.renew()
        self.settle(batch.tasks, answer)
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
            self.world.scheduler.after(self.world.scenario.patience_us // 20, self._again, again)
            self.world.refused += len(again)

    def _again(self, batch: list[StoredTaskIn]) -> None:
        self.world.refused -= len(batch)
        if self.alive:
            self.push(batch)
        else:
            self.world.publish_instead(self.index, batch)

    def _watch_patience(self) -> None:
        left = self._patience.left
        if self.window.in_flight and not self._watched and left is not None:
            self._watched = True
            self.world.scheduler.after(int(left * 1_000_000) + 1_000, self._look_at_patience)

    def _look_at_patience(self) -> None:
        """When it is over, the Pipe is given up: a late answer would be to a question that is no longer remembered."""
        if not self.when_awake(self._look_at_patience):
            return
        self._watched = False
        if self.link is not None and self.window.in_flight and self._patience.over:
            self.note("impatient", f"request {self.window.in_flight[0][0]}")
            self._patience.renew()  # production raises PublishUnknown here, and this user asks again
            self.drop_link()
        else:
            self._watch_patience()

    def unavailable(self) -> None:
        """With no manager there, it appends by itself if the log's lock is to be had; else it looks again, a little later."""
        self._wait_us = int(PAUSE_S * 1_000_000)
        if self.world.scenario.direct and self.window.unsent:
            batches = [batch.tasks for batch in self.window.unsent]
            for batch in batches:
                self.world.judge.publishing(self, 0, [task.id for task in batch])
            self._appending = True
            for answer in append_directly(self.world, self, batches):
                self.settle(self.window.appended().tasks, answer)
            self._appending = False
            self._advance()


class ConsumerClient(_Client):
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
        event: Any = _from_consumer_broker(frame)
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
        self._wait_us = 0
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
        self.note("answered", f"request {answer.request}", (asked[1],) if asked[1] else ())
        self.world.judge.answered(self, asked, answer)

    def _impatient(self, link: Link, request: int) -> None:
        if self.when_awake(self._impatient, link, request) and link is self.link and request in self._asked:
            self.drop_link()


def _in_parts(batch: list[StoredTaskIn]) -> Iterator[list[StoredTaskIn]]:
    """As a publisher sends what is large: no further task once it comes to a mebibyte."""
    part: list[StoredTaskIn] = []
    size = 0
    for task in batch:
        part.append(task)
        size += len(memoryview(task.data))
        if size >= _BATCH_MAX_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _batch(tasks: list[StoredTaskIn]) -> Batch:
    return Batch(tasks, [], sum(len(memoryview(task.data)) for task in tasks))


def _alone(task: StoredTaskIn) -> StoredTaskIn:
    return replace(task, after=())


def _question(what: str, request: int, task_id: str) -> Event:
    if what == "look":
        return Look(request, task_id)
    return Cancel(request, [task_id]) if what == "cancel" else Replay(request)
