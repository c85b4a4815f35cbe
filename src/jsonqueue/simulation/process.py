"""Simulated processes: what lives, dies, stands still and comes back.

:class:`BrokerProcess` runs a broker object of production in the loop of production, on the very storage code. Around them stands what the
real kernel does for them: Pipes and a selector, files that are its own until it dies, a kill that may strike between any two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.errors import CorruptQueue, DiskFull, StorageError, SyncFailed
from jsonqueue.event import Assign, Event, EventOwner, Mark, encode
from jsonqueue.simulation.disk import Killed, ProcessFiles
from jsonqueue.simulation.selecting import Readable, SimulatedPipe, SimulatedSelector
from jsonqueue.simulation.trace import VectorClock, merge
from jsonqueue.simulation.verdict import Violation
from jsonqueue.simulation.wire import Link

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["Actor", "BrokerProcess"]

_TURN_US, _EVENT_US = 15, 3
"""What a turn costs of a processor, and each event in it: measured on the real ones."""

_DRAIN_MS = 1_000
"""What a broker has, at its end, to serve what has come already: as the real one."""

_DAY_MS = 86_400_000
"""A look at the wall clock each second would be most of what happens in a slow world. Where it jumps, the world says so."""


class Actor:
    """A process, by its name and its knowledge."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.clock: VectorClock = {}
        self.stalled_until_us = 0
        world.actors.append(self)

    @property
    def reachable(self) -> bool:
        """Whether frames can still be read by somebody."""
        return self.alive

    @property
    def stalled(self) -> bool:
        """Whether it stands still at the moment."""
        return self.stalled_until_us > self.world.scheduler.now_us

    def note(self, what: str, detail: str = "", ids: Sequence[str] = ()) -> None:
        """Enter something into the trace."""
        self.world.trace.note(self.world.scheduler.now_us, self.name, what, detail, ids, self.clock)

    def when_awake(self, act: Callable[..., None], *arguments: Any) -> bool:
        """Whether it can act now; one that stands still does it later."""
        if not self.alive:
            return False
        if self.stalled:
            self.world.scheduler.at(self.stalled_until_us, act, *arguments)
            return False
        return True

    def stall(self, length_us: int) -> None:
        """Stand still for so long."""
        self.note("stalls", f"for {length_us / 1000:.1f} ms")
        self.stalled_until_us = max(self.stalled_until_us, self.world.scheduler.now_us + length_us)


