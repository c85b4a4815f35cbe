"""What a payload or a result must be like, whoever sent it: within the queue's limits, and one value to every reader of JSON.

Grammar alone does not see to the latter. ``1e999``, ``123456789012345678901`` and ``{"a":1,"a":2}`` are JSON, but one reader fails at
them, another one reads something else, and a consumer that cannot read a task can read no other in the same frame.

Limits are looked at first, on the bytes, so that nothing is taken apart that could be too deep. Then one question settles almost all: is
the text what a strict writer makes of what a strict reader reads in it? If so, it has neither doubled members nor figures out of range nor
anything but text in its strings. Whatever differs (a space will do) is taken apart slowly, and the fault in it named. What is asked where,
and what it costs: docs/decisions/payloads.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from msgspec import Raw

from jsonqueue.config import Config

__all__ = ["Fault", "all_sound", "excess_of", "fault_of", "nests_deeper", "size_of"]

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_ALIKE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_KEY_MIN_BYTES = 5
"""``"":0,``: a text of n bytes holds at most a fifth as many keys, and nests at most n / 2 deep."""
_INTEGERS = range(-(2**63), 2**64)
_DIGITS_MAX = 20
_AT_ONCE_BYTES = 1024 * 1024
"""More than this is not taken apart at once: as objects it is up to twenty times as large."""


class Fault(NamedTuple):
    """What is wrong, to follow "it", and what to do about it."""

    words: str
    hint: str


def size_of(raw: Raw) -> int:
    """Bytes of a JSON text."""
    return len(memoryview(raw))


def all_sound(raws: Sequence[Raw], config: Config) -> bool:
    """Whether nothing is wrong with any of these, as far as can be told at C speed: one look for all. False: look at each."""
    if len(raws) == 1:
        text = bytes(raws[0])
        return excess_of(text, config) is None and _is_strict(text)
    if not raws:
        return True
    texts = b"\n".join(raws).split(b"\n")
    if len(texts) != len(raws):
        return False  # There are line breaks within, which our own clients do not make.
    if max(map(len, texts)) > _harmless_bytes(config) and any(excess_of(text, config) for text in texts):
        return False
    joined = b"[" + b",".join(texts) + b"]"
    return _is_strict(joined) if len(joined) <= _AT_ONCE_BYTES else all(map(_is_strict, texts))


def fault_of(payload: Raw, config: Config) -> str | None:
    """What is wrong with a payload or result, to follow "it", and what next; None if nothing is."""
    raw = bytes(payload)
    fault = excess_of(raw, config)
    if fault is None and not _is_strict(raw):
        fault = _oddity_of(raw)
    return fault and f"{fault.words}: {fault.hint}"


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _harmless_bytes(config: Config) -> int:
    """A text of so many bytes can be beyond none of the limits."""
    return min(config.payload_max_bytes, 2 * config.depth_max, _KEY_MIN_BYTES * config.keys_max, config.string_max_bytes or _AT_ONCE_BYTES)


def excess_of(raw: bytes, config: Config) -> Fault | None:
    """The limit that a JSON text is beyond. An exact count is made only where the text could hold that much at all."""
    size = len(raw)
    if size > config.payload_max_bytes:
        return Fault(
            f"is {size:,} bytes of JSON, and this queue takes {config.payload_max_bytes:,}",
            "keep large things in a file and hand its path on, or raise payload_max_bytes in jsonqueue.toml",
        )
    if size > 2 * config.depth_max and raw.count(b"[") + raw.count(b"{") > config.depth_max and nests_deeper(raw, config.depth_max):
        return Fault(f"is nested more than {config.depth_max} deep (depth_max)", "flatten it, or raise depth_max in jsonqueue.toml")
    colons = raw.count(b":") if size > _KEY_MIN_BYTES * config.keys_max else 0
    if colons > config.keys_max and (keys := _STRINGS.sub(b"", raw).count(b":")) > config.keys_max:
        return Fault(
            f"has {keys:,} keys in its objects, and this queue takes {config.keys_max:,}",
            "make it lists, or several tasks, or raise keys_max in jsonqueue.toml",
        )
    most = config.string_max_bytes
    if most and size > most and (longest := max(map(len, _STRINGS.findall(raw)), default=2) - 2) > most:
        return Fault(
            f"holds a string of {longest:,} bytes of JSON, and this queue takes {most:,}",
            "keep large things in a file and hand its path on, or raise string_max_bytes in jsonqueue.toml",
        )
    return None


def nests_deeper(raw: bytes, most: int) -> bool:
    """Whether a JSON text nests more than ``most`` deep. Peels it from within, so that a million brackets take as many looks as levels."""
    brackets = _STRINGS.sub(b"", raw).translate(_ALIKE, _NO_BRACKETS)
    for _ in range(most):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


# ── one value to every reader ────────────────────────────────────────────────────────────────────────────────────────


def _is_strict(text: bytes) -> bool:
    """Whether it is, to the byte, what a strict writer would have written. Most that is not is sound all the same."""
    try:
        return orjson.dumps(orjson.loads(text)) == text
    except (ValueError, TypeError):  # cannot be read; or, an integer beyond 64 bit, cannot be written
        return False


class _Odd(Exception):
    """Raised from within a parser."""

    def __init__(self, words: str, hint: str) -> None:
        super().__init__(words)
        self.fault = Fault(words, hint)


def _oddity_of(raw: bytes) -> Fault | None:
    """What two readers of this text might disagree on, or one fail at. It nests no deeper than any reader goes."""
    try:
        json.loads(raw.decode(), object_pairs_hook=_object, parse_int=_integer, parse_float=_figure)
        orjson.loads(raw)
    except _Odd as odd:
        return odd.fault
    except UnicodeDecodeError:
        return Fault("is not valid UTF-8", "JSON is UTF-8; write other bytes as base64")
    except ValueError:  # half of a surrogate pair, NaN
        return Fault("is not JSON that every reader takes", "it holds half a character, or a figure that JSON does not know, or is no JSON")
    return None


def _object(members: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _Odd(f"has the key {twice[:100]!a} twice in one object", "readers disagree on which one counts: leave one out")


def _integer(digits: str) -> None:
    if len(digits.lstrip("-")) > _DIGITS_MAX or int(digits) not in _INTEGERS:
        raise _Odd("holds a number that is out of range", "an integer has at most 64 bits; write a longer one as a string")


def _figure(digits: str) -> None:
    if not math.isfinite(float(digits)):
        raise _Odd("holds a number that is out of range", "a number is below 1.8e308; write a larger one as a string")
