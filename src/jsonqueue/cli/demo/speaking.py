"""How a child of the demo tells how it stands, and how it notices that the demo is gone."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

__all__ = ["Speaker", "when_input_ends"]

_EVERY_S = 0.05


class Speaker:
    """Writes one JSON object a line to standard output, at most twenty times a second unless it is urgent."""

    def __init__(self) -> None:
        self._next = 0.0

    def say(self, *, urgent: bool = False, **said: Any) -> None:
        """Tell the demo. A demo that is gone is told nothing."""
        now = time.monotonic()
        if now < self._next and not urgent:
            return
        self._next = now + _EVERY_S
        try:
            os.write(sys.stdout.fileno(), orjson.dumps(said) + b"\n")
        except BrokenPipeError:
            os._exit(0)


def when_input_ends(act: Callable[[], None]) -> None:
    """Call ``act`` from a thread as soon as standard input ends: the demo has let go, or is dead."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        act()

    threading.Thread(target=wait, name="input", daemon=True).start()
