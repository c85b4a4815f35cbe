"""jsonqueue: a durable task queue that needs no server.

All that a user needs is here: ``from jsonqueue import BrokerManager, Consumer, Publisher``. Each name is imported when it is first asked
for, so that ``import jsonqueue`` costs nothing, a publisher does not load the brokers, nor a broker the clients.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonqueue.broker.consumer_broker import ConsumerBroker
    from jsonqueue.broker.manager import BrokerManager
    from jsonqueue.broker.publisher_broker import PublisherBroker
    from jsonqueue.client.consumer import Consumer
    from jsonqueue.client.handle import TaskHandle
    from jsonqueue.client.holdings import ConsumerStats
    from jsonqueue.client.limits import Limits
    from jsonqueue.client.outcome import Cancel, Current, Retry, current
    from jsonqueue.client.program import Program
    from jsonqueue.client.publisher import Publisher, PublishSummary
    from jsonqueue.config import Config
    from jsonqueue.core.waiting import WaitingQueue
    from jsonqueue.errors import (
        BadFrame,
        BrokerFailed,
        BrokerUnavailable,
        ConnectionClosed,
        CorruptQueue,
        DiskFull,
        FileLost,
        FolderRefused,
        InvalidConfig,
        InvalidHandler,
        InvalidTask,
        JsonQueueError,
        LockLost,
        ManagerRunning,
        PublishRejected,
        PublishUnknown,
        Rejection,
        ReplayUnknown,
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
    "ConsumerStats",
    "CorruptQueue",
    "Current",
    "DiskFull",
    "Event",
    "EventOwner",
    "EventType",
    "Exponential",
    "FileLost",
    "FolderRefused",
    "InvalidConfig",
    "InvalidHandler",
    "InvalidTask",
    "JsonQueueError",
    "Limits",
    "Linear",
    "LockLost",
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
    "ReplayUnknown",
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

_HOMES = {
    "jsonqueue.broker.consumer_broker": ("ConsumerBroker",),
    "jsonqueue.broker.manager": ("BrokerManager",),
    "jsonqueue.broker.publisher_broker": ("PublisherBroker",),
    "jsonqueue.client.consumer": ("Consumer",),
    "jsonqueue.client.handle": ("TaskHandle",),
    "jsonqueue.client.holdings": ("ConsumerStats",),
    "jsonqueue.client.limits": ("Limits",),
    "jsonqueue.client.outcome": ("Cancel", "Current", "Retry", "current"),
    "jsonqueue.client.program": ("Program",),
    "jsonqueue.client.publisher": ("PublishSummary", "Publisher"),
    "jsonqueue.config": ("Config",),
    "jsonqueue.core.waiting": ("WaitingQueue",),
    "jsonqueue.event": ("Event", "EventOwner", "EventType"),
    "jsonqueue.retry": ("Exponential", "Linear", "Never"),
    "jsonqueue.task": ("AnyTask", "Attempt", "Outcome", "Task", "TaskIn", "TaskStatus"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # or a type checker would believe that every name is there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME_OF.get(name, "jsonqueue.errors")), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
