"""Who is here: every consumer on its Pipe, what it holds, and which of them are to be given something."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest

from jsonqueue.core.waiting import Seat, WaitingQueue
from jsonqueue.task import StoredTask

__all__ = ["Seating"]

_WANT_MAX = 4_096
"""However much a consumer wants, it holds no more tasks than this: enough for 10 ms of the shortest ones."""


class Seating:
    """The seats by the number of their peer, and the queue of those that would take a task."""

    def __init__(self) -> None:
        self._seats: dict[int, Seat] = {}
        self._waiting = WaitingQueue()

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(tuple(self._seats.values()))

    # ── who comes and goes ───────────────────────────────────────────────────────────────────────────────────────────

    def sit_down(self, peer: int, label: str, pid: int, want: int) -> Seat:
        """A consumer is here from now on. It waits for nothing before :meth:`update`."""
        seat = self._seats[peer] = Seat(peer, label, pid, min(want, _WANT_MAX))
        return seat

    def leave(self, peer: int) -> Seat | None:
        """Its Pipe is closed; None: no consumer, or one that never sat down."""
        seat = self._seats.pop(peer, None)
        if seat is not None:
            self._waiting.leave(seat)
        return seat

    def get(self, peer: int) -> Seat | None:
        """The seat of this peer, if it has one."""
        return self._seats.get(peer)

    def heard(self, peer: int, want: int) -> Seat:
        """Who says something, and wants so many tasks by now. One that never sat down holds nothing: whatever it says is stale."""
        seat = self._seats.get(peer)
        if seat is None:
            return Seat(peer, f"@{peer}", 0, 0)
        seat.want = min(want, _WANT_MAX)
        return seat

    def earlier_of(self, seat: Seat) -> list[Seat]:
        """Of the same consumer, on broken Pipes whose end has not been noticed yet."""
        return [other for other in self._seats.values() if other is not seat and other.label == seat.label]

    # ── what they hold ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def held(self) -> int:
        """How many tasks they hold together."""
        return sum(len(seat.held) for seat in self._seats.values())

    def take_over(self, seat: Seat, token: int) -> StoredTask | None:
        """What the same consumer holds under this token on an earlier Pipe, which lets go of it."""
        taken = [other.held.pop(token) for other in self.earlier_of(seat) if token in other.held]
        return taken[0] if taken else None

    def take_away(self, token: int) -> Seat | None:
        """Whoever holds a task under this token does so no more; None: nobody did."""
        for seat in self._seats.values():
            if seat.held.pop(token, None) is not None:
                self.update(seat)
                return seat
        return None

    def next_expiry_ms(self) -> int | None:
        """When a lease runs out next (monotonic clock)."""
        return min((at_ms for seat in self._seats.values() if (at_ms := seat.next_expiry_ms()) is not None), default=None)

    # ── who is to be given something ─────────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> WaitingQueue:
        """Those that would take a task now."""
        return self._waiting

    def update(self, seat: Seat) -> None:
        """What it holds or wants has changed. One that never sat down wants nothing."""
        self._waiting.update(seat)

    def served(self, seat: Seat) -> None:
        """It was given something, and is the last to be asked now."""
        self._waiting.served(seat)

    def pass_over(self, seat: Seat) -> None:
        """It gets no more until it is heard of again."""
        seat.want = 0
        self.update(seat)

    def with_room(self, reserved: set[Seat]) -> list[tuple[Seat, int]]:
        """Who waits, but for those that are to be emptied, and how many bytes of tasks each may be given."""
        return [(seat, room) for seat in self._waiting if seat not in reserved and (room := seat.room_bytes()) > 0]

    def for_suspects(self) -> int:
        """How many more consumers may go to suspects, which each have one to themselves: of several, one is for all other tasks."""
        able = [seat for seat in self._seats.values() if seat.want > 0]
        return max(1, len(able) - 1) - sum(seat.alone for seat in able)

    def to_empty(self, suspects: int) -> set[Seat]:
        """The consumers that get nothing more until they are idle, since so many suspects wait for them."""
        others = [seat for seat in self._seats.values() if seat.want > 0 and not seat.alone]
        return set(nsmallest(min(suspects, self.for_suspects()), others, key=lambda seat: len(seat.held)))
