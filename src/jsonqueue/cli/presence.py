"""Who is there, when no broker answers: nobody, a manager that is stopping, one that is suspended, or a command at work on the files."""

from __future__ import annotations

from pathlib import Path

from jsonqueue.errors import BrokerUnavailable, JsonQueueError, command_for
from jsonqueue.storage.locks import holder

__all__ = ["NotAnswering", "is_manager", "told_better", "why_silent"]

_COMMANDS = ("(jsonqueue checkpoint)", "(jsonqueue repair)")
"""They hold a queue for a moment, and answer nobody."""


class NotAnswering(JsonQueueError):
    """Somebody holds the queue, and does not answer: to start a broker would lead nowhere."""

    exit_status = 75

    def __init__(self, queue_dir: Path, who: str, why: str) -> None:
        super().__init__(
            f"{who} holds {queue_dir}, and {why}",
            hint=f"wait until it goes on or has ended; look with: {command_for(str(queue_dir), 'status')}",
        )
        self.queue_dir, self.who = queue_dir, who


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


def told_better(queue_dir: Path, error: BrokerUnavailable) -> JsonQueueError:
    """The error as it is, or that somebody is there all the same."""
    who = holder(queue_dir, "queue")
    return NotAnswering(queue_dir, who, why_silent(who, error)) if who else error
