"""What the manager says in its log (``jsonqueue.manager``): every sentence, in one place."""

from __future__ import annotations

import logging
import shlex
import signal
from pathlib import Path

from jsonqueue.event import EventOwner

__all__ = ["Narration"]

_log = logging.getLogger("jsonqueue.manager")


class Narration:
    """One method a sentence."""

    def __init__(self, queue_dir: str) -> None:
        self._queue_dir = queue_dir

    def serving(self) -> None:
        _log.info("serving %s", self._queue_dir)

    def renamable(self, above: Path) -> None:
        _log.warning(
            "anybody may rename %s away, since all users may write to %s: chmod +t %s, if other users are let in",
            self._queue_dir, above, shlex.quote(str(above)),
        )  # fmt: skip

    def broker_ready(self, role: EventOwner, *, pid: int, epoch: int, took_ms: int) -> None:
        _log.info("%s is ready after %d ms (pid %d, epoch %d)", _name(role), took_ms, pid, epoch)

    def broker_died(self, role: EventOwner, *, pid: int, status: int, last_words: str) -> None:
        _log.warning("%s died (pid %d, %s)%s; starting it again", _name(role), pid, ending(status), last_words and f": {last_words}")

    def both_restarted(self) -> None:
        _log.warning("the disk failed under one broker: both start again from what it holds")

    def broker_waits(self, role: EventOwner, why: str) -> None:
        _log.warning("%s cannot start: %s", _name(role), why)

    def broker_crowded(self, role: EventOwner, why: str) -> None:
        _log.warning("%s has no room for another client: %s", _name(role), why)

    def broker_postponed(self, role: EventOwner, why: str) -> None:
        _log.warning("%s is down, %s; it is tried again until it works", _name(role), why)

    def broker_killed(self, role: EventOwner, *, pid: int, why: str) -> None:
        _log.warning("killed the %s (pid %d): %s", _name(role), pid, why)

    def gave_up(self, error: BaseException) -> None:
        _log.error("stopped serving %s: %s", self._queue_dir, error)

    def visitor_refused(self, reason: str) -> None:
        _log.warning("turned a client away: %s", reason)

    def too_many_files(self, error: OSError) -> None:
        _log.error("cannot take more clients for now: %s", error)

    def checkpointed(self, *, tasks: int, took_ms: int) -> None:
        _log.debug("queue.json is up to date: %d tasks, %d ms", tasks, took_ms)

    def checkpoint_failed(self, why: str) -> None:
        _log.warning("queue.json could not be brought up to date, nothing is lost, the next try follows: %s", why)

    def stopping(self) -> None:
        _log.info("stopping: publishers first, then consumers, then one last checkpoint")

    def draining(self, held: int, *, grace_ms: int) -> None:
        # A warning, since whoever asked for the stop wonders why it takes its time.
        what = "1 task that a consumer holds" if held == 1 else f"{held} tasks that consumers hold"
        _log.warning("waiting at most %g s for %s; a second signal stops at once", grace_ms / 1000, what)

    def not_folded(self, why: str) -> None:
        _log.warning("stopped without a last checkpoint, the logs keep what queue.json lacks: %s", why)

    def stopped(self) -> None:
        _log.info("stopped serving %s", self._queue_dir)


def ending(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _name(role: EventOwner) -> str:
    return {EventOwner.PUBLISHER_BROKER: "PublisherBroker", EventOwner.CONSUMER_BROKER: "ConsumerBroker"}[role]
