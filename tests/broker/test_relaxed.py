"""``durability = "process-crash"``: the weaker promise is kept as it is given, and nobody takes it for the other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from broker.speech import CONFIG, Audience
from jsonqueue.config import Config
from jsonqueue.errors import FileLost
from jsonqueue.event import Assign, Cancel, Complete, Event, Fail, Failure, Heartbeat, Join, Mark, Replay, Return, Watch, Write
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.recovery import load_state
from jsonqueue.task import TaskIn, TaskStatus


class _Syncs(MemoryFiles):
    """Notes the syncs of what was written, in ``done``."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def sync(self, handle: int) -> None:
        self.done.append("sync")
        super().sync(handle)


class _Stage:
    """Both brokers; what they do and what they tell goes into one list, in its order."""

    def __init__(self, config: Config) -> None:
        self.files = _Syncs()
        self.marks: list[Mark] = []
        self.told: list[Any] = []
        self.brokers = Audience(self.files, 1, self.marks.append, config)
        self.files.done.clear()

    def publish(self, *ids: str) -> list[str]:
        """In one write each."""
        writes = [(1, Write(number, [TaskIn(id=task_id, data=Raw(b"1"), attempts_max=1)])) for number, task_id in enumerate(ids)]
        return self._done(lambda: self.brokers.publisher_broker.step(writes, self._tell))

    def say(self, *events: Event) -> list[str]:
        """A consumer or a caller."""
        arrivals = [(0, self.marks[-1]), *[(2, event) for event in events]]
        return self._done(lambda: self.brokers.consumer_broker.step(arrivals, self._tell))

    @property
    def assigned(self) -> tuple[list[str], list[int]]:
        """What was handed out last."""
        tasks = next(event for event in reversed(self.told) if isinstance(event, Assign)).tasks
        return [task.id for task in tasks], [task.token for task in tasks]

    def _tell(self, peer: int, event: Event) -> None:
        self.told.append(event)
        self.files.done.append(event.type)

    def _done(self, step: Callable[[], None]) -> list[str]:
        self.files.done.clear()
        step()
        return list(self.files.done)


def test_a_relaxed_queue_says_so_in_each_answer_and_syncs_nothing() -> None:
    """Of a new task and of a duplicate; the files, as every process would find them after a kill -9, hold all of it."""
    stage = _Stage(replace(CONFIG, durability="process-crash"))
    assert stage.publish("a", "a") == ["written"] * 2
    assert [event.durability for event in stage.told] == ["process-crash"] * 2
    assert stage.say(Join("c", 1, 1)) == ["welcome", "assign"]
    assert stage.say(Complete(1, *stage.assigned, [Raw(b"2")], 0)) == ["settled"]
    assert load_state(stage.files).state.tasks["a"].status is TaskStatus.COMPLETED


def test_any_other_queue_syncs_before_each_answer_and_says_nothing() -> None:
    """Of publishing, completing, returning, failing, cancelling and replaying; a lease and its holder's welcome go out before."""
    stage = _Stage(CONFIG)
    assert stage.publish("a", "a", "b") == ["sync", "written", "written", "written"]
    assert [event.durability for event in stage.told] == [""] * 3
    assert stage.say(Join("c", 1, 1)) == ["welcome", "assign", "sync"]
    assert stage.say(Return(1, *stage.assigned, 1)) == ["assign", "sync", "settled"]
    (task_id,), (token,) = stage.assigned
    assert stage.say(Fail(2, [Failure(task_id, token, "no")], 0)) == ["sync", "settled"]
    assert stage.say(Replay(7, [task_id]), Cancel(8, [task_id])) == ["sync", "changed", "changed"]
    assert stage.say(Cancel(3, ["b"])) == ["sync", "changed"]
    stage.publish("x", "y")
    stage.say(Heartbeat([], [], 1))
    assert stage.say(Complete(4, *stage.assigned, [Raw(b"2")], 0), Watch(5, ["x"])) == ["sync", "settled", "result"]
    assert stage.say(Replay(6, [])) == ["changed"], "nothing is dead: nothing is to be made durable"


@pytest.mark.parametrize("durability", ["power-cut", "process-crash"])
def test_nothing_is_answered_that_was_written_to_a_file_without_a_name(durability: str) -> None:
    """Whoever removes a log does not make either promise void: it is looked for behind each batch."""
    stage = _Stage(replace(CONFIG, durability=durability))
    stage.publish("a")
    stage.say(Join("c", 1, 1))
    outcome = Complete(1, *stage.assigned, [Raw(b"2")], 0)
    stage.told.clear()
    stage.marks.clear()
    for name in stage.files.list():
        stage.files.unlink(name)
    with pytest.raises(FileLost):
        stage.publish("b")
    assert not stage.marks
    stage.marks.append(Mark(0, 0))
    with pytest.raises(FileLost):
        stage.say(outcome)
    assert not stage.told
    tasks = load_state(stage.files).state.tasks
    assert {task.id: task.status for task in tasks.values()} == {"a": TaskStatus.COMPLETED, "b": TaskStatus.PENDING}
