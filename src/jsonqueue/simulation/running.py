"""Runs of the simulator: one, or many; and the smallest faults that still fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace

from jsonqueue.client.handlers import is_async
from jsonqueue.client.outcome import Current, running_in
from jsonqueue.client.payload import encode_value
from jsonqueue.config import Config
from jsonqueue.retry import Linear
from jsonqueue.simulation import sleeping
from jsonqueue.simulation.cast import PRODUCTION, Cast
from jsonqueue.simulation.probes import Probe
from jsonqueue.simulation.scenario import Fault, Habits, Scenario, draw, draw_fault
from jsonqueue.simulation.verdict import Verdict
from jsonqueue.simulation.wire import Weather
from jsonqueue.simulation.work import Arrival
from jsonqueue.simulation.world import World
from jsonqueue.task import AnyTask

__all__ = ["reproduce", "run_seed", "run_seeds", "scenario_of", "shrink", "simulate"]

_CRASHES = ("kill publisher broker", "kill consumer broker", "kill manager", "power cut", "kill consumer", "kill at operation")
_RATE = 4_000
"""Tasks a second that are published, if nothing else is said."""
_CONFIG = Config(retry=Linear(step_ms=20), attempts_max=1_000, lease_ms=2_000, flush_interval_ms=500, disk_reserve_bytes=0)
_ATTEMPTS = 20
"""Of a task that somebody's own handler runs, beyond those that crashes may take: one that fails each time must come to an end."""


