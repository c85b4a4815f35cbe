"""Consumers in containers of their own, who know themselves by a number that is not theirs here."""

from __future__ import annotations

import os
from random import Random

import pytest
from msgspec import Raw

from broker.speech import CONFIG, TickingClock
from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.liveness import is_alive
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.channel import registration
from jsonqueue.event import Assign, EventOwner, Join, Welcome, Write, decoder_for, encode
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.queue_file import QUEUE
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.repair import mend
from jsonqueue.task import TaskIn

NOBODY = 2**31


@pytest.mark.processes
def test_a_consumer_is_known_by_the_number_that_the_kernel_tells_of_it(tmp_path):
    """In a container of its own it may believe to be process 7: whether that one lives, here, says nothing of it."""
    with BrokerManager(tmp_path / "queue"):
        pipe, _ = registration.connect(tmp_path / "queue", EventOwner.CONSUMER, name="w")
        pipe.send(encode(Join("w", NOBODY, 1)))
        welcome = decoder_for(EventOwner.CONSUMER_BROKER)(pipe.receive(5)[0])
        pipe.close()
    assert isinstance(welcome, Welcome)
    assert welcome.label == f"w@{os.getpid()}"


def test_a_consumer_that_cannot_be_seen_is_not_taken_for_dead(tmp_path):
    """After its broker died it comes back with its token and keeps its lease, though no process here has its number."""
    files, clock = open_folder(tmp_path / "queue", create=True), TickingClock()
    publisher = PublisherBroker(files, clock, CONFIG, announce=lambda mark: None)
    publisher.open()
    publisher.step([(1, Write(1, [TaskIn(id="t", data=Raw(b"1"))]))], lambda peer, event: None)

    first = _broker(files, clock)
    first.met(1, 0)
    assigned = next(event for event in _said_to(first, [(0, publisher.mark), (1, Join("w", NOBODY, 1))]) if isinstance(event, Assign))
    token = assigned.tasks[0].token
    first.close()

    second = _broker(files, clock)
    _said_to(second, [(0, publisher.mark)])  # it looks for those who are gone before anybody is back
    second.met(1, 0)
    welcome = next(event for event in _said_to(second, [(1, Join("w", NOBODY, 0, ["t"], [token]))]) if isinstance(event, Welcome))
    assert welcome.stale == []
    second.close()
    publisher.close()
    files.shut()


@pytest.mark.parametrize("label", ["w", "w@", "w@x", "w@-1", "w@²", f"w@{NOBODY}", "w@99999999999999999999", "w@" + 5_000 * "9"])
def test_a_consumer_whose_number_was_changed_is_waited_for_or_dead(tmp_path, label):
    """By an edit of queue.json that was accepted, or damage to one of which the lines were kept: the broker starts all the same."""
    files, clock = open_folder(tmp_path / "queue", create=True), TickingClock()
    publisher = PublisherBroker(files, clock, CONFIG, announce=lambda mark: None)
    publisher.open()
    publisher.step([(1, Write(1, [TaskIn(id="t", data=Raw(b"1"))]))], lambda peer, event: None)
    first = _broker(files, clock)
    _said_to(first, [(0, publisher.mark), (1, Join("w", os.getpid(), 1))])
    first.close()
    publisher.close()
    final_checkpoint(files, config=CONFIG, at_ms=clock.wall_ms())
    queue = tmp_path / "queue" / QUEUE
    queue.write_text(queue.read_text().replace(f'"consumer":"w@{os.getpid()}"', f'"consumer":"{label}"'))
    assert mend(files, accept_loss=False, accept_edit=True, at_ms=clock.wall_ms()).ok
    publisher = PublisherBroker(files, clock, CONFIG, announce=lambda mark: None)
    publisher.open()
    second = _broker(files, clock, is_alive=is_alive)
    _said_to(second, [(0, publisher.mark), (2, Join("v", os.getpid(), 1))])
    clock.ms += CONFIG.lease_ms
    second.step([], lambda peer, event: None)
    assert load_state(files).state.tasks["t"].consumer in {"", f"v@{os.getpid()}"}
    second.close()
    publisher.close()
    files.shut()


def _broker(files, clock, *, is_alive=lambda pid: False) -> ConsumerBroker:
    broker = ConsumerBroker(files, clock, CONFIG, chance=Random(1), is_alive=is_alive)
    broker.open()
    return broker


def _said_to(broker, arrivals) -> list:
    said: list = []
    broker.step(arrivals, lambda peer, event: said.append(event))
    return said
