"""Want of room, of processes, of open files: waited for, and said. What can go on goes on, and nothing spins."""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from broker.booting import boot_by
from jsonqueue.broker.liveness import is_alive
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.broker.restarts import Postponed
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import ManagerStatus, connect, operate
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable, CorruptQueue, StorageError, is_want
from jsonqueue.event import EventOwner
from jsonqueue.storage.locks import LockName, hold
from jsonqueue.task import TaskStatus

pytestmark = pytest.mark.processes
ROLES = [(EventOwner.PUBLISHER_BROKER, EventOwner.PUBLISHER), (EventOwner.CONSUMER_BROKER, EventOwner.CALLER)]
QUIET = Config(flush_interval_ms=3_600_000, disk_reserve_bytes=0)


def _await(manager: BrokerManager, reached: Callable[[ManagerStatus], bool]) -> ManagerStatus:
    """Until the status is like that; the timeout of the test is the limit."""
    while not reached(status := manager.status()):
        pass
    return status


# ── room on the disk ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, the brokers of ``tmp_path / "queue"`` find no room."""
    boot_by(monkeypatch, "broker.full_disk")
    return tmp_path / "full"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("role", "client"), ROLES, ids=["publisher broker", "consumer broker"])
def test_a_broker_that_finds_no_room_to_start_waits_for_some(
    tmp_path: Path, full: Path, caplog: pytest.LogCaptureFixture, role: EventOwner, client: EventOwner
) -> None:
    """It is not started again and again; the status and whoever comes are told why; when there is room it serves, with nothing lost."""
    place = [broker_role for broker_role, _ in ROLES].index(role)
    with BrokerManager(tmp_path / "queue", QUIET) as manager:
        with Publisher(manager) as publisher:
            handle = publisher.publish("before")
        full.touch()
        os.kill(manager.status().brokers[place].pid, signal.SIGKILL)
        waiting = _await(manager, lambda status: status.brokers[place].state == "waiting").brokers[place]
        assert "waits for room on the disk: no room for a file of the queue: No space left on device" in waiting.waits_for
        with pytest.raises(BrokerUnavailable, match="is not up: it waits for room on the disk"):
            connect(tmp_path / "queue", client)
        if client is EventOwner.PUBLISHER:
            with Publisher(manager, timeout=0.1) as publisher, pytest.raises(BrokerUnavailable, match="it waits for room on the disk"):
                publisher.publish("refused")
        full.unlink()
        ready = _await(manager, lambda status: status.brokers[place].state == "ready").brokers[place]
        assert (ready.pid, ready.restarts, ready.waits_for) == (waiting.pid, 1, "")
        with Publisher(manager) as publisher:
            publisher.publish("after")
        assert handle.task().status is TaskStatus.PENDING
        assert manager.status().brokers[0].counters["known_ids"] == 2
    told = [record.message for record in caplog.records if "waits for room" in record.message]
    assert len(told) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_manager_that_starts_on_a_full_disk_stays_up_and_can_be_stopped(tmp_path: Path, full: Path) -> None:
    """Whoever waits for it is told what for; to stop it takes no killing."""
    with BrokerManager(tmp_path / "queue", QUIET):
        pass
    full.touch()
    manager = BrokerManager(tmp_path / "queue", QUIET)
    manager.start()
    _await(manager, lambda status: all(broker.state == "waiting" for broker in status.brokers))
    with pytest.raises(BrokerUnavailable, match="waits for room on the disk"):
        manager.wait_ready(0.01)
    pids = [broker.pid for broker in manager.status().brokers]
    manager.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# ── processes and memory ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE], ids=errno.errorcode.get)
def test_a_broker_that_no_process_can_be_had_for_is_tried_again_until_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """At growing intervals, and it counts as no death; the other broker serves on; it is said once."""
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        handle = publisher.publish("x")
        assert handle.task().status is TaskStatus.PENDING
        with patch.object(subprocess, "Popen", side_effect=OSError(number, os.strerror(number))) as tried:
            os.kill(manager.status().brokers[0].pid, signal.SIGKILL)
            _await(manager, lambda _: tried.call_count >= 4)
            status = manager.status()
            assert (status.brokers[0].state, status.brokers[0].restarts, status.brokers[1].state) == ("down", 1, "ready")
            assert os.strerror(number) in status.brokers[0].waits_for
            assert handle.task().status is TaskStatus.PENDING, "the other broker's clients go on"
        publisher.publish("y")
        _await(manager, lambda status: status.brokers[0].state == "ready")
        manager.checkpoint()
        assert manager.status().brokers[0].waits_for == ""
    assert len([record for record in caplog.records if "is tried again until it works" in record.message]) == 1


