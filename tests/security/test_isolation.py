"""S8: the process of a handler holds what it needs and nothing of ours, and takes no more of the machine than it may."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client.children import ChildRunner
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.handlers import address_of
from jsonqueue.client.limits import Limits
from jsonqueue.client.outcome import Verdict
from jsonqueue.client.program import Program, ProgramRunner
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import TaskFailed
from jsonqueue.event import Failure
from jsonqueue.retry import Never
from jsonqueue.task import Task, TaskStatus
from security import greedy
from security.looking import open_files

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc; other kernels count otherwise")]

MIB = 1024 * 1024
GREEDY = str(Path(greedy.__file__))


def _task(data: Any = 1, *, token: int = 1) -> Task[Any]:
    raw = Raw(msgspec.json.encode(data))
    return Task(id="a", number=1, status=TaskStatus.IN_PROGRESS, published_ms=1, data=raw, token=token)


def _child(handler: Callable[[Any], Any], *, data: Any = 1, limits: Limits | None = None, timeout: float | None = 30) -> Verdict:
    runner = ChildRunner(address_of(handler), timeout=timeout, config=Config, limits=limits)
    try:
        verdict = runner.run(_task(data))
        if isinstance(verdict, Failure) and limits is not None:
            # Whatever became of it: the next task runs, in the same process or another one.
            runner._address = address_of(greedy.fine)
            runner._bury() if runner._process else None
            assert bytes(_result(runner.run(_task(token=2)))) == b'"fine"'
        return verdict
    finally:
        runner.close()


def _program(name: str, *, limits: Limits | None, timeout: float | None = 30) -> Verdict:
    runner = ProgramRunner(Program([sys.executable, "-S", GREEDY, name]), timeout=timeout, config=Config, limits=limits)
    return runner.run(_task())


def _result(verdict: Verdict) -> Raw:
    assert isinstance(verdict, Raw), verdict
    return verdict


def _error(verdict: Verdict) -> str:
    assert isinstance(verdict, Failure), bytes(verdict)
    return verdict.error


# ── what it holds ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_isolated_handler_sees_its_own_pipe_and_nothing_else() -> None:
    """0, 1, 2 and one socket: no file of the queue, no lock, no Pipe of its consumer, whatever this process holds open."""
    standard, others = _parted(bytes(_result(_child(open_files))))
    assert standard == 3
    assert [kind.partition(":")[0] for kind in others] == ["socket"]


_LOOK = """
import json, os
held = {}
for fd in range(100):
    try:
        held[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
print(json.dumps(held))
"""


@pytest.mark.parametrize("limits", [None, Limits(open_files=50)])
def test_a_program_sees_three_files(limits: Limits | None) -> None:
    """Its input, its output and its errors, also when it comes by way of the launcher."""
    with open(os.devnull) as ours:
        os.set_inheritable(ours.fileno(), True)
        runner = ProgramRunner(Program([sys.executable, "-S", "-c", _LOOK]), timeout=30, config=Config, limits=limits)
        held = json.loads(bytes(_result(runner.run(_task()))))
    assert sorted(held) == ["0", "1", "2"]
    assert {kind.partition(":")[0] for kind in held.values()} == {"pipe"}


def _parted(told: bytes) -> tuple[int, list[str]]:
    held: dict[str, str] = json.loads(told)
    return sum(fd in {"0", "1", "2"} for fd in held), [kind for fd, kind in held.items() if fd not in {"0", "1", "2"}]


def test_it_leaves_no_core_and_gains_no_rights() -> None:
    """No core file in any case; with limits no setuid program lifts them; and it leads a process group of its own."""
    bare, limited = (json.loads(bytes(_result(_child(greedy.rights, limits=limits)))) for limits in (None, Limits(cpu_s=100)))
    assert bare == {"no_new_privs": "0", "core": [0, 0], "leads": True}
    assert limited == {"no_new_privs": "1", "core": [0, 0], "leads": True}
    assert json.loads(bytes(_result(_program("rights", limits=Limits(cpu_s=100))))) == limited


_CORE = "import json, resource, sys; sys.stdin.read(); print(json.dumps(resource.getrlimit(resource.RLIMIT_CORE)))"


@pytest.mark.parametrize("limits", [None, Limits(cpu_s=100)], ids=["no limits", "limits"])
def test_a_program_heeds_the_signals_that_python_ignores(limits: Limits | None) -> None:
    """SIGPIPE, by which ``yes | head`` ends, and SIGXFSZ; also when it comes by way of the launcher, which is a Python."""
    program = Program(["grep", "SigIgn", "/proc/self/status"])
    verdict = ProgramRunner(program, timeout=30, config=Config, limits=limits).run(_task())
    assert int(json.loads(bytes(_result(verdict))).split()[1], 16) & _masked(signal.SIGPIPE, signal.SIGXFSZ) == 0


def _masked(*numbers: signal.Signals) -> int:
    return sum(1 << number - 1 for number in numbers)


def test_a_program_without_limits_leaves_no_core_either() -> None:
    """Before it is told of its task, so that no payload is in one."""
    runner = ProgramRunner(Program([sys.executable, "-S", "-c", _CORE]), timeout=30, config=Config)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        assert json.loads(bytes(_result(runner.run(_task())))) == [0, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


# ── what it takes ────────────────────────────────────────────────────────────────────────────────────────────────────

GREED = [
    ("hog", Limits(memory_bytes=1024 * MIB), "MemoryError (limit: memory_bytes 1,073,741,824)"),
    ("hoard", Limits(open_files=64), "Too many open files: '/dev/null' (limit: open_files 64)"),
    ("spin", Limits(cpu_s=1), "killed by SIGXCPU (limit: cpu_s 1)"),
    ("bomb", Limits(processes=20), "Resource temporarily unavailable (limit: processes 20)"),
]


@pytest.mark.parametrize(("name", "limits", "said"), GREED, ids=[name for name, _, _ in GREED])
def test_greed_ends_at_its_limit_and_the_failure_says_which(name: str, limits: Limits, said: str) -> None:
    """A memory hog, a hoarder of files, a loop and a fork bomb: the task has failed, and the next one runs."""
    assert said in _error(_child(getattr(greedy, name), limits=limits)).rpartition("\n")[2]
    if name != "spin":  # which takes its time
        assert said.partition(" (")[2] in _error(_program(name, limits=limits))


def test_without_a_limit_it_would_have_had_its_way() -> None:
    """What the limits above are worth: the same handlers, unlimited, take all they want (the hoarder stands for them all)."""
    assert bytes(_result(_child(greedy.hoard, limits=Limits(open_files=6_000)))) == b"5000"


def test_cpu_time_is_counted_for_each_task_anew() -> None:
    """A child lives for many tasks: what the earlier ones took is not held against the next."""
    runner = ChildRunner(address_of(greedy.cpu_left), timeout=30, config=Config, limits=Limits(cpu_s=2))
    try:
        lefts = [float(bytes(_result(runner.run(_task(token=token))))) for token in range(1, 5)]
    finally:
        runner.close()
    assert all(1.9 < left <= 3 for left in lefts), "whole seconds, rounded up"


# ── how it ends ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_handler_may_clear_up_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes first: `finally` runs. (A second is enough for it, but on a machine that has much else to do.)"""
    monkeypatch.setattr("jsonqueue.client.children.GRACE_S", 30)
    runner = ChildRunner(address_of(greedy.tidy), timeout=60, config=Config)
    try:
        assert _result(runner.run(_task({"cleared": ""})))  # The child is up, and has loaded what it needs.
        runner._timeout = 2
        assert "timed out after 2 s" in _error(runner.run(_task({"cleared": str(tmp_path / "cleared")}, token=2)))
    finally:
        runner.close()
    assert (tmp_path / "cleared").exists()


def test_a_handler_that_missed_the_signal_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes just before a sleep begins does not end it: those of the parent and of the child may both be lost in this way."""
    monkeypatch.setattr("jsonqueue.client.children.GRACE_S", 30)
    assert "timed out after 2 s" in _error(_child(greedy.deafened, data={"cleared": str(tmp_path / "cleared")}, timeout=2))
    assert (tmp_path / "cleared").exists()


def test_one_that_heeds_nothing_is_killed(tmp_path: Path) -> None:
    """It ignores SIGTERM and swallows what is raised in it: SIGKILL follows."""
    assert "timed out after 0.5 s, and was killed" in _error(_child(greedy.deaf, data={"ready": str(tmp_path / "ready")}, timeout=0.5))
    assert (tmp_path / "ready").exists()


def test_a_brood_goes_with_its_parent(tmp_path: Path) -> None:
    """Thirty children that ignore SIGTERM: the group is killed, and nobody of it is left."""
    pids = tmp_path / "pids"
    assert "timed out" in _error(_child(greedy.brood, data={"pids": str(pids)}, timeout=3))
    group = int(pids.read_text())
    until = time.monotonic() + 30
    while left := _running_of(group):  # SIGKILL is sent by now; on a busy machine it takes a moment until each has died of it
        assert time.monotonic() < until, left


def _running_of(group: int) -> list[str]:
    left = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            left.append(status.parent.name)
    return left


def test_the_worker_goes_on(tmp_path: Path) -> None:
    """In a real queue: the greedy tasks are dead letters that name the limit, and the modest ones complete."""
    config = Config(retry=Never(), lease_ms=60_000)
    with BrokerManager(tmp_path / "queue", config) as manager, Publisher(manager) as publisher:
        greed = publisher.publish("hoard", attempts_max=1)
        modest = [publisher.publish("fine") for _ in range(3)]
        with Consumer(manager, greedy.by_name, limits=Limits(open_files=64)):
            assert [handle.result(timeout=30) for handle in modest] == ["fine"] * 3
            with pytest.raises(TaskFailed, match="limit: open_files 64"):
                greed.result(timeout=30)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "1"])
def test_a_limit_is_a_whole_number(most: Any) -> None:
    with pytest.raises(ValueError, match="cpu_s"):
        Limits(cpu_s=most)
