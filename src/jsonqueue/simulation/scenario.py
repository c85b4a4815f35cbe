"""What a simulated run is made of, as plain data: who takes part, what they do, and what goes wrong when.

A scenario and a seed are all that a run depends on. :func:`draw` makes one from a seed alone: which kinds of faults are on, how hard they
strike and how large the world is are all drawn anew (swarm testing: a run with every fault at once finds less than many runs with a few).
"""

from __future__ import annotations

from random import Random
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct
from msgspec.structs import replace

from jsonqueue.config import Config
from jsonqueue.retry import Exponential, Linear, Never, RetryPolicy
from jsonqueue.simulation.wire import Share, Weather, require_order

__all__ = ["FAULTS", "Fault", "Habits", "Scenario", "draw", "longest_wait_ms"]

SECOND_US = 1_000_000
_MINUTE_US, _HOUR_US = 60 * SECOND_US, 3_600 * SECOND_US
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_Some = Annotated[int, Meta(ge=1)]
_Amount = Annotated[int, Meta(ge=0)]

FAULTS: dict[str, str] = {
    "kill publisher broker": "kill -9; the manager starts another",
    "kill consumer broker": "kill -9; the manager starts another",
    "kill manager": "kill -9; the brokers notice and end, then all three start again",
    "stop manager": "SIGTERM: the brokers end in order, all is folded into queue.json; a little later everything starts again",
    "kill consumer": "kill -9 of a consumer, whatever it runs; another one takes its place",
    "stop consumer": "SIGTERM of a consumer: it ends what it runs, says so, leaves; another one takes its place",
    "kill publisher": "kill -9 of a publisher; it comes back and publishes what was not acknowledged under the same ids",
    "kill at operation": "kill -9 of a broker in the midst of its n-th disk operation from now",
    "kill in checkpoint": "kill -9 of a broker while queue.json is written, at the n-th operation of that",
    "power cut": "the whole machine goes dark, and comes back with what the disk has kept",
    "power cut at operation": "the same, in the midst of the n-th disk operation from now",
    "stall consumer": "a consumer stands still (SIGSTOP), and goes on later as if nothing had been",
    "stall broker": "a broker stands still, and goes on later",
    "break pipe": "the Pipe between a client and its broker breaks",
    "failed sync": "the next fsync reports EIO",
    "full disk": "somebody else fills the disk, and frees it later",
    "slow disk": "every fsync takes a hundred times as long, for a while",
    "clock jump": "the wall clock jumps, forwards or backwards",
}
"""Everything that can be made to go wrong at a moment. (What Pipes do to single frames is the weather's.)"""


