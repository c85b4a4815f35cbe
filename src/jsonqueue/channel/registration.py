"""How a process gets its Pipe: it asks the BrokerManager over the Unix socket in the queue folder.

One connection serves one request and is closed then. Frames as in :mod:`jsonqueue.channel.pipe`, bodies JSON, at most 4 KiB towards the
manager, which speaks only after it was asked:

=================  ===========================================  ==================================================================
client sends       manager answers                              and then
=================  ===========================================  ==================================================================
``register``       ``registered`` with one fd (SCM_RIGHTS)      the client talks to its broker over that fd: its own Pipe
``operate``        ``report``, when the thing asked is done     closes
either             ``refused``, and why                         closes
=================  ===========================================  ==================================================================

The folder is 0700 and the socket 0600, and either end looks at the other one's uid besides. While the broker asked for is starting, the
manager keeps the client waiting, so that a restart looks like a slow answer. A client that says nothing is dropped after 2 s.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from jsonqueue.channel.forking import keep_from_forks
from jsonqueue.channel.pipe import FdPipe, Pipe
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed, FolderRefused
from jsonqueue.event import EventOwner

__all__ = [
    "HANDSHAKE_MS",
    "PROTOCOL",
    "SOCKET_NAME",
    "Action",
    "BrokerStatus",
    "Listener",
    "ManagerStatus",
    "Operate",
    "Refused",
    "Register",
    "Registered",
    "Report",
    "Visitor",
    "connect",
    "operate",
]

SOCKET_NAME = "jsonqueue.sock"
PROTOCOL = 1
"""Version of the Events that travel over a Pipe; both ends must speak the same."""

HANDSHAKE_MS = 2_000
"""How long a client may take to say what it wants."""

Action = Literal["status", "checkpoint", "stop"]
"""What an operator may ask of the manager: how it stands; to bring queue.json up to date now; to drain and stop."""


class Register(Struct, tag="register", tag_field="type", forbid_unknown_fields=True):
    """A client asks for its Pipe."""

    owner: EventOwner
    name: str
    pid: int
    protocol: int = PROTOCOL


class Operate(Struct, tag="operate", tag_field="type", forbid_unknown_fields=True):
    """An operator asks something of the manager itself."""

    action: Action
    protocol: int = PROTOCOL


class Registered(Struct, tag="registered", tag_field="type"):
    """The answer that brings the fd, and the settings of the queue."""

    config: Config


class Refused(Struct, tag="refused", tag_field="type"):
    """No Pipe, or no report; why."""

    reason: str


class BrokerStatus(Struct):
    """One of the two broker processes."""

    role: str
    state: str
    """``starting``, ``waiting``, ``ready`` or ``down``."""
    pid: int = 0
    epoch: int = 0
    restarts: int = 0
    up_ms: int = 0
    peers: int = 0
    """Clients connected to it."""
    counters: dict[str, int] = {}
    """What it counted since it started."""
    waits_for: str = ""
    """Why it is not up: its lock is held, the disk has no room, no process is to be had. Empty when it is."""


class ManagerStatus(Struct):
    """How the manager and its brokers stand."""

    queue_dir: str
    pid: int
    started_ms: int
    """Wall clock."""
    up_ms: int
    durability: str
    config: Config
    brokers: list[BrokerStatus]
    checkpoints: int = 0
    checkpoint_ms: int = 0
    """Wall clock of the end of the last checkpoint; 0: none yet."""
    checkpoint_took_ms: int = 0
    checkpoint_error: str = ""
    """Why the last attempt came to nothing; empty when it did not."""
    stopping: bool = False
    """Whether it takes no more calls, and its brokers leave one after the other."""


class Report(Struct, tag="report", tag_field="type"):
    """The answer to ``operate``."""

    ok: bool
    status: ManagerStatus
    message: str = ""


# ── the client's side ────────────────────────────────────────────────────────────────────────────────────────────────


def connect(queue_dir: str | os.PathLike[str], owner: EventOwner, *, name: str = "", timeout: float = 10.0) -> tuple[Pipe, Config]:
    """A Pipe of one's own to the broker that serves ``owner`` (publisher, consumer or caller), and the queue's settings.

    Waits at most ``timeout`` seconds, which bridges the restart of a broker. Raises :class:`BrokerUnavailable` when nobody listens, when
    the manager refuses, or when the time is up.
    """
    with _visit(queue_dir, timeout) as visit:
        answer = visit.ask(Register(owner, name, os.getpid()))
        if not isinstance(answer, Registered):
            raise visit.unavailable(answer.reason if isinstance(answer, Refused) else "the manager answered something else")
        (fd,) = visit.pipe.take_fds(1)
    return Pipe(fd), answer.config


def operate(queue_dir: str | os.PathLike[str], action: Action, *, timeout: float = 60.0) -> Report:
    """Ask the manager for its status, for a checkpoint (answered when it is durable), or to stop (answered when it has begun to).

    Raises :class:`BrokerUnavailable` when nobody listens, or does not answer within ``timeout`` seconds.
    """
    with _visit(queue_dir, timeout) as visit:
        answer = visit.ask(Operate(action))
        if not isinstance(answer, Report):
            raise visit.unavailable(answer.reason if isinstance(answer, Refused) else "the manager answered something else")
        return answer


class _Visit:
    """One question to the manager, at the client's end."""

    def __init__(self, queue_dir: str, timeout: float) -> None:
        self._queue_dir = queue_dir
        self._until_ms = _clock.monotonic_ms() + round(timeout * 1000)
        self.pipe = FdPipe(_call(queue_dir, timeout).detach())

    def ask(self, question: Register | Operate) -> Registered | Refused | Report:
        try:
            self.pipe.send(_encode(question), timeout=self._left())
            frames = self.pipe.receive(self._left())
        except ConnectionClosed as error:
            raise self.unavailable(f"the manager went away: {error.message}") from None
        except BadFrame as error:  # The fd that came with the answer was one more than this process may open.
            raise self.unavailable(error.message) from None
        if not frames:
            raise self.unavailable("the manager did not answer in time", silent=True)
        return _decode_answer(frames[0])

    def unavailable(self, cause: str, *, silent: bool = False) -> BrokerUnavailable:
        return BrokerUnavailable(self._queue_dir, cause=cause, silent=silent)

    def _left(self) -> float:
        return max(0, self._until_ms - _clock.monotonic_ms()) / 1000


