"""BrokerManager with real processes: it starts, lets in, restarts, stops, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from msgspec import Raw

from broker.booting import boot_by
from forking import signal_to_a_fork, told_by_a_fork
from jsonqueue.broker.child import Child
from jsonqueue.broker.manager import BrokerManager, _signals_to_heed
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import SOCKET_NAME, connect, operate
from jsonqueue.config import Config
from jsonqueue.errors import BrokerFailed, BrokerUnavailable, ConnectionClosed, CorruptQueue, FolderRefused, ManagerRunning, SyncFailed
from jsonqueue.event import EventOwner, Look, Result, Write, Written, decoder_for, encode
from jsonqueue.signals import heeded
from jsonqueue.task import TaskIn

pytestmark = pytest.mark.processes
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
QUICK = Config(flush_interval_ms=10)
SEGMENTS = ("published-", "progress-")

_told_by_publisher = decoder_for(EventOwner.PUBLISHER_BROKER)
_told_by_consumer = decoder_for(EventOwner.CONSUMER_BROKER)


@pytest.fixture
def queue_dir(tmp_path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def manager(queue_dir):
    with BrokerManager(queue_dir) as manager:
        yield manager


@pytest.fixture(scope="module")
def bystander(tmp_path_factory):
    """One manager for all tests that leave its brokers alone."""
    with BrokerManager(tmp_path_factory.mktemp("bystander") / "queue", Config(flush_interval_ms=3_600_000)) as manager:
        yield manager


def publish(pipe: Pipe, *ids: str) -> Written:
    pipe.send(encode(Write(1, [TaskIn(id=task_id, data=Raw(b"1")) for task_id in ids])))
    return _told_by_publisher(pipe.receive(5)[0])


def publisher(queue_dir: Path) -> Pipe:
    return connect(queue_dir, EventOwner.PUBLISHER)[0]


def look(queue_dir: Path, task_id: str) -> str | None:
    """The status of a task, as the ConsumerBroker knows it; None: it knows none."""
    pipe, _ = connect(queue_dir, EventOwner.CALLER)
    try:
        pipe.send(encode(Look(1, task_id)))
        answer = _told_by_consumer(pipe.receive(5)[0])
        assert isinstance(answer, Result)
        return answer.task and answer.task.status
    finally:
        pipe.close()


def pids(manager: BrokerManager) -> list[int]:
    return [broker.pid for broker in manager.status().brokers]


def has_ended(pid: int, within_s: float = 5.0) -> bool:
    """Waits for the end of a process, whosesoever child it is."""
    if not hasattr(os, "pidfd_open"):
        return _is_gone(pid, time.monotonic() + within_s)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], within_s)[0])
    finally:
        os.close(pidfd)


def _is_gone(pid: int, until: float) -> bool:
    """The same where a process has no fd: its parent has reaped it."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() > until:
            return False


def await_restart(queue_dir: Path, role: int, pid: int) -> None:
    """Until a new process serves in the role of ``pid``: whoever registers is held back until then."""
    assert has_ended(pid)
    connect(queue_dir, (EventOwner.PUBLISHER, EventOwner.CALLER)[role])[0].close()


