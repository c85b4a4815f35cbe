"""A seed in, a verdict out: the real brokers on a simulated machine, where everything may go wrong.

::

    from jsonqueue.simulation import simulate

    verdict = simulate(tasks=200, workers=5, crashes=3, drop=0.05, seed=42)
    assert verdict.ok, verdict.violation

Each name is imported when it is first asked for: a plugin of pytest is loaded from here, and must not make every start pay for a world.
See docs/simulation.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonqueue.simulation.probes import Probe, View, assert_always, assert_eventually
    from jsonqueue.simulation.running import reproduce, run_seed, run_seeds, shrink, simulate
    from jsonqueue.simulation.scenario import Fault, Habits, Scenario, draw
    from jsonqueue.simulation.verdict import Totals, Verdict, Violation
    from jsonqueue.simulation.wire import Weather

__all__ = [
    "Fault",
    "Habits",
    "Probe",
    "Scenario",
    "Totals",
    "Verdict",
    "View",
    "Violation",
    "Weather",
    "assert_always",
    "assert_eventually",
    "draw",
    "reproduce",
    "run_seed",
    "run_seeds",
    "shrink",
    "simulate",
]

_HOMES = {
    "jsonqueue.simulation.probes": ("Probe", "View", "assert_always", "assert_eventually"),
    "jsonqueue.simulation.running": ("reproduce", "run_seed", "run_seeds", "shrink", "simulate"),
    "jsonqueue.simulation.scenario": ("Fault", "Habits", "Scenario", "draw"),
    "jsonqueue.simulation.verdict": ("Totals", "Verdict", "Violation"),
    "jsonqueue.simulation.wire": ("Weather",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # or a type checker would believe that every name is there

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
