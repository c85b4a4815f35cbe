"""Real processes for the end-to-end tests: who plays, how they are watched, and that all of them end.

Handlers report over a pipe of the test's own (see :mod:`e2e.handlers`), so a test waits for an event, never for a while, and what it counts
does not live in a process that it kills.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from jsonqueue.channel.registration import ManagerStatus, operate
from jsonqueue.errors import BrokerUnavailable
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import StoredTask

HERE = Path(__file__).resolve().parent
PATIENCE_S = 50.0


class Witness:
    """Counts what handlers report: one line a run, ``id attempt``."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._changed = threading.Condition()
        self.runs: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._reader, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            with self._changed:
                for line in lines:
                    self.runs[line.split()[0].decode()] += 1
                self._changed.notify_all()

    def wait_for(self, tasks: int) -> None:
        """Until so many different tasks have been run."""
        with self._changed:
            reached = self._changed.wait_for(lambda: len(self.runs) >= tasks, PATIENCE_S)
            assert reached, f"{len(self.runs)} of {tasks} tasks were run"

    def wait_for_runs(self, task_id: str, number: int) -> None:
        """Until this task has been begun so often."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self.runs[task_id] >= number, PATIENCE_S)
            assert reached, f"task {task_id} was run {self.runs[task_id]} times, not {number}"

    def close(self) -> None:
        os.close(self.writer)
        self._thread.join(PATIENCE_S)
        os.close(self._reader)


class Cast:
    """The processes of one test on one queue folder."""

    def __init__(self, queue_dir: Path) -> None:
        self.queue_dir = queue_dir
        self.witness = Witness()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            self.kill(process)
        self.witness.close()

    def start(
        self, *arguments: str, within: tuple[str, ...] = (), environment: dict[str, str] | None = None, **options: object
    ) -> subprocess.Popen[bytes]:
        """``jsonqueue --queue … arguments``, with the witness at hand; ``within``: as what this command runs."""
        paths = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
        environment = {**os.environ, "WITNESS_FD": str(self.witness.writer), "PYTHONPATH": paths, **(environment or {})}
        given = {"stdout": subprocess.PIPE, "pass_fds": (self.witness.writer,), **options}
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "jsonqueue.main", "--queue", str(self.queue_dir), *arguments],
            env=environment, cwd=HERE, stdin=subprocess.DEVNULL, **given,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def serve(self, *settings: str, **options: Any) -> subprocess.Popen[bytes]:
        """Brokers; returns when they serve, which they say in their first line."""
        process = self.start("serve", *[word for setting in settings for word in ("--set", setting)], **options)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert b"serving" in line, line
        return process

    def work(self, handler: str = "note", *options: str) -> subprocess.Popen[bytes]:
        """A consumer process."""
        return self.start("work", f"handlers:{handler}", *options, stdout=subprocess.DEVNULL)

    def status(self) -> ManagerStatus:
        return operate(self.queue_dir, "status").status

    def await_consumers(self, number: int) -> None:
        """Until so many consumers have joined."""
        until = time.monotonic() + PATIENCE_S
        while sum(broker.counters.get("consumers", 0) for broker in self.status().brokers) < number:
            assert time.monotonic() < until, f"{number} consumers did not join"

    def await_settled(self) -> None:
        """Until the consumer broker takes no task for being in somebody's hands: a consumer may come back a second after its broker."""
        until = time.monotonic() + PATIENCE_S
        while any(broker.counters.get("in_progress", 1) for broker in self.status().brokers if broker.role == "consumer_broker"):
            assert time.monotonic() < until, "there are tasks that were not settled"

    def broker_pid(self, role: str) -> int:
        (broker,) = [broker for broker in self.status().brokers if broker.role == role]
        return broker.pid

    def kill_all_of(self, command: str) -> None:
        """kill -9 to every process of this command that still runs."""
        for process in self._processes:
            if command in process.args and process.poll() is None:
                process.kill()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9, and reap."""
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM: drain and exit; its status."""
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()
        return status

    def await_said(self, process: subprocess.Popen[bytes], words: bytes) -> None:
        """Until a line with these words is on its standard error (which has to be a pipe)."""
        assert process.stderr is not None
        assert any(words in line for line in process.stderr), f"it ended without saying {words!r}"

    def tasks(self) -> dict[str, StoredTask]:
        """What the files alone say."""
        return inspect(self.queue_dir).state.tasks

    def serving(self) -> bool:
        try:
            self.status()
        except BrokerUnavailable:
            return False
        return True
