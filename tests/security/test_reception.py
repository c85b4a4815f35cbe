"""S10: whoever has not said yet who it is costs little, for a short time, and holds up nobody."""

from __future__ import annotations

import os
import resource
import selectors
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from jsonqueue.broker.narration import Narration
from jsonqueue.broker.reception import _GUESTS_MAX, Guest, Reception
from jsonqueue.channel.registration import HANDSHAKE_MS, SOCKET_NAME, Listener, Operate, Refused, Register
from jsonqueue.event import EventOwner

REQUEST = b'{"type":"register","owner":"publisher","name":"%s","pid":1,"protocol":1}'
_EMPTY = len(REQUEST) - 2


class Clock:
    """Time that passes when it is told to."""

    ms = 1_000

    def wall_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Desk:
    """A real reception on a real socket, turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / SOCKET_NAME)
        self.clock = Clock()
        self.heard: list[Register | Operate] = []
        self._selector = selectors.DefaultSelector()
        self.reception = Reception(self._selector, Listener(folder), self.clock, Narration(str(folder)), self._handle)

    def _handle(self, guest: Guest, request: Register | Operate) -> None:
        self.heard.append(request)
        self.reception.answer(guest, Refused("served"))

    def turn(self, passed_ms: int = 0) -> None:
        """Time passes; then all is done that there is to do."""
        self.clock.ms += passed_ms
        self.reception.tick(self.clock.ms)
        while ready := self._selector.select(0):
            for key, _ in ready:
                key.data()

    @property
    def guests(self) -> int:
        return len(self.reception._guests)

    def call(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.setblocking(False)
        caller.connect(self.path)
        return caller

    def close(self) -> None:
        self.reception.close()
        self._selector.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def _framed(body: bytes) -> bytes:
    return struct.pack("!i", len(body)) + body


def _said_to(caller: socket.socket) -> bytes:
    """All that it was told, to the end; BlockingIOError if the end has not come."""
    told = b""
    while more := caller.recv(65_536):
        told += more
    return told


@pytest.mark.parametrize(("size", "taken"), [(4095, True), (4096, True), (4097, False)])
def test_before_it_is_known_a_client_says_four_kib(desk: Desk, size: int, taken: bool) -> None:
    """n - 1 and n bytes are taken, n + 1 is refused by its length alone, before its body has come; and the reason is told."""
    caller = desk.call()
    frame = _framed(REQUEST % (b"x" * (size - _EMPTY)))
    assert len(frame) == size + 4
    caller.sendall(frame if taken else frame[:4])
    desk.turn()
    told = msgspec.json.decode(_said_to(caller)[4:])
    assert len(desk.heard) == taken
    assert told["reason"] == ("served" if taken else "a frame of 4097 bytes, where 0 to 4096 are allowed")
    assert desk.guests == 0
    caller.close()


def test_one_byte_now_and_then_buys_no_time(desk: Desk) -> None:
    """Slow loris: the time to say who it is counts from the call, however lively the caller drips."""
    caller = desk.call()
    desk.turn()
    for byte in _framed(REQUEST % b"loris")[: HANDSHAKE_MS // 100 - 1]:
        caller.send(bytes((byte,)))
        desk.turn(100)
        with pytest.raises(BlockingIOError):
            caller.recv(1)
    desk.turn(100)
    with suppress(ConnectionResetError):  # there was something unread
        assert _said_to(caller) == b""
    assert (desk.guests, desk.heard) == (0, [])
    caller.close()


def test_one_who_does_not_take_its_answer_goes_as_well(desk: Desk) -> None:
    """And so does one that asks twice."""
    twice = desk.call()
    twice.sendall(_framed(REQUEST % b"a") * 2)
    desk.turn()
    assert b"more than one request" in _said_to(twice)
    twice.close()
    assert desk.guests == 0


def _allowed() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if soft == resource.RLIM_INFINITY else soft


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory and its files from /proc")
def test_ten_thousand_half_open_connections(desk: Desk) -> None:
    """As many as this process may open: 512 are held at most, each new one in place of the one silent for longest; memory stays as it
    is, and one who speaks is served in the very turn in which it speaks, from the first to the last."""
    many = min(10_000, _allowed() - _GUESTS_MAX - 200)
    assert many > 400
    ours = len(os.listdir("/proc/self/fd"))
    silent: list[socket.socket] = []
    served = 0
    memory = 0
    try:
        for number in range(many):
            caller = desk.call()
            if number % 2:
                caller.send(b"\0\0\x0f"[: 1 + number % 3])
            silent.append(caller)
            desk.turn()
            assert desk.guests <= _GUESTS_MAX
            if number == _GUESTS_MAX:
                memory = _resident_bytes()
            if number % 50 == 0:
                _is_served(desk)
                served += 1
        assert len(os.listdir("/proc/self/fd")) - ours <= many + _GUESTS_MAX
        grown = _resident_bytes() - memory if memory else 0
        # A socket object of the callers' side, which are in this process, is some 200 bytes.
        assert grown < 16 * 1024 * 1024
        assert desk.guests == min(many, _GUESTS_MAX)
        assert served == len(desk.heard)
        desk.turn(HANDSHAKE_MS)
        assert desk.guests == 0
        assert len(os.listdir("/proc/self/fd")) - ours <= many
    finally:
        for caller in silent:
            caller.close()


def _is_served(desk: Desk) -> None:
    caller = desk.call()
    caller.sendall(_framed(REQUEST % EventOwner.PUBLISHER.encode()))
    desk.turn()
    assert b"served" in _said_to(caller)
    caller.close()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
