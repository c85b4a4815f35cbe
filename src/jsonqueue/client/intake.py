"""From what a user hands in to what travels: options become a TaskIn, a TaskIn is checked, its payload becomes JSON bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from jsonqueue.client.payload import encode_value
from jsonqueue.config import Config
from jsonqueue.errors import InvalidTask
from jsonqueue.retry import RetryPolicy, policy_named
from jsonqueue.task import ID_PATTERN, PRIORITY_LIMIT, StoredTaskIn, TaskIn

__all__ = ["HasId", "check_id", "describe", "prepare"]

_is_id = re.compile(ID_PATTERN).fullmatch
_WALL_MS_MAX = 10**13 - 1
_ATTEMPTS_LIMIT = 1_000_000
_LOOKS_LIKE_EPOCH_S = 10**8
"""More seconds than this (three years) from now, or fewer since 1970, are most likely the one mistaken for the other."""


class HasId(Protocol):
    """A TaskHandle, or whatever else knows the id of a task."""

    @property
    def id(self) -> str: ...


def describe(
    data: Any,
    *,
    now_ms: int,
    id: str = "",  # noqa: A002 - the word that users type
    priority: int = 0,
    delay: float | timedelta | None = None,
    run_at: datetime | float | None = None,
    deadline: datetime | timedelta | float | None = None,
    attempts_max: int | None = None,
    retry: str | RetryPolicy | None = None,
    after: str | HasId | Iterable[str | HasId] = (),
) -> TaskIn[Any]:
    """The options of ``publish`` as a TaskIn. Raises :class:`InvalidTask` that names the option."""
    if delay is not None and run_at is not None:
        raise InvalidTask("delay and run_at were both given", hint="delay counts from now, run_at is a time: use one")
    return TaskIn(
        id=id,
        data=data,
        priority=priority,
        run_at_ms=_from_now_ms("delay", delay, now_ms) if delay is not None else 0 if run_at is None else _run_at_ms(run_at),
        deadline_ms=0 if deadline is None else _deadline_ms(deadline, now_ms),
        attempts_max=0 if attempts_max is None else _attempts(attempts_max),
        retry=None if retry is None else _policy(retry),
        after=() if after == () else _ids(after),
    )


def prepare(task: TaskIn[Any], *, task_id: str, config: Config) -> StoredTaskIn:
    """The task as it travels, under ``task_id``; every field checked, since the broker drops who sends it nonsense."""
    after = _ids(task.after) if task.after else ()
    if task.id not in ("", None):  # What is made up here is an id.
        check_id(task.id)
    _check_fields(task, task_id, after)
    data = encode_value(task.data, what="payload", config=config)
    return TaskIn(
        id=task_id, data=data, priority=task.priority, run_at_ms=task.run_at_ms, deadline_ms=task.deadline_ms,
        attempts_max=task.attempts_max, retry=task.retry, after=after,
    )  # fmt: skip


def check_id(task_id: object) -> str:
    """The id, if it is one."""
    if not isinstance(task_id, str):
        raise InvalidTask(
            f"invalid id {repr(task_id)[:200]}: an id is a str, and this is of type {type(task_id).__name__}", hint="give it as a str"
        )
    if not _is_id(task_id):
        raise InvalidTask(
            f"invalid id {task_id[:200]!r}",
            hint="an id is 1 to 128 letters, digits and . _ : @ -, and begins with a letter or a digit",
        )
    return task_id


def _check_fields(task: TaskIn[Any], task_id: str, after: tuple[str, ...]) -> None:
    # bool is an int to Python, and True is no priority.
    if type(task.priority) is not int or not -PRIORITY_LIMIT <= task.priority <= PRIORITY_LIMIT:
        raise _not_within(task_id, "priority", task.priority, -PRIORITY_LIMIT, PRIORITY_LIMIT)
    if type(task.run_at_ms) is not int or not 0 <= task.run_at_ms <= _WALL_MS_MAX:
        raise _not_within(task_id, "run_at_ms", task.run_at_ms, 0, _WALL_MS_MAX)
    if type(task.deadline_ms) is not int or not 0 <= task.deadline_ms <= _WALL_MS_MAX:
        raise _not_within(task_id, "deadline_ms", task.deadline_ms, 0, _WALL_MS_MAX)
    if type(task.attempts_max) is not int or not 0 <= task.attempts_max <= _ATTEMPTS_LIMIT:
        raise _not_within(task_id, "attempts_max", task.attempts_max, 0, _ATTEMPTS_LIMIT)
    if task.retry is not None:
        _check_policy(task.retry)
    for needed in after:
        check_id(needed)


def _not_within(task_id: str, name: str, value: object, least: int, most: int) -> InvalidTask:
    return InvalidTask(f"task {task_id}: {name} is {value!r}, and must be a whole number from {least:,} to {most:,}")


def _attempts(value: int) -> int:
    if type(value) is not int or value < 1:
        raise InvalidTask(f"attempts_max is {value!r}, and must be at least 1", hint="leave it out for the queue's default")
    return value


def _policy(retry: str | RetryPolicy) -> RetryPolicy:
    if not isinstance(retry, str):
        return retry
    try:
        return policy_named(retry)
    except ValueError as error:
        raise InvalidTask(str(error)) from None


def _check_policy(policy: object) -> None:
    """A policy object that a user made is checked only here: constructing it does not."""
    try:
        msgspec.convert(msgspec.to_builtins(policy), RetryPolicy)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidTask(f"retry: {error}", hint="use exponential, linear, never, or Exponential(...), Linear(...), Never()") from None


def _ids(after: str | HasId | Iterable[str | HasId]) -> tuple[str, ...]:
    if isinstance(after, str) or hasattr(after, "id"):
        after = (after,)  # type: ignore[assignment] # one stands for itself; a str must not be taken for its letters
    try:
        return tuple(one if isinstance(one, str) else one.id for one in after)  # type: ignore[union-attr]
    except (TypeError, AttributeError):
        raise InvalidTask(f"after is {after!r}", hint="give an id, a handle, or several of them in a list") from None


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run_at_ms(run_at: datetime | float) -> int:
    if isinstance(run_at, datetime):
        return _absolute_ms("run_at", run_at)
    seconds = _seconds("run_at", run_at)
    if 0 < seconds < _LOOKS_LIKE_EPOCH_S:
        raise InvalidTask(f"run_at={run_at!r} is a moment in the early 1970s", hint="to run it that many seconds from now, use delay=")
    return _within("run_at", seconds * 1000)


def _deadline_ms(deadline: datetime | timedelta | float, now_ms: int) -> int:
    if isinstance(deadline, datetime):
        return _absolute_ms("deadline", deadline)
    return _from_now_ms("deadline", deadline, now_ms)


def _absolute_ms(name: str, moment: datetime) -> int:
    if moment.tzinfo is None:
        raise InvalidTask(f"{name} has no time zone", hint="use datetime.now(timezone.utc), or .astimezone() on a local time")
    return _within(name, moment.timestamp() * 1000)


def _from_now_ms(name: str, wait: timedelta | float, now_ms: int) -> int:
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else _seconds(name, wait)
    if seconds < 0 or (name == "deadline" and seconds == 0):
        raise InvalidTask(f"{name}={wait!r} lies in the past")
    if seconds >= _LOOKS_LIKE_EPOCH_S and not isinstance(wait, timedelta):
        raise InvalidTask(
            f"{name}={wait!r} is counted from now, and that is more than three years",
            hint="for a moment in time, give a datetime with a time zone",
        )
    return _within(name, now_ms + seconds * 1000) if seconds else 0


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidTask(f"{name}={value!r} is no time", hint="give seconds, a timedelta, or a datetime with a time zone")
    return float(value)


def _within(name: str, moment_ms: float) -> int:
    if not 0 <= moment_ms <= _WALL_MS_MAX:
        raise InvalidTask(f"{name} lies outside the years 1970 to 2286")
    return round(moment_ms)
