"""What is printed, and how figures read."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

from cli.calls import ESCAPES
from jsonqueue.cli.text import clip, count, duration, json_text, moment, plural, printable, printable_lines, rate, size


def test_a_terminal_is_told_nothing_by_a_payload() -> None:
    """No control character survives, and what was there can still be seen."""
    shown = printable(ESCAPES)
    assert shown.isprintable()
    assert shown == "\\x1b[31mred\\x1b]0;title\\x07\\r\\nError: forged\\u202e\\x9b2J\\u2028"


def test_ordinary_text_is_left_as_it_is() -> None:
    """Accents, scripts read from right to left, emoji and backslashes are nobody's attack."""
    for text in ("größe", "שלום", "🚀", "C:\\temp", "a b"):
        assert printable(text) == text


def test_a_traceback_keeps_its_lines_and_nothing_else() -> None:
    """Only a line feed ends a line."""
    assert printable_lines("a\n\tb\x1b[2J\u2028c\r\n") == ["a", "    b\\x1b[2J\\u2028c"]


@pytest.mark.parametrize("value", [ESCAPES, {ESCAPES: [ESCAPES, 1, None]}, "\x7f", "plain", 0, "", [], None])
def test_json_is_made_safe_and_stays_the_same_json(value: object) -> None:
    """A program that parses it gets the value; a terminal gets nothing to act upon. With and without indent, as value and as bytes."""
    raw = Raw(json.dumps(value, ensure_ascii=False).encode())
    for text in (json_text(value), json_text(value, indent=True), json_text(raw), json_text(raw, indent=True)):
        assert json.loads(text) == value
        assert text.replace("\n", "").isprintable()
        assert "\n" not in json_text(value)


def test_figures_in_stored_json_are_not_touched() -> None:
    """More digits than a float holds come out as they went in."""
    assert json_text(Raw(b'{ "n": 123456789012345678901234567890.10 }')) == '{"n":123456789012345678901234567890.10}'


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"), (0.64, "0.6 ms"), (12, "12 ms"), (999, "999 ms"), (999.6, "1.0 s"), (3_210, "3.2 s"), (59_960, "1 min"),
        (60_000, "1 min"), (250_000, "4 min 10 s"), (3_600_000, "1 h"), (7_500_000, "2 h 5 min"), (273_600_000, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(ms: float, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (999_600, "1.0 MB"), (5 * 10**12, "5.0 TB")]
)
def test_sizes_take_the_unit_that_reads_best(number: int, text: str) -> None:
    assert size(number) == text


def test_other_figures() -> None:
    assert (count(1790), plural(1, "task"), plural(1790, "task"), rate(0), rate(0.5), rate(45113.4)) == (
        "1,790", "1 task", "1,790 tasks", "0/s", "0.5/s", "45,113/s",
    )  # fmt: skip
    assert (clip("abcdef", 4), clip("abc", 4)) == ("abc…", "abc")


def test_a_time_of_today_needs_no_date() -> None:
    """The reader's own zone; no time is a dash."""
    now = 1_795_000_000_123
    assert moment(0) == "–"
    assert len(moment(now, now_ms=now)) == len("14:00:00.123")
    assert moment(now, now_ms=now + 3 * 86_400_000) == moment(now)
