"""Where a benchmark is played: a queue folder of its own, and the processes that act on it, all of them ended by their pid."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jsonqueue.broker.narration import ending
from jsonqueue.cli.bench.machine import written_bytes
from jsonqueue.cli.processes import ProcessFailed, start
from jsonqueue.errors import JsonQueueError

__all__ = ["Actor", "Stage"]

_END_S = 30.0
"""Longer than a manager takes for two brokers that it has to kill."""
_POLL_S, _POLL_MAX_S = 0.01, 0.25
_STILL_S = 90.0
"""How long nothing may come of anything: longer than the lease of a consumer that fell silent, and than any disk takes."""
_SILENT_S = 660.0
"""How long a process may say nothing while it carries out an order: longer than any of them waits for the queue."""
_LOOK_S = 0.5
_ABOVE = "what it said stands above"


class ActorFailed(ProcessFailed):
    """A process of the benchmark ended before its time."""


class Stalled(JsonQueueError):
    """What is measured came to a standstill."""


class Actor:
    """A process that takes orders."""

    def __init__(self, role: str, queue_dir: Path) -> None:
        self.role = role
        self._process = start("bench.actors", role, str(queue_dir))
        self._heard = b""

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
        """Wait for the answer. Raises :class:`ActorFailed` where it has ended, :class:`Stalled` where it says nothing any more."""
        while True:
            answer: dict[str, Any] = json.loads(self._line())
            if "so_far" not in answer:  # which says that it is still at it
                return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        pipe, since = self._process.stdout.fileno(), time.monotonic()
        while b"\n" not in self._heard:
            over = self._process.poll() is not None  # before the look: what it said at its end is heard
            if select.select([pipe], [], [], 0 if over else _LOOK_S)[0]:
                chunk = os.read(pipe, 65_536)
                if not chunk:
                    raise self._failed()
                self._heard += chunk
            elif over:  # and what it had started holds its Pipe open
                raise self._failed()
            elif time.monotonic() - since > _SILENT_S:
                raise Stalled(f"the {self.role} of the benchmark (pid {self.pid}) has said nothing for {_SILENT_S:.0f} s", hint=_ABOVE)
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        self.tell(do, **order)
        return self.hear()

    def require_life(self) -> None:
        """Raises :class:`ActorFailed` where it has ended."""
        if self._process.poll() is not None:
            raise self._failed()

    def end(self) -> None:
        """Make it end: kindly, then by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.send_signal(signal.SIGCONT)  # one that somebody has suspended would not hear of it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self.end()

    def _failed(self) -> ActorFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):  # its Pipe is closed a moment before it is gone
            self._process.wait(_LOOK_S)
        who, status = f"the {self.role} of the benchmark (pid {self.pid})", self._process.returncode
        if status is None:
            return ActorFailed(f"{who} listens no more", hint=_ABOVE)
        killed = "somebody ended it, or a system that is short of memory"
        return ActorFailed(f"{who} ended before its time, {ending(status)}", status=status, hint=killed if status < 0 else _ABOVE)


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
        try:
            for actor in reversed(self._actors):
                actor.end()
        except BaseException:  # told once more to end: no more patience
            for actor in reversed(self._actors):
                actor.kill()
            raise
        finally:
            self._remove()

    def _remove(self) -> None:
        until = time.monotonic() + _END_S
        shutil.rmtree(self.root, ignore_errors=True)
        while self.root.exists() and time.monotonic() < until:  # brokers whose manager was killed write for a moment longer
            time.sleep(_POLL_S)
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

    def rest(self, tasks: int) -> None:
        """Wait until all of so many tasks are taken in and folded into queue.json: what comes next is measured with nothing left to do."""
        since = time.monotonic()
        while (known := self.status()["tasks"]) < tasks:
            self._require_progress(tasks, known, 0, time.monotonic() - since)
            time.sleep(_POLL_MAX_S)
        self.queue.ask("checkpoint")

    def await_settled(self, tasks: int) -> tuple[float, int]:
        """Wait until so many deliveries are settled, durably; the time it was seen, and how many they were.

        Raises :class:`ActorFailed` when one of the processes has ended, :class:`Stalled` when there will be no end to it.
        """
        began, pause = time.monotonic(), _POLL_S
        most, since = 0, began
        while (settled := self.status()["settled"]) < tasks:
            if settled > most:
                most, since = settled, time.monotonic()
            self._require_progress(tasks, settled, most, time.monotonic() - since)
            time.sleep(pause)
            # Each look keeps the brokers from their work for a moment: few while the end is far, many when it is near.
            left_s = (time.monotonic() - began) * (tasks - settled) / settled if settled else 0.0
            pause = min(max(left_s / 4, _POLL_S), _POLL_MAX_S)
        return time.monotonic(), settled

    def _require_progress(self, tasks: int, settled: int, most: int, still_s: float) -> None:
        for actor in self._actors:
            actor.require_life()
        if settled < most:  # a broker counts from its start on
            raise Stalled("a broker of the benchmark ended, and started anew: what it had counted is gone", hint=_ABOVE)
        if still_s > _STILL_S:
            raise Stalled(f"the benchmark stands still: for {_STILL_S:.0f} s none of {tasks - settled:,} tasks was settled", hint=_ABOVE)

    def written(self) -> int | None:
        """Bytes that its processes have written to files so far."""
        return written_bytes(self.pids)
