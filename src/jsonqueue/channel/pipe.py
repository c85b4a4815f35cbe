"""Frames over one end of a ``multiprocessing.Pipe(duplex=True)``.

A frame is what ``Connection.send_bytes`` writes, so either end may as well be a plain ``multiprocessing.connection.Connection``:

====== ===== ==========================================================
offset bytes meaning
====== ===== ==========================================================
0      4     n, the length of the body: signed, big-endian
4      n     the body
====== ===== ==========================================================

A frame is valid if and only if ``0 <= n <= frame_max``. (``Connection`` writes -1 and a longer length for bodies of 2 GiB and more: refused
here.) What comes behind an invalid frame cannot be told apart any more, so the connection is dropped. Nothing is ever pickled.

The end held here is always non-blocking; whether the other end is does not matter, since the flag belongs to each end by itself. One
``recv`` may give a thousand frames and one ``send`` may take as many: per frame there is one slice, and no work per byte.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from struct import Struct

from jsonqueue.clock import SystemClock
from jsonqueue.errors import BadFrame, ConnectionClosed
from jsonqueue.waits import FOR_EVER_S, WAIT_MAX_MS

__all__ = ["FRAME_MAX_BYTES", "PENDING_MAX_BYTES", "FdPipe", "NotReading", "Pipe"]

FRAME_MAX_BYTES = 64 * 1024 * 1024
"""Largest frame: given at all, and taken where a Pipe is not told otherwise."""

PENDING_MAX_BYTES = 64 * 1024 * 1024
"""How much may wait for a peer that does not read, before it is dropped."""

_SOCKET_BUFFER_BYTES = 1024 * 1024
_SCRATCH_BYTES = 1024 * 1024
_FDS_AT_ONCE = 64
_STANDARD_LAST = 2
_HEADER = Struct("!i")
_CLOSED_HERE = "the Pipe was closed at this end"
_clock = SystemClock()
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def _until_ms(timeout: float | None) -> int | None:
    return None if timeout is None or timeout > FOR_EVER_S else _clock.monotonic_ms() + round(timeout * 1000)


class _Scratch(threading.local):
    """Where ``recv`` writes to, one a thread. A fresh buffer of this size for each call costs 15 µs of page faults; this one none."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SCRATCH_BYTES))


_scratch = _Scratch()


class NotReading(ConnectionClosed):
    """The other end is there, and lets too much wait for it."""


