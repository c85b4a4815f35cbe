"""One run of the demo from the first task to the last figure."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.cli.app import to_nowhere
from jsonqueue.cli.console import Console
from jsonqueue.cli.demo.account import account_of
from jsonqueue.cli.demo.report import Outcome, command_name, print_outcome
from jsonqueue.cli.demo.sources import Source, source_of
from jsonqueue.cli.demo.stage import Child, Stage
from jsonqueue.cli.demo.totals import Totals
from jsonqueue.cli.demo.view import Scene, View, WorkerLine
from jsonqueue.cli.reading import NoQueue, load
from jsonqueue.cli.status import sizes
from jsonqueue.cli.text import count, plural, printable
from jsonqueue.client.caller import caller_of
from jsonqueue.client.identity import draw_prefix
from jsonqueue.config import Config
from jsonqueue.errors import JsonQueueError

__all__ = ["ForeignTasks", "Performance"]

_ID_BEGINS = "demo-"
_LOOK_EVERY_S = 0.08
_CONFIRM_EVERY_S = 0.5
_RATE_WINDOW_S = 2.0

_CONFIG = Config(finished_keep_max=10_000_000, finished_keep_bytes=2**50)
"""The account is drawn up from the tasks in the queue, so that none may leave for the archive before."""


class ForeignTasks(JsonQueueError):
    """The queue holds work that is not the demo's, which the demo's workers would take."""

    exit_status = 75

    def __init__(self, queue_dir: Path, number: int) -> None:
        super().__init__(
            f"{queue_dir} holds {plural(number, 'unfinished task')} of somebody else's, which the demo's workers would take",
            hint="leave --queue out (the demo then has a folder of its own), or name an empty folder",
        )
        self.queue_dir, self.number = queue_dir, number


class Performance:
    """Brokers, publishers, workers, and what is shown and told of them."""

    def __init__(self, console: Console, queue_dir: Path, *, workers: int, publishers: int) -> None:
        self._console = console
        self._queue_dir = queue_dir
        self._workers_wanted = workers
        self._publishers_wanted = publishers
        self._run_id = _ID_BEGINS + draw_prefix()[:5]
        self._rates = Rate(), Rate()

    def run(self, given: Path | None, *, keep: bool) -> int:
        """Play it all; 0 if every figure is as it should be."""
        source = source_of(given, run=self._run_id)
        leftovers = _leftovers(self._queue_dir)
        if not self._console.as_json and not self._console.person:
            self._console.line(f"jsonqueue demo: {count(len(source.tasks))} {source.things} of {source.title}")
        self._queue_dir.parent.mkdir(parents=True, exist_ok=True)
        with View(self._console) as view, BrokerManager(self._queue_dir, _CONFIG, what="jsonqueue demo") as manager:
            if leftovers:
                caller_of(self._queue_dir).cancel(leftovers, reason="left by a demo that was interrupted")
            played = self._play(source, view, manager)
            if keep:
                manager.checkpoint()
            else:
                manager.stop()
            outcome = self._outcome(source, view, played, cleared=len(leftovers))
            if keep:
                view.close()
                self._serve_on(manager, outcome)
        if not keep:
            print_outcome(self._console, outcome)
        return 0 if outcome.good else 1

    def _serve_on(self, manager: BrokerManager, outcome: Outcome) -> None:
        try:
            print_outcome(self._console, outcome)
        except BrokenPipeError:  # Whoever wanted to read it is gone; whoever wants the queue served is not.
            to_nowhere(sys.stdout)
        queue = f"{command_name()} --queue {printable(str(self._queue_dir))}"
        self._console.note(f" The brokers go on serving until Ctrl-C. In another terminal:\n\n   {queue} status --watch\n")
        manager.serve_forever()

    # ── through the queue ────────────────────────────────────────────────────────────────────────────────────────────

    def _play(self, source: Source, view: View, manager: BrokerManager) -> Played:
        with Stage() as stage:
            played = Played(source, stage, manager)
            for number in range(1, self._workers_wanted + 1):
                played.workers.append(stage.start(f"worker-{number}", "worker", str(self._queue_dir), f"demo-{number}"))
            for number in range(self._publishers_wanted):
                publisher = stage.start(f"publisher-{number + 1}", "publisher", str(self._queue_dir))
                played.publishers.append(publisher)
                publisher.tell([task.id, task.data] for task in source.tasks[number :: self._publishers_wanted])
            next_look = 0.0
            while True:
                view.show(self._scene(played))
                self._mind(played)
                if played.seems_done and time.monotonic() >= next_look:
                    if self._all_ended(source):
                        break
                    next_look = time.monotonic() + _CONFIRM_EVERY_S
                time.sleep(_LOOK_EVERY_S)
            played.ended = time.monotonic()
            view.show(self._scene(played))
        return played

    def _mind(self, played: Played) -> None:
        """A publisher that fails ends the demo. A worker that dies is replaced: its tasks are delivered again, by themselves."""
        for publisher in played.publishers:
            publisher.check()
        for worker in list(played.workers):
            if worker.over:
                if worker.ended_itself:
                    worker.check()
                played.retire(worker)
                number = len(played.workers) + len(played.fallen) + 1
                played.workers.append(played.stage.start(f"worker-{number}", "worker", str(self._queue_dir), f"demo-{number}"))

    def _all_ended(self, source: Source) -> bool:
        """Whether it is so in the files: what a worker says it has done is not yet what is durable."""
        stored = load(self._queue_dir).state.tasks
        return all(task.id in stored and stored[task.id].status.ended for task in source.tasks)

    def _scene(self, played: Played) -> Scene:
        now = time.monotonic()
        files = sizes(self._queue_dir)
        publish, complete = self._rates
        return Scene(
            title=f"{count(len(played.source.tasks))} {played.source.things} of {played.source.title}",
            total=len(played.source.tasks),
            published=played.published,
            in_progress=played.counted().get("in_progress", 0),
            completed=min(played.done, len(played.source.tasks)),
            publish_rate=publish.of(played.published, now),
            complete_rate=complete.of(played.done, now),
            elapsed_s=now - played.began,
            queue_json=files.queue_json,
            logs=files.logs,
            workers=[WorkerLine(w.name, w.said.get("done", 0), w.said.get("current", "")) for w in [*played.fallen, *played.workers]],
        )

    # ── the direct pass, and the reckoning ───────────────────────────────────────────────────────────────────────────

    def _outcome(self, source: Source, view: View, played: Played, *, cleared: int) -> Outcome:
        stored = load(self._queue_dir).state.tasks
        account = account_of(source.tasks, stored)
        direct, direct_s = self._directly(source, view, self._scene(played))
        return Outcome(
            title=source.title,
            things=source.things,
            figures=account.totals.compare(direct, things=source.things),
            account=account,
            duplicates=sum(publisher.said.get("duplicates", 0) for publisher in played.publishers),
            publishers=self._publishers_wanted,
            workers=self._workers_wanted,
            publish_s=max(publisher.said.get("seconds", 0.0) for publisher in played.publishers),
            queue_s=played.ended - played.began,
            direct_s=direct_s,
            queue_file=self._queue_dir / "queue.json",
            queue_bytes=sizes(self._queue_dir).queue_json,
            longest=account.totals.longest_function,
            example=_example(source, account.totals),
            cleared=cleared,
        )

    def _directly(self, source: Source, view: View, scene: Scene) -> tuple[Totals, float]:
        """The same work without a queue, by as many processes."""
        began = time.monotonic()
        totals = Totals()
        with Stage() as stage:
            shares = [source.tasks[number :: self._workers_wanted] for number in range(self._workers_wanted)]
            for number, share in enumerate(shares, 1):
                stage.start(f"direct-{number}", "direct").tell([task.id, task.data] for task in share)
            while not all(child.over for child in stage.children):
                view.show(replace(scene, checked=sum(child.said.get("done", 0) for child in stage.children)))
                stage.check()
                time.sleep(_LOOK_EVERY_S)
            for child in stage.children:
                child.join()
                totals.merge(Totals.told(child.said["totals"]))
        return totals, time.monotonic() - began


class Played:
    """What is going on, or has gone on, in the queue's half of the demo."""

    def __init__(self, source: Source, stage: Stage, manager: BrokerManager) -> None:
        self.source = source
        self.stage = stage
        self._manager = manager
        self.began = self.ended = time.monotonic()
        self.publishers: list[Child] = []
        self.workers: list[Child] = []
        self.fallen: list[Child] = []
        """Workers that died on the way."""

    def retire(self, worker: Child) -> None:
        """This worker is dead."""
        self.workers.remove(worker)
        self.fallen.append(worker)

    def counted(self) -> dict[str, int]:
        """What the ConsumerBroker counts: tasks ready, in progress ... Empty when it is not running (any more)."""
        if not self._manager.running:
            return {}
        return next((broker.counters for broker in self._manager.status().brokers if "in_progress" in broker.counters), {})

    @property
    def published(self) -> int:
        return sum(publisher.said.get("published", 0) for publisher in self.publishers)

    @property
    def done(self) -> int:
        return sum(worker.said.get("done", 0) for worker in [*self.fallen, *self.workers])

    @property
    def seems_done(self) -> bool:
        """Whether it is worth a look into the files: all is published, and the broker knows of nothing to do."""
        counted = self.counted()
        idle = bool(counted) and not any(counted.get(name) for name in ("ready", "scheduled", "in_progress"))
        return idle and all(publisher.over for publisher in self.publishers)


class Rate:
    """How fast a number has grown over the last moments."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._last = 0.0

    def of(self, number: int, now: float) -> float:
        """The rate, a second. A number that has come to rest keeps the last one it had."""
        if self._seen and number == self._seen[-1][1]:
            return self._last
        self._seen.append((now, number))
        while now - self._seen[0][0] > _RATE_WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        since, before = self._seen[0]
        self._last = (number - before) / (now - since) if now > since else 0.0
        return self._last


def _leftovers(queue_dir: Path) -> list[str]:
    """Unfinished tasks of a demo that was interrupted. Raises :class:`ForeignTasks` if there are any of somebody else's."""
    try:
        waiting = [task for task in load(queue_dir).state.tasks.values() if not task.status.ended]
    except NoQueue:
        return []
    foreign = sum(1 for task in waiting if not task.id.startswith(_ID_BEGINS))
    if foreign:
        raise ForeignTasks(queue_dir, foreign)
    return [task.id for task in waiting]


def _example(source: Source, totals: Totals) -> str:
    """A task worth a look: the one with the longest function."""
    where = totals.longest[2]
    return next((task.id for task in source.tasks if task.where == where), source.tasks[0].id)