def simulate(
    tasks: int | Sequence[Any] = 100,
    *,
    seed: int = 0,
    workers: int = 4,
    drop: float = 0.0,
    crashes: int = 0,
    handler: Callable[[AnyTask], object] | None = None,
    probes: Sequence[Probe] = (),
    config: Config | None = None,
    keep: bool = False,
) -> Verdict:
    """Run the real brokers on a simulated machine, and say what became of the tasks. The same arguments give the same run.

    ``tasks``: how many, or their payloads, as for ``publish``. ``handler`` is called for each delivery, as a consumer would call it, be it
    plain or ``async def``; a consumer may die right after it, and then it is called again for the same task. What it raises fails the
    attempt; ``verdict.totals.dead`` counts the tasks that came to nothing. What it awaits in ``asyncio.sleep`` takes no time, what it
    computes takes real time, and a ``Retry(after=...)`` is waited for in the simulated one (where consumers go on with their heartbeats,
    three in a lease of 2 s: for days, give a ``config`` with a longer one). ``drop``: share of the frames that Pipes lose. ``crashes``: so
    many processes, or the whole machine, die on the way. ``keep``: keep the whole trace.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, and must be at least 1")
    count, payloads = (tasks, []) if isinstance(tasks, int) else (len(tasks), list(tasks))
    if config is None and handler is not None:
        config = replace(_CONFIG, attempts_max=_ATTEMPTS + crashes)
    scenario = scenario_of(seed, workers=workers, tasks=count, drop=drop, crashes=crashes, config=config)
    work = [_arrival(seed, number, payload, scenario) for number, payload in enumerate(payloads)]
    called = handler and _as_a_consumer_calls(handler)
    return World(seed, scenario, keep=keep, work=work, handler=called, probes=probes).run()


def _as_a_consumer_calls(handler: Callable[[AnyTask], Any]) -> Callable[[AnyTask], object]:
    """Within a run that :func:`jsonqueue.current` knows, and to its end where it is a coroutine. (Where one runs already, as in a test that
    is one itself, no other could be awaited: each attempt would fail of that.)"""
    if is_async(handler):
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise TypeError("simulate() with an async handler is called from plain code: no other coroutine can run within this one")

    def run(task: AnyTask) -> object:
        running_in(Current(task))
        return sleeping.run(handler(task)) if is_async(handler) else handler(task)

    return lambda task: copy_context().run(run, task)


def _arrival(seed: int, number: int, payload: Any, scenario: Scenario) -> Arrival:
    chance = Random(f"{seed}/arrival/{number}")
    at_us = chance.randrange(scenario.spread_us)
    data = encode_value(payload, what="payload", config=scenario.config)
    lasts_us = chance.randint(*scenario.habits.work_us)
    return Arrival(at_us, lasts_us, chance.randrange(4), data=bytes(data))


def scenario_of(seed: int, *, workers: int, tasks: int, drop: float = 0.0, crashes: int = 0, config: Config | None = None) -> Scenario:
    """The scenario that a command line describes: crashes of every kind, at moments that the seed draws."""
    chance = Random(f"{seed}/crashes")
    spread_us = max(50_000, tasks * 1_000_000 // _RATE)
    work_us = (1_000, 15_000)
    lasts_us = max(spread_us, tasks * sum(work_us) // 2 // workers)  # until the last task is done, if nothing goes wrong
    faults = [draw_fault(chance, chance.choice(_CRASHES), lasts_us, workers) for _ in range(crashes)]
    return Scenario(
        publishers=4,
        consumers=workers,
        tasks=tasks,
        batch=max(1, min(100, tasks // 50)),
        spread_us=spread_us,
        habits=Habits(work_us=work_us),
        weather=Weather(drop=drop),
        faults=tuple(sorted(faults, key=lambda fault: (fault.at_us, fault.kind, fault.target))),
        config=config or _CONFIG,
    )


def run_seed(seed: int, scenario: Scenario | None = None, *, cast: Cast = PRODUCTION, keep: bool = False) -> Verdict:
    """One run. Without a scenario, that of the seed."""
    return World(seed, scenario or draw(seed), cast=cast, keep=keep).run()


def run_seeds(seeds: Iterator[int] | range, *, cast: Cast = PRODUCTION) -> Iterator[Verdict]:
    """A run for each seed, under the scenario of that seed."""
    for seed in seeds:
        yield run_seed(seed, cast=cast)


def reproduce(verdict: Verdict) -> str:
    """The line that runs it again."""
    scenario = verdict.scenario
    plain = {"workers": scenario.consumers, "tasks": scenario.tasks, "drop": scenario.weather.drop, "crashes": len(scenario.faults)}
    if scenario == scenario_of(verdict.seed, **plain):  # type: ignore[arg-type]
        return "jsonqueue simulate " + " ".join(f"--{name} {figure}" for name, figure in plain.items()) + f" --seed {verdict.seed}"
    if scenario == draw(verdict.seed):
        return f"jsonqueue simulate --swarm 1 --seed {verdict.seed}"
    return f"jsonqueue simulate --seed {verdict.seed} --scenario '{msgspec.json.encode(scenario).decode()}'"


def shrink(verdict: Verdict, *, cast: Cast = PRODUCTION, tries: int = 400) -> Verdict:
    """The same kind of failure from fewer faults and less of everything else; the verdict itself if nothing can be left out.

    Halves, then quarters, and so on, of the faults are left out (Zeller's ddmin); then what the wire does, one kind at a time; then tasks
    and participants. A smaller world is another world, so nothing is promised but that the result fails in the same way.
    """
    best = [verdict]
    for candidate in _smaller(lambda: best[0].scenario):
        if tries <= 0:
            break
        tries -= 1
        tried = run_seed(verdict.seed, candidate, cast=cast)
        if tried.kind == verdict.kind:
            best[0] = tried
    return best[0]


def _smaller(best: Callable[[], Scenario]) -> Iterator[Scenario]:
    """Candidates, each made from what is the smallest failing one at that moment."""
    size = len(best().faults)
    while size >= 1:
        at = 0
        while at < len(best().faults):
            before = best().faults
            yield replace(best(), faults=_without(before, at, size))
            if best().faults == before:
                at += size
        size //= 2
    for calm in ({"drop": 0.0}, {"duplicate": 0.0}, {"reorder": 0.0}, {"delay_us": (5, 60)}):
        yield replace(best(), weather=replace(best().weather, **calm))
    yield replace(best(), weather=Weather())
    for name in ("publishers", "consumers", "concurrency", "batch", "tasks"):
        while (figure := getattr(best(), name)) > 1:
            yield replace(best(), **{name: max(1, figure // 2)})
            if getattr(best(), name) == figure:
                break


def _without(faults: tuple[Fault, ...], at: int, size: int) -> tuple[Fault, ...]:
    return faults[:at] + faults[at + size :]
