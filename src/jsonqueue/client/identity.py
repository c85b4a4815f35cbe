"""Ids for tasks that were given none.

An id is a prefix of 70 random bits, drawn once by its maker, and a counter: ``k3jqd7m2xw5abc-17``. Drawing once is cheaper than a UUID a
task, sorts and compresses well, and tells which tasks came from one publisher. A forked child draws anew, or it would count on with its
parent's prefix and make the same ids.
"""

from __future__ import annotations

import itertools
from random import Random, SystemRandom

__all__ = ["IdSource", "draw_prefix"]

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_PREFIX_CHARS = 14


def draw_prefix(chance: Random | None = None) -> str:
    """14 characters of base32; ``chance`` None: the system's own."""
    return "".join((chance or SystemRandom()).choices(_ALPHABET, k=_PREFIX_CHARS))


class IdSource:
    """Fresh ids, from any thread."""

    def __init__(self, chance: Random | None = None) -> None:
        self._prefix = draw_prefix(chance)
        self._count = itertools.count(1)

    def fresh(self) -> str:
        """An id nobody else has."""
        return f"{self._prefix}-{next(self._count)}"
