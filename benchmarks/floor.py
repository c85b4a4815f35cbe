"""The floor: what processes, Pipes and syncs alone cost on this machine, one by one, with no queue in them.

python benchmarks/floor.py --publishers 1 8 --runs 5

::

    publishers ⇄ first (append, fdatasync, answer) ─▶ second (push, append, fdatasync) ⇄ workers

The processes stand as jsonqueue's do, say as much to each other, and write and sync as often; a turn takes in all that has come, so that
batches grow here too. But nothing is looked at, kept or checked: a line is a line. So no queue in Python whose broker is a process of
its own can be faster, one by one, and `jsonqueue bench publish both latency --no-batch` tells how near it comes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import selectors
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median, quantiles
from typing import Any

_LINE = b"x" * 241 + b"\n"
_ROOM_LINES = 8
"""Lines written at once, at most, for each publisher and worker."""
_TASK = b"t" * 200
_WORD = b"w" * 60
_WARM = 100
_PAUSE_S = 0.003
"""As `jsonqueue bench latency` does it."""
_spawn = multiprocessing.get_context("spawn")


def publish_rate(folder: Path, *, publishers: int, tasks: int) -> float:
    """Lines a second that so many publishers get answered as durable, each ``tasks`` of them, one by one."""
    with _cast() as start, _files(folder) as (log, _):
        ours, theirs = _pipes(publishers)
        (told,), (tell,) = _pipes(1)
        start(_first, theirs, None, tell, log, publishers * tasks)
        told.recv_bytes()  # its file is there
        began, ended = _run_publishers(start, ours, tasks)
        return publishers * tasks / (ended - began)


def both_rate(folder: Path, *, publishers: int, workers: int, tasks: int) -> float:
    """The same while workers are given each line, and what they say of it is made durable as well."""
    with _cast() as start, _files(folder) as logs:
        ours, (_, second, *_) = _chain(start, logs, publishers=publishers, workers=workers, tasks=publishers * tasks)
        began, _ = _run_publishers(start, ours, tasks)
        second.recv_bytes()
        return publishers * tasks / (time.monotonic() - began)


def latencies_ms(folder: Path, *, tasks: int) -> list[float]:
    """How long each line of one publisher, a few milliseconds after the last, takes to a worker, synced once on its way."""
    with _cast() as start, _files(folder) as logs:
        ours, (_, _, worker) = _chain(start, logs, publishers=1, workers=1, tasks=_WARM + tasks)
        report = _begin_publishers(start, ours, _WARM + tasks, _PAUSE_S)[0]
        *sent, _ = report.recv()
        came: list[float] = worker.recv()
        return [1000 * (there - here) for here, there in zip(sent, came, strict=True)][_WARM:]


def _chain(
    start: Callable[..., None], logs: tuple[str, str], *, publishers: int, workers: int, tasks: int
) -> tuple[list[Connection], list[Connection]]:
    """Start all but the publishers: their Pipes, and those on which the first, the second and each worker tell something in the end."""
    ours, theirs = _pipes(publishers)
    bosses, hands = _pipes(workers)
    (out,), (marks,) = _pipes(1)
    told, tells = _pipes(2 + workers)
    start(_first, theirs, out, tells[0], logs[0], tasks)
    start(_second, marks, bosses, tells[1], logs[1], tasks)
    for hand, tell in zip(hands, tells[2:], strict=True):
        start(_worker, hand, tell, tasks)
    for one in told:
        one.recv_bytes()  # all are there
    return ours, told


# ── who takes part ───────────────────────────────────────────────────────────────────────────────────────────────────


def _publisher(pipe: Connection, report: Connection, tasks: int, pause_s: float) -> None:
    report.send_bytes(_WORD)
    report.recv_bytes()
    times = []
    for _ in range(tasks):
        times.append(time.monotonic())
        pipe.send_bytes(_TASK)
        pipe.recv_bytes()
        if pause_s:
            time.sleep(pause_s)
    report.send([*times, time.monotonic()])


def _first(clients: list[Connection], onward: Connection | None, tell: Connection, path: str, tasks: int) -> None:
    log, ready = _Log(path, tasks), _selector(clients)
    tell.send_bytes(_WORD)
    while ready.get_map():
        asking = [client for client, _ in _received(ready)]
        log.write(len(asking))
        log.sync()
        if onward is not None:
            onward.send_bytes(len(asking).to_bytes(4, "big"))
        for client in asking:
            client.send_bytes(_WORD)


def _second(marks: Connection, workers: list[Connection], tell: Connection, path: str, tasks: int) -> None:
    log, ready = _Log(path, 2 * tasks), _selector([marks, *workers])
    idle, waiting, done = list(workers), 0, 0
    tell.send_bytes(_WORD)
    while ready.get_map():
        ended = []
        for pipe, word in _received(ready):
            if pipe is marks:
                waiting += int.from_bytes(word, "big")
            else:
                ended.append(pipe)
        given = (idle + ended)[:waiting]
        idle = (idle + ended)[waiting:]
        waiting -= len(given)
        done += len(ended)
        log.write(len(given) + len(ended))
        for worker in given:
            worker.send_bytes(_TASK)
        log.sync()
        if done == tasks and ended:
            tell.send_bytes(_WORD)


def _worker(pipe: Connection, tell: Connection, tasks: int) -> None:
    ready, came = _selector([pipe]), []
    tell.send_bytes(_WORD)
    while ready.get_map():
        for _ in _received(ready):
            came.append(time.monotonic())
            pipe.send_bytes(_WORD)
            if len(came) == tasks:  # all of them: it is the only one
                tell.send(came)


class _Log:
    """A file whose lines are there already, as in a padded log: written over, and synced."""

    def __init__(self, path: str, lines: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._at, self._synced = 0, True
        for _ in range(-(-(lines + _ROOM_LINES) // 1024)):
            os.write(self._descriptor, b"\n" * (1024 * len(_LINE)))
        os.fsync(self._descriptor)

    def write(self, lines: int) -> None:
        if lines:
            self._at += os.pwrite(self._descriptor, _LINE * lines, self._at)
            self._synced = False

    def sync(self) -> None:
        if not self._synced:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
            self._synced = True


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run_publishers(start: Callable[..., None], pipes: list[Connection], tasks: int) -> tuple[float, float]:
    """Let all of them do their tasks; when the first began, and when the last ended: to start their processes is in neither."""
    times: list[list[float]] = [report.recv() for report in _begin_publishers(start, pipes, tasks, pause_s=0)]
    return min(began for began, *_ in times), max(ended for *_, ended in times)


def _begin_publishers(start: Callable[..., None], pipes: list[Connection], tasks: int, pause_s: float) -> list[Connection]:
    """Let them begin, once all are there. Each tells on one of these Pipes when it began each of its tasks, and when it ended."""
    reports, theirs = _pipes(len(pipes))
    for pipe, report in zip(pipes, theirs, strict=True):
        start(_publisher, pipe, report, tasks, pause_s)
    for report in reports:
        report.recv_bytes()
    for report in reports:
        report.send_bytes(_WORD)
    return reports


@contextmanager
def _cast() -> Iterator[Callable[..., None]]:
    """Starts processes, which own the Pipes they are given: if one dies, whoever waits for it hears of it. All are ended in the end."""
    processes: list[BaseProcess] = []

    def start(role: Callable[..., None], *given: Any) -> None:
        processes.append(_spawn.Process(target=role, args=given, daemon=True))
        processes[-1].start()
        for one in chain.from_iterable(one if isinstance(one, list) else [one] for one in given):
            if isinstance(one, Connection):
                one.close()

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextmanager
def _files(folder: Path) -> Iterator[tuple[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="jsonqueue-floor-") as inside:
        yield f"{inside}/first", f"{inside}/second"


def _pipes(count: int) -> tuple[list[Connection], list[Connection]]:
    pairs = [_spawn.Pipe() for _ in range(count)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def _selector(pipes: list[Connection]) -> selectors.BaseSelector:
    selector = selectors.DefaultSelector()
    for pipe in pipes:
        selector.register(pipe, selectors.EVENT_READ, pipe)
    return selector


def _received(selector: selectors.BaseSelector) -> list[tuple[Connection, bytes]]:
    """One word from each that has something to say. Who has hung up is not asked again."""
    words = []
    for key, _ in selector.select():
        try:
            words.append((key.data, key.data.recv_bytes()))
        except (EOFError, ConnectionResetError):
            selector.unregister(key.fileobj)
    return words


def main() -> None:
    """Measure in turns, so that a slow minute of the machine falls on all; print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publishers", type=int, nargs="+", default=[1, 8], help="how many at once; one row each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=2000, help="of each publisher")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured (default: here)")
    given = parser.parse_args()
    rates: dict[str, list[float]] = defaultdict(list)
    waited: dict[str, list[float]] = defaultdict(list)
    for _ in range(given.runs):
        for publishers in given.publishers:
            alone = publish_rate(given.folder, publishers=publishers, tasks=given.tasks)
            both = both_rate(given.folder, publishers=publishers, workers=given.workers, tasks=given.tasks)
            rates[f"publish one by one, {publishers} publishers"].append(alone)
            rates[f"both one by one, {publishers} publishers, {given.workers} workers"].append(both)
        waits = quantiles(latencies_ms(given.folder, tasks=1000), n=100)
        waited["p50"].append(waits[49])
        waited["p99"].append(waits[98])
    for name, values in rates.items():
        print(f"{name:45} {median(values):8,.0f} /s   {min(values):,.0f} – {max(values):,.0f}")
    for share, values in waited.items():
        print(f"{'from a publisher to a worker, ' + share:45} {median(values):8.2f} ms   {min(values):.2f} – {max(values):.2f}")


if __name__ == "__main__":
    main()
