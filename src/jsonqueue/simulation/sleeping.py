"""Runs a coroutine to its end, without the time that it only sleeps.

A handler of somebody's own is not simulated: what it computes takes the time that it takes. But ``await asyncio.sleep(3 * 86_400)`` would
hold up the whole world for three days, in which nothing at all happens. So a clock that moves on by itself stands in for sleep, as long as
there is nothing else that the coroutine could be waiting for: no socket, no process, no thread. Where there is, time is the real one.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from asyncio import Future
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

__all__ = ["Loop", "run"]


def run(coroutine: Coroutine[Any, Any, object]) -> object:
    """What it returns. Raises what it raises."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(coroutine)


class Loop(asyncio.SelectorEventLoop):
    """An event loop of one coroutine, in whose clock sleep is over at once."""

    def __init__(self) -> None:
        self._sleepless = _Sleepless()
        super().__init__(self._sleepless)

    @property
    def skipped_s(self) -> float:
        """How much was only slept so far."""
        return self._sleepless.skipped_s

    def time(self) -> float:
        """The clock that sleeps and timeouts go by."""
        return super().time() + self._sleepless.skipped_s

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Future[Any]:  # type: ignore[override]
        """As ever; from here on, time is the real one."""
        self._sleepless.threaded = True
        return super().run_in_executor(executor, func, *args)


class _Sleepless(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.skipped_s = 0.0
        self.threaded = False
        self._threads = threading.active_count()

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self._others:
            return super().select(timeout)
        self.skipped_s += timeout
        return ready

    @property
    def _others(self) -> bool:
        """Whether anybody may wake the coroutine but its own alarm clock. (One descriptor is the loop's own.)"""
        return self.threaded or len(self.get_map()) > 1 or threading.active_count() > self._threads
