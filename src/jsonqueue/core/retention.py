"""How long ended tasks stay: by age, by number, by bytes, whichever is reached first. Dead letters have an age of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush

from jsonqueue.config import Config
from jsonqueue.core.payload import size_of
from jsonqueue.core.timetable import earliest
from jsonqueue.task import StoredTask, TaskStatus

__all__ = ["Retention"]

_FEW = 1_024
"""To hold so many deaths that were followed by another life is no burden."""


class Retention:
    """Ended tasks in the order they ended, by their dates: a clock that was ahead for a moment must not keep those that ended since, nor
    let them go before those that ended meanwhile."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ended: list[tuple[int, int, int, str]] = []  # heaps of (ended at, how many were noted before, bytes, id)
        self._dead: list[tuple[int, int, int, str]] = []
        self._bytes = self._count = self._newest_ms = 0
        self._most_dead = _FEW
        self._needed: dict[str, tuple[int, int, int, str]] = {}
        """Those past it on which a blocked task rests."""

    def keep(self, task: StoredTask) -> None:
        """Note a task that has just ended."""
        size = size_of(task.data) + (size_of(task.result) if task.result is not None else 0)
        noted = (task.finished_ms, self._count, size, task.id)
        self._count += 1
        if task.status is TaskStatus.DEAD:
            heappush(self._dead, noted)
        else:
            self._note(noted)
        self.released(task.after)

    def _note(self, entry: tuple[int, int, int, str]) -> None:
        heappush(self._ended, entry)
        self._bytes += entry[2]
        self._newest_ms = max(self._newest_ms, entry[0])

    def retire(self, tasks: Mapping[str, StoredTask], now_ms: int, *, needed: Callable[[str], bool] = lambda task_id: False) -> list[str]:
        """Ids of tasks past their retention; they are forgotten here. Those still ``needed`` stay until they are :meth:`released`."""
        if self._newest_ms > now_ms:
            self._date_back(now_ms)
        config, ended, retired = self._config, self._ended, []
        oldest_ms = now_ms - config.finished_keep_ms
        while ended and (ended[0][0] <= oldest_ms or len(ended) > config.finished_keep_max or self._bytes > config.finished_keep_bytes):
            entry = _, _, size, task_id = heappop(ended)
            self._bytes -= size
            if needed(task_id):
                self._needed[task_id] = entry
            else:
                retired.append(task_id)
        if len(self._dead) > self._most_dead:
            self._forget_deaths_before_a_replay(tasks)
        oldest_ms = now_ms - config.dead_keep_ms
        while self._dead and self._dead[0][0] <= oldest_ms:
            finished_ms, _, _, task_id = heappop(self._dead)
            if _is_that_death(tasks.get(task_id), finished_ms):
                retired.append(task_id)
        return list(dict.fromkeys(retired))  # replayed and dead again within one millisecond, a task is noted twice

    def _date_back(self, now_ms: int) -> None:
        """The clock was ahead, and no task ended later than now."""
        self._ended = [(min(entry[0], now_ms), *entry[1:]) for entry in self._ended]
        heapify(self._ended)
        self._newest_ms = now_ms

    def _forget_deaths_before_a_replay(self, tasks: Mapping[str, StoredTask]) -> None:
        """What is replayed each hour and dies again would be noted here once for each time, for as long as dead letters are kept."""
        self._dead = [noted for noted in self._dead if _is_that_death(tasks.get(noted[3]), noted[0])]
        heapify(self._dead)
        self._most_dead = max(_FEW, 2 * len(self._dead))

    def released(self, ids: Iterable[str]) -> None:
        """One that needed these needs them no more."""
        for task_id in ids if self._needed else ():
            if entry := self._needed.pop(task_id, None):
                self._note(entry)

    def next_ms(self) -> int | None:
        """When the next task gets too old."""
        return earliest(
            self._ended[0][0] + self._config.finished_keep_ms if self._ended else None,
            self._dead[0][0] + self._config.dead_keep_ms if self._dead else None,
        )


def _is_that_death(task: StoredTask | None, finished_ms: int) -> bool:
    """A dead letter that was replayed since has no age any more, or a new one."""
    return task is not None and task.status is TaskStatus.DEAD and task.finished_ms == finished_ms
