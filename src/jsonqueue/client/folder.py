"""Which folder a user means: a path, or whatever serves one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from jsonqueue.storage.folder import absolute

__all__ = ["ServesFolder", "folder_of"]


class ServesFolder(Protocol):
    """A BrokerManager, or whatever else has a queue folder."""

    @property
    def queue_dir(self) -> str | os.PathLike[str]: ...


def folder_of(queue: str | os.PathLike[str] | ServesFolder) -> Path:
    """The folder, from the root: it stays the same one when the program changes its directory, and ``~`` means nothing in it, as with a
    BrokerManager."""
    path = queue if isinstance(queue, (str, os.PathLike)) else getattr(queue, "queue_dir", None)
    if path is None:
        raise TypeError(f"{queue!r} is no queue folder: give its path (a str or a Path), or a BrokerManager")
    return Path(absolute(path))
