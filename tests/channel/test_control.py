"""What the manager and its brokers tell each other survives the way."""

from __future__ import annotations

import pytest

from jsonqueue.channel import control
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, CorruptQueue, StorageError, SyncFailed
from jsonqueue.event import EventOwner

ORDERS = [
    control.Start(EventOwner.PUBLISHER_BROKER, "/q", Config(lease_ms=500), 17, 4),
    control.Attach(3, EventOwner.CONSUMER, "worker", 18),
    control.Marks(),
    control.Rotate(5),
    control.Forget({"a": 1}, 9),
    control.Ask(6),
    control.Stop(),
    control.Stop(wait_max_ms=10_000),
]
NEWS = [
    control.Ready(4),
    control.Rotated(5),
    control.Rotated(5, progress=(7, 2), published=(8, 3)),
    control.Counters(6, 2, {"pending": 1}),
    control.Waiting("no room"),
    control.Crowded("full house"),
    control.Draining(3),
    control.Failed("SyncFailed", "no", "hint"),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_an_order_arrives_as_it_was_given(order):
    assert control.decode_order(control.encode(order)) == order


@pytest.mark.parametrize("news", NEWS, ids=lambda news: type(news).__name__)
def test_news_arrive_as_they_were_told(news):
    assert control.decode_news(control.encode(news)) == news


def test_neither_side_can_say_what_belongs_to_the_other():
    """An order is no news, and nonsense is neither."""
    with pytest.raises(BadFrame):
        control.decode_news(control.encode(control.Stop()))
    with pytest.raises(BadFrame):
        control.decode_order(control.encode(control.Ready(1)))
    with pytest.raises(BadFrame):
        control.decode_order(b"nonsense")


def test_the_error_that_ended_a_broker_is_the_error_the_manager_raises():
    """Class, sentence, hint and exit status cross the process boundary."""
    before = CorruptQueue("published-1-1.jsonl", offset=512, why="checksum", batch=3)
    after = control.error_of(control.failed_by(before))
    assert type(after) is CorruptQueue
    assert (after.message, after.hint, after.exit_status) == (before.message, before.hint, 65)
    assert type(control.error_of(control.failed_by(SyncFailed("no")))) is SyncFailed


def test_a_private_kind_of_an_error_arrives_as_the_public_one():
    """What a module refines for itself is still what it is."""

    class EditedQueue(CorruptQueue):
        pass

    error = EditedQueue("queue.json", offset=0, why="edited")
    assert type(control.error_of(control.failed_by(error))) is CorruptQueue


@pytest.mark.parametrize("name", ["NoSuchError", "annotations", "ClassVar"])
def test_an_error_that_is_not_known_here_is_a_storage_error(name):
    """A name from the wire is looked up among our errors, and only there."""
    assert type(control.error_of(control.Failed(name, "m", "h"))) is StorageError
