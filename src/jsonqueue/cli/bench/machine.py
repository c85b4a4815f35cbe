"""What can be told of the machine and its processes from outside: its disk, and their memory, CPU time and writes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from jsonqueue.cli.bench.figures import percentile

__all__ = ["cpu_s", "folder_bytes", "memory_bytes", "sync_ms", "sync_rate", "written_bytes"]

_SYNCS = 50


def sync_ms(folder: Path) -> float:
    """Median time, in milliseconds, to append one small line in ``folder`` and make it durable."""
    return 1000 * percentile(sorted(_syncs(folder)), 0.5)


def sync_rate(folder: Path) -> float:
    """How often a second one small line can be appended in ``folder`` and made durable, one after the other."""
    return _SYNCS / sum(_syncs(folder))


def _syncs(folder: Path) -> list[float]:
    folder.mkdir(parents=True, exist_ok=True)
    sync = getattr(os, "fdatasync", os.fsync)
    took = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix="jsonqueue-sync-", buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(b"x" * 200)
            sync(file.fileno())
            took.append(time.perf_counter() - began)
    return took


def memory_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where that cannot be told."""
    found = _field(pid, "status", "VmRSS")
    return None if found is None else found * 1024


def written_bytes(pids: Iterable[int]) -> int | None:
    """What these processes have written to files so far (what goes over their Pipes is not in it); None where that cannot be told."""
    found = [_field(pid, "io", "wchar") for pid in pids]
    return None if None in found else sum(value for value in found if value is not None)


def cpu_s(pids: Iterable[int]) -> float | None:
    """CPU time these processes have used so far; None where that cannot be told."""
    try:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    except OSError:
        return None
    return float(sum(int(stat[11]) + int(stat[12]) for stat in stats)) / os.sysconf("SC_CLK_TCK")


def _field(pid: int, file: str, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), None)


def folder_bytes(folder: Path) -> dict[str, int]:
    """Size of each file in a folder and below; a second name of the same file is not counted again."""
    seen: set[int] = set()
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            told = path.stat()
            if path.is_file() and told.st_ino not in seen:
                seen.add(told.st_ino)
                sizes[str(path.relative_to(folder))] = told.st_size
    return sizes
