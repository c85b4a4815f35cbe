"""Figures of a run: how long tasks waited, how busy the consumers were, how deep the queue got."""

from __future__ import annotations

__all__ = ["Meter", "percentile"]


class Meter:
    """Measures in virtual time."""

    def __init__(self) -> None:
        self.depth: list[tuple[int, int]] = []
        """(µs, tasks that have not ended), at each change that is at least a millisecond after the last."""
        self.waits_us: list[int] = []
        """From being published to being started for the first time."""
        self.stays_us: list[int] = []
        """From being published to the end of the last run."""
        self.busy_us: dict[str, int] = {}
        """Consumer → time spent in handlers."""
        self.deepest = 0
        self.attempts = 0
        self._published: dict[str, int] = {}
        self._stays: dict[str, int] = {}

    def published(self, task_id: str, at_us: int) -> None:
        """Somebody hands a task in."""
        self._published[task_id] = at_us

    @property
    def handed_in(self) -> int:
        """How many tasks that was."""
        return len(self._published)

    def started(self, task_id: str, at_us: int) -> None:
        """A handler is started."""
        self.attempts += 1
        came_us = self._published.get(task_id)
        if came_us is not None and task_id not in self._stays:
            self._stays[task_id] = came_us
            self.waits_us.append(at_us - came_us)

    def finished(self, consumer: str, task_id: str, began_s: float, ended_s: float) -> None:
        """A handler has ended."""
        base = consumer.partition(".")[0]
        self.busy_us[base] = self.busy_us.get(base, 0) + round((ended_s - began_s) * 1_000_000)
        self.stays_us.append(round(ended_s * 1_000_000) - self._published.get(task_id, 0))

    def depth_is(self, at_us: int, depth: int) -> None:
        """So many tasks have not ended."""
        self.deepest = max(self.deepest, depth)
        if not self.depth or (self.depth[-1][1] != depth and at_us - self.depth[-1][0] >= 1_000):
            self.depth.append((at_us, depth))


def percentile(values: list[int], share: float) -> int:
    """The value that this share of the others does not exceed; 0 of none."""
    if not values:
        return 0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
