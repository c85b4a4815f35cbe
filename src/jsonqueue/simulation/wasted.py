"""The judge of wasted work: a task is handed out again for a cause, and for a cause alone.

At least once is what is promised, and none of the other judges minds a task that runs ten times: all that is durable is right. So this one
counts. A task has at most one lease more than there were causes to end one, and each cause must be real: a lease that was *lost* had a
consumer that died, or whose Pipe ended; one that *expired* had not been renewed for its time; what was *returned* or *failed* somebody has
said so of. Or it never got there: its consumer came back without it, and then it waits for no lease; or it was not sent, since its deadline
had passed while there was no room to write its lease down. Attempts are counted anew, and nothing is tried again before its time, nor
handed out once its deadline has passed. And a consumer that has no time for a task gives it back once or twice, not ten times a second for
as long as a run lasts.

Nor does a broker take turn after turn for nothing: on a real machine that is a processor, and a simulated one would never come to an end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from jsonqueue.core.records import Failed, Leased, Progress, Replayed, Retired, Unleased
from jsonqueue.event import Assign, Event, Fail, Heartbeat, Join, Return
from jsonqueue.simulation.verdict import Violation
from jsonqueue.storage.codec import Batch
from jsonqueue.task import Outcome

if TYPE_CHECKING:
    from jsonqueue.simulation.consumer import ConsumerClient
    from jsonqueue.simulation.process import BrokerProcess
    from jsonqueue.simulation.wire import Link
    from jsonqueue.simulation.world import World

__all__ = ["Waste"]

_GIVEN_BACK_MAX = 3
"""So often a consumer may misjudge how long a run takes, before that run ends."""
_VAIN_TURNS, _VAIN_US = 200, 50_000
"""So many turns in a row that heard nothing and wrote nothing, within that time: whatever is due by a clock is a millisecond apart."""


_LATE_MS = 100
"""By so much a broker may be late in whose turns a checkpoint takes its own time."""


class _Lease(NamedTuple):
    token: int
    at_ms: int
    epoch: int
    consumer: ConsumerClient | None
    """Who got it, if it was still there by then."""
    link: Link | None
    """The Pipe on which it was sent, if it was."""


class Waste:
    """Sees what consumers say, what the ConsumerBroker hears, and each record of the log."""

    def __init__(self, world: World) -> None:
        self._world = world
        scenario = world.scenario
        # By a clock that jumps nobody can tell how long a lease lasted.
        self._clock_is_true = all(fault.kind != "clock jump" for fault in scenario.faults)
        # What the wire doubles or turns around comes back, and is sent again: no real Pipe does either.
        self._wire_is_true = not (scenario.weather.duplicate or scenario.weather.reorder)
        self._leases: dict[str, _Lease] = {}
        self._granted: dict[str, int] = {}
        self._causes: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        """Attempts that count, by the records alone."""
        self._not_before_ms: dict[str, int] = {}
        self._given_up: set[int] = set()
        self._back: list[Join] = []
        """Consumers that are back, heard of while a turn waits for room on the disk: what that hands out they do not have."""
        self._missed: dict[int, int] = {}
        """Token → the epoch of the broker which heard that it never reached its consumer."""
        self._sent: dict[int, Link] = {}
        self._turn_began_ms = 0
        # A broker that stands still, or waits for its disk, is late with everything.
        self._broker_is_quick = not {fault.kind for fault in scenario.faults} & {"stall broker", "slow disk", "full disk", "clock jump"}
        self._named_ms: dict[int, int] = {}
        """Token → when its consumer last listed it, be that since revised or not."""
        self._heard_ms: dict[int, int] = {}
        """Token → when its consumer last listed it. One that is listed no more may run out at any time: nobody knows of it."""
        self._listed: dict[int, frozenset[int]] = {}
        self._given_back: dict[str, int] = {}
        self._vain: dict[str, tuple[int, int, int]] = {}
        """Broker → turns in vain, since when, and how long its log was all the while."""

    # ── consumers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run_begins_or_ends(self, consumer: ConsumerClient) -> None:
        """From here on it knows better how long its runs take."""
        self._given_back.pop(consumer.name, None)

    def says(self, consumer: ConsumerClient, events: Iterable[Event]) -> None:
        """What a consumer says, not all of which will arrive."""
        for event in events:
            if isinstance(event, Fail):
                self._given_up.update(failure.token for failure in event.failures)
            elif isinstance(event, Return):
                self._given_up.update(event.tokens)
                if event.tokens and self._wire_is_true and not consumer.membership.stopping:
                    self._count_what_comes_back(consumer, event)

    def _count_what_comes_back(self, consumer: ConsumerClient, event: Return) -> None:
        times = self._given_back[consumer.name] = self._given_back.get(consumer.name, 0) + 1
        if times > _GIVEN_BACK_MAX:
            why = f"{consumer.name} gives tasks back for the {times}th time, and none of its runs has begun or ended since the first"
            raise Violation("wasted", why, task_id=event.ids[0])

    # ── the broker ───────────────────────────────────────────────────────────────────────────────────────────────────

    def hears(self, arrivals: Iterable[tuple[int, Event]]) -> None:
        """What arrives at the ConsumerBroker, and on which Pipe: what is listed lasts for another lease."""
        now_ms = self._turn_began_ms = self._world.clock.wall_ms()
        if self._back and not self._waits_for_room():
            self._back.clear()
        for peer, event in arrivals:
            if isinstance(event, (Heartbeat, Join)):
                listed = frozenset(event.tokens)
                self._heard_ms.update(dict.fromkeys(self._listed.get(peer, frozenset()) - listed, 0))
                self._heard_ms.update(dict.fromkeys(listed, now_ms))
                self._named_ms.update(dict.fromkeys(listed, now_ms))
                self._listed[peer] = listed
                if isinstance(event, Join) and event.again:
                    self._note_missed(event)

    def _waits_for_room(self) -> bool:
        broker = self._world.consumer_broker
        return broker is not None and bool(broker.broker.counters()["stalled"])

    def _note_missed(self, event: Join) -> None:
        """What its consumer comes back without, handed out by now: it never reached it."""
        broker = self._world.consumer_broker
        assert broker is not None
        if self._waits_for_room():
            self._back.append(event)
        for lease in self._leases.values():
            if lease.consumer is not None and lease.consumer.pid == event.pid and lease.token not in event.tokens:
                self._given_up.add(lease.token)
                self._missed[lease.token] = broker.broker.epoch

    def assigns(self, link: Link | None, event: Assign) -> None:
        """What the ConsumerBroker sends, and on which Pipe: its consumer may have a later one, which it has not heard of."""
        for task in event.tasks:
            if 0 < task.deadline_ms <= self._turn_began_ms:
                why = f"{task.id} is handed out {self._turn_began_ms - task.deadline_ms} ms after its deadline"
                raise Violation("wasted", why, task_id=task.id)
        if link is not None:
            self._sent.update((task.token, link) for task in event.tasks)

    def turns(self, broker: BrokerProcess, arrivals: int) -> None:
        """A broker has taken a turn over so many events."""
        if arrivals:
            self._vain.pop(broker.name, None)
            return
        now_us, log_bytes = self._world.scheduler.now_us, broker.broker.counters()["log_bytes"]
        count, since_us, bytes_then = self._vain.get(broker.name, (0, now_us, log_bytes))
        if log_bytes != bytes_then or now_us - since_us > _VAIN_US:
            count, since_us = 0, now_us
        if count == _VAIN_TURNS:
            raise Violation("wasted", f"{broker.name} takes {count} turns within {now_us - since_us} µs, and none of them for anything")
        self._vain[broker.name] = (count + 1, since_us, log_bytes)

    def look(self, record: Progress, batch: Batch) -> None:
        """A record of the log, before it is applied."""
        if isinstance(record, Leased):
            self._lease(record, batch)
        elif isinstance(record, Unleased):
            if len(record.ids) == 1 and record.outcome is not Outcome.RETURNED and not record.counted:
                why = f"{record.ids[0]} was {record.outcome}, and nothing else with it, and that does not count: it might go on for ever"
                raise Violation("wasted", why, task_id=record.ids[0])
            for task_id in record.ids:
                self._require_cause(task_id, record.outcome, batch)
                self._count_cause(task_id, record.counted)
        elif isinstance(record, Failed):
            self._require_cause(record.id, Outcome.FAILED, batch)
            self._count_cause(record.id)
            self._not_before_ms[record.id] = record.retry_at_ms
        elif isinstance(record, Replayed):
            for task_id in record.ids:
                self._count_cause(task_id)
                self._attempts.pop(task_id)
                self._not_before_ms.pop(task_id, None)
        elif isinstance(record, Retired):
            for task_id in record.ids:  # its id may come again, as another task
                self._granted.pop(task_id, None)
                self._causes.pop(task_id, None)
                self._attempts.pop(task_id, None)
                self._not_before_ms.pop(task_id, None)

    def _lease(self, record: Leased, batch: Batch) -> None:
        pid = int(record.consumer.rpartition("@")[2])
        consumer = next((consumer for consumer in self._world.consumers if consumer.pid == pid and consumer.alive), None)
        for token, task_id in enumerate(record.ids, record.first):
            self._leases[task_id] = _Lease(token, batch.at_ms, batch.epoch, consumer, self._sent.pop(token, None))
            if any(join.pid == pid and token not in join.tokens for join in self._back):
                self._given_up.add(token)
            granted = self._granted[task_id] = self._granted.get(task_id, 0) + 1
            causes = self._causes.get(task_id, 0)
            if granted > 1 + causes:
                raise Violation("wasted", f"{task_id} is handed out for the {granted}th time, for {causes} causes", task_id=task_id)

            early_ms = self._not_before_ms.get(task_id, 0) - batch.at_ms
            if early_ms > 0 and self._clock_is_true:
                raise Violation("wasted", f"{task_id} is handed out {early_ms} ms before it is to be tried again", task_id=task_id)

    def _count_cause(self, task_id: str, counted: bool = True) -> None:
        self._attempts[task_id] = self._attempts.get(task_id, 0) + counted
        self._causes[task_id] = self._causes.get(task_id, 0) + 1

    def _require_cause(self, task_id: str, outcome: Outcome, batch: Batch) -> None:
        lease = self._leases.get(task_id)
        if lease is None:
            return
        task, ended = self._world.judge.shadow.state.tasks[task_id], self._attempts.get(task_id, 0)
        attempt = task.attempt
        if attempt != ended + 1:
            raise Violation("wasted", f"{task_id} is at attempt {attempt}, and {ended} have ended that count", task_id=task_id)
        if self._wire_is_true and outcome in {Outcome.EXPIRED, Outcome.LOST} and self._missed.get(lease.token) == batch.epoch:
            raise Violation("wasted", f"{task_id} was {outcome}: its consumer had come back without it, and it waited", task_id=task_id)
        if outcome is Outcome.EXPIRED:
            self._require_silence(task_id, lease, batch.at_ms)
            self._require_haste(task_id, lease, batch)
        elif outcome is Outcome.LOST and self._wire_is_true and not _is_lost(lease, batch.epoch):
            raise Violation("wasted", f"{task_id} was taken for lost, and its consumer is there as ever", task_id=task_id)
        elif outcome is Outcome.RETURNED and lease.link is None and 0 < task.deadline_ms <= batch.at_ms:
            return  # it waited for room, and was not sent any more
        elif outcome in {Outcome.RETURNED, Outcome.FAILED} and lease.token not in self._given_up:
            raise Violation("wasted", f"{task_id} is {outcome}, and nobody has said so", task_id=task_id)

    def _require_silence(self, task_id: str, lease: _Lease, at_ms: int) -> None:
        silent_ms, lease_ms = at_ms - self._heard_ms.get(lease.token, lease.at_ms), self._world.config.lease_ms
        if self._clock_is_true and silent_ms < lease_ms * 2 // 3:
            why = f"the lease of {task_id} expired, and was renewed {silent_ms} ms before: it lasts for {lease_ms}"
            raise Violation("wasted", why, task_id=task_id)

    def _require_haste(self, task_id: str, lease: _Lease, batch: Batch) -> None:
        """Nor does it last for much longer than it should, if its broker has had nothing in its way."""
        if not self._broker_is_quick or batch.epoch != lease.epoch:
            return
        late_ms = batch.at_ms - self._named_ms.get(lease.token, lease.at_ms) - self._world.config.lease_ms
        if late_ms > self._world.config.lease_ms // 8 + _LATE_MS:
            raise Violation(
                "wasted", f"the lease of {task_id} expired {late_ms} ms late: its consumer had long been silent", task_id=task_id
            )


def _is_lost(lease: _Lease, epoch: int) -> bool:
    """Whether its consumer has died, or been parted from the broker that granted it, or, by a later one, been heard of without it."""
    consumer, link = lease.consumer, lease.link
    if consumer is None or link is None or not consumer.alive:
        return True
    return not link.open if epoch == lease.epoch else consumer.has_joined_since(link)
