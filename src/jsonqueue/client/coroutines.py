"""Runs ``async def`` handlers: one thread with one event loop, a coroutine a slot.

The session's keeper does the I/O, so that heartbeats go on should a handler block the loop.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from jsonqueue.client.holdings import Slot
from jsonqueue.client.outcome import Verdict, end_fork, failure, failure_of, forks, running_in, verdict_of
from jsonqueue.client.payload import NULL
from jsonqueue.client.session import Session
from jsonqueue.config import Config
from jsonqueue.task import Task

__all__ = ["Coroutines", "acall"]

_JOIN_S = 5.0


class Coroutines:
    """The event loop of a consumer."""

    def __init__(self, handler: Callable[[Task[Any]], Awaitable[object]], slots: Sequence[Slot]) -> None:
        self._handler = handler
        self._free = list(reversed(slots))
        self._runs: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event
        self._ready = threading.Event()
        self._unmade: BaseException | None = None
        """Why there is no loop to be had."""
        self._thread: threading.Thread | None = None
        self.session: Session

    def start(self) -> None:
        """Start the loop. Where there is no thread to be had, or no open file for it, it may be called again."""
        if self._thread is None or self._thread.ident is None:
            self._thread = threading.Thread(target=self._serve, name="jsonqueue-loop", daemon=True)
            self._thread.start()
        self._ready.wait()
        if self._unmade is not None:
            self._thread, unmade, self._unmade = None, self._unmade, None
            self._ready.clear()
            gc.collect()  # asyncio leaves half a loop behind, in a circle, which holds an open file: there are none to be had already
            raise unmade

    def end(self) -> None:
        """Cancel what still runs and end the loop. The session is closed already."""
        self._call(self._set_ended)

    def stop(self) -> None:
        """The same, and wait for its thread to end."""
        self.end()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def on_tasks(self) -> None:
        """There is something to do. Called from other threads."""
        self._call(self._fill)

    def _call(self, what: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop has ended: there is nobody left to tell.
                self._loop.call_soon_threadsafe(what)

    def _serve(self) -> None:
        try:
            with asyncio.Runner() as runner:
                while not self._served(runner):
                    pass
        except BaseException as error:  # noqa: BLE001 - no handler's fault (those are caught): the consumer must end and say so
            if self._loop is None:
                self._unmade = error.with_traceback(None)  # which start() raises
            else:
                self.session.fail(error)
        finally:
            self._ready.set()

    def _served(self, runner: asyncio.Runner) -> bool:
        """Run the loop; whether to its end."""
        try:
            runner.run(self._main())
        except (SystemExit, KeyboardInterrupt):
            # Of a part of a handler, which is a task by itself: asyncio hands these two on to whoever awaits it, and also stops its loop.
            return False
        except BaseException as error:  # noqa: BLE001 - somebody has stopped the loop: the consumer must end and say so
            # Before the runner cancels what runs: each slot would take another task, which nobody would run, and keep it.
            self.session.fail(error)
        return True

    async def _main(self) -> None:
        if self._loop is None:
            self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
            self._ready.set()
        await self._ended.wait()  # what still runs then, the runner cancels

    def _set_ended(self) -> None:
        self._ended.set()

    def _fill(self) -> None:
        while self._free and not self._ended.is_set():
            slot = self._free.pop()
            task = self.session.try_next(slot)
            if task is None:
                self._free.append(slot)
                return
            self._begin(slot, task)

    def _begin(self, slot: Slot, task: Task[Any]) -> None:
        run = asyncio.create_task(self._run(slot, task))
        self._runs.add(run)  # the loop itself holds its tasks but weakly
        run.add_done_callback(lambda run: self._over(slot, task, run))
        # If it was revoked before this line, it sees so itself.
        slot.kill = lambda token: self._call(run.cancel) if token == task.token else None

    async def _run(self, slot: Slot, task: Task[Any]) -> None:
        running_in(slot)
        self._go_on(slot, await self._judge(slot, task))

    def _over(self, slot: Slot, task: Task[Any], run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        if run.cancelled():  # before its first step, or it would have seen to its slot itself
            self._go_on(slot, failure(task, "the handler was cancelled"))

    def _go_on(self, slot: Slot, verdict: Verdict) -> None:
        following = self.session.try_next(slot, verdict)
        if following is not None and not self._ended.is_set():
            self._begin(slot, following)
        else:
            self._free.append(slot)

    async def _judge(self, slot: Slot, task: Task[Any]) -> Verdict:
        if slot.cancelled:
            return NULL
        try:
            return await acall(self._handler, task, self.session.config)
        except asyncio.CancelledError:
            # Ours, because the task was revoked (then this verdict is dropped), or the handler's own doing.
            return failure(task, "the handler was cancelled")


async def acall(handler: Callable[[Task[Any]], Awaitable[object]], task: Task[Any], config: Config) -> Verdict:
    """Await the handler to its verdict. Only a cancellation passes through."""
    born = forks()
    try:
        value = await handler(task)
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - sys.exit() in a handler is a failure of that task, not of the loop
        end_fork(born, error)
        return failure_of(task, error)
    end_fork(born)
    return verdict_of(task, value, config)