class BrokerProcess(Actor):
    """One life of a broker."""

    def __init__(self, world: World, role: EventOwner, name: str) -> None:
        super().__init__(world, name)
        self.role = role
        self.files = ProcessFiles(world.disk, self._spend)
        self.links: dict[int, Link] = {}
        self.told = Mark(0, 0)
        """How far a PublisherBroker has said that its log is durable. In the midst of a step it has written more than that."""
        self.opened = False
        self.doomed = False
        """Killed while it was in the midst of something; it ends at its next operation."""
        self.fuse = 0
        """So many operations until it is killed; 0: it is not."""
        self._leaving_us: int | None = None
        """Until when it waits, at most, for what consumers hold, before it ends; None: it stays."""
        self._busy = False
        self._again = False
        self._wake_us: int | None = None
        self._ready_us = 0
        self._pipes: dict[int, SimulatedPipe] = {}
        self._marks: SimulatedPipe | None = None
        self._orders: list[Callable[[], None]] = []
        self.broker: Any = self._make()
        self.selector = SimulatedSelector(lambda: self.wake(0), self._require_nothing_due)
        self.loop = BrokerLoop(_Observed(self), world.clock, self.selector)
        self._control = Readable(self.selector)
        self.loop.watch(self._control, self._obey)  # type: ignore[arg-type] # what the selector takes is its own affair

    def _make(self) -> PublisherBroker | ConsumerBroker:
        world = self.world
        if self.role is EventOwner.PUBLISHER_BROKER:
            return world.cast.publisher_broker(self.files, world.clock, world.config, announce=self._announce)
        return world.cast.consumer_broker(
            self.files,
            world.clock,
            world.config,
            chance=world.chance_of("jitter"),
            is_alive=world.pids.__contains__,
            wall_look_ms=_DAY_MS,
        )

    @property
    def position(self) -> tuple[int, int]:
        """The last batch of its log."""
        if self.role is EventOwner.CONSUMER_BROKER:
            return tuple(self.broker.position)
        return self.broker.mark.number, self.broker.mark.epoch

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Open the log, and begin to serve."""
        if self.alive:
            self._guarded(self._open)

    def _open(self) -> None:
        merge(self.clock, self.world.disk_clock)
        self.note("starts")
        self.broker.open()
        if self.role is EventOwner.PUBLISHER_BROKER:
            self.told = self.broker.mark
        self.opened = True
        self.note("open", f"epoch {self.broker.epoch}")
        self.world.broker_opened(self)
        self.wake(0)

    def kill(self, why: str = "killed") -> None:
        """kill -9: at once, or, when it is in the midst of something, at its next operation."""
        if self.alive:
            self._end("dies", why)

    def _end(self, how: str, why: str = "") -> None:
        self.note(how, why)
        self.alive = False
        self.files.dead = True
        self.doomed = True
        for link in self.links.values():
            link.close(self)
        self.world.broker_gone(self)

    def stop(self, grace_us: int) -> None:
        """End in order: hand out nothing more, hear what becomes of what is out there, say what is to be said."""
        self._leaving_us = self.world.scheduler.now_us + grace_us
        if self.role is EventOwner.CONSUMER_BROKER:
            self.broker.drain()
        self.world.scheduler.after(grace_us, self.wake, 0)

    def _leave_if_done(self) -> None:
        if self._leaving_us is None:
            return
        unsettled = self.broker.unsettled if self.role is EventOwner.CONSUMER_BROKER else 0
        if not unsettled or self.world.scheduler.now_us >= self._leaving_us:
            self.loop.drain(_DRAIN_MS)
            self.broker.close()
            self._end("ends")

    def _spend(self, spent_us: int) -> None:
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.kill("killed in the midst of it")
        if not self.doomed:
            self.world.operated()
            self.world.scheduler.advance(spent_us)
        if self.doomed:
            raise Killed

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something that may end this process."""
        self._busy = True
        try:
            act()
        except Killed:
            return
        except SyncFailed as error:
            self.world.manager.both_anew()
            self.kill(f"exits with 74: {error}")
        except CorruptQueue as error:
            raise Violation("refused", f"{self.name} takes the queue for damaged, and nothing damaged it: {error}") from error
        except (DiskFull, StorageError) as error:
            self.kill(f"exits with {error.exit_status}: {error}")
        except (Violation, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Violation("broke", f"{self.name}: {type(error).__name__}: {error}") from error
        finally:
            self._busy = False

    # ── what comes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, link: Link) -> None:
        """Serve this client."""
        self.links[link.number] = link
        frame_max = self.world.config.frame_max_bytes
        pipe = SimulatedPipe(self.selector, self.clock, link, lambda: self._parted(link), frame_max=frame_max)
        self._pipes[link.number] = pipe
        owner: EventOwner = link.client.owner  # type: ignore[attr-defined]
        self.order(lambda: self.loop.attach(link.number, pipe, owner, ""))  # type: ignore[arg-type] # it stands in for a Pipe

    def _parted(self, link: Link) -> None:
        self.links.pop(link.number, None)
        self._pipes.pop(link.number, None)
        link.close(self)

    def receive(self, link: Link, frame: bytes, clock: VectorClock) -> None:
        pipe = self._pipes.get(link.number)
        if pipe is not None:
            pipe.arrive(frame, clock)

    def hung_up(self, link: Link) -> None:
        pipe = self._pipes.get(link.number)
        if pipe is not None:
            pipe.end()

    def listen_to_marks(self, mark: Mark, clock: VectorClock) -> None:
        """There is a new Pipe for marks, and this is the first one on it."""
        pipe = self._marks = SimulatedPipe(self.selector, self.clock)
        pipe.arrive(encode(mark), dict(clock))
        self.order(lambda: self.loop.listen_to(pipe))  # type: ignore[arg-type]

    def take_mark(self, mark: Mark, clock: VectorClock) -> None:
        """The published log is durable through here."""
        if self._marks is not None:
            self._marks.arrive(encode(mark), dict(clock))

    def no_more_marks(self) -> None:
        """Whoever said them is gone."""
        if self._marks is not None:
            self._marks.end()
            self._marks = None

    def order(self, act: Callable[[], None]) -> None:
        """The manager wants this done."""
        self._orders.append(act)
        self._control.ring()

    def _obey(self) -> None:
        self.selector.hush(self._control)
        orders, self._orders = self._orders, []
        for act in orders:
            act()

    # ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def wake(self, wait_us: int) -> None:
        """Take a turn so long from now, at the latest."""
        when = max(self.world.scheduler.now_us + wait_us, self._ready_us, self.stalled_until_us)
        if self._busy:
            self._again = True
        elif self.alive and self.opened and (self._wake_us is None or when < self._wake_us):
            self._wake_us = when
            self.world.scheduler.at(when, self._woken, when)

    def _woken(self, when: int) -> None:
        if when != self._wake_us or not self.alive:
            return  # it was woken earlier since
        self._wake_us = None
        if self.stalled:
            self.wake(0)
            return
        self._again = False
        self._guarded(self._turn)
        if self.alive:
            if self._again or self.selector.anything:
                self.wake(0)
            elif (due_ms := self.loop.next_due_ms()) is not None:
                self.wake(max(0, self.world.clock.until_us(due_ms)))

    def _turn(self) -> None:
        self.loop.turn()
        self._leave_if_done()

    def _require_nothing_due(self) -> None:
        """It is about to wait."""
        due_ms = self.loop.next_due_ms()
        if due_ms is not None and due_ms <= self.world.clock.monotonic_ms():
            raise Violation("broke", f"{self.name} would go to sleep, though there is something for it to do by the clock")

    def stepped(self, arrivals: int) -> None:
        """The broker has taken a step."""
        self.world.judge.after_turn(self)
        self.world.judge.waste.turns(self, arrivals)
        self._ready_us = self.world.scheduler.now_us + _TURN_US + _EVENT_US * arrivals

    def sends(self, peer: int, event: Event) -> None:
        """The broker is about to say this."""
        self.world.judge.before_sending(self, peer, event)
        link = self.links.get(peer)
        if isinstance(event, Assign):
            self.note("leases", f"to {link.client.name if link else peer}", [task.id for task in event.tasks])  # type: ignore[attr-defined]
        else:
            self.note(type(event).__name__.lower(), f"to {link.client.name if link else peer}")  # type: ignore[attr-defined]

    def _announce(self, mark: Mark) -> None:
        self.told = mark
        self.note("durable", f"through batch {mark.number}")
        merge(self.world.disk_clock, self.clock)
        self.world.judge.announced(self, mark)
        consumer_broker = self.world.consumer_broker
        if consumer_broker is not None and consumer_broker.alive:
            consumer_broker.take_mark(mark, self.clock)


class _Observed:
    """The broker as its loop sees it, with the judges looking over its shoulder. Everything passes through unchanged."""

    def __init__(self, process: BrokerProcess) -> None:
        self._process = process
        self.role: EventOwner = process.role
        self.attach = process.broker.attach
        self.detach = process.broker.detach
        self.open = process.broker.open
        self.close = process.broker.close
        self.counters = process.broker.counters
        self.next_due_ms = process.broker.next_due_ms

    @property
    def epoch(self) -> int:
        """As the broker has it."""
        epoch: int = self._process.broker.epoch
        return epoch

    @property
    def hungry(self) -> bool:
        """As the broker is."""
        hungry: bool = self._process.broker.hungry
        return hungry

    def step(self, arrivals: Sequence[tuple[int, Event]], send: Callable[[int, Event], None]) -> None:
        """A step of the broker; whatever it says is judged before it leaves."""

        def say(peer: int, event: Event) -> None:
            self._process.sends(peer, event)
            send(peer, event)

        if self.role is EventOwner.CONSUMER_BROKER:
            self._process.world.judge.waste.hears(arrivals)
        self._process.broker.step(arrivals, say)
        self._process.stepped(len(arrivals))