def files_of(queue_dir: Path) -> dict[str, tuple[int, int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in queue_dir.iterdir()}


# ── start, stop ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clean_stop_leaves_queue_json_alone_with_everything_in_it(queue_dir):
    """No logs, no socket, no process: one JSON document."""
    with BrokerManager(queue_dir) as manager:
        pipe = publisher(queue_dir)
        assert publish(pipe, "a", "b").number == 1
        brokers = pids(manager)
    pipe.close()
    left = {path.name for path in queue_dir.iterdir()}
    assert not [name for name in left if name.startswith(SEGMENTS)]
    assert SOCKET_NAME not in left
    assert [task["id"] for task in json.loads((queue_dir / "queue.json").read_text())["tasks"]] == ["a", "b"]
    assert all(has_ended(pid, 0) for pid in brokers)
    manager.stop()  # Idempotent.
    assert not manager.running


def test_what_was_published_is_there_after_a_new_start(queue_dir):
    """Stopping and starting is no loss, and no second life either: the id is known."""
    for expected in ([], [0]):
        with BrokerManager(queue_dir):
            pipe = publisher(queue_dir)
            assert publish(pipe, "a").duplicates == expected
            pipe.close()
            assert look(queue_dir, "a") == "pending"


def test_a_second_manager_is_refused_and_writes_nothing(bystander):
    """It says who holds the folder, with the exit status for it."""
    before = files_of(Path(bystander.queue_dir))
    with pytest.raises(ManagerRunning) as caught:
        BrokerManager(bystander.queue_dir).start()
    assert caught.value.exit_status == 75
    assert str(os.getpid()) in caught.value.message
    assert files_of(Path(bystander.queue_dir)) == before
    assert look(bystander.queue_dir, "nothing") is None


def test_a_new_queue_can_be_read_from_the_moment_it_is_ready(manager, queue_dir):
    """queue.json is there, valid and empty, before the first task."""
    assert json.loads((queue_dir / "queue.json").read_text())["tasks"] == []
    assert manager.status().checkpoints == 0


def test_a_draft_that_a_killed_manager_left_is_gone_before_brokers_start(queue_dir, monkeypatch):
    """On a disk that it filled they would wait for room for ever, and the next checkpoint for them."""
    queue_dir.mkdir(mode=0o700)
    (queue_dir / "queue.json.draft").write_bytes(b"half of it")

    def supervisor(*args: object, **named: object) -> None:
        assert not list(queue_dir.glob("*.draft"))
        raise BrokerUnavailable(str(queue_dir), cause="enough is seen")

    monkeypatch.setattr("jsonqueue.broker.manager.Supervisor", supervisor)
    with pytest.raises(BrokerUnavailable, match="enough is seen"):
        BrokerManager(queue_dir).start()


def test_after_a_stop_the_folder_is_free_at_once(queue_dir):
    """The next manager need not wait."""
    first = BrokerManager(queue_dir)
    first.start()
    first.stop()
    with BrokerManager(queue_dir):
        pass


def test_a_queue_that_is_damaged_stops_the_start_with_that_error(queue_dir):
    """The error of the broker is the error of the manager; it does not try again and again; nothing is changed."""
    with BrokerManager(queue_dir):
        pass
    (queue_dir / "queue.json").write_bytes((queue_dir / "queue.json").read_bytes().replace(b'"count":0', b'"count":1'))
    before = files_of(queue_dir)["queue.json"]
    with pytest.raises(CorruptQueue) as caught, BrokerManager(queue_dir):
        pytest.fail("it must not serve")
    assert caught.value.exit_status == 65
    assert files_of(queue_dir)["queue.json"] == before


def test_a_folder_that_cannot_be_used_is_refused_before_anything_starts(queue_dir):
    """The error comes from start(), and the folder's lock is not kept."""
    queue_dir.mkdir(mode=0o700)
    (queue_dir / SOCKET_NAME).write_text("in the way")
    with pytest.raises(FolderRefused):
        BrokerManager(queue_dir).start()
    (queue_dir / SOCKET_NAME).unlink()
    with BrokerManager(queue_dir):
        pass


@on_linux
def test_the_brokers_can_be_told_apart_in_ps(bystander):
    """Their arguments name the role and the folder."""
    shown = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids(bystander)]
    assert [words[3:5] for words in shown] == [
        [b"jsonqueue-publisher-broker", os.fsencode(bystander.queue_dir)],
        [b"jsonqueue-consumer-broker", os.fsencode(bystander.queue_dir)],
    ]


@on_linux
def test_a_broker_holds_no_file_but_its_own(bystander):
    """Neither the manager's socket nor the other broker's Pipes leak into a child: EOF would not come."""
    for pid in pids(bystander):
        held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert not [name for name in held if "queue.lock" in name]
        assert len([name for name in held if name.startswith("socket:")]) == 2, "control, marks"


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", [0, 1], ids=["publisher broker", "consumer broker"])
def test_a_broker_that_ends_is_started_again_and_the_queue_goes_on(queue_dir, manager, role):
    """A client that asks meanwhile waits a moment; nothing acknowledged is lost; marks pass again between old and new."""
    pipe = publisher(queue_dir)
    publish(pipe, "before")
    pid = pids(manager)[role]
    os.kill(pid, signal.SIGKILL)
    await_restart(queue_dir, role, pid)
    if role == 0:
        with pytest.raises(ConnectionClosed):
            pipe.receive(5)
        pipe.close()
        pipe = publisher(queue_dir)
    publish(pipe, "after")
    assert look(queue_dir, "before") == look(queue_dir, "after") == "pending"
    pipe.close()
    status = manager.status()
    assert [broker.restarts for broker in status.brokers] == [1 - role, role]
    assert status.brokers[role].epoch == 2


