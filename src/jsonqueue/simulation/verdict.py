"""What a run comes to: a violation, or none; and the figures beside it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from jsonqueue.simulation.scenario import Scenario

__all__ = ["KINDS", "Totals", "Verdict", "Violation"]

KINDS: dict[str, str] = {
    "lost": "a task that was acknowledged is not in the queue",
    "unexpected": "a task is in the queue that nobody published",
    "duplicated": "a task was completed twice, or is in two places",
    "not durable": "something was acknowledged that a power cut could still take back",
    "two leases": "a task has two valid leases at one point of the log, or a token came again",
    "forked": "the state, the replay of the log, and the checkpoint with the rest of the log differ",
    "order": "a task was handed out before one that should have been first, or answers came out of order",
    "not linear": "no order of the operations explains what the callers were told",
    "acausal": "an effect came before its cause",
    "wasted": "a task was handed out again without a cause, or after its deadline, or a broker woke up again and again for nothing",
    "room": "on a full disk publishers took the last room, or what is set aside for consumers was kept from them",
    "deadlock": "after the faults had stopped, a task did not end within the bound",
    "refused": "a broker refused a queue that nothing had damaged",
    "broke": "code of ours raised what it never may",
    "probe": "a probe of the caller's own failed",
}
"""Everything that can be wrong, and what it means."""


class Violation(BaseException):
    """A promise was broken. Not an Exception, so that nothing under test can swallow it."""

    def __init__(self, kind: str, what: str, *, task_id: str = "") -> None:
        assert kind in KINDS, kind
        super().__init__(f"{kind}: {what}")
        self.kind, self.what, self.task_id = kind, what, task_id


class Totals(Struct):
    """Jepsen's total-queue, and what it took."""

    published: int = 0
    """Tasks that somebody tried to publish."""
    acknowledged: int = 0
    recovered: int = 0
    """Tasks that were stored although nobody was told so."""
    completed: int = 0
    dead: int = 0
    cancelled: int = 0
    lost: int = 0
    unexpected: int = 0
    duplicated: int = 0
    runs: int = 0
    """Times a handler was started; more than the tasks, where consumers died or attempts failed."""
    redelivered: int = 0


class Verdict(Struct):
    """The outcome of one run."""

    seed: int
    scenario: Scenario
    totals: Totals
    digest: str
    """Hash of the whole trace."""
    events: int
    operations: int
    """Operations on the simulated disk."""
    virtual_ms: int
    faults: dict[str, int]
    """What went wrong, how often."""
    counts: dict[str, int]
    violation: str = ""
    """Empty: every promise was kept."""
    kind: str = ""
    at_ms: float = 0.0
    task_id: str = ""
    last: list[str] = []
    """The last lines of the trace before the violation."""
    depth: list[tuple[int, int]] = []
    """Queue depth over time: (ms, tasks that have not ended)."""
    took_s: float = 0.0
    """Seconds of a processor; the one thing here that differs between two runs of a seed."""

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.violation

    def same(self, other: Any) -> bool:
        """Whether the other run was this very run."""
        return isinstance(other, Verdict) and (self.seed, self.digest, self.violation) == (other.seed, other.digest, other.violation)
