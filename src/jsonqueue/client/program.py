"""Any program as a consumer: the task's JSON on its standard input, its standard output is the result, its exit status the outcome.

=============  ========================================================================================================
exit status    outcome
=============  ========================================================================================================
0              done; the output is the result: as JSON if it is JSON, null if there is none, else as a string
75             not now (EX_TEMPFAIL): tried again after ``retry_after`` seconds, whatever the retry policy says
other          failed; the end of the standard error is kept with the task
killed         the same; so ends a program that runs longer than the time limit, or whose task was cancelled, with all that it
               started: by SIGTERM, and a second later by SIGKILL
=============  ========================================================================================================

``JSONQUEUE_TASK_ID`` and ``JSONQUEUE_ATTEMPT`` are in its environment. No shell is involved unless asked for, and nothing of the task ever
gets into the command line.
"""

from __future__ import annotations

import atexit
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import IO, Any

import msgspec

from jsonqueue.client.children import GRACE_S, end_group, kill_group, says_how, signal_group
from jsonqueue.client.limits import Limits, launcher, leave_no_core
from jsonqueue.client.outcome import ERROR_MAX_BYTES, NotStarted, Retry, Verdict, failure, failure_of
from jsonqueue.client.patience import Patience
from jsonqueue.client.payload import NULL, encode_value
from jsonqueue.clock import Clock, SystemClock
from jsonqueue.config import Config
from jsonqueue.errors import InvalidHandler, InvalidTask, is_want
from jsonqueue.event import encode
from jsonqueue.task import Task

__all__ = ["Program", "ProgramRunner"]

_TEMPFAIL = 75
_CHUNK_BYTES = 64 * 1024
_LINGER_S = 0.5
"""After a program has ended, how long to read what others that it started may still hold open."""
_LOOK_S = 0.05

_running: set[subprocess.Popen[bytes]] = set()
"""The programs that run for this process. After a fork they are its parent's."""
_ends = threading.Event()
"""Set when the interpreter ends."""


@atexit.register
def _end_all() -> None:
    """What nobody has stopped: a program has a process group of its own, and would run on when this process has ended, beside the next run
    of its task."""
    _ends.set()
    for process in tuple(_running):
        if process.returncode is None:
            kill_group(process)


os.register_at_fork(after_in_child=_running.clear)


class Program:
    """A command to be given to a Consumer as its handler: ``Consumer("queue_data", Program("convert - -resize 200x200 png:-"))``."""

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        shell: bool = False,
        retry_after: float = 10.0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        """``command``: split as a shell would, but run without one; ``shell=True``: by ``/bin/sh``. ``env``: in addition to ours.

        Raises :class:`InvalidHandler` for what is no command, no environment or no time.
        """
        self.arguments = _split(command, shell)
        self.path = _path_of(self.arguments[0])
        """What is run: a relative path is meant from where the Program is made, wherever this process or ``cwd`` goes."""
        self.retry_after = _wait(retry_after)
        self.env = _environment(env or {})
        self.cwd = None if cwd is None else os.path.abspath(_text(cwd, "no folder"))

    def __repr__(self) -> str:
        return f"Program({shlex.join(self.arguments)!r})"


def _split(command: str | Sequence[str], shell: bool) -> list[str]:
    try:
        if shell:
            return ["/bin/sh", "-c", _text(command if isinstance(command, str) else shlex.join(command), "no argument")]
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except (TypeError, ValueError) as error:
        raise InvalidHandler(f"{command!r} is no command: {error}") from None
    arguments = [_text(word, "no argument") for word in words]
    if not arguments:
        raise InvalidHandler("an empty command")
    if shutil.which(arguments[0]) is None:
        if os.path.isdir(arguments[0]):
            raise InvalidHandler(f"{arguments[0]} is a folder", hint="name a program in it")
        if os.path.isfile(arguments[0]):
            raise InvalidHandler(
                f"{arguments[0]} is not executable", hint=f"chmod +x {arguments[0]}, or name the program that runs it before it"
            )
        raise InvalidHandler(f"there is no program {arguments[0]!r}", hint="give its path, or look at PATH; built-ins need a shell")
    return arguments


