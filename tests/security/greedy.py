"""Handlers that take more than their share. Each is bounded, so that a limit that does not hold fails its test and not the machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

SOMEBODY = 23_457
"""A user of no name, who has no processes yet."""


def hog(task: Any) -> int:
    """Takes memory in steps, up to 4 GiB of addresses."""
    return len([bytearray(16 * 1024 * 1024) for _ in range(256)])


def hoard(task: Any) -> int:
    """Opens files, up to 5,000."""
    return len([os.open("/dev/null", os.O_RDONLY) for _ in range(5_000)])


def spin(task: Any) -> str:
    """Works for at most a minute of CPU time."""
    while time.process_time() < 60:
        pass
    return "done"


def cpu_left(task: Any) -> float:
    """The CPU time that the kernel leaves it, in seconds, after it has taken some."""
    import resource

    left = resource.getrlimit(resource.RLIMIT_CPU)[0] - time.process_time()
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass
    return left


def bomb(task: Any) -> int:
    """Forks, as somebody whom limits bind, up to 60 children that sleep."""
    if os.geteuid() == 0:
        os.setuid(SOMEBODY)
    return _brood(60)


def brood(task: Any) -> None:
    """Forks 30 children, writes their pids down, and waits for ever with them."""
    pids = Path(task.data["pids"])
    for _ in range(30):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
            os._exit(0)
    pids.write_text(f"{os.getpid()}\n")
    time.sleep(600)


def _brood(most: int) -> int:
    for _ in range(most):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    return most


def deaf(task: Any) -> None:
    """Ignores SIGTERM, and whatever is raised in it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(task.data["ready"]).touch()
    while True:
        try:
            time.sleep(600)
        except BaseException:  # noqa: BLE001 - this is what it is for
            continue


def tidy(task: Any) -> None:
    """Clears up when it is told that its time is up. Given nothing to clear, it does nothing."""
    if not task.data["cleared"]:
        return
    try:
        time.sleep(600)
    finally:
        Path(task.data["cleared"]).touch()


def deafened(task: Any) -> None:
    """As tidy, but the first two signals come in moments in which they wake nobody."""
    heed: Any = signal.getsignal(signal.SIGTERM)
    lost: list[int] = []

    def lose_two(number: int, frame: Any) -> None:
        lost.append(number)
        if len(lost) > 2:
            heed(number, frame)

    signal.signal(signal.SIGTERM, lose_two)
    try:
        time.sleep(600)
    finally:
        Path(task.data["cleared"]).touch()


def rights(task: Any) -> dict[str, Any]:
    """What the kernel says of this process."""
    import resource

    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    core = resource.getrlimit(resource.RLIMIT_CORE)
    return {"no_new_privs": status["NoNewPrivs"], "core": list(core), "leads": os.getpgrp() == os.getpid()}


def fine(task: Any) -> str:
    """Takes nothing."""
    return "fine"


def by_name(task: Any) -> Any:
    """What the task names."""
    return globals()[task.data](task)


if __name__ == "__main__":  # the same as programs
    print(json.dumps(globals()[sys.argv[1]](None)))
