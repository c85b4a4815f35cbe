"""How a child of the demo tells how it stands, and how it notices that the demo is gone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import orjson

__all__ = ["Speaker", "when_input_ends"]

_EVERY_S = 0.05


class Speaker:
    """Tells the demo how things stand: one JSON object a line on standard output, twenty times a second, when there is news.

    A thread of its own does it. So the work never waits for the demo, and the last news is told however soon it follows the one before.
    """

    def __init__(self) -> None:
        self._said: dict[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)

    def say(self, **news: Any) -> None:
        """Tell this soon."""
        self._said = {**self._said, **news}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        told: dict[str, Any] = {}
        over = False
        while not over:
            over = self._over.wait(_EVERY_S)
            if self._said is not told:
                told = self._said
                _write(orjson.dumps(told) + b"\n")


def _write(line: bytes) -> None:
    try:
        while line:
            line = line[os.write(sys.stdout.fileno(), line) :]
    except BrokenPipeError:
        os._exit(0)  # the demo is gone, and nobody waits for this process


def when_input_ends(act: Callable[[], Any]) -> None:
    """Call ``act`` from a thread as soon as standard input ends: the demo has let go, or is dead."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        act()

    threading.Thread(target=wait, name="input", daemon=True).start()