def test_a_client_that_comes_while_its_broker_is_down_is_held_back_until_it_is_up(queue_dir, manager):
    """A restart looks like a slow answer."""
    pid = pids(manager)[1]
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pid)
    assert look(queue_dir, "nothing") is None
    assert pids(manager)[1] != pid


def test_a_broker_that_dies_again_and_again_is_given_up(queue_dir):
    """Three restarts within a minute, then everything stops, with an error that says so; what was acknowledged stays."""
    manager = BrokerManager(queue_dir)
    manager.start()
    manager.wait_ready()
    for _ in range(3):
        pid = pids(manager)[0]
        os.kill(pid, signal.SIGKILL)
        await_restart(queue_dir, 0, pid)
    os.kill(pids(manager)[0], signal.SIGKILL)
    manager._thread.join(10)
    with pytest.raises(BrokerFailed, match="4 times within a minute, at last with signal SIGKILL") as caught:
        manager.stop()
    assert caught.value.exit_status == 70
    with pytest.raises(BrokerFailed):
        manager.wait_ready()


def test_two_brokers_whose_disk_fails_in_one_moment_are_started_again_once(queue_dir, monkeypatch):
    """A disk that gives up fails all who wait for it. Each takes the other along, but not the one that is new by then."""
    dead: set[int] = set()
    reap = Child.reap

    def both_at_once(child):
        """Nothing is known of either before both are dead; then both say 74."""
        if child.pid in before and reap(child) is not None:
            dead.add(child.pid)
        return (74 if dead >= before else None) if child.pid in before else reap(child)

    with BrokerManager(queue_dir) as manager:
        before = set(pids(manager))
        monkeypatch.setattr(Child, "reap", both_at_once)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        while before & {broker.pid for broker in manager.status().brokers} or not manager._supervisor._crew.is_ready:
            pass
        assert [broker.restarts for broker in manager.status().brokers] == [1, 1]
        pipe = publisher(queue_dir)
        publish(pipe, "after")
        pipe.close()
        assert look(queue_dir, "after") == "pending"


def test_after_a_failed_fsync_both_brokers_start_again(queue_dir, monkeypatch):
    """One may have read from the page cache what the other one's disk has lost."""
    boot_by(monkeypatch, "broker.broken_disk")
    with BrokerManager(queue_dir) as manager:
        before = pids(manager)
        pipe = publisher(queue_dir)
        pipe.send(encode(Write(1, [TaskIn(id="poison", data=Raw(b"1"))])))
        with pytest.raises(ConnectionClosed):
            pipe.receive(5)
        pipe.close()
        for role in (0, 1):
            await_restart(queue_dir, role, before[role])
        assert [broker.restarts for broker in manager.status().brokers] == [1, 1]
        assert all(has_ended(pid) for pid in before)
        pipe = publisher(queue_dir)
        assert publish(pipe, "healthy").duplicates == []
        pipe.close()


def test_the_error_of_a_disk_that_fails_for_ever_is_what_stop_raises(queue_dir, monkeypatch):
    """After the third restart the cause is told, not its symptom."""
    boot_by(monkeypatch, "broker.broken_disk")
    manager = BrokerManager(queue_dir)
    manager.start()
    manager.wait_ready()
    while manager.running:
        try:
            pipe, _ = connect(queue_dir, EventOwner.PUBLISHER)
        except BrokerUnavailable:
            continue
        pipe.send(encode(Write(1, [TaskIn(id="poison", data=Raw(b"1"))])))
        with pytest.raises(ConnectionClosed):
            pipe.receive(5)
        pipe.close()
    with pytest.raises(SyncFailed):
        manager.stop()


# ── the manager's own death ──────────────────────────────────────────────────────────────────────────────────────────


def program(body: str, queue_dir: Path, *, stderr: int | None = None) -> subprocess.Popen[str]:
    """A program of its own that uses a BrokerManager, in a process group of its own."""
    head = "import os, sys\nfrom jsonqueue.broker.manager import BrokerManager\nmanager = BrokerManager(sys.argv[1], grace=5)\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body), str(queue_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


LOGGING = """
    import logging
    logging.basicConfig(level=logging.WARNING)
"""
SERVE = """
    manager.start()
    manager.wait_ready()
    print(*[broker.pid for broker in manager.status().brokers], flush=True)
    manager.serve_forever()
"""
TELLS_HOW_IT_STOPS = """
    stop = manager.start() or manager._supervisor.stop
    def stopped(*, at_once=False):
        print("at once" if at_once else "in order", flush=True)
        stop(at_once=at_once)
    manager._supervisor.stop = stopped
"""


