"""Whether a process runs, told from its number."""

from __future__ import annotations

import os
import select
import sys

__all__ = ["is_alive"]


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs; one that ended and was not reaped yet does not."""
    if sys.platform == "linux":
        try:
            return _has_not_ended(os.pidfd_open(pid))
        except (OSError, OverflowError):
            pass  # Gone, or not ours to open, or no number of a process: the signal below tells which.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _has_not_ended(pidfd: int) -> bool:
    try:
        poll = select.poll()  # select() takes no fd beyond 1,023
        poll.register(pidfd, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(pidfd)
