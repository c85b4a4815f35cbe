"""One exception tree: every error jsonqueue raises on purpose is a :class:`JsonQueueError`.

Each error says what went wrong, which thing it was, and what to do next (``hint``). The facts are kept as attributes, so that
a program need not parse the sentence. ``exit_status`` is what the command line exits with (the numbers of sysexits.h).

Who is to blame decides the branch:

* the caller: :class:`InvalidTask`, :class:`InvalidConfig`, :class:`TaskNotFound`;
* the situation: :class:`BrokerUnavailable`, :class:`ManagerRunning`, :class:`PublishRejected`, :class:`PublishUnknown` ...;
* the disk or whoever touched it: :class:`StorageError` and below. These stop a broker before it can write.
"""

from __future__ import annotations

import errno
import shlex

__all__ = [
    "BadFrame",
    "BrokerFailed",
    "BrokerUnavailable",
    "ConnectionClosed",
    "CorruptQueue",
    "DiskFull",
    "FileLost",
    "FolderRefused",
    "InvalidConfig",
    "InvalidHandler",
    "InvalidTask",
    "JsonQueueError",
    "LockLost",
    "ManagerRunning",
    "PublishRejected",
    "PublishUnknown",
    "Rejection",
    "ReplayUnknown",
    "ResultTimeout",
    "StorageError",
    "SyncFailed",
    "TaskFailed",
    "TaskNotFound",
    "TasksRejected",
    "UnsupportedFormat",
]


def command_for(queue_dir: str, *words: str) -> str:
    """A command line as it can be typed, for this queue: ``jsonqueue show t --queue orders``. The default folder goes unsaid."""
    return shlex.join(["jsonqueue", *words, *(["--queue", queue_dir] if queue_dir not in {"", "queue_data"} else [])])


_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
_NO_THREAD = "can't start new thread"
"""All that Python tells of the kernel's EAGAIN, which counts threads as processes."""


