"""What the conductor asks of a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Handler", "Payload", "Peer", "Sender", "Stop"]

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
        """The same for a batch, by whatever the peer offers for it; NotImplementedError when that is nothing."""

    def close(self) -> None: ...


class Peer:
    """A queue. Its objects are made anew in each process, and know only their folder."""

    name = ""
    durable = "fsync"
    """When an acknowledged task is safe from a power cut."""
    workers_max = 2
    """How many worker processes may work at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def missing() -> str:
        """What is not installed; empty when it can run."""
        return ""

    @contextmanager
    def served(self) -> Iterator[None]:
        """Its server, while within; embedded peers have none."""
        yield

    def sender(self) -> Sender:
        raise NotImplementedError

    def work(self, handler: Handler, stop: Stop) -> None:
        """Run tasks until told to stop, acknowledging each as the peer does. On return everything handled is acknowledged."""
        raise NotImplementedError
