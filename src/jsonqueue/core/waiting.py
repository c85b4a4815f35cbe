"""The consumers, and which of them wait for work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from jsonqueue.core.ready import weight_of
from jsonqueue.task import StoredTask

__all__ = ["Seat", "WaitingQueue"]


class Seat:
    """One consumer on one Pipe: what it holds, how much it wants, and until when its leases last (monotonic milliseconds)."""

    __slots__ = ("_closes_ms", "_renewed", "_terms", "held", "label", "peer", "pid", "want")

    _TERMS_A_LEASE = 16
    """Leases are watched in steps of a 16th of their length, so that a busy consumer has a handful of terms, not one a batch."""

    _HELD_MAX_BYTES = 8 * 1024 * 1024
    """However many tasks it wants, it holds about so many bytes of them: what it does not read yet waits in the broker's memory."""

    def __init__(self, peer: int, label: str, pid: int, want: int) -> None:
        self.peer, self.label, self.pid, self.want = peer, label, pid, want
        self.held: dict[int, StoredTask] = {}
        self._terms: deque[tuple[int, int]] = deque()  # (ends at, highest token leased by then)
        self._closes_ms = 0
        """The last term takes in leases that end before this."""
        self._renewed: dict[int, int] = {}

    @property
    def free(self) -> int:
        """How many more tasks it would take. One that holds a suspect takes no other until that is settled."""
        return 0 if self.alone else self.want - len(self.held)

    @property
    def alone(self) -> bool:
        """Whether it holds a suspect (which is always the only task it holds)."""
        return len(self.held) == 1 and next(iter(self.held.values())).suspect

    def room_bytes(self) -> int:
        """How many bytes of tasks it may be given on top of those it holds."""
        return self._HELD_MAX_BYTES - sum(map(weight_of, self.held.values()))

    def lease(self, tokens: range, *, now_ms: int, lease_ms: int) -> None:
        """Note when these fresh tokens run out."""
        ends, terms = now_ms + lease_ms, self._terms
        if len(terms) > 1 and ends < self._closes_ms:
            terms[-1] = (ends, tokens[-1])  # a shade longer for the earlier ones, never shorter
        else:
            terms.append((ends, tokens[-1]))
            self._closes_ms = ends + lease_ms // self._TERMS_A_LEASE

    def renew(self, tokens: list[int], *, now_ms: int, lease_ms: int) -> None:
        """A heartbeat: the tokens that it lists last for another lease. Those that it does not know of run out."""
        ends = now_ms + lease_ms
        self._renewed = {token: ends for token in tokens if token in self.held}
        if self._renewed:
            self._terms.append((ends, max(self._renewed)))
            self._closes_ms = ends  # nothing joins it

    def begin_anew(self, *, now_ms: int, lease_ms: int) -> None:
        """It hears only now of what it holds: until now it could not have renewed any of it. All of that lasts for a lease from now on."""
        self._terms.clear()
        if self.held:
            last = max(self.held)
            self.lease(range(last, last + 1), now_ms=now_ms, lease_ms=lease_ms)

    def expired(self, now_ms: int) -> list[StoredTask]:
        """Tasks whose lease has run out; they stay held until somebody decides."""
        upto = 0
        while self._terms and self._terms[0][0] <= now_ms:
            upto = max(upto, self._terms.popleft()[1])
        if not upto:
            return []
        return [task for token, task in self.held.items() if token <= upto and self._renewed.get(token, 0) <= now_ms]

    def next_expiry_ms(self) -> int | None:
        """When to look at :meth:`expired` next."""
        return self._terms[0][0] if self._terms and self.held else None


class WaitingQueue:
    """Consumers that would take a task, longest-waiting first."""

    def __init__(self) -> None:
        self._seats: dict[int, Seat] = {}

    def __bool__(self) -> bool:
        return bool(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(tuple(self._seats.values()))

    def __len__(self) -> int:
        return len(self._seats)

    def update(self, seat: Seat) -> None:
        """Queue the consumer if it has room, else take it out. One that waits already keeps its place."""
        if seat.free > 0:
            self._seats.setdefault(seat.peer, seat)
        else:
            self._seats.pop(seat.peer, None)

    def served(self, seat: Seat) -> None:
        """It was given work: if it has room for more, it queues again at the end."""
        self._seats.pop(seat.peer, None)
        self.update(seat)

    def leave(self, seat: Seat) -> None:
        """The consumer is gone."""
        self._seats.pop(seat.peer, None)
