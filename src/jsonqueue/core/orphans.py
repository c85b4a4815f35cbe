"""Tasks in progress whose consumer has no Pipe to this broker yet: they were handed out before it started."""

from __future__ import annotations

from jsonqueue.task import StoredTask

__all__ = ["Orphans"]


class Orphans:
    """By token. They wait for their consumer to come back, until ``until_ms`` of the monotonic clock."""

    def __init__(self) -> None:
        self._tasks: dict[int, StoredTask] = {}
        self.until_ms = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: StoredTask) -> None:
        """A task that was found in progress."""
        self._tasks[task.token] = task

    def claim(self, token: int) -> StoredTask | None:
        """Take the task of this token out, if there is one."""
        return self._tasks.pop(token, None)

    def claim_all_of(self, label: str) -> list[StoredTask]:
        """Take out what this consumer held."""
        held = [task for task in self._tasks.values() if task.consumer == label]
        for task in held:
            del self._tasks[task.token]
        return held

    def holders(self) -> set[str]:
        """Labels of the consumers that have not come back."""
        return {task.consumer for task in self._tasks.values()} if self._tasks else set()
