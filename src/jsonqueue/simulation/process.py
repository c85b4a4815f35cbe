"""Simulated processes: what lives, dies, stands still and comes back.

:class:`BrokerProcess` runs a broker object of production: the very class, on the very storage code. Around it stands what the real loop and
the real kernel do for it: frames are read at each turn, its files are its own until it dies, a kill may strike between any two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.errors import CorruptQueue, DiskFull, StorageError, SyncFailed
from jsonqueue.event import Assign, Event, EventOwner, Mark, decoder_for
from jsonqueue.simulation.disk import Killed, ProcessFiles
from jsonqueue.simulation.trace import VectorClock, merge
from jsonqueue.simulation.verdict import Violation
from jsonqueue.simulation.wire import Link

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["Actor", "BrokerProcess"]

_TURN_US, _EVENT_US = 15, 3
"""What a turn costs of a processor, and each event in it: measured on the real ones."""

_DECODERS = {owner: decoder_for(owner) for owner in (EventOwner.PUBLISHER, EventOwner.CONSUMER, EventOwner.CALLER)}


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
        self.opened = False
        self.doomed = False
        """Killed while it was in the midst of something; it ends at its next operation."""
        self.fuse = 0
        """So many operations until it is killed; 0: it is not."""
        self._busy = False
        self._again = False
        self._wake_us: int | None = None
        self._ready_us = 0
        self._inbox: list[tuple[int, bytes, VectorClock]] = []
        self._mark: tuple[Mark, VectorClock] | None = None
        self._gone: list[int] = []
        self._orders: list[Callable[[], None]] = []
        self.broker: Any = self._make()

    def _make(self) -> PublisherBroker | ConsumerBroker:
        world = self.world
        if self.role is EventOwner.PUBLISHER_BROKER:
            return world.cast.publisher_broker(self.files, world.clock, world.config, announce=self._announce)
        return world.cast.consumer_broker(
            self.files, world.clock, world.config, chance=world.chance_of("jitter"), is_alive=world.pids.__contains__
        )

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Open the log, and begin to serve."""
        if self.alive:
            self._guarded(self._open)

    def _open(self) -> None:
        merge(self.clock, self.world.disk_clock)
        self.note("starts")
        self.broker.open()
        self.opened = True
        self.note("open", f"epoch {self.broker.epoch}")
        self.world.broker_opened(self)
        self.wake(0)

    def kill(self, why: str = "killed") -> None:
        """kill -9: at once, or, when it is in the midst of something, at its next operation."""
        if not self.alive:
            return
        self.note("dies", why)
        self.alive = False
        self.files.dead = True
        self.doomed = True
        for link in self.links.values():
            link.close(self)
        self.world.broker_gone(self)

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
        self.broker.attach(link.number)

    def receive(self, link: Link, frame: bytes, clock: VectorClock) -> None:
        self._inbox.append((link.number, frame, clock))
        self.wake(0)

    def hung_up(self, link: Link) -> None:
        if self.links.pop(link.number, None) is not None:
            self._gone.append(link.number)
            self.wake(0)

    def take_mark(self, mark: Mark, clock: VectorClock) -> None:
        """The published log is durable through here."""
        self._mark = (mark, dict(clock))
        self.wake(0)

    def order(self, act: Callable[[], None]) -> None:
        """The manager wants this done after the next turn."""
        self._orders.append(act)
        self.wake(0)

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
        self._guarded(self._turn)
        if self.alive:
            due_ms = self.broker.next_due_ms()
            if self._again or self._inbox or self._orders or self._gone:
                self.wake(0)
            elif due_ms is not None:
                self.wake(max(0, self.world.clock.until_us(due_ms)))

    def _turn(self) -> None:
        self._again = False
        inbox, self._inbox = self._inbox, []
        gone, self._gone = self._gone, []
        orders, self._orders = self._orders, []
        arrivals = [(peer, self._decode(peer, frame, clock)) for peer, frame, clock in inbox]
        if self._mark is not None:
            mark, clock = self._mark
            self._mark = None
            merge(self.clock, clock)
            arrivals.insert(0, (0, mark))
        for peer in gone:
            self.broker.detach(peer)
        self.broker.step(arrivals, self._send)
        self.world.judge.after_turn(self)
        self._ready_us = self.world.scheduler.now_us + _TURN_US + _EVENT_US * len(arrivals)
        for act in orders:
            act()

    def _decode(self, peer: int, frame: bytes, clock: VectorClock) -> Event:
        merge(self.clock, clock)
        link = self.world.links[peer]
        event: Event = _DECODERS[link.client.owner](frame)  # type: ignore[attr-defined]
        return event

    def _send(self, peer: int, event: Event) -> None:
        self.world.judge.before_sending(self, peer, event)
        link = self.links.get(peer)
        if isinstance(event, Assign):
            self.note("leases", f"to {link.client.name if link else peer}", [task.id for task in event.tasks])  # type: ignore[attr-defined]
        else:
            self.note(type(event).__name__.lower(), f"to {link.client.name if link else peer}")  # type: ignore[attr-defined]
        if link is not None:
            link.say(self, event, self.clock)

    def _announce(self, mark: Mark) -> None:
        self.note("durable", f"through batch {mark.number}")
        merge(self.world.disk_clock, self.clock)
        self.world.judge.announced(self, mark)
        consumer_broker = self.world.consumer_broker
        if consumer_broker is not None and consumer_broker.alive:
            consumer_broker.take_mark(mark, self.clock)
