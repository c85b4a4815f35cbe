"""What the consumers of the soak run: each run is told to the witness before anything else."""

from __future__ import annotations

import os
import time
from typing import Any


def work(task: Any) -> Any:
    """Mostly quick, sometimes slow, now and then failing at first."""
    os.write(int(os.environ["WITNESS_FD"]), f"{task.id} {task.attempt}\n".encode())
    kind = task.data["kind"]
    if kind == "slow":
        time.sleep(0.2)
    if kind == "fails" and task.attempt == 1:
        raise ValueError("not today")
    return task.data["n"]
