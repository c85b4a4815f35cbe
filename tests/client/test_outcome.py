"""What handlers say, and what becomes of it."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import orjson
import pytest
from msgspec import Raw

from jsonqueue.client.outcome import ERROR_MAX_BYTES, Cancel, Current, Retry, current, cut, inline, running_in
from jsonqueue.config import Config
from jsonqueue.errors import JsonQueueError
from jsonqueue.event import Failure
from jsonqueue.task import Task, TaskStatus

TASK: Task[Any] = Task("t1", 1, TaskStatus.IN_PROGRESS, 1, {"a": 1}, attempt=1, token=101)


def judged(handler: Any) -> Raw | Failure:
    return inline(handler, lambda: Config(payload_max_bytes=100))(TASK)


def failed(handler: Any) -> Failure:
    verdict = judged(handler)
    assert isinstance(verdict, Failure)
    assert (verdict.id, verdict.token) == ("t1", 101)
    return verdict


@pytest.mark.parametrize(("value", "kept"), [(None, b"null"), (0, b"0"), ("", b'""'), ({"a": [1]}, b'{"a":[1]}')])
def test_what_a_handler_returns_is_the_result(value: Any, kept: bytes) -> None:
    """Any JSON value; nothing at all is null."""
    verdict = judged(lambda task: value)
    assert isinstance(verdict, Raw)
    assert bytes(verdict) == kept


def raise_deep(task: Any) -> None:
    raise ValueError("no luck")


def test_an_exception_is_a_failure_with_its_traceback() -> None:
    """It begins where the handler begins, and ends with what was raised."""
    error = failed(raise_deep).error
    assert "in raise_deep" in error
    assert error.endswith("ValueError: no luck\n")
    assert "/outcome.py" not in error


def raise_together(task: Any) -> None:
    raise ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("inner", [ValueError("no\nluck")]), KeyError("b")])


def test_a_group_of_exceptions_ends_with_what_it_comes_down_to() -> None:
    """The last line is what a list shows: of a group that was a frame of hyphens."""
    error = failed(raise_together).error
    assert "KeyError: 'b'" in error
    assert error.endswith("\nExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions), the first of them ValueError: no luck\n")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, "of type set"),
        (float("nan"), "not a finite number"),
        ("x" * 99, "101 bytes"),
        ([orjson.Fragment(b"{broken")], "is no JSON: JSON is malformed"),
        (orjson.Fragment(b"1,2"), "is no JSON: JSON is malformed: trailing characters"),
    ],
)
def test_a_result_that_cannot_be_kept_is_a_failure(value: Any, said: str) -> None:
    """It is not dropped, and does not stop the consumer."""
    failure = failed(lambda task: value)
    assert "result" in failure.error
    assert said in failure.error


def raising(error: BaseException) -> Any:
    def handler(task: Any) -> None:
        raise error

    return handler


@pytest.mark.parametrize("say", [raising, lambda error: lambda task: error], ids=["raised", "returned"])
def test_retry_and_cancel_are_raised_or_returned(say: Any) -> None:
    """Both ways say the same."""
    later = failed(say(Retry(1.5, "busy")))
    assert (later.retry_after_ms, later.cancel, later.error) == (1500, False, "busy")
    never = failed(say(Cancel("no such user")))
    assert (never.retry_after_ms, never.cancel, never.error) == (None, True, "no such user")


@pytest.mark.parametrize("after", ["x", True, float("nan"), float("inf"), [1]])
def test_a_wait_that_is_none_is_refused_where_it_is_said(after: Any) -> None:
    """In the handler, whose line then stands in the traceback; the consumer lives on."""
    with pytest.raises((TypeError, ValueError), match=r"Retry\(after="):
        Retry(after=after)


@pytest.mark.parametrize(("after", "ms"), [(None, None), (0, 0), (-1, 0), (timedelta(minutes=1), 60_000), (1e300, 10**12)])
def test_the_wait_of_a_retry(after: Any, ms: int | None) -> None:
    assert Retry(after).after_ms == ms


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_handler_that_wants_to_end_the_process_only_fails(error: BaseException) -> None:
    """sys.exit() in a handler is that task's failure, not the consumer's end."""
    assert type(error).__name__ in failed(raising(error)).error


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a thread that another test left behind
@pytest.mark.parametrize(("end", "status"), [(None, 0), (SystemExit(3), 3), (SystemExit("no"), 1), (ValueError("no"), 1)])
def test_a_child_that_a_handler_forks_does_not_come_back_out_of_it(end: BaseException | None, status: int) -> None:
    """It would tell of the task as well, over a Pipe that is its parent's, and run its parent's tasks."""
    parent, children = os.getpid(), []

    def handler(task: Any) -> str:
        child = os.fork()
        if child == 0 and end is not None:
            raise end
        children.append(child)
        return "done"

    try:
        verdict = inline(handler, Config)(TASK)
    finally:
        if os.getpid() != parent:
            os._exit(99)
    assert isinstance(verdict, Raw)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == status


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def test_an_exception_that_cannot_be_shown_is_still_a_failure() -> None:
    assert "Unprintable" in failed(raising(Unprintable())).error


@pytest.mark.parametrize(("reason", "said"), [(ValueError("no such user"), "no such user"), (None, "None"), (404, "404")])
def test_a_reason_need_not_be_a_string(reason: Any, said: str) -> None:
    """``raise Cancel(error)`` lies at hand, and must not stop the consumer."""
    never = failed(raising(Cancel(reason)))
    assert (never.cancel, never.error) == (True, said)


@pytest.mark.parametrize("kind", [Retry, Cancel])
def test_an_outcome_that_cannot_be_shown_is_a_failure(kind: Any) -> None:
    """The user may have derived it, or put anything into it."""

    class Broken(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.reason = Unprintable()

        __str__ = Unprintable.__str__

    assert "not even that" in failed(raising(Broken())).error


def test_a_result_whose_own_code_fails_is_a_failure() -> None:
    """To say which part of it is no JSON, it has to be looked at."""

    class Broken(dict[str, object]):
        def items(self) -> Any:
            raise RuntimeError("not even that")

    assert "not even that" in failed(lambda task: Broken(a={1})).error


def test_a_bottomless_handler_fails() -> None:
    """The verdict survives a stack overflow, and is short enough to keep."""

    def handler(task: Any) -> None:
        handler(task)

    error = failed(handler).error
    assert "RecursionError" in error
    assert len(error.encode()) <= ERROR_MAX_BYTES
    assert sys.getrecursionlimit() > 0


def test_a_long_error_keeps_its_beginning_and_above_all_its_end() -> None:
    """What was raised stands at the end of a traceback."""
    text = "begin" + "é" * 20_000 + "end"
    short = cut(text)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert "bytes ..." in short
    assert len(short.encode()) <= ERROR_MAX_BYTES


def test_control_characters_are_kept_and_surrogates_spelled_out() -> None:
    """JSON can carry the first and not the second."""
    assert cut("\x1b[31mred\x00 \udcff") == "\x1b[31mred\x00 \\udcff"


def test_current_is_for_handlers() -> None:
    """Elsewhere it says so."""
    with pytest.raises(JsonQueueError, match="no task is running here"):
        current()


def test_current_knows_the_task() -> None:
    import contextvars

    def within() -> None:
        running_in(Current(TASK))
        assert current().task is TASK
        assert not current().cancelled

    contextvars.copy_context().run(within)
