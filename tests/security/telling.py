"""Handlers that fail, each in a way of its own, and say nothing themselves of the task that they were given."""

from __future__ import annotations

import os
import time
from typing import Any

from jsonqueue.client.outcome import Cancel, Retry


class _Telling:
    def __init__(self, data: Any) -> None:
        self.data = data

    def __repr__(self) -> str:
        return repr(self.data)

    __str__ = __repr__


def boom(task: Any) -> None:
    card = task.data
    raise ValueError("no luck") from KeyError(len(card))


def come_again(task: Any) -> Any:
    raise Retry(1)


def give_up(task: Any) -> Any:
    return Cancel()


def no_json(task: Any) -> Any:
    return {"card": _Telling(task.data)}


def no_key(task: Any) -> Any:
    return {_Telling(task.data): {1}}


def large(task: Any) -> Any:
    return [task.data] * 100


def deep(task: Any) -> Any:
    return [[[[task.data]]]]


def leave(task: Any) -> Any:
    raise SystemExit(3)


def group(task: Any) -> Any:
    raise ExceptionGroup("both failed", [ValueError("one"), ValueError("two")])


def wait(task: Any) -> None:
    time.sleep(60 if os.getpid() else 0)


FAILING = (boom, come_again, give_up, no_json, no_key, large, deep, leave, group)
