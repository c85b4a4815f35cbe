"""jsonqueue: a durable task queue that needs no server.

All that a user needs is here: ``from jsonqueue import BrokerManager, Consumer, Publisher``. What does work is imported when it is first
asked for, so that a publisher does not load the brokers, nor a broker the clients.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jsonqueue.config import Config
from jsonqueue.errors import (
    BadFrame,
    BrokerFailed,
    BrokerUnavailable,
    ConnectionClosed,
    CorruptQueue,
    DiskFull,
    FolderRefused,
    InvalidConfig,
    InvalidHandler,
    InvalidTask,
    JsonQueueError,
    LeaseLost,
    ManagerRunning,
    PublishRejected,
    PublishUnknown,
    Rejection,
    ResultTimeout,
    StorageError,
    SyncFailed,
    TaskFailed,
    TaskNotFound,
    TasksRejected,
    UnsupportedFormat,
)
from jsonqueue.event import Event, EventOwner, EventType
from jsonqueue.retry import Exponential, Linear, Never
from jsonqueue.task import AnyTask, Attempt, Outcome, Task, TaskIn, TaskStatus

if TYPE_CHECKING:
    from jsonqueue.broker.consumer_broker import ConsumerBroker
    from jsonqueue.broker.manager import BrokerManager
    from jsonqueue.broker.publisher_broker import PublisherBroker
    from jsonqueue.client.consumer import Consumer
    from jsonqueue.client.handle import TaskHandle
    from jsonqueue.client.outcome import Cancel, Retry, current
    from jsonqueue.client.program import Program
    from jsonqueue.client.publisher import Publisher, PublishSummary
    from jsonqueue.core.waiting import WaitingQueue

__all__ = [
    "AnyTask",
    "Attempt",
    "BadFrame",
    "BrokerFailed",
    "BrokerManager",
    "BrokerUnavailable",
    "Cancel",
    "Config",
    "ConnectionClosed",
    "Consumer",
    "ConsumerBroker",
    "CorruptQueue",
    "DiskFull",
    "Event",
    "EventOwner",
    "EventType",
    "Exponential",
    "FolderRefused",
    "InvalidConfig",
    "InvalidHandler",
    "InvalidTask",
    "JsonQueueError",
    "LeaseLost",
    "Linear",
    "ManagerRunning",
    "Never",
    "Outcome",
    "Program",
    "PublishRejected",
    "PublishSummary",
    "PublishUnknown",
    "Publisher",
    "PublisherBroker",
    "Rejection",
    "ResultTimeout",
    "Retry",
    "StorageError",
    "SyncFailed",
    "Task",
    "TaskFailed",
    "TaskHandle",
    "TaskIn",
    "TaskNotFound",
    "TaskStatus",
    "TasksRejected",
    "UnsupportedFormat",
    "WaitingQueue",
    "current",
]

_WHEN_ASKED_FOR = {
    "BrokerManager": "broker.manager",
    "Cancel": "client.outcome",
    "Consumer": "client.consumer",
    "ConsumerBroker": "broker.consumer_broker",
    "Program": "client.program",
    "PublishSummary": "client.publisher",
    "Publisher": "client.publisher",
    "PublisherBroker": "broker.publisher_broker",
    "Retry": "client.outcome",
    "TaskHandle": "client.handle",
    "WaitingQueue": "core.waiting",
    "current": "client.outcome",
}


def __getattr__(name: str) -> Any:
    if name not in _WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_WHEN_ASKED_FOR[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
