"""A disk with a tap on every call: to stop the program there, to tear a write, to say that it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonqueue.storage.files import Files

__all__ = ["CALLS", "Tapped"]

CALLS = frozenset(
    ("open", "read", "write_at", "truncate", "size", "sync", "close", "sync_folder", "rename", "link", "unlink", "list", "make_folder",
     "remove_folder", "identity", "has_name", "free_bytes")
)  # fmt: skip

Tap = Callable[[int, str, tuple[Any, ...]], None]


class Tapped:
    """``files``, with ``tap(n, name, arguments)`` before its n-th call."""

    def __init__(self, files: Files, tap: Tap) -> None:
        self._files = files
        self._tap = tap
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._files, name)
        if name not in CALLS:
            return call

        def tapped(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            self._tap(self.calls, name, arguments)
            return call(*arguments, **options)

        setattr(self, name, tapped)
        return tapped
