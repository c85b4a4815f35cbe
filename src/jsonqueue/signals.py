"""Signals that a program heeds for a while, by waking whoever waits at a socket.

Nothing else is done in a handler, so none can fall into the middle of anything. The kernel may give a signal to any thread, and its handler
then waits until the main thread wakes up: the socket wakes it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["hangup", "heeded"]


def hangup() -> tuple[int, ...]:
    """SIGHUP, which comes when a terminal is closed, if nobody minds it yet: neither the program, for a purpose of its own, nor who started
    it with SIGHUP ignored (``nohup``)."""
    return (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else ()


@contextmanager
def heeded(numbers: Iterable[int], waker: socket.socket, heard: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, each of these signals sends its number to ``waker``, which does not block, and calls ``heard``. For the main thread.

    ``heard`` is called once for any number of SIGHUPs: of a terminal that is closed the shell tells, and the kernel when that has ended.

    A process that the program forks meanwhile minds a SIGTERM as the program did before: it is for that process alone, as is
    ``Process.terminate()``. The others come of a terminal, to all that run there, and do nothing in it: they are for its parent to heed.
    """
    signals = _Heeded(numbers, waker, heard)
    _now.append(signals)
    try:
        yield
    finally:
        _now.remove(signals)
        signals.end()


class _Heeded:
    def __init__(self, numbers: Iterable[int], waker: socket.socket, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._hung_up = False
        self._before: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in numbers}
        self._fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._hung_up:
            return
        self._hung_up |= number == signal.SIGHUP
        self._heard()

    def end(self) -> None:
        signal.set_wakeup_fd(self._fd)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave_to_the_parent(self) -> None:
        signal.set_wakeup_fd(self._fd)
        self._heard = lambda: None
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])


_now: list[_Heeded] = []


def _forked() -> None:
    for signals in reversed(_now):
        signals.leave_to_the_parent()


os.register_at_fork(after_in_child=_forked)
