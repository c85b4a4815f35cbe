"""A seed in, a verdict out: the real brokers on a simulated machine, where everything may go wrong.

::

    from jsonqueue.simulation import simulate

    verdict = simulate(tasks=200, workers=5, crashes=3, drop=0.05, seed=42)
    assert verdict.ok, verdict.violation

See docs/simulation.md.
"""

from __future__ import annotations

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
