"""The options of publish, and the mistakes one can make with them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any
from uuid import UUID

import pytest

from jsonqueue.client.handle import TaskHandle
from jsonqueue.client.identity import IdSource
from jsonqueue.client.intake import check_id, describe, prepare
from jsonqueue.config import Config
from jsonqueue.errors import InvalidTask
from jsonqueue.retry import Exponential, Linear, Never
from jsonqueue.task import TaskIn

NOW_MS = 1_800_000_000_000


def described(**options: Any) -> TaskIn[Any]:
    return describe(1, now_ms=NOW_MS, **options)


@pytest.mark.parametrize(
    ("options", "run_at_ms"),
    [
        ({}, 0),
        ({"delay": 0}, 0),
        ({"delay": 1.5}, NOW_MS + 1_500),
        ({"delay": timedelta(minutes=2)}, NOW_MS + 120_000),
        ({"run_at": 1_800_000_060}, NOW_MS + 60_000),
        ({"run_at": datetime(2027, 1, 15, 8, 0, 1, tzinfo=UTC)}, NOW_MS + 1_000),
        ({"run_at": datetime(2027, 1, 15, 9, 0, 1, tzinfo=timezone(timedelta(hours=1)))}, NOW_MS + 1_000),
    ],
)
def test_when_it_may_run(options: dict[str, Any], run_at_ms: int) -> None:
    """A delay counts from now, run_at is a moment."""
    assert described(**options).run_at_ms == run_at_ms


@pytest.mark.parametrize("deadline", [60, 60.0, timedelta(minutes=1), datetime(2027, 1, 15, 8, 1, tzinfo=UTC)])
def test_until_when_it_may_start(deadline: Any) -> None:
    """A deadline is a moment, or counts from now."""
    assert described(deadline=deadline).deadline_ms == NOW_MS + 60_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delay": 1, "run_at": 1_800_000_000}, "both given"),
        ({"delay": -1}, "lies in the past"),
        ({"delay": float("nan")}, "is no time"),
        ({"delay": True}, "is no time"),
        ({"delay": "5m"}, "is no time"),
        ({"delay": 1_800_000_000}, "counted from now"),
        ({"run_at": 30}, "early 1970s"),
        ({"run_at": datetime(2027, 1, 1)}, "no time zone"),  # noqa: DTZ001 - that is the mistake
        ({"run_at": 10**12}, "outside the years"),
        ({"deadline": 0}, "lies in the past"),
        ({"deadline": 1_800_000_000}, "counted from now"),
        ({"attempts_max": 0}, "at least 1"),
        ({"attempts_max": 2.0}, "at least 1"),
        ({"retry": "sometimes"}, "exponential, linear, never"),
    ],
)
def test_a_mistaken_option_is_named(options: dict[str, Any], said: str) -> None:
    """The error says which option, and what was meant."""
    with pytest.raises(InvalidTask) as caught:
        described(**options)
    assert said in str(caught.value)


def test_policies_go_by_name_or_by_figure() -> None:
    """A name stands for the policy with its default figures."""
    assert described(retry="linear").retry == Linear()
    assert described(retry=Never()).retry == Never()


def test_what_it_waits_for_may_be_one_or_many_ids_or_handles() -> None:
    """A single id is not taken for its letters."""
    handle = TaskHandle("queue_data", "b")
    assert described(after="abc").after == ("abc",)
    assert described(after=handle).after == ("b",)
    assert described(after=["a", handle]).after == ("a", "b")


def prepared(**fields: Any) -> Any:
    return prepare(TaskIn(data=1, **fields), task_id="a", config=Config())


def test_what_a_ready_made_task_waits_for_travels_as_ids() -> None:
    """As with ``publish``. A str, whose letters might be ids one by one, got into the log as it was: nobody could read that any more."""
    assert prepared(after="1").after == ("1",)
    assert prepared(after=["b", TaskHandle("queue_data", "c")]).after == ("b", "c")
    assert prepared(after={"d": 1}).after == ("d",)
    assert prepared(after=None).after == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"priority": 1_000_001}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"run_at_ms": -1}, "run_at_ms"),
        ({"deadline_ms": 10**13}, "deadline_ms"),
        ({"attempts_max": 10**7}, "attempts_max"),
        ({"retry": Exponential(factor=0.5)}, "retry"),
        ({"retry": "linear"}, "retry"),
        ({"retry": {"kind": "linear", "stp_ms": 5}}, "unknown field `stp_ms`"),
        ({"after": ("../etc",)}, "invalid id"),
        ({"after": [7]}, "after is [7]"),
        ({"after": 7}, "after is 7"),
    ],
)
def test_a_field_that_the_broker_would_not_read_never_leaves(fields: dict[str, Any], said: str) -> None:
    """A broker hangs up on who sends it nonsense, so nonsense is stopped here."""
    with pytest.raises(InvalidTask) as caught:
        prepared(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize("task_id", ["", "-a", "a b", "a/b", "a\n", "ä", "a" * 129])
def test_an_id_that_is_none(task_id: Any) -> None:
    """Ids are readable, never paths, and end where they seem to."""
    with pytest.raises(InvalidTask, match="invalid id"):
        check_id(task_id)


@pytest.mark.parametrize(("task_id", "type_"), [(7, "int"), (UUID(int=7), "UUID"), (b"a", "bytes"), (None, "NoneType")])
def test_an_id_of_another_type_is_told_so(task_id: Any, type_: str) -> None:
    """Of a UUID each sign is one that an id may have: to name these would only puzzle."""
    with pytest.raises(InvalidTask, match=f"^{re.escape(f'invalid id {task_id!r}: an id is a str, and this is of type {type_}')}"):
        check_id(task_id)


@pytest.mark.parametrize("task_id", [0, False, b"", 7])
def test_a_task_is_given_no_other_id_than_was_meant(task_id: Any) -> None:
    """A row's number may be nought: under an id that is made up for it, publishing it again would make a second task."""
    with pytest.raises(InvalidTask, match="an id is a str"):
        prepared(id=task_id)


@pytest.mark.parametrize("task_id", ["a", "0", "report-2026-11", "user@host:1.5_x", "a" * 128])
def test_an_id_that_is_one(task_id: str) -> None:
    assert check_id(task_id) == task_id


def test_fresh_ids_share_a_prefix_of_seventy_bits_and_count() -> None:
    """From a seed they are the same again; without one, two sources never meet."""
    ids = IdSource(Random(7))
    first, second = ids.fresh(), ids.fresh()
    assert first == IdSource(Random(7)).fresh()
    assert first.partition("-")[0] == second.partition("-")[0]
    assert (first[-2:], second[-2:]) == ("-1", "-2")
    assert len(first.partition("-")[0]) == 14
    assert check_id(first)
    assert IdSource().fresh() != IdSource().fresh()
