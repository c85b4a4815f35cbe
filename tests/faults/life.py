"""The canonical life of a queue: both real brokers, checkpoints, restarts, a clean stop, damage and its repair, on any disk.

What was promised is told to a witness, word by word, as it is promised (``say``): :class:`Ledger` keeps it, in another process if need be.
:func:`judge` compares the files with it, and lets the queue go on until everything is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from msgspec import Raw, json

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.config import Config
from jsonqueue.errors import StorageError
from jsonqueue.event import Assign, Complete, Event, Fail, Failure, Join, Mark, Settled, Write, Written
from jsonqueue.retry import Linear
from jsonqueue.storage.checkpoint import checkpoint, final_checkpoint
from jsonqueue.storage.files import Files, write_all
from jsonqueue.storage.queue_file import QUEUE
from jsonqueue.storage.recovery import Loaded, load_state
from jsonqueue.storage.repair import mend
from jsonqueue.task import Outcome, TaskIn

__all__ = ["CONFIG", "Ledger", "Life", "StillOpenError", "damage_queue", "judge", "recover", "the_life"]

CONFIG = Config(
    retry=Linear(step_ms=50), attempts_max=1_000, lease_ms=5_000, finished_keep_max=2, segment_max_bytes=4_096, disk_reserve_bytes=0
)
WALL_MS = 1_763_000_000_000
MONTH_MS = 31 * 86_400_000
Say = Callable[[str], None]


class Ledger:
    """What was tried, and what was promised."""

    def __init__(self) -> None:
        self.tried: dict[str, None] = {}
        self.acknowledged: set[str] = set()
        self.completed: dict[str, int] = {}
        self.tokens: dict[int, str] = {}
        self.refused: set[str] = set()
        """And not tried again since."""
        self.damaged = False
        self.words = 0

    @property
    def unanswered(self) -> list[str]:
        return [task_id for task_id in self.tried if task_id not in self.acknowledged]

    def hear(self, line: str) -> None:
        """One word of the queue's: ``try ids``, ``ack ids``, ``done id token``, ``damaged``."""
        verb, *rest = line.split()
        self.words += 1
        if verb == "try":
            self.tried.update(dict.fromkeys(rest))
            self.refused.difference_update(rest)
        elif verb == "ack":
            self.acknowledged.update(rest)
        elif verb == "done":
            assert self.completed.get(rest[0], int(rest[1])) == int(rest[1]), f"{rest[0]} completed twice"
            assert self.tokens.setdefault(int(rest[1]), rest[0]) == rest[0], f"token {rest[1]} was given out twice"
            self.completed[rest[0]] = int(rest[1])
        elif verb == "refused":
            self.refused.update(rest)
        elif verb in {"damaged", "mended"}:
            self.damaged = verb == "damaged"


class StillOpenError(AssertionError):
    """Not everything was completed in a very long time."""


