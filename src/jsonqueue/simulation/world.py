"""The world: one machine with its processes, from a seed and a scenario to a verdict.

What is real here: the PublisherBroker, the ConsumerBroker and the loop around each, the core, the storage code, the checkpoints, the
events' codec, what publishers and consumers decide. What is simulated: time, Pipes, the disk, processes, the manager. See
docs/simulation.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from time import process_time
from typing import Any

from jsonqueue.errors import CorruptQueue
from jsonqueue.event import EventOwner
from jsonqueue.simulation.agenda import Agenda
from jsonqueue.simulation.caller import CallerClient
from jsonqueue.simulation.cast import PRODUCTION, Cast
from jsonqueue.simulation.consumer import ConsumerClient
from jsonqueue.simulation.disk import Disk, Killed
from jsonqueue.simulation.judges import Judge
from jsonqueue.simulation.manager import Manager
from jsonqueue.simulation.meter import Meter
from jsonqueue.simulation.probes import Probe, Probes
from jsonqueue.simulation.process import Actor, BrokerProcess
from jsonqueue.simulation.publisher import PublisherClient
from jsonqueue.simulation.scenario import Fault, Scenario
from jsonqueue.simulation.scheduler import Scheduler
from jsonqueue.simulation.striking import strike
from jsonqueue.simulation.trace import Trace, VectorClock, merge
from jsonqueue.simulation.verdict import Verdict, Violation
from jsonqueue.simulation.wire import Link, Weather
from jsonqueue.simulation.work import Arrival, drawn_work
from jsonqueue.storage.memory import PowerCut
from jsonqueue.task import AnyTask, StoredTaskIn

__all__ = ["World"]

_EPOCH_MS = 1_763_000_000_000


class WorldClock:
    """The machine's two clocks. The wall clock may jump; the other one starts again with the machine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.offset_ms = 0
        self.booted_us = 0

    def wall_ms(self) -> int:
        return _EPOCH_MS + self._scheduler.now_us // 1000 + self.offset_ms

    def monotonic_ms(self) -> int:
        return 1_000 + (self._scheduler.now_us - self.booted_us) // 1000

    def until_us(self, due_ms: int) -> int:
        """How long until the monotonic clock shows this."""
        return (due_ms - 1_000) * 1000 + self.booted_us - self._scheduler.now_us


