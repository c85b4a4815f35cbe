"""Publisher: puts tasks into a queue, and returns when they are durable.

Every publish has one of three ends. It returns: the task is on disk and will run or be found among the dead letters. It raises
:class:`PublishRejected` or :class:`InvalidTask`: the task is certainly not stored. It raises :class:`PublishUnknown`: the connection was
lost and no answer could be had in time; publishing again under the same id is safe, and is what the publisher itself did until then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, overload

from jsonqueue.client import direct
from jsonqueue.client.exchange import Connect, Exchange, NoAnswer, TooLarge
from jsonqueue.client.flow import Flow, unanswered
from jsonqueue.client.folder import ServesFolder, folder_of
from jsonqueue.client.handle import TaskHandle
from jsonqueue.client.identity import IdSource, draw_prefix
from jsonqueue.client.intake import HasId, describe, prepare
from jsonqueue.client.patience import Patience, require_timeout
from jsonqueue.client.payload import encode_value
from jsonqueue.client.presence import register
from jsonqueue.client.window import Batch, Window
from jsonqueue.clock import Clock, SystemClock
from jsonqueue.config import Config
from jsonqueue.errors import (
    BrokerUnavailable,
    ConnectionClosed,
    InvalidTask,
    JsonQueueError,
    PublishRejected,
    PublishUnknown,
    Rejection,
    TasksRejected,
)
from jsonqueue.event import EventOwner, Refusal, Write, Written, decoder_for
from jsonqueue.retry import RetryPolicy
from jsonqueue.task import StoredTaskIn, TaskIn

__all__ = ["PublishSummary", "Publisher"]

_BATCH_MAX_BYTES = 1024 * 1024
_BATCH_MAX_MS = 50
"""A batch does not wait longer for more than this, once there is a next task to notice it by."""
_REJECTIONS_KEPT = 1000


class PublishSummary(NamedTuple):
    """What came of :meth:`Publisher.publish_many`."""

    published: int
    """Tasks that are new in the queue."""
    duplicates: int
    """Tasks whose id the queue knew: nothing was added for them."""
    ids: Sequence[str]
    """The id of each task given, in order. Ids that were made up are worked out when asked for and take no memory."""


class Publisher:
    """Publishes to the queue in ``queue_dir`` (a path, or a BrokerManager). Safe to use from several threads, after a fork, and as an
    argument of another process.

    It connects when it has something to say, and again whenever the connection breaks. With no broker running it appends to the queue's log
    by itself; the tasks run when brokers start. ``timeout``: seconds without any answer after which it gives up (None: never).
    """

    def __init__(
        self,
        queue_dir: str | os.PathLike[str] | ServesFolder,
        *,
        timeout: float | None = 30.0,
        clock: Clock | None = None,
        chance: Random | None = None,
        connect: Connect | None = None,
    ) -> None:
        """``clock``, ``chance`` and ``connect`` are the doors by which time, chance and the wire come in; a user needs none of them."""
        self.queue_dir = folder_of(queue_dir)
        self.timeout = require_timeout(timeout)
        self._clock = clock or SystemClock()
        self._chance = chance
        self._connect = connect or self._register
        self._settle_in()

    def _settle_in(self) -> None:
        """What belongs to this process alone; after a fork the child begins anew, and leaves its parent's connection alone."""
        self._ids = IdSource(self._chance)
        self._exchange = Exchange(self.queue_dir, self._connect, decoder_for(EventOwner.PUBLISHER_BROKER))
        self._pid = os.getpid()  # last: whoever finds it right uses the other two

    # ── one task ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(
        self,
        data: Any,
        *,
        id: str = "",  # noqa: A002 - the word that users type
        priority: int = 0,
        delay: float | timedelta | None = None,
        run_at: datetime | float | None = None,
        deadline: datetime | timedelta | float | None = None,
        attempts_max: int | None = None,
        retry: str | RetryPolicy | None = None,
        after: str | HasId | Iterable[str | HasId] = (),
    ) -> TaskHandle:
        """Publish one task; returns its handle when it is durable.

        ``data`` is any JSON value (falsy ones too), or a whole :class:`TaskIn`, which brings its own options. ``id``: a second publish of
        the same id adds no task, the handle then says ``duplicate``. ``priority``: higher runs first. ``delay``: seconds or a timedelta
        from now. ``run_at``: a datetime with a time zone, or seconds since the epoch. ``deadline``: not started any more after it; a
        datetime with a time zone, or seconds or a timedelta from now. ``attempts_max``: tries before it is a dead letter. ``retry``:
        ``"exponential"``, ``"linear"``, ``"never"`` or a policy. ``after``: ids or handles of tasks that must complete first.

        Raises :class:`InvalidTask`, :class:`PublishRejected`, :class:`PublishUnknown`, and :class:`BrokerUnavailable` when nobody answers
        but the queue's log is in somebody's hands.
        """
        self._notice_fork()
        if isinstance(data, TaskIn):
            if id or priority or attempts_max or after or any(option is not None for option in (delay, run_at, deadline, retry)):
                raise InvalidTask("a TaskIn brings its own options", hint="set them there, or publish its data with the options")
            task = data
        else:
            now_ms = 0 if delay is None and deadline is None else self._clock.wall_ms()
            task = describe(
                data, now_ms=now_ms, id=id, priority=priority, delay=delay, run_at=run_at, deadline=deadline,
                attempts_max=attempts_max, retry=retry, after=after,
            )  # fmt: skip
        patience = Patience(self.timeout, self._clock)
        stored = prepare(task, task_id=task.id or self._ids.fresh(), config=self._settings(patience))
        return self._publish_one(stored, patience, own_id=not task.id)

    def _publish_one(self, task: StoredTaskIn, patience: Patience, *, own_id: bool) -> TaskHandle:
        answer = self._answer_to(task, patience)
        if answer.refused:
            raise PublishRejected(task.id, reason=answer.refused[0].reason)
        # An id made up here can only be known because a first answer was lost.
        return TaskHandle.of(self.queue_dir, task.id, duplicate=bool(answer.duplicates) and not own_id)

    def _answer_to(self, task: StoredTaskIn, patience: Patience) -> Written:
        """Mostly there is a line, and it stays whole. A flow sees to everything else, and would do so here, at twice the cost."""
        line, doubtful = self._exchange.line_at_hand, False
        if line is not None:
            request = self._exchange.number()
            try:
                line.ask(request, Write(request, [task]), patience)
                doubtful = True  # What could not be sent as a whole is certainly not stored.
                answer: Written = line.answer(request, patience)
            except (TooLarge, ConnectionClosed):
                pass
            except NoAnswer:
                raise unanswered(line, (task.id,), patience) from None
            else:
                return answer
        answers: list[Written] = []
        flow = self._flow(lambda _, answer: answers.append(answer), patience)
        flow.finish(Batch([task], [0], len(memoryview(task.data))), asked=line is not None, doubtful=doubtful)
        return answers[0]

    # ── many tasks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def publish_many(
        self,
        tasks: Iterable[Any],
        *,
        batch_max: int = 1000,
        on_progress: Callable[[int], None] | None = None,
        on_acknowledged: Callable[[list[str]], None] | None = None,
    ) -> PublishSummary:
        """Publish all of ``tasks``: values, or :class:`TaskIn` where one needs options. Returns when all are durable.

        The iterable is read as it goes, in batches of ``batch_max`` (at most about 1 MiB, and 50 ms, of it) of which a few are in flight,
        so it may be far larger than the memory. ``on_progress`` is told, after each answer, how many tasks have been answered so far;
        ``on_acknowledged``, before that, the ids of those that this answer says are in the queue (duplicates included), so that they are
        known whatever becomes of the rest.

        A task that cannot be stored does not stop the others: once all the rest are published, :class:`TasksRejected` lists each with its
        place and its reason. Only when the queue refuses a whole batch (it is full, or the disk is) no more is read of the iterable; the
        error says so. After :class:`PublishUnknown` its ``published`` counts the tasks answered before.

        If the iterable raises an exception, what it gave before is published all the same, and answered; the exception is then raised, with
        a note that counts it. Ctrl-C, or an exception of one of the two functions, ends it at once, and the note says what is
        certain.

        One task is no iterable of tasks: a dict, a str, bytes or a :class:`TaskIn` raises :class:`InvalidTask`.
        """
        self._notice_fork()
        given = _many(tasks)
        stream = _Stream(batch_max, draw_prefix(self._chance), self._clock, on_progress, on_acknowledged)
        patience = Patience(self.timeout, self._clock)
        flow = self._flow(stream.answered, patience)
        try:
            for batch in stream.batches(given, self._settings(patience)):
                flow.push(batch)
            flow.finish()
        except BaseException as error:
            stream.tell_of_the_iterable(error)
            if isinstance(error, PublishUnknown) and not stream.calling:
                error.published = stream.published
            else:
                stream.tell_what_is_certain(error, flow.give_up())
            raise
        return stream.summary()

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Close the connection. Everything published is durable already; the next publish would connect again."""
        self._notice_fork()
        self._exchange.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process it is its folder and its timeout: there it makes a connection of its own."""
        return partial(type(self), timeout=self.timeout), (self.queue_dir,)

    def _flow(self, answered: Callable[[Batch, Written], None], patience: Patience) -> Flow:
        return Flow(self.queue_dir, self._exchange, answered, patience=patience, clock=self._clock, pause=time.sleep)

    def _settings(self, patience: Patience) -> Config:
        """The queue's settings, from the manager at registration or else from the folder."""
        try:
            return self._exchange.line(patience).config
        except BrokerUnavailable:
            return direct.settings(self.queue_dir)

    def _register(self, timeout: float) -> Any:
        return register(self.queue_dir, EventOwner.PUBLISHER, timeout=timeout)

    def _notice_fork(self) -> None:
        if os.getpid() != self._pid:
            with _settling:
                if os.getpid() != self._pid:  # else another thread has noticed it
                    # Kept, and not closed: to close it would hang up on the parent, whose connection it is.
                    self._inherited = self._exchange
                    self._settle_in()


