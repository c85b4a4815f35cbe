"""How the demo and the benchmark start the processes that play in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from jsonqueue.errors import JsonQueueError

__all__ = ["ProcessFailed", "play", "start"]

_PYTHONS_OWN_MAX = 2
"""1 is that of an exception, 2 that of wrong arguments."""


def start(module: str, *arguments: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    """A module of ``jsonqueue.cli`` as a process, with Pipes for its input and output."""
    return subprocess.Popen(
        # -P: a module of the user's that happens to lie in the current folder must not stand in for one of the standard library.
        [sys.executable, "-P", "-m", f"jsonqueue.cli.{module}", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=_environment(),
        start_new_session=True,  # Ctrl-C is for the command itself, which then ends its processes in order
    )  # fmt: skip


def _environment() -> dict[str, str]:
    """This process's own, in which another one finds the same jsonqueue whatever the current folder is."""
    package = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": package + (os.pathsep + others if others else "")}


def play(main: Callable[..., None]) -> None:
    """Be such a process. What jsonqueue refuses is no bug of it: it is one sentence, and a status, which whoever started it passes on."""
    try:
        main(*sys.argv[1:])
    except JsonQueueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_status)


class ProcessFailed(JsonQueueError):
    """Such a process ended before its time. It has its exit status, where that is of something that jsonqueue refused."""

    exit_status = 70

    def __init__(self, message: str, *, status: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        if status is not None and status > _PYTHONS_OWN_MAX:
            self.exit_status = status