class Fault(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One thing that goes wrong."""

    at_us: _Amount
    kind: str
    target: _Amount = 0
    """Which of its kind, where there are several. (A "full disk" of 2 has next to no room left, one of 0 or 1 some.)"""
    amount: int = 0
    """How long (µs), how far (ms, for a clock), which operation."""

    def __str__(self) -> str:
        size = f" ({self.amount})" if self.amount else ""
        return f"{self.at_us / 1000:.1f} ms: {self.kind} {self.target}{size}"


class Habits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the tasks are like, and what callers do to them."""

    work_us: tuple[_Amount, _Amount] = (200, 4_000)
    """How long a handler takes."""
    failing: Share = 0.0
    """Share of the attempts that fail."""
    priorities: _Some = 1
    """How many different ones."""
    delayed: Share = 0.0
    """Share of the tasks that are published with a delay."""
    dependent: Share = 0.0
    """Share of the tasks that wait for an earlier one."""
    deadlines: Share = 0.0
    cancelled: Share = 0.0
    looked_at: Share = 0.0
    poison: Share = 0.0
    """Share of the tasks that kill whoever runs them."""
    replays: _Amount = 0
    """How often somebody replays all dead letters."""
    delay_ms: _Some = 500
    """The longest delay."""
    deadline_ms: tuple[_Amount, _Amount] = (20, 3_000)
    """The shortest and the longest deadline."""
    outage_us: tuple[_Amount, _Amount] = (0, 0)
    """Every attempt that begins between these two moments fails."""
    asked_us: _Some = 200_000
    """How long after its arrival a task is asked after, or cancelled, at the latest."""
    again: Share = 0.0
    """Share of the tasks whose id is published again, up to four times: a duplicate, or, once the first has left the queue, a new task."""
    again_us: _Amount = 0
    """How long after its arrival, at the latest."""
    data_bytes: _Amount = 0
    """The longest payload, beyond a few bytes."""

    def __post_init__(self) -> None:
        require_order(work_us=self.work_us, deadline_ms=self.deadline_ms)
        if self.again and not self.again_us:
            raise ValueError("an id that is published again needs a time for that: again_us of 1 or more")


class Scenario(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything a run depends on, but for the seed."""

    publishers: _Some = 2
    consumers: _Some = 3
    concurrency: _Some = 1
    tasks: _Amount = 60
    batch: _Some = 4
    """Tasks in one write, at most."""
    spread_us: _Some = SECOND_US
    """Over how long a time they are published."""
    habits: Habits = Habits()
    weather: Weather = Weather()
    faults: tuple[Fault, ...] = ()
    config: Config = Config(
        retry=Linear(step_ms=20), attempts_max=1_000, lease_ms=2_000, flush_interval_ms=200, segment_max_bytes=16_384, disk_reserve_bytes=0
    )
    patience_us: _Some = SECOND_US
    """A publisher, or a caller, that has no answer for so long asks anew on a new Pipe."""
    direct: bool = False
    """Whether publishers append by themselves while no manager is there."""
    read_us: _Amount = 0
    """How long a read from the disk takes. Above 0, others may run between two reads of one process."""

    @property
    def quiet_us(self) -> int:
        """When the faults have stopped."""
        return max([self.spread_us, *(fault.at_us + _lasting_us(fault) for fault in self.faults)])

    def drain_us(self, attempts: int, asked_ms: int = 0) -> int:
        """How long after that everything must have ended: ten minutes, and what the work itself may take, each task with so many
        attempts. ``asked_ms``: the longest wait that a handler asked for."""
        waits_us = 1_000 * (max(longest_wait_ms(self.config.retry), asked_ms) + 2 * self.config.lease_ms)
        asked_us = 6 * self.habits.asked_us  # the last question is asked by then
        asked_us += self.habits.again_us
        return 600 * SECOND_US + asked_us + 1_000 * self.habits.delay_ms + attempts * (self.tasks * self.habits.work_us[1] + waits_us)


def longest_wait_ms(retry: RetryPolicy) -> int:
    """The longest that this policy lets a task wait."""
    return 0 if isinstance(retry, Never) else retry.cap_ms


def _lasting_us(fault: Fault) -> int:
    return fault.amount if fault.kind in {"stall consumer", "stall broker", "full disk", "slow disk"} else 0


class _Pace(NamedTuple):
    """How slow life is in a world: races want milliseconds, and what queues wait for in earnest takes minutes and days."""

    spreads_us: tuple[int, ...]
    works_us: tuple[tuple[int, int], ...]
    delay_ms: int
    deadline_ms: tuple[int, int]
    asked_us: int
    retries: tuple[RetryPolicy, ...]
    leases_ms: tuple[int, ...]
    flushes_ms: tuple[int, ...]
    keeps_ms: tuple[int, ...]
    dead_keep_ms: int
    consumer_stalls_us: int
    spells_us: int
    """The longest that a broker stands still, or a disk is full or slow."""
    patience_us: int
    consumers_max: int


_MILLISECONDS = _Pace(
    spreads_us=(20_000, 200_000, SECOND_US),
    works_us=((50, 400), (200, 4_000), (5_000, 60_000)),
    delay_ms=500,
    deadline_ms=(20, 3_000),
    asked_us=200_000,
    retries=(Linear(step_ms=20), Exponential(first_ms=5, cap_ms=200)),
    leases_ms=(300, 2_000),
    flushes_ms=(15, 60, 400),
    keeps_ms=(60_000, 60_000, 400),
    dead_keep_ms=90_000,
    consumer_stalls_us=4 * SECOND_US,
    spells_us=500_000,
    patience_us=SECOND_US,
    consumers_max=5,
)
_MINUTES = _Pace(
    spreads_us=(10 * _MINUTE_US, _HOUR_US),
    works_us=((200_000, 4 * SECOND_US), (SECOND_US, 2 * _MINUTE_US)),
    delay_ms=600_000,
    deadline_ms=(10_000, _HOUR_MS),
    asked_us=10 * _MINUTE_US,
    retries=(Exponential(), Exponential(first_ms=1_000, cap_ms=600_000), Linear(step_ms=30_000)),
    leases_ms=(30_000, 60_000),
    flushes_ms=(2_000, 60_000),
    keeps_ms=(_DAY_MS, 600_000),
    dead_keep_ms=_HOUR_MS,
    consumer_stalls_us=3 * _MINUTE_US,
    spells_us=20 * SECOND_US,
    patience_us=30 * SECOND_US,
    consumers_max=4,
)
_DAYS = _Pace(
    spreads_us=(2 * 86_400 * SECOND_US, 4 * 86_400 * SECOND_US, 15 * 86_400 * SECOND_US),
    works_us=((SECOND_US, 10 * _MINUTE_US), (_MINUTE_US, _HOUR_US)),
    delay_ms=_DAY_MS,
    deadline_ms=(60_000, 2 * _DAY_MS),
    asked_us=12 * _HOUR_US,
    retries=(Exponential(first_ms=60_000, cap_ms=6 * _HOUR_MS), Linear(step_ms=_HOUR_MS, cap_ms=_DAY_MS)),
    leases_ms=(600_000, 1_800_000),
    flushes_ms=(60_000, 600_000),
    keeps_ms=(_DAY_MS, _HOUR_MS),
    dead_keep_ms=2 * _DAY_MS,
    consumer_stalls_us=_HOUR_US,
    spells_us=_MINUTE_US,
    patience_us=30 * SECOND_US,
    consumers_max=3,
)
_PACES = (_MILLISECONDS,) * 34 + (_MINUTES,) * 5 + (_DAYS,)


def draw(seed: int, *, short: bool = False) -> Scenario:
    """The scenario of this seed. ``short``: one of milliseconds, few tasks and many faults, for whoever wants many of them."""
    chance = Random(f"{seed}/short") if short else Random(seed)
    pace = _MILLISECONDS if short else chance.choice(_PACES)
    tasks = chance.choice((6, 12, 24) if short else (6, 12, 24, 40, 80))
    spread_us = chance.choice(pace.spreads_us)
    consumers = chance.randint(1, pace.consumers_max)
    habits = _draw_habits(chance, pace)
    return Scenario(
        publishers=chance.randint(1, 3),
        consumers=consumers,
        concurrency=chance.choice((1, 1, 2, 4)),
        tasks=tasks,
        batch=chance.choice((1, 3, 10)),
        spread_us=spread_us,
        habits=habits,
        weather=_draw_weather(chance, pace),
        faults=_draw_faults(chance, pace, spread_us + habits.again_us, consumers, (8, 16) if short else (1, 2, 4, 8, 16)),
        config=_draw_config(chance, pace, habits),
        patience_us=pace.patience_us,
        direct=chance.random() < 0.3,
        read_us=chance.choice((0, 0, 30, 300)),
    )


def _on(chance: Random, share: float) -> float:
    """This share, in half of the worlds."""
    return share * chance.random() if chance.random() < 0.5 else 0.0


def _draw_habits(chance: Random, pace: _Pace) -> Habits:
    again = _on(chance, 0.8) if chance.random() < 0.5 else 0.0
    return Habits(
        work_us=chance.choice(pace.works_us),
        failing=_on(chance, 0.4),
        priorities=chance.choice((1, 1, 3)),
        delayed=_on(chance, 0.4),
        dependent=_on(chance, 0.4),
        deadlines=_on(chance, 0.3),
        cancelled=_on(chance, 0.3),
        looked_at=_on(chance, 0.6),
        poison=_on(chance, 0.1),
        replays=chance.choice((0, 0, 2)),
        delay_ms=pace.delay_ms,
        deadline_ms=pace.deadline_ms,
        asked_us=pace.asked_us,
        again=again,
        again_us=3_000 * min(pace.keeps_ms) if again else 0,
        data_bytes=chance.choice((0, 0, 0, 300, 3_000)),
    )


def _draw_weather(chance: Random, pace: _Pace) -> Weather:
    weather = Weather(
        delay_us=chance.choice(((5, 60), (5, 60), (20, 2_000), (100, 20_000))),
        drop=_on(chance, 0.1),
        duplicate=_on(chance, 0.1),
        reorder=_on(chance, 0.1),
    )
    # A task that is assigned twice over, which no real Pipe can do, is returned and assigned again while its run lasts: ten times a second.
    return weather if pace is _MILLISECONDS else replace(weather, duplicate=0.0)


def _draw_config(chance: Random, pace: _Pace, habits: Habits) -> Config:
    return Config(
        retry=chance.choice(pace.retries),
        attempts_max=chance.choice((2, 5, 1_000)),
        lease_ms=chance.choice(pace.leases_ms),
        flush_interval_ms=chance.choice(pace.flushes_ms),
        finished_keep_ms=min(pace.keeps_ms) if habits.again else chance.choice(pace.keeps_ms),
        finished_keep_max=100_000,
        dead_keep_ms=pace.dead_keep_ms,
        segment_max_bytes=chance.choice((4_096, 16_384)),
        disk_reserve_bytes=chance.choice((0, 4_096)),
    )


def _draw_faults(chance: Random, pace: _Pace, spread_us: int, consumers: int, counts: tuple[int, ...]) -> tuple[Fault, ...]:
    kinds = [kind for kind in FAULTS if chance.random() < 0.3]
    if not kinds:
        return ()
    end_us = spread_us + 300_000
    faults = [draw_fault(chance, chance.choice(kinds), end_us, consumers, pace) for _ in range(chance.choice(counts))]
    return tuple(sorted(faults, key=lambda fault: (fault.at_us, fault.kind, fault.target, fault.amount)))


def draw_fault(chance: Random, kind: str, end_us: int, consumers: int, pace: _Pace = _MILLISECONDS) -> Fault:
    """A fault of this kind, some time before the end."""
    amount = {
        "kill at operation": chance.randint(1, 25),
        "kill in checkpoint": chance.randint(1, 25),
        "power cut at operation": chance.randint(1, 25),
        "stall consumer": chance.randint(1_000, pace.consumer_stalls_us),
        "stall broker": chance.randint(1_000, pace.spells_us),
        "full disk": chance.randint(1_000, pace.spells_us),
        "slow disk": chance.randint(1_000, pace.spells_us),
        "clock jump": chance.choice((-86_400_000, -5_000, -100, 100, 5_000)),
    }.get(kind, 0)
    targets = consumers if "consumer" in kind and "broker" not in kind else 3 if kind == "full disk" else 2
    target = chance.randrange(targets)
    return Fault(chance.randrange(end_us), kind, target, amount)
