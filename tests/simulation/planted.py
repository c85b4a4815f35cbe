"""Bugs on purpose. Each takes one rule of the protocol away, in the tests alone; the code of production has no switch for it.

``HOLE`` names the hole of the protocol (docs/protocol.md and its model) that the rule closes, where it is one of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

from msgspec.structs import replace

from jsonqueue.broker import consumer_broker
from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.client.window import Window
from jsonqueue.config import Config
from jsonqueue.core.dependencies import Dependencies
from jsonqueue.core.dispatching import Dispatcher
from jsonqueue.core.ready import ReadyQueue
from jsonqueue.errors import SyncFailed
from jsonqueue.event import Complete, Mark, Write, Written
from jsonqueue.retry import Linear
from jsonqueue.simulation import Fault, Habits, Scenario, Weather
from jsonqueue.simulation.cast import PRODUCTION, Cast
from jsonqueue.simulation.disk import ProcessFiles
from jsonqueue.storage import log as logging_of_the_queue
from jsonqueue.storage import recovery
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.queue_file import QueueWriter, read_header
from simulation.holes import HOLES, changed

Plant = Callable[[], AbstractContextManager[Cast]]


class Planted(NamedTuple):
    seed: int
    """The first seed that finds it; so it takes so many worlds, and one more."""
    plant: Plant
    hole: str = ""
    scenario: Scenario | None = None
    """The scenario it is found in, if not that of the seed: what it takes is too rare to be drawn by chance."""


def _cast(**changed: Any) -> Plant:
    @contextmanager
    def plant() -> Iterator[Cast]:
        yield PRODUCTION._replace(**changed)

    return plant


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> Plant:
    @contextmanager
    def plant() -> Iterator[Cast]:
        with patch.object(owner, name, make(getattr(owner, name))):
            yield PRODUCTION

    return plant


@contextmanager
def _no_sync() -> Iterator[None]:
    def sync(self: ProcessFiles, handle: int) -> None:
        self._spend(10)

    with patch.object(ProcessFiles, "sync", sync):
        yield


def _unsynced(kind: LogKind) -> Callable[[Any], Any]:
    def make(real: Any) -> Any:
        def sync(self: LogWriter) -> None:
            if self.kind is not kind:
                real(self)

        return sync

    return make


def _within_unsynced(real: Any) -> Any:
    """The real thing, but no fsync of a file in it does anything."""

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        with _no_sync():
            return real(self, *arguments, **named)

    return call


def _within_unsynced_folder(real: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        with patch.object(ProcessFiles, "sync_folder", lambda self, name="": self._spend(10)):
            return real(*arguments, **named)

    return call


class _AnswersFirst(PublisherBroker):
    def step(self, arrivals: Any, send: Any) -> None:
        answers: list[Any] = []
        store = self._store

        def answer_then_store(accepted: Any) -> None:
            for peer, write in arrivals:
                send(peer, Written(write.request, self._log.position.number + 1))
            store(accepted)

        with patch.object(self, "_store", answer_then_store):
            super().step(arrivals, lambda peer, event: answers.append(event))


class _AnnouncesFirst(PublisherBroker):
    def _store(self, accepted: Any) -> None:
        position = self._log.position
        self._announce(Mark(position.number + 1, self._log.epoch))
        super()._store(accepted)


class _DuplicatesFromTheVolatile(PublisherBroker):
    """A duplicate is answered at once, whatever it rests on: here, the very batch it came with."""

    def step(self, arrivals: Any, send: Any) -> None:
        seen: set[str] = set()
        for peer, write in arrivals:
            ids = {task.id for task in write.tasks} if isinstance(write, Write) else set()
            if ids and ids <= seen:
                send(peer, Written(write.request, 0, list(range(len(write.tasks)))))
            seen |= ids
        super().step(arrivals, send)


class _ReadsBeyondTheMark(ConsumerBroker):
    def step(self, arrivals: Any, send: Any) -> None:
        if self.ready:
            end = logging_of_the_queue.log_end(self._files, LogKind.PUBLISHED, read_header(self._files))
            arrivals = [*arrivals, (0, Mark(end.number, end.epoch))]
        super().step(arrivals, send)


class _NotOfTheDispatcher(ConsumerBroker):
    """Comes up with the tasks that were in progress, and forgets to queue those that were ready."""

    def _load(self, mark: Any, now: Any) -> Any:
        with patch.object(ReadyQueue, "add", lambda self, task: None):
            return super()._load(mark, now)


def _as_a_hole(what: str) -> Plant:
    """The line that the small worlds miss under this name."""

    @contextmanager
    def plant() -> Iterator[Cast]:
        hole = next(hole for hole in HOLES if hole.what == what)
        with changed(hole.file, hole.old, hole.new):
            yield PRODUCTION

    return plant


def _line(file: str, old: str, new: str) -> Plant:
    """A line of the source, changed."""
    return _lines((file, old, new))


def _lines(*changes: tuple[str, str, str]) -> Plant:
    """Lines of the source, changed: where two see to the same."""

    @contextmanager
    def plant() -> Iterator[Cast]:
        with ExitStack() as stack:
            for file, old, new in changes:
                stack.enter_context(changed(file, old, new))
            yield PRODUCTION

    return plant


class _SyncsLate(ConsumerBroker):
    """Whatever is answered is durable; what nobody is told of waits for the next turn."""

    def step(self, arrivals: Any, send: Any) -> None:
        self._log.sync()
        super().step(arrivals, send)


@contextmanager
def _synced_late() -> Iterator[Cast]:
    synced = 'if self._config.durability == "power-cut":'
    with changed("broker/consumer_broker.py", synced, synced.replace("if", "if turn.answers and")):
        yield PRODUCTION._replace(consumer_broker=_SyncsLate)


class _DatesLate(ConsumerBroker):
    """The bug that seed 135 found: a turn that waited for room is written under the time at which there was some."""

    def _is_written(self, turn: Any, at_ms: int, now: Any) -> bool:
        return super()._is_written(turn, now.wall_ms, now)


def _checkpoint_names_too_many(files: Any, cut: Any, **named: Any) -> Any:
    """The PublisherBroker is told that everything left, so it takes every id again."""
    done = PRODUCTION.checkpoint(files, cut, **named)
    known = recovery.load_ids(files).numbers
    return done._replace(left=known)


def _checkpoint_unlinks_the_newest(files: Any, cut: Any, **named: Any) -> Any:
    done = PRODUCTION.checkpoint(files, cut, **named)
    for name in files.list():
        if name.startswith("published-"):
            with suppress(FileNotFoundError):
                files.unlink(name)
            break
    return done


def _checkpoint_without_folder_sync(files: Any, cut: Any, **named: Any) -> Any:
    return _within_unsynced_folder(PRODUCTION.checkpoint)(files, cut, **named)


def _swallows_sync_failures(real: Any) -> Any:
    def sync(self: LogWriter) -> None:
        try:
            real(self)
        except SyncFailed:
            self._broken, self._unsynced = "", False

    return sync


def _keeps_what_was_written_of_it(real: Any) -> Any:
    def cut_back(self: LogWriter) -> None:
        self.bytes = self._padded = self._files.size(self._handle)

    return cut_back


def _completes_without_a_token(real: Any) -> Any:
    def complete(self: Dispatcher, peer: int, event: Any, now: Any) -> None:
        for position, task_id in enumerate(event.ids):
            for seat in self._seats:
                token = next((token for token, task in seat.held.items() if task.id == task_id), None)
                if token is not None and token != event.tokens[position] and (asking := self._seats.get(peer)):
                    asking.held[event.tokens[position]] = seat.held.pop(token)
        real(self, peer, event, now)

    return complete


def _least_urgent_first(real: Any) -> Any:
    def take(self: ReadyQueue, *arguments: Any, **named: Any) -> Any:
        self._order.reverse()
        try:
            return real(self, *arguments, **named)
        finally:
            self._order.sort()

    return take


def _newest_first(real: Any) -> Any:
    def take(self: ReadyQueue, *arguments: Any, **named: Any) -> Any:
        return real(self, *arguments, **named)[::-1]

    return take


def _same_epoch_again(real: Any) -> Any:
    return lambda epoch: real(1)


@contextmanager
def _completing_without_a_token() -> Iterator[Cast]:
    with patch.dict(consumer_broker._HANDLE, {Complete: _completes_without_a_token(Dispatcher.complete)}):
        yield PRODUCTION


_BROKERS = ("kill publisher broker", "kill consumer broker")

_RESTARTS = Scenario(
    tasks=120,
    spread_us=1_200_000,
    faults=tuple(Fault(20_000 + 30_000 * n, _BROKERS[n % 2]) for n in range(60)),
    read_us=300,
    config=Config(retry=Linear(step_ms=20), attempts_max=1_000, flush_interval_ms=10, lease_ms=2_000, disk_reserve_bytes=0),
)
"""Brokers that start again and again while checkpoints are made."""

_STALLS = Scenario(
    tasks=30,
    habits=Habits(work_us=(200_000, 500_000)),
    faults=tuple(Fault(100_000 * n, "stall consumer", n % 3, 400_000) for n in range(30)),
    config=Config(retry=Linear(step_ms=20), attempts_max=1_000, lease_ms=300, disk_reserve_bytes=0),
)
"""Consumers that stand still for longer than their lease, and go on with what somebody else has by then."""

_FULL_DISK = Scenario(
    publishers=3,
    consumers=4,
    tasks=120,
    batch=10,
    habits=Habits(work_us=(200, 4_000), failing=0.4),
    faults=tuple(Fault(80_000 * n, "full disk", 0, 70_000) for n in range(18)),
    config=Config(retry=Linear(step_ms=20), attempts_max=1_000, flush_interval_ms=60, segment_max_bytes=4_096, disk_reserve_bytes=0),
)
"""A disk that is full most of the time."""

_FULL_AND_LOSSY = replace(_FULL_DISK, weather=Weather(drop=0.2), patience_us=30_000)
"""The same, and many an answer is lost: what is stored is published again beside what finds no room."""

BUGS: dict[str, Planted] = {
    "publish answered before it is stored": Planted(0, _cast(publisher_broker=_AnswersFirst)),
    "publish answered without fsync": Planted(0, _patch(LogWriter, "sync", _unsynced(LogKind.PUBLISHED))),
    "outcome answered without fsync": Planted(0, _patch(LogWriter, "sync", _unsynced(LogKind.PROGRESS))),
    "turn without an answer is synced in the next one": Planted(0, _synced_late),
    "duplicate answered too early": Planted(8, _cast(publisher_broker=_DuplicatesFromTheVolatile), "H2"),
    "mark announced before the fsync": Planted(0, _cast(publisher_broker=_AnnouncesFirst), "H1"),
    "reader goes beyond the mark": Planted(12, _cast(consumer_broker=_ReadsBeyondTheMark), "H1"),
    "copied tail without fsync": Planted(7, _patch(LogWriter, "_begin", _within_unsynced), "H3"),
    "fsync tried again after it failed": Planted(9, _patch(LogWriter, "sync", _swallows_sync_failures), "H4"),
    "token without a fresh epoch": Planted(0, lambda: _module_patch("jsonqueue.core.dispatching.first_token", _same_epoch_again), "H9"),
    "ids forgotten too early": Planted(6, _cast(checkpoint=_checkpoint_names_too_many), "H10"),
    "start does not read again": Planted(2, lambda: _module_patch(("log", "recovery"), None), "H12", _RESTARTS),
    "rotation without fsync of the folder": Planted(0, _patch(LogWriter, "_create", _within_unsynced_folder), "H15"),
    "start without fsync of the folder": Planted(0, _patch(LogWriter, "_begin", _within_unsynced_folder)),
    "task numbers go on from the log only": Planted(0, _as_a_hole("task numbers go on from the log only"), "H8"),
    "an empty segment is rotated": Planted(0, _as_a_hole("an empty segment is rotated"), "H16"),
    "folded beyond the cut": Planted(96, _as_a_hole("published batches beyond the cut are folded"), "H18"),
    "archive not cut": Planted(126, _as_a_hole("the archive is not cut to what is committed of it"), "H19"),
    "segment deleted whatever it holds": Planted(0, _cast(checkpoint=_checkpoint_unlinks_the_newest), "H17"),
    "checkpoint without fsync of its draft": Planted(0, _patch(QueueWriter, "finish", _within_unsynced)),
    "checkpoint without fsync of the folder": Planted(2, _cast(checkpoint=_checkpoint_without_folder_sync)),
    "half a batch kept on a full disk": Planted(0, _patch(LogWriter, "_cut_back", _keeps_what_was_written_of_it), "", _FULL_DISK),
    "turn dated when there was room": Planted(0, _cast(consumer_broker=_DatesLate), "", _FULL_DISK),
    "numbers kept after a failed batch": Planted(12, _line("broker/publisher_broker.py", "                accepted = []\n", "")),
    "completion without a token": Planted(1, _completing_without_a_token, "", _STALLS),
    "lost consumer keeps its tasks": Planted(1, _patch(Dispatcher, "_lose", lambda real: lambda self, tasks, outcome, now: None)),
    "ready tasks not queued after a start": Planted(0, _cast(consumer_broker=_NotOfTheDispatcher)),
    "dependants never released": Planted(3, _patch(Dependencies, "completed", lambda real: lambda self, task_id: [])),
    "least urgent first": Planted(3, _patch(ReadyQueue, "take", _least_urgent_first)),
    "window forgets what was on its way": Planted(3, _patch(Window, "broken", lambda real: lambda self: self.in_flight.clear())),
    "a revoked run leaves its slot free": Planted(
        62, _line("client/holdings.py", "if slot.task is None or not slot.cancelled", "if slot.task is None or slot.task")
    ),
    "a living consumer is buried": Planted(
        9, _line("broker/consumer_broker.py", "if pid and not self._is_alive(pid)", "if pid and self._is_alive(pid)")
    ),
    "a lease lasts for half its time": Planted(
        3,
        _line(
            "core/dispatching.py",
            "range(first, self._next_token), now_ms=now.monotonic_ms, lease_ms=self._config.lease_ms",
            "range(first, self._next_token), now_ms=now.monotonic_ms, lease_ms=self._config.lease_ms // 2",
        ),
    ),
    "a stored task is refused for want of room": Planted(
        12,
        _line(
            "broker/publisher_broker.py",
            "_for_want_of_room(verdict, str(error)) for verdict in self._admission.decide(given, room=False)",
            "Verdict([], [], [Refusal(index, str(error)) for index in range(len(tasks))]) for tasks in given",
        ),
        "",
        _FULL_AND_LOSSY,
    ),
    "a stream of leases holds a term open": Planted(
        446, _line("core/waiting.py", "ends < self._closes_ms:", "ends - terms[-1][0] < lease_ms // self._TERMS_A_LEASE:")
    ),
    "a client that is gone is dropped unread": Planted(
        446, _line("broker/loop.py", "self._ask_no_more(peer)  # It has ended,", "self._give_up(peer)  # It has ended,")
    ),
    "a checkpoint without room leaves its draft": Planted(
        1,
        _lines(
            ("storage/queue_file.py", "            files.unlink(name)  # Until", "            # Until"),
            ("storage/checkpoint.py", "        _unlink(self._files, [DRAFT])\n", "        pass\n"),
        ),
    ),
    "a killed manager's draft stays": Planted(0, _line("storage/checkpoint.py", "    _unlink(files, [DRAFT])\n", "    pass\n")),
    "a checkpoint without room leaves a file open": Planted(
        2, _line("storage/checkpoint.py", "        finally:\n            self._archive.close()", "        finally:\n            pass")
    ),
    "what got lost on its way waits for its lease": Planted(
        38, _patch(Dispatcher, "_take_back_what_got_lost", lambda real: lambda self, seat, now: None)
    ),
    "newest first": Planted(0, _patch(ReadyQueue, "take", _newest_first)),
}


@contextmanager
def _module_patch(target: Any, make: Any) -> Iterator[Cast]:
    if isinstance(target, str):
        module, _, name = target.rpartition(".")
        owner = import_module(module)
        with patch.object(owner, name, make(getattr(owner, name))):
            yield PRODUCTION
        return
    once = lambda files, read: read()  # noqa: E731
    with patch.object(logging_of_the_queue, "consistently", once), patch.object(recovery, "consistently", once):
        yield PRODUCTION