def end(process: subprocess.Popen[str]) -> None:
    """Whatever happened to the test."""
    process.kill()
    process.communicate()


def test_no_broker_outlives_a_killed_manager(queue_dir):
    """Both see the end of their control Pipe, and go; the next manager finds everything."""
    process = program(SERVE, queue_dir)
    try:
        brokers = [int(pid) for pid in process.stdout.readline().split()]
        pipe = publisher(queue_dir)
        publish(pipe, "kept")
        process.kill()
        assert all(has_ended(pid, 1.0) for pid in brokers)
        pipe.close()
    finally:
        end(process)
    with BrokerManager(queue_dir):
        assert look(queue_dir, "kept") == "pending"


def test_no_broker_outlives_a_killed_manager_that_had_forked(queue_dir):
    """A fork of the manager's process holds copies of the control Pipes, so no end of them comes: the process itself is looked at too."""
    body = """
        manager.start()
        manager.wait_ready()
        pids = [broker.pid for broker in manager.status().brokers]
        if (forked := os.fork()) == 0:
            sys.stdin.read()
            os._exit(0)
        print(*pids, flush=True)
        manager.serve_forever()
    """
    process = program(body, queue_dir)
    try:
        brokers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
        assert all(has_ended(pid, 1.0) for pid in brokers)
    finally:
        end(process)


def test_it_serves_a_program_whose_working_directory_is_gone(tmp_path, queue_dir, monkeypatch):
    """One that imports from there, as ``python -c`` does: when a broker was to be started again, the whole manager failed."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", ["", *sys.path, Path("passed over"), None])
    with BrokerManager(queue_dir) as manager:
        (tmp_path / "gone").rmdir()
        dies = pids(manager)[0]
        os.kill(dies, signal.SIGKILL)
        await_restart(queue_dir, 0, dies)


@pytest.mark.parametrize("ask", ["status", "checkpoint", "wait_ready", "serve_forever"])
def test_a_fork_that_asks_it_is_told_so(bystander, ask):
    """It has none of the manager's threads: nobody would answer, for five seconds, a minute, or for ever. And brokers do run."""
    assert "of which this one is a fork" in told_by_a_fork(getattr(bystander, ask))


def test_a_fork_that_stops_it_stops_nothing(bystander):
    """As at the end of a ``with`` block that both leave."""
    before = pids(bystander)
    assert told_by_a_fork(bystander.stop) == "None"
    assert pids(bystander) == before


