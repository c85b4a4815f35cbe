"""The inside of a child process that runs a handler.

Its parent starts it with one end of a Pipe and speaks to it as a ConsumerBroker speaks to a consumer: ``assign`` with one task, answered by
``complete`` or ``fail``. A ``join`` of the child says that the handler is loaded; a ``fail`` without an id instead says why not, and with a
``retry_after_ms`` that it may well be another time.

The child does not outlive its parent: a thread of its own reads the Pipe from before the handler is loaded, and at its end the whole
process group goes, whatever the handler is doing. (One that is idle, or still loads its handler, may end as a program ends, within two
seconds.)

When its time is up, or its task was cancelled, its parent says ``revoke``, which raises an exception in the midst of the handler (an
``async`` one is cancelled by its event loop), and sends SIGTERM, for what the handler has started; a second later it kills them all.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import msgspec

from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.handlers import Address, is_async, load
from jsonqueue.client.limits import Limits, apply, renew_cpu
from jsonqueue.client.outcome import Current, Verdict, cut, end_fork, failure, forks, inline, run_here, running_in
from jsonqueue.config import Config
from jsonqueue.errors import ConnectionClosed, JsonQueueError, is_want
from jsonqueue.event import Complete, Event, EventOwner, Fail, Failure, Join, Revoke, decoder_for, encode
from jsonqueue.task import Task

__all__ = ["main"]

_AGAIN_S = 0.05
"""How soon the handler is told again that its time is up, if it has not noticed."""

_LOOP_ASKED_MAX = 4
"""An event loop that has not come round by then is held up by its handler: that is interrupted."""

_FAREWELL_S = 2.0
"""How long a program that has ended may take over what it does at its end."""

_LIMITS = Config(payload_max_bytes=32 * 1024 * 1024, depth_max=200, keys_max=2**62)
"""The queue's own limits are looked after by the parent, who knows them."""

_Tasks = queue.SimpleQueue[Task[Any] | None]
"""What there is to do, from the thread that listens to the one that works; None: nothing will be any more."""


def main() -> None:
    """``argv``: the fd of the Pipe, the address of the handler and its limits as JSON."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)  # not for whatever the handler starts
    address = msgspec.json.decode(sys.argv[2], type=Address)
    limits = msgspec.json.decode(sys.argv[3], type=Limits | None)
    sys.argv[1:] = []
    # Ctrl-C is for the parent, who decides; so is the SIGTERM that systemd sends to all of a service. What a handler starts
    # dies of a SIGTERM as ever: a signal that is caught, unlike one that is ignored, is not so for the programs it starts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_it_to_the_parent)
    pipe = Pipe(fd)
    os.register_at_fork(after_in_child=partial(_part, pipe))
    tasks: _Tasks = queue.SimpleQueue()
    here, born = _Run(), forks()
    try:
        apply(limits)
        if not _listens(pipe, tasks, here, limits):
            return
        run = _loaded(address)
    except BaseException as error:  # noqa: BLE001 - whatever the user's module raises when it is imported
        end_fork(born, error)
        _say(pipe, Fail(0, [Failure("", 0, _why(error), retry_after_ms=_again(limits) if is_want(error) else None)], 0))
        return
    end_fork(born)  # What the module forked has no listener, and would wait here for ever.
    _serve(pipe, run, limits, tasks, here)


def _leave_it_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def _part(pipe: Pipe) -> None:
    """In a process that the handler has forked: it dies of a SIGTERM as what the handler starts does, and does not keep the Pipe open, by
    whose end the parent sees that the child has died."""
    pipe.let_go()
    on_term = signal.getsignal(signal.SIGTERM)
    if on_term is _leave_it_to_the_parent or getattr(on_term, "func", None) is _on_term:  # else it is the handler's own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Run(Current, eq=False):
    told: bool = False
    """The exception was raised. It comes once, however often SIGTERM does: a second one would hit the handler while it clears up."""
    cancel: Callable[[], object] | None = None
    """Of an ``async`` handler: has the event loop cancel it, and note that as its being told."""
    asked: int = 0
    """How often the loop was asked to."""

    @property
    def unaware(self) -> bool:
        """Whether its handler is yet to be told that its time is up."""
        return self.cancelled and self.task is not None and not self.told


def _on_term(here: _Run, *_: object) -> None:
    if not here.unaware:
        return
    if here.cancel is not None and here.asked < _LOOP_ASKED_MAX:
        # In the midst of the loop's own code an exception would be lost, and with it the step that the handler waits for.
        here.asked += 1
        here.cancel()
        return
    here.told = True
    raise _TimeIsUp("its time is up, or its task was cancelled")


class _TimeIsUp(BaseException):
    """Raised in the midst of the handler, so that it can clear up: what it does not do in a second it never does."""


def _why(error: BaseException) -> str:
    return cut(str(error) if isinstance(error, JsonQueueError) else "".join(traceback.format_exception(error)))


def _again(limits: Limits | None) -> int | None:
    """When to try again what failed for want of memory, open files or processes: it passes, unless it is by the handler's own limit."""
    own = limits is not None and (limits.processes or limits.memory_bytes or limits.open_files)
    return None if own else 0


