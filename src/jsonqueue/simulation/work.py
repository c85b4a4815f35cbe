"""The work of a run: which tasks come when, how long they take, how they fail."""

from __future__ import annotations

from random import Random

from msgspec import Raw, Struct

from jsonqueue.simulation.scenario import Habits, Scenario
from jsonqueue.task import StoredTaskIn, TaskIn

__all__ = ["Arrival", "drawn_work"]


class Arrival(Struct, frozen=True, omit_defaults=True):
    """One task: when it is published, and what will become of it when it is run."""

    at_us: int
    lasts_us: int
    publisher: int = 0
    fails_first: int = 0
    """So many of its first attempts fail."""
    kills_first: int = 0
    """So many of its first attempts take their consumer along."""
    priority: int = 0
    delay_ms: int = 0
    deadline_ms: int = 0
    """Counted from when it is published; 0: none."""
    after: str = ""
    data: bytes = b"null"
    attempts_max: int = 0
    again_us: tuple[int, ...] = ()
    """So long after its arrival its id is published again."""

    def fails(self, attempt: int) -> bool:
        """Whether this attempt fails."""
        return attempt <= self.fails_first

    def kills(self, attempt: int) -> bool:
        """Whether this attempt takes its consumer along."""
        return attempt <= self.kills_first

    def task(self, task_id: str, now_ms: int) -> StoredTaskIn:
        """As it is handed in."""
        return TaskIn(
            id=task_id,
            data=Raw(self.data),
            priority=self.priority,
            run_at_ms=now_ms + self.delay_ms if self.delay_ms else 0,
            deadline_ms=now_ms + self.deadline_ms if self.deadline_ms else 0,
            after=(self.after,) if self.after else (),
            attempts_max=self.attempts_max,
        )


def drawn_work(scenario: Scenario, chance: Random) -> list[Arrival]:
    """The work of a scenario: writes of several tasks at moments spread evenly."""
    work: list[Arrival] = []
    while len(work) < scenario.tasks:
        size = min(chance.randint(1, scenario.batch), scenario.tasks - len(work))
        publisher, at_us = chance.randrange(scenario.publishers), chance.randrange(scenario.spread_us)
        work += [_drawn(scenario, chance, at_us, publisher, len(work) + offset + 1) for offset in range(size)]
    return work


def _drawn(scenario: Scenario, chance: Random, at_us: int, publisher: int, number: int) -> Arrival:
    habits, attempts_max = scenario.habits, scenario.config.attempts_max
    again = habits.again and chance.random() < habits.again  # no chance is spent on what is off: so older scenarios stay what they were
    return Arrival(
        at_us=at_us,
        lasts_us=chance.randint(*habits.work_us),
        publisher=publisher,
        fails_first=_failures(habits, chance),
        kills_first=(3 if attempts_max > 10 else attempts_max) if chance.random() < habits.poison else 0,
        priority=chance.randrange(habits.priorities),
        delay_ms=chance.randrange(habits.delay_ms) if chance.random() < habits.delayed else 0,
        deadline_ms=chance.randint(*habits.deadline_ms) if chance.random() < habits.deadlines else 0,
        after=f"t{chance.randint(1, number - 1)}" if number > 1 and chance.random() < habits.dependent else "",
        data=_data(number, chance.randrange(habits.data_bytes) if habits.data_bytes else 0),
        again_us=tuple(sorted(chance.randrange(habits.again_us) for _ in range(chance.randint(1, 4)))) if again else (),
    )


def _data(number: int, more_bytes: int) -> bytes:
    return b'{"n":%d,"more":"%s"}' % (number, b"." * more_bytes) if more_bytes else b'{"n":%d}' % number


def _failures(habits: Habits, chance: Random) -> int:
    fails = 0
    while fails < 5 and chance.random() < habits.failing:
        fails += 1
    return fails
