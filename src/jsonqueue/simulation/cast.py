"""Whose code a run tests: production's own, or a broken one in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.storage.checkpoint import checkpoint

__all__ = ["PRODUCTION", "Cast"]


class Cast(NamedTuple):
    """Who is under test. Whoever wants to see a bug found puts a broken one here."""

    publisher_broker: Callable[..., PublisherBroker]
    consumer_broker: Callable[..., ConsumerBroker]
    checkpoint: Callable[..., Any]


PRODUCTION = Cast(PublisherBroker, ConsumerBroker, checkpoint)
"""The very objects of production."""
