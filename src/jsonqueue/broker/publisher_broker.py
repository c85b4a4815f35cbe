"""The PublisherBroker: takes tasks in.

One turn: judge every write that came, append what was accepted as one batch, sync, and only then answer. While it syncs, the next writes
gather in the Pipes; so each turn commits all there is, without a timer, and a single write never waits for company.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.core.publishing import Admission, Verdict
from jsonqueue.core.records import encode_records
from jsonqueue.errors import DiskFull
from jsonqueue.event import Event, EventOwner, Mark, Refusal, Write, Written
from jsonqueue.storage.files import Files
from jsonqueue.storage.log import LogKind, LogWriter, newest_bytes
from jsonqueue.storage.recovery import load_ids
from jsonqueue.storage.reserve import Reserve
from jsonqueue.task import StoredTaskIn

__all__ = ["PublisherBroker"]

_ROOM_LOOK_MS = 500
"""How often the free room of the disk is looked at."""


class PublisherBroker:
    """The writer of the published log. ``announce`` is told each time the log is durable further on."""

    role = EventOwner.PUBLISHER_BROKER
    hungry = False
    """It says marks, and hears none."""

    def __init__(self, files: Files, clock: Clock, config: Config, *, announce: Callable[[Mark], None] = lambda mark: None) -> None:
        self._files = files
        self._clock = clock
        self._config = config
        self._announce = announce
        self._admission: Admission
        self._log: LogWriter
        self._room = True
        self._looked_ms = -_ROOM_LOOK_MS
        self._written = 0

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Recover the log (which makes durable whatever was read of it), then learn which ids are known. The caller holds the lock."""
        reserve, kind = Reserve(self._files, self._config.disk_reserve_bytes), LogKind.PUBLISHED
        self._log = reserve.lend(lambda: LogWriter.open(self._files, kind), wanted=lambda: newest_bytes(self._files, kind))
        try:
            known = load_ids(self._files)
        except BaseException:
            self._log.close()  # A publisher that appends by itself lives on, and tries again.
            raise
        self._admission = Admission(known.numbers, last_task=known.last_task, config=self._config)

    @property
    def epoch(self) -> int:
        """The epoch of its log: raised at each start."""
        return self._log.epoch

    def close(self) -> None:
        """Nothing is buffered: what was answered is durable, what was not was not."""
        self._log.close()

    @property
    def mark(self) -> Mark:
        """How far the log is durable."""
        return Mark(*self._log.position)

    def assure(self) -> None:
        """Look whether the log is where others look for it. Raises :class:`~jsonqueue.errors.FileLost`."""
        self._log.assure()

    def rotate(self) -> bool:
        """Seal the segment, for a checkpoint. Without room for another one it stays in use: that costs nothing but its length."""
        try:
            return self._log.rotate()
        except DiskFull:
            return False

    def forget(self, left: Mapping[str, int], through_task: int) -> None:
        """These tasks (id → number) have left the queue, durably: their ids may be used again."""
        self._admission.forget(left, through=through_task)

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, peer: int) -> None:
        """A publisher has a Pipe; there is nothing to remember about it."""

    def detach(self, peer: int) -> None:
        """Its Pipe is closed. What it had in flight was answered into the void: it will ask again."""

    def step(self, arrivals: Sequence[tuple[int, Event]], send: Callable[[int, Event], None]) -> None:
        """One turn over everything that has come."""
        writes = [(peer, event) for peer, event in arrivals if isinstance(event, Write)]
        if not writes:
            return
        given = [write.tasks for _, write in writes]
        verdicts = self._admission.decide(given, room=self._has_room())
        accepted = [task for verdict in verdicts for task in verdict.accepted]
        if accepted:
            try:
                self._store(accepted)
            except DiskFull as error:
                self._room, self._looked_ms = False, self._clock.monotonic_ms()
                # Of those that were there before it stays true that they are.
                verdicts = [_for_want_of_room(verdict, str(error)) for verdict in self._admission.decide(given, room=False)]
                accepted = []
        self._answer(writes, verdicts, send)
        self._admission.admit(accepted)  # What only the next turn needs to know, nobody waits for.

    def next_due_ms(self) -> int | None:
        """It never acts by the clock."""
        return None

    def counters(self) -> dict[str, int]:
        """Figures for whoever watches the broker."""
        return {"known_ids": len(self._admission), "published": self._written, "log_bytes": self._log.bytes, "has_room": int(self._room)}

    def _store(self, accepted: list[StoredTaskIn]) -> None:
        number = self._log.append(encode_records(accepted), at_ms=self._clock.wall_ms(), first_task=self._admission.last_task + 1)
        if self._config.durability == "power-cut":
            self._log.sync()  # Nothing below this line runs until the disk has it.
        self._log.assure()  # And has it where it will be looked for.
        self._written += len(accepted)
        # The ConsumerBroker hears of it before the publisher does: a question after a task never comes before the task.
        self._announce(Mark(number, self._log.epoch))
        if self._log.bytes > self._config.segment_max_bytes:
            self.rotate()

    def _answer(self, writes: list[tuple[int, Write]], verdicts: list[Verdict], send: Callable[[int, Event], None]) -> None:
        number = self._log.number
        relaxed = "" if self._config.durability == "power-cut" else self._config.durability
        for (peer, write), verdict in zip(writes, verdicts, strict=True):
            send(peer, Written(write.request, number, verdict.duplicates, verdict.refused, relaxed))

    def _has_room(self) -> bool:
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._looked_ms >= _ROOM_LOOK_MS:
            self._looked_ms = now_ms
            self._room = self._files.free_bytes() >= self._config.disk_reserve_bytes
        return self._room


def _for_want_of_room(verdict: Verdict, why: str) -> Verdict:
    return Verdict(verdict.accepted, verdict.duplicates, [Refusal(refusal.index, why) for refusal in verdict.refused])
