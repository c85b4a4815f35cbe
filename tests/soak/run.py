"""Everything at once: the soak, and the rescue of a dead consumer's task. See ``scripts/soak``.

The witness of what was acknowledged is this process, which is never killed: publishers run in threads of it, handlers of all consumers
report each run over a pipe. The judgement at the end reads the files alone, after a clean stop.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from e2e.cast import Cast
from faults.lanes import in_words, row
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import BrokerUnavailable, JsonQueueError, PublishUnknown
from jsonqueue.task import Outcome, TaskIn

FUNCTION = "soak.handlers:work"
PROGRAM = f"sh {Path(__file__).with_name('work.sh')}"
CONSUMERS: tuple[tuple[str, ...], ...] = (
    (FUNCTION,), (FUNCTION, "--concurrency", "4"), (FUNCTION, "--isolate", "--concurrency", "2"), ("--exec", PROGRAM, "--concurrency", "2"),
)  # fmt: skip
VICTIMS = {"consumer": 5, "stalled_consumer": 2, "publisher_broker": 2, "consumer_broker": 2, "stalled_broker": 2, "manager": 1}
"""Who is struck how often. To be stalled is to be stopped (SIGSTOP) for longer than a lease."""
STALL_S = 3.0
SETTINGS = (
    "lease_ms=2000", "flush_interval_ms=500", "attempts_max=1000000", "finished_keep_max=2000", "segment_max_bytes=1048576",
    "disk_reserve_bytes=1048576", 'retry={kind="linear",step_ms=50,cap_ms=500}',
)  # fmt: skip
PUBLISHERS = 3
PATIENCE_S = 60.0


class Account:
    """What was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.unknown = 0
        self.lock = threading.Lock()


