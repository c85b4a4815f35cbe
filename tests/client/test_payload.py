"""What may be published, and what is said about what may not."""

from __future__ import annotations

import dataclasses
import enum
import math
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from jsonqueue.client.payload import encode_value, opened
from jsonqueue.config import Config
from jsonqueue.errors import InvalidTask
from jsonqueue.task import Task, TaskStatus

CONFIG = Config(payload_max_bytes=64, depth_max=3)


def encoded(value: Any, config: Config | None = None) -> bytes:
    return bytes(encode_value(value, what="payload", config=config or Config()))


@pytest.mark.parametrize("value", [0, "", [], {}, None, False, 0.0])
def test_a_falsy_payload_is_a_payload(value: Any) -> None:
    """Nothing in Python that is false is nothing in the queue."""
    task = Task("a", 1, TaskStatus.PENDING, 1, Raw(encoded(value)))
    assert opened(task).data == value


@dataclasses.dataclass
class Point:
    x: float
    y: float
    _cache: object = None


class Colour(enum.Enum):
    RED = math.nan


def test_dataclasses_datetimes_and_uuids_become_json() -> None:
    """What orjson can write needs no help."""
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    value = [Point(1.5, 2), moment, uuid.UUID(int=7)]
    assert encoded(value) == b'[{"x":1.5,"y":2},"2026-11-22T00:00:00+00:00","00000000-0000-0000-0000-000000000007"]'


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, "payload is"),
        ({"a": [1, {"b": math.inf}]}, "payload['a'][1]['b'] is"),
        ((None, -math.inf), "payload[1] is"),
        ({"p": Point(1, math.nan)}, "payload['p'].y is"),
        ([Colour.RED], "payload[0] is"),
    ],
)
def test_nan_is_refused_with_its_place(value: Any, where: str) -> None:
    """orjson would write null, and what comes out would not be what went in."""
    with pytest.raises(InvalidTask, match="not a finite number") as caught:
        encoded(value)
    assert str(caught.value).startswith(where)


def test_null_in_text_or_beside_numbers_is_no_nan() -> None:
    """Only a number that is none is refused; the word and None are welcome."""
    assert encoded({"nullable": None, "word": "null", "n": 1.0, "p": Point(1, 2, math.nan)}).count(b"null") == 3


class FakeArray:
    """Stands for a numpy array: known by the module of its type."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def tolist(self) -> list[float]:
        return self.values


FakeArray.__module__ = "numpy"


def test_an_array_is_searched_for_nan_without_importing_numpy() -> None:
    """The search looks into arrays by what they can do."""
    from jsonqueue.client.payload import _find_nan

    assert _find_nan({"a": FakeArray([1.0, math.nan])}, "payload") == "payload['a'][1]"
    assert _find_nan({"a": FakeArray([1.0, 2.0])}, "payload") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, "payload (of type set)"),
        ({"a": [0, {"b": object()}]}, "payload['a'][1]['b'] (of type object)"),
        ([{1: "a"}], "payload[0] (of type dict): Dict key must be str"),
        ([2**70], "payload[0] (of type int): Integer exceeds 64-bit range"),
        ({"s": "\ud800"}, "payload['s'] (of type str)"),
        (Point({1}, 2), "payload.x (of type set)"),  # type: ignore[arg-type]
    ],
)
def test_what_json_cannot_say_is_named_with_its_place_and_type(value: Any, said: str) -> None:
    """The innermost culprit, not the whole payload."""
    with pytest.raises(InvalidTask) as caught:
        encoded(value)
    assert said in str(caught.value)
    assert caught.value.hint


def test_a_value_that_contains_itself_is_refused() -> None:
    """A circle ends in an error, not in the stack."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidTask, match="contains itself"):
        encoded(circle)


def test_a_payload_of_just_the_limit_passes_and_one_byte_more_does_not() -> None:
    """The limit counts bytes of JSON."""
    assert len(encoded("x" * 62, CONFIG)) == 64
    with pytest.raises(InvalidTask, match="65 bytes"):
        encoded("x" * 63, CONFIG)


def test_a_payload_of_just_the_depth_passes_and_one_deeper_does_not() -> None:
    """[[[]]] is three deep."""
    assert encoded([[[]], {"a": {}}], CONFIG)
    with pytest.raises(InvalidTask, match="nested more than 3 deep"):
        encoded([[{"a": []}]], CONFIG)


def test_brackets_in_text_and_beside_each_other_are_no_depth() -> None:
    """Many brackets make the exact count necessary, not the refusal."""
    assert encoded([[], [], [], '[[[["{\\', []], CONFIG)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_JSON)
def test_what_goes_in_comes_out(value: Any) -> None:
    """Every JSON value survives the way through the queue."""
    task = Task("a", 1, TaskStatus.COMPLETED, 1, Raw(encoded(value)), result=Raw(encoded(value)))
    seen = opened(task)
    assert seen.data == value
    assert seen.result == value
