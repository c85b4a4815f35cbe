"""Probes: what a user claims of a run, checked at every turn of it.

::

    verdict = simulate(seed=7, tasks=200, crashes=2, probes=[
        assert_always("never more than 50 wait", lambda view: view.depth <= 50),
        assert_eventually("a task was delivered twice", lambda view: view.runs > view.tasks_started),
    ])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jsonqueue.simulation.verdict import Violation

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["Probe", "Probes", "View", "assert_always", "assert_eventually"]


class View:
    """What a probe may look at: the queue as its durable log tells it, at this moment."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def now_ms(self) -> float:
        """Virtual time since the beginning."""
        return self._world.scheduler.now_us / 1000

    @property
    def depth(self) -> int:
        """Tasks that have not ended."""
        return self._world.judge.shadow.open

    @property
    def runs(self) -> int:
        """How often a handler was started."""
        return self._world.judge.totals.runs

    @property
    def tasks_started(self) -> int:
        """How many different tasks were started at least once."""
        return len(self._world.meter.waits_us)

    @property
    def published(self) -> int:
        """Tasks that are durable."""
        return len(self._world.judge.shadow.numbers)

    @property
    def acknowledged(self) -> int:
        """Tasks whose publishers know that they are."""
        return len(self._world.judge.acknowledged_ids)

    def status(self, task_id: str) -> str | None:
        """How a task stands; None if it is not in the queue."""
        return self._world.judge.shadow.status_of(task_id)


class Probe(NamedTuple):
    """A claim."""

    name: str
    holds: Callable[[View], bool]
    always: bool


def assert_always(name: str, holds: Callable[[View], bool]) -> Probe:
    """It holds after every turn of the ConsumerBroker."""
    return Probe(name, holds, always=True)


def assert_eventually(name: str, holds: Callable[[View], bool]) -> Probe:
    """It has held after at least one turn, by the end."""
    return Probe(name, holds, always=False)


class Probes:
    """Those of one run."""

    def __init__(self, world: World, probes: Sequence[Probe]) -> None:
        self._view = View(world)
        self._always = [probe for probe in probes if probe.always]
        self._open = [probe for probe in probes if not probe.always]

    def look(self) -> None:
        """Check now."""
        for probe in self._always:
            if not probe.holds(self._view):
                raise Violation("probe", f"{probe.name!r} does not hold at {self._view.now_ms:.3f} ms")
        if self._open:
            self._open = [probe for probe in self._open if not probe.holds(self._view)]

    def at_the_end(self) -> None:
        """What should have held once, and never did."""
        self.look()
        if self._open:
            raise Violation("probe", f"{self._open[0].name!r} never held")
