"""The socket in the queue folder: who may come in, and what comes back."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import struct
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import msgspec
import pytest

from forking import a_fork
from jsonqueue.channel.pipe import FdPipe, Pipe
from jsonqueue.channel.registration import (
    PROTOCOL,
    SOCKET_NAME,
    Listener,
    ManagerStatus,
    Operate,
    Refused,
    Register,
    Registered,
    Report,
    Visitor,
    _peer,
    connect,
    operate,
)
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed, FolderRefused
from jsonqueue.event import EventOwner


@pytest.fixture
def listener(tmp_path):
    listener = Listener(tmp_path)
    yield listener
    listener.close()


def answer_one(listener, give) -> threading.Thread:
    """A manager that serves one caller: ``give(visitor, request)``."""

    def serve() -> None:
        visitor = _await(listener.accept)
        try:
            give(visitor, _await(visitor.request))
        finally:
            visitor.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def _await(look):
    while (found := look()) is None:
        pass
    return found


def test_a_client_gets_its_own_pipe_and_the_settings(tmp_path, listener):
    """What the manager's end of the handed-over Pipe says arrives, and the other way round."""
    ours, theirs = Pipe.pair()
    seen = []

    def give(visitor, request):
        seen.append((request, visitor.pid))
        visitor.answer(Registered(Config(attempts_max=7)), (theirs,))

    thread = answer_one(listener, give)
    pipe, config = connect(tmp_path, EventOwner.PUBLISHER, name="me")
    thread.join()
    broker = Pipe(ours)
    pipe.send(b"hello")
    assert broker.receive(1) == [b"hello"]
    broker.send(b"welcome")
    assert pipe.receive(1) == [b"welcome"]
    assert config.attempts_max == 7
    assert seen == [(Register(EventOwner.PUBLISHER, "me", os.getpid()), os.getpid())]
    pipe.close()
    broker.close()


def test_the_socket_is_private_from_its_first_moment(tmp_path, listener):
    """0600, whatever the umask; and the process's own umask is left as it was."""
    assert stat.S_IMODE((tmp_path / SOCKET_NAME).lstat().st_mode) == 0o600
    umask = os.umask(0o022)
    os.umask(umask)
    assert umask != 0o177


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("umask", [0o022, 0o777], ids=oct)
def test_the_umask_takes_nothing_from_the_socket_and_is_left_alone(tmp_path, monkeypatch, umask, platform):
    """It is of the whole process. Of two managers that started in two threads one put back what the other had set: 0177, for good."""
    before, change, changes = os.umask(umask), os.umask, []
    monkeypatch.setattr(os, "umask", lambda mask: (changes.append(mask), change(mask))[1])
    monkeypatch.setattr(sys, "platform", platform)
    try:
        listener = Listener(tmp_path)
    finally:
        change(before)
    try:
        assert changes == ([] if platform == "linux" else [0o177, umask])  # elsewhere one at a time
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).lstat().st_mode) == 0o600
    finally:
        listener.close()


def test_a_stale_socket_is_replaced_and_anything_else_is_not(tmp_path):
    """What a killed manager left behind is in nobody's way; a file of the user is not ours to remove."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / SOCKET_NAME))
    Listener(tmp_path).close()
    assert not (tmp_path / SOCKET_NAME).exists()
    (tmp_path / SOCKET_NAME).write_text("mine")
    with pytest.raises(FolderRefused):
        Listener(tmp_path)
    assert (tmp_path / SOCKET_NAME).read_text() == "mine"


@pytest.mark.parametrize("folder", ["", "missing"])
def test_without_a_manager_a_client_is_told_so_at_once(tmp_path, folder):
    """No socket, no folder: BrokerUnavailable, which names the command that starts one."""
    with pytest.raises(BrokerUnavailable) as caught:
        connect(tmp_path / folder, EventOwner.CONSUMER)
    assert "jsonqueue serve" in caught.value.hint
    assert "no broker is running" in caught.value.message


def test_a_killed_manager_is_missed_though_what_it_forked_lives_on(tmp_path, listener):
    """Each publish waited twenty seconds for it: a copy of its socket took calls still, and nobody to answer them."""
    with a_fork():
        listener._socket.close()  # as when it is killed
        with pytest.raises(BrokerUnavailable) as caught:
            connect(tmp_path, EventOwner.PUBLISHER, timeout=0.5)
    assert not caught.value.silent


def test_who_was_in_the_midst_of_a_call_to_it_hears_of_that_end_too(tmp_path, listener):
    """The manager held it back until a broker is up, say."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        caller.connect(str(tmp_path / SOCKET_NAME))
        visitor = _await(listener.accept)
        with a_fork():
            visitor._pipe.let_go()  # as when it is killed
            assert caller.recv(1) == b""


