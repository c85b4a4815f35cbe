"""Frames over a Pipe: whole, in order, bounded, and without pickle."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forking import told_by_a_fork
from jsonqueue.channel.pipe import FdPipe, Pipe
from jsonqueue.errors import BadFrame, ConnectionClosed


@pytest.fixture
def ends():
    """A Pipe and the plain socket at its other end."""
    ours, theirs = Pipe.pair()
    pipe, raw = Pipe(ours, frame_max=1 << 20), socket.socket(fileno=theirs)
    yield pipe, raw
    pipe.close()
    raw.close()


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack("!i", len(body)) + body for body in bodies)


def test_the_end_that_a_child_inherits_is_none_of_its_standard_streams():
    """Where those are closed, as of a daemon, their numbers are the next to be had; what is printed would get among the frames."""

    def pair_without_them() -> bool:
        os.closerange(0, 3)
        _, theirs = Pipe.pair()
        return theirs > 2 and not os.get_inheritable(theirs)

    assert told_by_a_fork(pair_without_them) == "True"


def test_who_waits_while_it_is_closed_does_not_wait_at_another_file_of_its_number(ends):
    """Of many threads that share a Publisher, and one that closes it again and again, all waited so in the end, for thirty seconds."""
    pipe, _ = ends
    number, waits, others = pipe.fileno(), select.poll(), []
    waits.register(number, select.POLLIN)

    def poll(most_ms: int) -> list[tuple[int, int]]:
        """Another thread comes in between the look at the Pipe and the wait for it."""
        pipe.close()
        while not others or others[-1][0].fileno() < number:
            others.append(socket.socketpair())
        return waits.poll(most_ms)

    pipe._readable = SimpleNamespace(poll=poll)
    with pytest.raises(ConnectionClosed):
        pipe.receive(0.5)
    for pair in others:
        for end in pair:
            end.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_patience_may_be_longer_than_one_wait_of_the_system(ends):
    """A month, which is more than poll() takes, is no error."""
    pipe, raw = ends
    raw.sendall(framed(b"{}"))
    assert pipe.receive(30 * 24 * 3600) == [b"{}"]


def test_a_multiprocessing_connection_understands_our_frames_and_we_understand_its():
    """The framing is that of Connection.send_bytes, in both directions, short and long."""
    ours, theirs = Pipe.pair()
    pipe, connection = Pipe(ours), Connection(theirs)
    try:
        for body in (b"{}", b"", b"x" * 16_000, b"y" * 100_000):
            connection.send_bytes(body)
            assert pipe.receive(5) == [body]
            pipe.send(body)
            assert connection.recv_bytes() == body
    finally:
        pipe.close()
        connection.close()


def test_one_read_gives_all_frames_that_came(ends):
    """A thousand frames cost one recv."""
    pipe, raw = ends
    bodies = [b"%d" % n for n in range(1000)]
    raw.sendall(framed(*bodies))
    assert pipe.read() == bodies
    assert pipe.read() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(bodies, data):
    """No cut of the stream, not even inside a header, loses, joins or doubles a frame."""
    stream, got = framed(*bodies), []
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    ours, theirs = Pipe.pair()
    pipe, raw = Pipe(ours), socket.socket(fileno=theirs)
    try:
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            raw.sendall(stream[start:stop])
            got += pipe.read()
        assert got == bodies
    finally:
        pipe.close()
        raw.close()


def test_a_frame_longer_than_one_read_arrives_whole():
    """Eight megabytes pass a one-megabyte buffer."""
    ours, theirs = Pipe.pair()
    giver, taker = Pipe(ours), Pipe(theirs)
    body = os.urandom(1 << 20) * 8
    thread = threading.Thread(target=giver.send, args=(body,))
    thread.start()
    try:
        assert taker.receive(10) == [body]
    finally:
        thread.join()
        giver.close()
        taker.close()


@pytest.mark.parametrize("size", [-1, -(2**31), (1 << 20) + 1, 2**31 - 1])
def test_a_frame_of_an_impossible_length_is_refused_before_it_is_read(ends, size):
    """Neither a negative nor an oversize length makes us wait, or allocate."""
    pipe, raw = ends
    raw.sendall(struct.pack("!i", size))
    with pytest.raises(BadFrame, match=str(size)):
        pipe.read()


def test_a_frame_of_exactly_the_limit_is_taken(ends):
    """The limit is inclusive."""
    pipe, raw = ends
    body = b"z" * (1 << 20)
    thread = threading.Thread(target=raw.sendall, args=(framed(body),))
    thread.start()
    assert pipe.receive(10) == [body]
    thread.join()


def test_the_end_of_the_stream_is_told_after_all_that_was_said(ends):
    """What was sent before the other end closed still arrives."""
    pipe, raw = ends
    raw.sendall(framed(b"last words"))
    raw.close()
    assert pipe.read() == [b"last words"]
    with pytest.raises(ConnectionClosed):
        pipe.read()


def test_waiting_for_a_frame_ends_with_the_time(ends):
    """receive returns nothing at its timeout, also with half a frame at hand."""
    pipe, raw = ends
    raw.sendall(framed(b"whole")[:6])
    assert pipe.receive(0.01) == []


def test_a_wait_longer_than_the_kernels_longest_goes_on(ends, monkeypatch):
    """24 days in milliseconds are all that poll() takes."""
    monkeypatch.setattr("jsonqueue.channel.pipe.WAIT_MAX_MS", 1)
    ours, theirs = ends
    looks = iter([[], [], [(ours.fileno(), 1)]])
    asked = []

    class Poll:
        def register(self, *what):
            theirs.sendall(framed(b"late"))

        def poll(self, milliseconds):
            asked.append(milliseconds)
            return next(looks)

    monkeypatch.setattr("jsonqueue.channel.pipe.select.poll", Poll)
    assert ours.receive(30 * 86_400) == [b"late"]
    assert asked == [1, 1, 1]


def test_post_never_blocks_and_drops_the_peer_that_does_not_read():
    """A peer that reads nothing costs at most the cap, and no waiting."""
    ours, theirs = Pipe.pair()
    pipe = Pipe(ours, pending_max=100_000)
    body = b"x" * 50_000

    def post_without_end() -> None:
        while True:
            pipe.post(body)

    try:
        with pytest.raises(ConnectionClosed, match="does not read"):
            post_without_end()
        assert 0 < pipe.pending <= 100_000
        assert not pipe.flush()
    finally:
        pipe.close()
        os.close(theirs)


def test_what_had_to_wait_goes_out_in_order(ends):
    """post and flush keep the order over partial writes."""
    pipe, raw = ends
    bodies = [b"%d" % n * 30_000 for n in range(1, 90)]
    pipe.post(*bodies[:50])
    for body in bodies[50:]:
        pipe.post(body)
    other, got = Pipe(os.dup(raw.fileno())), []
    while len(got) < len(bodies):
        pipe.flush()
        got += other.read()
    other.close()
    assert got == bodies
    assert pipe.pending == 0
    assert pipe.flush()


def test_frames_from_many_threads_do_not_mix():
    """send is safe to share: each frame arrives whole, each thread's in order."""
    ours, theirs = Pipe.pair()
    giver, taker = Pipe(ours), Pipe(theirs)

    def give(who: int) -> None:
        for n in range(50):
            giver.send(b"%d:%d:" % (who, n) + b"#" * 20_000)

    threads = [threading.Thread(target=give, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    got = []
    while len(got) < 200:
        got += [tuple(map(int, frame.split(b":")[:2])) for frame in taker.receive(10)]
    for thread in threads:
        thread.join()
    giver.close()
    taker.close()
    assert sorted(got) == [(who, n) for who in range(4) for n in range(50)]
    assert all([n for w, n in got if w == who] == list(range(50)) for who in range(4))


def test_a_send_that_finds_no_room_in_time_gives_up():
    """A client is not blocked for ever by a broker that hangs."""
    ours, theirs = Pipe.pair()
    pipe = Pipe(ours)
    with pytest.raises(ConnectionClosed, match="did not read"):
        pipe.send(b"x" * (32 << 20), timeout=0.01)
    pipe.close()
    os.close(theirs)


def test_a_send_that_finds_no_room_goes_on_when_there_is_some(ends):
    """A slow reader delays a frame, and gets all of it."""
    pipe, raw = ends
    body = b"x" * (16 << 20)
    got = bytearray()

    def read_all() -> None:
        while len(got) < len(body) + 4:
            got.extend(raw.recv(1 << 20))

    reader = threading.Thread(target=read_all)
    reader.start()
    pipe.send(body, timeout=30)
    reader.join()
    assert got == framed(body)


def test_a_send_waits_behind_what_was_posted(ends):
    """Whoever blocks does not overtake what could not go out at once; and posting nothing sends nothing."""
    pipe, raw = ends
    body = b"x" * (16 << 20)
    pipe.post()
    pipe.post(body)
    assert pipe.pending
    got = bytearray()

    def read_all() -> None:
        while len(got) < len(body) + 4 + 8:
            got.extend(raw.recv(1 << 20))

    reader = threading.Thread(target=read_all)
    reader.start()
    pipe.send(b"last", timeout=30)
    reader.join()
    assert got == framed(body, b"last")


def test_a_frame_that_no_reader_would_take_is_not_sent(ends, monkeypatch):
    """It would cost its sender the connection; nothing of it goes out, and the Pipe still works."""
    monkeypatch.setattr("jsonqueue.channel.pipe.FRAME_MAX_BYTES", 8)
    pipe, raw = ends
    for use in (pipe.post, pipe.send):
        with pytest.raises(BadFrame, match="9 bytes, where at most 8"):
            use(b"x" * 9)
    pipe.send(b"x" * 8)
    assert raw.recv(100) == framed(b"x" * 8)


def test_a_pipe_that_another_thread_closes_just_before_the_wait_is_closed(ends, monkeypatch):
    """Between a look and the wait for more there is a moment, too: it must not end in an error of poll's."""
    pipe, raw = ends
    raw.send(b"\0")  # not a whole frame
    monkeypatch.setattr(pipe, "read", lambda: pipe.close() or [])
    with pytest.raises(ConnectionClosed, match="at this end"):
        pipe.receive(5)


def test_closing_wakes_a_thread_that_waits_for_frames():
    """A client can end its receiving thread."""
    ours, theirs = Pipe.pair()
    pipe, seen, waiting = Pipe(ours), [], threading.Event()

    def wait() -> None:
        waiting.set()
        with pytest.raises(ConnectionClosed) as caught:
            pipe.receive(10)
        seen.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    pipe.close()
    thread.join(5)
    assert seen
    pipe.close()  # Idempotent.
    assert pipe.closed
    os.close(theirs)


def test_every_use_of_a_closed_pipe_says_so(ends):
    """No operation on a closed end looks like success."""
    pipe, _ = ends
    pipe.close()
    for use in (pipe.read, lambda: pipe.receive(0), lambda: pipe.post(b"x"), lambda: pipe.send(b"x")):
        with pytest.raises(ConnectionClosed):
            use()


def test_fds_keep_their_order_when_the_stream_joins_their_frames():
    """Three frames with one, two and no fds, read at once, still know which fd is whose."""
    ours, theirs = Pipe.pair()
    giver, taker = FdPipe(ours), FdPipe(theirs)
    files = [os.memfd_create(f"f{n}") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR) for n in range(3)]
    inodes = [os.fstat(fd).st_ino for fd in files]
    giver.post(b"plain")
    giver.post_with_fds(b"one", files[:1])
    giver.post_with_fds(b"two", files[1:])
    giver.post(b"plain")
    frames = []
    while len(frames) < 4:
        frames += taker.receive(5)
    assert frames == [b"plain", b"one", b"two", b"plain"]
    got = taker.take_fds(1) + taker.take_fds(2)
    try:
        assert [os.fstat(fd).st_ino for fd in got] == inodes
        assert not any(os.get_inheritable(fd) for fd in got)
        assert all(not _is_open(fd) or fd in got for fd in files), "the giver keeps no copy"
        with pytest.raises(BadFrame):
            taker.take_fds(1)
    finally:
        for fd in got:
            os.close(fd)
        giver.close()
        taker.close()


def test_fds_of_a_frame_that_had_to_wait_go_with_it():
    """Backpressure delays an fd together with its frame, and loses neither."""
    ours, theirs = Pipe.pair()
    giver, taker = FdPipe(ours), FdPipe(theirs)
    filler = b"x" * (8 << 20)
    read_end, write_end = os.pipe()
    giver.post(filler)
    giver.post_with_fds(b"late", [write_end])
    frames: list[bytes] = []
    while len(frames) < 2:
        giver.flush()
        frames += taker.read()
    (got,) = taker.take_fds(1)
    os.write(got, b"!")
    assert os.read(read_end, 1) == b"!"
    os.close(got)
    os.close(read_end)
    giver.close()
    taker.close()


def test_closing_gives_back_the_fds_nobody_took():
    """Neither fds that arrived nor fds that never left leak."""
    before = _open_fds()
    ours, theirs = Pipe.pair()
    giver, taker = FdPipe(ours), FdPipe(theirs)
    giver.post_with_fds(b"arrives", [os.open(os.devnull, os.O_RDONLY)])
    assert taker.receive(5) == [b"arrives"]
    giver.post(b"x" * (8 << 20))
    giver.post_with_fds(b"never leaves", [os.open(os.devnull, os.O_RDONLY)])
    giver.close()
    taker.close()
    assert _open_fds() == before


def test_more_fds_than_there_is_room_for_are_an_error_and_no_leak():
    """The kernel drops what it has no room for; a frame whose fds are gone must not be taken for one whose fds are late."""
    before = _open_fds()
    ours, theirs = Pipe.pair()
    giver, taker = socket.socket(fileno=ours), FdPipe(theirs)
    fd = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(giver, [framed(b"too many")], [fd] * 100)
    with pytest.raises(BadFrame, match="fds were lost"):
        taker.read()
    os.close(fd)
    giver.close()
    taker.close()
    assert _open_fds() == before


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="the kernel adds no credentials of its own")
def test_only_fds_are_taken_from_beside_the_frames():
    """What else a kernel puts beside the bytes (here its word on who sent them) is no fd."""
    ours, theirs = Pipe.pair()
    giver, taker = FdPipe(ours), FdPipe(theirs)
    with socket.socket(fileno=os.dup(theirs)) as ancillary:
        ancillary.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    giver.post(b"frame")
    assert taker.receive(5) == [b"frame"]
    with pytest.raises(BadFrame, match="1 fds announced, 0 came"):
        taker.take_fds(1)
    giver.close()
    taker.close()


def test_fds_given_to_a_closed_pipe_are_closed():
    """Whoever posts them has given them away, even where they arrive nowhere."""
    ours, theirs = FdPipe.pair()
    os.close(theirs)
    giver = FdPipe(ours)
    giver.close()
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(ConnectionClosed):
        giver.post_with_fds(b"frame", [fd])
    assert not _is_open(fd)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _open_fds() -> list[int]:
    return [fd for fd in range(256) if _is_open(fd)]
