"""Where a benchmark is played: a queue folder of its own, and the processes that act on it, all of them ended by their pid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jsonqueue.cli.bench.figures import percentile
from jsonqueue.errors import JsonQueueError

__all__ = ["Actor", "Stage", "cpu_s", "folder_bytes", "memory_bytes", "sync_ms", "written_bytes"]

_END_S = 20.0
_POLL_S = 0.01
_SYNCS = 50


class ActorFailed(JsonQueueError):
    """A process of the benchmark ended before its time."""


class Actor:
    """A process that takes orders."""

    def __init__(self, role: str, queue_dir: Path) -> None:
        self.role = role
        self._process = subprocess.Popen(
            # -P: a module in the current folder must not stand in for one of the standard library.
            [sys.executable, "-P", "-m", "jsonqueue.cli.bench.actors", role, str(queue_dir)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(),
            start_new_session=True,  # Ctrl-C is for the benchmark itself, which then ends its processes in order
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, do: str, **order: Any) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def hear(self) -> dict[str, Any]:
        """Wait for the answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        self.tell(do, **order)
        return self.hear()

    def end(self) -> None:
        """Make it end: kindly, then by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self.end()

    def _failed(self) -> ActorFailed:
        return ActorFailed(f"the {self.role} of the benchmark ended before its time", hint="what it said stands above")


class Stage:
    """A fresh queue in ``folder``, its brokers running, and whoever else is asked for. Leaving the ``with`` block takes it all away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._actors: list[Actor] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="jsonqueue-bench-", dir=self._folder))
        self.queue_dir = self.root / "queue"
        try:
            self.queue = self.actors("queue", 1)[0]
            self.queue.ask("start")
            self.pids: list[int] = self.status()["pids"]
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._clear()

    def _clear(self) -> None:
        for actor in reversed(self._actors):
            actor.end()
        shutil.rmtree(self.root, ignore_errors=True)

    def actors(self, role: str, count: int) -> list[Actor]:
        """That many new processes, ready for orders."""
        made = [Actor(role, self.queue_dir) for _ in range(count)]
        self._actors += made
        for actor in made:
            actor.hear()
        return made

    def dismiss(self, actors: Iterable[Actor]) -> None:
        """End these processes."""
        for actor in actors:
            self._actors.remove(actor)
            actor.end()

    def restart(self, *, kill: bool) -> float:
        """Stop the queue (or kill its manager) and start it again; the seconds until it was ready."""
        if kill:
            self._actors.remove(self.queue)
            self.queue.kill()
        else:
            self.queue.ask("stop")
            self.dismiss([self.queue])
        self.queue = self.actors("queue", 1)[0]
        seconds: float = self.queue.ask("start")["seconds"]
        self.pids = self.status()["pids"]
        return seconds

    def status(self) -> dict[str, Any]:
        """How the queue stands."""
        return self.queue.ask("status")

    def fill(self, tasks: int, *, delay_s: float = 0.0) -> float:
        """Publish so many tasks from one process, in batches; the seconds it took."""
        (publisher,) = self.actors("publisher", 1)
        told = publisher.ask("bulk", tasks=tasks, delay_s=delay_s)
        self.dismiss([publisher])
        seconds: float = told["ended"] - told["began"]
        return seconds

    def await_settled(self, tasks: int) -> tuple[float, int]:
        """Wait until so many deliveries are settled, durably; the time it was seen, and how many they were."""
        while (settled := self.status()["settled"]) < tasks:
            time.sleep(_POLL_S)
        return time.monotonic(), settled


def _environment() -> dict[str, str]:
    """This process's own, in which a child finds the same jsonqueue whatever the current folder is."""
    package = str(Path(__file__).resolve().parents[3])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": package + (os.pathsep + others if others else "")}


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


def sync_ms(folder: Path) -> float:
    """Median time, in milliseconds, to append one small line in ``folder`` and make it durable."""
    folder.mkdir(parents=True, exist_ok=True)
    sync = getattr(os, "fdatasync", os.fsync)
    took = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix="jsonqueue-sync-", buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(b"x" * 200)
            sync(file.fileno())
            took.append(time.perf_counter() - began)
    return 1000 * percentile(sorted(took), 0.5)


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