@contextmanager
def _visit(queue_dir: str | os.PathLike[str], timeout: float) -> Iterator[_Visit]:
    visit = _Visit(os.fspath(queue_dir), timeout)
    try:
        yield visit
    finally:
        visit.pipe.close()


def _call(queue_dir: str, timeout: float) -> socket.socket:
    """A connection to the manager of this folder."""
    try:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # for which there may be no open file left
        try:
            _reach(caller, queue_dir, timeout)
        except BaseException:
            caller.close()
            raise
    except OSError as error:
        # EAGAIN: the time was up while others were waiting to be let in.
        raise BrokerUnavailable(queue_dir, cause=_why(error), silent=isinstance(error, BlockingIOError)) from None
    return caller


def _reach(caller: socket.socket, queue_dir: str, timeout: float) -> None:
    # A blocking connect with a kernel timeout: a non-blocking one fails at once while the backlog is full.
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
    with _address(queue_dir) as address:
        caller.connect(address)
    if _peer(caller)[1] != os.geteuid():
        raise PermissionError(errno.EPERM, "the process that listens there belongs to another user")


def _why(error: OSError) -> str:
    """Nothing to add where the plain case holds: no folder, no socket, nobody behind it."""
    plain = isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError)
    return "" if plain else str(error.strerror).lower()


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000) + 1)


# ── the manager's side ───────────────────────────────────────────────────────────────────────────────────────────────


class Listener:
    """The manager's socket in the queue folder. Only whoever holds ``queue.lock`` may make one: it replaces a stale socket."""

    def __init__(self, queue_dir: str | os.PathLike[str]) -> None:
        self._path = Path(queue_dir) / SOCKET_NAME
        self._remove_stale()
        self._inode = (0, 0)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind(os.fspath(queue_dir))
        except BaseException:
            self._socket.close()
            raise
        keep_from_forks(self)

    def fileno(self) -> int:
        """For a selector: readable when somebody calls."""
        return self._socket.fileno()

    def accept(self) -> Visitor | None:
        """The next caller; None when there is none (any more), or when it belongs to another user: that one is hung up on.

        Raises ``OSError`` when this process has no room for more open files.
        """
        try:
            caller, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        pid, uid = _peer_or_nobody(caller)
        if uid != os.geteuid():
            caller.close()
            return None
        return Visitor(caller.detach(), pid)

    def close(self) -> None:
        """Stop listening and remove the socket, unless another manager has put its own in its place. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        with suppress(FileNotFoundError):
            if self._identity() == self._inode:
                self._path.unlink()

    def let_go(self) -> None:
        """Close the copy that a fork came by: nobody there takes calls, and after the manager's death who calls would wait in vain."""
        self._socket.close()

    def _identity(self) -> tuple[int, int]:
        found = self._path.lstat()
        return found.st_dev, found.st_ino

    def _remove_stale(self) -> None:
        try:
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise FolderRefused(f"{self._path} is in the way: it is no socket", hint="move it out of the queue folder")
            self._path.unlink()
        except FileNotFoundError:
            pass

    def _bind(self, queue_dir: str) -> None:
        with _address(queue_dir) as address:
            _bind_privately(self._socket, address)
        self._inode = self._identity()
        self._socket.listen(1024)
        self._socket.setblocking(False)


