"""What a thousand tasks cost, in operations: calls to the kernel, syncs, bytes, JSON, frames.

No time is measured here. On another machine a sync or a wake-up takes longer or shorter; how many there are is ours to answer for. The
numbers below were counted, and may be lowered; a change that needs more has to say here what it buys.

``has_name``: one look for each batch, behind its sync. So nothing is acknowledged that was written to a file which somebody removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from operations.counting import OneThread

PAYLOAD = {"n": 7, "data": "x" * 64}

PUBLISH_IN_BATCHES = {
    "JSON decode": 1, "JSON encode": 2, "bytes sent": 117_100, "bytes written": 117_000, "file has_name": 1, "file sync": 1,
    "file write_at": 1, "frames": 3, "pipe recv": 2, "pipe send": 3,
}  # fmt: skip
"""1,000 tasks: one batch, one write, one sync; the client's own frame, the mark, the answer."""

CONSUME_IN_BATCHES = {
    "JSON decode": 15, "JSON encode": 17, "bytes sent": 299_000, "bytes written": 74_900, "file has_name": 3, "file list": 9,
    "file open": 5, "file read": 5, "file sync": 3, "file write_at": 3, "frames": 14, "pipe recv": 15, "pipe send": 14,
}  # fmt: skip
"""1,000 tasks, the opening of the queue included: a progress batch for the leases of each round, and for what came of the last. The first
lease is small, so 32 KiB of padding are written with it; the batches behind it are large, and written over that, without any of their own.
A batch of more than 8 KiB is read in two pieces: the second has its exact length, so that the system is called as often as before."""

ONE_AT_A_TIME = {
    "JSON decode": 600, "JSON encode": 700, "bytes sent": 69_700, "bytes written": 87_500, "file has_name": 300, "file read": 100,
    "file sync": 300, "file write_at": 300, "frames": 600, "pipe recv": 1_200, "pipe send": 600,
}  # fmt: skip
"""100 tasks, each published, handed out and settled by itself: three syncs each (published, leased, completed), six frames. Of the bytes,
32 KiB are padding, for which 99 in 100 of the syncs have no new length of a file to make durable."""


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneThread]:
    made = OneThread(monkeypatch)
    yield made
    made.close()


def _grown(counts: Counter[str], numbers: dict[str, int]) -> dict[str, Any]:
    return {name: f"{count}, was {numbers.get(name, 0)}" for name, count in counts.items() if count > numbers.get(name, 0)}


def _slack(counts: Counter[str], numbers: dict[str, int]) -> dict[str, Any]:
    """A number that is far above what is counted would let a regression through."""
    return {name: f"{counts[name]}, here {number}" for name, number in numbers.items() if counts[name] < 0.9 * number}


def test_publishing_in_batches_takes_no_more_operations_than_it_did(queue: OneThread) -> None:
    """One write and one sync for a thousand tasks, and three frames in all."""
    with queue.counting() as counts:
        assert queue.publisher.publish_many(PAYLOAD for _ in range(1_000)).published == 1_000
    assert not _grown(counts, PUBLISH_IN_BATCHES)
    assert not _slack(counts, PUBLISH_IN_BATCHES), "it needs less by now: lower the numbers"


def test_consuming_in_batches_takes_no_more_operations_than_it_did(queue: OneThread) -> None:
    """A handful of appends for a thousand tasks: what is handed out and what came of it share them."""
    queue.publisher.publish_many(PAYLOAD for _ in range(1_000))
    with queue.counting() as counts:
        assert queue.consume() == 1_000
    assert not _grown(counts, CONSUME_IN_BATCHES)
    assert not _slack(counts, CONSUME_IN_BATCHES), "it needs less by now: lower the numbers"


def test_one_task_at_a_time_takes_no_more_operations_than_it_did(queue: OneThread) -> None:
    """Three syncs a task, and the folder is not looked at for any of them."""
    for _ in range(2):  # the second one finds its place in the log: once is enough
        queue.publisher.publish(PAYLOAD)
        queue.consume()
    with queue.counting() as counts:
        for _ in range(100):
            queue.publisher.publish(PAYLOAD)
            assert queue.consume() == 1
    assert not _grown(counts, ONE_AT_A_TIME)
    assert not _slack(counts, ONE_AT_A_TIME), "it needs less by now: lower the numbers"


def test_ten_times_the_tasks_take_no_more_than_ten_times_the_operations(queue: OneThread) -> None:
    """Nothing grows with the number of tasks in the queue."""
    counted = []
    for tasks in (1_000, 10_000):
        with queue.counting() as counts:
            queue.publisher.publish_many(PAYLOAD for _ in range(tasks))
            assert queue.consume() == tasks
            counted.append(Counter(counts))
    few, many = counted
    assert not {name: (few[name], many[name]) for name in many if many[name] > 10.5 * few[name] and many[name] > 100}


def test_a_task_is_written_at_most_twice_and_a_half_its_own_size(queue: OneThread) -> None:
    """Published once, leased and completed by its id: checkpoints, which copy it, have the rest of the four-fold allowance."""
    with queue.counting() as counts:
        queue.publisher.publish_many(PAYLOAD for _ in range(1_000))
        queue.consume()
    assert counts["bytes written"] < 2.5 * 1_000 * len('{"n":7,"data":""}' + 64 * "x")
