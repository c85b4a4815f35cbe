"""``durability = "process-crash"``: the weaker promise is kept as it is given, and nobody takes it for the other one."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from msgspec.structs import replace

from broker.speech import CONFIG, Audience
from jsonqueue.config import Config
from jsonqueue.event import Assign, Complete, Event, Join, Settled, Write, Written
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.recovery import load_state
from jsonqueue.task import TaskIn, TaskStatus


class _Syncs(MemoryFiles):
    """Counts the syncs of what was written."""

    syncs = 0

    def sync(self, handle: int) -> None:
        self.syncs += 1
        super().sync(handle)


def _played(config: Config) -> tuple[_Syncs, int, list[Any]]:
    """A task is published, delivered and completed: the disk, the syncs that took, and what was told."""
    files, marks, told = _Syncs(), [], []
    both = Audience(files, 1, marks.append, config)

    def send(peer: int, event: Event) -> None:
        told.append(event)

    before = files.syncs
    both.publisher_broker.step([(1, Write(1, [TaskIn(id="a", data=Raw(b"1"))])), (1, Write(2, [TaskIn(id="a", data=Raw(b"1"))]))], send)
    both.consumer_broker.step([(0, marks[-1]), (2, Join("c", 1, 1))], send)
    (task,) = next(event for event in told if isinstance(event, Assign)).tasks
    both.consumer_broker.step([(2, Complete(1, ["a"], [task.token], [Raw(b"2")], 0))], send)
    return files, files.syncs - before, told


def test_a_relaxed_queue_says_so_in_each_answer_and_syncs_nothing() -> None:
    """Of a new task and of a duplicate; the files, as every process would find them after a kill -9, hold all of it."""
    files, syncs, told = _played(replace(CONFIG, durability="process-crash"))
    assert syncs == 0
    assert [event.durability for event in told if isinstance(event, Written)] == ["process-crash"] * 2
    assert [event.stale for event in told if isinstance(event, Settled)] == [[]]
    assert load_state(files).state.tasks["a"].status is TaskStatus.COMPLETED


def test_any_other_queue_syncs_before_each_answer_and_says_nothing() -> None:
    """One batch published, one leased, one completed."""
    _, syncs, told = _played(CONFIG)
    assert syncs == 3
    assert [event.durability for event in told if isinstance(event, Written)] == [""] * 2
