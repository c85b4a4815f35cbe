"""What of a process is not for those that it forks: its Pipes. While a copy of one is open somewhere, the other end sees no end of it, and
takes a process that was killed for one that is only slow."""

from __future__ import annotations

import os
from weakref import WeakSet

from jsonqueue.channel.pipe import Pipe

__all__ = ["keep_from_forks"]

_kept: WeakSet[Pipe] = WeakSet()


def keep_from_forks(pipe: Pipe) -> Pipe:
    """The Pipe. What this process forks from now on lets go of it at once."""
    _kept.add(pipe)
    return pipe


def _forked() -> None:
    for pipe in _kept:
        pipe.let_go()


os.register_at_fork(after_in_child=_forked)
