"""The ConsumerBroker: hands tasks out and writes down what becomes of them.

One turn: read what was published up to the mark, judge everything that came and everything that is due, match what is ready with who waits,
append all of it as one batch, push the assignments, sync, and only then answer.

A push goes out when its lease is appended, before the sync: a lease that a power cut takes back is only ever lost together with the
consumer that held it. An answer rests on the sync.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

from msgspec import structs

from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.core.dispatching import Dispatcher
from jsonqueue.core.records import decode_published, encode_records
from jsonqueue.core.timetable import earliest
from jsonqueue.core.turn import Now, Turn
from jsonqueue.errors import DiskFull
from jsonqueue.event import (
    Cancel,
    Complete,
    Event,
    EventOwner,
    Fail,
    Heartbeat,
    Join,
    Look,
    Mark,
    Replay,
    Return,
    Watch,
)
from jsonqueue.storage.checkpoint import Cut
from jsonqueue.storage.files import Files
from jsonqueue.storage.following import LogReader
from jsonqueue.storage.log import LogKind, LogWriter, Position, newest_bytes
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.reserve import Reserve

__all__ = ["ConsumerBroker"]

_PID_DIGITS_MAX = 10
"""Of 2,147,483,647, the highest number that a process may have."""
_NO_ROOM_RETRY_MS = 100
_LATE_MS = 100
"""What goes out so long after its turn began, since the disk took its time, has its lease from then on, and its deadline is looked at."""
_ORPHAN_LOOK_MS = 200
_WALL_LOOK_MS = 1_000
"""While something waits for the wall clock, it is looked at this often: it may jump."""


class ConsumerBroker:
    """The writer of the progress log, the reader of the published one.

    It opens in two steps: :meth:`open` recovers its own log, and the first :class:`~jsonqueue.event.Mark` lets it read the queue, so
    that it never reads what the PublisherBroker has not made durable. What comes before that mark waits.
    """

    role = EventOwner.CONSUMER_BROKER

    def __init__(
        self,
        files: Files,
        clock: Clock,
        config: Config,
        *,
        chance: Random,
        is_alive: Callable[[int], bool] = lambda pid: True,
        wall_look_ms: int = _WALL_LOOK_MS,
    ) -> None:
        """``wall_look_ms``: how often to look, for whoever does not hear of it otherwise, whether the wall clock has jumped."""
        self._wall_look_ms = wall_look_ms
        self._files = files
        self._clock = clock
        self._config = config
        self._chance = chance
        self._is_alive = is_alive
        self._reserve = Reserve(files, config.disk_reserve_bytes)
        self._log: LogWriter
        self._published: LogReader
        self._read = Position(0, 0)
        self._dispatcher: Dispatcher | None = None
        self._orphans_due_ms = 0
        self._early: list[tuple[int, Event]] = []
        self._gone: list[int] = []
        self._pids: dict[int, int] = {}
        self._unwritten: tuple[Turn, int] | None = None
        self._unwritten_due_ms = 0

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Recover the log, under a new epoch that is durable before the first delivery. The caller holds the lock."""
        kind = LogKind.PROGRESS
        self._log = self._reserve.lend(lambda: LogWriter.open(self._files, kind), wanted=lambda: newest_bytes(self._files, kind))
        self._reserve.fill()

    @property
    def epoch(self) -> int:
        """The epoch of its log: raised at each start."""
        return self._log.epoch

    @property
    def position(self) -> Position:
        """The last batch of its log; durable by the time that anything of it is answered."""
        return self._log.position

    def close(self) -> None:
        """Nothing is buffered: what was answered is durable, what was not was not."""
        self._log.close()
        if self._dispatcher is not None:
            self._published.close()

    @property
    def hungry(self) -> bool:
        """Whether a consumer waits for tasks, or the broker itself for the first mark."""
        return self._dispatcher is None or self._dispatcher.hungry

    @property
    def ready(self) -> bool:
        """Whether the queue is loaded."""
        return self._dispatcher is not None

    def cut(self) -> Cut | None:
        """Seal the segment and name the state that a checkpoint may fold: this log up to here, the published one up to where it is read.

        None before the queue is loaded.
        """
        if self._dispatcher is None:
            return None
        self._reserve.fill()
        self._rotate()
        return Cut(progress=self._log.position, published=self._read)

    def counters(self) -> dict[str, int]:
        """Figures for whoever watches the broker."""
        counters = self._dispatcher.counters() if self._dispatcher else {}
        return {**counters, "log_bytes": self._log.bytes, "stalled": int(self._unwritten is not None)}

    def drain(self) -> None:
        """Hand out nothing more: it is about to end."""
        if self._dispatcher is not None:
            self._dispatcher.drain()

    @property
    def unsettled(self) -> int:
        """How many tasks are still to be heard of from the consumers that are here, or decided and not written yet for want of room."""
        held = self._dispatcher.held if self._dispatcher is not None else 0
        return held + (len(self._unwritten[0].records) if self._unwritten is not None else 0)

    def attach(self, peer: int) -> None:
        """A consumer or a caller has a Pipe; a consumer will say more in its Join."""

    def detach(self, peer: int) -> None:
        """The Pipe of a peer is closed; what it held is decided in the next turn."""
        self._gone.append(peer)

    def met(self, peer: int, pid: int) -> None:
        """The kernel says which process this peer is, as seen from here (0: one that cannot be seen). That counts, and not what it says of
        itself: in a container of its own it knows itself by a number that is nobody's here, or somebody else's."""
        self._pids[peer] = pid

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, arrivals: Sequence[tuple[int, Event]], send: Callable[[int, Event], None]) -> None:
        """One turn over everything that has come and everything that is due."""
        now = Now(self._clock.wall_ms(), self._clock.monotonic_ms())
        if self._early:
            arrivals, self._early = [*self._early, *arrivals], []
        mark = _latest_mark(arrivals)
        loaded = None
        if self._dispatcher is None and mark is not None:
            self._dispatcher = loaded = self._load(mark, now)
        dispatcher = self._dispatcher
        if dispatcher is None or not self._written_at_last(dispatcher, now, send):
            self._early = _still_to_hear(arrivals)
            return
        if mark is not None and mark.number > self._read.number:
            self._take_in(dispatcher, mark, now)
        for peer, event in arrivals:
            if type(event) is not Mark:
                _HANDLE[type(event)](dispatcher, peer, self._as_met(peer, event) if type(event) is Join else event, now)
        self._see_off(dispatcher, now)
        dispatcher.tick(now)
        dispatcher.assign(now)
        turn = dispatcher.take_turn()
        if self._is_written(turn, now.wall_ms, now):
            if turn.pushes and self._clock.monotonic_ms() - now.monotonic_ms >= _LATE_MS:
                self._tell_late(dispatcher, turn, Now(self._clock.wall_ms(), self._clock.monotonic_ms()), send)
            else:
                self._tell(turn, send)
        if loaded is not None:
            # However long it took to read the queue, and to sync what was due: no consumer could come back meanwhile.
            loaded.await_holders(self._clock.monotonic_ms())

    def next_due_ms(self) -> int | None:
        """When a turn is due by the monotonic clock, though nothing came."""
        if self._unwritten is not None:
            return self._unwritten_due_ms
        dispatcher = self._dispatcher
        if dispatcher is None:
            return None
        if self._gone:
            return 0
        wall_ms = dispatcher.next_wall_ms()
        return earliest(
            dispatcher.next_monotonic_ms(),
            self._orphans_due_ms if dispatcher.orphan_holders else None,
            None if wall_ms is None else self._clock.monotonic_ms() + min(max(wall_ms - self._clock.wall_ms(), 0), self._wall_look_ms),
        )

    # ── a turn's parts ───────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, mark: Mark, now: Now) -> Dispatcher:
        loaded = load_state(self._files, published_through=Position(mark.number, mark.epoch))
        self._read = loaded.published
        self._published = LogReader(self._files, LogKind.PUBLISHED, loaded.published)
        dispatcher = Dispatcher(loaded.state, config=self._config, chance=self._chance, epoch=self._log.epoch)
        dispatcher.adopt(now)
        return dispatcher

    def _take_in(self, dispatcher: Dispatcher, mark: Mark, now: Now) -> None:
        for batch in self._published.read_through(Position(mark.number, mark.epoch)):
            tasks = dispatcher.state.publish(decode_published(batch.records), first=batch.first_task, at_ms=batch.at_ms)
            dispatcher.published(tasks, now)
            self._read = batch.position

    def _as_met(self, peer: int, event: Join) -> Join:
        return structs.replace(event, pid=self._pids.get(peer, event.pid))

    def _see_off(self, dispatcher: Dispatcher, now: Now) -> None:
        """Peers whose Pipe closed, and consumers of an earlier life that are proved dead."""
        for peer in self._gone:
            self._pids.pop(peer, None)
            dispatcher.leave(peer, now)
            dispatcher.callers.leave(peer)
        self._gone.clear()
        if now.monotonic_ms < self._orphans_due_ms:
            return
        for label in sorted(dispatcher.orphan_holders):
            self._orphans_due_ms = now.monotonic_ms + _ORPHAN_LOOK_MS
            pid = _pid_in(label)
            if pid and not self._is_alive(pid):
                dispatcher.bury(label, now)

    def _is_written(self, turn: Turn, at_ms: int, now: Now) -> bool:
        """``at_ms``: when the turn was decided. Written under any later time, a retry that was still to come then would replay as due."""
        if turn.records:
            try:
                self._append(encode_records(turn.records), at_ms)
            except DiskFull:
                # What was decided stands, but nobody hears of it until it is written; nothing else is decided meanwhile.
                self._unwritten = (turn, at_ms)
                self._unwritten_due_ms = now.monotonic_ms + _NO_ROOM_RETRY_MS
                return False
        return True

    def _tell(self, turn: Turn, send: Callable[[int, Event], None]) -> None:
        """Carry out what is written."""
        for peer, event in turn.pushes:
            send(peer, event)
        if turn.records:
            if self._config.durability == "power-cut":
                self._log.sync()  # Nothing below this line runs until the disk has it.
            self._log.assure()  # And has it where it will be looked for.
        for peer, event in turn.answers:
            send(peer, event)
        if self._log.bytes > self._config.segment_max_bytes:
            self._rotate()

    def _tell_late(self, dispatcher: Dispatcher, turn: Turn, now: Now, send: Callable[[int, Event], None]) -> None:
        """Carry out what was decided a while ago: the disk had no room for it, or took its time."""
        overdue = turn.hold_back_overdue(now.wall_ms)
        self._tell(turn, send)
        dispatcher.pushed_late(turn, overdue, now)

    def _append(self, records: bytes, at_ms: int) -> None:
        """One batch, if need be into the room that was set aside for it."""
        self._reserve.lend(lambda: self._log.append(records, at_ms=at_ms, after=self._read), wanted=lambda: len(records))

    def _rotate(self) -> None:
        """Without room for another segment this one stays in use: that costs nothing but its length."""
        with suppress(DiskFull):
            self._log.rotate()

    def _written_at_last(self, dispatcher: Dispatcher, now: Now, send: Callable[[int, Event], None]) -> bool:
        """Whether the turn that the disk had no room for is written now (or there was none)."""
        if self._unwritten is not None and now.monotonic_ms >= self._unwritten_due_ms:
            (turn, at_ms), self._unwritten = self._unwritten, None
            if self._is_written(turn, at_ms, now):
                self._tell_late(dispatcher, turn, now, send)
        return self._unwritten is None


