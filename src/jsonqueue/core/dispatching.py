"""The ConsumerBroker's judgement: who runs what, and what becomes of it.

One :class:`Dispatcher` holds the state of the queue and everything derived from it (what is ready, who waits, which leases run out when).
Its methods are told what happened and what time it is. Each first decides, which yields records, and then applies those records, to the
state by the same code that replays a log and to the derived parts under "following up". All they want to have done collects in a
:class:`Turn`: records to write, events to push once these are written, and answers to give once they are durable.

Here are consumers and time. What callers ask, :mod:`~jsonqueue.core.callers` judges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from random import Random

from jsonqueue.config import Config
from jsonqueue.core.callers import Callers
from jsonqueue.core.dependencies import Dependencies
from jsonqueue.core.orphans import Orphans
from jsonqueue.core.payload import all_sound, fault_of
from jsonqueue.core.ready import ReadyQueue
from jsonqueue.core.records import (
    Cancelled,
    Completed,
    Died,
    Due,
    Failed,
    Leased,
    Progress,
    Replayed,
    Retired,
    Unblocked,
    Unleased,
)
from jsonqueue.core.retention import Retention
from jsonqueue.core.seating import Seating
from jsonqueue.core.settling import decide_failure, decide_loss, decide_return
from jsonqueue.core.state import QueueState, ids_of
from jsonqueue.core.timetable import Timetable, earliest
from jsonqueue.core.turn import Now, Turn
from jsonqueue.core.waiting import Seat
from jsonqueue.errors import BrokerFailed
from jsonqueue.event import (
    Assign,
    Complete,
    Event,
    Fail,
    Failure,
    Heartbeat,
    Join,
    Return,
    Revoke,
    Settled,
    Welcome,
)
from jsonqueue.task import Outcome, StoredTask, TaskStatus

__all__ = ["Dispatcher", "first_token"]


_EPOCH_BITS = 32


def first_token(epoch: int) -> int:
    """The first token of an epoch. A token is one integer, ``epoch << 32 | delivery``: unique for ever, exact in a JavaScript number."""
    return (epoch << _EPOCH_BITS) + 1


class Dispatcher:
    """Decides for the ConsumerBroker; pure but for its own memory."""

    def __init__(self, state: QueueState, *, config: Config, chance: Random, epoch: int) -> None:
        self.state = state
        self.turn = Turn()
        self._config = config
        self._chance = chance
        self._epoch = epoch
        self._next_token = first_token(epoch)
        self._seats = Seating()
        self._ready = ReadyQueue()
        self._suspects = ReadyQueue(suspects=True)
        self._scheduled = Timetable(lambda task, at_ms: task.status is TaskStatus.SCHEDULED and task.run_at_ms == at_ms)
        self._deadlines = Timetable(lambda task, at_ms: task.deadline_ms == at_ms and not task.status.ended)
        self._dependencies = Dependencies()
        self._retention = Retention(config)
        self.callers = Callers(state, answer=self._answer, commit=self._commit, take_away=self._take_away)
        self._orphans = Orphans()
        self._draining = False

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, now: Now) -> None:
        """Take over the state as it was loaded: queue what is ready, note what has a time, wait for the consumers to come back."""
        for task in tuple(self.state.tasks.values()):
            if task.status.ended:
                self._retention.keep(task)
            elif task.status is TaskStatus.IN_PROGRESS:
                self._orphans.add(task)
            else:
                self._queue(task, now)
            if task.deadline_ms:
                self._deadlines.add(task, task.deadline_ms)
        self.await_holders(now.monotonic_ms)

    def await_holders(self, now_ms: int) -> None:
        """From this moment on (monotonic) consumers have one lease to come back for what they held before this broker started."""
        self._orphans.until_ms = now_ms + self._config.lease_ms

    @property
    def orphan_holders(self) -> set[str]:
        """Labels of consumers that held tasks before this broker started and have not come back yet."""
        return self._orphans.holders()

    def bury(self, label: str, now: Now) -> None:
        """This consumer is proved dead: what it held before this broker started is lost."""
        self._lose(self._orphans.claim_all_of(label), Outcome.LOST, now)

    # ── what publishers did ──────────────────────────────────────────────────────────────────────────────────────────

    def published(self, tasks: Iterable[StoredTask], now: Now) -> None:
        """Queue tasks that were read from the published log (they are in the state already)."""
        add, pending = self._ready.add, TaskStatus.PENDING
        for task in tasks:
            if task.status is pending:
                add(task)
            else:
                self._queue(task, now)
            if task.deadline_ms:
                self._deadlines.add(task, task.deadline_ms)

    # ── what consumers say ───────────────────────────────────────────────────────────────────────────────────────────

    def join(self, peer: int, event: Join, now: Now) -> None:
        """A consumer sits down, with what it still holds from an earlier Pipe."""
        self.leave(peer, now)
        seat = self._seats.sit_down(peer, f"{event.name}@{event.pid}", event.pid, event.want)
        stale = [token for task_id, token in zip(event.ids, event.tokens, strict=True) if not self._rejoin(seat, task_id, token)]
        if event.again and event.pid:  # 0: whose label that is, nobody can tell
            self._take_back_what_got_lost(seat, now)
        seat.renew(list(seat.held), now_ms=now.monotonic_ms, lease_ms=self._config.lease_ms)
        self._seats.update(seat)
        # Not an answer: a task that is pushed to it in this very turn must find it welcomed, and no disk is too slow for its heartbeats.
        self.turn.pushes.append((peer, Welcome(seat.label, self._epoch, self._config.lease_ms, stale)))

    def _rejoin(self, seat: Seat, task_id: str, token: int) -> bool:
        known = self.state.tasks.get(task_id)
        if known is None:
            return False
        if known.token == token and (task := self._orphans.claim(token) or self._seats.take_over(seat, token)):
            seat.held[token] = task
            return True
        # Settled already, under this very token, but the answer got lost: the repeated outcome will be acknowledged.
        return _settled_under(known, token)

    def _take_back_what_got_lost(self, seat: Seat, now: Now) -> None:
        """On the way to it, on an earlier Pipe: a broker that dies between writing a lease and pushing it has told nobody."""
        missing = self._orphans.claim_all_of(seat.label)
        for other in self._seats.earlier_of(seat):
            missing += other.held.values()
            other.held.clear()
            self._seats.pass_over(other)
        for record in decide_return(missing):
            self._commit(record, now)

    def leave(self, peer: int, now: Now) -> None:
        """The Pipe of a peer is closed: what it held is lost."""
        seat = self._seats.leave(peer)
        if seat is not None:
            self._lose(list(seat.held.values()), Outcome.LOST, now)

    def complete(self, peer: int, event: Complete, now: Now) -> None:
        """Tasks are done. One whose result nobody could read, or may be stored, has failed."""
        seat = self._seats.heard(peer, event.want)
        held, stale = seat.held, []
        ids, results, plain = [], [], True
        sound = all_sound(event.results, self._config)
        for task_id, token, result in zip(event.ids, event.tokens, event.results, strict=True):
            task = held.get(token)
            if task is None or task.id != task_id:
                stale.append(token)
                continue
            del held[token]
            if not sound and (fault := fault_of(result, self._config)):
                self._fail(task, Failure(task_id, token, f"its result {fault}"), now)
                continue
            ids.append(task_id)
            results.append(result)
            plain = plain and bytes(result) == b"null"
        if ids:
            self._commit(Completed(ids, [] if plain else results), now)
        self._settle(seat, event.request, self._truly_stale(event.ids, event.tokens, stale))

    def fail(self, peer: int, event: Fail, now: Now) -> None:
        """Attempts failed."""
        seat = self._seats.heard(peer, event.want)
        stale = []
        for failure in event.failures:
            task = seat.held.get(failure.token)
            if task is None or task.id != failure.id:
                stale.append(failure.token)
                continue
            del seat.held[failure.token]
            self._fail(task, failure, now)
        ids, tokens = [failure.id for failure in event.failures], [failure.token for failure in event.failures]
        self._settle(seat, event.request, self._truly_stale(ids, tokens, stale))

    def _fail(self, task: StoredTask, failure: Failure, now: Now) -> None:
        self._commit(decide_failure(task, failure, config=self._config, now_ms=now.wall_ms, chance=self._chance), now)

    def give_back(self, peer: int, event: Return, now: Now) -> None:
        """Tasks come back unstarted."""
        seat = self._seats.heard(peer, event.want)
        returned = [task for token in event.tokens if (task := seat.held.pop(token, None)) is not None]
        for record in decide_return(returned):
            self._commit(record, now)
        self._settle(seat, event.request, [])

    def heartbeat(self, peer: int, event: Heartbeat, now: Now) -> None:
        """The consumer lives; what it lists lasts for another lease, and what it should not hold is revoked."""
        seat = self._seats.heard(peer, event.want)
        seat.renew(event.tokens, now_ms=now.monotonic_ms, lease_ms=self._config.lease_ms)
        self._seats.update(seat)
        stray = [(task_id, token) for task_id, token in zip(event.ids, event.tokens, strict=True) if token not in seat.held]
        if stray:
            self._answer(peer, Revoke([task_id for task_id, _ in stray], [token for _, token in stray]))

    def _settle(self, seat: Seat, request: int, stale: list[int]) -> None:
        self._seats.update(seat)
        self._answer(seat.peer, Settled(request, stale))

    def _truly_stale(self, ids: list[str], tokens: list[int], stale: list[int]) -> list[int]:
        """Of the tokens nobody holds, those that did not settle their task themselves (a repeated outcome is no stale one)."""
        if not stale:
            return stale
        named = dict(zip(tokens, ids, strict=True))
        tasks = self.state.tasks
        return [token for token in stale if (task := tasks.get(named[token])) is None or not _settled_under(task, token)]

    # ── what time does ───────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: Now) -> None:
        """Whatever is due by the clocks: schedules, deadlines, leases, retention."""
        for seat in self._seats:
            if expired := seat.expired(now.monotonic_ms):
                self._expire(seat, expired, now)
        if self._orphans and now.monotonic_ms >= self._orphans.until_ms:
            for label in sorted(self._orphans.holders()):
                self._lose(self._orphans.claim_all_of(label), Outcome.EXPIRED, now)
        if due := self._scheduled.due(now.wall_ms):
            self._commit(Due([task.id for task in due]), now)
        if late := [task for task in self._deadlines.due(now.wall_ms) if task.status is not TaskStatus.IN_PROGRESS]:
            self._commit(Died([task.id for task in late], "its deadline passed before it could run"), now)
        if retired := self._retention.retire(self.state.tasks, now.wall_ms, needed=self._dependencies.needs):
            self._commit(Retired(retired), now)

    def _expire(self, seat: Seat, expired: list[StoredTask], now: Now) -> None:
        self._answer(seat.peer, Revoke([task.id for task in expired], [task.token for task in expired]))
        for task in expired:
            del seat.held[task.token]
        self._seats.pass_over(seat)  # It fell silent.
        self._lose(expired, Outcome.EXPIRED, now)

    def next_wall_ms(self) -> int | None:
        """The next moment of the wall clock at which something is due."""
        return earliest(self._scheduled.next_ms(), self._deadlines.next_ms(), self._retention.next_ms())

    def next_monotonic_ms(self) -> int | None:
        """The next moment of the monotonic clock at which something is due."""
        return earliest(self._orphans.until_ms if self._orphans else None, self._seats.next_expiry_ms())

    def pushed_late(self, turn: Turn, overdue: list[StoredTask], now: Now) -> None:
        """What this turn pushes has waited for the disk until now, and nothing was decided since: its leases begin now.

        What was held back of it, ``overdue``, is leased by the log and was never sent: it comes back, and the next tick ends it.
        """
        for task in overdue:
            self._seats.take_away(task.token)
        for record in decide_return(overdue):
            self._commit(record, now)
        for peer in dict.fromkeys(peer for peer, _ in turn.pushes):
            if seat := self._seats.get(peer):  # else it joined and left in that turn
                seat.begin_anew(now_ms=now.monotonic_ms, lease_ms=self._config.lease_ms)

    # ── handing out ──────────────────────────────────────────────────────────────────────────────────────────────────

    def assign(self, now: Now) -> None:
        """Match what is ready with who waits."""
        if self._draining:
            return
        reserved: set[Seat] = set()
        if self._suspects:
            self._assign_suspects(self._seats.for_suspects(), now)
            reserved = self._seats.to_empty(len(self._suspects))
        while (count := len(self._ready)) and (seats := self._seats.with_room(reserved)):
            # A fair share of what there is, so that a short queue is not all given to the first who asks.
            share = -(-count // len(seats))
            for seat, room_bytes in seats:
                if tasks := self._ready.take(min(seat.free, share), room_bytes):
                    self._lease(seat, tasks, now)
        if self._suspects:  # Whoever is idle still has nothing else to do.
            self._assign_suspects(len(self._seats), now)

    def _assign_suspects(self, most: int, now: Now) -> None:
        """A task that may have killed its consumer is delivered alone."""
        idle = [seat for seat in self._seats.waiting if not seat.held]
        for seat in idle[: max(most, 0)]:
            if suspect := self._suspects.take(1, 1):
                self._lease(seat, suspect, now)

    def _lease(self, seat: Seat, tasks: list[StoredTask], now: Now) -> None:
        first = self._next_token
        self._next_token += len(tasks)
        if (self._next_token - 1) >> _EPOCH_BITS > self._epoch:  # 100 days of 500 deliveries a second
            raise BrokerFailed("consumer_broker", why="has given out all tokens of its epoch")
        self._commit(Leased(seat.label, first, [task.id for task in tasks]), now)
        seat.held.update(zip(range(first, self._next_token), tasks, strict=True))
        seat.lease(range(first, self._next_token), now_ms=now.monotonic_ms, lease_ms=self._config.lease_ms)
        self._seats.served(seat)
        self.turn.pushes.append((seat.peer, Assign(tasks)))

    def drain(self) -> None:
        """Hand out nothing more: the broker is about to end. Whatever else is said and asked is heard as ever."""
        self._draining = True

    @property
    def hungry(self) -> bool:
        """Whether a consumer would take a task now."""
        return bool(self._seats.waiting) and not self._draining

    @property
    def held(self) -> int:
        """How many tasks the consumers that are here hold."""
        return self._seats.held

    # ── following up ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _commit(self, record: Progress, now: Now) -> None:
        """Apply a decision to the state, and let everything derived from it follow."""
        self.turn.records.append(record)
        self.state.apply(record, at_ms=now.wall_ms)
        if isinstance(record, Completed):
            self._note_end(record)
            self._unblock(record, now)
        elif isinstance(record, (Died, Cancelled)):
            self._follow_death(record, now)
        elif not isinstance(record, (Leased, Retired)):
            self._follow_return(record, now)

    def _follow_death(self, record: Died | Cancelled, now: Now) -> None:
        """Link by link, where tasks wait for one another: such a chain may be longer than any stack is deep."""
        ends: deque[Died | Cancelled] = deque([record])
        while ends:
            record = ends.popleft()
            self._note_end(record)
            for waiting in (self._ready, self._suspects, self._scheduled):
                waiting.ended(len(record.ids))
            for died in self._dependencies.died_with(record.ids, self.state.tasks):
                self.turn.records.append(died)
                self.state.apply(died, at_ms=now.wall_ms)
                ends.append(died)

    def _note_end(self, record: Completed | Died | Cancelled) -> None:
        tasks, keep = self.state.tasks, self._retention.keep
        for task_id in record.ids:
            keep(tasks[task_id])
        self._deadlines.ended(len(record.ids))
        self.callers.tell_of_end(record.ids)

    def _unblock(self, record: Completed, now: Now) -> None:
        for task_id in record.ids if self._dependencies else ():
            if ready := self._dependencies.completed(task_id):
                self._commit(Unblocked([task.id for task in ready]), now)
                self._retention.released(needed for task in ready for needed in task.after)

    def _follow_return(self, record: Due | Unblocked | Replayed | Failed | Unleased, now: Now) -> None:
        for task_id in ids_of(record):
            task = self.state.tasks[task_id]
            if task.deadline_ms:  # it may have surfaced there while the task was running
                self._deadlines.add(task, task.deadline_ms)
            self._queue(task, now)

    def _queue(self, task: StoredTask, now: Now) -> None:
        """Put a task where it waits for what it waits for."""
        if task.status is TaskStatus.SCHEDULED:
            self._scheduled.add(task, task.run_at_ms)
        elif task.status is TaskStatus.BLOCKED:
            self._block(task, now)
        elif task.suspect:
            self._suspects.add(task)
        else:
            self._ready.add(task)

    def _block(self, task: StoredTask, now: Now) -> None:
        # One that has run once is a dead letter that was replayed: all was complete then, and may have left the queue since.
        hopeless = "" if task.history else self._dependencies.block(task, self.state.tasks)
        if hopeless:
            self._commit(Died([task.id], hopeless), now)
        elif hopeless is not None:
            self._commit(Unblocked([task.id]), now)

    def _lose(self, tasks: list[StoredTask], outcome: Outcome, now: Now) -> None:
        for record in decide_loss(tasks, outcome, config=self._config, now_ms=now.wall_ms):
            self._commit(record, now)

    def _answer(self, peer: int, event: Event) -> None:
        self.turn.answers.append((peer, event))

    def _take_away(self, task: StoredTask) -> None:
        """Free whoever holds the task of it, and say so."""
        self._orphans.claim(task.token)
        if task.token and (seat := self._seats.take_away(task.token)):
            self._answer(seat.peer, Revoke([task.id], [task.token]))

    # ── looking in ───────────────────────────────────────────────────────────────────────────────────────────────────

    def take_turn(self) -> Turn:
        """What is to be done now; a new turn begins."""
        turn, self.turn = self.turn, Turn()
        return turn

    def counters(self) -> dict[str, int]:
        """Figures for whoever watches the broker."""
        return {
            "tasks": len(self.state.tasks),
            "ready": self._ready.count() + self._suspects.count(),
            "scheduled": self._scheduled.count(),
            "in_progress": self.held + len(self._orphans),
            "consumers": len(self._seats),
            "waiting": len(self._seats.waiting),
            "deliveries": self._next_token - first_token(self._epoch),
        }


def _settled_under(task: StoredTask, token: int) -> bool:
    """Whether the consumer that held this token has settled the task itself (recent attempts only: a repetition comes soon).

    A cancellation is not told apart from a caller's, so a repeated one counts as stale, which changes nothing either.
    """
    return any(attempt.token == token and attempt.outcome in _VERDICTS for attempt in islice(reversed(task.history), 4))


_VERDICTS = frozenset({Outcome.COMPLETED, Outcome.FAILED})
