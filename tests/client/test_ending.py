"""How a consumer's worker threads end."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from jsonqueue.client.holdings import Holdings
from jsonqueue.client.outcome import NULL, Verdict
from jsonqueue.client.threads import Threads
from jsonqueue.errors import InvalidHandler


class SlowStarter:
    """A runner whose child process is still starting when it is closed, and is killed for it."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def prepare(self) -> None:
        assert self._closed.wait(10)
        raise InvalidHandler("cannot be loaded: killed by SIGKILL")

    def run(self, task: Any) -> Verdict:
        return NULL

    def kill(self, token: int) -> None: ...

    def close(self) -> None:
        self._closed.set()


class Ready(SlowStarter):
    def prepare(self) -> None: ...


def crew(*runners: SlowStarter) -> tuple[Threads, list[BaseException]]:
    failures: list[BaseException] = []
    session: Any = SimpleNamespace(fail=failures.append, next_task=lambda slot, verdict: None)
    return Threads(session, Holdings(len(runners)).slots, runners), failures


def test_a_child_that_was_still_starting_at_the_end_has_not_failed() -> None:
    """Stopping a consumer right after its start is no error of its handler."""
    threads, failures = crew(Ready(), SlowStarter())
    threads.start()
    threads.stop()
    assert failures == []


def test_a_child_that_cannot_start_ends_the_consumer() -> None:
    """Nothing would ever run there: the consumer says so instead of waiting."""
    late = SlowStarter()
    threads, failures = crew(Ready(), late)
    threads.start()
    late.close()
    threads._threads[1].join(10)
    assert [type(failure) for failure in failures] == [InvalidHandler]
    threads.stop()
