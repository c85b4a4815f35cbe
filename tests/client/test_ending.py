"""How a consumer's worker threads end."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from jsonqueue.client.holdings import Holdings
from jsonqueue.client.outcome import NULL, NotStarted, Verdict
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

    def dismiss(self) -> None:
        self._closed.set()

    def close(self) -> None:
        self.dismiss()


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


class Short(Ready):
    """A runner that has nothing to start a process with."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.tried = 0
        self._error = error

    def prepare(self) -> None:
        raise self._error

    def run(self, task: Any) -> Verdict:
        self.tried += 1
        if self.tried <= 8:
            raise NotStarted("no process is to be had")
        return NULL


@pytest.mark.parametrize("error", [OSError(errno.EAGAIN, "no process is to be had"), MemoryError()], ids=repr)
def test_a_slot_that_can_start_nothing_rests_longer_each_time(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """And hands back what it took; that it is short when it gets ready is no reason to end either."""
    short, rests, asked, handed_back = Short(error), [], [], []
    threads, failures = crew(Ready(), short)
    threads._ending = SimpleNamespace(wait=rests.append, set=lambda: None, is_set=lambda: False)  # type: ignore[assignment]

    def next_task(slot: Any, verdict: Any) -> object:
        asked.append(verdict)
        return object() if verdict is None else None

    threads._session.next_task = next_task  # type: ignore[method-assign]
    threads._session.hand_back = handed_back.append  # type: ignore[method-assign]
    slot = Holdings(1).slots[0]
    threads._work(slot, short)
    assert rests == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert handed_back == [slot] * 8
    assert asked == [None] * 9 + [NULL]
    assert failures == []
    assert len([record for record in caplog.records if "no process is to be had" in record.getMessage()]) == 1


@pytest.mark.parametrize("want", [OSError(errno.EAGAIN, "no process"), MemoryError()])
def test_a_consumer_that_starts_in_want_is_none_that_cannot_run(want: Exception) -> None:
    """Its first task tries again; what else keeps the first runner from getting ready is the caller's to know, at once."""
    first = Ready()
    first.prepare = mock.Mock(side_effect=want)  # type: ignore[method-assign]
    threads, failures = crew(first)
    threads.start()
    threads.stop()
    assert failures == []
    first.prepare = mock.Mock(side_effect=FileNotFoundError(errno.ENOENT, "no python"))  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError):
        crew(first)[0].start()


def test_a_crew_that_is_stuck_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once a thread: a hundred of them would take a hundred seconds to be left behind."""
    waited: list[float] = []

    class Stuck:
        ident = 1

        def join(self, timeout: float) -> None:
            waited.append(timeout)

    monkeypatch.setattr("jsonqueue.client.threads.SystemClock", lambda: SimpleNamespace(monotonic_ms=lambda: 1000 * sum(waited)))
    threads, _ = crew(Ready(), Ready(), Ready())
    threads._threads = [Stuck(), Stuck(), Stuck()]  # type: ignore[list-item]
    threads.stop()
    assert waited == [1.0, 0.0, 0.0]


def test_runners_end_side_by_side() -> None:
    """Each may take its time, a child process for one: a stop takes as long as the slowest, and not as all of them together."""
    ended: list[tuple[str, int]] = []

    class Slow(Ready):
        def __init__(self, number: int) -> None:
            super().__init__()
            self._number = number

        def dismiss(self) -> None:
            ended.append(("dismissed", self._number))

        def close(self) -> None:
            ended.append(("closed", self._number))

    threads, _ = crew(Slow(1), Slow(2))
    threads.stop()
    assert ended == [("dismissed", 1), ("dismissed", 2), ("closed", 1), ("closed", 2)]