def _path_of(program: str) -> str:
    """A name without a slash stays one: it is looked for in PATH each time."""
    return os.path.abspath(program) if os.sep in program else program


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    try:
        named = dict(given)
    except (TypeError, ValueError):
        raise InvalidHandler(f"env is {given!r}", hint="give a dict of strings") from None
    environment = {_text(name, "in no environment"): _text(value, "in no environment") for name, value in named.items()}
    if wrong := next((name for name in environment if "=" in name), None):
        raise InvalidHandler(f"{wrong!r} can be no name in an environment", hint="give a name without =")
    return environment


def _text(given: Any, what: str) -> str:
    """Refuse here what would stop the consumer with its first task."""
    try:
        text = os.fsdecode(given)
        os.fsencode(text)
    except (TypeError, UnicodeError):
        text = "\0"
    if "\0" in text:
        raise InvalidHandler(f"{given!r} can be {what}", hint="give strings without NUL")
    return text


def _wait(seconds: float) -> float:
    try:
        Retry(seconds)
    except (TypeError, ValueError):
        raise InvalidHandler(f"retry_after is {seconds!r}", hint="give seconds") from None
    return seconds


class ProgramRunner:
    """Runs the program of one slot, once a task. ``timeout``: seconds it may take (None: no limit). ``limits``: what it may use."""

    def __init__(
        self,
        program: Program,
        *,
        timeout: float | None,
        config: Callable[[], Config],
        clock: Clock | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._program = program
        self._limits = limits
        self._timeout = timeout
        self._config = config
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._token = 0
        self._doomed: int | None = None
        """The token of a task that was revoked before its program was there to be killed."""
        self._closed = False

    def prepare(self) -> None: ...

    def run(self, task: Task[Any]) -> Verdict:
        """Run the program on this task. Raises :class:`NotStarted`."""
        if _ends.is_set():
            raise NotStarted(f"{self._program.arguments[0]} is not started any more, for this process ends")
        try:
            process = self._start(task)
        except (OSError, MemoryError) as error:
            words = f"{self._program.arguments[0]} could not be started: {str(error) or repr(error)}"
            if is_want(error):
                raise NotStarted(words) from error
            return failure(task, words)
        _running.add(process)
        with self._lock:
            self._process, self._token = process, task.token
            if self._closed or self._doomed == task.token or _ends.is_set():
                kill_group(process)
        try:
            return self._watch(process, task)
        finally:
            with self._lock:
                self._process = None
            _end(process)
            _running.discard(process)

    def kill(self, token: int) -> None:
        """End the program if this is what it works on, as at a time limit: SIGTERM, a second later SIGKILL. Never blocks."""
        self._doomed = token
        if self._signal(token, signal.SIGTERM):
            timer = threading.Timer(GRACE_S, self._signal, (token, signal.SIGKILL))
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # No thread is to be had: then without the grace.
                self._signal(token, signal.SIGKILL)

    def dismiss(self) -> None:
        """Kill the program, if it runs, or is being started."""
        self._closed = True
        self._signal(self._token, signal.SIGKILL)

    def close(self) -> None:
        """The same; the thread that runs it sees to its end."""
        self.dismiss()

    def _signal(self, token: int, number: signal.Signals) -> bool:
        """To the program and all that it started, if this is what it works on; whether it is."""
        with self._lock:
            if self._process is None or token != self._token:
                return False
            signal_group(self._process, number)
            return True

    def _start(self, task: Task[Any]) -> subprocess.Popen[bytes]:
        mine = {"JSONQUEUE_TASK_ID": task.id, "JSONQUEUE_ATTEMPT": str(task.attempt)}
        command = [*(launcher(self._limits) if self._limits else ()), self._program.path, *self._program.arguments[1:]]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **self._program.env, **mine}, cwd=self._program.cwd, process_group=0,
        )  # fmt: skip
        if self._limits is None:
            leave_no_core(process.pid)
        return process

    def _watch(self, process: subprocess.Popen[bytes], task: Task[Any]) -> Verdict:
        most = self._config().payload_max_bytes
        with closing(_Talk(process, encode(task), out_max=most)) as talk:
            return self._hear_out(process, task, talk, most)

    def _hear_out(self, process: subprocess.Popen[bytes], task: Task[Any], talk: _Talk, most: int) -> Verdict:
        patience = Patience(self._timeout, self._clock)
        if not talk.to_the_end(patience):
            # SIGTERM first, so that it can clear up; what it says of that is kept.
            signal_group(process, signal.SIGTERM)
            talk.to_the_end(Patience(GRACE_S, SystemClock()))
            kill_group(process)
            return failure(task, f"timed out after {self._timeout:g} s, and was killed\n{talk.errors}".rstrip())
        if talk.too_much:
            kill_group(process)
            return failure(task, f"its output is more than {most:,} bytes (payload_max_bytes)")
        return self._verdict(task, process.wait(), talk)

    def _verdict(self, task: Task[Any], status: int, talk: _Talk) -> Verdict:
        if status == 0:
            return self._result(task, bytes(talk.output))
        if status == _TEMPFAIL:
            return failure_of(task, Retry(self._program.retry_after, f"exit status {_TEMPFAIL}: not now\n{talk.errors}".rstrip()))
        words = f"{talk.errors}\n{says_how(status)}".lstrip()
        return failure(task, self._limits.blamed(words) if self._limits else words)

    def _result(self, task: Task[Any], output: bytes) -> Verdict:
        text = output.strip()
        if not text:
            return NULL
        try:
            # Taken apart and written anew: one line, no NaN, whatever the program's own idea of JSON is.
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            value = output.decode("utf-8", "replace").rstrip("\n")
        try:
            return encode_value(value, what="result", config=self._config())
        except InvalidTask as error:
            return failure(task, f"its output cannot be kept: {error}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing that the program started is left behind."""
    end_group(process)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):  # it never read all of its input
                stream.close()


