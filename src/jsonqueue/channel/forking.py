"""What of a process is not for those that it forks: its Pipes, and the socket at which a manager listens. While a copy of one is open
somewhere, the other end sees no end of it, and takes a process that was killed for one that is only slow."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar
from weakref import WeakSet

__all__ = ["keep_from_forks"]


class _End(Protocol):
    def let_go(self) -> None: ...


_E = TypeVar("_E", bound=_End)
_kept: WeakSet[_End] = WeakSet()


def keep_from_forks(end: _E) -> _E:
    """The same. What this process forks from now on lets go of it at once."""
    _kept.add(end)
    return end


def _forked() -> None:
    for end in _kept:
        end.let_go()


os.register_at_fork(after_in_child=_forked)
