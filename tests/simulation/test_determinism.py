"""The same seed is the same run: twice here, under other hash seeds, on other versions of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import msgspec
import pytest

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.holdings import Holdings
from jsonqueue.client.membership import Membership
from jsonqueue.client.patience import Patience
from jsonqueue.client.publisher import Publisher
from jsonqueue.client.window import Window
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.simulation import Fault, Scenario, draw, run_seed, simulate
from jsonqueue.simulation.cast import PRODUCTION
from jsonqueue.simulation.world import World
from jsonqueue.storage.checkpoint import checkpoint

SOURCE = Path(__file__).resolve().parents[2] / "src"
PARTS = 4
SEEDS, SHORT_SEEDS = range(700, 712), range(1_000)
"""Those of worlds of all sizes, and of short ones."""
PROGRAM = """
import sys
from jsonqueue.simulation import draw, run_seed
for word in sys.argv[1:]:
    seed = int(word.removeprefix("short-"))
    print(word, run_seed(seed, draw(seed, short=word != str(seed))).digest)
"""


def digests(python: str, hash_seed: str, part: int) -> list[str]:
    """For each seed of this part, the digest of its trace."""
    seeds = [*map(str, SEEDS[part::PARTS]), *(f"short-{seed}" for seed in SHORT_SEEDS[part::PARTS])]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": hash_seed}
    command = [python, "-c", PROGRAM, *seeds]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=170, check=True, env=environment).stdout.splitlines()
    assert [line.split()[0] for line in lines] == seeds
    return lines


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_seed_is_one_run_whatever_the_hash_seed(part: int) -> None:
    """Sets and dicts of strings are ordered anew in each process; none of a thousand runs depends on it."""
    assert digests(sys.executable, "1", part) == digests(sys.executable, "2", part)


@pytest.mark.slow
@pytest.mark.timeout(800)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_seed_is_one_run_on_every_python(part: int) -> None:
    """The traces of all supported versions are the same, byte by byte: of those installed, or named in JSONQUEUE_PYTHONS."""
    others = other_pythons()
    if not others:
        pytest.skip("no other Python with msgspec here; JSONQUEUE_PYTHONS may name some")
    here = digests(sys.executable, "0", part)
    for python in others:
        assert digests(python, "0", part) == here, python


def other_pythons(*packages: str) -> list[str]:
    """Those installed, or named in JSONQUEUE_PYTHONS, that have the packages that it takes."""
    named = os.environ.get("JSONQUEUE_PYTHONS", "").split(os.pathsep)
    found = [shutil.which(f"python{version}") for version in ("3.11", "3.12", "3.13")]
    needed = ", ".join(("msgspec", "orjson", "filelock", *packages))
    return [python for python in (*named, *found) if python and _can_import(python, needed)]


def _can_import(python: str, packages: str) -> bool:
    return not subprocess.run([python, "-c", f"import {packages}"], capture_output=True, check=False).returncode


LOGGED = (41, 5)
"""A world of milliseconds with seven kinds of faults, and one that lasts for days."""


def log_of(python: str, hash_seed: str, seed: int) -> str:
    """What the command prints, line by line, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": hash_seed}
    command = [python, "-m", "jsonqueue", "simulate", "--scenario", msgspec.json.encode(draw(seed)).decode(), "--seed", str(seed), "--log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", LOGGED)
def test_two_logs_of_a_seed_differ_in_nothing(seed: int) -> None:
    """`simulate --log` in processes of their own, under other hash seeds and by every Python there is: the diff is empty."""
    one = log_of(sys.executable, "1", seed)
    assert one.count("\n") > 100
    for python, hash_seed in [(sys.executable, "2"), *((python, "3") for python in other_pythons("click", "rich"))]:
        other = log_of(python, hash_seed, seed)
        difference = "".join(unified_diff(one.splitlines(True), other.splitlines(True), "one", f"{python}, hash seed {hash_seed}"))
        assert not difference, difference[:4_000]


def test_the_full_trace_is_the_same_too() -> None:
    """`--log` twice differs in nothing."""
    traces = []
    for _ in range(2):
        world = World(17, draw(17), keep=True)
        world.run()
        traces.append([str(entry) for entry in world.trace.entries])
    assert traces[0] == traces[1]
    assert len(traces[0]) > 100


def test_what_runs_is_what_production_runs() -> None:
    """Nothing under test is a copy, a subclass or a stand-in."""
    world = World(1, Scenario(tasks=4))
    world.run()
    assert tuple(PRODUCTION) == (PublisherBroker, ConsumerBroker, checkpoint)
    assert world.publisher_broker is not None
    assert world.consumer_broker is not None
    assert type(world.publisher_broker.broker) is PublisherBroker
    assert type(world.consumer_broker.broker) is ConsumerBroker
    assert {type(broker.loop) for broker in (world.publisher_broker, world.consumer_broker)} == {BrokerLoop}
    consumer, publisher = Consumer("queue_data", print), world.publishers[0]
    session = consumer._session
    assert type(session._membership) is type(world.consumers[0].membership) is Membership
    assert type(session._holdings) is type(world.consumers[0].holdings) is Holdings
    flow = Publisher("queue_data")._flow(lambda *answer: None, Patience(1.0, SystemClock()))
    assert type(flow._window) is type(publisher.window) is Window
    assert type(flow._patience) is type(publisher._patience) is Patience


def test_nothing_under_test_knows_of_the_simulation() -> None:
    """No module below the simulation names it, so no code of production can tell."""
    below = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE / "jsonqueue").parts[0] not in {"simulation", "cli"}]
    assert len(below) > 50
    assert [path for path in below if "jsonqueue.simulation" in path.read_text()] == []


def test_a_quiet_world_loses_no_time_and_no_task() -> None:
    """Without faults each task runs once."""
    verdict = simulate(50, workers=3, seed=5)
    assert verdict.ok, verdict.violation
    assert (verdict.totals.completed, verdict.totals.runs, verdict.totals.redelivered) == (50, 50, 0)
    assert verdict.faults == {}


def test_faults_happen_when_they_are_asked_for() -> None:
    """A power cut and a dead consumer leave their marks in the account."""
    faults = (Fault(30_000, "power cut"), Fault(60_000, "kill consumer"))
    verdict = run_seed(9, Scenario(tasks=80, spread_us=100_000, faults=faults))
    assert verdict.ok, verdict.violation
    assert verdict.faults == {"power cut": 1, "kill consumer": 1}


def test_time_is_compressed_a_thousandfold() -> None:
    """Two simulated hours of a slow queue take less than seven seconds."""
    scenario = Scenario(tasks=200, spread_us=7_200_000_000, faults=(Fault(3_000_000_000, "power cut"),), config=Config(attempts_max=9))
    verdict = run_seed(3, scenario)
    assert verdict.ok, verdict.violation
    assert verdict.virtual_ms >= 7_000_000
    assert verdict.virtual_ms / 1000 > 1_000 * verdict.took_s
