"""Who waits for whom: tasks published with ``after``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jsonqueue.core.records import Died
from jsonqueue.task import StoredTask, TaskStatus

__all__ = ["Dependencies"]


class Dependencies:
    """The blocked tasks, by what they wait for."""

    def __init__(self) -> None:
        # By id within: a task that is replayed waits for the same again, and must not wait twice for what never ended meanwhile.
        self._waiting: dict[str, dict[str, StoredTask]] = {}
        self._missing: dict[int, int] = {}
        """By number: an id may be another task's by the time that the last of what its first one waited for ends."""
        self._needed: dict[str, dict[str, StoredTask]] = {}
        """As ``_waiting``, with what is complete already: that is to stay for as long as one of them waits for something else."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def block(self, task: StoredTask, tasks: Mapping[str, StoredTask]) -> str | None:
        """Note what a blocked task waits for.

        Returns None while it has to wait, "" when it need not (all of it is complete), and else the reason why it never can run:
        something it waits for is dead, cancelled or no longer known.
        """
        missing = []
        for needed in dict.fromkeys(task.after):
            other = tasks.get(needed)
            if other is None:
                return f"waits for {needed}, which is no longer in the queue"
            if other.status in (TaskStatus.DEAD, TaskStatus.CANCELLED):
                return f"waits for {needed}, which is {other.status}"
            if other.status is not TaskStatus.COMPLETED:
                missing.append(needed)
        if not missing:
            return ""
        self._missing[task.number] = len(missing)
        for needed in missing:
            self._waiting.setdefault(needed, {})[task.id] = task
        for needed in task.after:
            self._needed.setdefault(needed, {})[task.id] = task
        return None

    def needs(self, task_id: str) -> bool:
        """Whether a blocked task rests on this one: gone, it could not be told from one that never completed, by a broker that starts."""
        return task_id in self._needed

    def completed(self, task_id: str) -> list[StoredTask]:
        """Tasks that waited for nothing but this one."""
        ready = []
        for task in self._still_blocked(task_id):
            self._missing[task.number] -= 1
            if not self._missing[task.number]:
                del self._missing[task.number]
                _take_out(task, self._needed)
                ready.append(task)
        return ready

    def died_with(self, task_ids: Sequence[str], tasks: Mapping[str, StoredTask]) -> list[Died]:
        """What becomes of the tasks that waited for these, which ended in any way but completion."""
        for task_id in task_ids:
            if tasks[task_id].after:
                self._leave(tasks[task_id])
        deaths = []
        for task_id in task_ids:
            if hopeless := self._still_blocked(task_id):
                for task in hopeless:
                    del self._missing[task.number]
                deaths.append(Died([task.id for task in hopeless], f"waits for {task_id}, which is {tasks[task_id].status}"))
        return deaths

    def _leave(self, task: StoredTask) -> None:
        """It waits no more. What it waited for may be a year in coming, and must not hold it until then."""
        self._missing.pop(task.number, None)
        _take_out(task, self._waiting)
        _take_out(task, self._needed)

    def _still_blocked(self, task_id: str) -> list[StoredTask]:
        return [task for task in self._waiting.pop(task_id, {}).values() if task.number in self._missing]


def _take_out(task: StoredTask, dependants: dict[str, dict[str, StoredTask]]) -> None:
    for needed in task.after:
        waiting = dependants.get(needed, {})
        if waiting.get(task.id) is task:
            del waiting[task.id]
            if not waiting:
                del dependants[needed]
