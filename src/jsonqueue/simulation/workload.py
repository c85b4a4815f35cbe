"""A user's own workload: what it would do to the queue, before it does.

A ``spec.toml``::

    tasks = 10_000
    consumers = 8

    [arrival]                     # pattern: "even", "poisson" or "burst"
    pattern = "poisson"
    per_second = 200.0

    [duration]                    # kind: "fixed", "uniform", "exponential" or "lognormal"
    kind = "lognormal"
    ms = 30.0                     # the mean ("uniform": 0 to twice that)
    spread = 0.8                  # of a lognormal: its sigma

    failure_rate = 0.02           # of the attempts
    attempts_max = 3
    priorities = [0.9, 0.1]       # shares, of priority 0, 1, ...
    retry = { kind = "exponential", first_ms = 100 }

The brokers are the real ones, the log and the disk are simulated, and handlers take the time that the spec draws. What the machine itself
can do (processors, a disk that is slower than ours) is not simulated; see docs/simulation.md.
"""

from __future__ import annotations

import math
import tomllib
from random import Random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from jsonqueue.config import Config
from jsonqueue.errors import InvalidConfig
from jsonqueue.retry import Exponential, RetryPolicy
from jsonqueue.simulation.meter import percentile
from jsonqueue.simulation.scenario import Habits, Scenario, longest_wait_ms
from jsonqueue.simulation.verdict import Verdict
from jsonqueue.simulation.work import Arrival
from jsonqueue.simulation.world import World
from jsonqueue.waits import WAIT_MAX_MS

__all__ = ["Answers", "Workload", "answer", "answers_of", "parse_workload", "unhurried", "without_retries"]

_Share = Annotated[float, Meta(ge=0, le=1)]
_Rate = Annotated[float, Meta(ge=1e-6, le=1e9)]
_Ms = Annotated[float, Meta(gt=0, le=1e9)]
_Spread = Annotated[float, Meta(gt=0, le=10)]


class Arriving(Struct, frozen=True, forbid_unknown_fields=True):
    """When tasks come."""

    pattern: Literal["even", "poisson", "burst"] = "poisson"
    per_second: _Rate = 100.0


class Lasting(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a handler takes."""

    kind: Literal["fixed", "uniform", "exponential", "lognormal"] = "exponential"
    ms: _Ms = 20.0
    spread: _Spread = 0.5


class Workload(Struct, frozen=True, forbid_unknown_fields=True):
    """See the module."""

    tasks: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    consumers: Annotated[int, Meta(ge=1, le=1_000)] = 4
    concurrency: Annotated[int, Meta(ge=1, le=100)] = 1
    arrival: Arriving = Arriving()
    duration: Lasting = Lasting()
    failure_rate: _Share = 0.0
    attempts_max: Annotated[int, Meta(ge=1)] = 3
    priorities: Annotated[tuple[_Share, ...], Meta(min_length=1)] = (1.0,)
    retry: RetryPolicy = Exponential()


class Answers(Struct):
    """What became of it."""

    verdict: Verdict
    consumers: int
    wait_ms: dict[str, float]
    """From published to started: p50, p90, p99, most."""
    stay_ms: dict[str, float]
    """From published to the end of an attempt."""
    utilisation: float
    """Share of the consumers' time, until the queue was empty, that was spent in handlers."""
    deepest: int
    """The most tasks that had not ended at one time."""
    drained_s: float
    """When the last task ended, counted from the first that came."""
    attempts: int
    retried: int
    """Attempts beyond the first of each task."""
    dead: int
    """Tasks whose attempts all failed."""


def parse_workload(text: str, *, source: str = "spec.toml") -> Workload:
    """The workload that a TOML text describes. Raises :class:`InvalidConfig` that names the line or the setting."""

    try:
        workload = msgspec.convert(tomllib.loads(text.removeprefix("\ufeff")), Workload)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{source} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"{source}: {error}") from None
    if not any(workload.priorities):
        raise InvalidConfig(f"{source}: priorities are shares of the tasks, and cannot all be 0")
    return workload


