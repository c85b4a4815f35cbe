"""What the conductor asks of a peer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Handler", "Payload", "Peer", "Sender", "Stop", "free_port", "running"]

Payload = dict[str, Any]
Handler = Callable[[Payload], None]


class Stop(Protocol):
    """A flag that another process raises."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Sender(Protocol):
    """A connected publisher."""

    def one(self, payload: Payload) -> None:
        """Publish one task; on return it is as safe as it gets."""

    def many(self, payloads: Sequence[Payload]) -> None:
        """The same for a batch, by whatever the peer offers for it. Not called if that is nothing (``batches``)."""

    def close(self) -> None: ...


class Peer:
    """A queue. Its objects are made anew in each process, and know only their folder."""

    name = ""
    durable = "fsync"
    """When an acknowledged task is safe from a power cut."""
    workers_max = 2
    """How many worker processes may work at once."""
    server = ""
    """The program of its server, where it has one."""
    modules: tuple[str, ...] = ()
    """The Python modules that it works with."""
    batches = True
    """Whether it offers anything for many tasks at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def missing(cls) -> str:
        """What is not installed; empty when it can run."""
        server = [cls.server] if cls.server and not shutil.which(cls.server) else []
        packages = dict.fromkeys(module.partition(".")[0] for module in cls.modules)
        return ", ".join(server + [package for package in packages if find_spec(package) is None])

    @classmethod
    def load(cls) -> None:
        """Import what it works with, so that nobody's time is that of an import."""
        for module in cls.modules:
            import_module(module)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Its server, while within; embedded peers have none."""
        yield

    def sender(self) -> Sender:
        raise NotImplementedError

    def work(self, handler: Handler, stop: Stop) -> None:
        """Run tasks until told to stop, acknowledging each as the peer does. On return everything handled is acknowledged."""
        raise NotImplementedError


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server, in a process group of its own, which ends with the block: kindly, then by force. What it says goes to ``log``."""
    with log.open("wb") as said:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            yield server
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
