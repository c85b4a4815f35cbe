"""A stage for the dispatcher: told in one word what happened, it plays the broker around it.

Every turn's records are written to a log of its own; :meth:`Stage.check` replays that log and holds the result against the live state, so
that each test of the dispatcher is a test of replay as well.
"""

from __future__ import annotations

from random import Random
from typing import Any

from msgspec import Raw, json

from jsonqueue.config import Config
from jsonqueue.core.dispatching import Dispatcher
from jsonqueue.core.records import Progress, decode_progress, decode_published, encode_records
from jsonqueue.core.state import QueueState
from jsonqueue.core.turn import Now, Turn
from jsonqueue.event import Assign, Cancel, Complete, Event, Fail, Failure, Heartbeat, Join, Replay, Return, Settled, Welcome
from jsonqueue.retry import Never
from jsonqueue.task import StoredTask, StoredTaskIn, TaskIn

START_MS = 1_763_000_000_000


def given(task_id: str, data: Any = None, **options: Any) -> StoredTaskIn:
    return TaskIn(id=task_id, data=Raw(json.encode(data)), **options)


class Stage:
    def __init__(self, *, config: Config | None = None, epoch: int = 1) -> None:
        self.config = config or Config(retry=Never())
        self.wall_ms = START_MS
        self.monotonic_ms = 1_000
        self.log: list[tuple[str, int, bytes, int]] = []
        self.published = 0
        self.dispatcher = Dispatcher(QueueState(), config=self.config, chance=Random(1), epoch=epoch)

    @property
    def now(self) -> Now:
        return Now(self.wall_ms, self.monotonic_ms)

    def later(self, ms: int) -> Turn:
        self.wall_ms += ms
        self.monotonic_ms += ms
        return self.turn()

    def publish(self, *tasks: StoredTaskIn | str) -> Turn:
        batch = encode_records([given(task) if isinstance(task, str) else task for task in tasks])
        first = self.published + 1
        self.published += len(tasks)
        self.log.append(("published", self.wall_ms, batch, first))
        made = self.dispatcher.state.publish(decode_published(batch), first=first, at_ms=self.wall_ms)
        self.dispatcher.published(made, self.now)
        return self.turn()

    def turn(self) -> Turn:
        self.dispatcher.tick(self.now)
        self.dispatcher.assign(self.now)
        turn = self.dispatcher.take_turn()
        if turn.records:
            self.log.append(("progress", self.wall_ms, encode_records(turn.records), 0))
        return turn

    def join(
        self, peer: int, want: int = 1, *, name: str = "", pid: int | None = None, holds: tuple[StoredTask, ...] = (), again: bool = False
    ) -> Turn:
        ids, tokens = [task.id for task in holds], [task.token for task in holds]
        join = Join(name or f"c{peer}", 100 + peer if pid is None else pid, want, ids, tokens, again=again)
        self.dispatcher.join(peer, join, self.now)
        return self.turn()

    def leave(self, peer: int) -> Turn:
        self.dispatcher.leave(peer, self.now)
        return self.turn()

    def complete(self, peer: int, *held: tuple[str, int], result: Any = None, want: int = 1) -> Turn:
        ids, tokens = [task_id for task_id, _ in held], [token for _, token in held]
        self.dispatcher.complete(peer, Complete(7, ids, tokens, [Raw(json.encode(result))] * len(ids), want), self.now)
        return self.turn()

    def fail(self, peer: int, *failures: Failure, want: int = 1) -> Turn:
        self.dispatcher.fail(peer, Fail(8, list(failures), want), self.now)
        return self.turn()

    def give_back(self, peer: int, *held: tuple[str, int], want: int = 1) -> Turn:
        self.dispatcher.give_back(peer, Return(9, [i for i, _ in held], [t for _, t in held], want), self.now)
        return self.turn()

    def heartbeat(self, peer: int, *held: tuple[str, int], want: int = 1) -> Turn:
        self.dispatcher.heartbeat(peer, Heartbeat([i for i, _ in held], [t for _, t in held], want), self.now)
        return self.turn()

    def cancel(self, *ids: str, peer: int = 90) -> Turn:
        self.dispatcher.callers.cancel(peer, Cancel(1, list(ids)), self.now)
        return self.turn()

    def replay(self, *ids: str, peer: int = 90) -> Turn:
        self.dispatcher.callers.replay(peer, Replay(2, list(ids)), self.now)
        return self.turn()

    def task(self, task_id: str) -> StoredTask:
        return self.dispatcher.state.tasks[task_id]

    def statuses(self) -> dict[str, str]:
        return {task.id: task.status.value for task in self.dispatcher.state.tasks.values()}

    def replayed(self) -> QueueState:
        """The state as the log alone tells it."""
        state = QueueState()
        for kind, at_ms, batch, first in self.log:
            if kind == "published":
                state.publish(decode_published(batch), first=first, at_ms=at_ms)
            else:
                for record in decode_progress(batch):
                    state.apply(record, at_ms=at_ms)
        return state

    def restarted(self, *, epoch: int) -> Stage:
        """A new broker on the same log."""
        stage = Stage(config=self.config, epoch=epoch)
        stage.wall_ms, stage.monotonic_ms, stage.published, stage.log = self.wall_ms, self.monotonic_ms, self.published, self.log
        stage.dispatcher = Dispatcher(self.replayed(), config=self.config, chance=Random(1), epoch=epoch)
        stage.dispatcher.adopt(stage.now)
        return stage

    def check(self) -> None:
        """Live state = replay of the log."""
        assert json.encode(self.dispatcher.state.tasks) == json.encode(self.replayed().tasks)


def assigned(turn: Turn, peer: int | None = None) -> list[tuple[str, int]]:
    """What was pushed, as (id, token); of one peer, or of all."""
    pushed = [(who, event) for who, event in turn.pushes if isinstance(event, Assign)]
    return [(task.id, task.token) for who, event in pushed if peer in {None, who} for task in event.tasks]


def welcome(turn: Turn) -> Welcome:
    """What the one who joined in it was told."""
    (event,) = [event for _, event in turn.pushes if isinstance(event, Welcome)]
    return event


def answers(turn: Turn, kind: type[Event]) -> list[Any]:
    return [event for _, event in turn.answers if isinstance(event, kind)]


def stale(turn: Turn) -> list[int]:
    return [token for settled in answers(turn, Settled) for token in settled.stale]


def whats(turn: Turn) -> list[str]:
    return [record.__struct_config__.tag for record in turn.records]


def record_of(turn: Turn, position: int = 0) -> Progress:
    return turn.records[position]
