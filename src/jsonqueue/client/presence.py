"""Who is there, when no broker answers: nobody, a manager that is stopping, one that is suspended, or a command at work on the files."""

from __future__ import annotations

import os
from pathlib import Path

from jsonqueue.channel import registration
from jsonqueue.channel.pipe import Pipe
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable, JsonQueueError, command_for
from jsonqueue.event import EventOwner
from jsonqueue.storage.folder import denied_by, require_folder
from jsonqueue.storage.locks import holder

__all__ = ["NotAnswering", "is_manager", "register", "told_better", "why_silent"]

_COMMANDS = ("(jsonqueue checkpoint)", "(jsonqueue repair)")
"""They hold a queue for a moment, and answer nobody."""


class NotAnswering(BrokerUnavailable):
    """Somebody holds the queue, and does not answer: to start a broker would lead nowhere."""

    exit_status = 75

    def __init__(self, queue_dir: Path, who: str, error: BrokerUnavailable) -> None:
        JsonQueueError.__init__(
            self,
            f"{who} holds {queue_dir}, and {why_silent(who, error)}",
            hint=f"wait until it goes on or has ended; look with: {command_for(str(queue_dir), 'status')}",
        )
        self.queue_dir, self.cause, self.silent = str(queue_dir), error.cause, error.silent
        self.who = who


def is_manager(who: str) -> bool:
    """Whether it is one that serves, as far as can be told."""
    return bool(who) and not who.endswith(_COMMANDS)


def why_silent(who: str, error: BrokerUnavailable) -> str:
    """What there is to be said of one who holds the queue, when a call came to this."""
    if error.silent:
        return "does not answer (is it suspended?)"
    if error.cause:
        return f"cannot serve this: {error.cause}"  # the manager's own words, or what became of the call
    # It takes no calls: there was no socket, or nobody behind it.
    return "is stopping" if is_manager(who) else "is not done yet"


def told_better(queue_dir: Path, error: BrokerUnavailable) -> BrokerUnavailable:
    """The error as it is, or that somebody is there all the same."""
    who = holder(queue_dir, "queue") or (error.who if isinstance(error, NotAnswering) else "")
    return NotAnswering(queue_dir, who, error) if who else error


def register(queue_dir: Path, owner: EventOwner, *, name: str = "", timeout: float) -> tuple[Pipe, Config]:
    """A Pipe to the broker that serves ``owner``. Raises :class:`BrokerUnavailable` that says who is there all the same, if somebody is,
    and :class:`FolderRefused` where nobody ever will be: of a file, or of a folder whose mode denies it."""
    try:
        return registration.connect(queue_dir, owner, name=name, timeout=timeout)
    except BrokerUnavailable as error:
        if os.path.exists(queue_dir):
            require_folder(queue_dir)
        refused = denied_by(queue_dir, error.__context__)
        raise refused or told_better(queue_dir, error) from None
