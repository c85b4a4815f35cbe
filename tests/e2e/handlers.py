"""What the consumers of the end-to-end tests run."""

from __future__ import annotations

import os
import signal
from typing import Any


def note(task: Any) -> Any:
    """Report the run, return something that depends on the payload."""
    _tell(task)
    return {"seen": task.data}


def fail_once(task: Any) -> Any:
    """The first attempt fails."""
    _tell(task)
    if task.attempt == 1:
        raise ValueError("not today")
    return task.attempt


def hang(task: Any) -> None:
    """Report the run and wait to be killed."""
    _tell(task)
    os.read(os.pipe()[0], 1)


def _tell(task: Any) -> None:
    os.write(int(os.environ["WITNESS_FD"]), f"{task.id} {task.attempt}\n".encode())


def nothing(task: Any) -> None:
    """Be done."""


def wait_for_gate(task: Any) -> str:
    """Report the run; the first one of this process then waits for a byte at the gate."""
    _tell(task)
    gate = os.environ.pop("GATE_FD", None)
    if gate is not None:
        os.read(int(gate), 1)
    return "late"


def die_of_poison(task: Any) -> Any:
    """Report the run; a poisonous one kills this process."""
    _tell(task)
    if task.data == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return task.data


def exit_at_once(task: Any) -> None:
    """End the process, in the midst of the task."""
    os._exit(7)
