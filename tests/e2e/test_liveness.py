"""Nothing that a consumer does, or does not do, holds up the others: stalled, killed by its own task, deaf, or told twice to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.cast import HERE, Cast
from jsonqueue.broker.loop import PEER_PENDING_MAX_BYTES
from jsonqueue.channel.pipe import Pipe
from jsonqueue.channel.registration import connect
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import TaskFailed
from jsonqueue.event import EventOwner, Join, Look, decoder_for, encode
from jsonqueue.task import Outcome, Task, TaskStatus

pytestmark = pytest.mark.processes
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
PATIENCE_S = 40.0
decode_answer = decoder_for(EventOwner.CONSUMER_BROKER)


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def outcomes(task: Task[object]) -> list[tuple[int, str]]:
    return [(past.attempt, past.outcome.value) for past in task.history]


# ── a consumer that stalls ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_stalled_consumer_loses_its_task_and_what_it_says_later_is_fenced(cast: Cast) -> None:
    """SIGSTOP is no death: the lease runs out, another completes the task, and the late outcome counts for nothing."""
    cast.serve("lease_ms=300")
    gate, gate_writer = os.pipe()
    stalled = cast.start(
        "--json", "work", "handlers:wait_for_gate", pass_fds=(cast.witness.writer, gate), environment={"GATE_FD": str(gate)}
    )
    with Publisher(cast.queue_dir) as publisher:
        handle = publisher.publish("x")
        cast.witness.wait_for(1)
        stalled.send_signal(signal.SIGSTOP)
        cast.work("note")
        assert handle.result(timeout=PATIENCE_S) == {"seen": "x"}
        os.write(gate_writer, b"!")
        stalled.send_signal(signal.SIGCONT)
        # It answers now, is told that this came too late, and works on.
        for later in [publisher.publish(n) for n in range(20)]:
            later.result(timeout=PATIENCE_S)
        stalled.send_signal(signal.SIGTERM)
        told, _ = stalled.communicate(timeout=PATIENCE_S)
        assert stalled.returncode == 0
        assert b'"stale":1' in told.replace(b" ", b"")
        assert outcomes(handle.task()) == [(1, "expired"), (2, "completed")]
        assert handle.result() == {"seen": "x"}
    os.close(gate)
    os.close(gate_writer)


# ── a task that kills ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_poison_task_is_dead_after_its_attempts_and_costs_the_others_nothing(cast: Cast) -> None:
    """It kills each consumer that runs it, which is started anew: after three of them it is dead, and the others had one attempt."""
    cast.serve()
    ended = threading.Event()

    def supervise() -> None:
        while not ended.is_set():
            cast.work("die_of_poison").wait(PATIENCE_S)

    with Publisher(cast.queue_dir) as publisher:
        handles = [publisher.publish(what, attempts_max=3) for what in ("good", "good", "poison", "good", "good", "good")]
        supervisor = threading.Thread(target=supervise)
        supervisor.start()
        try:
            with pytest.raises(TaskFailed):
                handles[2].result(timeout=PATIENCE_S)
            others = [handle for index, handle in enumerate(handles) if index != 2]
            assert [handle.result(timeout=PATIENCE_S) for handle in others] == ["good"] * 5
        finally:
            ended.set()
            cast.kill_all_of("work")
            supervisor.join()
        poisoned = handles[2].task()
        assert poisoned.status is TaskStatus.DEAD
        assert [past.outcome for past in poisoned.history if past.attempt == 3] == [Outcome.LOST]
        assert [handle.task().attempt for handle in others] == [1] * 5
    # Once in company, where nobody knows yet who it was, and three times alone.
    assert 3 <= cast.witness.runs[handles[2].id] <= 4


# ── a consumer that does not read ────────────────────────────────────────────────────────────────────────────────────


@on_linux
def test_a_consumer_that_never_reads_stalls_nobody(cast: Cast) -> None:
    """It wants everything and hears nothing: others complete all there is, and the broker keeps little for it."""
    cast.serve("lease_ms=500")
    broker = cast.broker_pid("consumer_broker")
    deaf = [_deaf_consumer(cast.queue_dir, f"deaf{n}") for n in range(3)]
    before = _resident_bytes(broker)
    with Publisher(cast.queue_dir) as publisher:
        handles = [publisher.publish("x" * 20_000) for _ in range(600)]
        for _ in range(2):
            cast.work("nothing", "--concurrency", "4")
        for handle in handles:
            handle.result(timeout=PATIENCE_S)
    assert cast.broker_pid("consumer_broker") == broker, "it was not restarted"
    # 12 MB of payloads are in the queue; each deaf consumer is handed a part of them, which the cap below does not even come into.
    assert _resident_bytes(broker) - before < 150 * 1024 * 1024
    for pipe in deaf:
        pipe.close()


@on_linux
def test_a_caller_that_does_not_read_is_told_no_more_than_the_cap_at_once(cast: Cast) -> None:
    """It asks for 48 MB in one breath: a real broker keeps 16 MiB of them, serves the others, and tells it the rest when it reads."""
    cast.serve()
    broker = cast.broker_pid("consumer_broker")
    with Publisher(cast.queue_dir) as publisher:
        handle = publisher.publish("x" * 1_000_000)
        handle.task()
        before = _peak_bytes(broker)
        deaf, _ = connect(cast.queue_dir, EventOwner.CALLER)
        deaf.post(*(encode(Look(request, handle.id)) for request in range(48)))
        assert handle.task().status is TaskStatus.PENDING, "asked behind it, answered all the same"
    assert cast.broker_pid("consumer_broker") == broker, "it was not restarted"
    assert _peak_bytes(broker) - before < PEER_PENDING_MAX_BYTES + 12 * 2**20 == 28 * 2**20
    told: list[int] = []
    while len(told) < 48:
        frames = deaf.receive(PATIENCE_S)
        assert frames
        told += [decode_answer(frame).request for frame in frames]
    assert told == list(range(48))
    deaf.close()


def _peak_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _deaf_consumer(queue_dir: Path, name: str) -> Pipe:
    pipe, _ = connect(queue_dir, EventOwner.CONSUMER, name=name)
    pipe.send(encode(Join(name, os.getpid(), 1_000_000)))
    return pipe


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_everything_drains_everything(cast: Cast, number: int) -> None:
    """Brokers and consumers in the midst of work get it at once, as from a terminal or systemd: all exit with 0, what was begun is finished
    and told, the rest waits for the next start."""
    manager = cast.serve(stderr=subprocess.PIPE)
    workers = [cast.work("note") for _ in range(2)]
    cast.await_consumers(2)
    brokers = [broker.pid for broker in cast.status().brokers]
    with Publisher(cast.queue_dir) as publisher:
        publisher.publish_many(range(2_000))
        cast.witness.wait_for(50)
        for pid in [*brokers, *[worker.pid for worker in workers], manager.pid]:
            os.kill(pid, number)
    assert [worker.wait(PATIENCE_S) for worker in workers] == [0, 0]
    _, said = manager.communicate(timeout=PATIENCE_S)
    assert manager.returncode == 0
    assert b"died" not in said, said
    tasks = cast.tasks()
    assert len(tasks) == 2_000
    assert {task.status for task in tasks.values()} <= {TaskStatus.COMPLETED, TaskStatus.PENDING}
    assert {task_id for task_id, task in tasks.items() if task.status is TaskStatus.COMPLETED} == set(cast.witness.runs)


def test_brokers_that_stop_wait_for_what_consumers_hold_and_hand_out_nothing_more(cast: Cast) -> None:
    """What a consumer holds is completed under this very broker, what is behind it is not begun, and who works on is not told to stop."""
    manager = cast.serve(stderr=subprocess.PIPE)
    gate, gate_writer = os.pipe()
    worker = cast.start("work", "handlers:wait_for_gate", pass_fds=(cast.witness.writer, gate), environment={"GATE_FD": str(gate)})
    with Publisher(cast.queue_dir) as publisher:
        running = publisher.publish("first")
        cast.witness.wait_for(1)
        publisher.publish_many(range(5_000))
        manager.send_signal(signal.SIGTERM)
        cast.await_said(manager, b"a second signal stops at once")
        os.write(gate_writer, b"!")
    assert manager.wait(PATIENCE_S) == 0
    statuses = {task_id: task.status for task_id, task in cast.tasks().items()}
    assert statuses[running.id] is TaskStatus.COMPLETED
    assert {task_id for task_id, status in statuses.items() if status is TaskStatus.COMPLETED} == set(cast.witness.runs)
    assert set(statuses.values()) == {TaskStatus.COMPLETED, TaskStatus.PENDING}
    assert worker.poll() is None, "it waits for the next broker"
    for fd in (gate, gate_writer):
        os.close(fd)


def test_a_second_signal_ends_brokers_and_consumers_at_once_and_loses_nothing(cast: Cast) -> None:
    """Twice Ctrl-C, with a handler that does not end: nobody is waited for, and the task is there for the next."""
    manager = cast.serve()
    worker = cast.work("hang")
    with Publisher(cast.queue_dir) as publisher:
        handle = publisher.publish("x")
        cast.witness.wait_for(1)
        for process in (worker, manager):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)  # Two of one kind within a moment are one to the kernel.
        worker.wait(PATIENCE_S)
        manager.wait(PATIENCE_S)
        cast.serve()
        cast.work("note")
        assert handle.result(timeout=PATIENCE_S) == {"seen": "x"}


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


@on_linux
def test_no_zombie_is_left_by_many_children(tmp_path: Path) -> None:
    """A consumer whose handlers' processes die one after the other reaps each of them."""
    handler = f"{HERE.name}.handlers:exit_at_once"
    with Cast(tmp_path / "queue") as cast:
        cast.serve()
        with Publisher(cast.queue_dir) as publisher:
            handles = [publisher.publish(n, retry="never") for n in range(8)]
            consumer = Consumer(cast.queue_dir, handler, isolate=True, concurrency=2)
            thread = threading.Thread(target=consumer.run)
            thread.start()
            for handle in handles:
                with pytest.raises(TaskFailed, match="exit status 7"):
                    handle.result(timeout=PATIENCE_S)
            consumer.stop()
            thread.join(PATIENCE_S)
    assert not _zombies_of(os.getpid())


def _zombies_of(parent: int) -> list[str]:
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats.append(path.read_text())
    # After the name, which may hold anything: state, parent.
    return [stat for stat in stats if stat.rpartition(")")[2].split()[:2] == ["Z", str(parent)]]
