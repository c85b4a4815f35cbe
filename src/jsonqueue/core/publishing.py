"""The PublisherBroker's judgement: which tasks are taken in, which are known already, which are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from jsonqueue.config import Config
from jsonqueue.core.payload import all_sound, fault_of
from jsonqueue.core.taken import TakenIds
from jsonqueue.event import Refusal
from jsonqueue.task import ID_PATTERN, StoredTaskIn

__all__ = ["Admission", "Verdict"]

_one_id = re.compile(ID_PATTERN).fullmatch
_many_ids = re.compile("(?:" + ID_PATTERN.removeprefix("^").removesuffix(r"\Z") + "\n)*").fullmatch


class Verdict(NamedTuple):
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

    def decide(self, tasks: list[StoredTaskIn], *, room: bool = True) -> Verdict:
        """Judge one write. ``room``: whether the disk has room for new tasks."""
        if room and (self._is_plain(tasks[0]) if len(tasks) == 1 else self._are_plain(tasks)):
            return Verdict(tasks, [], [])
        return self._decide_one_by_one(tasks, room)

    def admit(self, accepted: list[StoredTaskIn]) -> int:
        """Number the accepted tasks; the number of the first."""
        first = self.last_task + 1
        if accepted:
            self._known.add([task.id for task in accepted], first)
            self.last_task += len(accepted)
        return first

    def withdraw(self, accepted: list[StoredTaskIn]) -> None:
        """Take an admission back, the latest: the disk did not take the batch."""
        self.last_task -= len(accepted)
        self._known.discard({task.id: number for number, task in enumerate(accepted, self.last_task + 1)})

    def forget(self, left: Mapping[str, int], *, through: int) -> None:
        """These tasks (id → number) have left the queue, durably. An id that was published anew since stays known."""
        self._known.discard({task_id: number for task_id, number in left.items() if number <= through})

    def _is_plain(self, task: StoredTaskIn) -> bool:
        """Whether nothing about the only task of a write needs a closer look."""
        return (
            task.id not in self._known
            and len(self._known) < self._config.tasks_max
            and _one_id(task.id) is not None
            and not task.after
            and all_sound([task.data], self._config)
        )

    def _are_plain(self, tasks: list[StoredTaskIn]) -> bool:
        """The same of many; all of this runs at C speed."""
        ids = [task.id for task in tasks]
        return (
            self._known.all_free(ids)
            and len(self._known) + len(ids) <= self._config.tasks_max
            and _all_ids(ids)
            and not any(task.after for task in tasks)
            and all_sound([task.data for task in tasks], self._config)
        )

    def _decide_one_by_one(self, tasks: list[StoredTaskIn], room: bool) -> Verdict:
        accepted: dict[str, StoredTaskIn] = {}
        duplicates: list[int] = []
        refused: list[Refusal] = []
        for index, task in enumerate(tasks):
            if task.id in self._known or task.id in accepted:
                duplicates.append(index)
                continue
            fault = self._fault(task, accepted, room)
            if fault:
                refused.append(Refusal(index, fault))
            else:
                accepted[task.id] = task
        return Verdict(list(accepted.values()), duplicates, refused)

    def _fault(self, task: StoredTaskIn, accepted: Mapping[str, StoredTaskIn], room: bool) -> str | None:
        if not room:
            return "the disk is nearly full; what is queued goes on, new tasks are refused until there is room"
        if not _one_id(task.id):
            return f"invalid id {task.id[:200]!r}: an id is 1 to 128 letters, digits and . _ : @ -, and begins with a letter or a digit"
        if len(self._known) + len(accepted) >= self._config.tasks_max:
            return f"the queue is full: tasks_max is {self._config.tasks_max}"
        for needed in task.after:
            if needed not in self._known and needed not in accepted:
                return f"it would wait for {needed!r}, which is not in the queue"
        fault = fault_of(task.data, self._config)
        return fault and f"its payload {fault}"


def _all_ids(ids: list[str]) -> bool:
    joined = "\n".join(ids) + "\n"
    # The count sees to an id that holds the separator, and would pass for two.
    return joined.count("\n") == len(ids) and _many_ids(joined) is not None
