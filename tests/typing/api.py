"""What a type checker must make of the public API: how a user's program looks to it. Checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from jsonqueue import (
    BrokerManager,
    Cancel,
    Config,
    Consumer,
    Exponential,
    JsonQueueError,
    Linear,
    Never,
    Program,
    Publisher,
    PublishSummary,
    Retry,
    Task,
    TaskFailed,
    TaskHandle,
    TaskIn,
    TaskStatus,
    current,
)


def a_task_keeps_the_type_of_its_payload(given: TaskIn[dict[str, int]], kept: Task[list[str]]) -> None:
    assert_type(given.data, dict[str, int])
    assert_type(kept.data, list[str])
    assert_type(kept.result, list[str] | None)
    assert_type(kept.status, TaskStatus)
    assert_type(kept.status.ended, bool)


def a_publisher_gives_handles(queue_dir: Path) -> None:
    with BrokerManager(queue_dir, Config(lease_ms=60_000)) as manager, Publisher(manager) as publisher:
        first = publisher.publish({"any": ["json", 1, None]}, id="first", priority=5, delay=timedelta(minutes=1), attempts_max=2)
        assert_type(first, TaskHandle)
        publisher.publish(0, run_at=datetime.now(UTC), deadline=3600, retry="linear", after=first)
        publisher.publish("", retry=Exponential(cap_ms=1_000), after=[first, "another"])
        publisher.publish(None, retry=Linear(), after="another")
        publisher.publish(TaskIn(data=[], retry=Never()))
        assert_type(publisher.publish_many(_many()), PublishSummary)
    with Publisher("queue_data") as publisher:
        publisher.publish([])


def _many() -> Iterator[TaskIn[int]]:
    yield TaskIn(data=1)


def a_handle_tells_of_its_task(handle: TaskHandle) -> None:
    assert_type(handle.id, str)
    assert_type(handle.duplicate, bool)
    assert_type(handle.status(), TaskStatus)
    assert_type(handle.cancel(), bool)
    assert_type(handle.task(), Task[Any])
    try:
        handle.result(timeout=1.5)
    except TaskFailed as error:
        assert_type(error.reason, str)
    except JsonQueueError as error:
        assert_type(error.hint, str)


def plain(task: Task[dict[str, str]]) -> int:
    if current().cancelled:
        raise Cancel("no longer wanted")
    return len(task.data)


async def asynchronous(task: Task[Any]) -> dict[str, str]:
    if task.attempt == 1:
        raise Retry(after=timedelta(seconds=5))
    return {"id": task.id}


def any_of_these_is_a_handler(queue_dir: str) -> None:
    with Consumer(queue_dir, plain, name="plain", concurrency=4) as consumer:
        assert_type(consumer, Consumer)
    Consumer(queue_dir, asynchronous, concurrency=100).run()
    Consumer(queue_dir, plain, timeout=60.0).start()
    Consumer(queue_dir, "module:function", isolate=True).stop(5)
    Consumer(queue_dir, Program(["gzip", "-9"])).run(drain_timeout=10)
