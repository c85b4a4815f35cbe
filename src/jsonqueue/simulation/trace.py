"""What happened, in one order, with the vector clocks that say what could have caused what.

Every line goes into a hash, always: two runs are the same if and only if their hashes are. The entries themselves are kept when somebody
wants to look (``--log``, ``--html``), or else only the last of them, to be shown beside a failure.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Entry", "Trace", "VectorClock", "merge", "precedes"]

VectorClock = dict[str, int]
"""Process → how many of its events are known here."""


class Entry(NamedTuple):
    """One event of the trace."""

    at_us: int
    who: str
    what: str
    detail: str
    ids: tuple[str, ...]
    clock: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.at_us / 1000:12.3f}  {self.who:<12} {self.what:<12} {self.detail}".rstrip()


class Trace:
    """Takes note of everything."""

    def __init__(self, *, keep: bool = False, last: int = 60) -> None:
        self.kept = keep
        self.entries: deque[Entry] = deque(maxlen=None if keep else last)
        self.counts: Counter[str] = Counter()
        """How often each kind of thing happened."""
        self.length = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def note(self, at_us: int, who: str, what: str, detail: str, ids: Sequence[str], clock: VectorClock) -> None:
        """Something happened in process ``who``; its own component of the clock goes up."""
        clock[who] = clock.get(who, 0) + 1
        self._hash.update(f"{at_us} {who} {clock[who]} {what} {detail} {','.join(ids)}\n".encode())
        self.length += 1
        self.counts[what] += 1
        self.entries.append(Entry(at_us, who, what, detail, tuple(ids), tuple(clock.items()) if self.kept else ()))

    @property
    def digest(self) -> str:
        """The hash over everything so far, as 32 hex digits."""
        return self._hash.hexdigest()


def precedes(who: str, count: int, clock: VectorClock) -> bool:
    """Whether the ``count``-th event of ``who`` is among the causes of whatever carries this clock."""
    return clock.get(who, 0) >= count


def merge(into: VectorClock, other: VectorClock) -> None:
    """Know from now on what the other knew."""
    for who, count in other.items():
        if count > into.get(who, 0):
            into[who] = count
