"""What the consumers of the end-to-end tests run."""

from __future__ import annotations

import os
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
