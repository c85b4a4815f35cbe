"""The judgement over small worlds: what was promised, against what is on the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from msgspec import json

from jsonqueue.errors import JsonQueueError
from jsonqueue.simulation.reactions import EPOCH_MS, Reactions
from jsonqueue.simulation.small_state import State
from jsonqueue.simulation.still import StillFiles, lost_of
from jsonqueue.simulation.verdict import Violation
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.queue_file import read_header
from jsonqueue.storage.recovery import load_ids, load_state
from jsonqueue.task import Outcome, StoredTask

__all__ = ["Account"]

_JUDGE = 9
_decode = lru_cache(maxsize=None)(json.Decoder(StoredTask).decode)


class _Told(NamedTuple):
    """What the files say."""

    ids: frozenset[str]
    """Of all tasks, in the queue or in the archive."""
    completed: frozenset[tuple[str, int]]
    """Ids, and the tokens that completed them."""
    in_the_queue: frozenset[tuple[str, int]]
    """The same, of tasks that have not left it."""


class Account:
    """Judges, and remembers what it has judged."""

    def __init__(self, real: Reactions, writes: tuple[tuple[tuple[str, ...], ...], ...], *, retries: int) -> None:
        """``retries``: how often a publisher may ask again for what was stored, after its tasks have left the queue."""
        self._real = real
        self._batches = [len(batches) for batches in writes]
        self._published = Counter(task_id for batches in writes for ids in batches for task_id in ids)
        self._retries = retries
        self._durable: dict[tuple[int, int], frozenset[str]] = {}
        self._contents: dict[int, Any] = {}
        self._told: dict[Any, _Told] = {}
        self._due: dict[tuple[int, int], int | None] = {}
        self._ended: dict[int, bool] = {}

    def _files(self, planes: tuple[int, ...], *, after_a_cut: bool = False) -> StillFiles:
        files = StillFiles(_JUDGE)
        found = [self._real.planes[number] for number in planes]
        files.thaw(tuple(map(lost_of, found) if after_a_cut else found))
        return files

    # ── what is promised to publishers ───────────────────────────────────────────────────────────────────────────────

    def stored(self, planes: tuple[int, ...], ids: tuple[str, ...]) -> None:
        """These are being acknowledged: a power cut at this moment must leave them."""
        key = (planes[0], planes[2])
        if key not in self._durable:
            files = self._files(planes, after_a_cut=True)
            try:
                self._durable[key] = frozenset(load_ids(files).numbers) | {task.id for task in self._archived(files)}
            except JsonQueueError as error:
                raise Violation("refused", f"after a power cut: {error}") from error
        if missing := sorted(set(ids) - self._durable[key]):
            raise Violation("not durable", f"{missing} are being acknowledged, and a power cut would take them")

    def loaded(self, planes: tuple[int, ...], acknowledged: frozenset[str], settled: frozenset[tuple[str, int]]) -> None:
        """A ConsumerBroker has read the queue, or a checkpoint has folded it: what was promised must be in it."""
        told = self._read(planes)
        if lost := sorted(acknowledged - told.ids):
            raise Violation("lost", f"{lost} were acknowledged, and are not in the queue")
        if unexpected := sorted(told.ids - self._published.keys()):
            raise Violation("unexpected", f"nobody published {unexpected}")
        if undone := sorted(settled - told.completed):
            raise Violation("not durable", f"{undone} had been settled as completed")

    # ── what is promised to consumers ────────────────────────────────────────────────────────────────────────────────

    def settled(self, state: State, held: tuple[str, int], planes: tuple[int, ...], *, stale: bool) -> State:
        """A completion is answered: it counts, or (``stale``) it does not."""
        if stale:
            if held in self._read(planes).in_the_queue:
                raise Violation("not linear", f"the completion of {held} is called stale, and it is the one that counts")
            return state
        if held in state.settled:
            return state
        if sum(task_id == held[0] for task_id, _ in state.settled) >= self._published[held[0]] + self._retries:
            raise Violation("duplicated", f"{held[0]} was completed before, and a second completion counts too")
        return state._replace(settled=state.settled | {held})

    # ── what the files say ───────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, planes: tuple[int, ...]) -> _Told:
        # Who has what open, and what of it is durable, is nothing that a reader sees.
        key = tuple([self._content(number) for number in planes])
        if key not in self._told:
            try:
                self._told[key] = self._read_anew(planes)
            except JsonQueueError as error:
                raise Violation("refused", str(error)) from error
        return self._told[key]

    def _content(self, number: int) -> Any:
        """What a reader finds in this plane: equal for equal names of equal files."""
        if number not in self._contents:
            plane = self._real.planes[number]
            self._contents[number] = plane.names, tuple([plane.sheets[at].volatile for _, at in plane.names])
        return self._contents[number]

    def _read_anew(self, planes: tuple[int, ...]) -> _Told:
        """What the logs say when they are replayed, and when they are folded, must be the same; what left the queue is in the archive."""
        files = self._files(planes)
        replayed = json.encode(load_state(files).state.tasks)
        final_checkpoint(files, config=self._real.config, at_ms=EPOCH_MS)
        tasks = load_state(files).state.tasks
        if json.encode(tasks) != replayed:
            raise Violation("forked", "the fold of the logs differs from their replay")
        archive = self._archived(files)
        numbers = [task.number for task in archive]
        if len(set(numbers)) < len(numbers):
            raise Violation("duplicated", f"the archive holds a task twice: {[task.id for task in archive]}")
        if both := {task.number for task in tasks.values()}.intersection(numbers):
            raise Violation("duplicated", f"in the queue and in the archive: tasks {sorted(both)}")
        in_the_queue = _completed(tasks.values())
        return _Told(frozenset(tasks) | {task.id for task in archive}, in_the_queue | _completed(archive), in_the_queue)

    def archived(self, planes: tuple[int, ...]) -> None:
        """A checkpoint has appended to the archive: it holds what queue.json vouches for, and nothing that an earlier one left."""
        files = self._files(planes)
        mark = read_header(files).archive
        size = files.size(files.open(mark.file))
        if size != mark.length:
            raise Violation("duplicated", f"the archive holds {size} bytes, and queue.json vouches for {mark.length}")

    def _archived(self, files: StillFiles) -> tuple[StoredTask, ...]:
        """What the archive holds, up to the length that queue.json vouches for."""
        mark = read_header(files).archive
        found: list[StoredTask] = []
        for name in files.list("archive"):
            handle = files.open(f"archive/{name}")
            data = files.read(handle, 0, files.size(handle))
            files.close(handle)
            if mark.file == f"archive/{name}":
                data = data[: mark.length]
            elif f"archive/{name}" > mark.file:
                data = b""
            found += map(_decode, data.split(b"\n")[:-1])
        return tuple(found)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def due_ms(self, cb: int, ms: int) -> int | None:
        """When this ConsumerBroker wants to act by the clock, if it is this late now."""
        key = (cb, ms)
        if key not in self._due:
            self._real.clock.ms = ms
            due = self._real.broker(cb).next_due_ms()
            self._due[key] = None if due is None else max(self._real.clock.ms_at(due), ms)
        return self._due[key]

    def is_done(self, state: State) -> bool:
        """Whether everything that was to be published is, and all of it has ended."""
        broker: Any = self._real.broker(state.cb)
        if broker is None or not broker.ready or self._real.broker(state.pb) is None or state.manager or state.hung_up or state.phase:
            return False
        if any(at < batches for (at, _), batches in zip(state.publishers, self._batches, strict=True)):
            return False
        if any(me.held or me.unsettled or me.up or me.down for me in state.consumers):
            return False
        if state.cb not in self._ended:
            self._ended[state.cb] = all(task.status.ended for task in broker._dispatcher.state.tasks.values())
        has_read = state.mark is not None and broker._read.number >= state.mark[0]
        return has_read and (self._ended[state.cb] or not state.consumers)


def _completed(tasks: Iterable[StoredTask]) -> frozenset[tuple[str, int]]:
    completed: set[tuple[str, int]] = set()
    for task in tasks:
        tokens = [past.token for past in task.history if past.outcome is Outcome.COMPLETED]
        if len(tokens) > 1:
            raise Violation("duplicated", f"{task.id} was completed {len(tokens)} times")
        completed.update((task.id, token) for token in tokens)
    return frozenset(completed)
