"""The PublisherBroker's judgement: which tasks are taken in, which are known already, which are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from msgspec import Struct

from jsonqueue.config import Config
from jsonqueue.core.payload import all_sound, fault_of
from jsonqueue.core.taken import TakenIds
from jsonqueue.event import Refusal
from jsonqueue.task import ID_PATTERN, StoredTaskIn

__all__ = ["Admission", "Verdict"]

_one_id = re.compile(ID_PATTERN).fullmatch
_many_ids = re.compile("(?:" + ID_PATTERN.removeprefix("^").removesuffix(r"\Z") + "\n)*").fullmatch

_AFTER_MAX_BYTES = 4 * 1024 * 1024
"""What a client's frame has room for, beside the payload; a publisher that appends by itself sends none."""


class Verdict(Struct, frozen=True, gc=False):  # made for each single publish: a NamedTuple takes eight times as long
    """What becomes of the tasks of one write."""

    accepted: list[StoredTaskIn]
    duplicates: list[int]
    refused: list[Refusal]


class Admission:
    """Knows the id and number of every task in the queue, and no more of it."""

    def __init__(self, known: TakenIds, *, last_task: int, config: Config) -> None:
        self._known = known
        self._config = config
        self.last_task = last_task

    def __len__(self) -> int:
        return len(self._known)

    def decide(self, writes: Sequence[list[StoredTaskIn]], *, room: bool = True) -> list[Verdict]:
        """Judge writes that came together, each as if those before it were stored. ``room``: whether the disk has room for new tasks."""
        beside: dict[str, StoredTaskIn] = {}
        if room and self._are_plain(writes[0] if len(writes) == 1 else list(chain.from_iterable(writes)), beside):
            return [Verdict(tasks, [], []) for tasks in writes]
        return [self._decide_one(tasks, beside, room) for tasks in writes]

    def admit(self, accepted: Sequence[StoredTaskIn]) -> None:
        """These are stored, under the numbers after the last one."""
        self._known.add([task.id for task in accepted], self.last_task + 1)
        self.last_task += len(accepted)

    def forget(self, left: Mapping[str, int], *, through: int) -> None:
        """These tasks (id → number) have left the queue, durably. An id that was published anew since stays known."""
        self._known.discard({task_id: number for task_id, number in left.items() if number <= through})

    def _decide_one(self, tasks: list[StoredTaskIn], beside: dict[str, StoredTaskIn], room: bool) -> Verdict:
        """``beside``: what was accepted before in the same turn; what is accepted now is added to it."""
        if room and self._are_plain(tasks, beside):
            beside.update((task.id, task) for task in tasks)
            return Verdict(tasks, [], [])
        return self._decide_one_by_one(tasks, beside, room)

    def _are_plain(self, tasks: list[StoredTaskIn], beside: Mapping[str, StoredTaskIn]) -> bool:
        """Whether nothing about these needs a closer look."""
        return self._is_plain(tasks[0], beside) if len(tasks) == 1 else self._are_all_plain(tasks, beside)

    def _is_plain(self, task: StoredTaskIn, beside: Mapping[str, StoredTaskIn]) -> bool:
        return (
            task.id not in self._known
            and task.id not in beside
            and len(self._known) + len(beside) < self._config.tasks_max
            and _one_id(task.id) is not None
            and not task.after
            and all_sound([task.data], self._config)
        )

    def _are_all_plain(self, tasks: list[StoredTaskIn], beside: Mapping[str, StoredTaskIn]) -> bool:
        """All of this runs at C speed."""
        ids = [task.id for task in tasks]
        return (
            self._known.all_free(ids)
            and beside.keys().isdisjoint(ids)
            and len(self._known) + len(beside) + len(ids) <= self._config.tasks_max
            and _all_ids(ids)
            and not any(task.after for task in tasks)
            and all_sound([task.data for task in tasks], self._config)
        )

    def _decide_one_by_one(self, tasks: list[StoredTaskIn], beside: dict[str, StoredTaskIn], room: bool) -> Verdict:
        accepted: list[StoredTaskIn] = []
        duplicates: list[int] = []
        refused: list[Refusal] = []
        for index, task in enumerate(tasks):
            if task.id in self._known or task.id in beside:
                duplicates.append(index)
                continue
            fault = self._fault(task, beside, room)
            if fault:
                refused.append(Refusal(index, fault))
            else:
                beside[task.id] = task
                accepted.append(task)
        return Verdict(accepted, duplicates, refused)

    def _fault(self, task: StoredTaskIn, beside: Mapping[str, StoredTaskIn], room: bool) -> str | None:
        if not room:
            return "the disk is nearly full; what is queued goes on, new tasks are refused until there is room"
        if not _one_id(task.id):
            return f"invalid id {task.id[:200]!r}: an id is 1 to 128 letters, digits and . _ : @ -, and begins with a letter or a digit"
        if len(self._known) + len(beside) >= self._config.tasks_max:
            return f"the queue is full: tasks_max is {self._config.tasks_max}"
        size = sum(len(f'"{needed}",') for needed in task.after)
        if size > _AFTER_MAX_BYTES:
            return f"the ids of what it would wait for come to {size:,} bytes, and {_AFTER_MAX_BYTES:,} are the most"
        for needed in task.after:
            if needed not in self._known and needed not in beside:
                return f"it would wait for {needed!r}, which is not in the queue"
        fault = fault_of(task.data, self._config)
        return fault and f"its payload {fault}"


def _all_ids(ids: list[str]) -> bool:
    joined = "\n".join(ids) + "\n"
    # The count sees to an id that holds the separator, and would pass for two.
    return joined.count("\n") == len(ids) and _many_ids(joined) is not None
