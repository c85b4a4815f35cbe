"""What a type checker must make of the public API. Checked by mypy --strict, never run."""

from __future__ import annotations

from typing import assert_type

from jsonqueue.config import Config, config_from
from jsonqueue.task import Task, TaskIn, TaskStatus


def a_task_keeps_the_type_of_its_payload(given: TaskIn[dict[str, int]], kept: Task[list[str]]) -> None:
    assert_type(given.data, dict[str, int])
    assert_type(kept.data, list[str])
    assert_type(kept.status, TaskStatus)


def settings_are_typed() -> None:
    assert_type(config_from({"lease_ms": 1_000}), Config)