class Clock:
    """Stands still but for what the life lets pass."""

    def __init__(self, generation: int) -> None:
        self.ms = 1_000 + generation * 1_000_000

    def wall_ms(self) -> int:
        return WALL_MS + self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Life:
    """Both brokers on ``files``, and one consumer; who hears what is told through ``say``."""

    def __init__(self, files: Files, say: Say, *, generation: int = 0) -> None:
        self.files = files
        self.clock = Clock(generation)
        self.consumer = 7 + generation
        self._say = say
        self._requests = 0
        self._unsettled: dict[int, tuple[str, int]] = {}
        self._writing: list[str] = []
        self.held: dict[int, str] = {}

    # ── brokers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Both brokers, cold."""
        self.start_publisher_broker()
        self.start_consumer_broker()

    def start_publisher_broker(self) -> None:
        self.pb = PublisherBroker(self.files, self.clock, CONFIG, announce=self._announced)
        self.pb.open()
        self.mark = self.pb.mark

    def start_consumer_broker(self) -> None:
        """A new one; the consumer of the last one died with it."""
        self.cb = ConsumerBroker(self.files, self.clock, CONFIG, chance=Random(1), is_alive=lambda pid: False)
        self.cb.open()
        self.held.clear()
        self._unsettled.clear()
        self.consumer += 1_000
        self.turn()
        self.clock.ms += 300  # time enough to find that out
        self.turn((self.consumer, Join("c", 1, 2, [], [])))

    def close(self) -> None:
        self.pb.close()
        self.cb.close()

    def stop(self, *, after_ms: int = 0) -> None:
        """A clean stop: everything folded into queue.json."""
        self.close()
        self.clock.ms += after_ms
        final_checkpoint(self.files, config=CONFIG, at_ms=self.clock.wall_ms())

    def checkpoint(self) -> None:
        """As the manager does it."""
        self.pb.rotate()
        cut = self.cb.cut()
        if cut is not None:
            done = checkpoint(self.files, cut, config=CONFIG, at_ms=self.clock.wall_ms())
            self.pb.forget(done.left, done.through_task)

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, *ids: str, size: int = 8) -> None:
        self._say(f"try {' '.join(ids)}")
        self._requests += 1
        self._writing = list(ids)
        tasks = [TaskIn(id=task_id, data=Raw(b'"%b"' % (b"x" * size))) for task_id in ids]
        self.pb.step([(1, Write(self._requests, tasks))], self._told)
        self.turn()

    def turn(self, *arrivals: tuple[int, Event]) -> None:
        self.cb.step([(0, self.mark), *arrivals], self._told)

    def complete(self, count: int = 1, *, want: int = 2) -> None:
        """The consumer completes some of what it holds."""
        for token, task_id in sorted(self.held.items())[:count]:
            del self.held[token]
            self._requests += 1
            self._unsettled[self._requests] = (task_id, token)
            self.turn((self.consumer, Complete(self._requests, [task_id], [token], [Raw(b'{"token":%d}' % token)], want)))

    def fail(self) -> None:
        """The consumer fails one of what it holds; it comes again."""
        if not self.held:
            return
        token, task_id = min(self.held.items())
        del self.held[token]
        self._requests += 1
        self.turn((self.consumer, Fail(self._requests, [Failure(task_id, token, "no")], 2)))
        self.clock.ms += 100
        self.turn()

    def heal(self, unanswered: list[str]) -> None:
        """Publish again what was not answered, and complete whatever is there."""
        if unanswered:
            self.publish(*unanswered)
        for _ in range(200):
            self.clock.ms += 100
            self.turn()
            if not self.held and not self._open():
                return
            self.complete(10)
        raise StillOpenError(f"the queue does not drain: {self._open()}")

    def _open(self) -> dict[str, str]:
        return {task.id: task.status for task in load_state(self.files).state.tasks.values() if not task.status.ended}

    def _announced(self, mark: Mark) -> None:
        self.mark = mark

    def _told(self, peer: int, event: Event) -> None:
        if isinstance(event, Written):
            refused = {refusal.index for refusal in event.refused}
            stored = [task_id for index, task_id in enumerate(self._writing) if index not in refused]
            if refused:
                self._say(f"refused {' '.join(self._writing[index] for index in sorted(refused))}")
            if stored:
                self._say(f"ack {' '.join(stored)}")
        elif peer == self.consumer and isinstance(event, Assign):
            # Encoded and decoded, as on a Pipe: the consumer has its own copy.
            self.held.update({task.token: task.id for task in json.decode(json.encode(event), type=Assign).tasks})
        elif peer == self.consumer and isinstance(event, Settled) and event.request in self._unsettled:
            task_id, token = self._unsettled.pop(event.request)
            if token not in event.stale:
                self._say(f"done {task_id} {token}")


def the_life(life: Life, say: Say) -> None:
    """Publish, dispatch, complete, fail, rotate, checkpoint, restart, stop, start, be damaged, repair: each at least once."""
    life.start()
    life.publish("a0", "a1", "a2")
    life.complete()
    life.checkpoint()
    life.publish("b0", "b1", size=700)
    life.complete()
    life.fail()
    life.checkpoint()
    life.start_publisher_broker()
    life.publish("c0", size=1_500)
    life.start_consumer_broker()
    life.complete(2)  # More than two have ended: the first is retired.
    life.checkpoint()
    life.publish("d0")
    life.stop(after_ms=MONTH_MS)  # Another month, another archive file.
    life.start()
    life.publish("d0")  # A publisher that did not hear the answer asks again.
    life.publish("e0", "e1")
    life.complete(2)
    life.checkpoint()
    life.publish("f0")
    life.close()
    damage_queue(life.files, say)
    _mend(life, say)
    life.start()
    life.publish("g0")
    life.complete(2)
    life.checkpoint()
    life.stop()