class World:
    """See the module."""

    def __init__(
        self,
        seed: int,
        scenario: Scenario,
        *,
        cast: Cast = PRODUCTION,
        keep: bool = False,
        work: Sequence[Arrival] = (),
        handler: Callable[[AnyTask], object] | None = None,
        probes: Sequence[Probe] = (),
    ) -> None:
        self.seed = seed
        self.scenario = scenario
        self.config = scenario.config
        self.cast = cast
        self.scheduler = Scheduler()
        self.clock = WorldClock(self.scheduler)
        self.trace = Trace(keep=keep)
        self.disk = Disk()
        self.disk.read_us = scenario.read_us
        self.weather: Weather = scenario.weather
        self.actors: list[Actor] = []
        self.links: dict[int, Link] = {}
        self.pids: set[int] = set()
        self.disk_clock: VectorClock = {}
        self.judge = Judge(self)
        self.folding = False
        self.appending = False
        self.refused = 0
        """Tasks that were refused, and will be published again."""
        self.happened: dict[str, int] = {}
        self.meter = Meter()
        self.probes = Probes(self, probes)
        self.agenda = Agenda(self, list(work) or drawn_work(scenario, self.chance_of("work")), handler)
        self.manager: Manager
        self.publisher_broker: BrokerProcess | None = None
        self.consumer_broker: BrokerProcess | None = None
        self.publishers: list[PublisherClient] = []
        self.consumers: list[ConsumerClient] = []
        self.callers: list[CallerClient] = []
        self._lives: dict[str, int] = {}
        self.power_fuse = 0
        self._wire_chance = self.chance_of("wire")
        self.life_chance = self.chance_of("life")

    def chance_of(self, what: str) -> Random:
        """A source of chance of its own for each purpose, so that more of one thing leaves the others as they are."""
        return Random(f"{self.seed}/{what}")

    # ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> Verdict:
        """Everything, from the first process to the last judgement."""
        began = process_time()
        violation: Violation | None = None
        try:
            self._begin()
            self._until(self.scenario.quiet_us, lambda: False)
            self._heal()
            healed_us = self.scheduler.now_us
            while not self.finished() and self.scheduler.now_us < healed_us + self._drain_us:  # a handler may ask for more meanwhile
                self._until(healed_us + self._drain_us, self.finished)
            if not self.finished():
                raise Violation("deadlock", self._unfinished())
            self._require_answers()
            self.judge.final()
            self.probes.at_the_end()
        except CorruptQueue as error:
            violation = Violation("refused", f"what a last power cut leaves is damaged: {error}")
            self._note_violation(violation)
        except Violation as error:
            violation = error
            self._note_violation(error)
        return self._verdict(violation, process_time() - began)

    def _until(self, until_us: int, enough: Callable[[], bool]) -> None:
        while True:
            try:
                self.scheduler.run(until_us, enough=enough)
            except PowerCut:
                self._power_back()
            except Killed as error:  # it ends at the edge of the process it belongs to, never here
                raise Violation("broke", "a kill escaped its process") from error
            else:
                return

    def finished(self) -> bool:
        """Whether nothing is left to do, and nobody waits for anything."""
        return (
            not self.agenda.to_come
            and not self.refused
            and not self.judge.shadow.open
            and all(publisher.done for publisher in self.publishers)
            and all(caller.done for caller in self.callers)
        )

    def _require_answers(self) -> None:
        """Whoever handed a task in must have heard of it by now."""
        silent = [task_id for task_id in self.agenda.ids if task_id not in self.judge.acknowledged_ids]
        if silent:
            raise Violation("deadlock", f"{', '.join(silent[:5])}: published, and its publisher was never told", task_id=silent[0])

    @property
    def _drain_us(self) -> int:
        """How long all may take once nothing goes wrong any more: no task of a drawn scenario is tried more than six times by itself."""
        return self.scenario.drain_us(max(6, self.agenda.attempts_max), self.agenda.asked_ms)

    def _unfinished(self) -> str:
        waiting = [publisher.name for publisher in self.publishers if not publisher.done]
        waiting += [caller.name for caller in self.callers if not caller.done]
        bound_s, left = self._drain_us // 1_000_000, self.judge.shadow.open
        return f"{bound_s} s after the last fault {left} tasks have not ended; waiting: {waiting}"

    def _begin(self) -> None:
        self.start_manager()
        self.publishers = [self._new_publisher(index, deque()) for index in range(self.scenario.publishers)]
        self.consumers = [self._new_consumer(index) for index in range(self.scenario.consumers)]
        self.callers = [self._new_caller(0)]
        self.agenda.plan()
        for fault in self.scenario.faults:
            self.scheduler.at(fault.at_us, self._strike, fault)

    def _heal(self) -> None:
        """From here on nothing goes wrong any more."""
        self.trace.note(self.scheduler.now_us, "world", "heals", "", (), {})
        self.weather = Weather(delay_us=self.scenario.weather.delay_us)
        self.disk.empty()
        self.disk.sync_us, self.disk.sync_fails = 180, 0
        self.clock.offset_ms = 0
        self.look_at_the_clock()
        self.power_fuse = 0

    def look_at_the_clock(self) -> None:
        """The wall clock has jumped: whoever looks at it once a second notices within one."""
        for broker in self.brokers():
            self.scheduler.after(self.life_chance.randrange(1_000_000), broker.wake, 0)

    def _note_violation(self, error: Violation) -> None:
        ids = (error.task_id,) if error.task_id else ()
        self.trace.note(self.scheduler.now_us, "world", "VIOLATION", str(error), ids, {})

    def _verdict(self, violation: Violation | None, took_s: float) -> Verdict:
        if violation is not None:
            self.judge.count_so_far(self.meter.handed_in)
        faults = dict(self.happened)
        for link in self.links.values():
            for fate, count in link.fates.items():
                faults[fate] = faults.get(fate, 0) + count
        return Verdict(
            seed=self.seed,
            scenario=self.scenario,
            totals=self.judge.totals,
            digest=self.trace.digest,
            events=self.scheduler.events,
            operations=self.disk.operations,
            virtual_ms=self.scheduler.now_us // 1000,
            faults=dict(sorted(faults.items())),
            counts=dict(sorted(self.trace.counts.items())),
            violation=str(violation) if violation else "",
            kind=violation.kind if violation else "",
            at_ms=self.scheduler.now_us / 1000 if violation else 0.0,
            task_id=violation.task_id if violation else "",
            last=[str(entry) for entry in list(self.trace.entries)[-40:]] if violation else [],
            depth=self.meter.depth,
            took_s=took_s,
        )

    def turned(self) -> None:
        """The ConsumerBroker has taken a turn: a point at which everything can be looked at."""
        self.meter.depth_is(self.scheduler.now_us, self.judge.shadow.open)
        self.probes.look()

    def publish_instead(self, index: int, batch: list[StoredTaskIn]) -> None:
        """Its publisher is gone; whoever took its place publishes it."""
        self.publishers[index].push(batch)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _name(self, base: str) -> str:
        """Every life of a process has a name of its own."""
        self._lives[base] = self._lives.get(base, 0) + 1
        return f"{base}.{self._lives[base]}"

    def start_manager(self) -> None:
        """A manager comes up, unless there is one by now."""
        if self.actors and self.manager.alive:
            return
        self.manager = Manager(self, self._name("manager"))
        self.manager.start()

    def make_broker(self, role: EventOwner) -> BrokerProcess:
        """A broker's process, not open yet."""
        if role is EventOwner.PUBLISHER_BROKER:
            broker = self.publisher_broker = BrokerProcess(self, role, self._name("publisher-broker"))
        else:
            broker = self.consumer_broker = BrokerProcess(self, role, self._name("consumer-broker"))
        return broker

    def broker(self, role: EventOwner) -> BrokerProcess | None:
        """The broker of this role, if it lives."""
        broker = self.publisher_broker if role is EventOwner.PUBLISHER_BROKER else self.consumer_broker
        return broker if broker is not None and broker.alive else None

    def brokers(self) -> list[BrokerProcess]:
        """Those that live."""
        both = (self.broker(EventOwner.PUBLISHER_BROKER), self.broker(EventOwner.CONSUMER_BROKER))
        return [broker for broker in both if broker is not None]

    def lock(self, role: EventOwner) -> bool:
        """Whether the lock of this log is to be had."""
        return self.broker(role) is None and not (self.appending and role is EventOwner.PUBLISHER_BROKER)

    def broker_opened(self, broker: BrokerProcess) -> None:
        """It has recovered: the other one hears of it, as the manager sees to it."""
        self.judge.opened(broker)
        merge(self.disk_clock, broker.clock)
        publisher_broker, consumer_broker = self.broker(EventOwner.PUBLISHER_BROKER), self.broker(EventOwner.CONSUMER_BROKER)
        if publisher_broker and consumer_broker and publisher_broker.opened and consumer_broker.opened:
            consumer_broker.listen_to_marks(publisher_broker.told, publisher_broker.clock)

    def broker_gone(self, broker: BrokerProcess) -> None:
        """It ended."""
        consumer_broker = self.broker(EventOwner.CONSUMER_BROKER)
        if broker.role is EventOwner.PUBLISHER_BROKER and consumer_broker is not None:
            consumer_broker.no_more_marks()
        self.manager.broker_gone(broker)

    def make_link(self, client: Any, broker: BrokerProcess) -> Link:
        """A Pipe between the two."""
        number = len(self.links) + 1
        link = self.links[number] = Link(
            self.scheduler, lambda: self.weather, self._wire_chance, number=number, client=client, broker=broker
        )
        return link

    def _new_publisher(self, index: int, unsent: deque[list[StoredTaskIn]]) -> PublisherClient:
        client = PublisherClient(self, self._name(f"publisher-{index + 1}"), index, unsent)
        client.connect()
        return client

    def _new_consumer(self, index: int) -> ConsumerClient:
        pid = 1_000 + len(self.actors)
        self.pids.add(pid)
        client = ConsumerClient(self, self._name(f"consumer-{index + 1}"), pid, self.scenario.concurrency)
        client.connect()
        return client

    def _new_caller(self, index: int) -> CallerClient:
        return CallerClient(self, self._name(f"caller-{index + 1}"))

    def lose_consumer(self, consumer: ConsumerClient, why: str) -> None:
        """kill -9; another one takes its place."""
        if consumer.alive:
            consumer.kill(why)
            index = self.consumers.index(consumer)
            self.scheduler.after(self.life_chance.randint(1_000, 40_000), self._replace_consumer, index, consumer)

    def _replace_consumer(self, index: int, gone: ConsumerClient) -> None:
        if self.consumers[index] is gone:
            self.consumers[index] = self._new_consumer(index)

    def lose_publisher(self, index: int) -> None:
        """kill -9; it comes back, and goes on with what was not acknowledged."""
        publisher = self.publishers[index]
        publisher.kill("killed")
        self.publishers[index] = self._new_publisher(index, deque(publisher.unanswered))

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────

    def operated(self) -> None:
        """An operation on the disk is about to happen; the power may go away just then."""
        if self.power_fuse:
            self.power_fuse -= 1
            if not self.power_fuse:
                self.cut_power()

    def _strike(self, fault: Fault) -> None:
        if self.scheduler.now_us > self.scenario.quiet_us:
            return
        self.happened[fault.kind] = self.happened.get(fault.kind, 0) + 1
        self.trace.note(self.scheduler.now_us, "world", "fault", str(fault), (), {})
        strike(self, fault)

    def cut_power(self) -> None:
        """Everything ends at once, whatever it was in the midst of."""
        for actor in self.actors:
            actor.alive = False
            files = getattr(actor, "files", None)
            if files is not None:
                files.dead = True
        for link in self.links.values():
            link.vanish()
        raise PowerCut

    def _power_back(self) -> None:
        chance = self.life_chance
        self.trace.note(self.scheduler.now_us, "world", "power cut", "", (), {})
        self.disk.crash(chance if chance.random() < 0.75 else None)
        self.folding = self.appending = False
        self.power_fuse = 0
        self.pids.clear()
        self.scheduler.now_us += chance.randint(1_000, 200_000)
        self.clock.booted_us = self.scheduler.now_us
        self.start_manager()
        self.publishers = [self._new_publisher(index, deque(gone.unanswered)) for index, gone in enumerate(self.publishers)]
        self.consumers = [self._new_consumer(index) for index in range(len(self.consumers))]
        callers = self.callers
        self.callers = [self._new_caller(0)]
        for what, task_id in callers[0].unanswered:
            self.callers[0].ask(what, task_id)
