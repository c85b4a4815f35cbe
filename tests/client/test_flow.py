"""What a flow says when its patience is over; time, the wire and the log are the test's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec import Raw

from client.fakes import FakeBroker
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client import direct
from jsonqueue.client.exchange import Exchange, Line
from jsonqueue.client.flow import Flow
from jsonqueue.client.patience import Patience
from jsonqueue.client.window import Batch
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable, ConnectionClosed, PublishUnknown
from jsonqueue.event import EventOwner, Write, decoder_for
from jsonqueue.task import TaskIn

FULL = "the publisher broker is not up: it waits for room on the disk"


class HandClock:
    now_ms = 0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def pass_by(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


class Manager:
    """Says ``words`` to the first who call, one a call; to all others nothing for as long as they wait."""

    def __init__(self, clock: HandClock, *words: str | Callable[[float], tuple[Pipe, Config]]) -> None:
        self.clock, self.words = clock, list(words)

    def connect(self, timeout: float) -> tuple[Pipe, Config]:
        if not self.words:
            self.clock.pass_by(timeout)
            raise BrokerUnavailable("q", cause="the manager did not answer in time", silent=True)
        word = self.words.pop(0)
        if isinstance(word, str):
            raise BrokerUnavailable("q", cause=word)
        return word(timeout)


def flow_over(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """One task is on its way; somebody else holds the log."""
    monkeypatch.setattr(direct, "append", lambda *_, **__: None)
    flow = Flow(
        Path("q"),
        Exchange(manager.connect, decoder_for(EventOwner.PUBLISHER_BROKER)),
        lambda *_: None,
        patience=Patience(30.0, manager.clock),
        clock=manager.clock,
        pause=manager.clock.pass_by,
    )
    flow.push(Batch([TaskIn(id="a", data=Raw(b"1"))], [0], 1))
    return flow


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FULL], f"({FULL})"),
        ([FULL, "too many clients"], "(too many clients)"),
        ([FULL, ""], "running on q"),
        ([], "(the manager did not answer in time)"),
    ],
    ids=["a reason", "another one since", "nobody there since", "none at all"],
)
def test_the_last_reason_that_was_told_is_the_one_to_give(words: Sequence[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that none was given in the last moment, when there was no time left to be told one."""
    with pytest.raises(BrokerUnavailable) as caught:
        flow_over(Manager(HandClock(), *words), monkeypatch).finish()
    assert str(caught.value).endswith(said)


def test_an_unknown_outcome_has_its_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task was on its way when the broker went, and the next one finds no room."""
    broker = FakeBroker(EventOwner.PUBLISHER)

    def hear_and_go(line: Line, *_: object) -> list[bytes]:
        broker.accept().hear(Write)
        line.close()
        raise ConnectionClosed("gone")

    monkeypatch.setattr(Line, "answer", hear_and_go)
    with pytest.raises(PublishUnknown) as caught:
        flow_over(Manager(HandClock(), broker.connect, FULL), monkeypatch).finish()
    broker.close()
    assert caught.value.cause == f"the connection was lost, and no broker came back: {FULL}"


def test_a_reason_is_forgotten_once_there_was_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had kept the task from going then is not what keeps it now."""
    broker = FakeBroker(EventOwner.PUBLISHER)

    def take_and_go(timeout: float) -> tuple[Pipe, Config]:
        pipe, config = broker.connect(timeout)
        broker.accept().hang_up()
        return pipe, config

    with pytest.raises(BrokerUnavailable, match="did not answer in time"):
        flow_over(Manager(HandClock(), FULL, take_and_go), monkeypatch).finish()
    broker.close()
