"""The manager's front desk: takes calls on the socket, hears what each caller wants, gives it its answer. No caller can hold up another."""

from __future__ import annotations

import contextlib
import selectors
from collections.abc import Callable

from jsonqueue.broker.narration import Narration
from jsonqueue.channel.registration import HANDSHAKE_MS, Listener, Operate, Refused, Register, Registered, Report, Visitor
from jsonqueue.clock import Clock
from jsonqueue.errors import BadFrame, ConnectionClosed

__all__ = ["Guest", "Reception"]

_GUESTS_MAX = 512
"""Callers at the desk at one time; one more, and the one that is silent for longest goes."""

_PAUSE_MS = 200
"""How long nobody is let in when this process has no room for more open files."""

_SILENCE_MS = 30_000
"""How long nothing more is said of that."""


class Guest:
    """A caller at the desk."""

    def __init__(self, visitor: Visitor, until_ms: int) -> None:
        self.visitor = visitor
        self.until_ms = until_ms
        self.asked = False
        self.answered = False


class Reception:
    """Listens, and calls ``handle(guest, request)`` for each request; the answer may follow later."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listener: Listener,
        clock: Clock,
        say: Narration,
        handle: Callable[[Guest, Register | Operate], None],
    ) -> None:
        self._selector = selector
        self._listener = listener
        self._clock = clock
        self._say = say
        self._handle = handle
        self._guests: list[Guest] = []
        self._paused_until_ms: int | None = None
        self._silent_until_ms = 0
        selector.register(listener, selectors.EVENT_READ, self._welcome)

    def answer(self, guest: Guest, answer: Registered | Refused | Report, fds: tuple[int, ...] = ()) -> None:
        """Give a guest its answer, and ``fds`` with it."""
        guest.answered = True
        guest.until_ms = self._clock.monotonic_ms() + HANDSHAKE_MS
        try:
            out = guest.visitor.answer(answer, fds)
        except ConnectionClosed:
            out = True
        if out:
            self._see_off(guest)
        else:
            self._selector.modify(guest.visitor, selectors.EVENT_WRITE, lambda: self._flush(guest))

    def keep_waiting(self, guest: Guest, wait_ms: int) -> None:
        """The answer will take a while."""
        guest.until_ms = self._clock.monotonic_ms() + wait_ms

    def is_here(self, guest: Guest) -> bool:
        """Whether the guest still waits for its answer."""
        return guest in self._guests and not guest.answered

    def tick(self, now_ms: int) -> None:
        """Part from those whose time is up; open again after a pause."""
        for guest in [guest for guest in self._guests if guest.until_ms <= now_ms]:
            self._time_is_up(guest)
        if self._paused_until_ms is not None and now_ms >= self._paused_until_ms:
            self._paused_until_ms = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._welcome)

    def next_due_ms(self) -> int | None:
        """When :meth:`tick` has something to do."""
        times = [guest.until_ms for guest in self._guests]
        if self._paused_until_ms is not None:
            times.append(self._paused_until_ms)
        return min(times, default=None)

    def close(self) -> None:
        """Nobody is let in any more; those who wait are told so. Idempotent."""
        if self._listener.fileno() < 0:
            return
        if self._paused_until_ms is None:
            self._selector.unregister(self._listener)
        self._paused_until_ms = None
        self._listener.close()
        for guest in [guest for guest in self._guests if guest.asked and not guest.answered]:
            self.answer(guest, Refused("the brokers are stopping"))
        for guest in list(self._guests):
            self._see_off(guest)

    # ── one caller ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _welcome(self) -> None:
        try:
            visitor = self._listener.accept()
        except OSError as error:
            self._pause(error)
            return
        if visitor is None:
            return
        if len(self._guests) >= _GUESTS_MAX:
            self._see_off(min(self._guests, key=lambda guest: (guest.asked, guest.until_ms)))
        guest = Guest(visitor, self._clock.monotonic_ms() + HANDSHAKE_MS)
        try:
            self._selector.register(visitor, selectors.EVENT_READ, lambda: self._hear(guest))
        except OSError as error:
            visitor.close()
            self._pause(error)
        else:
            self._guests.append(guest)

    def _pause(self, error: OSError) -> None:
        """Who calls stays in the kernel's queue: to look at once again would find the same, without end."""
        self.complain(error)
        self._selector.unregister(self._listener)
        self._paused_until_ms = self._clock.monotonic_ms() + _PAUSE_MS

    def complain(self, error: OSError) -> None:
        """Say, now and then, that there is no room for more open files."""
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._silent_until_ms:
            self._silent_until_ms = now_ms + _SILENCE_MS
            self._say.too_many_files(error)

    def _hear(self, guest: Guest) -> None:
        try:
            request = guest.visitor.request()
            if request is not None and guest.asked:
                raise BadFrame("more than one request on a connection")
        except ConnectionClosed:
            self._see_off(guest)
        except BadFrame as error:
            self._turn_away(guest, str(error))
        else:
            if request is not None:
                guest.asked = True
                self._handle(guest, request)

    def _turn_away(self, guest: Guest, reason: str) -> None:
        self._say.visitor_refused(reason)
        self.answer(guest, Refused(reason))

    def _time_is_up(self, guest: Guest) -> None:
        if guest.asked and not guest.answered:
            self.answer(guest, Refused("the broker did not come up in time"))
        else:
            self._see_off(guest)

    def _flush(self, guest: Guest) -> None:
        out = True
        with contextlib.suppress(ConnectionClosed):
            out = guest.visitor.flush()
        if out:
            self._see_off(guest)

    def _see_off(self, guest: Guest) -> None:
        if guest in self._guests:
            self._guests.remove(guest)
            self._selector.unregister(guest.visitor)
            guest.visitor.close()
