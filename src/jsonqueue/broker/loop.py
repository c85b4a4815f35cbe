"""The one loop that runs a broker object on real Pipes.

A turn: wait until something is readable or the broker is due; read what has come, from every peer; let the broker take one step; write.
While a step waits for the disk, the next events gather in the Pipes, so each turn takes in all there is: batches grow with the load.

Marks wake a broker only while somebody waits for what they announce. Otherwise they gather too, and are read with whatever else there is to
do, or 20 ms after the last ones: to be woken costs more than all that a mark says.

Bounded: a turn reads at most 1 MiB of a peer and 16 MiB in all; what a peer does not read waits up to a cap, then the peer is dropped. A
caller is not, for it may ask in a breath for more than that: what it cannot be told yet is asked again in its name when it has read what it
was told, and nothing more is read of it until then. So a question waits, which is short, and not its answer.
No peer can make the loop wait, and whatever a peer says, at worst its own connection is closed.
"""

from __future__ import annotations

import logging
import selectors
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from jsonqueue.channel.pipe import NotReading, Pipe
from jsonqueue.clock import Clock
from jsonqueue.errors import BadFrame, ConnectionClosed
from jsonqueue.event import Event, EventOwner, Look, Result, Watch, decoder_for, encode

__all__ = ["MARKS_PEER", "PEER_PENDING_MAX_BYTES", "Broker", "BrokerLoop"]

MARKS_PEER = 0
"""The number under which marks arrive. They come from the other broker, which is never attached."""

PEER_PENDING_MAX_BYTES = 16 * 1024 * 1024
"""How much may wait for a client that does not read, before it is dropped."""

_MARKS_PAUSE_MS = 20
"""Marks that nobody waits for are looked at this often, however many come."""

_TURN_MAX_BYTES = 16 * 1024 * 1024

_log = logging.getLogger("jsonqueue.broker")


class Broker(Protocol):
    """What the loop asks of a broker."""

    role: EventOwner

    @property
    def epoch(self) -> int: ...

    def open(self) -> None: ...

    def close(self) -> None: ...

    def attach(self, peer: int) -> None: ...

    def detach(self, peer: int) -> None: ...

    def step(self, arrivals: Sequence[tuple[int, Event]], send: Callable[[int, Event], None]) -> None: ...

    def next_due_ms(self) -> int | None: ...

    @property
    def hungry(self) -> bool:
        """Whether somebody waits for what a mark would announce."""
        ...

    def counters(self) -> dict[str, int]: ...


class _Peer:
    """A client, as the loop sees it."""

    __slots__ = ("decode", "full", "later", "name", "number", "pipe", "read_in_turn", "writing")

    def __init__(self, number: int, pipe: Pipe, owner: EventOwner, name: str) -> None:
        self.number = number
        self.pipe = pipe
        self.name = f"{owner} {ascii(name)[1:-1]}" if name else str(owner)
        self.decode = _DECODERS[owner]
        self.read_in_turn = 0
        self.writing = False
        self.full = False
        """An answer of this caller found no room since it was last asked in its name."""
        self.later: deque[Look | Watch] = deque()
        """What is to be asked in its name."""


_DECODERS = {owner: decoder_for(owner) for owner in (EventOwner.PUBLISHER, EventOwner.CONSUMER, EventOwner.CALLER)}
_decode_mark = decoder_for(EventOwner.PUBLISHER_BROKER)


