"""Who wants to hear when a task has ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Watchers"]


class Watchers:
    """Callers (peer, request) by the task they watch."""

    def __init__(self) -> None:
        self._by_task: dict[str, list[tuple[int, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_task)

    def add(self, task_id: str, peer: int, request: int) -> None:
        """This caller watches this task."""
        self._by_task.setdefault(task_id, []).append((peer, request))

    def told(self, task_ids: Iterable[str]) -> Iterator[tuple[str, int, int]]:
        """Who is to hear of these ends, as (task id, peer, request); they are forgotten with it."""
        for task_id in task_ids:
            for peer, request in self._by_task.pop(task_id, ()):
                yield task_id, peer, request

    def forget(self, peer: int) -> None:
        """The caller is gone."""
        for task_id, who in list(self._by_task.items()):
            left = [(other, request) for other, request in who if other != peer]
            if left:
                self._by_task[task_id] = left
            else:
                del self._by_task[task_id]
