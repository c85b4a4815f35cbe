"""Runs handlers in child processes, one a slot, which can be killed: at their time limit, or because their task was cancelled.

Either way a handler may clear up first: the child is told by a Revoke, and it and all it started by SIGTERM; a second later SIGKILL comes.

A child stays for many tasks; it is replaced when it was killed or has died. See :mod:`jsonqueue.client.child` for its inside.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from jsonqueue.channel.forking import keep_from_forks
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.handlers import Address
from jsonqueue.client.limits import Limits
from jsonqueue.client.outcome import NotStarted, Verdict, failure
from jsonqueue.client.payload import check_limits
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, ConnectionClosed, InvalidHandler, InvalidTask, is_want
from jsonqueue.event import Assign, Complete, EventOwner, Fail, Failure, Join, Revoke, decoder_for, encode
from jsonqueue.task import Task

__all__ = ["GRACE_S", "ChildRunner", "end_group", "kill_group", "says_how", "signal_group"]

_BOOT_S = 60.0
"""A child that has not loaded its handler by then never will."""
_FAREWELL_S = 2.0
_ORPHAN_LOOKS, _ORPHAN_LOOK_S = 1_000, 0.001
"""Each look reaps an orphan, or waits for one that was killed."""
GRACE_S = 1.0
"""Between the SIGTERM, at a time limit or for a task that was cancelled, and the SIGKILL."""
_GUARD_HINT = 'the child runs the script to find it: what only the main program is to do belongs under `if __name__ == "__main__":`'

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); from jsonqueue.client.child import main; main()"


class ChildRunner:
    """One slot's child. ``timeout``: seconds a task may take (None: no limit). ``limits``: what it may use."""

    def __init__(self, address: Address, *, timeout: float | None, config: Callable[[], Config], limits: Limits | None = None) -> None:
        self._address = address
        self._limits = limits
        self._timeout = timeout
        self._config = config
        self._home = _current_folder()
        """From where relative places of modules are meant, wherever the program has gone when a child is started."""
        self._decode = decoder_for(EventOwner.CONSUMER)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None
        self._token = 0
        self._doomed: int | None = None
        """The token of a task that was revoked before it ran: its child may take a minute to load the handler."""
        self._revoked = False
        self._closed = False

    def prepare(self) -> None:
        """Start the child, unless there is one. Raises :class:`InvalidHandler` with what it said when its handler cannot be loaded, and
        ``OSError`` when there is no process to be had."""
        if self._process is None:
            self._spawn()
            self._greet()

    def run(self, task: Task[Any]) -> Verdict:
        """Let the child run it, within the time limit. Raises :class:`NotStarted`."""
        try:
            self.prepare()
        except (InvalidHandler, OSError, MemoryError) as error:
            words = f"its handler's process did not start: {str(error) or repr(error)}"
            if is_want(error):
                raise NotStarted(words) from error
            return failure(task, words)
        with self._lock:
            if self._doomed == task.token:
                return failure(task, "it was revoked before it began")  # which nobody hears of
            self._token = task.token
        try:
            return self._answer(task)
        finally:
            with self._lock:
                self._token, revoked, self._revoked = 0, self._revoked, False
            if revoked and self._process is not None:
                self._bury()

    def kill(self, token: int) -> None:
        """End the child's run, if this is what it runs, as at a time limit. Never blocks: who calls it reads for all slots."""
        with self._lock:
            if token != self._token:
                self._doomed = token
            if self._process is None or token != self._token or self._revoked:
                return
            self._revoked = True
            try:
                threading.Thread(target=self._end_revoked, args=(token, self._pipe), name="jsonqueue-revoke", daemon=True).start()
            except RuntimeError:  # No thread is to be had: then without the grace.
                kill_group(self._process)

    def _end_revoked(self, token: int, pipe: Pipe) -> None:
        """Beside the slot's thread, which hears of it from the child, or of the child's end."""
        if self._revoke(token, pipe) and self._signal(token, signal.SIGTERM):
            time.sleep(GRACE_S)
        self._signal(token, signal.SIGKILL)

    def _signal(self, token: int, number: signal.Signals) -> bool:
        """To the child and all that it started, if this is what it runs; whether it is."""
        with self._lock:
            if self._process is None or token != self._token:
                return False
            signal_group(self._process, number)
            return True

    def dismiss(self) -> None:
        """Let the child end: by itself if it is idle, else by force."""
        with self._lock:
            self._closed = True
            if self._process is not None and self._token:
                kill_group(self._process)
            if self._pipe is not None:
                self._pipe.close()

    def close(self) -> None:
        """The same, and wait for its end."""
        was = self._process
        self.dismiss()
        process = self._process or was  # which its slot's thread may bury by now, or have started just before
        if process is not None:
            self._await_end(process)

    def _await_end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            kill_group(process)
            process.wait()

    # ── life of a child ──────────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self) -> None:
        ours, theirs = Pipe.pair()
        given = [msgspec.json.encode(part).decode() for part in (self._address, self._limits)]
        places: list[object] = [*sys.path]  # strings, and what somebody put there that Python passes over
        given.append(json.dumps([os.path.join(self._home, place) if place else self._home for place in places if isinstance(place, str)]))
        command = [sys.executable, "-c", _BOOT, str(theirs), *given]
        try:
            with self._lock:
                if self._closed:
                    raise InvalidHandler("the consumer has stopped")
                # A group of its own: what kills the handler kills what the handler started, and Ctrl-C reaches neither.
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs,), process_group=0)
                self._pipe = keep_from_forks(Pipe(ours))
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)

    def _greet(self) -> None:
        """Wait until the child has loaded its handler; none of this counts against a task's time."""
        try:
            event = self._hear(_BOOT_S)
        except ConnectionClosed:
            event = None
        if isinstance(event, Join):
            return
        failed = event.failures[0] if isinstance(event, Fail) and event.failures else None
        said = failed.error if failed else f"it said {event!s:.200}"
        how = self._bury()
        if failed is not None and failed.retry_after_ms is not None:
            raise OSError(errno.EAGAIN, said)
        raise InvalidHandler(
            f"{self._address.function} cannot be loaded in a child process: {self._blamed(said) if event else how}",
            hint=_GUARD_HINT if self._address.script else "",
        )

    def _answer(self, task: Task[Any]) -> Verdict:
        assert self._pipe is not None
        try:
            self._pipe.send(encode(Assign([task])))
            event = self._hear(self._timeout)
        except ConnectionClosed:
            return failure(task, self._blamed(f"its handler's process died: {self._bury()}"))
        if event is None:
            self._end_by_force(task)
            return failure(task, f"timed out after {self._timeout:g} s, and was killed")
        if isinstance(event, Complete) and event.tokens == [task.token]:
            return self._checked(task, event)
        failed = event.failures[0] if isinstance(event, Fail) and event.failures else None
        if failed is not None and failed.token == task.token:
            return msgspec.structs.replace(failed, error=self._blamed(failed.error))
        self._bury()  # whatever it is up to, it is not this
        return failure(task, f"its handler's process said what is no outcome of this task: {failed.error if failed else event}")

    def _blamed(self, words: str) -> str:
        return words if self._limits is None else self._limits.blamed(words)

    def _end_by_force(self, task: Task[Any]) -> None:
        """Its time is up: SIGTERM, so that it can clear up, and a moment later SIGKILL, whatever it does. To it and to all it started."""
        assert self._process is not None
        assert self._pipe is not None
        if self._revoke(task.token, self._pipe):
            signal_group(self._process, signal.SIGTERM)
            with suppress(ConnectionClosed, BadFrame):
                self._pipe.receive(GRACE_S)  # whatever it says now comes too late
        self._bury()

    def _revoke(self, token: int, pipe: Pipe) -> bool:
        """Tell the child; whether it was there to be told. Among handlers SIGTERM alone means nothing: a service's whole group gets it when
        it stops."""
        try:
            pipe.send(encode(Revoke([""], [token])), timeout=GRACE_S)
        except ConnectionClosed:
            return False
        return True

    def _checked(self, task: Task[Any], event: Complete) -> Verdict:
        result = event.results[0]
        try:
            check_limits(bytes(result), what="result", config=self._config())
        except InvalidTask as error:
            return failure(task, f"its handler's result cannot be kept: {error}")
        return result

    def _hear(self, timeout: float | None) -> Any:
        """What the child says next; None when the time is up. Raises :class:`ConnectionClosed` when it is gone."""
        assert self._pipe is not None
        try:
            frames = self._pipe.receive(timeout)
            return self._decode(frames[0]) if frames else None
        except BadFrame as error:
            return Fail(0, [Failure("", 0, str(error))], 0)

    def _bury(self) -> str:
        """Be rid of the child, with all it has started; how it ended."""
        with self._lock:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        assert process is not None
        assert pipe is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # if it is dying by itself, let it say how
        status = process.poll()
        end_group(process)
        pipe.close()
        return says_how(process.returncode if status is None else status)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone: then so is what is relative to it
        return ""


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, and reap what of it is ours to reap.

    Whoever is the first process of a container (or a subreaper) is given the orphans: those of this group would stay zombies with us.
    """
    kill_group(process)
    process.wait()
    with suppress(ChildProcessError):  # none, or none any more
        for _ in range(_ORPHAN_LOOKS):
            if os.waitpid(-process.pid, os.WNOHANG) == (0, 0):
                time.sleep(_ORPHAN_LOOK_S)  # It is about to die.


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to all that it started."""
    signal_group(process, signal.SIGKILL)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A signal to the process and to all that it started."""
    with suppress(ProcessLookupError, PermissionError):  # gone already (macOS says the latter of a group of zombies)
        os.killpg(process.pid, number)


def says_how(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
