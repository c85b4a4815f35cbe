"""A consumer's standing with the queue: when it joins, what it says and when, what it says again, how it leaves. Decisions alone, no I/O.

The books of its tasks are :class:`~jsonqueue.client.holdings.Holdings`; this is the conversation about them. Whoever drives it brings the
Pipe, the time and the lock: :class:`~jsonqueue.client.session.Session` with threads and sockets, the simulator with neither.

Its owner sees to three things: what :meth:`Membership.outgoing` gives is sent at once and in that order, :meth:`Membership.tend` is
called when :meth:`Membership.patience` is over, and :meth:`Membership.lost` when a Pipe is of no more use.
"""

from __future__ import annotations

from typing import Any

from jsonqueue.client.holdings import OVERDUE_S, Holdings, Slot
from jsonqueue.client.outcome import Verdict
from jsonqueue.config import Config
from jsonqueue.event import Event, Heartbeat, Join, Revoke, Settled, Welcome
from jsonqueue.task import Task

__all__ = ["Membership"]

_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.05, 1.0
_UNJOINED_S = 1.0
"""Without a Welcome there is nothing to be done in time; it is looked after now and then all the same."""


class Membership:
    """What one consumer says to its broker, over one Pipe after the other."""

    def __init__(self, holdings: Holdings, *, name: str) -> None:
        self.name = name
        self.joined = False
        """Whether the broker has said Welcome on the Pipe of the moment; before that, nothing but the Join is said."""
        self.stopping = False
        self.backoff_s = 0.0
        self._holdings = holdings
        self._again: list[Event] = []
        self._able_again = False
        """A slot came free of a run that had been revoked, or of its rest: the broker does not know yet that there is room."""
        self._lease_s = Config().lease_ms / 1000
        self._beat_at = 0.0

    # ── Pipes come and go ────────────────────────────────────────────────────────────────────────────────────────────

    def next_try(self) -> float:
        """How long to wait before the next call to the broker: ever longer, until a Welcome. Who takes calls and hangs up is no broker."""
        wait_s = self.backoff_s
        self.backoff_s = min(max(2 * wait_s, _BACKOFF_FIRST_S), _BACKOFF_MAX_S)
        return wait_s

    def join(self, pid: int) -> Join:
        """There is a Pipe; this is the first thing to say on it."""
        self.joined = self._able_again = False
        self._again = []
        again = self._holdings.stats.connections > 0
        self._holdings.stats.connections += 1
        ids, tokens = self._holdings.held()
        return Join(self.name, pid, self._holdings.want, ids, tokens, again=again)

    def lost(self) -> None:
        """The Pipe is of no more use."""
        self.joined = False
        self._again = []

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, event: Any, now: float) -> list[tuple[Slot, int]]:
        """The broker has said this; the runs (slot and token) that are to be ended, since they count no more."""
        if isinstance(event, Settled):
            self._holdings.settled(event.request, event.stale)
        elif isinstance(event, Revoke):
            return self._holdings.revoke(event.tokens)
        elif isinstance(event, Welcome):
            return self._welcomed(event, now)
        elif hasattr(event, "tasks"):
            self._holdings.assign(event.tasks, now)
        return []

    def _welcomed(self, event: Welcome, now: float) -> list[tuple[Slot, int]]:
        self.joined = True
        self.backoff_s = 0.0
        self._lease_s = event.lease_ms / 1000
        self._beat_at = now + self._lease_s / 3
        # What the lost Pipe may have swallowed is said again, under the same tokens: said twice, it counts once.
        self._again = list(self._holdings.unsettled.values())
        return self._holdings.revoke(event.stale)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def speaks(self) -> bool:
        """Whether there is something to say."""
        return bool(self._holdings.unsent or self._again or self._able_again)

    def outgoing(self) -> list[Event]:
        """All there is to say; nothing before the Welcome."""
        if not self.joined:
            return []
        again, self._again = self._again, []
        events = self._holdings.pack()
        if not events and (again or self._able_again):
            events.append(self._heartbeat())  # what is said again tells how much was wanted then, and not now
        self._able_again = False
        return again + events

    def tend(self, now: float) -> list[Event]:
        """What cannot wait any longer: outcomes that have waited long enough for company, a buffer that got stuck, a heartbeat."""
        if not self.joined:
            return []
        stalled = self._holdings.unstall(now)
        overdue = self._holdings.unsent and now - self._holdings.unsent_since >= OVERDUE_S
        due = self.outgoing() if stalled or overdue or self._again or self._able_again else []
        if now >= self._beat_at:
            self._beat_at = now + self._lease_s / 3
            due.append(self._heartbeat())
        return due

    def _heartbeat(self) -> Heartbeat:
        ids, tokens = self._holdings.leased()
        return Heartbeat(ids, tokens, self._holdings.want)

    def patience(self, now: float) -> float:
        """How long :meth:`tend` can wait, in seconds, unless something comes meanwhile."""
        if not self.joined:
            return _UNJOINED_S
        beat = max(0.0, self._beat_at - now)
        overdue = OVERDUE_S if self._able_again else self._holdings.overdue_in(now)
        return beat if overdue is None else min(beat, overdue)

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_task(self, slot: Slot, verdict: Verdict | None, now: float) -> tuple[Task[Any] | None, bool]:
        """Settle what ran in ``slot``, and start its next task; and whether to say now what there is to say.

        No task: say it, then ask :meth:`Holdings.take` once more.
        """
        holdings = self._holdings
        if slot.resting:
            slot.resting, self._able_again = False, True
        if verdict is not None:
            self._able_again = self._able_again or slot.cancelled
            holdings.settle(slot, verdict, now)
        task = None if holdings.frame_full else holdings.take(slot, now)
        return task, task is None or holdings.running_dry

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, now: float, *, connected: bool) -> None:
        """Start nothing more, and say so. Once :attr:`Holdings.idle`, the broker knows of everything, and nothing is on its way."""
        self.stopping = True
        self._holdings.drain(now, farewell=connected)
