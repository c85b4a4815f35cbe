"""Whatever happens in whatever order: the invariants of the dispatcher under random transcripts."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import json

from core.stage import Stage, assigned, given
from jsonqueue.config import Config
from jsonqueue.event import Failure
from jsonqueue.retry import Linear
from jsonqueue.task import TaskStatus

_PEERS = st.integers(1, 3)


class Queue(RuleBasedStateMachine):
    """Three consumers, a few publishers' habits, a clock, broker restarts; consumers as they should be and as they should not."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(config=Config(lease_ms=1_000, retry=Linear(step_ms=300), finished_keep_max=5))
        self.epoch = 1
        self.names = 0
        self.held: dict[int, dict[int, str]] = {}
        self.completed: dict[str, int] = {}
        self.old_tokens: list[tuple[str, int]] = []

    def _note(self, turn) -> None:  # type: ignore[no-untyped-def]
        for peer in list(self.held):
            for task_id, token in assigned(turn, peer):
                self.held[peer][token] = task_id
                self.old_tokens.append((task_id, token))
        for record in turn.records:
            if type(record).__name__ == "Completed":
                for task_id in record.ids:
                    self.completed[task_id] = self.completed.get(task_id, 0) + 1

    @rule(
        count=st.integers(1, 3),
        priority=st.integers(-1, 1),
        wait=st.sampled_from([0, 0, 500]),
        deadline=st.sampled_from([0, 0, 900]),
        chain=st.booleans(),
    )
    def publish(self, count: int, priority: int, wait: int, deadline: int, chain: bool) -> None:
        tasks = []
        for _ in range(count):
            self.names += 1
            after = (f"t{self.names - 1}",) if chain and self.names > 1 else ()
            now = self.stage.wall_ms
            options = {"run_at_ms": now + wait if wait else 0, "deadline_ms": now + deadline if deadline else 0}
            tasks.append(given(f"t{self.names}", self.names, priority=priority, after=after, **options))
        self._note(self.stage.publish(*tasks))

    @rule(peer=_PEERS, want=st.integers(1, 4))
    def join(self, peer: int, want: int) -> None:
        if peer not in self.held:
            self.held[peer] = {}
            self._note(self.stage.join(peer, want))

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), how=st.sampled_from(["complete", "complete", "fail", "return"]), want=st.integers(0, 4))
    def settle(self, data: st.DataObject, how: str, want: int) -> None:
        peer = data.draw(st.sampled_from([peer for peer, held in self.held.items() if held]))
        token = data.draw(st.sampled_from(sorted(self.held[peer])))
        task_id = self.held[peer].pop(token)
        if how == "complete":
            self._note(self.stage.complete(peer, (task_id, token), result=task_id, want=want))
        elif how == "fail":
            self._note(self.stage.fail(peer, Failure(task_id, token, "no"), want=want))
        else:
            self._note(self.stage.give_back(peer, (task_id, token), want=want))

    @precondition(lambda self: self.old_tokens and self.held)
    @rule(data=st.data())
    def speak_late(self, data: st.DataObject) -> None:
        """Somebody completes with any token that was ever given out."""
        peer = data.draw(st.sampled_from(sorted(self.held)))
        task_id, token = data.draw(st.sampled_from(self.old_tokens))
        self.held[peer].pop(token, None)
        self._note(self.stage.complete(peer, (task_id, token), want=1))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[peer]
        self._note(self.stage.leave(peer))

    @rule(ms=st.sampled_from([1, 300, 1_000]), beat=st.booleans())
    def wait(self, ms: int, beat: bool) -> None:
        if beat:
            for peer, held in self.held.items():
                self._note(self.stage.heartbeat(peer, *[(task_id, token) for token, task_id in held.items()], want=2))
        self._note(self.stage.later(ms))

    @precondition(lambda self: self.names)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "replay"]))
    def call(self, data: st.DataObject, how: str) -> None:
        task_id = f"t{data.draw(st.integers(1, self.names))}"
        self._note(self.stage.cancel(task_id) if how == "cancel" else self.stage.replay(task_id))

    @rule(back=st.booleans())
    def restart(self, back: bool) -> None:
        """A new broker on the same log; its consumers come back with what they hold, or are proved dead."""
        self.epoch += 1
        held, self.held = self.held, {}
        self.stage = self.stage.restarted(epoch=self.epoch)
        for peer, tokens in held.items():
            label = f"c{peer}@{100 + peer}"
            if back:
                tasks = [task for task in self.stage.dispatcher.state.tasks.values() if task.token in tokens and task.consumer == label]
                self.held[peer] = {task.token: task.id for task in tasks}
                self._note(self.stage.join(peer, 2, holds=tuple(tasks)))
            else:
                self.stage.dispatcher.bury(label, self.stage.now)
        self._note(self.stage.turn())

    @invariant()
    def the_log_tells_the_state(self) -> None:
        assert json.encode(self.stage.dispatcher.state.tasks) == json.encode(self.stage.replayed().tasks)

    @invariant()
    def nobody_completes_twice(self) -> None:
        assert all(count == 1 for count in self.completed.values())

    @invariant()
    def a_task_in_progress_has_one_holder(self) -> None:
        dispatcher = self.stage.dispatcher
        holders = [token for seat in dispatcher._seats for token in seat.held] + list(dispatcher._orphans._tasks)
        leased = [task.token for task in dispatcher.state.tasks.values() if task.status is TaskStatus.IN_PROGRESS]
        assert sorted(holders) == sorted(leased)

    def teardown(self) -> None:
        """Left alone with one good consumer, every task ends."""
        for peer in list(self.held):
            self.stage.leave(peer)
        self.held = {9: {}}
        self._note(self.stage.join(9, 100))
        for _ in range(60):
            while self.held[9]:
                token, task_id = self.held[9].popitem()
                self._note(self.stage.complete(9, (task_id, token), want=100))
            self._note(self.stage.heartbeat(9, want=100))
            self._note(self.stage.later(500))
        assert all(task.status.ended for task in self.stage.dispatcher.state.tasks.values()), self.stage.statuses()
        self.stage.check()


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
