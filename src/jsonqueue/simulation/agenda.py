"""What the users of a world do: which task is published when and by whom, what is asked about it, and what its handler makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from jsonqueue.client.outcome import NULL, Verdict, inline
from jsonqueue.event import Failure
from jsonqueue.simulation.work import Arrival
from jsonqueue.task import AnyTask

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["Agenda"]


class Agenda:
    """The tasks of a run, numbered from t1 on in the order of the work, and everything that is planned with them."""

    def __init__(self, world: World, work: Sequence[Arrival], handler: Callable[[AnyTask], object] | None) -> None:
        self._world = world
        self._arrivals = {f"t{number}": arrival for number, arrival in enumerate(work, 1)}
        self._handler = inline(handler, lambda: world.config, but=(KeyboardInterrupt,)) if handler is not None else None
        self.to_come = 0
        """How much of it has not happened yet."""
        self.asked_ms = 0
        """The longest wait before another attempt that the handler asked for."""

    @property
    def ids(self) -> Iterable[str]:
        """Of all tasks."""
        return self._arrivals

    @property
    def attempts_max(self) -> int:
        """How often a task may have to be tried, if nothing but its handler fails. One of somebody's own may fail each time."""
        attempts = [1 + max(arrival.fails_first, arrival.kills_first) for arrival in self._arrivals.values()]
        if self._handler is not None:
            attempts.append(min(self._world.config.attempts_max, 1_000))
        return max(attempts, default=0)

    def plan(self) -> None:
        """See to it that everything happens at its time."""
        scenario, chance = self._world.scenario, self._world.chance_of("questions")
        writes: dict[tuple[int, int], list[str]] = {}
        for task_id, arrival in self._arrivals.items():
            writes.setdefault((arrival.at_us, arrival.publisher % scenario.publishers), []).append(task_id)
            self._plan_questions(task_id, arrival.at_us, chance)
            for wait_us in arrival.again_us:
                self._come(arrival.at_us + wait_us, self._publish, arrival.publisher % scenario.publishers, [task_id])
        for (at_us, publisher), ids in writes.items():
            self._come(at_us, self._publish, publisher, ids)
        for _ in range(scenario.habits.replays):
            self._come(scenario.spread_us + chance.randrange(5 * scenario.habits.asked_us), self._ask, "replay", "")

    def _plan_questions(self, task_id: str, at_us: int, chance: Random) -> None:
        habits = self._world.scenario.habits
        for what, share in (("look", habits.looked_at), ("cancel", habits.cancelled), ("look", habits.looked_at / 2)):
            if share and chance.random() < share:
                self._come(at_us + chance.randrange(habits.asked_us), self._ask, what, task_id)

    def _come(self, at_us: int, act: Callable[..., None], *arguments: Any) -> None:
        self.to_come += 1
        self._world.scheduler.at(at_us, self._came, act, arguments)

    def _came(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.to_come -= 1
        act(*arguments)

    def _ask(self, what: str, task_id: str) -> None:
        self._world.callers[0].ask(what, task_id)

    def _publish(self, publisher: int, ids: list[str]) -> None:
        world, now_ms = self._world, self._world.clock.wall_ms()
        for task_id in ids:
            world.meter.published(task_id, world.scheduler.now_us)
        batch = [self._arrivals[task_id].task(task_id, now_ms) for task_id in ids]
        for first in range(0, len(batch), world.scenario.batch):
            world.publishers[publisher].push(batch[first : first + world.scenario.batch])

    def arrival(self, task_id: str) -> Arrival:
        """What will become of this task."""
        return self._arrivals[task_id]

    def handle(self, task: AnyTask) -> Verdict:
        """What the handler makes of a task: the user's own, or the one that was drawn."""
        if self._handler is not None:
            verdict = self._handler(task)
            if isinstance(verdict, Failure):
                self.asked_ms = max(self.asked_ms, verdict.retry_after_ms or 0)
            return verdict
        out_us, back_us = self._world.scenario.habits.outage_us
        if self._arrivals[task.id].fails(task.attempt) or out_us <= self._world.scheduler.now_us < back_us:
            return Failure(task.id, task.token, "it failed")
        return Raw(b'{"token":%d}' % task.token) if task.token % 2 else NULL
