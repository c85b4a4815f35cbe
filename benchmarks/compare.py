"""Measures jsonqueue beside its peers, on this machine, in turns, and prints one Markdown table. See README.md for what is fair about it.

python benchmarks/compare.py --runs 3 --out results.md

A peer whose server or client is not installed is named and left out; one that fails is named, too, and the others go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from peers.embedded import HueySqlite, LiteQueuePeer, PersistQueue
from peers.messaging import NatsJetStream, RabbitMq
from peers.on_redis import CeleryRedis, DramatiqRedis, RqRedis, SaqRedis, TaskiqRedis
from peers.ours import JsonQueue
from peers.peer import Handler, Payload, Peer
from peers.served import Beanstalkd, RedisAlways, RedisEverySecond

PEERS: dict[str, type[Peer]] = {
    "jsonqueue": JsonQueue,
    "huey": HueySqlite,
    "litequeue": LiteQueuePeer,
    "persist-queue": PersistQueue,
    "beanstalkd": Beanstalkd,
    "rabbitmq": RabbitMq,
    "dramatiq": DramatiqRedis,
    "taskiq": TaskiqRedis,
    "saq": SaqRedis,
    "rq": RqRedis,
    "celery": CeleryRedis,
    "nats": NatsJetStream,
    "redis-always": RedisAlways,
    "redis-1s": RedisEverySecond,
}
MEASURES = {
    "single": "publish 1 by 1 /s",
    "bulk": "bulk /s",
    "drain": "drain, 2 workers /s",
    "both": "both, 1 by 1 /s",
    "p50": "idle latency p50, ms",
    "p99": "p99, ms",
}
_spawn = multiprocessing.get_context("spawn")
_FILL = "x" * 64
_POLL_S = 0.002
_LATENCY_TASKS = 300
_WARM_UP = -1
"""The number of the task by which a publisher connects."""

_LIMIT_S = 20.0
"""A drain that takes longer is cut here, and its rate is that of what was done."""

_HANG_S = 120.0
"""Longer than anything takes: who has not answered by then has failed."""


class Failed(Exception):
    """A peer could not be measured."""


def payload(n: int) -> Payload:
    """The same for all."""
    return {"n": n, "data": _FILL, "sent": time.monotonic_ns()}


def counting(done: Any, waited: list[int]) -> Handler:
    """Counts a task, and notes how long it was on its way: each but the one that warmed its publisher up, which nobody timed."""

    def handle(given: Payload) -> None:
        if given["n"] != _WARM_UP:
            waited.append(time.monotonic_ns() - given["sent"])
            done.value += 1

    return handle


# ── in a process of their own ────────────────────────────────────────────────────────────────────────────────────────


def worker(peer: Peer, done: Any, ready: Any, go: Any, stop: Any, report: Any) -> None:
    """Works, and counts; at the end tells how long the tasks were on their way."""
    waited: list[int] = []
    handle = counting(done, waited)
    peer.load()
    ready.set()
    go.wait()  # all of them begin at once
    try:
        peer.work(handle, stop)
    finally:
        if stop.is_set():  # else it has failed, and the traceback says how
            report.send(waited)
            report.close()
            sys.stdout.flush()
            os._exit(0)  # some peers keep threads that would not end


def publisher(peer: Peer, tasks: int, how: str, every_s: float, report: Any) -> None:
    """Publishes, and tells from when to when."""
    sender = peer.sender()
    sender.one(payload(_WARM_UP))  # connected, and warm
    began = time.monotonic()
    if how == "bulk":
        sender.many([payload(n) for n in range(tasks)])
    else:
        for n in range(tasks):
            sender.one(payload(n))
            if every_s:
                time.sleep(every_s)
    report.send((began, time.monotonic()))
    sender.close()


# ── the conductor ────────────────────────────────────────────────────────────────────────────────────────────────────


class Crew:
    """Worker processes."""

    def __init__(self, peer: Peer, count: int) -> None:
        self._done = [_spawn.Value("q", 0, lock=False) for _ in range(count)]
        self._stop, go = _spawn.Event(), _spawn.Event()
        readies = [_spawn.Event() for _ in range(count)]
        pipes = [_spawn.Pipe(duplex=False) for _ in range(count)]
        self._reports = [ours for ours, _ in pipes]
        self._processes = [
            _spawn.Process(target=worker, args=(peer, done, ready, go, self._stop, theirs))
            for done, ready, (_, theirs) in zip(self._done, readies, pipes, strict=True)
        ]
        for process in self._processes:
            process.start()
        for ready in readies:
            ready.wait(30)
        go.set()
        self.began = time.monotonic()

    def await_done(self, tasks: int) -> tuple[int, float]:
        """Wait until they have done so many, or the time is up; how many, and when."""
        limit = time.monotonic() + _LIMIT_S
        while (done := sum(value.value for value in self._done)) < tasks and time.monotonic() < limit:
            if not all(process.is_alive() for process in self._processes):
                raise Failed("a worker ended before its time")
            time.sleep(_POLL_S)
        if not done:
            raise Failed(f"nothing was done within {_LIMIT_S:.0f} s")
        return done, time.monotonic()

    def dismiss(self) -> list[float]:
        """End them; how long each task was on its way, in ms."""
        self._stop.set()
        waited: list[float] = []
        for report, process in zip(self._reports, self._processes, strict=True):
            if report.poll(10):
                waited += [ns / 1e6 for ns in report.recv()]
            process.join(5)
            self._end(process)
        return waited

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            self._end(process)

    @staticmethod
    def _end(process: Any) -> None:
        if process.is_alive():
            process.kill()
        process.join()


def publish(peer: Peer, tasks: int, how: str, every_s: float = 0.0) -> tuple[float, float]:
    """From when to when one publisher published so many."""
    ours, theirs = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=publisher, args=(peer, tasks, how, every_s, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(_HANG_S):
            raise Failed(f"publishing ({how}) took more than {_HANG_S:.0f} s")
        span: tuple[float, float] = ours.recv()
        process.join(10)
    except EOFError:
        raise Failed(f"publishing ({how}) ended with an error") from None
    finally:
        if process.is_alive():
            process.kill()
        process.join()
    return span


@contextmanager
def fresh(kind: type[Peer], folder: Path) -> Iterator[Peer]:
    """The peer on an empty folder, its server running."""
    place = Path(tempfile.mkdtemp(dir=folder))
    peer = kind(place)
    try:
        with peer.served():
            yield peer
    finally:
        shutil.rmtree(place, ignore_errors=True)


def measure(kind: type[Peer], folder: Path, tasks: int) -> dict[str, float]:
    """All figures of one peer, once."""
    figures: dict[str, float] = {}
    singles = max(20, tasks // 20)
    with fresh(kind, folder) as peer:
        began, ended = publish(peer, singles, "single")
        figures["single"] = singles / (ended - began)
    with fresh(kind, folder) as peer:
        waiting = tasks
        if kind.batches:
            began, ended = publish(peer, tasks, "bulk")
            figures["bulk"] = tasks / (ended - began)
        else:
            waiting = max(20, tasks // 10)
            publish(peer, waiting, "single")
        with Crew(peer, kind.workers_max) as crew:
            done, at = crew.await_done(waiting)
            figures["drain"] = done / (at - crew.began)
            crew.dismiss()
    with fresh(kind, folder) as peer, Crew(peer, kind.workers_max) as crew:
        began, _ = publish(peer, singles, "single")
        done, at = crew.await_done(singles)
        figures["both"] = done / (at - began)
        crew.dismiss()
    with fresh(kind, folder) as peer, Crew(peer, 1) as crew:
        publish(peer, _LATENCY_TASKS, "single", 0.005)
        crew.await_done(_LATENCY_TASKS)
        waited = sorted(crew.dismiss())
        if not waited:
            raise Failed("its worker did not tell how long the tasks took")
        figures["p50"], figures["p99"] = waited[len(waited) // 2], waited[len(waited) * 99 // 100]
    return figures


def sync_ms(folder: Path) -> float:
    """Median of appending a line and syncing it."""
    took = []
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(b"x" * 200)
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            took.append(time.perf_counter() - began)
    return 1000 * median(took)


def table(results: dict[str, dict[str, list[float]]], syncs: list[float]) -> str:
    """The medians with their ranges, as Markdown."""
    lines = ["| | durable? | " + " | ".join(MEASURES.values()) + " |", "|---|---|" + "---|" * len(MEASURES)]
    for key, figures in results.items():
        cells = [_cell(figures.get(name)) for name in MEASURES]
        lines.append(f"| {PEERS[key].name} | {PEERS[key].durable} | " + " | ".join(cells) + " |")
    machine = f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, {os.uname().sysname} {os.uname().release}"
    return "\n".join([*lines, "", f"{machine}; fdatasync of one line: {median(syncs):.2f} ms ({min(syncs):.2f} – {max(syncs):.2f})."])


def _cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    return _short(median(values)) + (f" ({_short(min(values))} – {_short(max(values))})" if len(values) > 1 else "")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _left_min(began: float, done: int, rounds: int) -> str:
    """How long the rest will take, at the pace of what is done."""
    return f"{max(1, round((time.monotonic() - began) / done * (rounds - done) / 60))} min"


def main() -> None:
    """One command line."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--runs", type=int, default=3, help="rounds; each round measures every peer once")
    options.add_argument("--tasks", type=int, default=40_000, help="tasks in bulk and drain; a twentieth of it one by one")
    options.add_argument("--only", default="", help="comma-separated: " + ",".join(PEERS))
    options.add_argument("--without", default="", help="comma-separated: all but these")
    options.add_argument("--folder", type=Path, default=Path(), help="where the queues are made: the disk that is measured")
    options.add_argument("--out", type=Path, help="write the table here, too")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder = given.folder.resolve()  # some servers go there before they look for what they were named
    chosen = [name for name in (given.only.split(",") if given.only else PEERS) if name not in given.without.split(",")]
    for name in [name for name in chosen if PEERS[name].missing()]:
        print(f"left out: {PEERS[name].name} ({PEERS[name].missing()} is not installed)", file=sys.stderr)
        chosen.remove(name)
    results: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in chosen}
    syncs: list[float] = []
    began = time.monotonic()
    for place, (number, name) in enumerate((number, name) for number in range(given.runs) for name in chosen):
        left = f", about {_left_min(began, place, given.runs * len(chosen))} left" if place >= len(chosen) else ""
        print(f"round {number + 1} of {given.runs}: {PEERS[name].name}{left}", file=sys.stderr)
        syncs.append(sync_ms(given.folder))
        try:
            figures = measure(PEERS[name], given.folder, given.tasks)
        except Exception as error:  # noqa: BLE001 - the others are not to suffer from one
            print(f"failed: {PEERS[name].name}: {error!r}; this round has no figures of it", file=sys.stderr)
            continue
        for figure, value in figures.items():
            results[name][figure].append(value)
    text = table(results, syncs)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