_settling = threading.Lock()


def _forked() -> None:
    global _settling  # noqa: PLW0603 - whoever held the old one stayed behind in the parent
    _settling = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _many(tasks: Iterable[Any]) -> Iterator[Any]:
    """Refuses what is one task: its keys or letters would become tasks, each of them."""
    if isinstance(tasks, (Mapping, str, bytes, bytearray, memoryview, TaskIn)):
        raise InvalidTask(
            f"publish_many was given a {type(tasks).__name__}",
            hint="publish() takes one payload; a list of them goes here",
        )
    return iter(tasks)  # what is no iterable at all says so by itself


class _Stream:
    """Cuts what the caller gives into batches, and keeps the tally of the answers."""

    def __init__(
        self,
        batch_max: int,
        prefix: str,
        clock: Clock,
        on_progress: Callable[[int], None] | None,
        on_acknowledged: Callable[[list[str]], None] | None,
    ) -> None:
        if batch_max < 1:
            raise ValueError(f"batch_max is {batch_max}, and must be at least 1")
        self._batch_max = batch_max
        self._monotonic_ms = clock.monotonic_ms
        self._on_progress = on_progress
        self._on_acknowledged = on_acknowledged
        self._ids = _Ids(prefix)
        self._rejected: list[Rejection] = []
        self._rejected_count = 0
        self._stopped = False
        self._broke: Exception | None = None
        """What the iterable raised."""
        self._through = 0
        """So many of the first tasks are answered."""
        self.calling = False
        """Whether what is raised now is of who is told, be it an error of ours that came of another queue, say."""
        self.published = 0
        self._duplicates = 0

    def batches(self, tasks: Iterator[Any], config: Config) -> Iterator[Batch]:
        """The batches; ends early once a whole batch was refused."""
        stored: list[StoredTaskIn] = []
        indexes: list[int] = []
        size, since_ms = 0, self._monotonic_ms()
        for index, given in enumerate(self._read(tasks)):
            task = self._prepared(index, given, config)
            if task is None:
                continue
            stored.append(task)
            indexes.append(index)
            size += len(memoryview(task.data))
            if len(stored) >= self._batch_max or size >= _BATCH_MAX_BYTES or self._monotonic_ms() - since_ms > _BATCH_MAX_MS:
                yield Batch(stored, indexes, size)
                stored, indexes, size, since_ms = [], [], 0, self._monotonic_ms()
                if self._stopped:
                    return
        if stored:
            yield Batch(stored, indexes, size)

    def _read(self, tasks: Iterator[Any]) -> Iterator[Any]:
        try:
            for given in tasks:  # noqa: UP028 - to yield from a generator would close it where no more is read: the rest is its owner's
                yield given
        except Exception as error:  # noqa: BLE001 - raised again once what came before is answered
            self._broke = error

    def _prepared(self, index: int, given: Any, config: Config) -> StoredTaskIn | None:
        task_id = self._ids.add(given.id if isinstance(given, TaskIn) else "")
        try:
            if isinstance(given, TaskIn):
                return prepare(given, task_id=task_id, config=config)
            return TaskIn(id=task_id, data=encode_value(given, what="payload", config=config))
        except InvalidTask as error:
            self._reject(index, task_id, str(error))
            return None

    def answered(self, batch: Batch, answer: Written) -> None:
        """Count one answer in."""
        for refusal in answer.refused:
            self._reject(batch.indexes[refusal.index], batch.tasks[refusal.index].id, refusal.reason)
        duplicates = sum(1 for position in answer.duplicates if self._ids.given(batch.indexes[position]))
        self._duplicates += duplicates
        self.published += len(batch.tasks) - len(answer.refused) - duplicates
        # What would wait for a task that is not there is refused for its own sake; the others, once they got here, because all would be.
        if len(answer.refused) == len(batch.tasks) > 1:
            self._stopped = self._stopped or not all(_is_for(batch.tasks[refusal.index], refusal) for refusal in answer.refused)
        self._through = batch.indexes[-1] + 1
        self.calling = True
        if self._on_acknowledged is not None:
            refused = {refusal.index for refusal in answer.refused}
            self._on_acknowledged([task.id for place, task in enumerate(batch.tasks) if place not in refused])
        if self._on_progress is not None:
            self._on_progress(self.published + self._duplicates + self._rejected_count)
        self.calling = False

    def _reject(self, index: int, task_id: str, reason: str) -> None:
        self._rejected_count += 1
        if len(self._rejected) < _REJECTIONS_KEPT:
            self._rejected.append(Rejection(index, task_id, reason))

    def summary(self) -> PublishSummary:
        """The result; raises :class:`TasksRejected` if it is not all good, and what the iterable raised."""
        if self._broke is not None:
            self._broke.add_note(f"jsonqueue: the iterable had given {_count(len(self._ids), 'task')} before: {self._tally()}")
            raise self._broke
        if self._rejected_count:
            raise TasksRejected(
                tuple(self._rejected), count=self._rejected_count, published=self.published, duplicates=self._duplicates,
                stopped_after=len(self._ids) if self._stopped else None,
            )  # fmt: skip
        return PublishSummary(self.published, self._duplicates, self._ids)

    def _tally(self) -> str:
        parts = [f"{self.published:,} published"]
        if self._duplicates:
            parts.append(f"{self._duplicates:,} known already")
        if self._rejected_count:
            first = self._rejected[0]
            parts.append(f"{self._rejected_count:,} rejected (number {first.index + 1:,}, {first.task_id}: {first.reason})")
        return ", ".join(parts)

    def tell_of_the_iterable(self, error: BaseException) -> None:
        """Note what the iterable raised, now that something else is raised."""
        if self._broke is not None:
            error.add_note(f"jsonqueue: before that, the iterable raised {self._broke!r}")

    def tell_what_is_certain(self, error: BaseException, left: Window) -> None:
        """Note what can be relied on. An error of ours is only raised where nothing that is not answered can be stored."""
        ours = isinstance(error, JsonQueueError) and not self.calling
        doubtful = left.unanswered if not ours or left.in_flight or left.uncertain else []
        if not doubtful and not self._through:
            return
        told = "none is answered"
        if self._through:
            told = f"the first {_count(self._through, 'task')} are answered ({self.published:,} published)"
        if doubtful:
            told += f"; number {self._through + 1:,} to {doubtful[-1].indexes[-1] + 1:,} may be published or not"
        error.add_note(f"jsonqueue: {told}; no other is published")


def _is_for(task: StoredTaskIn, refusal: Refusal) -> bool:
    """Whether it is for what this task would wait for: that is named then."""
    return any(repr(needed) in refusal.reason for needed in task.after)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class _Ids(Sequence[str]):
    """Ids by place: given ones are kept, made-up ones are a prefix and their place."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._given: dict[int, str] = {}
        self._count = 0

    def add(self, given: str) -> str:
        index = self._count
        self._count += 1
        if not given:
            return f"{self._prefix}-{index + 1}"
        self._given[index] = given
        return given

    def given(self, index: int) -> bool:
        return index in self._given

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        place = range(self._count)[index]
        return self._given.get(place) or f"{self._prefix}-{place + 1}"
