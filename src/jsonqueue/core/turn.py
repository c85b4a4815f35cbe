"""One turn of the dispatcher: what time it is, and what is to be done."""

from __future__ import annotations

from typing import NamedTuple

from jsonqueue.core.records import Progress
from jsonqueue.event import Event

__all__ = ["Now", "Turn"]


class Now(NamedTuple):
    """Both clocks, read once a turn, in milliseconds."""

    wall_ms: int
    monotonic_ms: int


class Turn:
    """What one turn wants done, in this order: write the records, push, sync, answer."""

    __slots__ = ("answers", "pushes", "records")

    def __init__(self) -> None:
        self.records: list[Progress] = []
        self.pushes: list[tuple[int, Event]] = []
        self.answers: list[tuple[int, Event]] = []
