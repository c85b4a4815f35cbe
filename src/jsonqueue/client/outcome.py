"""What a handler may say, and how it becomes a verdict that travels.

A handler's whole contract: it returns (done, here is the result), raises :class:`Retry` (not now), raises :class:`Cancel` (never), or
raises anything else (failed). Retry and Cancel may be returned as well. ``verdict = run(task)`` never raises; settling it comes after.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from numbers import Real
from types import TracebackType
from typing import Any

from msgspec import Raw, Struct

from jsonqueue.client.payload import NULL, encode_value
from jsonqueue.config import Config
from jsonqueue.errors import InvalidTask, JsonQueueError
from jsonqueue.event import Failure
from jsonqueue.task import AnyTask, Task

__all__ = [
    "ERROR_MAX_BYTES",
    "NULL",
    "Cancel",
    "Current",
    "NotStarted",
    "Retry",
    "Verdict",
    "current",
    "cut",
    "end_fork",
    "failure",
    "failure_of",
    "forks",
    "inline",
    "run_here",
    "running_in",
    "verdict_of",
]

ERROR_MAX_BYTES = 16 * 1024
"""How much of a traceback or a standard error is kept with its task."""

_AFTER_MAX_S = 10**9

Verdict = Raw | Failure
"""The result as JSON, or what went wrong."""


class Retry(Exception):
    """Not now: try this task again after ``after`` (seconds or a timedelta; None: as its retry policy says).

    The attempt counts, so that a task cannot go round for ever; give tasks that wait for something a larger ``attempts_max``.
    """

    def __init__(self, after: float | timedelta | None = None, reason: str = "") -> None:
        super().__init__(reason or "the handler asked to be tried again")
        if after is not None:
            _require_wait(after)
        self.after = after
        self.reason = reason

    @property
    def after_ms(self) -> int | None:
        """The wait in milliseconds."""
        if self.after is None:
            return None
        seconds = self.after.total_seconds() if isinstance(self.after, timedelta) else self.after
        return min(max(0, round(seconds * 1000)), _AFTER_MAX_S * 1000)


def _require_wait(after: object) -> None:
    """Where it is said, so that the handler's own line stands in the traceback."""
    if isinstance(after, timedelta):
        return
    if isinstance(after, bool) or not isinstance(after, Real):
        raise TypeError(f"Retry(after={after!r}): give seconds or a timedelta")
    if not math.isfinite(after):
        raise ValueError(f"Retry(after={after!r}): give a finite number of seconds")


class Cancel(Exception):
    """Never: no further attempt, by the handler's own wish. The task ends as cancelled, for this reason."""

    def __init__(self, reason: object = "cancelled by its handler") -> None:
        """``reason``: a string, or what says it as one: ``raise Cancel(error)``."""
        super().__init__(reason)
        self.reason = str(reason)


class NotStarted(Exception):
    """What a runner raises instead of a verdict: for want of processes, memory or open files nothing of the task was begun."""


# ── who is running ───────────────────────────────────────────────────────────────────────────────────────────────────


class Current(Struct, eq=False):
    """What a handler can learn about its own run."""

    task: Task[Any] | None = None
    cancelled: bool = False
    """Turns True when the task was cancelled, or handed on to another consumer: whatever the handler says now counts no more."""


_current: ContextVar[Current] = ContextVar("jsonqueue_current")


def current() -> Current:
    """The run that this code is part of, for handlers: ``if jsonqueue.current().cancelled: return``.

    Raises :class:`JsonQueueError` anywhere else.
    """
    run = _current.get(None)
    if run is None or run.task is None:
        raise JsonQueueError(
            "no task is running here", hint="jsonqueue.current() is for handlers, in the thread or coroutine they were called in"
        )
    return run


def run_here() -> Current | None:
    """The run that this code may be part of."""
    return _current.get(None)


