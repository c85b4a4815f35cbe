"""What somebody might plant in place of a file of the queue."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["PLANTED", "QUEUE_FILES"]

PREY = b"somebody's own"


def _link(path: Path, prey: Path) -> None:
    path.symlink_to(prey)


def _dangling(path: Path, prey: Path) -> None:
    path.symlink_to(prey.with_name("not-there"))


def _fifo(path: Path, prey: Path) -> None:
    os.mkfifo(path, 0o600)


def _folder(path: Path, prey: Path) -> None:
    path.mkdir()


PLANTED: list[Callable[[Path, Path], None]] = [_link, _dangling, _fifo, _folder]

QUEUE_FILES = [
    "queue.json",
    "queue.json.draft",
    "queue.lock",
    "published.lock",
    "progress.lock",
    "jsonqueue.sock",
    "jsonqueue.toml",
    "published-000000000001-00000001.jsonl",
    "progress-000000000001-00000001.jsonl",
    "archive",
    "previous",
    "previous/queue.json",
    "reserve",
]
