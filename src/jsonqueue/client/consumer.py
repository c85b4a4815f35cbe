"""Consumer: runs a handler on the tasks of a queue.

::

    def resize(task: Task) -> dict:
        ...
        return {"width": 200}

    Consumer("queue_data", resize, concurrency=4).run()

What the handler returns is the task's result. If it raises, the attempt has failed, and its traceback is kept with the task;
``Retry(after)`` and ``Cancel(reason)``, raised or returned, say more. A task may run more than once (its consumer may die after the work
and before the acknowledgement), but only one completion ever counts: ``task.id`` and ``task.attempt`` help to do the work only once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import index
from types import TracebackType
from typing import Any, Literal, Protocol

import msgspec

from jsonqueue.client.children import ChildRunner
from jsonqueue.client.exchange import Connect
from jsonqueue.client.folder import ServesFolder, folder_of
from jsonqueue.client.handlers import address_of, is_async, resolve
from jsonqueue.client.holdings import ConsumerStats, Holdings
from jsonqueue.client.intake import check_id
from jsonqueue.client.limits import Limits
from jsonqueue.client.naming import name_for, own_name
from jsonqueue.client.outcome import forks, run_here
from jsonqueue.client.patience import is_longer
from jsonqueue.client.presence import register
from jsonqueue.client.program import Program, ProgramRunner
from jsonqueue.client.session import Session
from jsonqueue.client.threads import InlineRunner, Runner, Threads, longer_pause
from jsonqueue.clock import stopwatch
from jsonqueue.config import Config
from jsonqueue.errors import is_want, words_of
from jsonqueue.event import EventOwner, decoder_for
from jsonqueue.signals import hangup, heeded

__all__ = ["Consumer", "ConsumerState", "Handler"]

Handler = str | Callable[[Any], Any] | Program
"""A function or coroutine function of one task, its name as ``module:function``, or a :class:`Program`."""

_log = logging.getLogger("jsonqueue.consumer")

ConsumerState = Literal["new", "waiting", "working", "draining", "stopped"]


class Consumer:
    """Takes tasks from the queue in ``queue_dir`` (a path, or a BrokerManager) and runs ``handler`` on each.

    ``concurrency``: how many at once, in threads; as coroutines if the handler is ``async``; in child processes with ``timeout`` (seconds,
    after which the handler is killed with all it started, and the attempt has failed) or with ``isolate=True`` (no limit, but what crashes
    or hogs the interpreter there hurts nobody here). Child processes find the handler by its name, so it must be a top-level function.
    ``limits`` bound what such a process may use of the machine; at its ``timeout``, or when its task was cancelled, it gets SIGTERM, and a
    second later SIGKILL. What a handler there, or a program, has left running in the background is killed with it; it lives on where
    that ends by itself, as a child process does at a :meth:`stop` between two tasks.

    ``name``: what people see of it in the queue, by default the handler's. A second one of a name, in one process on one queue, becomes
    ``name-2``.

    It waits for a broker if there is none, reconnects when one goes, and works on meanwhile. Heartbeats come from beside the handler, so
    however long it takes it keeps its task. How many tasks it holds ahead, it works out from how long they take.
    """

    def __init__(
        self,
        queue_dir: str | os.PathLike[str] | ServesFolder,
        handler: Handler,
        *,
        name: str | None = None,
        concurrency: int = 1,
        timeout: float | None = None,
        isolate: bool = False,
        limits: Limits | None = None,
        connect: Connect | None = None,
        timer: Callable[[], float] = stopwatch,
    ) -> None:
        """``connect`` and ``timer`` are the doors by which the wire and time come in; a user needs neither.

        Raises :class:`InvalidHandler` if the handler is not found or cannot be run as asked, :class:`InvalidTask` for a name that is none,
        and ``TypeError`` or ``ValueError`` for another option.
        """
        _check_options(concurrency, timeout, limits)
        self.queue_dir = folder_of(queue_dir)
        wanted = check_id(name) if name is not None else name_for(handler)
        self.name, self._give_name_back = own_name(self, self.queue_dir, wanted)
        self._holdings = Holdings(concurrency)
        self._connect = connect or self._register
        self._timer = timer
        self._timeout = timeout
        self._limits = limits
        self._crew = self._hire(handler, isolate=isolate or timeout is not None or limits is not None)
        self._state: Literal["new", "started", "stopped"] = "new"
        self._drained = True
        self._bell = _Bell()

    # ── blocking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, *, drain_timeout: float | None = None) -> None:
        """Work until SIGINT, SIGTERM or SIGHUP (in the main thread), or until another thread calls :meth:`stop`.

        The first signal drains: nothing more is started, what is running may end, what is done is acknowledged, unstarted tasks go back. A
        second one, or ``drain_timeout`` seconds, ends at once; what was running then will be delivered again. A SIGHUP that is ignored
        (``nohup``), or that the program heeds for itself, is left alone. Raises whatever stopped it. Where there are no threads to be had
        it waits until there are some.
        """
        self._require_new()  # before the bell of one that runs is hung anew
        with self._bell.hung() as ear, self._bell.rung_by_signals():
            rings = select.poll()  # select() takes no fd above 1023, of which a server may have many
            rings.register(ear, select.POLLIN)
            self._start(lambda seconds: bool(rings.poll(seconds * 1000)))
            try:
                rings.poll()
            finally:
                self._finish(drain_timeout)
        self._raise_failure()

    def _finish(self, drain_timeout: float | None) -> None:
        """Drain beside the main thread, which has to stay awake for the second signal."""
        stopper = threading.Thread(target=self.stop, args=(drain_timeout,), name="jsonqueue-stop", daemon=True)
        try:
            stopper.start()
        except RuntimeError:  # No thread is to be had: then here, and a second signal is of no avail.
            self.stop(drain_timeout)
            return
        while stopper.is_alive() and self._bell.rings < 2:
            stopper.join(0.1)
        if stopper.is_alive():
            self._tell_of_what_runs()
            self._session.close()
            self._crew.end()  # A program has a process group of its own, and would run on when this process has ended.

    # ── embedded ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to work, in threads of its own; returns at once. Raises :class:`InvalidHandler` if a child cannot load the handler, and
        what Python raises where there are no threads to be had: ``RuntimeError``."""
        self._start(None)

    def _start(self, rung: Callable[[float], bool] | None) -> None:
        """``rung`` waits so many seconds, and says whether to wait no more; None: do not wait for want of anything."""
        self._require_new()
        self._state, self._forks = "started", forks()
        try:
            pause_s = 0.0
            while (want := self._started()) is not None:
                if rung is None:
                    raise want
                if not pause_s:
                    _log.warning("%s; the consumer takes no tasks yet, and tries again after a pause, until that works", words_of(want))
                pause_s = longer_pause(pause_s)
                if rung(pause_s):
                    return
            if self._session.closed:  # Another thread has stopped it, and missed what was started since.
                self._crew.stop()
        except BaseException:
            self._session.close()
            self._crew.stop()
            self._state = "stopped"
            self._give_name_back()
            raise

    def _require_new(self) -> None:
        if self._state != "new":
            raise RuntimeError(f"this consumer was {self._state} before; make a new one")

    def _started(self) -> Exception | None:
        """Start what has not been; what it is short of, if it is not all there."""
        try:
            self._crew.start()
            self._session.start()
        except (RuntimeError, OSError, MemoryError) as error:
            if not is_want(error):
                raise
            return error
        return None

    def stop(self, timeout: float | None = 30.0) -> bool:
        """Drain for at most ``timeout`` seconds (None: as long as handlers take), then leave; whether all that ran was finished in time.

        What was still running then goes on in its thread if it cannot be killed, but counts no more: the task is delivered again.
        Several may call it: each returns when it is over, or its own time is. A handler of this consumer, for which it would wait in vain,
        is told False at once, and the consumer stops beside it.
        """
        if self._state != "started" or self._forks != forks():  # a child has none of its threads, and its Pipe is its parent's
            return self._drained
        if any(slot is run_here() for slot in self._holdings.slots):
            try:
                threading.Thread(target=self.stop, args=(timeout,), name="jsonqueue-stop", daemon=True).start()
            except RuntimeError:  # No thread is to be had: it takes no more, and who runs it, or stops it once more, ends it.
                self._session.drain(0)
                self._bell.ring()
            return False
        drained = self._session.drain(timeout)
        self._tell_of_what_runs()
        self._session.close()
        self._crew.stop()
        self._state, self._drained = "stopped", drained
        self._give_name_back()
        self._bell.ring()
        return drained

    def _tell_of_what_runs(self) -> None:
        """Where a consumer leaves it: to those who had no patience, or have not asked what :meth:`stop` says."""
        running = sum(1 for slot in self._holdings.slots if slot.task is not None and not slot.cancelled)
        if running == 1:
            _log.warning("stopped while 1 task was still running: its outcome counts no more, and this attempt is lost")
        elif running:
            _log.warning("stopped while %d tasks were still running: their outcomes count no more, and these attempts are lost", running)
        unconfirmed = self._holdings.unconfirmed
        if unconfirmed == 1:
            _log.warning("stopped before a broker confirmed 1 outcome: if it is not stored, its task runs again")
        elif unconfirmed:
            _log.warning("stopped before a broker confirmed %d outcomes: of those that are not stored the tasks run again", unconfirmed)

    def __enter__(self) -> Consumer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if kind is None:
            self._raise_failure()

    @property
    def state(self) -> ConsumerState:
        """``new``; ``waiting`` for a broker; ``working``, or waiting for work; ``draining``, which ends what runs; ``stopped``."""
        if self._state == "started":
            return "draining" if self._session.stopping else "working" if self._session.joined else "waiting"
        return self._state

    @property
    def running(self) -> int:
        """How many of its tasks are being run at this moment."""
        return self._holdings.running

    @property
    def stats(self) -> ConsumerStats:
        """What it counted since it started: a copy."""
        return msgspec.structs.replace(self._holdings.stats)

    def _raise_failure(self) -> None:
        if self._session.failure is not None:
            raise self._session.failure

    # ── making ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hire(self, handler: Handler, *, isolate: bool) -> _Crew:
        if isinstance(handler, Program):
            program = handler
            return self._threads(
                lambda: ProgramRunner(program, timeout=self._timeout, config=self._config, limits=self._limits), values=False
            )
        function = resolve(handler)
        if isolate:
            address = address_of(function)
            return self._threads(
                lambda: ChildRunner(address, timeout=self._timeout, config=self._config, limits=self._limits), values=False
            )
        if is_async(function):
            return self._coroutines(function)
        return self._threads(lambda: InlineRunner(function, self._config), values=True)

    def _threads(self, runner: Callable[[], Runner], *, values: bool) -> _Crew:
        """``values`` False: payloads stay JSON, for whoever hands them on."""
        self._session = self._make_session(values=values)
        slots = self._holdings.slots
        return Threads(self._session, slots, [runner() for _ in slots])

    def _coroutines(self, function: Callable[[Any], Any]) -> _Crew:
        from jsonqueue.client.coroutines import Coroutines  # noqa: PLC0415 - asyncio is 50 ms that only async handlers need

        crew = Coroutines(function, self._holdings.slots)
        self._session = crew.session = self._make_session(values=True, on_tasks=crew.on_tasks)
        return crew

    def _make_session(self, *, values: bool, on_tasks: Callable[[], None] | None = None) -> Session:
        decode = decoder_for(EventOwner.CONSUMER_BROKER, values=values)
        return Session(
            self._holdings,
            name=self.name,
            connect=self._connect,
            decode=decode,
            timer=self._timer,
            on_tasks=on_tasks,
            on_failure=self._on_failure,
        )

    def _on_failure(self) -> None:
        self._bell.ring()

    def _config(self) -> Config:
        return self._session.config

    def _register(self, timeout: float) -> Any:
        return register(self.queue_dir, EventOwner.CONSUMER, name=self.name, timeout=timeout)


