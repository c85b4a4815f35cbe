"""What callers ask: how a task stands, to be told when it has ended, to cancel it, to give it another life.

A caller holds no task. So nothing here knows of consumers and leases: what a request changes is decided here, and carried out by the
:class:`~jsonqueue.core.dispatching.Dispatcher`, which lends its hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy

from jsonqueue.core.records import Cancelled, Progress, Replayed
from jsonqueue.core.state import QueueState
from jsonqueue.core.turn import Now
from jsonqueue.event import Cancel, Changed, Event, Look, Replay, Result, Watch
from jsonqueue.task import StoredTask, TaskStatus

__all__ = ["Callers"]


class Callers:
    """Answers them, and remembers who waits for the end of which task."""

    def __init__(
        self,
        state: QueueState,
        *,
        answer: Callable[[int, Event], None],
        commit: Callable[[Progress, Now], None],
        take_away: Callable[[StoredTask], None],
    ) -> None:
        """``answer`` says something to a peer once the turn is durable, ``commit`` carries a decision out, ``take_away`` frees whoever
        holds a task of it."""
        self._state, self._answer, self._commit, self._take_away = state, answer, commit, take_away
        self._watchers: dict[str, list[tuple[int, int]]] = {}
        """By task: peer and request."""

    def look(self, peer: int, event: Look) -> None:
        """How a task stands."""
        self._answer(peer, Result(event.request, event.id, self._state.tasks.get(event.id)))

    def watch(self, peer: int, event: Watch) -> None:
        """An answer for each task: at once if it has ended or is unknown, else when it ends."""
        for task_id in event.ids:
            task = self._state.tasks.get(task_id)
            if task is None or task.status.ended:
                self._answer(peer, Result(event.request, task_id, task and copy(task)))
            else:
                self._watchers.setdefault(task_id, []).append((peer, event.request))

    def tell_of_end(self, ids: Iterable[str]) -> None:
        """These tasks have ended: whoever watches one hears of it, once."""
        for task_id in ids if self._watchers else ():
            for peer, request in self._watchers.pop(task_id, ()):
                # A copy: replayed within this turn, the task itself may be running by the time that the answer goes out.
                self._answer(peer, Result(request, task_id, copy(self._state.tasks[task_id])))

    def leave(self, peer: int) -> None:
        """This caller is gone: it watches nothing any more."""
        for task_id, who in list(self._watchers.items()):
            left = [(other, request) for other, request in who if other != peer]
            if left:
                self._watchers[task_id] = left
            else:
                del self._watchers[task_id]

    def cancel(self, peer: int, event: Cancel, now: Now) -> None:
        """Cancel what has not ended yet; a consumer that runs it is told."""
        ids: dict[str, None] = {}
        refused: dict[str, str] = {}
        for task_id in event.ids:
            task = self._state.tasks.get(task_id)
            if task is None:
                refused[task_id] = "not in the queue"
            elif task.status.ended:
                refused[task_id] = f"already {task.status}"
            else:
                self._take_away(task)
                self._commit(Cancelled([task_id], event.reason), now)
                ids[task_id] = None
        self._answer(peer, Changed(event.request, list(ids), refused))

    def replay(self, peer: int, event: Replay, now: Now) -> None:
        """Dead letters get another life."""
        tasks = self._state.tasks
        wanted = event.ids or [task.id for task in tasks.values() if task.status is TaskStatus.DEAD]
        refused = {}
        ids = []
        for task_id in dict.fromkeys(wanted):
            task = tasks.get(task_id)
            if task is not None and task.status is TaskStatus.DEAD:
                ids.append(task_id)
            else:
                refused[task_id] = "not in the queue" if task is None else f"{task.status}, not dead"
        if ids:
            self._commit(Replayed(ids), now)
        self._answer(peer, Changed(event.request, ids, refused))
