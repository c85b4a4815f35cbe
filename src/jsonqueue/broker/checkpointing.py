"""When queue.json is brought up to date, and in which steps.

1. The PublisherBroker seals its segment; then the ConsumerBroker seals its own and names its cut. (In this order, so that the cut covers
   what was published before the checkpoint was asked for.)
2. A thread folds the logs up to the cut into a new queue.json. Both brokers go on meanwhile.
3. The PublisherBroker hears which ids have left: those of earlier attempts too, which may have failed behind the very moment of it.

A broker that dies during 1 ends the attempt. At any later step the files alone say how to go on. Small queues are checkpointed at each
flush interval in which something happened. For a large one that would be mostly copying: there the logs grow twice as large as queue.json
is, or to the limit of a segment, first, or so much time passes that the copy comes to 256 KiB a second; and it takes no more than a tenth
of the time. So what checkpoints write is at most in proportion to what the logs do, or next to nothing.

A checkpoint that finds no room has filled the disk with its draft before it knows. So the next tries become rarer, down to one a minute,
until one succeeds; one that somebody asks for is made at once.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from enum import Enum, auto
from itertools import islice

from jsonqueue.broker.narration import Narration
from jsonqueue.channel.control import Forget, Order, Rotate, Rotated
from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.errors import DiskFull, JsonQueueError, StorageError, SyncFailed, is_want, words_of
from jsonqueue.event import EventOwner
from jsonqueue.storage.checkpoint import CheckpointDone, Cut, checkpoint, log_bytes
from jsonqueue.storage.codec import Position
from jsonqueue.storage.files import Files
from jsonqueue.storage.queue_file import ChangedQueue

__all__ = ["Checkpointing"]

_COPIED_BYTES_A_MS = 256
_TIMES = 2
"""So much larger than queue.json the logs grow before it is copied. More would save less, and be read again by whoever starts."""
_IDS_AT_ONCE = 50_000
_SHARE = 10
"""A checkpoint that took 1 s is followed by 9 s without one."""

_PAUSE_MS, _PAUSE_MAX_MS = 1_000, 60_000
"""Before the next try when one has failed; where there is no room, twice as long each time."""

Settled = Callable[[str], None]
"""Told how an attempt ended: empty for done, else why not."""


class _Step(Enum):
    IDLE = auto()
    PUBLISHER_ASKED = auto()
    CONSUMER_ASKED = auto()
    FOLDING = auto()


class Checkpointing:
    """The attempts, one after the other. All methods belong to the supervisor's thread; ``submit`` brings the folding thread back to it."""

    def __init__(
        self,
        files: Files,
        config: Config,
        clock: Clock,
        say: Narration,
        *,
        post: Callable[[EventOwner, Order], None],
        submit: Callable[[Callable[[], None]], None],
        on_damage: Callable[[JsonQueueError], None],
    ) -> None:
        self._files = files
        self._config = config
        self._clock = clock
        self._say = say
        self._post = post
        self._submit = submit
        self._on_damage = on_damage
        self._step = _Step.IDLE
        self._thread: threading.Thread | None = None
        self._disturbed = False
        self._request = 0
        self._due_ms = clock.monotonic_ms() + config.flush_interval_ms
        self._pause_ms = 0
        """How long there was no try because there was no room."""
        self._copied_ms = clock.monotonic_ms()
        """When queue.json was last written anew."""
        self._seen: tuple[object, ...] = ()
        self._last_cut: Cut | None = None
        self._left: dict[str, int] = {}
        """Who has left in attempts since the last that succeeded: only the folding thread uses it while there is one."""
        self._waiting: list[Settled] = []
        self._again: list[Settled] = []
        self.count = 0
        """Checkpoints that had something to fold in."""
        self.ended_ms = 0
        self.took_ms = 0
        self.error = ""

    def join(self) -> None:
        """Wait for the folding thread, if it is at work. (What it hands back is still on its way through ``submit``.)"""
        if self._thread is not None:
            self._thread.join()

    def next_due_ms(self) -> int | None:
        """When :meth:`tick` has something to do."""
        return self._due_ms if self._step is _Step.IDLE else None

    def tick(self, now_ms: int) -> None:
        """Begin an attempt if one is due."""
        if self._step is not _Step.IDLE or now_ms < self._due_ms:
            return
        self._due_ms = now_ms + self._config.flush_interval_ms
        if self._is_worth_it():
            self._begin()

    def now(self, settled: Settled) -> None:
        """Begin an attempt that covers all that is durable by now, due or not."""
        if self._step is _Step.IDLE:
            self._waiting.append(settled)
            self._begin()
        else:
            self._again.append(settled)  # The one under way may have missed the latest.

    def rotated(self, role: EventOwner, news: Rotated) -> None:
        """A broker has sealed its segment."""
        if news.request != self._request:
            return
        if self._step is _Step.PUBLISHER_ASKED and role is EventOwner.PUBLISHER_BROKER:
            self._step = _Step.CONSUMER_ASKED
            self._post(EventOwner.CONSUMER_BROKER, Rotate(self._request))
        elif self._step is _Step.CONSUMER_ASKED and role is EventOwner.CONSUMER_BROKER:
            self._cut(news)

    def abandon(self, why: str) -> None:
        """A broker died: an attempt that still needed its answer is over."""
        self._disturbed = True
        if self._step in {_Step.PUBLISHER_ASKED, _Step.CONSUMER_ASKED}:
            self._seen = ()
            self._finish(why)

    # ── the steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_worth_it(self) -> bool:
        try:
            if self._signature() == self._seen:
                return False
            queue = self._files.identity("queue.json")
            queue_bytes, logs_bytes = queue[1] if queue else 0, log_bytes(self._files)
        except OSError:
            return True  # No file may be opened now, not even the folder: the attempt will say so.
        if logs_bytes >= min(_TIMES * queue_bytes, self._config.segment_max_bytes):
            return True
        waited_ms = self._clock.monotonic_ms() - self._copied_ms
        return queue_bytes <= _COPIED_BYTES_A_MS * max(waited_ms, self._config.flush_interval_ms)

    def _signature(self) -> tuple[object, ...]:
        names = [name for name in self._files.list() if name.startswith(("published-", "progress-"))]
        return tuple((name, self._files.identity(name)) for name in names)

    def _begin(self) -> None:
        try:
            self._seen = self._signature()
        except OSError as error:
            self._failed(error)
            return
        self._request += 1
        self._step = _Step.PUBLISHER_ASKED
        self._post(EventOwner.PUBLISHER_BROKER, Rotate(self._request))

    def _cut(self, news: Rotated) -> None:
        if news.progress is None or news.published is None:
            self._finish("the queue is still being loaded")
            return
        cut = Cut(progress=Position(*news.progress), published=Position(*news.published))
        if cut == self._last_cut:
            self._finish("")  # Nothing happened since.
            return
        self._step = _Step.FOLDING
        self._disturbed = False
        thread = threading.Thread(target=self._fold, args=(cut, self._clock.monotonic_ms()), name="jsonqueue-checkpoint", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had
            self._failed(OSError(errno.EAGAIN, str(error)))
        else:
            self._thread = thread

    def _fold(self, cut: Cut, began_ms: int) -> None:
        """In its own thread."""
        try:
            done = checkpoint(self._files, cut, config=self._config, at_ms=self._clock.wall_ms(), left=self._left)
        except Exception as error:  # noqa: BLE001 - it is judged in the supervisor's thread
            # Bound now: the name ends with this clause, before the other thread gets to it.
            self._submit(lambda error=error: self._failed(error))  # type: ignore[misc]
        else:
            self._submit(lambda: self._folded(cut, done, began_ms))

    def _folded(self, cut: Cut, done: CheckpointDone, began_ms: int) -> None:
        now_ms = self._clock.monotonic_ms()
        self._last_cut, self._copied_ms, self._left, self._pause_ms = cut, now_ms, {}, 0
        self.count += 1 if done.folded else 0
        self.ended_ms, self.took_ms = self._clock.wall_ms(), now_ms - began_ms
        self._due_ms = now_ms + max(self._config.flush_interval_ms, (_SHARE - 1) * self.took_ms)
        self._say.checkpointed(tasks=done.tasks, took_ms=self.took_ms)
        self._tell_who_left(done)
        self._finish("")

    def _tell_who_left(self, done: CheckpointDone) -> None:
        left = iter(done.left.items())
        while some := dict(islice(left, _IDS_AT_ONCE)):
            self._post(EventOwner.PUBLISHER_BROKER, Forget(some, done.through_task))

    def _failed(self, error: Exception) -> None:
        self._seen = ()
        self._pause_ms = min(2 * self._pause_ms or _PAUSE_MS, _PAUSE_MAX_MS) if isinstance(error, DiskFull) else 0
        self._due_ms = self._clock.monotonic_ms() + max(self._config.flush_interval_ms, _PAUSE_MS, self._pause_ms)
        # A broker that starts replaces its newest segment, maybe just while that was read. What is really damaged is found again.
        # So is what somebody did to queue.json while it was folded.
        passes = isinstance(error, DiskFull | ChangedQueue | OSError) or is_want(error)
        passes = passes or (self._disturbed and not isinstance(error, SyncFailed))
        why = words_of(error)  # To say nothing would be to say that it is done.
        if passes and why != self.error:  # A disk that stays full is told of once.
            self._say.checkpoint_failed(why)
        self._finish(why)
        if not passes:
            self._on_damage(error if isinstance(error, JsonQueueError) else StorageError(f"the checkpoint failed: {error!r}"))

    def _finish(self, why: str) -> None:
        self._step = _Step.IDLE
        self.error = why
        waiting, self._waiting, self._again = self._waiting, self._again, []
        for settled in waiting:
            settled(why)
        if self._waiting:
            self._begin()
