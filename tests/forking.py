"""A process that is forked from the one that runs the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["a_fork", "signal_to_a_fork", "told_by_a_fork"]


def signal_to_a_fork(number: int) -> int:
    """The exit code of a fork of this process that sends itself this signal: ``-number`` if it dies of it, 7 if it lives on."""
    forked = os.fork()
    if not forked:
        try:
            signal.raise_signal(number)
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])


def told_by_a_fork(call: Callable[[], object]) -> str:
    """What this call returns, or raises, in a fork of this process."""
    reads, writes = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            said = repr(call())
        except BaseException as error:  # noqa: BLE001 - it is the fork's last word
            said = repr(error)
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    with open(reads, encoding="utf-8") as ear:
        said = ear.read()
    os.waitpid(forked, 0)
    return said


@contextmanager
def a_fork() -> Iterator[None]:
    """Within, a fork of this process is there, and does nothing."""
    reads, writes = os.pipe()
    forked = os.fork()
    if not forked:
        os.write(writes, b"!")
        signal.pause()
    try:
        os.read(reads, 1)  # it has done what is done after a fork
        os.close(reads)
        os.close(writes)
        yield
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)
