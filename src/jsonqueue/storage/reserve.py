"""Room on the disk that is set aside, as a file of zeros, for finishing what is queued.

``disk_reserve_bytes`` ends publishing while there is still room; but other programs may take the rest. Then the ConsumerBroker gives up the
file, bit by bit, so that completions and dead letters are still written; and either broker what it needs of it to start. What is given up
at once and not used is lost to whatever filled the disk. It is filled again when there is as much room as publishing needs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from jsonqueue.errors import DiskFull
from jsonqueue.storage.files import Files, write_all

__all__ = ["RESERVE", "Reserve"]

RESERVE = "reserve"
_SHARE = 16
"""The file is this part of ``disk_reserve_bytes``: 4 MiB of 64."""
_PIECE = 64 * 1024

_T = TypeVar("_T")


class Reserve:
    """The file, and what is left of it. It holds nothing, so it is never synced."""

    def __init__(self, files: Files, disk_reserve_bytes: int) -> None:
        self._files = files
        self._room_wanted = disk_reserve_bytes
        self._size = disk_reserve_bytes // _SHARE

    def fill(self) -> None:
        """Make it as large as it should be, if there is room enough to publish."""
        if self._left() >= self._size or self._files.free_bytes() < self._room_wanted:
            return
        with suppress(DiskFull):
            handle = self._open()
            try:
                size = self._files.size(handle)
                while size < self._size:
                    size = write_all(self._files, handle, size, bytes(min(self._size - size, 1 << 20)))
            finally:
                self._files.close(handle)

    def lend(self, step: Callable[[], _T], *, wanted: Callable[[], int]) -> _T:
        """What ``step()`` returns. As often as it finds no room, ``wanted()`` bytes are given up for it, while there are any."""
        while True:
            try:
                return step()
            except DiskFull:
                if not self.spend(wanted()):
                    raise

    def spend(self, wanted: int) -> bool:
        """Give up enough for ``wanted`` bytes; False when nothing is left to give."""
        left = self._left()
        if not left:
            return False
        handle = self._files.open(RESERVE)
        try:
            self._files.truncate(handle, max(0, left - (wanted // _PIECE + 1) * _PIECE))
        finally:
            self._files.close(handle)
        return True

    def _left(self) -> int:
        identity = self._files.identity(RESERVE)
        return identity[1] if identity else 0

    def _open(self) -> int:
        try:
            return self._files.open(RESERVE)
        except FileNotFoundError:
            return self._files.open(RESERVE, create=True)
