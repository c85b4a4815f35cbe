"""A broker process on a disk that has no room while a file named ``full`` lies beside the queue: what test_want starts instead."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from jsonqueue.broker import process
from jsonqueue.storage.files import RealFiles

FULL = "full"


def main() -> None:
    full = Path(sys.argv[2]).parent / FULL
    write_at, free_bytes = RealFiles.write_at, RealFiles.free_bytes

    def write_if_there_is_room(files: RealFiles, handle: int, offset: int, data: bytes) -> int:
        if full.exists():
            # A file that takes no more: what the system says then is taken for a full disk, and put into words, by the code as it is.
            handle = os.open("/dev/full", os.O_WRONLY) if Path("/dev/full").exists() else _refuse()
        return write_at(files, handle, offset, data)

    RealFiles.write_at = write_if_there_is_room
    RealFiles.free_bytes = lambda files: 0 if full.exists() else free_bytes(files)
    process._ROOM_LOOK_S = 0.01
    process.main()


def _refuse() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
