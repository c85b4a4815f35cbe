"""What a payload or a result must be like, whoever sent it: a text, not too long, not too deep, and no number that nobody can hold.

Looked at as bytes. It is parsed only where a number might be out of range: ``1e999`` is JSON by its grammar, but a consumer that meets it
can read neither that task nor any other in the same frame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import DecodeError, Raw, json

from jsonqueue.config import Config

__all__ = ["all_sound", "depth_of", "fault_of", "size_of"]

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[\[\]{}]")
_DIGITS_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_EXPONENT, _MANY_DIGITS = b"e000", b"0" * 200
"""A number without either is below 1e299. Both turn up within strings too, which is why they prove nothing."""


def size_of(raw: Raw) -> int:
    """Bytes of a JSON text."""
    return len(memoryview(raw))


def all_sound(raws: Sequence[Raw], config: Config) -> bool:
    """Whether nothing is wrong with any of these. Of small ones this is one check for all, at C speed."""
    largest = max(map(size_of, raws), default=0)
    # A text of n bytes nests at most n / 2 deep.
    if largest > config.payload_max_bytes or largest > 2 * config.depth_max:
        return all(fault_of(raw, config) is None for raw in raws)
    joined = b",".join(raws)
    return _is_text(joined) and _fits(b"[" + joined + b"]")


def fault_of(payload: Raw, config: Config) -> str | None:
    """What is wrong with a payload or result, to follow "it"; None if nothing is."""
    raw = bytes(payload)
    if len(raw) > config.payload_max_bytes:
        return f"is {len(raw)} bytes; payload_max_bytes is {config.payload_max_bytes}"
    if raw.count(b"[") + raw.count(b"{") > config.depth_max and depth_of(raw) > config.depth_max:
        return f"is nested more than {config.depth_max} deep (depth_max)"
    if not _is_text(raw):
        return "is not valid UTF-8"
    return None if _fits(raw) else "holds a number that is out of range"


def depth_of(raw: bytes) -> int:
    """How deep a JSON text nests."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fits(raw: bytes) -> bool:
    """Whether every number in it can be read."""
    alike = raw.translate(_DIGITS_ALIKE, b"+-")
    if _LARGE_EXPONENT not in alike and _MANY_DIGITS not in alike:
        return True
    try:
        json.decode(raw)
    except DecodeError:
        return False
    return True
