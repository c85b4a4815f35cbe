"""The simulated BrokerManager: starts brokers, starts them again, registers clients, checkpoints. It never carries a task.

The steps are those of production (``broker/supervisor.py``, ``broker/checkpointing.py``), driven by the scheduler in place of threads and
signals; what they call (``rotate``, ``cut``, ``checkpoint``, ``forget``) is the code of production.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from jsonqueue.errors import CorruptQueue, DiskFull, StorageError
from jsonqueue.event import EventOwner
from jsonqueue.simulation.disk import Killed, ProcessFiles
from jsonqueue.simulation.process import Actor, BrokerProcess
from jsonqueue.simulation.trace import merge
from jsonqueue.simulation.verdict import Violation
from jsonqueue.simulation.wire import Link
from jsonqueue.storage.checkpoint import DRAFT, CheckpointDone, Cut, clear_draft, final_checkpoint

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["Manager"]

_ORDER_US = (20, 3_000)
_SPAWN_US = (200, 8_000)
_REGISTER_US = (50, 800)
_GRACE_US, _LEAVE_US = 10_000_000, 2_000_000
"""How long it waits, at its end, for what consumers hold; and for a broker that has heard enough to say its last."""
_BROKER = {
    EventOwner.PUBLISHER: EventOwner.PUBLISHER_BROKER,
    EventOwner.CONSUMER: EventOwner.CONSUMER_BROKER,
    EventOwner.CALLER: EventOwner.CONSUMER_BROKER,
}


class Manager(Actor):
    """One life of the manager."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.files = ProcessFiles(world.disk, self._spend)
        self._chance = world.chance_of("manager")
        self._last_cut: Cut | None = None
        self._attempt = 0
        self._stopping = False
        self.fuse = 0
        """So many operations of its checkpoints until a broker is killed; 0: none is."""
        self.victim = 0
        self._seen: list[tuple[int, int]] = []
        """How far the logs were when the last checkpoint began."""

    def start(self) -> None:
        """Start both brokers, and the checkpoints; before them goes what a predecessor left of its last one."""
        if not self.alive:
            return
        self.note("starts")
        if DRAFT in self.world.disk.list():  # Production looks by trying, which takes time; without a draft nothing comes of it.
            self.world.scheduler.after(0, self._clear_draft)
        else:
            self._serve()

    def _clear_draft(self) -> None:
        try:
            clear_draft(self.files)
        except Killed:
            return
        self.world.judge.cleared(self)
        self._serve()

    def _serve(self) -> None:
        for role in (EventOwner.PUBLISHER_BROKER, EventOwner.CONSUMER_BROKER):
            self.spawn(role)
        self._next_checkpoint()

    def kill(self) -> None:
        """kill -9. The brokers see the end of their control Pipes and end on their own, a little later; then all starts anew."""
        if not self.alive:
            return
        self.note("dies", "killed")
        self.alive = False
        self.files.dead = True
        for broker in self.world.brokers():
            self.world.scheduler.after(self._chance.randint(100, 5_000), broker.kill, "its manager is gone")
        self.world.scheduler.after(self._chance.randint(1_000, 20_000), self.world.start_manager)

    def _spend(self, spent_us: int) -> None:
        if self.fuse:
            self.fuse -= 1
            if not self.fuse and (brokers := self.world.brokers()):
                brokers[self.victim % len(brokers)].kill("killed in the midst of a checkpoint")
        if self.alive:
            self.world.operated()
            self.world.scheduler.advance(spent_us)
        if not self.alive:
            raise Killed

    # ── brokers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def spawn(self, role: EventOwner) -> None:
        """Start a broker, after the time that takes."""
        self.world.scheduler.after(self._chance.randint(*_SPAWN_US), self._spawned, role)

    def _spawned(self, role: EventOwner) -> None:
        if not self.alive or self._stopping or self.world.broker(role) is not None:
            return
        if not self.world.lock(role):  # held by an orphan, or by a publisher that appends by itself: it waits
            self.world.scheduler.after(2_000, self._spawned, role)
            return
        self.world.make_broker(role).start()

    def broker_gone(self, broker: BrokerProcess) -> None:
        """One ended: start it anew."""
        self._attempt += 1  # a checkpoint that waited for it is over
        self._seen = []
        if self.alive and self._stopping:
            self._go_on_stopping()
        elif self.alive:
            self.spawn(broker.role)

    def both_anew(self) -> None:
        """An fsync failed: what the disk holds is unknown to both, so both start again from it."""
        for broker in self.world.brokers():
            broker.kill("restarted after a failed fsync")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """SIGTERM. The PublisherBroker ends, then the ConsumerBroker, then both logs are folded; a little later all starts anew."""
        if self.alive and not self._stopping:
            self.note("stops")
            self._stopping = True
            self._attempt += 1
            self._go_on_stopping()

    def _go_on_stopping(self) -> None:
        for role in (EventOwner.PUBLISHER_BROKER, EventOwner.CONSUMER_BROKER):
            broker = self.world.broker(role)
            if broker is not None:
                self._order(broker, lambda broker=broker: broker.stop(_GRACE_US))  # type: ignore[misc]
                self.world.scheduler.after(_GRACE_US + _LEAVE_US, broker.kill, "it did not stop in time")
                return
        self.world.scheduler.after(self._chance.randint(*_ORDER_US), self._fold_all)

    def _fold_all(self) -> None:
        """The last checkpoint, with nobody left who writes."""
        if not self.alive:
            return
        if self.world.folding or not self.world.lock(EventOwner.PUBLISHER_BROKER):
            self.world.scheduler.after(1_000, self._fold_all)
            return
        self.world.folding = True
        merge(self.clock, self.world.disk_clock)
        merge(self.world.disk_clock, self.clock)
        self.world.judge.all_is_folded(self)
        try:
            done = final_checkpoint(self.files, config=self.world.config, at_ms=self.world.clock.wall_ms())
        except Killed:
            return
        except CorruptQueue as error:
            raise Violation("refused", f"the last checkpoint takes the queue for damaged: {error}") from error
        except (StorageError, OSError) as error:
            self.note("not folded", str(error))  # nothing is lost: the next start reads the logs
        else:
            self.note("checkpoint", f"the last: {done.tasks} tasks, {len(done.left)} left")
        finally:
            self.world.folding = False
        self.note("ends")
        self.alive = False
        self.files.dead = True
        self.world.scheduler.after(self._chance.randint(1_000, 20_000), self.world.start_manager)

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def register(self, client: Actor, owner: EventOwner, answer: Callable[[Link | None], None]) -> None:
        """Get the client a Pipe to its broker; None when there is none to be had."""
        self.world.scheduler.after(self._chance.randint(*_REGISTER_US), self._registered, client, owner, answer)

    def _registered(self, client: Actor, owner: EventOwner, answer: Callable[[Link | None], None]) -> None:
        broker = self.world.broker(_BROKER[owner])
        if not client.alive:
            return
        if not self.alive or self._stopping or broker is None or not broker.opened:
            answer(None)
            return
        link = self.world.make_link(client, broker)
        broker.attach(link)
        answer(link)

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_checkpoint(self) -> None:
        self.world.scheduler.after(self.world.config.flush_interval_ms * 1000, self._begin_checkpoint)

    def _begin_checkpoint(self) -> None:
        if not self.alive or self._stopping:
            return
        self._attempt += 1
        attempt = self._attempt
        publisher_broker = self.world.broker(EventOwner.PUBLISHER_BROKER)
        seen = [broker.position for broker in self.world.brokers() if broker.opened]
        if publisher_broker is not None and seen != self._seen:  # an idle queue needs none
            self._seen = seen
            self._order_afterwards(publisher_broker, lambda: self._rotate(publisher_broker, attempt))
        self._next_checkpoint()

    def _order(self, broker: BrokerProcess, act: Callable[[], None]) -> None:
        self.world.scheduler.after(self._chance.randint(*_ORDER_US), broker.order, act)

    def _order_afterwards(self, broker: BrokerProcess, act: Callable[[], None]) -> None:
        """As production orders a rotation: after the step of the turn in which the order is heard."""
        self._order(broker, lambda: broker.loop.afterwards(act))

    def _rotate(self, broker: BrokerProcess, attempt: int) -> None:
        broker.broker.rotate()
        consumer_broker = self.world.broker(EventOwner.CONSUMER_BROKER)
        if attempt == self._attempt and consumer_broker is not None:
            self._order_afterwards(consumer_broker, lambda: self._cut(consumer_broker, attempt))

    def _cut(self, broker: BrokerProcess, attempt: int) -> None:
        cut = broker.broker.cut()
        if cut is not None and attempt == self._attempt and cut != self._last_cut:
            self.world.scheduler.after(self._chance.randint(*_ORDER_US), self._fold, cut)

    def _fold(self, cut: Cut) -> None:
        """In a thread of its own: brokers run, start and die between its operations."""
        if not self.alive or self.world.folding:
            return
        self.world.folding = True
        gone = self._attempt
        try:
            done = self.world.cast.checkpoint(self.files, cut, config=self.world.config, at_ms=self.world.clock.wall_ms())
        except Killed:
            return
        except DiskFull:
            self.world.judge.found_no_room(self)
            return
        except OSError:
            return
        except CorruptQueue as error:
            # A broker that starts replaces its newest segment, maybe just while that was read. What is really damaged is found again.
            if gone == self._attempt:
                raise Violation("refused", f"the checkpoint takes the queue for damaged: {error}") from error
            return
        except StorageError:
            return
        finally:
            self.world.folding = False
        self.world.judge.closed_its_files(self)
        self._last_cut = cut
        self.note("checkpoint", f"{done.tasks} tasks, {len(done.left)} left")
        self.world.scheduler.after(self._chance.randint(*_ORDER_US), self._tell_what_left, done)

    def _tell_what_left(self, done: CheckpointDone) -> None:
        """From the thread of the checkpoint back in its own: the PublisherBroker may be another one by now."""
        broker = self.world.broker(EventOwner.PUBLISHER_BROKER)
        left = iter(done.left.items())
        while broker is not None and (some := dict(islice(left, 50_000))):
            self._order(broker, lambda some=some, broker=broker: broker.broker.forget(some, done.through_task))  # type: ignore[misc]
