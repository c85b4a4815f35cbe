"""A pytest plugin: ``pytest -p jsonqueue.simulation.pytest_plugin --jsonqueue-seeds=1000``.

A test that asks for ``jsonqueue_seed`` runs once for each seed; with :func:`~jsonqueue.simulation.simulate` it sends a handler of its own
through the simulated queue, where consumers die between a handler's last line and its outcome::

    def test_charging_twice_is_impossible(jsonqueue_seed):
        charged = []
        def handler(task):
            if task.id not in charged:       # leave this line out, and a seed finds it
                charged.append(task.id)
        verdict = simulate(20, handler=handler, seed=jsonqueue_seed, workers=3, crashes=4)
        assert verdict.ok, verdict.violation
        assert len(charged) == len(set(charged))
"""

from __future__ import annotations

from typing import Any

__all__ = ["pytest_addoption", "pytest_generate_tests"]

_SEEDS = 20


def pytest_addoption(parser: Any) -> None:
    """``--jsonqueue-seeds=N`` and ``--jsonqueue-seed=S`` (that one alone)."""
    group = parser.getgroup("jsonqueue")
    group.addoption("--jsonqueue-seeds", type=int, default=_SEEDS, metavar="N", help=f"simulated worlds for each test (default: {_SEEDS})")
    group.addoption("--jsonqueue-seed", type=int, default=None, metavar="S", help="this world alone, as a failure named it")


def pytest_generate_tests(metafunc: Any) -> None:
    """A test that asks for ``jsonqueue_seed`` runs once a seed."""
    if "jsonqueue_seed" in metafunc.fixturenames:
        one = metafunc.config.getoption("--jsonqueue-seed")
        metafunc.parametrize("jsonqueue_seed", range(metafunc.config.getoption("--jsonqueue-seeds")) if one is None else [one])
