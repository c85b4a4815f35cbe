"""The simulated publisher, over the window and the patience of a real one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from jsonqueue.client.flow import PAUSE_S
from jsonqueue.client.patience import Patience
from jsonqueue.client.window import Batch, Window
from jsonqueue.event import EventOwner, Write, Written, decoder_for
from jsonqueue.simulation.appending import append_directly
from jsonqueue.simulation.client import Client
from jsonqueue.simulation.wire import Link
from jsonqueue.task import StoredTaskIn

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["PublisherClient"]

_decode = decoder_for(EventOwner.PUBLISHER_BROKER)

_BATCH_MAX_BYTES = 1024 * 1024


class PublisherClient(Client):
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
        self.wait_us = 0
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
        answer: Written = _decode(frame)
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
        self.wait_us = int(PAUSE_S * 1_000_000)
        if self.world.scenario.direct and self.window.unsent:
            batches = [batch.tasks for batch in self.window.unsent]
            for batch in batches:
                self.world.judge.publishing(self, 0, [task.id for task in batch])
            self._appending = True
            for answer in append_directly(self.world, self, batches):
                self.settle(self.window.appended().tasks, answer)
            self._appending = False
            self._advance()


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
