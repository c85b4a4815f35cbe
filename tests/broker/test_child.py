"""A broker process as the manager holds it, without the process: what it is told, and what is heard of it."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, cast
from weakref import WeakSet

import pytest

from jsonqueue.broker import child as child_module
from jsonqueue.broker.admission import Admission
from jsonqueue.broker.child import Child, ChildState
from jsonqueue.broker.crew import Crew
from jsonqueue.broker.narration import Narration
from jsonqueue.broker.reception import Guest
from jsonqueue.broker.supervisor import Supervisor
from jsonqueue.channel.control import Attach, Failed, Forget, Start, decode_order, encode
from jsonqueue.channel.pipe import FdPipe, Pipe
from jsonqueue.channel.registration import Register, Visitor
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.event import EventOwner
from jsonqueue.storage.memory import MemoryFiles

PUBLISHER = EventOwner.PUBLISHER_BROKER


class _NoProcess:
    """In place of the process: its end of the control Pipe, in the hands of the test."""

    pid = 0

    def __init__(self, command: list[str], *, pass_fds: list[int], **options: object) -> None:
        self.control = FdPipe(os.dup(pass_fds[0]))

    def poll(self) -> int:
        """As Popen has it where nobody can tell."""
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[Child, FdPipe]]]:
    pipes: list[Pipe] = []

    def start() -> tuple[Child, FdPipe]:
        marks, other = Pipe.pair()
        child: Any = Child(PUBLISHER, "/nowhere", Config(), marks, now_ms=0)
        pipes.extend([child.control, child._process.control, Pipe(other)])
        return child, child._process.control

    monkeypatch.setattr(child_module.subprocess, "Popen", _NoProcess)
    yield start
    for pipe in pipes:
        pipe.close()


def test_a_busy_broker_is_told_everything_in_the_end(started: Callable[[], tuple[Child, FdPipe]]) -> None:
    """Which ids have left, above all: one that is not told stays a duplicate of a task that is gone, until the next start."""
    child, broker = started()
    ids = {f"{number:0128}": number for number in range(50_000)}
    for through in range(12):  # 78 MiB before it reads any of it
        child.post(Forget(ids, through))
    _, first, *frames = broker.read()
    assert isinstance(decode_order(first), Start)
    for _ in range(2_000):  # far more often than it takes
        child.control.flush()
        frames += broker.read()
    orders = [decode_order(frame) for frame in frames]
    assert [order.through for order in orders if isinstance(order, Forget)] == list(range(12))


def test_last_words_are_heard_though_something_waits_for_who_said_them(started: Callable[[], tuple[Child, FdPipe]]) -> None:
    """A client was introduced to it in the moment of its death. Without its words, damage would be told as deaths without a reason."""
    child, broker = started()
    supervisor = Supervisor("/nowhere", MemoryFiles(), Config(), SystemClock(), grace_ms=0, check_lock=lambda: None, on_change=lambda: None)
    supervisor._selector.register(child.control, selectors.EVENT_READ)
    broker.post(encode(Failed("CorruptQueue", "it is damaged", "look at it")))
    broker.close()
    brokers_end, clients_end = Pipe.pair()
    child.post(Attach(1, EventOwner.PUBLISHER, "", 1), brokers_end)
    os.close(clients_end)
    assert child.control.pending
    while child.state is not ChildState.DYING:
        supervisor._serve(child)
    supervisor.abandon()
    assert child.last_words is not None
    assert child.last_words.message == "it is damaged"


class _Desk:
    """In place of the reception: one guest at a time, who has hung up when the next one comes."""

    def __init__(self) -> None:
        self.guest: Guest | None = None

    def is_here(self, guest: Guest) -> bool:
        return guest is self.guest

    def keep_waiting(self, guest: Guest, wait_ms: int) -> None:
        pass


def test_who_hung_up_while_a_broker_starts_is_forgotten() -> None:
    """It may wait for hours, for a sibling that waits for a lock; and who asks with little patience comes again four times a second."""
    desk: Any = _Desk()
    with selectors.DefaultSelector() as selector:
        crew = Crew("/nowhere", Config(), SystemClock(), Narration("/nowhere"), selector, _nothing)
    admission = Admission(desk, crew, Config(), SystemClock())
    guests: WeakSet[Guest] = WeakSet()
    for _ in range(3_000):
        desk.guest = Guest(cast(Visitor, None), 0)
        guests.add(desk.guest)
        admission.let_in(desk.guest, Register(EventOwner.CALLER, "", 1))
    kept = len(guests)
    assert desk.guest in guests
    assert kept <= 1_024


def _nothing(child: Child) -> None:
    pass


def test_a_broker_whose_exit_status_somebody_else_took_is_judged_by_its_last_words(started: Callable[[], tuple[Child, FdPipe]]) -> None:
    """The program ignores SIGCHLD, so there is none. A failed fsync must not pass for an ordinary end: both brokers have to start anew."""
    child, _ = started()
    assert child.reap() == 0
    child.last_words = Failed("SyncFailed", "fsync failed", "")
    assert child.reap() == 74


def test_last_words_are_heard_that_come_between_hearing_and_telling(
    started: Callable[[], tuple[Child, FdPipe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it cannot be told any more says nothing of what there is still to be read."""
    child, broker = started()
    supervisor = Supervisor("/nowhere", MemoryFiles(), Config(), SystemClock(), grace_ms=0, check_lock=lambda: None, on_change=lambda: None)
    supervisor._selector.register(child.control, selectors.EVENT_READ)
    child.post(Forget({f"{number:0128}": number for number in range(50_000)}, 1))
    assert child.control.pending
    hear = child.hear

    def hear_and_it_dies() -> Any:
        news = hear()
        broker.post(encode(Failed("CorruptQueue", "it is damaged", "look at it")))
        broker.close()
        monkeypatch.undo()
        return news

    monkeypatch.setattr(child, "hear", hear_and_it_dies)
    while child.state is not ChildState.DYING:
        supervisor._serve(child)
    supervisor.abandon()
    assert child.last_words is not None


def test_a_broker_that_its_disk_does_not_let_die_is_not_waited_for_for_ever(
    started: Callable[[], tuple[Child, FdPipe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal ends a process within a call to a disk that hangs: a manager went on with nothing, and could not even stop."""
    child, _ = started()
    waited: list[float | None] = []

    def wait(timeout: float | None = None) -> int:
        waited.append(timeout)
        raise subprocess.TimeoutExpired("broker", timeout or 0.0)

    monkeypatch.setattr(child._process, "kill", lambda: None, raising=False)
    monkeypatch.setattr(child._process, "wait", wait, raising=False)
    assert child.kill() == -signal.SIGKILL
    assert waited[0] is not None
    assert child.control.closed
