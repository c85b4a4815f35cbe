"""From Python values to the JSON bytes that travel, and from there back.

orjson writes users' values: dataclasses, datetimes, UUIDs, enums and numpy arrays come for free. It has two habits a queue must not have.
It writes NaN and infinity as ``null``, so that what comes out is not what went in. And it writes an ``orjson.Fragment`` as it stands, be it
JSON or not, so that what is around it in a frame or a log could be read as something else. Both are refused here, NaN with its place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec
import orjson
from msgspec import Raw

from jsonqueue.config import Config
from jsonqueue.core.payload import excess_of
from jsonqueue.errors import InvalidTask
from jsonqueue.task import AnyTask, StoredTask, Task

__all__ = ["NULL", "check_limits", "encode_value", "opened"]

NULL = Raw(b"null")
"""The result of a handler that returns nothing."""

_read = msgspec.json.Decoder(Raw).decode
_KEY_SHOWN = 100
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
_HINT = (
    "JSON has dict (with str keys), list, tuple, str, int (64 bit), float, bool and None; "
    "dataclasses, datetimes, UUIDs, enums and numpy arrays become these"
)


def encode_value(value: object, *, what: str, config: Config) -> Raw:
    """``value`` as one JSON value, within the queue's limits. ``what`` (``payload``, ``result``) names it in the :class:`InvalidTask` it
    raises."""
    try:
        data = orjson.dumps(value, option=_OPTIONS)
    except TypeError as error:
        raise _unserialisable(value, what, error) from None
    if b"null" in data:
        _refuse_nan(value, what)
    check_limits(data, what=what, config=config)
    try:
        return _read(data)
    except msgspec.DecodeError as error:
        raise InvalidTask(
            f"the {what} is no JSON: {error}", hint="an orjson.Fragment is written as it stands, and must hold one whole JSON value"
        ) from None


def check_limits(data: bytes, *, what: str, config: Config) -> None:
    """Refuse what is beyond one of the queue's limits."""
    excess = excess_of(data, config)
    if excess is not None:
        raise InvalidTask(f"the {what} {excess.words}", hint=excess.hint)


def opened(task: StoredTask) -> AnyTask:
    """The task as its user sees it: payload and result as Python values."""
    result = None if task.result is None else msgspec.json.decode(task.result)
    return _with(task, msgspec.json.decode(task.data), result)


def _with(task: StoredTask, data: Any, result: Any) -> AnyTask:
    values = {name: getattr(task, name) for name in Task.__struct_fields__}
    return Task(**(values | {"data": data, "result": result}))


# ── what is wrong, and where ─────────────────────────────────────────────────────────────────────────────────────────


def _unserialisable(value: object, what: str, error: TypeError) -> InvalidTask:
    said = str(error)
    if "ecursion" in said:
        return InvalidTask(f"the {what} is nested far too deep, or contains itself", hint="flatten it")
    where, culprit = _culprit(value, what)
    return InvalidTask(f"the {what} cannot be written as JSON: {where} (of type {type(culprit).__name__}): {said}", hint=_HINT)


def _culprit(value: object, path: str) -> tuple[str, object]:
    """The innermost part that fails by itself."""
    for where, child in _children(value, path):
        try:
            orjson.dumps(child, option=_OPTIONS)
        except TypeError:
            return _culprit(child, where)
    return path, value


def _refuse_nan(value: object, what: str) -> None:
    where = _find_nan(value, what)
    if where:
        raise InvalidTask(
            f"{where} is not a finite number, which JSON cannot say",
            hint="use None, a string, or leave it out: NaN would silently become null",
        )


def _find_nan(value: object, path: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    for where, child in _children(value, path):
        if found := _find_nan(child, where):
            return found
    return None


def _children(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The parts of a value, as orjson sees them."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"{path}[{_named(key)}]", child
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield f"{path}[{index}]", child
    elif isinstance(value, Enum):
        yield path, value.value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _attributes(value, path)
    elif type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        # Not imported for this: what is no numpy object needs no numpy.
        yield path, value.tolist()


def _named(key: object) -> str:
    """A key says where; what else somebody uses as one may say anything."""
    return repr(key[:_KEY_SHOWN]) if isinstance(key, str) else f"a {type(key).__name__}"


def _attributes(value: Any, path: str) -> Iterator[tuple[str, object]]:
    names = vars(value) if hasattr(value, "__dict__") else [field.name for field in dataclasses.fields(value)]
    for name in names:
        if not name.startswith("_"):  # orjson leaves these out
            yield f"{path}.{name}", getattr(value, name)
