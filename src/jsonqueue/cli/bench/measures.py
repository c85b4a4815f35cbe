"""What is measured, and how. Each measure plays on a stage of its own and returns its figures.

A time begins when the first process is told to go, and ends when the queue says that all is durable: connecting is in it, starting the
processes is not. "One by one" means that each publish returns, durable, before the next begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonqueue.cli.bench.figures import Figure, Spread
from jsonqueue.cli.bench.machine import cpu_s, folder_bytes, memory_bytes, sync_ms, sync_rate
from jsonqueue.cli.bench.stage import Actor, Stage

__all__ = ["MATRIX", "MEASURES", "Measuring"]

MATRIX = ((50, 4), (500, 8), (1000, 16))
"""(tasks, workers)."""

_SINGLE_SHARE = 50
"""One by one, so many times fewer tasks are published."""
_LATENCY_TASKS = 1000
_WORK_S = 0.010
_SLOW_S = 0.040
_FAN_OUT = (1, 2, 4, 8, 16)
_MIXED = 4
_WINDOW_S = 3.0
_BACKLOGS = (1_000, 10_000, 100_000, 1_000_000)


class Measuring:
    """The options, and what is being done just now."""

    def __init__(self, folder: Path, *, tasks: int, workers: int, batches: tuple[bool, ...]) -> None:
        self.folder = folder
        self.tasks = tasks
        self.workers = workers
        self.batches = batches
        self.doing = ""
        self._since = time.monotonic()

    def say(self, doing: str) -> None:
        """Tell whoever watches."""
        self.doing, self._since = doing, time.monotonic()

    @property
    def for_s(self) -> float:
        """For how many seconds it has been doing it."""
        return time.monotonic() - self._since

    @property
    def singles(self) -> int:
        """How many tasks are published one by one."""
        return max(50, self.tasks // _SINGLE_SHARE)

    def figure(self, measure: str, name: str, value: float, unit: str, *, x: float | None = None, **detail: Any) -> Figure:
        """A figure, and beside it what the disk does now."""
        return Figure(measure, name, value, unit, sync_ms(self.folder), x, [], detail)


def publish(run: Measuring) -> list[Figure]:
    """How fast tasks get in."""
    return [figure for batch in run.batches for figure in ([_publish_bulk(run)] if batch else _publish_singly(run))]


def _publish_bulk(run: Measuring) -> Figure:
    run.say(f"publishing {run.tasks:,} tasks in batches")
    with Stage(run.folder) as stage:
        seconds = stage.fill(run.tasks)
    return run.figure("publish", "in batches, 1 publisher", run.tasks / seconds, "tasks/s")


def _publish_singly(run: Measuring) -> list[Figure]:
    run.say(f"publishing {run.singles:,} tasks one by one, {run.workers} publishers at once")
    with Stage(run.folder) as stage:
        publishers = stage.actors("publisher", run.workers)
        before = sync_rate(run.folder)
        seconds, told = _all_at_once(publishers, "singly", tasks=run.singles)
        disk = (before + sync_rate(run.folder)) / 2
    name = f"one by one, {run.workers} publisher{'s' * (run.workers > 1)}"
    rate = run.workers * run.singles / seconds
    return [
        run.figure("publish", name, rate, "tasks/s", took_ms=told[0]["took"]),
        run.figure("publish", f"{name}, to the disk's own rate", rate / disk, "×", disk_syncs_per_s=round(disk)),
    ]


def drain(run: Measuring) -> list[Figure]:
    """How fast tasks get done, by handlers that do nothing; their results are stored and durable."""
    run.say(f"{run.workers} consumers drain {run.tasks:,} tasks")
    with Stage(run.folder) as stage:
        stage.fill(run.tasks)
        seconds = _drained(stage, run.workers, run.tasks)
    return [run.figure("drain", f"{run.workers} consumers", run.tasks / seconds, "tasks/s")]


def both(run: Measuring) -> list[Figure]:
    """Publishing and consuming at the same time."""
    return [_both(run, batch) for batch in run.batches]


def _both(run: Measuring, batch: bool) -> Figure:
    tasks = run.tasks if batch else run.singles * run.workers
    run.say(f"publishing and consuming {tasks:,} tasks at once, {'in batches' if batch else 'one by one'}")
    with Stage(run.folder) as stage:
        publishers = stage.actors("publisher", 1 if batch else run.workers)
        consumers = stage.actors("consumer", 2)
        began = time.monotonic()
        for consumer in consumers:
            consumer.ask("start")
        for publisher in publishers:
            publisher.tell("bulk" if batch else "singly", tasks=tasks // len(publishers))
        ended, _ = stage.await_settled(tasks)
        for publisher in publishers:
            publisher.hear()
        _stop_all(consumers)
    name = "in batches" if batch else f"one by one, {run.workers} publisher{'s' * (run.workers > 1)}"
    return run.figure("both", f"{name}, 2 consumers", tasks / (ended - began), "tasks/s")


def latency(run: Measuring) -> list[Figure]:
    """From the call of publish to the start of the handler, on an idle machine; the task is durable before it is handed out."""
    run.say(f"{_LATENCY_TASKS:,} tasks, one at a time, a few milliseconds apart")
    with Stage(run.folder) as stage:
        publisher, consumer = stage.actors("publisher", 1)[0], stage.actors("consumer", 1)[0]
        consumer.ask("start", stamped=True)
        publisher.ask("singly", tasks=100)
        consumer.ask("forget")
        publisher.ask("singly", tasks=_LATENCY_TASKS, every_s=0.003)
        waited = consumer.ask("waits")["waited"]
        idle = _idle_cpu([*stage.pids, publisher.pid, consumer.pid])
        figures = [run.figure("latency", share, waited[share], "ms", max_ms=waited["max"]) for share in ("p50", "p99")]
        if idle is not None:
            figures.append(run.figure("latency", "CPU while idle, all processes", idle, "%"))
    return figures


def _idle_cpu(pids: list[int]) -> float | None:
    time.sleep(2.5)  # the last checkpoint passes
    before = cpu_s(pids)
    time.sleep(5)
    after = cpu_s(pids)
    return None if before is None or after is None else 100 * (after - before) / 5


def backlog(run: Measuring) -> list[Figure]:
    """The same work on an ever longer queue: does it stay as fast? What waits is taken in and folded before, and is not paid for again."""
    figures: list[Figure] = []
    for size in (size for size in _BACKLOGS if size <= max(run.tasks, _BACKLOGS[0])):
        figures += _with_backlog(run, size)
    return figures


def _with_backlog(run: Measuring, size: int) -> list[Figure]:
    some = min(run.tasks, 50_000)
    run.say(f"publishing and draining {some:,} tasks with {size:,} waiting")
    with Stage(run.folder) as stage:
        stage.fill(size)
        stage.rest(size)
        publish_s = stage.fill(some)
        stage.rest(size + some)
        consumers = stage.actors("consumer", run.workers)
        began = time.monotonic()
        for consumer in consumers:
            consumer.ask("start")
        ended, settled = stage.await_settled(some)
        _stop_all(consumers)
    return [
        run.figure("backlog", "publish in batches", some / publish_s, "tasks/s", x=size),
        run.figure("backlog", f"drain, {run.workers} consumers", settled / (ended - began), "tasks/s", x=size),
        *_during_checkpoint(run, size),
    ]


def _during_checkpoint(run: Measuring, size: int) -> list[Figure]:
    """One task at a time while queue.json, with so many tasks that wait for tomorrow, is rewritten."""
    run.say(f"tasks one at a time while queue.json with {size:,} is rewritten")
    with Stage(run.folder) as stage:
        stage.fill(size, delay_s=86_400)
        stage.rest(size)
        publisher, consumer = stage.actors("publisher", 1)[0], stage.actors("consumer", 1)[0]
        consumer.ask("start", stamped=True)
        publisher.tell("singly", tasks=_LATENCY_TASKS, every_s=0.003)
        time.sleep(0.5)
        span = stage.queue.ask("checkpoint")
        publisher.hear()
        waited = consumer.ask("waits", since=span["began"], until=span["ended"])["waited"]
    took = span["ended"] - span["began"]
    return [run.figure("backlog", "checkpoint", took, "s", x=size), *_latency_meanwhile(run, size, waited)]


def _latency_meanwhile(run: Measuring, size: int, waited: Spread) -> list[Figure]:
    """None, where no task came in that time: it was too short, and a latency of 0 would be a lie."""
    if not waited["count"]:
        return []
    name = "latency during a checkpoint, p99"
    return [run.figure("backlog", name, waited["p99"], "ms", x=size, p50_ms=waited["p50"], count=waited["count"])]


def restart(run: Measuring) -> list[Figure]:
    """How long until a queue with many waiting tasks serves again, after a clean stop and after a crash; and what they take up."""
    with Stage(run.folder) as stage:
        empty = [memory_bytes(pid) for pid in stage.pids]
        run.say(f"publishing {run.tasks:,} tasks")
        stage.fill(run.tasks)
        full = [memory_bytes(pid) for pid in stage.pids]
        run.say("killing the manager, and starting again")
        after_crash = stage.restart(kill=True)
        run.say("stopping, and starting again")
        after_stop = stage.restart(kill=False)
        sizes = folder_bytes(stage.queue_dir)
    figures = [
        run.figure("restart", f"{run.tasks:,} waiting, after a crash", after_crash, "s"),
        run.figure("restart", f"{run.tasks:,} waiting, after a clean stop", after_stop, "s", files=sizes),
    ]
    for name, before, after in zip(("manager", "publisher broker", "consumer broker"), empty, full, strict=True):
        if before and after:
            figures.append(run.figure("restart", f"memory of the {name}, empty", before / 1e6, "MB"))
            figures.append(run.figure("restart", f"memory of the {name}, a waiting task", (after - before) / run.tasks, "bytes"))
    return figures


def fan_out(run: Measuring) -> list[Figure]:
    """More and more consumers, each with tasks of 10 ms; then some with tasks of 10 ms beside others of 40 ms: how much of what each of
    them could do gets done?"""
    figures = []
    for consumers in _FAN_OUT:
        shares = _shares_of_ideal(run, [_WORK_S] * consumers)
        figures.append(run.figure("fan-out", "of the ideal", _mean(shares), "%", x=consumers, least=min(shares)))
    mixed = [_WORK_S, _SLOW_S] * (_MIXED // 2)
    shares = _shares_of_ideal(run, mixed)
    for work_s in dict.fromkeys(mixed):
        least = min(share for share, its in zip(shares, mixed, strict=True) if its == work_s)
        name = f"slow beside fast, {_MIXED} consumers: the least of those with {1000 * work_s:.0f} ms tasks"
        figures.append(run.figure("fan-out", name, least, "%"))
    return figures


def _shares_of_ideal(run: Measuring, works_s: list[float]) -> list[float]:
    """For consumers whose tasks take so long: how many percent of the tasks that each could have done in a few seconds it has done."""
    kinds = " and ".join(f"{1000 * work_s:.0f} ms" for work_s in dict.fromkeys(works_s))
    run.say(f"{len(works_s)} consumers work on tasks of {kinds}")
    with Stage(run.folder) as stage:
        stage.fill(int(sum((_WINDOW_S + 3) / work_s for work_s in works_s)))
        consumers = stage.actors("consumer", len(works_s))
        for consumer, work_s in zip(consumers, works_s, strict=True):
            consumer.ask("start", work_s=work_s)
        time.sleep(0.5)  # all have joined, and found out how long their tasks take
        since = time.monotonic()
        time.sleep(_WINDOW_S)
        counts = [consumer.ask("ended", since=since, until=since + _WINDOW_S)["count"] for consumer in consumers]
        _stop_all(consumers)
    return [100 * count * work_s / _WINDOW_S for count, work_s in zip(counts, works_s, strict=True)]


def written(run: Measuring) -> list[Figure]:
    """What a task costs in bytes written from its publication to the clean stop of the queue: logs, checkpoints, archive."""
    return [figure for batch in run.batches for figure in _written(run, batch)]


def _written(run: Measuring, batch: bool) -> list[Figure]:
    tasks = run.tasks if batch else run.singles
    run.say(f"what is written for {tasks:,} tasks, {'in batches' if batch else 'one by one'}")
    with Stage(run.folder) as stage:
        before = stage.written()
        consumers = stage.actors("consumer", run.workers)
        for consumer in consumers:
            consumer.ask("start")
        stage.actors("publisher", 1)[0].ask("bulk" if batch else "singly", tasks=tasks)
        stage.await_settled(tasks)
        _stop_all(consumers)
        checkpoints = stage.status()["checkpoints"]
        after = stage.queue.ask("stop")["written"]
        sizes = folder_bytes(stage.queue_dir)
    if before is None or after is None:
        return []
    kept = sum(size for name, size in sizes.items() if name == "queue.json" or name.startswith("archive/"))
    name = "in batches" if batch else "one by one"
    return [
        run.figure("written", f"{name}, for each task", (after - before) / tasks, "bytes", checkpoints=checkpoints, files=sizes),
        run.figure("written", f"{name}, to the task's own line in the end", (after - before) / kept, "×", line_bytes=kept / tasks),
    ]


def matrix(run: Measuring) -> list[Figure]:
    """Small loads of 10 ms tasks on ever more workers: how many of them complete, and how fast."""
    return [figure for tasks, workers in MATRIX for figure in _matrix_row(run, tasks, workers)]


def _matrix_row(run: Measuring, tasks: int, workers: int) -> list[Figure]:
    run.say(f"{tasks:,} tasks, {workers} workers")
    with Stage(run.folder) as stage:
        consumers = stage.actors("consumer", workers)
        for consumer in consumers:
            consumer.ask("start", work_s=_WORK_S)
        (publisher,) = stage.actors("publisher", 1)
        began = publisher.ask("bulk", tasks=tasks)["began"]
        seconds = stage.await_settled(tasks)[0] - began
        completed = sum(told["completed"] for told in _stop_all(consumers))
    return [
        run.figure("matrix", f"{tasks} tasks / {workers} workers", tasks / seconds, "tasks/s", seconds=seconds),
        run.figure("matrix", f"{tasks} tasks / {workers} workers, completed", 100 * completed / tasks, "%"),
    ]


# ── what they share ──────────────────────────────────────────────────────────────────────────────────────────────────


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _all_at_once(actors: list[Actor], do: str, **order: Any) -> tuple[float, list[dict[str, Any]]]:
    """Let all of them do it; the seconds from the first's beginning to the last's end, and what they told."""
    for actor in actors:
        actor.tell(do, **order)
    told = [actor.hear() for actor in actors]
    return max(one["ended"] for one in told) - min(one["began"] for one in told), told


def _drained(stage: Stage, workers: int, tasks: int, **order: Any) -> float:
    """The seconds in which so many consumers settle all of ``tasks``."""
    consumers = stage.actors("consumer", workers)
    began = time.monotonic()
    for consumer in consumers:
        consumer.tell("start", **order)
    for consumer in consumers:
        consumer.hear()
    ended, _ = stage.await_settled(tasks)
    _stop_all(consumers)
    return ended - began


def _stop_all(consumers: list[Actor]) -> list[dict[str, Any]]:
    for consumer in consumers:
        consumer.tell("stop")
    return [consumer.hear() for consumer in consumers]


MEASURES: dict[str, Callable[[Measuring], list[Figure]]] = {
    "publish": publish,
    "drain": drain,
    "both": both,
    "latency": latency,
    "backlog": backlog,
    "restart": restart,
    "fan-out": fan_out,
    "written": written,
    "matrix": matrix,
}
