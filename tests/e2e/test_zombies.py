"""A thousand children die, of brokers and of handlers: each is reaped, also what a handler leaves behind in a container."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jsonqueue.broker import child as child_module
from jsonqueue.broker import restarts as restarts_module
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.client import children as children_module
from jsonqueue.client.children import ChildRunner
from jsonqueue.client.handlers import Address
from jsonqueue.client.program import Program, ProgramRunner
from jsonqueue.config import Config
from jsonqueue.event import Failure
from jsonqueue.task import Task, TaskStatus

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
EACH = 250
TASK: Task[Any] = Task(id="a", number=1, status=TaskStatus.IN_PROGRESS, published_ms=0, data=None)
_popen = subprocess.Popen


def _children(state: str = "") -> list[str]:
    """The children of this process, or those in one state."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything: state, parent.
            now, parent = path.read_text().rpartition(")")[2].split()[:2]
            if parent == str(os.getpid()) and now.startswith(state):
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
