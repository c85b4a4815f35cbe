"""What the queue did with a run of the demo, asked of the queue's own files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from jsonqueue.cli.demo.sources import DemoTask
from jsonqueue.cli.demo.totals import Totals
from jsonqueue.task import Outcome, StoredTask, TaskStatus

__all__ = ["Account", "Latency", "account_of"]


@dataclass(frozen=True)
class Latency:
    """Percentiles in milliseconds."""

    p50: int = 0
    p99: int = 0

    @classmethod
    def of(cls, waits_ms: Sequence[int]) -> Latency:
        """Nearest-rank percentiles."""
        if not waits_ms:
            return cls()
        ordered = sorted(waits_ms)
        return cls(*(ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in (50, 99)))


@dataclass
class Account:
    """Every figure comes from the tasks as they stand in queue.json and the logs."""

    published: int = 0
    completed: int = 0
    retried: int = 0
    """Tasks that took more than one attempt."""
    lost: int = 0
    """Tasks that were acknowledged and are not there, or did not complete."""
    completed_twice: int = 0
    to_start: Latency = Latency()
    """From publish to start."""
    to_done: Latency = Latency()
    """From publish to completion."""
    working_s: float = 0
    """From the first start to the last completion."""
    totals: Totals = field(default_factory=Totals)
    """What the results say, added up."""


def account_of(tasks: Iterable[DemoTask], stored: dict[str, StoredTask]) -> Account:
    """The account of these tasks in this queue."""
    account = Account()
    starts, ends, to_start, to_done = [], [], [], []
    for given in tasks:
        task = stored.get(given.id)
        account.published += task is not None
        if task is None or task.status is not TaskStatus.COMPLETED:
            account.lost += 1
            continue
        account.completed += 1
        account.retried += len(task.history) > 1
        account.completed_twice += sum(attempt.outcome is Outcome.COMPLETED for attempt in task.history) > 1
        started = task.history[-1].started_ms
        starts.append(started)
        ends.append(task.finished_ms)
        to_start.append(started - task.published_ms)
        to_done.append(task.finished_ms - task.published_ms)
        account.totals.add(given.where, msgspec.json.decode(task.result) if task.result is not None else {})
    account.to_start, account.to_done = Latency.of(to_start), Latency.of(to_done)
    if ends:
        account.working_s = (max(ends) - min(starts)) / 1000
    return account