class _Talk:
    """Feeds a program and listens to it, all at once, so that neither side ever waits for the other with a full pipe."""

    def __init__(self, process: subprocess.Popen[bytes], said: bytes, *, out_max: int) -> None:
        self._process = process
        self._unsaid = memoryview(said)
        self._out_max = out_max
        self.output = bytearray()
        self._errors = bytearray()
        self._selector = selectors.PollSelector()  # which needs no open file of its own: there may be none left to be had
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._open(process.stdin, selectors.EVENT_WRITE, self._say)
        self._open(process.stdout, selectors.EVENT_READ, lambda stream: self._hear(stream, self.output))
        self._open(process.stderr, selectors.EVENT_READ, lambda stream: self._hear(stream, self._errors))

    @property
    def too_much(self) -> bool:
        """Whether it said more than is taken."""
        return len(self.output) > self._out_max

    @property
    def errors(self) -> str:
        """The end of its standard error."""
        return self._errors[-ERROR_MAX_BYTES:].decode("utf-8", "replace").rstrip()

    def to_the_end(self, patience: Patience) -> bool:
        """Talk until the program has ended and its streams with it; False when the time was up first (one may go on, then). A program
        that has closed its output may still read."""
        linger: Patience | None = None
        while self._selector.get_map() and not self.too_much:
            if patience.over:
                return False
            if linger is not None and linger.over:
                return True
            for key, _ in self._selector.select(patience.left_of(_LOOK_S)):
                if not key.data(key.fileobj):
                    self._shut(key.fileobj)
            if linger is None and self._process.poll() is not None:
                linger = Patience(_LINGER_S, SystemClock())
        return self.too_much or self._ends_in(patience)

    def close(self) -> None:
        """Listen no more."""
        self._selector.close()

    def _ends_in(self, patience: Patience) -> bool:
        """It has closed its output; that does not mean that it has ended."""
        try:
            self._process.wait(patience.left)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _open(self, stream: IO[bytes], what: int, handle: Callable[[IO[bytes]], bool]) -> None:
        os.set_blocking(stream.fileno(), False)
        self._selector.register(stream, what, handle)

    def _shut(self, stream: Any) -> None:
        self._selector.unregister(stream)
        with suppress(BrokenPipeError):
            stream.close()

    def _say(self, stream: IO[bytes]) -> bool:
        """Feed it; False when there is no more to say, or nobody to hear it."""
        try:
            self._unsaid = self._unsaid[os.write(stream.fileno(), self._unsaid[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return bool(self._unsaid)

    def _hear(self, stream: IO[bytes], into: bytearray) -> bool:
        """Listen; False at the end of the stream. Of a long standard error only the end is kept."""
        try:
            heard = os.read(stream.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return True
        into += heard
        if into is self._errors and len(into) > 2 * ERROR_MAX_BYTES:
            del into[:-ERROR_MAX_BYTES]
        return bool(heard)
