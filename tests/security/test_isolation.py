"""S8: the process of an isolated handler holds what it needs and nothing of ours."""

from __future__ import annotations

import sys

import pytest
from msgspec import Raw

from jsonqueue.client.children import ChildRunner
from jsonqueue.client.handlers import address_of
from jsonqueue.config import Config
from jsonqueue.task import Task, TaskStatus
from security.looking import open_files

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


def test_an_isolated_handler_sees_its_own_pipe_and_nothing_else() -> None:
    """0, 1, 2 and one socket: no file of the queue, no lock, no Pipe of its consumer, whatever this process holds open."""
    runner = ChildRunner(address_of(open_files), timeout=30, config=Config)
    try:
        verdict = runner.run(Task(id="a", number=1, status=TaskStatus.IN_PROGRESS, published_ms=1, data=Raw(b"1"), token=1))
    finally:
        runner.close()
    assert isinstance(verdict, Raw), verdict
    standard, others = _parted(bytes(verdict))
    assert standard == 3
    assert [kind.partition(":")[0] for kind in others] == ["socket"]


def _parted(told: bytes) -> tuple[int, list[str]]:
    import json

    held: dict[str, str] = json.loads(told)
    return sum(fd in {"0", "1", "2"} for fd in held), [kind for fd, kind in held.items() if fd not in {"0", "1", "2"}]
