"""A process that is forked from the one that runs the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

__all__ = ["signal_to_a_fork", "told_by_a_fork"]


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
