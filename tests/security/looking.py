"""A handler that tells what its process holds open."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any


def open_files(task: Any) -> dict[str, str]:
    """fd to what it is; but for the one that reads the list."""
    held = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            held[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return held