def running_in(run: Current) -> None:
    """From here on, in this thread or coroutine, :func:`current` is ``run``."""
    _current.set(run)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def verdict_of(task: Task[Any], value: object, config: Config) -> Verdict:
    """What a handler returned, as a verdict."""
    if value is None:
        return NULL
    if isinstance(value, (Retry, Cancel)):
        return failure_of(task, value)
    try:
        return encode_value(value, what="result", config=config)
    except InvalidTask as error:
        return failure(task, f"its handler's result cannot be kept: {error}")
    except Exception as error:  # noqa: BLE001 - the result's own code, a __repr__ or a property, must not take the consumer along
        return failure_of(task, error)


def failure_of(task: Task[Any], error: BaseException) -> Failure:
    """What a handler raised, as a verdict."""
    try:
        if isinstance(error, Retry):
            return Failure(task.id, task.token, cut(str(error)), retry_after_ms=error.after_ms)
        if isinstance(error, Cancel):
            return Failure(task.id, task.token, cut(str(error.reason)), cancel=True)
    except Exception as broken:  # noqa: BLE001 - one of a class of the user's own, whose __str__ raises, must not take the consumer along
        return failure(task, "".join(_traceback(broken)))
    return failure(task, "".join(_traceback(error)))


def failure(task: Task[Any], said: str) -> Failure:
    """A plain failure."""
    return Failure(task.id, task.token, cut(said))


def _traceback(error: BaseException) -> list[str]:
    try:
        lines = traceback.format_exception(type(error), error, _of_the_handler(error.__traceback__))
        return [*lines, _gist(error)] if isinstance(error, BaseExceptionGroup) else lines
    except Exception as broken:  # noqa: BLE001 - an exception whose own __str__ raises must not take the consumer along
        return [f"{type(error).__name__} (and showing it failed: {type(broken).__name__})"]


def _gist(group: BaseExceptionGroup[BaseException]) -> str:
    """One line, since the last line of a traceback is what stands for it, and that of a group is a frame."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    said = f"{type(group).__name__}: {group}, the first of them {type(first).__name__}: {first}"
    return " ".join(said.split()) + "\n"


def _of_the_handler(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frame on top."""
    return trace.tb_next if trace is not None and trace.tb_next is not None else trace


def cut(text: str, most: int = ERROR_MAX_BYTES) -> str:
    """The text, short enough to keep: its beginning, and above all its end. Lone surrogates, which JSON cannot carry, are spelled out."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most:
        return data.decode()
    head, gap = most // 4, "\n[... {} bytes ...]\n"
    tail = most - head - len(gap) - 8
    left_out = gap.format(len(data) - head - tail)
    return data[:head].decode("utf-8", "ignore") + left_out + data[-tail:].decode("utf-8", "ignore")


_forks = 0
"""How many forks there are between this process and the first."""


def _forked() -> None:
    global _forks  # noqa: PLW0603 - it belongs to the process
    _forks += 1


os.register_at_fork(after_in_child=_forked)


def forks() -> int:
    """Tells a process from those that it forks."""
    return _forks


def end_fork(born: int, error: BaseException | None = None) -> None:
    """A handler that began where :func:`forks` was ``born`` has ended. If it forked, and this is the child that came back out of it, this
    process ends here, as it would at the end of its program: it must not tell of the task, over a Pipe that is its parent's."""
    if born == _forks:
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


def inline(
    handler: Callable[[AnyTask], object], config: Callable[[], Config], *, but: tuple[type[BaseException], ...] = ()
) -> Callable[[AnyTask], Verdict]:
    """A sync handler as a function that never raises, ``but`` these, which are not the handler's."""

    def run(task: AnyTask) -> Verdict:
        born = _forks
        try:
            value = handler(task)
        except but:
            raise
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a handler is a failure of that task, not of the consumer
            end_fork(born, error)
            return failure_of(task, error)
        end_fork(born)
        return NULL if value is None else verdict_of(task, value, config())

    return run