class BrokerLoop:
    """Runs one broker, turn by turn."""

    def __init__(self, broker: Broker, clock: Clock, selector: selectors.BaseSelector | None = None) -> None:
        """``clock`` and ``selector`` are the doors by which time and the wire come in."""
        self._broker = broker
        self._clock = clock
        self._selector = selector or selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._broken: list[_Peer] = []
        self._marks: Pipe | None = None
        self._hungry = True
        self._marks_look_ms: int | None = None
        """When to look for marks, while they wake nobody; None: they do."""
        self._afterwards: list[Callable[[], None]] = []
        self._turn = 0
        self._left_unread = False
        self._put_off: dict[int, _Peer] = {}
        """Callers for whom something is to be asked later."""
        self._arrivals: list[tuple[int, Event]] = []
        """Those of this turn."""
        self._looks: set[tuple[int, int]] | None = None
        """Peers and requests of the Looks of this turn, once somebody wants to know."""

    # ── who takes part ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def peers(self) -> int:
        """How many clients are connected."""
        return len(self._peers)

    def attach(self, number: int, pipe: Pipe, owner: EventOwner, name: str) -> None:
        """Serve this client from now on."""
        peer = _Peer(number, pipe, owner, name)
        self._peers[number] = peer
        self._selector.register(pipe, selectors.EVENT_READ, peer)
        self._broker.attach(number)

    def listen_to(self, marks: Pipe) -> None:
        """Take marks from this Pipe from now on, in place of an earlier one."""
        self._forget_marks()
        self._marks = marks
        self._selector.register(marks, selectors.EVENT_READ, _nothing)

    def watch(self, file: Pipe | int, callback: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        """Call back, before the step of the turn, when ``file`` is ready."""
        self._selector.register(file, events, callback)

    def unwatch(self, file: Pipe | int) -> None:
        """Stop what :meth:`watch` began."""
        self._selector.unregister(file)

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do this once, after the step of this turn: then the broker has heard all that was said before it was asked for."""
        self._afterwards.append(act)

    # ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def turn(self, wait_max_ms: int | None = None) -> bool:
        """One turn; waits until something comes or is due, at most ``wait_max_ms``. Whether any event came."""
        self._turn += 1
        readable: list[_Peer] = []
        for key, events in self._selector.select(self._timeout(wait_max_ms)):
            if isinstance(key.data, _Peer):
                self._serve(key.data, events, readable)
            else:
                key.data()
        arrivals = self._read(readable) + self._asked_again()
        # Marks are read after the clients, and are told before: whatever a caller was told is durable is then known before its question
        # (but for the newest of some hundreds that gathered while this broker was busy: it waits until their Pipe has room again).
        marks = self._read_marks()
        arrivals[:0] = marks
        self._arrivals, self._looks = arrivals, None
        self._broker.step(arrivals, self._send)
        self._arrivals = []
        self._finish_turn()
        self._listen_or_look(bool(marks))
        return bool(arrivals)

    def next_due_ms(self) -> int | None:
        """When a turn is due by the monotonic clock, though nothing came."""
        due_ms = self._broker.next_due_ms()
        if self._marks_look_ms is None or (due_ms is not None and due_ms < self._marks_look_ms):
            return due_ms
        return self._marks_look_ms

    def drain(self, wait_max_ms: int) -> None:
        """Serve what has come already and write out the answers, for at most ``wait_max_ms``."""
        until_ms = self._clock.monotonic_ms() + wait_max_ms
        while self.turn(0) and self._clock.monotonic_ms() < until_ms:
            pass
        with selectors.DefaultSelector() as full:  # of its own: whatever else is said from now on must not wake us
            for peer in self._peers.values():
                if peer.writing:
                    full.register(peer.pipe, selectors.EVENT_WRITE, peer)
            while full.get_map() and (left_ms := until_ms - self._clock.monotonic_ms()) > 0:
                for key, _ in full.select(left_ms / 1000):
                    self._flush(key.data)
                    if not key.data.writing or key.data.pipe.closed:
                        full.unregister(key.fileobj)

    def close(self) -> None:
        """Hang up on everybody."""
        for peer in self._peers.values():
            peer.pipe.close()
        self._peers.clear()
        self._forget_marks()
        self._selector.close()

    def _timeout(self, wait_max_ms: int | None) -> float | None:
        if self._left_unread or self._afterwards or wait_max_ms == 0:
            return 0
        due_ms = self.next_due_ms()
        if due_ms is None:
            return None if wait_max_ms is None else wait_max_ms / 1000
        left_ms = max(0, due_ms - self._clock.monotonic_ms())
        return (left_ms if wait_max_ms is None else min(left_ms, wait_max_ms)) / 1000

    def _finish_turn(self) -> None:
        for peer in self._broken:
            self._drop(peer)
        self._broken.clear()
        while self._afterwards:
            self._afterwards.pop(0)()

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self, peer: _Peer, events: int, readable: list[_Peer]) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(peer)
        if events & selectors.EVENT_READ and peer.number in self._peers:
            readable.append(peer)

    def _read(self, readable: list[_Peer]) -> list[tuple[int, Event]]:
        if self._left_unread:
            readable.sort(key=lambda peer: peer.read_in_turn)  # Those that had to wait come first.
        arrivals: list[tuple[int, Event]] = []
        room = _TURN_MAX_BYTES
        self._left_unread = False
        for peer in readable:
            if room <= 0:
                self._left_unread = True
                break
            peer.read_in_turn = self._turn
            room -= self._read_one(peer, arrivals)
        return arrivals

    def _read_one(self, peer: _Peer, arrivals: list[tuple[int, Event]]) -> int:
        try:
            frames = peer.pipe.read()
            # All frames are decoded before any of them counts: a peer that is dropped leaves nothing half-done in this turn.
            arrivals += [(peer.number, peer.decode(frame)) for frame in frames]
        except ConnectionClosed:
            self._drop(peer)
            return 0
        except BadFrame as error:
            _log.warning("dropped the connection of a %s: %s", peer.name, error)
            self._drop(peer)
            return 0
        return sum(map(len, frames))

    def _read_marks(self) -> list[tuple[int, Event]]:
        if self._marks is None:
            return []
        try:
            frames = self._marks.read()  # One call takes all there are: they are small, and a Pipe holds few of them.
        except ConnectionClosed:
            self._forget_marks()  # The other broker died. The manager will bring a new Pipe.
            return []
        return [(MARKS_PEER, _decode_mark(frames[-1]))] if frames else []

    def _listen_or_look(self, told: bool) -> None:
        """Be woken by the next mark, or not. ``told``: whether there were some in this turn."""
        if self._marks is None:
            return
        hungry, was_hungry = self._broker.hungry, self._hungry
        self._hungry, look_ms = hungry, None
        if not hungry and not was_hungry and (told or self._marks_look_ms is not None):
            now_ms = self._clock.monotonic_ms()
            if told:  # in vain
                look_ms = now_ms + _MARKS_PAUSE_MS
            elif self._marks_look_ms is not None and now_ms < self._marks_look_ms:
                return
        if look_ms is None and self._marks_look_ms is not None:
            self._selector.register(self._marks, selectors.EVENT_READ, _nothing)
        elif look_ms is not None and self._marks_look_ms is None:
            self._selector.unregister(self._marks)
        self._marks_look_ms = look_ms

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, number: int, event: Event) -> None:
        peer = self._peers.get(number)
        if peer is None or peer in self._broken:
            return  # It hung up, or is about to be dropped. What it is told here it asks for again.
        if peer.full and type(event) is Result:
            self._ask_later(peer, event)
            return
        try:
            peer.pipe.post(encode(event))
        except NotReading as error:
            if type(event) is Result:
                self._ask_later(peer, event)
                return
            _log.warning("dropped the connection of a %s: %s", peer.name, error)
            self._give_up(peer)
        except ConnectionClosed:
            self._ask_no_more(peer)  # It has ended, maybe by Ctrl-C. What it said before is still to be read, and then the end of its Pipe.
        except BadFrame as error:
            _log.error("cannot tell a %s: %s", peer.name, error)
            self._give_up(peer)
        else:
            if peer.pipe.pending and not peer.writing:
                self._want_to_write(peer, True)

    def _give_up(self, peer: _Peer) -> None:
        """Drop the peer after the step: the broker is not told of it in the midst of its turn."""
        self._broken.append(peer)

    def _flush(self, peer: _Peer) -> None:
        try:
            if peer.pipe.flush():
                self._want_to_write(peer, False)
        except ConnectionClosed:
            self._ask_no_more(peer)
            self._want_to_write(peer, False)  # As above: the end is found by reading.

    def _want_to_write(self, peer: _Peer, wanted: bool) -> None:
        peer.writing = wanted
        self._mind(peer)

    def _mind(self, peer: _Peer) -> None:
        """Be woken by what matters of it now."""
        reading = 0 if peer.later else selectors.EVENT_READ
        self._selector.modify(peer.pipe, reading | (selectors.EVENT_WRITE if peer.writing or peer.later else 0), peer)

    def _drop(self, peer: _Peer) -> None:
        if self._peers.pop(peer.number, None) is None:
            return
        self._selector.unregister(peer.pipe)
        self._put_off.pop(peer.number, None)
        peer.pipe.close()
        self._broker.detach(peer.number)

    # ── later ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask_later(self, peer: _Peer, answer: Result) -> None:
        """There is no room for this answer. How the task stands may be another matter when there is."""
        if self._looks is None:
            self._looks = {(number, event.request) for number, event in self._arrivals if type(event) is Look}
        watched = (peer.number, answer.request) not in self._looks
        peer.later.append(Watch(answer.request, [answer.id]) if watched else Look(answer.request, answer.id))
        peer.full = True
        if peer.number not in self._put_off:
            self._put_off[peer.number] = peer
            self._mind(peer)

    def _asked_again(self) -> list[tuple[int, Event]]:
        """One question of each caller that has read all it was told: one answer always finds room."""
        again: list[tuple[int, Event]] = []
        for peer in [peer for peer in self._put_off.values() if not peer.pipe.pending]:
            again.append((peer.number, peer.later.popleft()))
            peer.full = False
            if not peer.later:
                self._ask_no_more(peer)
        return again

    def _ask_no_more(self, peer: _Peer) -> None:
        peer.later.clear()
        if self._put_off.pop(peer.number, None) is not None:
            self._mind(peer)

    def _forget_marks(self) -> None:
        if self._marks is not None:
            if self._marks_look_ms is None:
                self._selector.unregister(self._marks)
            self._marks.close()
            self._marks = self._marks_look_ms = None


def _nothing() -> None:
    """Waking up is all: marks are read in every turn."""
