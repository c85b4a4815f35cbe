"""What the consumers of the soak run: each run is told to the witness before anything else."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any


@cache
def _witness() -> int:
    """Opened by its path: an isolated handler's process inherits nothing."""
    return os.open(os.environ["WITNESS"], os.O_WRONLY)


def work(task: Any) -> Any:
    """Mostly quick, sometimes slow, now and then failing at first."""
    os.write(_witness(), f"{task.id} {task.attempt}\n".encode())
    kind = task.data["kind"]
    if kind == "slow":
        time.sleep(0.2)
    if kind == "fails" and task.attempt == 1:
        raise ValueError("not today")
    return task.data["n"]