def _check_options(concurrency: Any, timeout: Any, limits: object) -> None:
    """Refuse what would end a consumer in the midst of its work, or be told in words that name no option."""
    try:
        index(concurrency)
    except TypeError:
        raise TypeError(f"concurrency is {concurrency!r}: give a whole number") from None
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, and must be at least 1")
    if not is_longer(timeout, 0):
        raise ValueError(f"timeout is {timeout!r}, and must be more than 0 seconds")
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits is {limits!r}: give Limits(...), or None")


class _Crew(Protocol):
    def start(self) -> None: ...

    def end(self) -> None: ...

    def stop(self) -> None: ...


class _Bell:
    """Rung to end :meth:`Consumer.run`: by a signal, by another thread, or by a failure."""

    def __init__(self) -> None:
        self.rings = 0
        self._rope: socket.socket | None = None

    def ring(self) -> None:
        self.rings += 1
        rope = self._rope
        if rope is not None:
            with suppress(OSError):  # Full: nobody listens yet. Closed: nobody does any more.
                rope.send(b"!")

    @contextmanager
    def hung(self) -> Iterator[socket.socket]:
        """Within, there is something to listen to; it has rung if it was rung before."""
        # A socket, because a signal handler may do little more than write to one: taking a lock there can deadlock.
        ear, self._rope = socket.socketpair()
        self._rope.setblocking(False)
        try:
            if self.rings:
                self._rope.send(b"!")
            yield ear
        finally:
            ear.close()
            self._rope.close()

    @contextmanager
    def rung_by_signals(self) -> Iterator[None]:
        """Within (and within :meth:`hung`), SIGINT, SIGTERM and SIGHUP ring, if this is the main thread (no other can see to signals)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        assert self._rope is not None
        with heeded((signal.SIGINT, signal.SIGTERM, *hangup()), self._rope, self.ring):
            yield
