"""What a consumer calls itself: people see what it does, and no two of a process on one queue are called alike.

By its name and its process the brokers know a consumer that comes back, and what was handed out to it: that it holds no more then, nobody
holds. Two of one name would lose each other's tasks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from weakref import finalize

from jsonqueue.client.handlers import title_of
from jsonqueue.client.program import Program

__all__ = ["name_for", "own_name"]

_LENGTH_MAX = 120
"""Of a name that a number comes behind."""

_taken: dict[tuple[str, str], object] = {}


def name_for(handler: str | Callable[[Any], Any] | Program) -> str:
    """A name that tells people what this consumer does."""
    if isinstance(handler, Program):
        said = Path(handler.arguments[0]).name
    else:
        said = handler if isinstance(handler, str) else title_of(handler)
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", said).strip("-._:")[:64] or "consumer"


def own_name(owner: object, queue_dir: str | os.PathLike[str], wanted: str) -> tuple[str, Callable[[], object]]:
    """The name, or else ``name-2`` and so on, and what gives it back; the end of its owner does so, too."""
    folder, mark = os.path.realpath(queue_dir), object()
    for number in count(1):
        name = wanted if number == 1 else f"{wanted[:_LENGTH_MAX]}-{number}"
        if _taken.setdefault((folder, name), mark) is mark:  # in one step: other threads make consumers, too
            break
    return name, finalize(owner, _taken.pop, (folder, name), None)