def test_a_program_that_forgets_to_stop_it_ends_and_ends_well(queue_dir):
    """The interpreter's exit stops it in order: the logs are folded."""
    process = program("manager.start()\nmanager.wait_ready()\n", queue_dir)
    try:
        assert process.wait(10) == 0
    finally:
        end(process)
    assert json.loads((queue_dir / "queue.json").read_text())["count"] == 0
    assert not [path for path in queue_dir.iterdir() if path.name.startswith(SEGMENTS)]


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_signals_that_mean_so_stop_it(queue_dir):
    """A program that heeds SIGCHLD or SIGUSR1 for itself is not ended by one: not even as the second signal, which ends at once."""
    body = (
        TELLS_HOW_IT_STOPS
        + """
    import signal
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    def ready():
        for number in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM):
            signal.raise_signal(number)
    manager.serve_forever(on_ready=ready)
    """
    )
    process = program(body, queue_dir)
    try:
        assert process.communicate(timeout=20)[0].splitlines()[0] == "in order"
        assert process.returncode == 0
    finally:
        end(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_stops_everything_in_order(queue_dir, number):
    """What a terminal, ``timeout`` and systemd send reaches the brokers too, even first: the manager decides what it means."""
    process = program(LOGGING + SERVE, queue_dir, stderr=subprocess.PIPE)
    try:
        brokers = [int(pid) for pid in process.stdout.readline().split()]
        for pid in brokers:
            os.kill(pid, number)
        pipe = publisher(queue_dir)
        publish(pipe, "kept")
        os.killpg(process.pid, number)
        assert process.wait(10) == 0
        assert process.stderr.read() == "", "nothing died, nothing was started again"
        pipe.close()
    finally:
        end(process)
    assert all(has_ended(pid, 0) for pid in brokers)
    assert [task["id"] for task in json.loads((queue_dir / "queue.json").read_text())["tasks"]] == ["kept"]
    assert not [path for path in queue_dir.iterdir() if path.name.startswith(SEGMENTS)]


def test_a_terminal_that_is_closed_says_so_twice_and_once_is_meant(queue_dir):
    """The shell tells its programs, and the kernel does when that has ended. At once it would leave to the logs what queue.json lacks."""
    body = (
        TELLS_HOW_IT_STOPS
        + """
    import signal
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs these tests may do so by nohup
    def ready():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    manager.serve_forever(on_ready=ready)
    """
    )
    process = program(body, queue_dir)
    try:
        assert "at once" not in process.communicate(timeout=20)[0].splitlines()
        assert process.returncode == 0
    finally:
        end(process)


def test_a_process_that_its_program_forks_has_signals_of_its_own():
    """``Process.terminate()`` of multiprocessing ends it, and not the queue; what a terminal sends to it too is not counted twice."""

    woken, waker = socket.socketpair()
    waker.setblocking(False)
    with woken, waker:
        with heeded(_signals_to_heed(), waker):
            ended = [signal_to_a_fork(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        assert ended == [-signal.SIGTERM, 7, 7]
        assert not select.select([woken], [], [], 0)[0], "the manager would take it for a signal of its own"


def test_a_second_signal_ends_at_once_and_loses_nothing(queue_dir):
    """A broker that hangs holds up the first signal, not the second."""
    process = program(SERVE, queue_dir)
    try:
        brokers = [int(pid) for pid in process.stdout.readline().split()]
        pipe = publisher(queue_dir)
        publish(pipe, "kept")
        os.kill(brokers[0], signal.SIGSTOP)
        os.kill(process.pid, signal.SIGINT)
        while (queue_dir / SOCKET_NAME).exists():  # It has heard the first one.
            pass
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(3) == 0
        pipe.close()
    finally:
        end(process)
    assert all(has_ended(pid, 1.0) for pid in brokers)
    with BrokerManager(queue_dir):
        assert look(queue_dir, "kept") == "pending"


def test_stopping_waits_for_no_broker_that_is_gone_already(queue_dir):
    """A SIGTERM for the whole group may end the ConsumerBroker before its turn comes."""
    manager = BrokerManager(queue_dir, grace=3600)
    manager.start()
    manager.wait_ready()
    publisher_broker, consumer_broker = pids(manager)
    os.kill(publisher_broker, signal.SIGSTOP)
    manager._supervisor.stop()
    while (queue_dir / SOCKET_NAME).exists():  # It has begun to stop.
        pass
    os.kill(consumer_broker, signal.SIGKILL)
    assert has_ended(consumer_broker)
    os.kill(publisher_broker, signal.SIGCONT)
    manager._thread.join(10)
    assert not manager.running
    manager.stop()


@pytest.mark.parametrize("grace", [3_000_000, math.inf])
def test_a_grace_without_end_is_no_error(queue_dir, grace):
    """Longer than a system call can wait: with it, the manager died when it was told to stop, and its brokers were killed."""
    with BrokerManager(queue_dir, grace=grace) as manager:
        brokers = pids(manager)
    assert not (queue_dir / SOCKET_NAME).exists()
    assert all(has_ended(pid) for pid in brokers)


def test_a_broker_that_hangs_is_killed_when_its_time_is_up(queue_dir):
    """Stopping is bounded, and what was acknowledged is in queue.json all the same."""
    manager = BrokerManager(queue_dir, grace=0.05)
    manager.start()
    manager.wait_ready()
    pipe = publisher(queue_dir)
    publish(pipe, "kept")
    os.kill(pids(manager)[0], signal.SIGSTOP)
    manager.stop()
    pipe.close()
    assert [task["id"] for task in json.loads((queue_dir / "queue.json").read_text())["tasks"]] == ["kept"]


# ── operators ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_status_tells_of_the_manager_and_both_brokers(bystander):
    """The same from inside and over the socket."""
    pipe = publisher(bystander.queue_dir)
    publish(pipe, "a", "b")
    for status in (bystander.status(), operate(bystander.queue_dir, "status").status):
        assert status.pid == os.getpid()
        assert status.queue_dir == bystander.queue_dir
        assert status.durability == "power-cut"
        assert [broker.role for broker in status.brokers] == ["publisher_broker", "consumer_broker"]
        assert [broker.state for broker in status.brokers] == ["ready", "ready"]
        assert status.brokers[0].peers == 1
        assert status.brokers[0].counters["published"] == 2
    pipe.close()


def test_a_broker_that_hangs_does_not_hold_up_the_status(bystander):
    """The answer comes with the figures that were told last."""
    pid = bystander.status().brokers[1].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert bystander.status().brokers[1].pid == pid
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_checkpoint_asked_for_covers_what_was_acknowledged_before(queue_dir):
    """From inside and over the socket; without waiting for the flush interval."""
    with BrokerManager(queue_dir, Config(flush_interval_ms=3_600_000)) as manager:
        pipe = publisher(queue_dir)
        publish(pipe, "a")
        manager.checkpoint()
        assert [task["id"] for task in json.loads((queue_dir / "queue.json").read_text())["tasks"]] == ["a"]
        publish(pipe, "b")
        assert operate(queue_dir, "checkpoint").ok
        assert [task["id"] for task in json.loads((queue_dir / "queue.json").read_text())["tasks"]] == ["a", "b"]
        assert manager.status().checkpoints == 2
        pipe.close()


def test_checkpoints_come_by_themselves_while_something_happens(queue_dir):
    """queue.json follows the logs at the flush interval."""
    with BrokerManager(queue_dir, QUICK) as manager:
        pipe = publisher(queue_dir)
        publish(pipe, "a")
        while not (queue_dir / "queue.json").exists() or b'"a"' not in (queue_dir / "queue.json").read_bytes():
            assert manager.running
        pipe.close()


def test_an_operator_can_stop_it(queue_dir):
    """The answer comes first, then everything ends in order, and the folder is free."""
    manager = BrokerManager(queue_dir)
    manager.start()
    manager.wait_ready()
    assert operate(queue_dir, "stop").ok
    manager._thread.join(10)
    assert not manager.running
    with pytest.raises(BrokerUnavailable):
        manager.status()
    with pytest.raises(BrokerUnavailable):
        manager.wait_ready()
    manager.stop()
    assert (queue_dir / "queue.json").exists()


def test_a_manager_that_is_not_started_says_so():
    """Rather than wait for an answer that cannot come."""
    manager = BrokerManager("nowhere")
    manager.stop()
    with pytest.raises(BrokerUnavailable, match="not started"):
        manager.status()


# ── callers at the desk ──────────────────────────────────────────────────────────────────────────────────────────────


def test_silent_callers_hold_up_nobody_and_are_dropped(bystander, monkeypatch):
    """A hundred half-open connections: others are let in at once, and the silent ones are hung up on after the handshake time."""
    monkeypatch.setattr("jsonqueue.broker.reception.HANDSHAKE_MS", 100)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for caller in silent:
        caller.connect(str(Path(bystander.queue_dir) / SOCKET_NAME))
    assert look(bystander.queue_dir, "nothing") is None
    for caller in silent:
        caller.settimeout(5)
        assert caller.recv(1) == b""
        caller.close()


def test_when_the_desk_is_crowded_the_longest_silent_caller_goes(bystander, monkeypatch):
    """Half-open connections cost a bounded number of fds."""
    monkeypatch.setattr("jsonqueue.broker.reception._GUESTS_MAX", 3)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for caller in silent:
        caller.connect(str(Path(bystander.queue_dir) / SOCKET_NAME))
    silent[0].settimeout(5)
    assert silent[0].recv(1) == b""
    for caller in silent:
        caller.close()


def test_a_caller_that_talks_nonsense_is_told_and_dropped(bystander, caplog):
    """The reason comes back, as a frame, and then the end."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(Path(bystander.queue_dir) / SOCKET_NAME))
        caller.sendall(b"\0\0\0\x08nonsense")
        pipe = Pipe(os.dup(caller.fileno()))
        assert b'"refused"' in pipe.receive(5)[0]
        with pytest.raises(ConnectionClosed):
            pipe.receive(5)
        pipe.close()
    assert "turned a client away" in caplog.text


def test_waiting_for_a_stopped_manager_to_be_ready_ends(queue_dir):
    """Nobody waits for what cannot come."""
    manager = BrokerManager(queue_dir)
    manager.start()
    manager.stop()
    with pytest.raises(BrokerUnavailable, match="stopped"):
        manager.wait_ready()
    with pytest.raises(RuntimeError, match="once"):
        manager.start()
