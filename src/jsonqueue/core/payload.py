"""What a payload or a result must be like, whoever sent it: a text, not too long, not too deep. Looked at as bytes, never parsed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Raw

from jsonqueue.config import Config

__all__ = ["all_sound", "depth_of", "fault_of", "size_of"]

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[\[\]{}]")


def size_of(raw: Raw) -> int:
    """Bytes of a JSON text."""
    return len(memoryview(raw))


def all_sound(raws: Sequence[Raw], config: Config) -> bool:
    """Whether nothing is wrong with any of these. Of small ones this is one check for all, at C speed."""
    largest = max(map(size_of, raws), default=0)
    # A text of n bytes nests at most n / 2 deep.
    if largest > config.payload_max_bytes or largest > 2 * config.depth_max:
        return all(fault_of(raw, config) is None for raw in raws)
    return _is_text(b"".join(raws))


def fault_of(payload: Raw, config: Config) -> str | None:
    """What is wrong with a payload or result, to follow "it"; None if nothing is."""
    raw = bytes(payload)
    if len(raw) > config.payload_max_bytes:
        return f"is {len(raw)} bytes; payload_max_bytes is {config.payload_max_bytes}"
    if raw.count(b"[") + raw.count(b"{") > config.depth_max and depth_of(raw) > config.depth_max:
        return f"is nested more than {config.depth_max} deep (depth_max)"
    return None if _is_text(raw) else "is not valid UTF-8"


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
