"""Copies of brokers, and what tells whether two brokers are equal.

Both know what brokers are made of: plain values, lists and dicts, structs, and objects of ours. What never changes is shared by all copies;
what a broker was only given, its clock, its files and its settings, makes no two of them different.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import chain
from operator import is_
from random import Random
from types import FunctionType, MethodType
from typing import Any

from msgspec import Raw, Struct

from jsonqueue.config import Config

__all__ = ["copied", "frozen"]

# ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_PLAIN = frozenset((int, str, bytes, float, bool, type(None)))
"""What most of a broker is made of, told by a look at its type."""
_SHARED = (str, bytes, int, float, range, frozenset, Raw, Enum, Random, Config, FunctionType, MethodType)
_Copy = Callable[[Any, dict[int, Any]], Any]


def copied(value: Any, known: dict[int, Any]) -> Any:
    """As :func:`copy.deepcopy` for what brokers are made of, several times as fast; what cannot change is shared."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    new = known.get(id(value))
    if new is not None:
        return new
    copier = _COPIERS.get(kind)
    if copier is None:
        copier = _COPIERS[kind] = _copier_of(kind)
    return copier(value, known)


_COPIERS: dict[type, _Copy] = {}


def _copier_of(kind: type) -> _Copy:
    """How values of this type are copied."""
    if issubclass(kind, _SHARED):
        return lambda value, known: value
    for of, copier in _CONTAINERS.items():
        if issubclass(kind, of):
            return copier
    return _copied_struct if issubclass(kind, Struct) else _copied_object


def _copied_list(value: Any, known: dict[int, Any]) -> Any:
    new = known[id(value)] = type(value)()
    new.extend([item if type(item) in _PLAIN else copied(item, known) for item in value])
    return new


def _copied_set(value: Any, known: dict[int, Any]) -> Any:
    new = known[id(value)] = type(value)()
    new.update([copied(item, known) for item in value])
    return new


def _copied_dict(value: Any, known: dict[int, Any]) -> Any:
    new = known[id(value)] = type(value)()
    new.update([(key, item if type(item) in _PLAIN else copied(item, known)) for key, item in value.items()])
    return new


def _copied_tuple(value: Any, known: dict[int, Any]) -> Any:
    items = [item if type(item) in _PLAIN else copied(item, known) for item in value]
    if all(map(is_, items, value)):
        return value
    return type(value)._make(items) if hasattr(type(value), "_make") else tuple(items)


def _copied_bytes(value: Any, known: dict[int, Any]) -> Any:
    new = known[id(value)] = bytearray(value)
    return new


_CONTAINERS: dict[type, _Copy] = {
    list: _copied_list, deque: _copied_list, set: _copied_set, dict: _copied_dict, tuple: _copied_tuple, bytearray: _copied_bytes,
}  # fmt: skip


def _copied_struct(value: Any, known: dict[int, Any]) -> Any:
    new = known[id(value)] = copy.copy(value)
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if type(item) not in _PLAIN and (fresh := copied(item, known)) is not item:
            setattr(new, name, fresh)
    return new


def _copied_object(value: Any, known: dict[int, Any]) -> Any:
    new = known[id(value)] = object.__new__(type(value))
    for name in _fields_of(value):
        item = getattr(value, name, _ABSENT)
        if item is not _ABSENT:
            setattr(new, name, item if type(item) in _PLAIN else copied(item, known))
    return new


_ABSENT = object()


# ── equality ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_LEFT_OUT = {"_clock", "_config", "_chance", "_is_alive", "_announce", "_looked_ms", "_files", "_reserve"}
_ATOMS = (int, str, bytes, float, Enum)
_Freeze = Callable[[Any, dict[int, int]], Any]


def frozen(value: Any, seen: dict[int, int]) -> Any:
    """A value that is equal for equal brokers, and can be hashed."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    freeze = _FREEZERS.get(kind)
    if freeze is None:
        freeze = _FREEZERS[kind] = _freezer_of(value, kind)
    return freeze(value, seen)


_FREEZERS: dict[type, _Freeze] = {}


def _freezer_of(value: Any, kind: type) -> _Freeze:
    """How values of this type are frozen."""
    if isinstance(value, _ATOMS):
        return lambda value, seen: value
    if isinstance(value, (bytearray, Raw)):
        return lambda value, seen: bytes(value)
    if isinstance(value, (tuple, range)):
        return lambda value, seen: tuple([item if type(item) in _PLAIN else frozen(item, seen) for item in value])
    if isinstance(value, (set, frozenset)):
        return lambda value, seen: tuple(sorted(value))
    if callable(value) or isinstance(value, (Random, Config)):
        return lambda value, seen: ""
    parts_of = _listed if isinstance(value, (list, deque)) else _mapped if isinstance(value, dict) else _parts_of(value, kind)

    def once(value: Any, seen: dict[int, int]) -> Any:
        place = seen.get(id(value))
        if place is not None:
            return ("seen", place)
        seen[id(value)] = len(seen)
        return tuple([item if type(item) in _PLAIN else frozen(item, seen) for item in parts_of(value)])

    return once


def _listed(value: Any) -> Iterable[Any]:
    return ("list", *value)


def _mapped(value: dict[Any, Any]) -> Iterable[Any]:
    return ("dict", *chain.from_iterable(value.items()))


def _parts_of(value: Any, kind: type) -> Callable[[Any], Iterable[Any]]:
    """What an object of this type is made of: of each of its fields the name, unless the type says which they are, and the value."""
    name = kind.__name__
    fields = [field for field in _fields_of(value) if field not in _LEFT_OUT]
    if not hasattr(value, "__dict__"):
        return lambda value: [name, *[getattr(value, field, None) for field in fields]]
    slots = [field for field in fields if field not in value.__dict__]

    def parts(value: Any) -> Iterable[Any]:
        held = [part for item in value.__dict__.items() if item[0] not in _LEFT_OUT for part in item]
        return [name, *held, *[getattr(value, field, None) for field in slots]]

    return parts


def _fields_of(value: Any) -> list[str]:
    """The names of all that an object holds."""
    if isinstance(value, Struct):
        return list(value.__struct_fields__)
    slots = _SLOTS.get(type(value))
    if slots is None:
        found = [name for kind in type(value).__mro__ for name in _slots_of(kind) if not name.startswith("__")]
        slots = _SLOTS[type(value)] = found
    return [*getattr(value, "__dict__", ()), *slots]


_SLOTS: dict[type, list[str]] = {}


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