def test_a_socket_that_nobody_listens_on_is_no_manager(tmp_path):
    """The socket of a killed manager refuses: BrokerUnavailable as well."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(BrokerUnavailable):
        operate(tmp_path, "status")


def test_a_refusal_carries_its_reason_to_the_caller(tmp_path, listener):
    """Whatever the manager's reason is, the client's error says it."""
    thread = answer_one(listener, lambda visitor, request: visitor.answer(Refused("the brokers are stopping")))
    with pytest.raises(BrokerUnavailable, match="are stopping"):
        connect(tmp_path, EventOwner.CALLER)
    thread.join()


@pytest.mark.parametrize(
    ("given", "why"), [(Refused("the brokers are stopping"), "are stopping"), (Registered(Config()), "something else")]
)
def test_an_operator_is_told_why_there_is_no_report(tmp_path, listener, given, why):
    """A refusal keeps its reason; an answer to another question is none."""
    thread = answer_one(listener, lambda visitor, request: visitor.answer(given))
    with pytest.raises(BrokerUnavailable, match=why):
        operate(tmp_path, "checkpoint")
    thread.join()


def test_an_operator_gets_the_report_it_asked_for(tmp_path, listener):
    """Word for word, whatever was asked."""
    asked = []
    thread = answer_one(listener, lambda visitor, request: (asked.append(request), visitor.answer(a_report("done"))))
    assert operate(tmp_path, "checkpoint") == a_report("done")
    thread.join()
    assert [request.action for request in asked] == ["checkpoint"]


def test_a_report_is_no_pipe(tmp_path, listener):
    """A client that asked for its Pipe takes no other answer for one."""
    thread = answer_one(listener, lambda visitor, request: visitor.answer(a_report()))
    with pytest.raises(BrokerUnavailable, match="something else"):
        connect(tmp_path, EventOwner.PUBLISHER)
    thread.join()


def a_report(message: str = "") -> Report:
    return Report(True, ManagerStatus("/q", 1, 0, 0, "power-cut", Config(), []), message)


def test_an_answer_that_is_none_is_a_bad_frame(tmp_path, listener):
    """Whoever listens there is no manager of ours."""
    thread = answer_one(listener, lambda visitor, request: visitor._pipe.post(b"HTTP/1.1 400 Bad Request"))
    with pytest.raises(BadFrame, match="not an answer of a manager"):
        operate(tmp_path, "status")
    thread.join()


def test_no_open_file_to_call_with_is_no_end(tmp_path, listener, monkeypatch):
    """That passes, and whoever waits for brokers waits on: it is told as any other reason why there is none."""
    monkeypatch.setattr(socket, "socket", mock.Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(BrokerUnavailable, match="too many open files") as caught:
        connect(tmp_path, EventOwner.CONSUMER)
    assert not caught.value.silent


def test_no_open_file_for_the_pipe_that_is_handed_over_is_no_end_either(tmp_path, listener, monkeypatch):
    """The kernel drops it then; the manager has no part in that."""
    ours, theirs = Pipe.pair()
    manager = answer_one(listener, lambda visitor, request: visitor.answer(Registered(Config()), (theirs,)))
    receive, limits = FdPipe.receive, resource.getrlimit(resource.RLIMIT_NOFILE)

    def receive_with_none_left(pipe, timeout):
        manager.join()
        lowest = os.dup(ours)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            return receive(pipe, timeout)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    monkeypatch.setattr(FdPipe, "receive", receive_with_none_left)
    with pytest.raises(BrokerUnavailable, match="no room for more open files") as caught:
        connect(tmp_path, EventOwner.CONSUMER)
    assert not caught.value.silent
    os.close(ours)


def test_an_answer_that_finds_no_room_goes_out_when_there_is_some():
    """The manager does not wait for a caller that does not read, and cuts no answer short."""
    ours, theirs = Pipe.pair()
    visitor, caller = Visitor(ours, 0), Pipe(theirs)
    assert visitor.answer(a_report("x" * (8 << 20))) is False
    frames: list[bytes] = []
    while not frames:
        frames = caller.read()
        visitor.flush()
    assert visitor.flush()
    assert msgspec.json.decode(frames[0], type=Report) == a_report("x" * (8 << 20))
    visitor.close()
    caller.close()


def test_a_manager_that_hangs_up_or_stays_silent_is_unavailable(tmp_path, listener):
    """A client waits no longer than it said."""
    with pytest.raises(BrokerUnavailable, match="in time") as caught:
        connect(tmp_path, EventOwner.CALLER, timeout=0.01)
    assert caught.value.silent
    _await(listener.accept).close()
    thread = answer_one(listener, lambda visitor, request: None)
    with pytest.raises(BrokerUnavailable, match="went away"):
        connect(tmp_path, EventOwner.CALLER)
    thread.join()


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("!i", 4097) + b"x" * 10,
        struct.pack("!i", 7) + b"no json",
        struct.pack("!i", 2) + b"{}",
        struct.pack("!i", 4000) + b"[" * 4000,
        struct.pack("!i", 40) + b'{"type":"operate","action":"rm -rf /"}   ',
    ],
    ids=["oversize", "no json", "no type", "deep", "unknown action"],
)
def test_a_caller_that_talks_nonsense_is_a_bad_frame(tmp_path, listener, sent):
    """Before it is registered a caller may send 4 KiB, one request, and nothing else."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / SOCKET_NAME))
        visitor = _await(listener.accept)
        caller.sendall(sent)
        with pytest.raises(BadFrame):
            visitor.request()
        visitor.close()