def _loaded(address: Address) -> Callable[[Task[Any]], Verdict]:
    handler = load(address)
    return _awaiting(handler) if is_async(handler) else inline(handler, lambda: _LIMITS)


def _awaiting(handler: Callable[[Task[Any]], Any]) -> Callable[[Task[Any]], Verdict]:
    import asyncio  # noqa: PLC0415 - 50 ms that a plain handler need not pay

    from jsonqueue.client.coroutines import acall  # noqa: PLC0415 - the same

    runner = asyncio.Runner()

    async def cancellable(task: Task[Any], here: _Run) -> Verdict:
        loop, me = asyncio.get_running_loop(), asyncio.current_task()

        def tell() -> None:
            if here.unaware and me is not None:
                here.told = me.cancel()

        here.cancel = lambda: loop.call_soon_threadsafe(tell)
        try:
            return await acall(handler, task, _LIMITS)
        finally:
            here.cancel = None

    def run(task: Task[Any]) -> Verdict:
        here = run_here()
        assert isinstance(here, _Run)
        try:
            return runner.run(cancellable(task, here))
        except (asyncio.CancelledError, _TimeIsUp):  # the handler's own doing, unless it was told to
            if here.told:
                runner.close()  # What it had running beside is cancelled as well, and awaited as it clears up.
            return failure(task, "the handler was cancelled")

    return run


def _serve(pipe: Pipe, run: Callable[[Task[Any]], Verdict], limits: Limits | None, tasks: _Tasks, here: _Run) -> None:
    running_in(here)
    signal.signal(signal.SIGTERM, partial(_on_term, here))
    _say(pipe, Join("child", os.getpid(), 1))
    while (task := tasks.get()) is not None:
        renew_cpu(limits)
        verdict = run(task)
        here.task = None
        if isinstance(verdict, Failure):
            _say(pipe, Fail(0, [verdict], 1))
        else:
            _say(pipe, Complete(0, [task.id], [task.token], [verdict], 1))


def _listens(pipe: Pipe, tasks: _Tasks, here: _Run, limits: Limits | None) -> bool:
    """Whether a thread listens from now on. If there was none to be had, the parent is told."""
    decode = decoder_for(EventOwner.CONSUMER_BROKER, values=True)  # not in the thread: the module may fork while that makes it
    listener = threading.Thread(target=_listen, args=(pipe, decode, tasks, here), daemon=True)
    # It takes no signal, be it that the module blocks one for itself, to wait for it: the process would die of it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        listener.start()
    except RuntimeError as error:  # No thread is to be had: that passes, unless it is by the handler's own limit.
        _say(pipe, Fail(0, [Failure("", 0, str(error), retry_after_ms=_again(limits))], 0))
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def _listen(pipe: Pipe, decode: Callable[[bytes], Any], tasks: _Tasks, here: _Run) -> None:
    try:
        while True:
            for frame in pipe.receive(_AGAIN_S if here.unaware else None):
                event = decode(frame)
                if isinstance(event, Revoke):
                    here.cancelled = True
                else:
                    (here.task,) = event.tasks
                    tasks.put(here.task)
            if here.unaware:
                # From here and not from the parent: a SIGTERM from there might come before its Revoke, and mean nothing yet.
                # Again and again: one that comes between Python's look for signals and a call that waits, a sleep, does not end the wait.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    except ConnectionClosed:
        if here.task is None:
            tasks.put(None)  # idle, or about to be: end as a program ends,
            time.sleep(_FAREWELL_S)  # unless something keeps it: a thread that the handler has left behind, or the loading of it
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        tasks.put(None)


def _say(pipe: Pipe, event: Event) -> None:
    with suppress(ConnectionClosed):  # The parent is gone: the listener sees to the rest.
        pipe.send(encode(event))
