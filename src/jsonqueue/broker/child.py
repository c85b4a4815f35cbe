"""One broker process, as the manager holds it: started, told, heard, reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from random import SystemRandom

from jsonqueue.broker.process import BOOT, LEFT_TO_THE_MANAGER, PROCESS_NAMES
from jsonqueue.channel.control import Failed, News, Order, Start, decode_news, encode, error_of
from jsonqueue.channel.pipe import FdPipe, Pipe
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, ConnectionClosed
from jsonqueue.event import EventOwner

__all__ = ["Child", "ChildState"]

_GONE_S = 5.0
"""How long a process that was killed may take to be gone."""


class ChildState(StrEnum):
    """Where a broker process stands."""

    STARTING = "starting"
    WAITING = "waiting"
    """For room on the disk, or for whoever holds its lock: it starts when there is some, or when that one has let go."""
    READY = "ready"
    DYING = "dying"
    """Its control Pipe has ended, the process itself has not, or is not reaped yet."""


class Child:
    """A broker process. Started by the constructor; :meth:`reap` (or :meth:`kill`) is called until it is gone."""

    def __init__(self, role: EventOwner, queue_dir: str, config: Config, marks: int, *, now_ms: int) -> None:
        """``marks``: its end of the marks Pipe, handed over."""
        self.role = role
        self.state = ChildState.STARTING
        self.epoch = 0
        self.peers = 0
        self.counters: dict[str, int] = {}
        self.hung_up_ms = 0
        self.started_ms = now_ms
        self.last_words: Failed | None = None
        self.waits_for = ""
        """Why it cannot start yet."""
        self.crowded = ""
        """Why it takes no more clients, until ``crowded_until_ms``."""
        self.crowded_until_ms = 0
        try:
            ours, theirs = Pipe.pair()
        except BaseException:
            os.close(marks)
            raise
        # However much waits for a broker that is busy: what it is not told it never knows, such as which ids are free again.
        self.control = FdPipe(ours, pending_max=sys.maxsize)
        try:
            # Sent before the process exists, so that its first read finds all of it.
            self.control.post("\0".join(_import_paths()).encode("utf-8", "surrogateescape"))
            self.post(Start(role, queue_dir, config, os.getpid(), SystemRandom().getrandbits(32)), marks)
            with _blocked(LEFT_TO_THE_MANAGER):  # A child starts with its parent's mask.
                self._process = subprocess.Popen(
                    [sys.executable, "-c", BOOT, PROCESS_NAMES[role], queue_dir, str(theirs)],
                    pass_fds=[theirs],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
        except BaseException:
            self.control.close()
            raise
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        """Of the process, also after its end."""
        return self._process.pid

    def post(self, order: Order, fd: int | None = None) -> None:
        """Tell it something, and hand over ``fd``. To a dead one it is said in vain: its end is noticed elsewhere."""
        try:
            if fd is None:
                self.control.post(encode(order))
            else:
                self.control.post_with_fds(encode(order), [fd])
        except ConnectionClosed:
            pass  # An fd that could not leave is closed with the control Pipe.

    def hear(self) -> list[News]:
        """What it says; :class:`ConnectionClosed` when it will say nothing more."""
        try:
            return [decode_news(frame) for frame in self.control.read()]
        except BadFrame as error:
            raise ConnectionClosed(f"it talks nonsense: {error}") from None

    def hung_up(self, now_ms: int) -> None:
        """Its control Pipe has ended."""
        self.state = ChildState.DYING
        self.hung_up_ms = now_ms
        self.control.close()

    def reap(self) -> int | None:
        """Its exit status (negative: the signal that killed it), or None while it runs.

        Where somebody else took its status (a program that ignores SIGCHLD, or waits for any child), its last words tell.
        """
        status = self._process.poll()
        return error_of(self.last_words).exit_status if status == 0 and self.last_words is not None else status

    def kill(self) -> int:
        """End it at once, wait until it is gone, and give its exit status.

        One whose disk does not answer is not gone before that does, and nobody else is to wait for it so long: what it has locked stays
        locked until then, and whoever wants it says who holds it.
        """
        self._process.kill()
        try:
            status = self._process.wait(_GONE_S)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        self.control.close()
        return status


@contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Within, these signals wait (for this thread)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _import_paths() -> list[str]:
    """Where this process imports from, in a form that holds in any working directory."""
    places: list[object] = [*sys.path]  # strings, and what somebody put there that Python passes over
    paths = [path for place in places if isinstance(place, str) and (path := _from_the_root(place))]
    home = str(Path(__file__).resolve().parents[2])
    return paths if home in paths else [*paths, home]


def _from_the_root(place: str) -> str:
    """The place; nothing where the working directory is gone, and with it what is relative to it."""
    try:
        return os.path.abspath(place)
    except OSError:
        return ""
