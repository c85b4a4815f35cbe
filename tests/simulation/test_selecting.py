"""The simulated Pipes have the limits of real ones, and simulated publishers stay within them as real ones do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Raw

from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.channel.pipe import FRAME_MAX_BYTES
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame
from jsonqueue.event import Write, encode
from jsonqueue.simulation import Habits, run_seed
from jsonqueue.simulation.publisher import _in_parts
from jsonqueue.simulation.scenario import Scenario
from jsonqueue.simulation.selecting import SimulatedPipe, SimulatedSelector
from jsonqueue.simulation.verdict import Violation
from jsonqueue.task import TaskIn


def _pipe(**options: Any) -> SimulatedPipe:
    link: Any = SimpleNamespace(client=SimpleNamespace(name="p0"), broker=None, open=True, carry=lambda *given: None)
    return SimulatedPipe(SimulatedSelector(lambda: None), {}, link, **options)


def test_a_client_that_says_more_at_once_than_a_broker_takes_is_found() -> None:
    """n bytes arrive, n + 1 do not: a real broker would hang up, again and again."""
    pipe = _pipe(frame_max=10)
    pipe.arrive(b"x" * 10, {})
    assert pipe.read() == [b"x" * 10]
    with pytest.raises(Violation, match="p0 says 11 bytes at once; a broker takes 10"):
        pipe.arrive(b"x" * 11, {})


def test_what_no_frame_can_hold_is_not_said_to_a_client() -> None:
    """A broker hears of it as it does from a real Pipe."""
    pipe = _pipe()
    pipe.post(b"x" * FRAME_MAX_BYTES)
    with pytest.raises(BadFrame):
        pipe.post(b"x" * (FRAME_MAX_BYTES + 1))


def test_the_clients_of_a_world_have_the_limit_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of any Pipe, which marks have."""
    limits = set()

    class Noted(SimulatedPipe):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            limits.add(self._frame_max)

    monkeypatch.setattr("jsonqueue.simulation.process.SimulatedPipe", Noted)
    assert run_seed(1, Scenario(tasks=3, config=Config(payload_max_bytes=100, disk_reserve_bytes=0))).ok
    assert limits == {4 * 2**20 + 100, FRAME_MAX_BYTES}


def test_a_loop_that_sleeps_through_what_is_due_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated selector never waits, but it hears for how long it is to: a real one would not have come back."""
    scenario = Scenario(tasks=3, habits=Habits(failing=0.5), config=Config(disk_reserve_bytes=0))
    assert run_seed(1, scenario).ok
    monkeypatch.setattr(BrokerLoop, "_timeout", lambda self, wait_max_ms: wait_max_ms and wait_max_ms / 1000)
    verdict = run_seed(1, scenario)
    assert "would go to sleep" in str(verdict.violation)


def test_large_payloads_go_in_parts() -> None:
    """A hundred tasks of the largest payload in one write would be twenty times what a broker takes."""
    most = Config().payload_max_bytes
    batch = [TaskIn(id=f"t{number}", data=Raw(b'"%b"' % (b"x" * (most // 4 * (number % 5) or 8)))) for number in range(12)]
    parts = list(_in_parts(batch))
    assert [task for part in parts for task in part] == batch
    assert all(len(encode(Write(1, part))) <= Config().frame_max_bytes for part in parts)
    assert len(parts) < 8
    assert list(_in_parts(batch[:1])) == [batch[:1]]
