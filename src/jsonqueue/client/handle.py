"""TaskHandle: one task of a queue, from any process that knows its id."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from jsonqueue.client.caller import Caller, caller_of
from jsonqueue.client.exchange import NoAnswer
from jsonqueue.client.folder import ServesFolder, folder_of
from jsonqueue.client.intake import check_id
from jsonqueue.client.patience import Patience
from jsonqueue.client.payload import opened
from jsonqueue.errors import BrokerUnavailable, ResultTimeout, TaskFailed, TaskNotFound
from jsonqueue.storage.looking import look_up
from jsonqueue.task import AnyTask, StoredTask, TaskStatus

__all__ = ["TaskHandle"]

_PAUSE_S = 0.1
_GRACE_S = 30.0


class TaskHandle:
    """A task by its id: ``TaskHandle("queue_data", "report-2026-11")``, or what ``publish`` returned. Cheap; all share one connection."""

    __slots__ = ("_caller", "duplicate", "id", "queue_dir")

    def __init__(
        self,
        queue_dir: str | os.PathLike[str] | ServesFolder,
        id: str,  # noqa: A002 - the word that users type
        *,
        duplicate: bool = False,
        caller: Caller | None = None,
    ) -> None:
        """``duplicate``: the queue knew the id before this publish (which, after a lost connection, may have been its own first try)."""
        self.queue_dir = folder_of(queue_dir)
        self.id = check_id(id)
        self.duplicate = duplicate
        self._caller = caller

    @classmethod
    def of(cls, folder: Path, task_id: str, *, duplicate: bool) -> TaskHandle:
        """Of a task that was just published: to look at its folder and its id again would cost a tenth of what a publish costs."""
        handle = cls.__new__(cls)
        handle.queue_dir, handle.id, handle.duplicate, handle._caller = folder, task_id, duplicate, None
        return handle

    def result(self, timeout: float | None = None) -> Any:
        """What the handler returned, waited for at most ``timeout`` seconds (None: as long as it takes; 0: if it has by now, which may be
        asked again and again: only the first time it takes a round trip, a quarter of a second at most where nobody answers; there the
        files are read each time, all of them: about 30 ms for 100,000 small tasks).

        Raises :class:`TaskFailed` when the task ended dead or cancelled, :class:`ResultTimeout`, :class:`TaskNotFound`, and
        :class:`BrokerUnavailable` when no broker is running and the task has not ended: at once without a timeout (nothing would ever
        happen), else when the time is up, since a broker may start meanwhile.
        """
        task = self._ended(timeout)
        if task is None:
            raise TaskNotFound(self.id, where=str(self.queue_dir))
        if task.status is not TaskStatus.COMPLETED:
            raise TaskFailed(self.id, status=task.status, reason=task.reason, queue_dir=str(self.queue_dir))
        return opened(task).result

    def status(self) -> TaskStatus:
        """Where the task stands; read from the files when no broker is running. Raises :class:`TaskNotFound`."""
        return self._stored().status

    def task(self) -> AnyTask:
        """The whole task, with its history; read from the files when no broker is running. Raises :class:`TaskNotFound`."""
        return opened(self._stored())

    def cancel(self, reason: str = "cancelled by a caller") -> bool:
        """Cancel the task, whatever it is doing; False when it has ended already.

        Durable when it returns. A handler in a child process gets SIGTERM, and SIGKILL a second later; an ``async`` one is cancelled; in a
        thread it can ask ``jsonqueue.current().cancelled``. Its outcome counts no more.

        Raises :class:`TaskNotFound`, :class:`BrokerUnavailable`.
        """
        changed = self._ask().cancel([self.id], reason=reason)
        return self._did(changed.ids)

    def replay(self) -> bool:
        """Give a dead letter another life; False when the task is not dead.

        Raises as :meth:`cancel` does, and :class:`ReplayUnknown` when the answer was lost on its way.
        """
        return self._did(self._ask().replay([self.id]).ids)

    def __repr__(self) -> str:
        return f"TaskHandle({str(self.queue_dir)!r}, {self.id!r}{', duplicate=True' if self.duplicate else ''})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and (self.id, self.queue_dir) == (other.id, other.queue_dir)

    def __hash__(self) -> int:
        return hash(self.id)

    def _ask(self) -> Caller:
        return self._caller or caller_of(self.queue_dir)

    def _did(self, changed: list[str]) -> bool:
        if self.id in changed:
            return True
        self._stored()  # not there at all is not the same as no change
        return False

    def _stored(self) -> StoredTask:
        try:
            task = self._ask().look(self.id)
        except BrokerUnavailable:
            task = self._filed()
        if task is None:
            raise TaskNotFound(self.id, where=str(self.queue_dir))
        return task

    def _filed(self) -> StoredTask | None:
        """The task as the files tell it. Read-only; with brokers running or not."""
        return look_up(self.queue_dir, self.id)

    def _ended(self, timeout: float | None) -> StoredTask | None:
        caller = self._ask()
        patience = Patience(timeout, caller.clock)
        grace, connections = None, caller.connections
        while True:
            try:
                return caller.watch(self.id, patience)
            except NoAnswer:
                raise ResultTimeout(self.id, timeout=timeout or 0, queue_dir=str(self.queue_dir)) from None
            except BrokerUnavailable as error:
                task = self._filed()
                if task is None or task.status.ended:
                    return task
                if error.silent and patience.over:  # Nobody said that there is no broker: it was not waited for.
                    raise ResultTimeout(self.id, timeout=timeout or 0, queue_dir=str(self.queue_dir)) from None
                if connections != caller.connections:  # It has been back since it was missed last.
                    grace, connections = None, caller.connections
                if timeout is None and grace is None:
                    # It was there a moment ago: somebody is restarting it.
                    grace = Patience(_GRACE_S if caller.connected else 0, caller.clock)
                if patience.over or (grace is not None and grace.over):
                    raise
            time.sleep(patience.left_of(_PAUSE_S))
