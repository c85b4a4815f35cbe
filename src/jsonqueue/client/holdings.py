"""What a consumer holds, from being assigned to being settled. Pure book-keeping: its owner brings the I/O, the lock and the time.

A task moves through four places::

    Assign ─▶ ready ─▶ a slot ─▶ unsent ─▶ unsettled ─▶ (Settled: forgotten)
                └──────────────▶ given back ──┘

``ready`` is the buffer of tasks nobody has started. ``unsent`` gathers outcomes until it is worth a frame. ``unsettled`` keeps each frame
until the broker has made it durable: should the Pipe break, it is sent again, with the same tokens, which makes that safe.

How much to hold is worked out from how long a task takes: 10 ms worth of tasks beyond those running, and one where that comes to a third
of a task or more. So tasks of up to 30 ms never wait for the wire, and longer ones, which would hardly gain by it, never wait behind
another while some other consumer has time. Should one take far longer than foretold, what waits behind it is given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Raw, Struct

from jsonqueue.client.outcome import Current, Verdict
from jsonqueue.core.payload import size_of
from jsonqueue.event import Complete, Event, Fail, Failure, Return, encode
from jsonqueue.task import Task

__all__ = ["FRAME_TASKS", "OVERDUE_S", "STALL_S", "ConsumerStats", "Holdings", "Slot"]

FRAME_TASKS = 256
"""Outcomes in one frame, at most: the broker gets to refill while the consumer works on."""

OVERDUE_S = 0.005
"""How long an outcome waits for company."""

STALL_S = 0.1
"""A buffer that no slot has taken from for so long is given back."""

_FRAME_BYTES = 1024 * 1024
_AHEAD_S = 0.010
_AHEAD_MAX = 1023
_ROUNDED_UP_FROM = 1 / 3
_UNHURRIED_S = _AHEAD_S / 4
"""With tasks this long there are few ahead, and a word to the broker costs little beside them."""
_WEIGHT = 0.1


class ConsumerStats(Struct):
    """What a consumer counted since it started."""

    completed: int = 0
    failed: int = 0
    """Attempts that raised, were retried, or were cancelled by their handler."""
    cancelled: int = 0
    """Those among the failed whose handler raised ``Cancel``."""
    returned: int = 0
    """Tasks given back unstarted."""
    stale: int = 0
    """Outcomes that counted no more: the task had been cancelled, or handed on."""
    connections: int = 0


class Slot(Current, eq=False):
    """A place where one task runs."""

    started: float = 0.0
    resting: bool = False
    """It could not start what it had taken, and takes nothing for a while."""
    kill: Callable[[int], None] | None = None
    """Ends the run of the task with this token from outside, where that is possible; nothing happens if another one runs by now."""


class Holdings:
    """The books of one consumer."""

    def __init__(self, concurrency: int) -> None:
        self.slots = tuple(Slot() for _ in range(concurrency))
        self.ready: deque[Task[Any]] = deque()
        self.unsettled: dict[int, Event] = {}
        self.stats = ConsumerStats()
        self.draining = False
        self.unsent = 0
        """Outcomes not yet in a frame."""
        self.unsent_since = 0.0
        """When the oldest of them came."""
        self._ids: list[str] = []
        self._tokens: list[int] = []
        self._results: list[Raw] = []
        self._result_bytes = 0
        self._failures: list[Failure] = []
        self._returned: list[Task[Any]] = []
        self._typical_s = 0.0
        self._measured = False
        self._taken_at = 0.0
        self._requests = 0
        self._farewell = False

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def assign(self, tasks: Iterable[Task[Any]], now: float) -> None:
        """New tasks; while draining they go straight back."""
        if not self.ready:
            self._taken_at = now  # the buffer was empty: nothing has been waiting in it
        self.ready.extend(tasks)
        if self.draining:
            self.give_back(now)

    def take(self, slot: Slot, now: float) -> Task[Any] | None:
        """Start the next task in ``slot``."""
        if not self.ready:
            return None
        slot.task = task = self.ready.popleft()
        slot.started = self._taken_at = now
        slot.cancelled = False
        return task

    def settle(self, slot: Slot, verdict: Verdict, now: float) -> None:
        """The task in ``slot`` is over. If it was revoked meanwhile, what became of it is nobody's concern."""
        task = slot.task
        assert task is not None
        slot.task = None
        self._learn(now - slot.started)
        if slot.cancelled:
            self.stats.stale += 1
            return
        if not self.unsent:
            self.unsent_since = now
        self.unsent += 1
        if isinstance(verdict, Failure):
            self._failures.append(verdict)
            self.stats.failed += 1
            self.stats.cancelled += verdict.cancel
        else:
            self._ids.append(task.id)
            self._tokens.append(task.token)
            self._results.append(verdict)
            self._result_bytes += len(memoryview(verdict))
            self.stats.completed += 1

    def hand_back(self, slot: Slot, now: float) -> None:
        """The task in ``slot`` could not be started: it goes back, and until the slot asks for another it counts for none."""
        task, slot.task, slot.resting = slot.task, None, True
        assert task is not None
        if slot.cancelled:
            self.stats.stale += 1
            return
        if not self.unsent:
            self.unsent_since = now
        self.unsent += 1
        self.stats.returned += 1
        self._returned.append(task)

    @property
    def frame_full(self) -> bool:
        """Whether there is enough to say."""
        return self.unsent >= FRAME_TASKS or self._result_bytes >= _FRAME_BYTES

    def settled(self, request: int, stale: list[int]) -> None:
        """The broker has made a frame durable, but for the ``stale`` tokens."""
        if self.unsettled.pop(request, None) is not None:
            self.stats.stale += len(stale)

    def revoke(self, tokens: Iterable[int]) -> list[tuple[Slot, int]]:
        """Drop these deliveries; those that are running, as slot and token."""
        gone = frozenset(tokens)
        if any(task.token in gone for task in self.ready):
            self.ready = deque(task for task in self.ready if task.token not in gone)
        hit = [(slot, slot.task.token) for slot in self.slots if slot.task is not None and slot.task.token in gone]
        for slot, _ in hit:
            slot.cancelled = True
        return hit

    # ── giving back ──────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, now: float, *, farewell: bool) -> None:
        """Start nothing more. The ``farewell`` is a Return even of nothing: once that is settled, no Assign can be on its way any more."""
        self.draining = True
        self._farewell = farewell
        self.give_back(now)
        self.unsent += farewell

    def give_back(self, now: float) -> None:
        """Hand back whatever nobody has started."""
        if not self.unsent:
            self.unsent_since = now
        self.unsent += len(self.ready)
        self.stats.returned += len(self.ready)
        self._returned.extend(self.ready)
        self.ready.clear()

    def unstall(self, now: float) -> bool:
        """Give the buffer back if all slots are stuck in tasks that take much longer than was foretold, or rest."""
        if not self.ready or now - self._taken_at < STALL_S or any(slot.task is None and not slot.resting for slot in self.slots):
            return False
        begun = [slot.started for slot in self.slots if slot.task is not None]
        if begun:
            self._learn(now - min(begun), weight=1.0)  # or the broker would send the same again
        self.give_back(now)
        return True

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def want(self) -> int:
        """How many tasks to hold at once, running ones included. (A run that was revoked is held by nobody, and keeps its slot busy.)"""
        if self.draining:
            return 0
        slots = sum(1 for slot in self.slots if slot.task is None or not slot.cancelled) - sum(slot.resting for slot in self.slots)
        if not self._measured:
            return slots
        ahead = slots * min(_AHEAD_S / max(self._typical_s, 1e-9), _AHEAD_MAX)
        return slots + int(ahead + 1 - _ROUNDED_UP_FROM)

    @property
    def running_dry(self) -> bool:
        """Whether the last task there was has been taken, of a kind that takes long enough to get the next one meanwhile: ask now."""
        return bool(self.unsent) and not self.ready and self._typical_s >= _UNHURRIED_S

    def overdue_in(self, now: float) -> float | None:
        """Seconds until an outcome has waited for company long enough, or may have; None: as things stand none will."""
        if self.unsent:
            return max(0.0, self.unsent_since + OVERDUE_S - now)
        if len(self.ready) > 1 or (self.ready and self._typical_s < _UNHURRIED_S):
            return OVERDUE_S  # a slot takes from the buffer without telling anybody
        return STALL_S if self.ready else None

    def _learn(self, seconds: float, *, weight: float = _WEIGHT) -> None:
        if self._measured:
            self._typical_s += (seconds - self._typical_s) * weight
        else:
            self._typical_s, self._measured = seconds, True

    def pack(self) -> list[Event]:
        """Everything unsent, as frames; from here on they are unsettled."""
        frames: list[Event] = []
        want = self.want
        while self._ids:
            frames.append(self._pack_results(want))
        while self._failures:
            frames.append(self._pack_failures(want))
        if self._returned or self._farewell:
            frames.append(Return(self._request(), [task.id for task in self._returned], [task.token for task in self._returned], want))
        self._returned, self._farewell, self.unsent = [], False, 0
        for frame in frames:
            self.unsettled[frame.request] = frame  # type: ignore[attr-defined] # all three kinds have one
        return frames

    def _pack_results(self, want: int) -> Event:
        """One frame of results: all there is, or as much of it as a frame should carry."""
        count = len(self._ids) if not self.frame_full else _fitting(self._results)
        frame = Complete(self._request(), self._ids[:count], self._tokens[:count], self._results[:count], want)
        self._ids, self._tokens, self._results = self._ids[count:], self._tokens[count:], self._results[count:]
        self._result_bytes = sum(map(size_of, self._results))
        return frame

    def _pack_failures(self, want: int) -> Event:
        count = _fitting([Raw(encode(failure)) for failure in self._failures[:FRAME_TASKS]])
        some, self._failures = self._failures[:count], self._failures[count:]
        return Fail(self._request(), some, want)

    def refit(self, most: int) -> None:
        """A broker that takes results of at most ``most`` bytes, maybe fewer than the one before: what is larger has failed. In a frame it
        could be too much for the broker even to read, and would be sent again and again."""
        for request, frame in list(self.unsettled.items()):
            if isinstance(frame, Complete) and _largest(frame.results) > most:
                del self.unsettled[request]
                self._ids, self._tokens, self._results = self._ids + frame.ids, self._tokens + frame.tokens, self._results + frame.results
                self.unsent += len(frame.ids)
        if _largest(self._results) <= most:
            return
        outcomes = list(zip(self._ids, self._tokens, self._results, strict=True))
        small = [outcome for outcome in outcomes if size_of(outcome[2]) <= most]
        self._ids, self._tokens, self._results = [list(column) for column in zip(*small, strict=True)] or [[], [], []]
        self._result_bytes = sum(map(size_of, self._results))
        for task_id, token, result in outcomes:
            if size_of(result) > most:
                words = f"its result is {size_of(result):,} bytes of JSON, and this queue takes {most:,} by now (payload_max_bytes)"
                self._failures.append(Failure(task_id, token, words))
                self.stats.completed, self.stats.failed = self.stats.completed - 1, self.stats.failed + 1

    def _request(self) -> int:
        self._requests += 1
        return self._requests

    # ── at large ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def running(self) -> int:
        """Slots in use."""
        return sum(1 for slot in self.slots if slot.task is not None)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing is left to say or to be confirmed."""
        return not self.running and not self.unsent and not self.unsettled

    @property
    def unconfirmed(self) -> int:
        """Outcomes, none of them a task given back, of which no broker has said that they are durable."""
        sent = sum(
            len(frame.ids) if isinstance(frame, Complete) else len(frame.failures)
            for frame in list(self.unsettled.values())
            if isinstance(frame, Complete | Fail)
        )
        return sent + len(self._ids) + len(self._failures)

    def leased(self) -> tuple[list[str], list[int]]:
        """Ids and tokens of what the broker takes for held, to be renewed. (Outcomes on their way are not: they end their leases.)"""
        held = [*self.ready, *(slot.task for slot in self.slots if slot.task is not None and not slot.cancelled), *self._returned]
        ids = [task.id for task in held] + self._ids + [failure.id for failure in self._failures]
        tokens = [task.token for task in held] + self._tokens + [failure.token for failure in self._failures]
        return ids, tokens

    def held(self) -> tuple[list[str], list[int]]:
        """Ids and tokens of all that is not settled yet, for a new Pipe's Join."""
        ids, tokens = self.leased()
        for event in self.unsettled.values():
            if isinstance(event, Fail):
                ids += [failure.id for failure in event.failures]
                tokens += [failure.token for failure in event.failures]
            elif isinstance(event, (Complete, Return)):
                ids += event.ids
                tokens += event.tokens
        return ids, tokens


def _fitting(texts: Sequence[Raw]) -> int:
    """How many of these go into one frame."""
    count = size = 0
    for text in texts[:FRAME_TASKS]:
        size += size_of(text)
        if count and size > _FRAME_BYTES:
            break
        count += 1
    return count


def _largest(results: Sequence[Raw]) -> int:
    return max(map(size_of, results), default=0)
