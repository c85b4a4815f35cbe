"""The log of a real queue, in the simulator: the same transitions, and then "what if".

:func:`replay` folds the files of a queue through the judges' shadow, record by record, with every check on. :func:`what_if` takes from the
history of its tasks when each came, how long its attempts took and which of them failed, and runs that as a workload, under another retry
policy or with other consumers. The queue is only read.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from jsonqueue.retry import RetryPolicy
from jsonqueue.simulation.scenario import Habits, Scenario
from jsonqueue.simulation.shadow import Shadow
from jsonqueue.simulation.work import Arrival
from jsonqueue.simulation.workload import Answers, answers_of, unhurried
from jsonqueue.simulation.world import World
from jsonqueue.storage.files import Files
from jsonqueue.storage.folder import load_config, open_folder
from jsonqueue.storage.log import consistently
from jsonqueue.storage.queue_file import QueueHeader, QueueReader, decode_block
from jsonqueue.storage.recovery import Loaded, load_state
from jsonqueue.storage.segments import LogKind, walk
from jsonqueue.task import Outcome, StoredTask

__all__ = ["Replayed", "replay", "what_if"]


class Replayed(Struct):
    """What a replay saw."""

    tasks: int
    batches: int
    """Batches of both logs that were folded, beyond what queue.json holds already."""
    same: bool
    """Whether the shadow ended in the very state that recovery finds."""


def replay(queue_dir: str | Path) -> Replayed:
    """Fold the queue's files with all checks on. Raises :class:`~jsonqueue.simulation.verdict.Violation` where a promise is broken."""
    files = open_folder(queue_dir, create=False, read_only=True)
    try:
        loaded, shadow, batches = consistently(files, lambda: _both(files))
    finally:
        files.shut()
    return Replayed(tasks=len(loaded.state.tasks), batches=batches, same=shadow.catch_up().tasks == loaded.state.tasks)


def _both(files: Files) -> tuple[Loaded, Shadow, int]:
    """What recovery finds, and the shadow that has followed the logs to the same place: on a queue in use they go on meanwhile."""
    loaded = load_state(files)
    header = loaded.header
    shadow = Shadow()
    shadow.begin(_tasks_in_queue_file(files, header), published=header.published_through, progress=header.progress_through)
    batches = 0
    for kind, add, end in (
        (LogKind.PUBLISHED, shadow.add_published, loaded.published),
        (LogKind.PROGRESS, shadow.add_progress, loaded.progress),
    ):
        for step in walk(files, kind, header.through(kind), upto=end.number):
            for batch in step.batches:
                add(batch)
                batches += 1
    return loaded, shadow, batches


def _tasks_in_queue_file(files: Files, header: QueueHeader) -> list[StoredTask]:
    reader = QueueReader.open(files)
    if reader is None:
        return []
    with reader:
        if reader.header != header:
            raise FileNotFoundError("queue.json was replaced meanwhile")
        return [task for block in reader.blocks() for task in decode_block(block)]


def what_if(queue_dir: str | Path, *, consumers: int, concurrency: int = 1, retry: RetryPolicy | None = None, seed: int = 1) -> Answers:
    """Run the recorded work again: so many consumers, and this retry policy (None: the queue's own)."""
    files = open_folder(queue_dir, create=False, read_only=True)
    try:
        tasks = sorted(load_state(files).state.tasks.values(), key=lambda task: task.number)
        config = load_config(files)
    finally:
        files.shut()
    began_ms = min((task.published_ms for task in tasks), default=0)
    work = [_arrival(task, began_ms) for task in tasks]
    spread_us = max([arrival.at_us for arrival in work] or [0]) + 1
    scenario = Scenario(
        publishers=1,
        consumers=consumers,
        concurrency=concurrency,
        tasks=len(work),
        batch=100,
        spread_us=spread_us,
        habits=Habits(work_us=(0, max([arrival.lasts_us for arrival in work] or [0]))),
        config=unhurried(replace(config, retry=retry or config.retry, disk_reserve_bytes=0), spread_us),
    )
    return answers_of(World(seed, scenario, work=work))


def _arrival(task: StoredTask, began_ms: int) -> Arrival:
    lasted = [attempt.ended_ms - attempt.started_ms for attempt in task.history if attempt.outcome in {Outcome.COMPLETED, Outcome.FAILED}]
    failed = sum(attempt.outcome is Outcome.FAILED for attempt in task.history)
    mean_ms = sum(lasted) / len(lasted) if lasted else 1.0
    return Arrival((task.published_ms - began_ms) * 1000, int(mean_ms * 1000), fails_first=failed, priority=task.priority)