class Pipe:
    """One end of a Pipe: frames in, frames out.

    A broker's loop uses :meth:`read`, :meth:`post` and :meth:`flush`, which never block. A client uses :meth:`send` (from any thread) and
    :meth:`receive` (from one thread). All of them raise :class:`ConnectionClosed` once the other end is gone, and :class:`BadFrame` for
    what is no frame; then the Pipe is of no more use, and the caller closes it.
    """

    def __init__(self, fd: int, *, frame_max: int = FRAME_MAX_BYTES, pending_max: int = PENDING_MAX_BYTES) -> None:
        """Take over ``fd``: a connected stream socket. It is closed with the Pipe.

        ``frame_max``: the largest frame taken, in bytes. ``pending_max``: how many bytes :meth:`post` lets wait.
        """
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._frame_max = frame_max
        self._pending_max = pending_max
        self._lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _HEADER.size
        self._buffered = 0
        self._readable: select.poll | None = None
        self._receiving = False
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[int, int]:
        """The two ends of a new Pipe as fds (close-on-exec), with room for a batch in either direction.

        The second may be inherited: it is none of the standard three, where these are closed. What a child prints would get into it.
        """
        ends = socket.socketpair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        if ends[1].fileno() > _STANDARD_LAST:
            return ends[0].detach(), ends[1].detach()
        with ends[1]:
            higher = fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, _STANDARD_LAST + 1)
        return ends[0].detach(), higher

    def fileno(self) -> int:
        """The fd, for a selector; -1 once closed."""
        return -1 if self._closed else self._socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called at this end."""
        return self.fileno() < 0

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self) -> list[bytes]:
        """All whole frames that one ``recv`` (at most 1 MiB) completes; ``[]`` when there is none yet. Never blocks."""
        view = _scratch.view
        try:
            size = self._receive_into(view)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise ConnectionClosed(f"the Pipe broke: {error}") from None
        if size == 0:
            raise ConnectionClosed("the other end of the Pipe is closed")
        return self._frames_of(view[:size])

    def receive(self, timeout: float | None = None) -> list[bytes]:
        """Wait for at least one frame, at most ``timeout`` seconds (None: for ever); ``[]`` when the time is up."""
        until_ms = _until_ms(timeout)
        self._receiving = True
        try:
            # Wait first: who has just asked has no answer yet, and a recv in vain costs more than a poll.
            if self._readable is None:
                self._readable = self._poll_for(select.POLLIN)
            while self._wait(self._readable, until_ms):
                if frames := self.read():
                    return frames
            return []
        finally:
            self._receiving = False
            if self._closed:
                self._socket.close()

    def _receive_into(self, view: memoryview) -> int:
        return self._socket.recv_into(view)

    def _frames_of(self, data: memoryview) -> list[bytes]:
        """The whole frames at hand; the beginning of the next one is kept. Long frames are joined once, not at each recv."""
        if self._have:
            self._parts.append(bytes(data))
            self._have += len(data)
            if self._have < self._need:
                return []
            data = memoryview(b"".join(self._parts))
            self._parts.clear()
        elif len(data) >= 4 and 4 + _HEADER.unpack_from(data)[0] == len(data) <= self._frame_max:
            return [bytes(data[4:])]  # Exactly one frame, as it is when questions are asked one by one.
        frames, used = self._split(data)
        self._have = len(data) - used
        if self._have:
            self._parts.append(bytes(data[used:]))
        return frames

    def _split(self, data: memoryview) -> tuple[list[bytes], int]:
        frames: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= 4:
            (size,) = _HEADER.unpack_from(data, at)
            if not 0 <= size <= self._frame_max:
                raise BadFrame(f"a frame of {size} bytes, where 0 to {self._frame_max} are allowed")
            stop = at + 4 + size
            if stop > end:
                self._need = 4 + size
                return frames, at
            # A copy and not a slice of the buffer: what is kept of a frame for long must not keep a megabyte of others alive.
            frames.append(bytes(data[at + 4 : stop]))
            at = stop
        self._need = 4
        return frames, at

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def pending(self) -> int:
        """Bytes that :meth:`post` took and the other end had no room for yet."""
        return self._buffered

    def post(self, *frames: bytes) -> None:
        """Send what fits at once and keep the rest for :meth:`flush`. Never blocks.

        A peer that lets more than ``pending_max`` bytes wait does not read: :class:`NotReading`. (One frame may always wait.)
        """
        data = self._framed(frames)
        if not data:
            return
        with self._lock:
            if not self._unsent:
                self._send_now(data)
            elif self._buffered + len(data) > self._pending_max:
                raise NotReading(f"the other end does not read: {self._buffered} bytes wait for it")
            else:
                self._append(data)

    def flush(self) -> bool:
        """Send more of what waits, without blocking; True when nothing waits any more."""
        with self._lock:
            self._write()
            return not self._unsent

    def send(self, frame: bytes, *, timeout: float | None = None) -> None:
        """Send a frame, blocking while the other end has no room; safe to call from several threads.

        Raises :class:`ConnectionClosed` also when ``timeout`` seconds were not enough: half a frame may be out, nothing can follow it.
        """
        data = self._framed((frame,))
        with self._lock:
            if self._unsent:
                self._append(data)
            else:
                self._send_now(data)
            if not self._unsent:
                return
            until_ms = _until_ms(timeout)
            writable = self._poll_for(select.POLLOUT)
            while self._unsent:
                if not self._wait(writable, until_ms):
                    raise ConnectionClosed(f"the other end did not read for {timeout:g} s")
                self._write()

    def _send_now(self, data: bytes) -> None:
        """Nothing waits; mostly all of it fits, and is done with. The rest waits."""
        try:
            sent = self._send_some(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise ConnectionClosed(f"the Pipe broke: {error}") from None
        if sent < len(data):
            self._append(memoryview(data)[sent:])

    def _framed(self, frames: Sequence[bytes]) -> bytes:
        if len(frames) == 1 and len(frames[0]) <= FRAME_MAX_BYTES:
            return _HEADER.pack(len(frames[0])) + frames[0]
        parts: list[bytes] = []
        for frame in frames:
            if len(frame) > FRAME_MAX_BYTES:
                raise BadFrame(f"a frame of {len(frame)} bytes, where at most {FRAME_MAX_BYTES} are allowed")
            parts += (_HEADER.pack(len(frame)), frame)
        return b"".join(parts)

    def _append(self, data: bytes | memoryview) -> None:
        self._unsent.append(memoryview(data))
        self._buffered += len(data)

    def _write(self) -> None:
        try:
            while self._unsent:
                head = self._unsent[0]
                sent = self._send_some(head)
                self._buffered -= sent
                if sent < len(head):
                    self._unsent[0] = head[sent:]
                else:
                    self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise ConnectionClosed(f"the Pipe broke: {error}") from None

    def _send_some(self, data: bytes | memoryview) -> int:
        return self._socket.send(data)

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _poll_for(self, what: int) -> select.poll:
        poll = select.poll()
        try:
            poll.register(self, what)
        except ValueError:
            raise ConnectionClosed(_CLOSED_HERE) from None
        return poll

    def _wait(self, poll: select.poll, until_ms: int | None) -> bool:
        """Whether the fd became ready (or broke) before ``until_ms`` on the monotonic clock."""
        while True:
            if self.closed:  # Its number may be another file's by now.
                raise ConnectionClosed(_CLOSED_HERE)
            left_ms = None if until_ms is None else max(0, until_ms - _clock.monotonic_ms())
            if left_ms is None or left_ms <= WAIT_MAX_MS:
                return bool(poll.poll(left_ms))
            if poll.poll(WAIT_MAX_MS):
                return True

    def close(self) -> None:
        """Close both directions. What still waits is dropped; another thread that waits gets :class:`ConnectionClosed`. Idempotent."""
        self._closed = True
        with contextlib.suppress(OSError):  # Closed already, by either end.
            # close() alone would neither wake another thread's poll() nor be seen by the peer while a copy of the fd is in flight.
            self._socket.shutdown(socket.SHUT_RDWR)
        # Whoever receives is about to poll, maybe, and the number would be another file's by then: that one closes it, once awake.
        if not self._receiving:
            self._socket.close()

    def let_go(self) -> None:
        """Close the copy of this end that a fork came by, and leave the Pipe to the process that it is of."""
        self._socket.close()


class FdPipe(Pipe):
    """A Pipe that can carry fds beside its frames (SCM_RIGHTS).

    Fds arrive in the order in which they were posted, and never later than the frame they were posted with; but a stream may hand over
    several frames at once, so the receiver counts: each frame that speaks of n fds takes the next n with :meth:`take_fds`.
    """

    def __init__(self, fd: int, *, frame_max: int = FRAME_MAX_BYTES, pending_max: int = PENDING_MAX_BYTES) -> None:
        super().__init__(fd, frame_max=frame_max, pending_max=pending_max)
        self._fds_in: deque[int] = deque()
        self._fds_out: deque[tuple[memoryview, Sequence[int]]] = deque()

    def post_with_fds(self, frame: bytes, fds: Sequence[int]) -> None:
        """Post a frame and hand over ``fds``, which are closed at this end once they are on their way (or never will be)."""
        data = self._framed((frame,))
        with self._lock:
            if self.closed:
                _close_all(fds)
                raise ConnectionClosed(_CLOSED_HERE)
            self._append(data)
            self._fds_out.append((self._unsent[-1], fds))
            self._write()

    def take_fds(self, count: int) -> list[int]:
        """The next ``count`` fds that arrived; :class:`BadFrame` when the peer promised more than it sent."""
        if len(self._fds_in) < count:
            raise BadFrame(f"{count} fds announced, {len(self._fds_in)} came")
        return [self._fds_in.popleft() for _ in range(count)]

    def close(self) -> None:
        super().close()
        leftover = [*self._fds_in, *(fd for _, fds in self._fds_out for fd in fds)]
        self._fds_in.clear()
        self._fds_out.clear()
        _close_all(leftover)

    def _send_some(self, data: bytes | memoryview) -> int:
        if not self._fds_out or self._fds_out[0][0] is not data:
            return super()._send_some(data)
        fds = self._fds_out[0][1]
        sent = self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))])
        self._fds_out.popleft()
        _close_all(fds)
        return sent

    def _receive_into(self, view: memoryview) -> int:
        space = socket.CMSG_SPACE(_FDS_AT_ONCE * array("i").itemsize)
        size, ancillary, flags, _ = self._socket.recvmsg_into([view], space, _CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._keep_fds(data)
        if flags & socket.MSG_CTRUNC:
            raise BadFrame("fds were lost on the way: this process has no room for more open files")
        return size

    def _keep_fds(self, data: bytes) -> None:
        fds = array("i")
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
            self._fds_in.append(fd)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
