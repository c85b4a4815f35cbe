"""What a type checker must make of the clients. Checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from jsonqueue import (
    BrokerManager,
    Cancel,
    Consumer,
    ConsumerStats,
    Exponential,
    Program,
    Publisher,
    PublishSummary,
    Retry,
    Task,
    TaskHandle,
    TaskIn,
    TaskStatus,
    current,
)


def publishing(manager: BrokerManager) -> None:
    with Publisher(manager) as publisher:
        first = publisher.publish(None, delay=timedelta(seconds=1), retry="linear")
        assert_type(first, TaskHandle)
        second = publisher.publish([1], run_at=datetime.now(UTC), deadline=60, retry=Exponential(cap_ms=1000), after=first)
        publisher.publish(TaskIn(data=1), after=[first, second, "id"])
        summary = publisher.publish_many([1, TaskIn(data="a", priority=3)], batch_max=10, on_progress=print, on_acknowledged=print)
        assert_type(summary, PublishSummary)
        assert_type(summary.ids, Sequence[str])


def asking(handle: TaskHandle) -> None:
    assert_type(handle.status(), TaskStatus)
    assert_type(handle.task(), Task[Any])
    assert_type(handle.cancel(reason="enough"), bool)
    assert_type(handle.result(timeout=1.5), Any)


def plain(task: Task[dict[str, int]]) -> int:
    if current().cancelled:
        raise Cancel("too late")
    if task.attempt < 2:
        raise Retry(after=timedelta(seconds=1))
    return task.data["a"]


async def awaited(task: Task[Any]) -> None: ...


def consuming() -> None:
    Consumer("queue_data", plain, concurrency=4).run()
    Consumer("queue_data", "module:function", timeout=2.5).run(drain_timeout=10)
    Consumer("queue_data", Program("wc -c"), name="counter")
    with Consumer("queue_data", awaited) as consumer:
        assert_type(consumer.stats, ConsumerStats)
    assert_type(consumer.stop(), bool)
