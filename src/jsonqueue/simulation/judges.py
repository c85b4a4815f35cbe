"""The judges: they sit beside the world, look at bytes and answers, and never at what the code under test believes.

Whenever something is acknowledged, at that very moment, they read the *durable* plane of the disk: what was acknowledged must be there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from msgspec import json

from jsonqueue.errors import JsonQueueError
from jsonqueue.event import Assign, Changed, Complete, Event, EventOwner, Mark, Result, Settled, Welcome, Written
from jsonqueue.simulation.disk import DurableView
from jsonqueue.simulation.history import SMALL, History, explained
from jsonqueue.simulation.shadow import Shadow
from jsonqueue.simulation.trace import precedes
from jsonqueue.simulation.verdict import Totals, Violation
from jsonqueue.simulation.wasted import Waste
from jsonqueue.storage.checkpoint import DRAFT, final_checkpoint
from jsonqueue.storage.codec import UNREADABLE, Batch, Position
from jsonqueue.storage.following import LogReader
from jsonqueue.storage.log import LogKind
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import read_header
from jsonqueue.storage.recovery import Loaded, load_state
from jsonqueue.storage.reserve import RESERVE
from jsonqueue.storage.stream import ends_of
from jsonqueue.task import AnyTask, StoredTask, TaskStatus

if TYPE_CHECKING:
    from jsonqueue.simulation.caller import CallerClient
    from jsonqueue.simulation.consumer import ConsumerClient
    from jsonqueue.simulation.manager import Manager
    from jsonqueue.simulation.process import Actor, BrokerProcess
    from jsonqueue.simulation.publisher import PublisherClient
    from jsonqueue.simulation.world import World

__all__ = ["Judge"]

_COMPARED_EVERY = 97
"""Turns of the ConsumerBroker between two comparisons of its memory with the log."""
_FULL_KNOWN_US = 600_000
"""By then a PublisherBroker knows that the disk is full."""


class Judge:
    """All of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.waste = Waste(world)
        self.shadow = Shadow(self.waste.look)
        self.history = History()
        self.totals = Totals()
        self.acknowledged_ids: set[str] = set()
        self._attempted: set[str] = set()
        self._born: dict[str, list[tuple[str, int]]] = {}
        """Id → by whom, and when by its own clock, the task was made known as durable: each task that had this id."""
        self._runs: dict[str, int] = {}
        self._durable = DurableView(world.disk)
        self._published = LogReader(self._durable, LogKind.PUBLISHED, Position(0, 0))
        self._progress = LogReader(self._durable, LogKind.PROGRESS, Position(0, 0))
        self._folding: tuple[list[Batch], list[Batch]] = ([], [])
        """What the last checkpoint of a manager read of both logs that no judge has seen: whoever wrote it died before it could tell."""
        self._last_number: dict[int, int] = {}
        self._turns = 0

    # ── publishing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def publishing(self, publisher: PublisherClient, request: int, ids: list[str]) -> None:
        """A publisher asks for these to be stored."""
        self._attempted.update(ids)
        for task_id in ids:
            self.history.invoke((publisher.name, request, task_id), "publish", task_id)

    def announced(self, who: Actor, mark: Mark) -> None:
        """The published log is said to be durable through here: is it?"""
        self._take_what_was_folded(who)  # who says so may be a publisher that appends by itself, with no broker before it
        try:
            batches = self._published.read_through(Position(mark.number, mark.epoch))
        except JsonQueueError as error:
            raise Violation("not durable", f"{who.name} announces batch {mark.number}: {error}") from error
        self._add_published(who, batches)

    def _add_published(self, who: Actor, batches: list[Batch]) -> None:
        for batch in batches:
            for task_id in self.shadow.add_published(batch):
                self._born.setdefault(task_id, []).append((who.name, who.clock.get(who.name, 0)))
                if task_id not in self._attempted:
                    raise Violation("unexpected", f"nobody published {task_id}", task_id=task_id)

    def acknowledged(self, publisher: PublisherClient, answer: Written, ids: list[str]) -> None:
        """A publisher hears that these are stored."""
        self._require_stored(ids, "was acknowledged")
        self.acknowledged_ids.update(ids)
        for task_id in ids:
            self.history.answer((publisher.name, answer.request, task_id), "stored")
        self._check_publishers_order(publisher, answer, ids)

    def _check_publishers_order(self, publisher: PublisherClient, answer: Written, ids: list[str]) -> None:
        """What one publisher says on one Pipe is stored in that order (unless the Pipe itself may turn it around)."""
        weather = self._world.scenario.weather
        link = publisher.link
        if link is None or weather.reorder or weather.duplicate or answer.duplicates or answer.refused:
            return
        numbers = [self.shadow.numbers[task_id] for task_id in ids]
        if numbers != sorted(numbers) or (numbers and numbers[0] <= self._last_number.get(link.number, 0)):
            raise Violation("order", f"{publisher.name} published {', '.join(ids)} in this order, and they are stored in another")
        if numbers:
            self._last_number[link.number] = numbers[-1]

    def _require_stored(self, ids: list[str], how: str) -> None:
        for task_id in ids:
            if task_id not in self.shadow.numbers:
                raise Violation("not durable", f"{task_id} {how}, and is not on the disk", task_id=task_id)

    def _require_not_stored(self, ids: list[str]) -> None:
        """A refusal is certain: whoever hears it publishes under another id, or gives up."""
        for task_id in ids:
            if task_id in self.shadow.numbers and task_id not in self.shadow.retired:
                raise Violation("not linear", f"{task_id} is being refused, and is in the queue", task_id=task_id)

    # ── the brokers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def all_is_folded(self, manager: Manager) -> None:
        """A manager that stops is about to fold both logs to their ends, and to delete them."""
        self._take_what_was_folded(manager)  # by one before it, if no broker of its own has come as far as to open since
        disk = self._world.disk
        ends = ends_of(disk, read_header(disk))
        read: list[list[Batch]] = []
        for told, end in ((self._published, ends.published), (self._progress, ends.progress)):
            reader = LogReader(disk, told.kind, told.position)
            read.append(reader.read_through(end))
            reader.close()
        self._folding = read[0], read[1]

    def _take_what_was_folded(self, who: Actor) -> None:
        """It counts if the durable queue.json vouches for it. If not, it is in the logs as ever."""
        (published, progress), self._folding = self._folding, ([], [])
        if not published and not progress:
            return
        header = read_header(self._durable)
        if published and published[-1].number <= header.published_through.number:
            self._add_published(who, published)
            self._published = LogReader(self._durable, LogKind.PUBLISHED, header.published_through)
        if progress and progress[-1].number <= header.progress_through.number:
            for batch in progress:
                self.shadow.add_progress(batch)
            self._progress = LogReader(self._durable, LogKind.PROGRESS, header.progress_through)

    def opened(self, broker: BrokerProcess) -> None:
        """A broker has recovered its log: all of it is durable now."""
        self._take_what_was_folded(broker)
        if broker.role is EventOwner.PUBLISHER_BROKER:
            self.announced(broker, broker.broker.mark)
        else:
            self._read_progress(broker)

    def before_sending(self, broker: BrokerProcess, peer: int, event: Event) -> None:
        """Whatever is answered must be durable at this moment."""
        if broker.role is EventOwner.PUBLISHER_BROKER:
            self._before_written(broker, peer, event)
        elif isinstance(event, Assign):
            self.waste.assigns(broker.links.get(peer), event)
        elif not isinstance(event, Welcome):  # These two are pushed, and rest on nothing that is still to be synced.
            self._read_progress(broker)
            if isinstance(event, Result):
                self._before_result(event)

    def after_turn(self, broker: BrokerProcess) -> None:
        """Check every record that the ConsumerBroker has written: all of it is durable by now, told to somebody or not.

        Two batches without a sync between them would be two that a power cut may tear apart, the first from the second.
        """
        if broker.role is not EventOwner.CONSUMER_BROKER:
            return
        self._read_progress(broker)
        self._turns += 1
        if self._world.disk.full_since_us is not None:
            self._require_reserve_spent(broker)
        self._world.turned()
        if self._turns % _COMPARED_EVERY == 0:
            self._compare_memory(broker)

    def _read_progress(self, broker: BrokerProcess) -> None:
        """Read the durable log to its end: all that was appended."""
        position = broker.broker.position
        if position.number <= self._progress.position.number:
            return
        try:
            batches = self._progress.read_through(position)
        except JsonQueueError as error:
            raise Violation("not durable", f"{broker.name} goes on after batch {position.number}: {error}") from error
        for batch in batches:
            self.shadow.add_progress(batch)

    def _before_written(self, broker: BrokerProcess, peer: int, event: Event) -> None:
        assert isinstance(event, Written)
        link = broker.links.get(peer)
        if link is None:
            return
        client: Any = link.client
        batch = client.asked(event.request) if client.link is link else None
        if batch:
            refused = {refusal.index for refusal in event.refused}
            self._require_stored([task.id for index, task in enumerate(batch) if index not in refused], "is being acknowledged")
            # Of what it would wait for, a later write of the same turn, stored by now, may have done without.
            self._require_not_stored([batch[refusal.index].id for refusal in event.refused if "wait for" not in refusal.reason])
            if len(batch) > len(refused) + len(event.duplicates):
                self._require_room(broker)

    def _require_room(self, broker: BrokerProcess) -> None:
        """For new tasks there must be more room than what is set aside; whether there is is looked at twice a second."""
        disk, reserve = self._world.disk, self._world.config.disk_reserve_bytes
        known = disk.full_since_us is not None and self._world.scheduler.now_us - disk.full_since_us > _FULL_KNOWN_US
        if known and disk.free_bytes() < reserve and broker.alive:
            raise Violation("room", f"{broker.name} takes new tasks in, and of the disk {disk.free_bytes()} bytes are left")

    def _require_reserve_spent(self, broker: BrokerProcess) -> None:
        """Who waits for room to write down what consumers did has used up what is set aside for that."""
        reserve = self._world.disk.identity(RESERVE)
        if reserve is not None and reserve[1] and broker.broker.counters()["stalled"]:
            raise Violation("room", f"{broker.name} waits for room, and has set {reserve[1]} bytes aside")

    def _before_result(self, event: Result) -> None:
        known = self.shadow.status_of(event.id)
        if known is None and event.id in self.shadow.retired:
            known = self.shadow.retired[event.id].status  # it left the queue in the turn that answers
        if event.task is not None and known not in {event.task.status, "published"}:
            raise Violation("not linear", f"{event.id} is {known} by the log, and its caller is told {event.task.status}", task_id=event.id)

    def _compare_memory(self, broker: BrokerProcess) -> None:
        """The memory of the broker against the log."""
        dispatcher = broker.broker._dispatcher
        if dispatcher is None or broker.broker.counters()["stalled"]:
            return  # not loaded yet, or with a turn in memory that the disk has no room for
        believed = {task_id: task.status for task_id, task in dispatcher.state.tasks.items()}
        for task_id, task in self.shadow.state.tasks.items():
            if believed.get(task_id) != task.status and broker.broker.position == self.shadow.progress:
                raise Violation("forked", f"{task_id} is {believed.get(task_id)} in memory and {task.status} by the log", task_id=task_id)

    # ── the manager ──────────────────────────────────────────────────────────────────────────────────────────────────

    def closed_its_files(self, manager: Manager) -> None:
        """A checkpoint is over: one a few seconds, for months, and each file that it leaves open is one fewer."""
        if manager.files.handles:
            raise Violation("broke", f"{manager.name} has {len(manager.files.handles)} files open after a checkpoint")

    def cleared(self, manager: Manager) -> None:
        """Brokers are about to start, which may need the room that a killed manager's checkpoint had taken."""
        if DRAFT in self._world.disk.list():
            raise Violation("room", f"{manager.name} starts its brokers beside the draft of a checkpoint that was cut short")

    def found_no_room(self, manager: Manager) -> None:
        """A checkpoint was given up: what it has written of itself must not take the room that is left."""
        self.closed_its_files(manager)
        if DRAFT in self._world.disk.list():
            raise Violation("room", f"{manager.name} found no room for a checkpoint, and left its draft there")

    # ── consumers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def runs(self, consumer: ConsumerClient, task: AnyTask) -> None:
        """A handler is started: the task must have been durable before, and whoever runs it must be able to know."""
        self.totals.runs += 1
        self.waste.run_begins_or_ends(consumer)
        self._runs[task.id] = self._runs.get(task.id, 0) + 1
        if not any(precedes(*born, consumer.clock) for born in self._born.get(task.id, ())):
            raise Violation("acausal", f"{consumer.name} runs {task.id} before it is known to be durable", task_id=task.id)

    def says(self, consumer: ConsumerClient, frames: list[Event]) -> None:
        """A consumer tells of outcomes."""
        self.waste.says(consumer, frames)
        for frame in frames:
            if isinstance(frame, Complete):
                for task_id in frame.ids:
                    self.history.invoke((consumer.name, frame.request, task_id), "complete", task_id)

    def settled(self, consumer: ConsumerClient, event: Settled) -> None:
        """A consumer hears that an outcome counts, or does not."""
        frame = consumer.holdings.unsettled.get(event.request)
        if not isinstance(frame, Complete):
            return
        stale = set(event.stale)
        for task_id, token in zip(frame.ids, frame.tokens, strict=True):
            counted = self.shadow.completed_by.get(task_id) == token
            if task_id not in self.shadow.archived:  # of one that has left the queue, nobody knows any more what settled it
                self.history.answer((consumer.name, event.request, task_id), "stale" if token in stale else "done")
            if counted == (token in stale) and task_id not in self.shadow.archived:
                told = "does not count" if token in stale else "is durable"
                raise Violation("not durable", f"{consumer.name} is told that its {task_id} {told}; the log knows better", task_id=task_id)

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, caller: CallerClient, asked: tuple[str, str], answer: Result | Changed) -> None:
        """A caller has its answer."""
        what, task_id = asked
        key = (caller.name, answer.request)
        if isinstance(answer, Result):
            status = "absent" if answer.task is None else answer.task.status.value
            if answer.task is None and task_id not in self.shadow.archived and self.history.answered_before("publish", task_id, key):
                raise Violation("not linear", f"{task_id} had been acknowledged, and a question after it found nothing", task_id=task_id)
            self.history.answer(key, status if status in _SETTLED else "live")
        elif what == "cancel":
            why = answer.refused.get(task_id, "")
            self.history.answer(key, "cancelled" if task_id in answer.ids else "absent" if why.startswith("not in") else "already over")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def final(self) -> None:
        """The whole account, when nothing is left to do: of what a last power cut leaves."""
        self._world.disk.crash(None)
        files = self._world.disk.copy()
        loaded = load_state(files)
        self._take_what_was_folded(self._world.manager)
        for batch in self._progress.read_through(loaded.progress):  # sealed outside of a turn, and told to nobody
            self.shadow.add_progress(batch)
        self._check_folds(files, loaded)
        self._count(loaded)
        weather = self._world.scenario.weather
        if not weather.duplicate:  # a question that the wire doubles is two operations, and one answer
            self._check_histories()

    def _check_folds(self, files: MemoryFiles, loaded: Loaded) -> None:
        """State = replay of the log = checkpoint + the rest of the log."""
        replayed = _encoded(self.shadow.catch_up().tasks)
        recovered = _encoded(loaded.state.tasks)
        final_checkpoint(files, config=self._world.config, at_ms=self._world.clock.wall_ms())
        after = load_state(files)
        folded = _encoded(after.state.tasks)
        self._check_archive(files, after)
        for name, other in (("recovery", recovered), ("the checkpoint", folded)):
            if other != replayed:
                differing = sorted(task_id for task_id in {*other, *replayed} if other.get(task_id) != replayed.get(task_id))
                raise Violation("forked", f"{name} and the replay of the log differ over {', '.join(differing[:5])}", task_id=differing[0])

    def _check_archive(self, files: MemoryFiles, loaded: Loaded) -> None:
        """What has left the queue is in the archive, once for each time it left; what has not is not."""
        lines = [line for name in files.list("archive") for line in files.get(f"archive/{name}").split(b"\n")[:-1]]
        try:
            numbers = [(task.id, task.number) for task in json.decode(b"[%b]" % b",".join(lines), type=list[StoredTask])]
        except UNREADABLE as error:
            raise Violation("lost", f"a line of the archive cannot be read: {error}") from None
        if len(set(numbers)) != len(numbers):
            raise Violation("duplicated", "a task is in the archive twice")
        both = {number for _, number in numbers} & {task.number for task in loaded.state.tasks.values()}
        if both:
            raise Violation("duplicated", f"in the queue and in the archive: tasks {sorted(both)[:5]}")
        missing = sorted(self.shadow.archived - {task_id for task_id, _ in numbers})
        if missing:
            raise Violation("lost", f"{', '.join(missing[:5])} left the queue and never reached the archive", task_id=missing[0])

    def _count(self, loaded: Loaded) -> None:
        totals, tasks = self.totals, loaded.state.tasks
        present = {*tasks, *self.shadow.retired}
        lost = sorted(self.acknowledged_ids - present)
        totals.published, totals.acknowledged = len(self._attempted), len(self.acknowledged_ids)
        totals.recovered = len(present - self.acknowledged_ids)
        totals.lost, totals.unexpected = len(lost), len(present - self._attempted)
        self._count_ends(tasks.values())
        totals.redelivered = sum(1 for runs in self._runs.values() if runs > 1)
        if lost:
            raise Violation("lost", f"{', '.join(lost[:5])}: acknowledged, and not in the queue", task_id=lost[0])
        if totals.unexpected:
            raise Violation("unexpected", f"nobody published {', '.join(sorted(present - self._attempted)[:5])}")

    def count_so_far(self, handed_in: int) -> None:
        """The account of a run that was stopped in the middle."""
        self.totals.published, self.totals.acknowledged = handed_in, len(self.acknowledged_ids)
        self._count_ends(self.shadow.state.tasks.values())

    def _count_ends(self, tasks: Iterable[StoredTask]) -> None:
        statuses = [task.status for task in tasks] + [ended.status for ended in self.shadow.retired.values()]
        self.totals.completed = statuses.count(TaskStatus.COMPLETED)
        self.totals.dead, self.totals.cancelled = statuses.count(TaskStatus.DEAD), statuses.count(TaskStatus.CANCELLED)

    def _check_histories(self) -> None:
        for task_id, operations in self.history.by_task().items():
            if len(operations) > SMALL:
                continue
            ever = self.shadow.ever.get(task_id, set())
            if not explained(operations, died="died" in ever, replayed="replayed" in ever, retired="retired" in ever):
                told = "; ".join(f"{operation.what} → {operation.outcome or 'no answer'}" for operation in operations)
                raise Violation("not linear", f"no order explains what was answered about {task_id}: {told}", task_id=task_id)


_SETTLED = {"completed", "dead", "cancelled", "absent"}


def _encoded(tasks: dict[str, Any]) -> dict[str, bytes]:
    return {task_id: json.encode(task) for task_id, task in tasks.items()}
