"""How long ended tasks stay: by age, by number, by bytes, whichever is reached first. Dead letters have an age of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from jsonqueue.config import Config
from jsonqueue.core.payload import size_of
from jsonqueue.core.timetable import earliest
from jsonqueue.task import StoredTask, TaskStatus

__all__ = ["Retention"]


class Retention:
    """Ended tasks in the order they ended."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ended: deque[tuple[int, int, str]] = deque()  # (ended at, bytes, id)
        self._dead: deque[tuple[int, int, str]] = deque()
        self._bytes = 0

    def keep(self, task: StoredTask) -> None:
        """Note a task that has just ended."""
        size = size_of(task.data) + (size_of(task.result) if task.result is not None else 0)
        if task.status is TaskStatus.DEAD:
            self._dead.append((task.finished_ms, size, task.id))
        else:
            self._ended.append((task.finished_ms, size, task.id))
            self._bytes += size

    def retire(self, tasks: Mapping[str, StoredTask], now_ms: int) -> list[str]:
        """Ids of tasks past their retention; they are forgotten here."""
        config, ended, retired = self._config, self._ended, []
        oldest_ms = now_ms - config.finished_keep_ms
        while ended and (ended[0][0] <= oldest_ms or len(ended) > config.finished_keep_max or self._bytes > config.finished_keep_bytes):
            _, size, task_id = ended.popleft()
            self._bytes -= size
            retired.append(task_id)
        oldest_ms = now_ms - config.dead_keep_ms
        while self._dead and self._dead[0][0] <= oldest_ms:
            finished_ms, _, task_id = self._dead.popleft()
            if _is_that_death(tasks.get(task_id), finished_ms):
                retired.append(task_id)
        return list(dict.fromkeys(retired))  # replayed and dead again within one millisecond, a task is noted twice

    def next_ms(self) -> int | None:
        """When the next task gets too old."""
        return earliest(
            self._ended[0][0] + self._config.finished_keep_ms if self._ended else None,
            self._dead[0][0] + self._config.dead_keep_ms if self._dead else None,
        )


def _is_that_death(task: StoredTask | None, finished_ms: int) -> bool:
    """A dead letter that was replayed since has no age any more, or a new one."""
    return task is not None and task.status is TaskStatus.DEAD and task.finished_ms == finished_ms