def _bind_privately(listener: socket.socket, address: str) -> None:
    """0600 from its first moment on: a chmod afterwards alone would leave a gap."""
    if sys.platform == "linux":
        # The file gets the mode of the socket, but for what the umask takes. That one is of the whole process: what other threads make
        # meanwhile would be private too, and of two that change it at once one puts back what it is not.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(address)
        os.chmod(address, 0o600)
    else:
        with _umask_changes:
            before = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(before)


_umask_changes = threading.Lock()


class Visitor:
    """A caller at the manager's end: asks once, is answered once."""

    def __init__(self, fd: int, pid: int | None) -> None:
        self._pipe = keep_from_forks(FdPipe(fd, frame_max=_REQUEST_MAX_BYTES))
        self.pid = pid
        """As the kernel knows it from here; 0: in a container that is out of sight. None where it does not tell."""

    def fileno(self) -> int:
        """For a selector."""
        return self._pipe.fileno()

    def request(self) -> Register | Operate | None:
        """What the caller wants; None as long as it has not said it all.

        Raises :class:`BadFrame` for anything else, :class:`ConnectionClosed` when it hung up.
        """
        frames = self._pipe.read()
        if not frames:
            return None
        request = _decode_request(frames[0])
        if len(frames) > 1:
            raise BadFrame("more than one request on a connection")
        if request.protocol != PROTOCOL:
            raise BadFrame(f"the client speaks version {request.protocol} of the protocol, the brokers version {PROTOCOL}")
        return request

    def answer(self, answer: Registered | Refused | Report, fds: tuple[int, ...] = ()) -> bool:
        """Send the answer and hand over ``fds``, without blocking. True when all is out, else :meth:`flush` when writable."""
        if fds:
            self._pipe.post_with_fds(_encode(answer), fds)
        else:
            self._pipe.post(_encode(answer))
        return not self._pipe.pending

    def flush(self) -> bool:
        """Send more of the answer; True when all is out."""
        return self._pipe.flush()

    def close(self) -> None:
        """Hang up."""
        self._pipe.close()


# ── what both sides use ──────────────────────────────────────────────────────────────────────────────────────────────

_REQUEST_MAX_BYTES = 4096
_SUN_PATH_MAX_BYTES = 103
"""macOS has room for 104 bytes with the closing NUL, Linux for 108."""

_clock = SystemClock()
_encode = msgspec.json.Encoder().encode
_request_decoder: msgspec.json.Decoder[Register | Operate] = msgspec.json.Decoder(Register | Operate)
_answer_decoder: msgspec.json.Decoder[Registered | Refused | Report] = msgspec.json.Decoder(Registered | Refused | Report)


def _decode_request(frame: bytes) -> Register | Operate:
    try:
        return _request_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"not a request: {ascii(str(error))[1:-1]}") from None


def _decode_answer(frame: bytes) -> Registered | Refused | Report:
    try:
        return _answer_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"not an answer of a manager: {error}") from None


def _peer(connection: socket.socket) -> tuple[int | None, int]:
    """pid (None where it is not told) and uid of the process at the other end."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return pid, uid
    # macOS and the BSDs: struct xucred is {u_int version; uid_t uid; ...}, level SOL_LOCAL 0, option LOCAL_PEERCRED 1.
    _, uid = struct.unpack_from("II", connection.getsockopt(0, 1, 128))
    return None, uid


def _peer_or_nobody(connection: socket.socket) -> tuple[int | None, int]:
    """The same; of whom the kernel tells nothing: nobody's uid."""
    try:
        return _peer(connection)
    except OSError:
        return 0, -1


@contextmanager
def _address(queue_dir: str) -> Iterator[str]:
    """A name of the socket that fits into ``sun_path``, however long the folder's own is."""
    path = os.path.join(queue_dir, SOCKET_NAME)
    if len(os.fsencode(path)) <= _SUN_PATH_MAX_BYTES:
        yield path
    elif sys.platform == "linux":
        folder = os.open(queue_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
        finally:
            os.close(folder)
    else:
        raise FolderRefused(
            f"the path of the queue folder is too long for a socket on this system: {path}",
            hint=f"a path of at most {_SUN_PATH_MAX_BYTES} bytes works, socket name included; a relative path may be shorter",
        )
