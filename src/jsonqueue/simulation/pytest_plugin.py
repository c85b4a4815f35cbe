"""A pytest plugin: ``pytest -p jsonqueue.simulation.pytest_plugin --jsonqueue-seeds=1000``.

The ``-p …`` may stand in ``addopts``. (It is not loaded by itself: as an entry point it would make pytest rewrite the assertions of all our
modules in the tests of everybody who has jsonqueue installed, which makes them a seventh slower there, and takes 0.35 s.)

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

Of the seeds that fail, the summary shows the line that runs that one alone.
"""

from __future__ import annotations

from typing import Any

__all__ = ["pytest_addoption", "pytest_generate_tests", "pytest_itemcollected", "pytest_terminal_summary"]

_SEEDS = 20
_SHOWN = 5


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


def pytest_itemcollected(item: Any) -> None:
    """The seed travels with the report, also from another process, and into a JUnit file."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "jsonqueue_seed" in parameters:
        item.user_properties.append(("jsonqueue_seed", parameters["jsonqueue_seed"]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each test that failed under some seed: how to run that seed alone."""
    seeds: dict[str, list[int]] = {}
    for report in terminalreporter.getreports("failed"):
        for name, seed in report.user_properties:
            if name == "jsonqueue_seed":
                seeds.setdefault(report.nodeid.partition("[")[0], []).append(seed)
    if seeds:
        terminalreporter.section("jsonqueue: the same world again")
    # Where it is not in addopts, the option would be unknown without it.
    loaded = any(__name__ in str(given) for given in terminalreporter.config.invocation_params.args)
    plugin = f"-p {__name__} " if loaded else ""
    for test, failed in seeds.items():
        others = f"  # as do seeds {', '.join(map(str, failed[1:_SHOWN]))}{' …' if len(failed) > _SHOWN else ''}" if failed[1:] else ""
        terminalreporter.write_line(f"pytest {plugin}'{test}' --jsonqueue-seed={failed[0]}{others}")