class Soak:
    """One run."""

    def __init__(self, queue_dir: Path, *, seconds: float, seed: int, every: float, rate: int) -> None:
        self._chance = Random(seed)
        self._seconds, self._every, self._rate = seconds, every, rate
        self._account = Account()
        self._over = threading.Event()
        self.cast = Cast(queue_dir)
        self.kills: Counter[str] = Counter()
        self.samples: list[dict[str, int]] = []
        self.wrong: list[str] = []
        """What happened that nobody had done to them."""
        self._consumers: list[Any] = []
        self._stalls: list[threading.Timer] = []
        self._struck_s: dict[str, list[float]] = {}
        """When which broker was killed, of late."""

    def run(self) -> dict[str, Any]:
        with self.cast:
            self._manager = self._serve()
            self._consumers = [self._work(number) for number in range(len(CONSUMERS))]
            publishers = [threading.Thread(target=self._publish, args=(number,)) for number in range(PUBLISHERS)]
            try:
                for publisher in publishers:
                    publisher.start()
                self._kill_and_look()
            finally:  # Whatever ends it: publishers would go on for ever.
                self._over.set()
                for thread in (*publishers, *self._stalls):
                    thread.join()
            drained = self._drain()
            self._look_after(self._consumers, [])
            status = self.cast.stop(self._manager)
            return self._judge(drained=drained, status=status)

    # ── the cast ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> Any:
        return self.cast.serve(*SETTINGS, stderr=sys.stderr.fileno() if os.environ.get("SOAK_SAYS") else -3)

    def _work(self, number: int) -> Any:
        witness = {"WITNESS": f"/proc/{os.getpid()}/fd/{self.cast.witness.writer}"}
        return self.cast.start("work", *CONSUMERS[number], "--name", f"c{number}", environment=witness, stdout=-3, stderr=-3)

    def _publish(self, number: int) -> None:
        chance, made = Random(f"{number}"), 0
        try:
            with Publisher(self.cast.queue_dir, timeout=5) as publisher:
                while not self._over.wait(0.5):
                    tasks = [self._task(number, made + index, chance) for index in range(self._rate // 2 // PUBLISHERS)]
                    made += len(tasks)
                    began = time.monotonic()
                    self._deliver(publisher, tasks)
                    if (took_s := time.monotonic() - began) > PATIENCE_S:
                        self.wrong.append(f"p{number} tried for {took_s:.0f} s to publish")
        except Exception as error:  # noqa: BLE001 - a thread that ends is missed by nobody
            self.wrong.append(f"p{number} ended: {type(error).__name__}: {error}")

    def _task(self, publisher: int, n: int, chance: Random) -> TaskIn[Any]:
        kind = chance.choices(("quick", "slow", "fails"), (96, 2, 2))[0]
        return TaskIn(id=f"p{publisher}-{n}", data={"n": n, "kind": kind})

    def _deliver(self, publisher: Publisher, tasks: list[TaskIn[Any]]) -> None:
        """Until it is acknowledged: publishing again under the same id is safe."""
        while True:
            try:
                publisher.publish_many(tasks)
            except JsonQueueError as error:
                self._account.unknown += isinstance(error, PublishUnknown)
                if self._over.is_set():
                    print(f"gave up: {error}", file=sys.stderr)
                    return
            else:
                with self._account.lock:
                    self._account.acknowledged.update(task.id for task in tasks)
                return

    # ── what befalls it ──────────────────────────────────────────────────────────────────────────────────────────────

    def _kill_and_look(self) -> None:
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            time.sleep(self._every * self._chance.uniform(0.5, 1.5))
            self._look_after(self._consumers, [self._manager])
            victim = self._chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            self.kills[victim if self._strike(victim) else "spared"] += 1
            self._sample()

    def _look_after(self, consumers: list[Any], managers: list[Any]) -> None:
        """Whoever has ended was not killed by us: those whom we kill are replaced at once."""
        for number, consumer in enumerate(consumers):
            if consumer.poll() is not None:
                self.wrong.append(f"c{number} ended by itself with status {consumer.returncode}")
                consumers[number] = self._work(number)
        for manager in managers:
            if manager.poll() is not None:
                self.wrong.append(f"the manager ended by itself with status {manager.returncode}")
                self._manager = self._serve()

    def _strike(self, victim: str) -> bool:
        """Whether it was struck."""
        if victim == "manager":
            self.cast.kill(self._manager)
            self._manager = self._serve()
        elif victim == "consumer":
            number = self._chance.randrange(len(CONSUMERS))
            self.cast.kill(self._consumers[number])
            self._consumers[number] = self._work(number)
        elif victim == "stalled_consumer":
            return self._stall(self._chance.choice(self._consumers).pid)
        elif victim == "stalled_broker":
            return self._stall(self._chance.choice(self.cast.status().brokers).pid)
        else:
            return self._strike_broker(victim)
        return True

    def _stall(self, pid: int) -> bool:
        """Stop it, and let it go on when its leases, or its clients' patience, have run out."""
        if not pid or not _signalled(pid, signal.SIGSTOP):
            return False
        stall = threading.Timer(STALL_S, _signalled, (pid, signal.SIGCONT))
        stall.start()
        self._stalls.append(stall)
        return True

    def _strike_broker(self, role: str) -> bool:
        # Three deaths of one broker within a minute are restarted; here they come faster by chance.
        struck_s = self._struck_s[role] = [at_s for at_s in self._struck_s.get(role, ()) if at_s > time.monotonic() - 61]
        (broker,) = [broker for broker in self.cast.status().brokers if broker.role == role]
        if len(struck_s) == 3 or not broker.pid or not _signalled(broker.pid, signal.SIGKILL):
            return False
        struck_s.append(time.monotonic())
        return True

    def _sample(self) -> None:
        """How much everything holds; nothing where a process is just being replaced."""
        with suppress(BrokerUnavailable, OSError, IndexError):
            pids = {"manager": self._manager.pid, **{broker.role: broker.pid for broker in self.cast.status().brokers}}
            sample = {f"{role}_mib": _resident_mib(pid) for role, pid in pids.items()}
            sample |= {f"{role}_fds": len(os.listdir(f"/proc/{pid}/fd")) for role, pid in pids.items()}
            live = [path.stat().st_size for path in self.cast.queue_dir.glob("*") if path.is_file()]
            self.samples.append(sample | {"disk_kib": sum(live) // 1024, "files": len(live)})

    def _drain(self) -> bool:
        """Until everything acknowledged has run."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with suppress(BrokerUnavailable):
                counters = {name: n for broker in self.cast.status().brokers for name, n in broker.counters.items()}
                if not any(counters.get(name, 1) for name in ("ready", "in_progress", "scheduled")):
                    return True
            time.sleep(0.2)
        print(f"not drained: {self.cast.status().brokers}", file=sys.stderr)
        return False

    # ── the judgement ────────────────────────────────────────────────────────────────────────────────────────────────

    def _judge(self, *, drained: bool, status: int) -> dict[str, Any]:
        completions, twice, by_kind = self._completions()
        runs = self.cast.witness.runs
        grown = _grown(self.samples)
        if 3 * len(self.samples) < sum(self.kills.values()):
            grown.append(f"only {len(self.samples)} samples were to be had of what everything holds")
        lost = self._account.acknowledged - completions.keys()
        idle = [f"c{number} completed nothing" for number in range(len(CONSUMERS)) if not by_kind[f"c{number}"]]
        found = [*idle, *self.wrong, *(["not drained"] if not drained else []), *([f"exit status {status}"] if status else []), *grown]
        return {
            "found": len(lost) + twice + len(found), "lost": len(lost), "completed_twice": twice, "other": found,
            "acknowledged": len(self._account.acknowledged), "completed": len(completions), "unknown_publishes": self._account.unknown,
            "completed_by": dict(sorted(by_kind.items())),
            "runs": sum(runs.values()), "runs_beyond_the_first": sum(runs.values()) - len(runs), "kills": dict(sorted(self.kills.items())),
            "first": self.samples[0] if self.samples else {}, "last": self.samples[-1] if self.samples else {},
        }  # fmt: skip

    def _completions(self) -> tuple[Counter[str], int, Counter[str]]:
        """Of each task, in queue.json and in the archive; how many tasks have more than one; how many each consumer made."""
        tasks = json.loads((self.cast.queue_dir / "queue.json").read_bytes())["tasks"]
        for path in sorted((self.cast.queue_dir / "archive").iterdir()):
            tasks += [json.loads(line) for line in path.read_bytes().splitlines()]
        completed = [(task["id"], past["consumer"]) for task in tasks for past in task["history"] if past["outcome"] == Outcome.COMPLETED]
        counts = Counter(task_id for task_id, _ in completed)
        return counts, sum(number > 1 for number in counts.values()), Counter(consumer.partition("@")[0] for _, consumer in completed)


def _signalled(pid: int, number: int) -> bool:
    """Whether there was somebody to hear it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _resident_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def _grown(samples: list[dict[str, int]]) -> list[str]:
    """What is larger by half, and by more than noise, in the last third than in the middle one."""
    if len(samples) < 12:
        return []
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    slack = {"mib": 24, "fds": 10, "kib": 8192, "iles": 20}
    return [
        f"{name} grew from {_median(middle, name)} to {_median(last, name)}"
        for name in samples[-1]
        if _median(last, name) > 1.5 * _median(middle, name) + slack[name[-3:] if name != "files" else "iles"]
    ]


def _median(samples: list[dict[str, int]], name: str) -> int:
    return sorted(sample.get(name, 0) for sample in samples)[len(samples) // 2]


# ── the rescue ───────────────────────────────────────────────────────────────────────────────────────────────────────


def rescues(queue_dir: Path, number: int) -> dict[str, Any]:
    """How long after the kill of its consumer a task runs elsewhere; the lease is ten minutes, so only the proved death can be why."""
    took_ms: list[float] = []
    with Cast(queue_dir) as cast, Publisher(queue_dir) as publisher:
        cast.serve("lease_ms=600000")
        first, second = cast.work("hang"), cast.work("hang")
        cast.await_consumers(2)
        for n in range(number):
            task = publisher.publish(n, attempts_max=1000)
            cast.witness.wait_for_runs(task.id, 1)
            holder = int(task.task().consumer.rpartition("@")[2])
            victim, other = (first, second) if holder == first.pid else (second, first)
            began = time.monotonic()
            victim.kill()
            cast.witness.wait_for_runs(task.id, 2)
            took_ms.append((time.monotonic() - began) * 1000)
            # The rescuer hangs in it, too: both make room for the next.
            task.cancel()
            cast.kill(victim)
            cast.kill(other)
            first, second = cast.work("hang"), cast.work("hang")
            cast.await_consumers(2)
    took_ms.sort()
    ranks = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {"rescues": number, **{name: round(took_ms[min(number - 1, int(number * rank))], 1) for name, rank in ranks.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=4, help="seconds from one kill to the next, on average")
    parser.add_argument("--rate", type=int, default=300, help="tasks published each second")
    parser.add_argument("--rescues", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # whoever was started is ended on the way
    with tempfile.TemporaryDirectory(prefix="jsonqueue-soak-", ignore_cleanup_errors=True) as folder:
        queue_dir = Path(folder) / "queue"
        if options.rescues:
            report = rescues(queue_dir, options.rescues)
        else:
            seconds = options.seconds or options.minutes * 60
            report = Soak(queue_dir, seconds=seconds, seed=options.seed, every=options.every, rate=options.rate).run()
    if not options.rescues:
        print(_row(report, f"{options.seconds or options.minutes * 60:g} s, seed {options.seed}"), file=sys.stderr)
    print(json.dumps(report), flush=True)
    sys.exit(1 if report.get("found") else 0)


def _row(report: dict[str, Any], how_long: str) -> str:
    """For the table in docs/track-record.md."""
    numbers = [f"{report[name]:,}" for name in ("acknowledged", "lost", "completed_twice", "runs_beyond_the_first")]
    grew = "; ".join(report["other"]) or f"nothing: {in_words(report['last'])}"
    return row(how_long, *numbers, in_words(report["kills"]), grew)


if __name__ == "__main__":
    main()