def is_want(error: BaseException | None) -> bool:
    """Whether it comes of a want of open files, memory, processes or threads, which passes when somebody gives some back."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _WANT):
            return True
        if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
            return True
        error = error.__cause__
    return False


def words_of(error: BaseException) -> str:
    """What an error says; never nothing, as a MemoryError would."""
    return "out of memory" if isinstance(error, MemoryError) else str(error) or repr(error)


class JsonQueueError(Exception):
    """Anything jsonqueue raises on purpose."""

    exit_status: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"Hint: {hint}")  # below the message in a traceback


# ── the caller ───────────────────────────────────────────────────────────────────────────────────────────────────────


class InvalidTask(JsonQueueError, ValueError):
    """A task that can never be published: unserialisable, too large, too deep, a bad id or option."""

    exit_status = 65


class InvalidConfig(JsonQueueError, ValueError):
    """A setting that does not exist, or a value out of its range."""

    exit_status = 78


class TaskNotFound(JsonQueueError, LookupError):
    """No task of this id: it was never published here, or it is past its retention and in the archive."""

    exit_status = 66

    def __init__(self, task_id: str, *, where: str = "the queue", hint: str = "") -> None:
        super().__init__(
            f"no task {task_id!r} in {where}",
            hint=hint or "finished tasks leave the queue after their retention; look into archive/ for older ones",
        )
        self.task_id = task_id


# ── the situation ────────────────────────────────────────────────────────────────────────────────────────────────────


class BrokerUnavailable(JsonQueueError, ConnectionError):
    """No broker is running where one is needed, or somebody holds the queue and does not answer: the message says who. ``cause``: what is
    known of the reason, in the manager's own words if it gave one.

    ``silent``: it only came of time running out, so that whatever was told before is a better reason.
    """

    exit_status = 69

    def __init__(self, queue_dir: str, *, doing: str = "", cause: str = "", silent: bool = False) -> None:
        why = f" ({cause})" if cause else ""
        super().__init__(
            f"no broker is running on {queue_dir}{why}{', needed to ' + doing if doing else ''}",
            hint=f"start one with: jsonqueue serve --queue {shlex.quote(queue_dir)}",
        )
        self.queue_dir, self.cause, self.silent = queue_dir, cause, silent


class BrokerFailed(JsonQueueError):
    """A broker process died again and again, or did not start; the manager gave up on it."""

    exit_status = 70

    def __init__(self, role: str, *, why: str) -> None:
        super().__init__(f"the {role.replace('_', ' ')} {why}", hint="its own last words are in the log of the manager")
        self.role, self.why = role, why


class ManagerRunning(JsonQueueError):
    """Another BrokerManager holds this queue folder; nothing was written."""

    exit_status = 75

    def __init__(self, queue_dir: str, *, holder: str) -> None:
        super().__init__(
            f"{queue_dir} is already served by {holder}",
            hint="one BrokerManager serves a folder; publishers and consumers may simply connect to it, "
            f"and what needs the folder alone comes after: {command_for(queue_dir, 'stop')}",
        )
        self.queue_dir, self.holder = queue_dir, holder


class PublishRejected(JsonQueueError):
    """The queue refused this task; it is certainly not stored."""

    exit_status = 65

    def __init__(self, task_id: str, *, reason: str) -> None:
        super().__init__(f"task {task_id} was rejected and is not stored: {reason}")
        self.task_id, self.reason = task_id, reason


class PublishUnknown(JsonQueueError, TimeoutError):
    """No acknowledgement came: the tasks may or may not be stored. Publishing them again under the same ids is safe."""

    exit_status = 75

    def __init__(self, task_ids: tuple[str, ...], *, cause: str) -> None:
        shown = ", ".join(task_ids[:3]) + (f" and {len(task_ids) - 3} more" if len(task_ids) > 3 else "")
        super().__init__(
            f"no acknowledgement for {shown}: {cause}",
            hint="publish again with the same id: the queue keeps one task an id, so nothing can run twice because of it",
        )
        self.task_ids, self.cause = task_ids, cause
        self.published = 0
        """How many tasks of the same call had been acknowledged before."""


class ReplayUnknown(JsonQueueError, ConnectionError):
    """The connection broke before the answer to a replay, and the second one does not tell whether the first had been heard.
    ``task_ids``: those it is about; none: all that were dead."""

    exit_status = 75

    def __init__(self, task_ids: tuple[str, ...]) -> None:
        shown = ", ".join(task_ids[:3]) + (f" and {len(task_ids) - 3} more" if len(task_ids) > 3 else "")
        what = (
            f"{shown} cannot be replayed now, because of this replay or without it"
            if task_ids
            else "all dead letters live again, which these were is not known"
        )
        super().__init__(
            f"the connection broke before the answer: {what}", hint="look how it stands; a replay of what is not dead changes nothing"
        )
        self.task_ids = task_ids


class Rejection:
    """One task that is not stored: its place in what was given (from 0), its id, and why."""

    __slots__ = ("index", "reason", "task_id")

    def __init__(self, index: int, task_id: str, reason: str) -> None:
        self.index, self.task_id, self.reason = index, task_id, reason

    def __repr__(self) -> str:
        return f"Rejection(index={self.index}, task_id={self.task_id!r}, reason={self.reason!r})"


class TasksRejected(JsonQueueError):
    """Some tasks of a ``publish_many`` are certainly not stored; ``rejected`` lists them (the first 1,000). The others are published."""

    exit_status = 65

    def __init__(
        self, rejected: tuple[Rejection, ...], *, count: int, published: int, duplicates: int, stopped_after: int | None = None
    ) -> None:
        first = rejected[0]
        end = "" if stopped_after is None else f"; after {stopped_after} tasks no more were read, since the queue refuses all"
        super().__init__(
            f"{'1 task was' if count == 1 else f'{count} tasks were'} rejected, not stored "
            f"({'' if count == 1 else 'first: '}number {first.index + 1}, {first.task_id}: {first.reason}); "
            f"{'1 other is' if published == 1 else f'{published} others are'} published{end}"
        )
        self.rejected, self.count, self.stopped_after = rejected, count, stopped_after
        self.published, self.duplicates = published, duplicates


class ConnectionClosed(JsonQueueError, ConnectionError):
    """The other end of a Pipe is gone."""

    exit_status = 69


class BadFrame(JsonQueueError):
    """A frame that is not a valid event. The receiver drops that one connection."""

    exit_status = 76


class ResultTimeout(JsonQueueError, TimeoutError):
    """The task had not ended when the caller's patience did. The task itself goes on."""

    exit_status = 75

    def __init__(self, task_id: str, *, timeout: float, queue_dir: str = "") -> None:
        super().__init__(
            f"task {task_id} has not ended within {timeout:g} s",
            hint=f"it goes on; ask again, or look with: {command_for(queue_dir, 'show', task_id)}",
        )
        self.task_id, self.timeout = task_id, timeout


