"""What becomes of a task whose attempt did not succeed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from jsonqueue.config import Config
from jsonqueue.core.records import Cancelled, Died, Failed, Progress, Unleased
from jsonqueue.event import Failure
from jsonqueue.task import Outcome, StoredTask

__all__ = ["decide_failure", "decide_loss", "decide_return"]


def decide_failure(task: StoredTask, failure: Failure, *, config: Config, now_ms: int, chance: Random) -> Progress:
    """Another attempt, or the end: out of attempts, past the deadline, or by the handler's own wish."""
    if failure.cancel:
        return Cancelled([task.id], failure.error or "cancelled by its handler")
    limit = task.attempts_max or config.attempts_max
    if task.attempt >= limit:
        return _death(task, f"attempt {task.attempt} of {limit} failed", failure.error)
    wait_ms = failure.retry_after_ms
    if wait_ms is None:
        wait_ms = (task.retry or config.retry).wait_ms(task.attempt, chance)
    if wait_ms is None:
        return _death(task, f"attempt {task.attempt} failed, and its policy is never to retry", failure.error)
    if task.deadline_ms and now_ms + wait_ms >= task.deadline_ms:
        return _death(task, f"attempt {task.attempt} failed, and its deadline comes before the next", failure.error)
    return Failed(task.id, failure.error, now_ms + wait_ms)


def _death(task: StoredTask, why: str, error: str) -> Died:
    last = error.strip().rpartition("\n")[2]
    return Died([task.id], f"{why}: {last}" if last else why, Outcome.FAILED, error)


def decide_loss(tasks: Sequence[StoredTask], outcome: Outcome, *, config: Config, now_ms: int) -> list[Progress]:
    """What becomes of the tasks that a consumer took with it (``lost``), or fell silent with (``expired``).

    If it held one task, that one may have killed it: the attempt counts. If it held several, nobody can tell which, so none counts;
    but from now on each is delivered alone, and the next time there will be no doubt. So a task that kills its consumers is dead after
    its attempts, and the others pay nothing for it.
    """
    if len(tasks) > 1:
        return [Unleased([task.id for task in tasks], outcome, counted=False, suspect=True)]
    return [_decide_single_loss(task, outcome, config, now_ms) for task in tasks]


def _decide_single_loss(task: StoredTask, outcome: Outcome, config: Config, now_ms: int) -> Progress:
    limit = task.attempts_max or config.attempts_max
    how = "its consumer was lost" if outcome is Outcome.LOST else "its consumer fell silent"
    if task.attempt >= limit:
        return Died([task.id], f"{how} in attempt {task.attempt} of {limit}", outcome)
    if task.deadline_ms and now_ms >= task.deadline_ms:
        return Died([task.id], f"{how}, and its deadline has passed", outcome)
    return Unleased([task.id], outcome, suspect=task.suspect)


def decide_return(tasks: Sequence[StoredTask]) -> list[Progress]:
    """Handed back unstarted: no attempt, no suspicion."""
    records: list[Progress] = []
    for suspect in (False, True):
        ids = [task.id for task in tasks if task.suspect is suspect]
        if ids:
            records.append(Unleased(ids, Outcome.RETURNED, counted=False, suspect=suspect))
    return records
