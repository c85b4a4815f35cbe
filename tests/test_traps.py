"""docs/traps.md: each fault named there has a test, and here are those that had none elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from msgspec import Raw

from core.stage import Stage, assigned
from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.event import Assign, Complete, Event, Fail, Failure, Join, Mark, Replay, Write
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import StoredTask, StoredTaskIn, TaskIn, TaskStatus

PAGE = Path(__file__).resolve().parent.parent / "docs" / "traps.md"
ROWS = re.findall(r"^\| (?!what goes wrong|---)(.+?) \| .+? \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
NAMED = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


@pytest.mark.parametrize(("trap", "seen_by"), ROWS, ids=[trap[:40] for trap, _ in ROWS])
def test_each_test_named_on_the_page_exists(trap: str, seen_by: str) -> None:
    named = NAMED.findall(seen_by)
    assert named, trap
    assert NAMED.sub("", seen_by).strip(" ,") == ""
    for name, path in named:
        assert re.search(rf"^(async )?def {name}\(", (PAGE.parent.parent / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_there_are_some() -> None:
    assert len(ROWS) > 30


def test_who_has_gone_is_given_nothing() -> None:
    """One waited first and hung up: the task goes to the one who still waits, and nothing to the other."""
    stage = Stage()
    stage.join(1)
    stage.join(2)
    stage.leave(1)
    turn = stage.publish("a")
    assert assigned(turn, peer=1) == []
    assert [task_id for task_id, _ in assigned(turn, peer=2)] == ["a"]
    stage.check()


class _Queue:
    """A queue on real files that is stopped and started, one broker's turn after the other."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config, self._clock = folder, config, SystemClock()
        self._files = open_folder(folder, create=True)

    def start(self) -> None:
        self._marks: list[Mark] = []
        self._publisher = PublisherBroker(self._files, self._clock, self._config, announce=self._marks.append)
        self._consumer = ConsumerBroker(self._files, self._clock, self._config, chance=Random(1))
        self._publisher.open()
        self._consumer.open()
        self._publisher.attach(1)
        self._consumer.attach(2)

    def publish(self, *tasks: StoredTaskIn) -> None:
        self._publisher.step([(1, Write(1, list(tasks)))], lambda peer, event: None)

    def say(self, event: Event) -> list[StoredTask]:
        """What a consumer is handed when it says this."""
        told: list[Event] = []
        self._consumer.step([(0, self._publisher.mark), (2, event)], lambda peer, event: told.append(event))
        return [task for event in told if isinstance(event, Assign) for task in event.tasks]

    def stop(self, *, fold: bool) -> None:
        self._publisher.close()
        self._consumer.close()
        if fold:
            final_checkpoint(self._files, config=self._config, at_ms=self._clock.wall_ms())

    def close(self) -> None:
        self._files.shut()

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file() and path.name != "reserve")


PAYLOADS = [
    b'"two words and  three spaces "', b'{"a b": " c d "}', b'""', b"0", b"null", b"[]", b"{}", b"false", rb'"line\nline\r\n\ttab"',
    b"1.50", '"ü 🚀 \u2028"'.encode(), rb'"quote \" and \\ backslash"', b'"a,b\\u0000,c"',
]  # fmt: skip


@pytest.mark.parametrize("fold", [False, True], ids=["from the log", "from queue.json"])
def test_a_payload_comes_back_as_it_was(tmp_path: Path, fold: bool) -> None:
    """Published, read back at a start, failed until dead, read back, replayed, read back, delivered: to the byte."""
    queue = _Queue(tmp_path / "queue", Config(disk_reserve_bytes=0, attempts_max=1))
    queue.start()
    queue.publish(*[TaskIn(id=f"t{place}", data=Raw(payload)) for place, payload in enumerate(PAYLOADS)])
    queue.stop(fold=fold)
    queue.start()
    handed = queue.say(Join("c", 1, len(PAYLOADS)))
    assert [bytes(task.data) for task in handed] == PAYLOADS
    queue.say(Fail(1, [Failure(task.id, task.token, "no") for task in handed], 0))
    queue.stop(fold=fold)
    assert {task.status for task in inspect(tmp_path / "queue").state.tasks.values()} == {TaskStatus.DEAD}
    queue.start()
    queue.say(Replay(1))
    queue.stop(fold=fold)
    queue.start()
    assert [bytes(task.data) for task in queue.say(Join("c", 1, len(PAYLOADS)))] == PAYLOADS
    queue.stop(fold=fold)
    queue.close()


def test_one_old_task_pins_nothing(tmp_path: Path) -> None:
    """It waits for next year while thousands come and go: the folder is as large after the tenth thousand as after the second."""
    config = Config(disk_reserve_bytes=0, finished_keep_max=0, archive=False, durability="process-crash")
    queue = _Queue(tmp_path / "queue", config)
    sizes = []
    for day in range(10):
        queue.start()
        if day == 0:
            queue.publish(TaskIn(id="old", data=Raw(b'"I wait"'), run_at_ms=SystemClock().wall_ms() + 10**10))
        queue.publish(*[TaskIn(id=f"t{day}-{place}", data=Raw(b'"' + b"x" * 100 + b'"')) for place in range(1000)])
        held = queue.say(Join("c", 1, 1000))
        assert len(held) == 1000
        queue.say(Complete(1, [task.id for task in held], [task.token for task in held], [Raw(b"1")] * 1000, 0))
        queue.stop(fold=True)
        sizes.append(queue.bytes)
    queue.close()
    assert "old" in inspect(tmp_path / "queue").state.tasks
    assert max(sizes[2:]) <= sizes[1] + 1_000, sizes
