"""How things read: what may be printed, and how figures are written.

Payloads, results, errors and consumer names come from whoever published or ran a task. Printed as they are, an escape sequence in one
of them could move the cursor, rename the window, fill the clipboard, or write a line that looks like ours. So whatever comes out of the
queue passes through here first: control characters, line and paragraph separators and the marks that reverse the reading direction are
shown as escapes. Nothing here imports rich, asyncio or any other heavy module.
"""

from __future__ import annotations

import codecs
import re
from datetime import UTC, datetime
from typing import Any

import orjson
from msgspec import Raw

__all__ = [
    "ESCAPES",
    "clip",
    "count",
    "duration",
    "json_text",
    "moment",
    "plural",
    "printable",
    "printable_lines",
    "rate",
    "size",
]

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")


def printable(text: str) -> str:
    """The text on one line, with everything that a terminal would act upon written as an escape: ``\\x1b``, ``\\u202e``."""
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found.group()
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if short:
        return short
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable_lines(text: str) -> list[str]:
    """A text of several lines, such as a traceback, each line made printable. Only ``\\n`` ends a line; tabs become spaces."""
    return [printable(line.replace("\t", "    ")) for line in text.replace("\r\n", "\n").rstrip("\n").split("\n")]


ESCAPES = "jsonqueue.escapes"
"""How a stream encodes what its locale has no sign for: as an escape, one that JSON knows too."""


def _escapes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")  # beyond U+FFFF JSON has two for a character
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


codecs.register_error(ESCAPES, _escapes)


def json_text(value: Any, *, indent: bool = False) -> str:
    """The value as JSON that is safe to print and still the same JSON: what a terminal would act upon is written as ``\\uXXXX``."""
    if isinstance(value, Raw):
        import msgspec

        text = msgspec.json.format(bytes(value), indent=2 if indent else -1).decode("utf-8", "surrogateescape")
    else:
        text = orjson.dumps(value, default=_plain, option=orjson.OPT_INDENT_2 if indent else None).decode()
    # In JSON such characters can stand only within strings, where an escape means the same. The line feeds of an indented
    # document are the one exception.
    return _UNPRINTABLE.sub(lambda found: found.group() if found.group() == "\n" else f"\\u{ord(found.group()):04x}", text)


def _plain(value: Any) -> Any:
    import msgspec

    if isinstance(value, Raw):
        return orjson.Fragment(bytes(value))
    return msgspec.to_builtins(value)


def clip(text: str, width: int) -> str:
    """At most ``width`` characters of the text, an ellipsis standing for the rest."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def count(number: int) -> str:
    """``1790`` as ``1,790``."""
    return f"{number:,}"


def plural(number: int, one: str, many: str = "") -> str:
    """``1 task``, ``1,790 tasks``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: int) -> str:
    """Bytes in the unit that reads best: ``812 B``, ``1.4 MB``."""
    if number < 1000:
        return f"{number} B"
    figure, unit = number / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if figure >= 999.5:
            figure, unit = figure / 1000, larger
    return f"{figure:.1f} {unit}" if figure < 99.95 else f"{figure:.0f} {unit}"


def rate(each_second: float) -> str:
    """``142/s``; one decimal where it says something."""
    return f"{each_second:,.0f}/s" if each_second >= 9.95 or each_second == 0 else f"{each_second:.1f}/s"


_STEPS = ((86_400_000, "d", 3_600_000, "h"), (3_600_000, "h", 60_000, "min"), (60_000, "min", 1_000, "s"))


def duration(ms: float) -> str:
    """Milliseconds as a person says them: ``0.6 ms``, ``12 ms``, ``3.2 s``, ``4 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if ms < 9.95:
        return f"{ms:.1f} ms" if ms else "0 ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    whole = round(ms)
    for large, name, small, rest_name in _STEPS:
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name} {rest} {rest_name}" if rest else f"{whole // large} {name}"
    return "1 min"


def moment(ms: int, *, now_ms: int | None = None) -> str:
    """A time in the reader's own zone. With ``now_ms``: the day is left out when it is today's."""
    if not ms:
        return "–"
    at = datetime.fromtimestamp(ms / 1000, UTC).astimezone()
    today = now_ms is not None and datetime.fromtimestamp(now_ms / 1000, UTC).astimezone().date() == at.date()
    return at.strftime("%H:%M:%S") + f".{ms % 1000:03}" if today else at.strftime("%Y-%m-%d %H:%M:%S")