class TaskFailed(JsonQueueError):
    """The task ended without a result: dead or cancelled."""

    def __init__(self, task_id: str, *, status: str, reason: str, queue_dir: str = "") -> None:
        super().__init__(
            f"task {task_id} is {status}: {reason}", hint=f"its attempts are listed by: {command_for(queue_dir, 'show', task_id)}"
        )
        self.task_id, self.status, self.reason = task_id, status, reason


class InvalidHandler(JsonQueueError, ValueError):
    """A handler that cannot be run as asked: not importable, not a function, or not to be found from a child process."""

    exit_status = 64


# ── the disk, and whoever touched it ─────────────────────────────────────────────────────────────────────────────────


class StorageError(JsonQueueError):
    """The queue's files cannot be used as they are."""

    exit_status = 74


class FolderRefused(StorageError):
    """A queue folder that must not be used: not ours, writable by others, or on a network filesystem."""

    exit_status = 77


class UnsupportedFormat(StorageError):
    """A file in a format this version does not read (most likely: written by a newer jsonqueue)."""

    exit_status = 78


class DiskFull(StorageError):
    """No room for a batch. What was written of it has been cut away again; nothing acknowledged is touched."""


class LockLost(StorageError):
    """The lock file of a part of the queue was removed or replaced, so that somebody else may write there now: this process must not."""

    def __init__(self, lock: str) -> None:
        super().__init__(
            f"{lock} was removed or replaced while this process held it: it writes no more",
            hint="lock files stay where they are, also when nobody holds them; what was acknowledged is in the files",
        )
        self.lock = lock


class FileLost(StorageError):
    """A file of a log was removed, moved or replaced while a broker wrote to it, so that nobody would have found there what it wrote.

    ``saved_as``: the file that holds all of it now, from which the broker's next start goes on; empty where it could not be saved.
    """

    exit_status = 72

    def __init__(self, file: str, *, saved_as: str = "", why: str = "") -> None:
        became = f"all that it held was saved as {saved_as}" if saved_as else f"what it held could not be saved ({why})"
        super().__init__(
            f"{file} was removed, moved or replaced while a broker wrote to it: {became}",
            hint="the files of a queue stay where they are while it is served"
            if saved_as
            else "if it was moved, move it back; if not, `jsonqueue repair --accept-loss` keeps what is whole and lists what is lost",
        )
        self.file, self.saved_as, self.why = file, saved_as, why


class SyncFailed(StorageError):
    """An fsync failed. It is never tried again: what the disk holds is unknown until the brokers start anew from it."""


class UnreadableFile(StorageError):
    """Bytes of a file that the disk does not give back. Names file and offset; nothing is written."""

    def __init__(self, file: str, *, offset: int, why: str) -> None:
        hint = (
            "nothing of the queue rests on it: move it away, and the queue goes on without it"
            if file.startswith("archive/")
            else "nothing was changed; `jsonqueue verify` shows which files are affected, `jsonqueue repair` mends what can be mended "
            "without loss, `jsonqueue repair --accept-loss` puts the files aside, reads around what cannot be read and keeps what is whole"
        )
        super().__init__(f"{file} cannot be read at byte {offset}: {why}", hint=hint)
        self.file, self.offset, self.why = file, offset, why


class CorruptQueue(StorageError):
    """Damage that is not a torn tail. Names file, offset and the safe options; nothing is written."""

    exit_status = 65

    def __init__(self, file: str, *, offset: int, why: str, batch: int | None = None, hint: str = "") -> None:
        at = f", batch {batch}" if batch is not None else ""
        super().__init__(
            f"{file} is damaged at byte {offset}{at}: {why}",
            hint=hint
            or "nothing was changed; `jsonqueue verify` shows the extent, `jsonqueue repair` mends what can be mended without loss, "
            "`jsonqueue repair --accept-loss` puts the files as they are aside and keeps what is whole",
        )
        self.file, self.offset, self.why, self.batch = file, offset, why, batch