def test_after_a_failed_fsync_both_brokers_are_put_off_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are down, and both come back with a Pipe between them."""
    boot_by(monkeypatch, "broker.broken_disk")
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish("x")
        with patch.object(subprocess, "Popen", side_effect=BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")):
            thread = threading.Thread(target=lambda: publisher.publish("y", id="poison"))
            thread.start()
            _await(manager, lambda status: all(broker.waits_for for broker in status.brokers))
            boot_by(monkeypatch, "jsonqueue.broker.process")
        thread.join(30)
        assert publisher.publish("z").task().status is TaskStatus.PENDING


def test_the_pauses_between_tries_grow_to_five_seconds() -> None:
    """And begin anew once all are up."""
    postponed, now_ms, pauses = Postponed(), 0, []
    role = EventOwner.PUBLISHER_BROKER
    assert postponed.next_due_ms() is None
    for _ in range(8):
        postponed.postpone([role], OSError(errno.EAGAIN, "no"), now_ms)
        assert not postponed.take_due(postponed.next_due_ms() - 1)
        pauses.append(postponed.next_due_ms() - now_ms)
        now_ms = postponed.next_due_ms()
        assert postponed.take_due(now_ms) == [role]
    assert pauses == [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]
    postponed.started(role)
    assert postponed.next_due_ms() is None
    postponed.postpone([role], OSError(errno.EAGAIN, "no"), now_ms)
    assert postponed.next_due_ms() == now_ms + 100


def test_what_is_a_want_and_what_is_not() -> None:
    """Also where it is the cause of an error of ours."""
    ours = StorageError("a.jsonl: Too many open files")
    ours.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert all(map(is_want, [ours, MemoryError(), OSError(errno.ENOMEM, ""), RuntimeError("can't start new thread")]))
    assert not any(map(is_want, [FileNotFoundError(errno.ENOENT, ""), CorruptQueue("q", offset=0, why=""), RuntimeError("no"), None]))


def test_python_still_says_so_when_no_thread_is_to_be_had() -> None:
    """There is nothing else to know it by."""
    before = threading.stack_size(2**47)  # for which no machine has room
    try:
        with pytest.raises(RuntimeError) as told:
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    assert is_want(told.value)


def test_a_checkpoint_that_may_open_no_file_is_put_off(tmp_path: Path) -> None:
    """It is no damage: the brokers go on, and the next attempt folds all."""

    def refuse(*arguments: object, **options: object) -> object:
        raise StorageError("queue.json.draft: Too many open files") from OSError(errno.EMFILE, "Too many open files")

    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish("x")
        with patch("jsonqueue.broker.checkpointing.checkpoint", refuse), pytest.raises(StorageError, match="Too many open files"):
            manager.checkpoint()
        publisher.publish("y")
        manager.checkpoint()
        assert manager.status().checkpoints == 1


# ── open files ───────────────────────────────────────────────────────────────────────────────────────────────────────


PROGRAM = """
    import resource, sys
    from jsonqueue.broker.manager import BrokerManager
    from jsonqueue.channel.registration import Listener
    from jsonqueue.config import Config
    accepts = 0
    accept = Listener.accept
    def counted(listener):
        global accepts
        accepts += 1
        return accept(listener)
    Listener.accept = counted
    manager = BrokerManager(sys.argv[1], Config(flush_interval_ms=10, disk_reserve_bytes=0))
    manager.start()
    manager.wait_ready()
    print(*[broker.pid for broker in manager.status().brokers], flush=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for line in sys.stdin:
        if line == "few\\n":
            # No more than are open: every further one is refused.
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        elif line == "many\\n":
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        status = manager.status()
        print(accepts, *[broker.state for broker in status.brokers], *[broker.restarts for broker in status.brokers], flush=True)
    manager.stop()
    print("stopped", flush=True)
"""


def _come(queue_dir: Path, pipes: list[Pipe]) -> None:
    """One client after the other, until one is turned away."""
    while True:
        pipes.append(connect(queue_dir, EventOwner.PUBLISHER)[0])


def _call(queue_dir: Path) -> None:
    connect(queue_dir, EventOwner.PUBLISHER, timeout=30)[0].close()


class Program:
    """A manager in a process of its own, whose open files can be limited."""

    def __init__(self, queue_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(queue_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.brokers = [int(pid) for pid in self._line().split()]

    def ask(self, word: str = "look") -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._line().split()

    def await_states(self, *states: str) -> None:
        """Until the brokers stand so, and were started again so often, if that is given too."""
        while self.ask()[1 : 1 + len(states)] != list(states):
            pass

    def end(self) -> tuple[str, str]:
        said = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, said
        return said

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 30)[0]
        return self._process.stdout.readline()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "queue")
    yield program
    program.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="what else keeps files open differs")
def test_a_manager_that_may_open_no_more_files_serves_whom_it_has_and_recovers(tmp_path: Path, program: Program) -> None:
    """Clients go on; who calls waits in the queue of the socket, and the manager does not spin; a broker that dies meanwhile is started
    when there is room; checkpoints are put off, and damage nothing."""
    with Publisher(tmp_path / "queue") as publisher:
        handle = publisher.publish("before")
        handle.task()
        accepts = int(program.ask("few")[0])
        caller = threading.Thread(target=_call, args=(tmp_path / "queue",))
        caller.start()
        for _ in range(50):
            publisher.publish("meanwhile")
        os.kill(program.brokers[1], signal.SIGKILL)
        program.await_states("ready", "down", "0", "1")
        for _ in range(50):
            publisher.publish("meanwhile")
        later = program.ask()
        assert later[3:] == ["0", "1"], "it was tried many times, and died once"
        # One look each 200 ms, however long the caller waits: this took no minute.
        assert int(later[0]) - accepts < 300
        program.ask("many")
        program.await_states("ready", "ready")
        caller.join(30)
        assert not caller.is_alive()
        assert handle.task().status is TaskStatus.PENDING
        publisher.publish("after")
    out, errors = program.end()
    assert "stopped" in out
    assert errors.count("cannot take more clients for now") <= 1
    with BrokerManager(tmp_path / "queue", QUIET) as manager:
        assert manager.status().brokers[0].counters["known_ids"] == 102


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_broker_keeps_some_files_for_itself_however_many_clients_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond are turned away, and told why; those it has go on, and it can still rotate its log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = subprocess.Popen

    def limited(*arguments: object, **options: object) -> object:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process = few(*arguments, **options)  # type: ignore[call-overload]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (64, 64))
        return process

    monkeypatch.setattr(subprocess, "Popen", limited)
    pipes: list[Pipe] = []
    with BrokerManager(tmp_path / "queue", QUIET) as manager, Publisher(manager) as publisher:
        publisher.publish("first")
        pid = manager.status().brokers[0].pid
        with pytest.raises(BrokerUnavailable, match=r"no room for another client: .* and 64 open files allowed"):
            _come(tmp_path / "queue", pipes)
        publisher.publish("last")
        status = operate(tmp_path / "queue", "status").status.brokers[0]
        assert 10 < status.peers < 32
        assert (status.pid, status.restarts) == (pid, 0)
        assert len(os.listdir(f"/proc/{pid}/fd")) < 40
        manager.checkpoint()
        for pipe in pipes:
            pipe.close()


# ── a lock that somebody holds ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("place", "name"), [(0, "published"), (1, "progress")])
def test_a_broker_whose_lock_is_held_says_by_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int, name: LockName) -> None:
    """By a publisher that was stopped in the midst, say: whoever waits is told whom for, and the broker serves when it lets go."""
    with BrokerManager(tmp_path / "queue", QUIET):
        pass
    manager = BrokerManager(tmp_path / "queue", QUIET)
    words = f"it waits for process {os.getpid()} (a publisher, for one call), which holds the {name} log"
    try:
        with hold(tmp_path / "queue", name, what="a publisher, for one call"):
            manager.start()
            waiting = _await(manager, lambda status: status.brokers[place].state == "waiting").brokers[place]
            assert waiting.waits_for == words
            with pytest.raises(BrokerUnavailable, match=re.escape(words)):
                manager.wait_ready(0.01)
            with pytest.raises(BrokerUnavailable, match=re.escape(words)):
                connect(tmp_path / "queue", ROLES[place][1])
        manager.wait_ready()
        ready = manager.status().brokers[place]
        assert (ready.pid, ready.restarts, ready.waits_for) == (waiting.pid, 0, "")
    finally:
        manager.stop()
    assert len([record for record in caplog.records if words in record.message]) == 1


def test_a_broker_that_waits_for_its_lock_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """And needs no killing for it."""
    with BrokerManager(tmp_path / "queue", QUIET):
        pass
    manager = BrokerManager(tmp_path / "queue", QUIET, grace=3_600)
    with hold(tmp_path / "queue", "progress"):
        manager.start()
        pid = _await(manager, lambda status: status.brokers[1].state == "waiting").brokers[1].pid
        stopping = threading.Thread(target=manager.stop)
        stopping.start()
        while is_alive(pid):
            pass
    stopping.join()