def test_one_connection_serves_one_request():
    """A caller that asks twice at once does not know the protocol."""
    ours, theirs = Pipe.pair()
    visitor, caller = Visitor(ours, 0), Pipe(theirs)
    caller.post(*[msgspec.json.encode(Operate("status"))] * 2)
    with pytest.raises(BadFrame, match="more than one request"):
        visitor.request()
    visitor.close()
    caller.close()


def test_another_protocol_version_is_refused_by_name(tmp_path, listener):
    """A client of another release learns which versions do not fit."""
    ours, theirs = socket.socketpair()
    visitor, caller = Visitor(theirs.detach(), 0), Pipe(ours.detach())
    caller.send(msgspec.json.encode(Operate("status", protocol=PROTOCOL + 1)))
    with pytest.raises(BadFrame, match=f"version {PROTOCOL + 1} .* version {PROTOCOL}"):
        visitor.request()
    visitor.close()
    caller.close()


def test_a_caller_that_hung_up_is_noticed(tmp_path, listener):
    """A half-open connection ends with its caller."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / SOCKET_NAME))
        visitor = _await(listener.accept)
        assert visitor.request() is None
    with pytest.raises(ConnectionClosed):
        visitor.request()
    visitor.close()


def test_nobody_at_the_door_is_no_caller(listener):
    """Asking costs no waiting, so a manager that was woken in vain goes on."""
    assert listener.accept() is None


def test_a_caller_of_another_user_is_hung_up_on(tmp_path, listener, monkeypatch):
    """The kernel's word on who calls decides, before a byte is read."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / SOCKET_NAME))
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert listener.accept() is None
        assert caller.recv(1) == b""


def test_a_client_trusts_no_manager_of_another_user(tmp_path, listener, monkeypatch):
    """A socket that somebody else planted gets no task to see."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(BrokerUnavailable, match="another user"):
        connect(tmp_path, EventOwner.PUBLISHER)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="elsewhere the path is refused, clearly")
def test_a_path_longer_than_a_socket_address_works(tmp_path):
    """A queue may lie as deep as the file system allows."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    listener = Listener(deep)
    thread = answer_one(listener, lambda visitor, request: visitor.answer(Refused("heard you")))
    with pytest.raises(BrokerUnavailable, match="heard you"):
        connect(deep, EventOwner.PUBLISHER)
    thread.join()
    listener.close()
    assert list(deep.iterdir()) == []


def test_where_long_paths_cannot_work_the_error_says_so(tmp_path, monkeypatch):
    """On a system without /proc the limit is named."""
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(FolderRefused, match="too long"):
        Listener(tmp_path / ("d" * 120))
    with pytest.raises(FolderRefused, match="too long"):
        operate(tmp_path / ("d" * 120), "status")


def test_a_listener_is_closed_once_and_whatever_became_of_its_socket(tmp_path):
    """Somebody may have cleared the folder meanwhile; closing again is no error, and touches nobody else's socket."""
    listener = Listener(tmp_path)
    (tmp_path / SOCKET_NAME).unlink()
    listener.close()
    successor = Listener(tmp_path)
    listener.close()
    assert (tmp_path / SOCKET_NAME).is_socket()
    successor.close()


def test_where_the_kernel_tells_no_pid_it_tells_the_uid(monkeypatch):
    """macOS and the BSDs: the second member of struct xucred; the pid is not known then."""
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    asked = []
    connection = SimpleNamespace(getsockopt=lambda *what: asked.append(what) or struct.pack("IIh16I", 0, 501, 1, *range(16)))
    assert _peer(connection) == (None, 501)
    assert asked == [(0, 1, 128)]
