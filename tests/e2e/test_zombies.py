"""A thousand children die, of brokers and of handlers: each is reaped, also what a handler leaves behind in a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e2e.cast import PATIENCE_S, Cast
from jsonqueue.broker import child as child_module
from jsonqueue.broker import restarts as restarts_module
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client import children as children_module
from jsonqueue.client.children import ChildRunner
from jsonqueue.client.handlers import Address
from jsonqueue.client.program import Program, ProgramRunner
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.event import Failure
from jsonqueue.task import Task, TaskStatus

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
EACH = 250
TASK: Task[Any] = Task(id="a", number=1, status=TaskStatus.IN_PROGRESS, published_ms=0, data=None)
_popen = subprocess.Popen
_CONTAINER = ("unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--pid", "--fork", "--kill-child", "--mount-proc")
"""A process in it is the first one, and sees no others but its own."""


def _children(state: str = "", *, of: int | None = None) -> list[str]:
    """The children of this process (or another one), or those in one state."""
    wanted = str(of or os.getpid())
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything: state, parent.
            now, parent = path.read_text().rpartition(")")[2].split()[:2]
            if parent == wanted and now.startswith(state):
                found.append(path.parent.name)
    return found


def _die_at_once(command: list[str], **options: Any) -> Any:
    """In place of an interpreter that loads modules: as cheap as a child can be."""
    return _popen(["true"], **options)


def test_brokers_that_die_five_hundred_times_leave_no_zombies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that never gives up, with brokers that never get up."""
    before = _children()
    monkeypatch.setattr(child_module.subprocess, "Popen", _die_at_once)
    monkeypatch.setattr(restarts_module, "_MAX", 10_000)
    manager = BrokerManager(tmp_path / "queue", Config(flush_interval_ms=3_600_000))
    manager.start()
    for reached in range(50, 2 * EACH + 1, 50):
        while sum(broker.restarts for broker in manager.status().brokers) < reached:
            assert manager.running
        assert len(_children("Z")) <= 2, "no more than both brokers at one time"
    manager.stop()
    assert set(_children()) <= set(before)


def test_handlers_processes_that_die_one_after_the_other_leave_no_zombies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolated handlers that do not even start; each failure says so."""
    before = _children()
    monkeypatch.setattr(children_module.subprocess, "Popen", _die_at_once)
    runner = ChildRunner(Address("handlers", "note", ""), timeout=None, config=Config)
    for _ in range(EACH):
        verdict = runner.run(TASK)
        assert isinstance(verdict, Failure)
    runner.close()
    assert set(_children()) <= set(before)


def test_programs_leave_no_zombies() -> None:
    """One a task."""
    before = _children()
    runner = ProgramRunner(Program("true"), timeout=None, config=Config)
    for _ in range(EACH):
        assert not isinstance(runner.run(TASK), Failure)
    runner.close()
    assert set(_children()) <= set(before)


def _no_container() -> str:
    """Why there can be no container here; empty: there can."""
    try:
        done = subprocess.run([*_CONTAINER, "true"], capture_output=True, text=True, timeout=10, check=False)
    except OSError as error:
        return f"unshare: {error.strerror}"
    return "" if done.returncode == 0 else done.stderr.strip()


@pytest.mark.skipif(bool(_no_container()), reason=_no_container() or "it can be done here")
def test_a_manager_that_is_the_first_process_of_a_container_reaps_its_brokers_and_heeds_signals(tmp_path: Path) -> None:
    """The kernel spares such a process each signal that it has no handler for; it restarts its brokers as ever, and ends in order."""
    with Cast(tmp_path / "queue") as cast:
        outside = cast.serve(within=_CONTAINER, stderr=subprocess.PIPE)
        (manager,) = _children(of=outside.pid)
        assert cast.status().pid == 1
        with Publisher(cast.queue_dir) as publisher:
            brokers = _children(of=int(manager))
            for broker in brokers:
                os.kill(int(broker), signal.SIGKILL)
            assert publisher.publish("x").task().status is TaskStatus.PENDING
            assert [broker.restarts for broker in cast.status().brokers] == [1, 1]
            assert not {*brokers, *_children("Z", of=int(manager))} & {*_children(of=int(manager))}
        os.kill(int(manager), signal.SIGTERM)
        _, said = outside.communicate(timeout=PATIENCE_S)
        assert outside.returncode == 0, said
        assert len(cast.tasks()) == 1
        assert not list(cast.queue_dir.glob("*.jsonl")), "folded, so it ended in order"


def test_what_programs_leave_behind_is_reaped_by_the_first_process_of_a_container() -> None:
    """Orphans are given to it (here: to a subreaper): they are killed with their program, and reaped."""
    code = """
        import ctypes, os
        from pathlib import Path
        from jsonqueue.client.program import Program, ProgramRunner
        from jsonqueue.config import Config
        from jsonqueue.task import Task, TaskStatus
        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
        runner = ProgramRunner(Program("for n in 1 2 3; do sleep 100 >/dev/null 2>&1 & done", shell=True), timeout=None, config=Config)
        for _ in range(20):
            runner.run(Task(id="a", number=1, status=TaskStatus.IN_PROGRESS, published_ms=0, data=None))
        try:
            print(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            print("none is left")
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True).stdout == "none is left\n"