def _pid_in(label: str) -> int:
    """The process that a label names; 0: none that can be seen from here, or, in a queue.json that was edited, none at all."""
    digits = label.rpartition("@")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _PID_DIGITS_MAX else 0


def _latest_mark(arrivals: Sequence[tuple[int, Event]]) -> Mark | None:
    for _, event in reversed(arrivals):
        if type(event) is Mark:
            return event
    return None


def _still_to_hear(arrivals: Sequence[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """All but the heartbeats and marks for which a newer one stands: these gather for as long as there is no room on the disk."""
    newest: set[tuple[int, type[Event]]] = set()
    left = []
    for peer, event in reversed(arrivals):
        who_says_what = peer, type(event)
        if who_says_what not in newest:
            left.append((peer, event))
        if type(event) in (Heartbeat, Mark):
            newest.add(who_says_what)
    return left[::-1]


_HANDLE: dict[type[Event], Callable[..., None]] = {
    Join: Dispatcher.join,
    Complete: Dispatcher.complete,
    Fail: Dispatcher.fail,
    Return: Dispatcher.give_back,
    Heartbeat: Dispatcher.heartbeat,
    Look: lambda dispatcher, peer, event, now: dispatcher.callers.look(peer, event),
    Watch: lambda dispatcher, peer, event, now: dispatcher.callers.watch(peer, event),
    Cancel: lambda dispatcher, peer, event, now: dispatcher.callers.cancel(peer, event, now),
    Replay: lambda dispatcher, peer, event, now: dispatcher.callers.replay(peer, event, now),
}