def answer(workload: Workload, *, seed: int = 1, more_consumers: int = 0, outage: float = 0.0) -> Answers:
    """Run it, with so many consumers more than it says. ``outage``: in this share of its time, in the middle, every attempt fails."""
    work = _work(workload, Random(f"{seed}/workload"))
    spread_us = max(arrival.at_us for arrival in work) + 1
    out_us = int(spread_us * (1 - outage) / 2)
    scenario = Scenario(
        publishers=1,
        consumers=workload.consumers + more_consumers,
        concurrency=workload.concurrency,
        tasks=workload.tasks,
        batch=100,
        spread_us=spread_us,
        habits=Habits(outage_us=(out_us, out_us + int(spread_us * outage)), work_us=(0, max(arrival.lasts_us for arrival in work))),
        config=unhurried(Config(retry=workload.retry, attempts_max=workload.attempts_max, disk_reserve_bytes=0), spread_us),
    )
    return answers_of(World(seed, scenario, work=work))


def unhurried(config: Config, spread_us: int) -> Config:
    """Checkpoints and heartbeats are not what a workload asks about: of one that takes weeks, or waits for days before it tries again,
    there are some thousands."""
    thousandth_ms = min(max(spread_us // 1_000, longest_wait_ms(config.retry)) // 1_000, WAIT_MAX_MS)
    return replace(config, flush_interval_ms=max(config.flush_interval_ms, thousandth_ms), lease_ms=max(config.lease_ms, thousandth_ms))


def answers_of(world: World) -> Answers:
    """Run a world, and say how its work fared."""
    verdict, meter = world.run(), world.meter
    consumers, concurrency = world.scenario.consumers, world.scenario.concurrency
    last_us = max([at_us for at_us, _ in meter.depth] or [1])
    return Answers(
        verdict=verdict,
        consumers=consumers,
        wait_ms=_percentiles(meter.waits_us),
        stay_ms=_percentiles(meter.stays_us),
        utilisation=sum(meter.busy_us.values()) / (consumers * concurrency * max(last_us, 1)),
        deepest=meter.deepest,
        drained_s=last_us / 1_000_000,
        attempts=meter.attempts,
        retried=meter.attempts - len(meter.waits_us),
        dead=verdict.totals.dead,
    )


def without_retries(workload: Workload) -> Workload:
    """The same, were no attempt ever to fail: what a retry storm adds is the difference."""
    return replace(workload, failure_rate=0.0)


def _percentiles(values_us: list[int]) -> dict[str, float]:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
    return {name: percentile(values_us, share) / 1000 for name, share in shares.items()}


def _work(workload: Workload, chance: Random) -> list[Arrival]:
    work, at_s = [], 0.0
    levels = range(len(workload.priorities))
    for _ in range(workload.tasks):
        at_s += _gap_s(workload.arrival, chance)
        fails = 0
        while fails < workload.attempts_max and chance.random() < workload.failure_rate:
            fails += 1
        priority = chance.choices(levels, workload.priorities)[0]
        work.append(Arrival(int(at_s * 1_000_000), _lasts_us(workload.duration, chance), fails_first=fails, priority=priority))
    return work


def _gap_s(arrival: Arriving, chance: Random) -> float:
    if arrival.pattern == "burst":
        return 0.0
    return 1 / arrival.per_second if arrival.pattern == "even" else chance.expovariate(arrival.per_second)


def _lasts_us(duration: Lasting, chance: Random) -> int:
    mean_us = duration.ms * 1000
    if duration.kind == "uniform":
        return int(chance.uniform(0, 2 * mean_us))
    if duration.kind == "exponential":
        return int(chance.expovariate(1 / mean_us))
    if duration.kind == "lognormal":
        return int(chance.lognormvariate(math.log(mean_us) - duration.spread**2 / 2, duration.spread))
    return int(mean_us)
