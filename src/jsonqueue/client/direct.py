"""Publishing with no broker running: take the published log's lock, append by oneself, let go.

It is the PublisherBroker's own code on the same files, so nothing differs but who runs it: the same log, the same judgement, the same sync
before the answer. The lock is held for one call only, never while user code runs, so that brokers can start at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.errors import ManagerRunning, StorageError
from jsonqueue.event import Event, EventOwner, Write, Written, decoder_for, encode
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.folder import denied_by, load_config, open_folder
from jsonqueue.storage.locks import hold
from jsonqueue.task import StoredTaskIn

__all__ = ["Appended", "append", "settings"]

_LOCK_WAIT_S = 0.1
_read = decoder_for(EventOwner.PUBLISHER)


def settings(queue_dir: Path) -> Config:
    """The queue's settings as its folder has them; an absent folder is made, as the publish that follows would."""
    with _explained(queue_dir):
        files = open_folder(queue_dir, create=True)
        try:
            return load_config(files)
        finally:
            files.shut()


@contextmanager
def _explained(queue_dir: Path) -> Iterator[None]:
    """What the system says of the files, as an error of ours; and of the folder, if it is that one's mode."""
    try:
        yield
    except (OSError, StorageError) as error:
        refused = denied_by(queue_dir, error)
        if refused is None and isinstance(error, StorageError):
            raise
        raise refused or _as_ours(queue_dir, error) from error


def _as_ours(queue_dir: Path, error: Exception) -> StorageError:
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return error if isinstance(error, StorageError) else StorageError(f"{queue_dir}: {said}")


class Appended(NamedTuple):
    """What came of it."""

    answers: list[Written]
    """One for each batch that was dealt with, durably."""
    error: StorageError | None = None
    """Of the batch behind these, which may be stored or not; those behind it are not."""


def append(queue_dir: Path, batches: Sequence[list[StoredTaskIn]], *, clock: Clock) -> Appended | None:
    """Append the batches, each durable before the next. None: somebody else holds the lock, nothing was done.

    Raises what keeps the log from being opened; then nothing was done either.
    """
    with _explained(queue_dir):
        files = open_folder(queue_dir, create=True)
        try:
            with hold(queue_dir, "published", timeout=_LOCK_WAIT_S, what="a publisher, for one call") as lock:
                files.guard(lock.check)
                return _append(files, batches, clock)
        except ManagerRunning:
            return None
        finally:
            files.shut()


def _append(files: RealFiles, batches: Sequence[list[StoredTaskIn]], clock: Clock) -> Appended:
    broker = PublisherBroker(files, clock, load_config(files))
    broker.open()
    answers: list[Written] = []

    def keep(_: int, event: Event) -> None:
        assert isinstance(event, Written)
        answers.append(event)

    try:
        for tasks in batches:
            # As over a Pipe: what could not be read there must not get into the log.
            broker.step([(0, _read(encode(Write(len(answers), tasks))))], keep)
    except (OSError, StorageError) as error:
        return Appended(answers, _as_ours(files.root, error))
    finally:
        broker.close()
    return Appended(answers)
