"""The whole, as a person puts it together by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cast import Cast
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import TaskFailed

pytestmark = pytest.mark.processes


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def test_any_order_will_do(cast: Cast) -> None:
    """A consumer that waits for brokers, a publisher that needs none, brokers last."""
    cast.work()
    with Publisher(cast.queue_dir) as publisher:
        handle = publisher.publish({"x": 1})
        cast.serve()
        cast.work()
        assert handle.result(timeout=40) == {"seen": {"x": 1}}
        assert publisher.publish(0).result(timeout=40) == {"seen": 0}


def test_a_failing_task_is_tried_again_and_its_history_tells(cast: Cast) -> None:
    cast.serve()
    cast.work("fail_once")
    with Publisher(cast.queue_dir) as publisher:
        again = publisher.publish(1, retry="exponential")
        never = publisher.publish(2, retry="never")
        assert again.result(timeout=40) == 2
        with pytest.raises(TaskFailed, match="ValueError: not today"):
            never.result(timeout=40)
        assert [past.outcome for past in again.task().history] == ["failed", "completed"]


def test_a_dead_consumers_task_is_taken_over_at_once(cast: Cast) -> None:
    """kill -9 of a consumer in the midst of a task: proved death, so nobody waits for the lease to run out."""
    cast.serve("lease_ms=600000")
    first = cast.work("hang")
    with Publisher(cast.queue_dir) as publisher:
        handle = publisher.publish("x")
        cast.witness.wait_for(1)
        cast.work("note")
        cast.kill(first)
        assert handle.result(timeout=40) == {"seen": "x"}
        assert [(past.attempt, past.outcome) for past in handle.task().history] == [(1, "lost"), (2, "completed")]


def test_the_queue_file_is_readable_while_the_queue_is_busy(cast: Cast) -> None:
    """At any moment it is one valid document; the newest one says what is pending."""
    manager = cast.serve("flush_interval_ms=20")
    with Publisher(cast.queue_dir) as publisher:
        for _ in range(20):
            publisher.publish_many(range(50))
            path = cast.queue_dir / "queue.json"
            if path.exists():
                json.loads(path.read_bytes())
    assert cast.stop(manager) == 0
    read = [sys.executable, "-c", "import json,sys; print(sum(t['status'] == 'pending' for t in json.load(open(sys.argv[1]))['tasks']))"]
    done = subprocess.run([*read, str(cast.queue_dir / "queue.json")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1000"


def test_a_second_manager_says_who_holds_the_folder_and_writes_nothing(cast: Cast) -> None:
    manager = cast.serve("flush_interval_ms=600000")  # so that the first one writes nothing meanwhile either
    before = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in cast.queue_dir.iterdir())
    second = cast.start("serve", stderr=subprocess.PIPE)
    _, errors = second.communicate(timeout=40)
    assert second.returncode == 75
    assert str(manager.pid) in errors.decode()
    assert before == sorted((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in cast.queue_dir.iterdir())