def damage_queue(files: Files, say: Say) -> None:
    """One wrong bit in the middle of queue.json."""
    handle = files.open(QUEUE)
    data = bytearray(files.read(handle, 0, files.size(handle)))
    files.close(handle)
    data[len(data) // 2] ^= 1
    if "rotten" in files.list():
        files.unlink("rotten")
    handle = files.open("rotten", create=True)
    write_all(files, handle, 0, bytes(data))
    files.sync(handle)
    files.close(handle)
    say("damaged")
    files.rename("rotten", QUEUE)
    files.sync_folder()


def _mend(life: Life, say: Say) -> None:
    report = mend(life.files, accept_loss=False, accept_edit=False, at_ms=life.clock.wall_ms())
    if not report.ok:
        raise StorageError(f"not mended: {report.findings}")
    say("mended")


def recover(files: Files, ledger: Ledger, say: Say, *, generation: int) -> None:
    """What happens after a crash: repair where there was damage, start, go on with everything, a checkpoint, a clean stop."""
    life = Life(files, say, generation=generation)
    if ledger.damaged:
        _mend(life, say)
    life.start()
    life.heal(ledger.unanswered)
    life.checkpoint()
    life.stop(after_ms=1)


def judge(files: Files, ledger: Ledger, *, generation: int = 99, drain: bool = True) -> None:
    """Assert that everything promised is there, once, and nothing that nobody published; then that the queue can go on."""
    life = Life(files, ledger.hear, generation=generation)
    if ledger.damaged:
        _mend(life, ledger.hear)
    life.start()
    life.checkpoint()  # A retired task is in neither the queue nor the archive until one has passed.
    _compare(files, load_state(files), ledger)
    if drain:
        life.heal(ledger.unanswered)
        life.checkpoint()
        before = _encoded(load_state(files))
        life.stop()
        after = load_state(files)
        assert _encoded(after) == before, "the fold differs from the replay"
        assert not [name for name in files.list() if name.endswith(".jsonl")], "a clean stop leaves segments behind"
        assert set(ledger.tried) <= _compare(files, after, ledger).keys()
    else:
        life.close()


def _encoded(loaded: Loaded) -> dict[str, bytes]:
    return {task.id: json.encode(task) for task in loaded.state.tasks.values()}


def _compare(files: Files, loaded: Loaded, ledger: Ledger) -> dict[str, Any]:
    queue = {task_id: json.decode(line) for task_id, line in _encoded(loaded).items()}
    archive = _archived(files, loaded)
    assert not queue.keys() & archive.keys(), "in the queue and in the archive at once"
    known = {**queue, **archive}
    assert ledger.acknowledged <= known.keys(), f"lost: {sorted(ledger.acknowledged - known.keys())}"
    assert not ledger.refused & known.keys(), f"refused, and stored all the same: {sorted(ledger.refused & known.keys())}"
    assert known.keys() <= ledger.tried.keys(), f"unexpected: {sorted(known.keys() - ledger.tried.keys())}"
    for task_id, token in ledger.completed.items():
        assert known[task_id]["status"] == "completed", f"{task_id} is {known[task_id]['status']} again"
        assert known[task_id]["result"] == {"token": token}, f"{task_id} has another completion's result"
    numbers = [task["number"] for task in known.values()]
    assert len(numbers) == len(set(numbers)), "two tasks have the same number"
    for task in known.values():
        assert sum(past["outcome"] == Outcome.COMPLETED for past in task.get("history", ())) <= 1, "completed twice"
    return known


def _archived(files: Files, loaded: Loaded) -> dict[str, Any]:
    """What the archive holds, up to the length that queue.json vouches for."""
    found: dict[str, Any] = {}
    for name in files.list("archive"):
        path = f"archive/{name}"
        handle = files.open(path)
        data = files.read(handle, 0, files.size(handle))
        files.close(handle)
        if loaded.header.archive.file == path:
            data = data[: loaded.header.archive.length]
        elif path > loaded.header.archive.file:
            continue
        for line in data.split(b"\n")[:-1]:
            task = json.decode(line)
            assert task["id"] not in found, "archived twice"
            found[task["id"]] = task
    return found
