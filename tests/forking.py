"""A process that is forked from the one that runs the tests."""

from __future__ import annotations

import os
import signal

__all__ = ["signal_to_a_fork"]


def signal_to_a_fork(number: int) -> int:
    """The exit code of a fork of this process that sends itself this signal: ``-number`` if it dies of it, 7 if it lives on."""
    forked = os.fork()
    if not forked:
        try:
            signal.raise_signal(number)
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
