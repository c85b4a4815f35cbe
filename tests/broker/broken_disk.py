"""A broker process whose disk fails at the task "poison": what test_manager and test_want start in place of the real entry point."""

from __future__ import annotations

from jsonqueue.broker import process, sides
from jsonqueue.errors import SyncFailed


class BrokenDisk(sides.PublisherBroker):
    """Its fsync fails when it is to store that task."""

    def step(self, arrivals, send) -> None:
        if any(task.id == "poison" for _, event in arrivals for task in getattr(event, "tasks", ())):
            raise SyncFailed("fdatasync: Input/output error")
        super().step(arrivals, send)


def main() -> None:
    sides.PublisherBroker = BrokenDisk
    process.main()
