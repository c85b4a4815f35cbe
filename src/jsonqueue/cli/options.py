"""Values that a person types: waits, moments, sizes, retry policies."""

from __future__ import annotations

import math
import os
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from jsonqueue.waits import WAIT_MAX_MS

if TYPE_CHECKING:
    from jsonqueue.retry import RetryPolicy

__all__ = ["LIMIT", "MOMENT", "RETRY", "SIZE", "WAIT", "Figure", "Output", "Seconds", "Wait", "typed", "written"]

_UNITS_S = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_BYTES_MAX = 2**62
_WAIT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|)")


def typed() -> dict[str, str]:
    """What was typed behind the command's name: each option, and how it is written. (One that would count for nothing is refused.)"""
    context = click.get_current_context()
    return {
        option.name: option.opts[0]
        for option in context.command.params
        if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }


class Wait(click.ParamType[float]):
    """Seconds, or figures that each have a unit: ``90``, ``1.5h``, ``2d``, ``1h30m``. (``1h30`` and ``1 000`` mean whatever one likes.)"""

    name = "wait"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        parts = _WAIT.findall(value)
        whole = "".join(figure + unit for figure, unit in parts) == value.replace(" ", "")
        if not parts or not whole or (len(parts) > 1 and not all(unit for _, unit in parts)):
            self.fail(f"{value!r} is no wait: give seconds, or a figure with ms, s, m, h or d, such as 90, 1.5h or 1h30m", param, ctx)
        return float(sum(float(figure) * _UNITS_S[unit] for figure, unit in parts))


class _TimeLimit(Wait):
    """A wait, and some."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if not seconds:
            self.fail(f"{value!r} leaves no time for anything: without the option there is no limit", param, ctx)
        return seconds


class Figure(click.FloatRange):
    """A figure within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        figure = super().convert(value, param, ctx)
        if math.isnan(figure):  # which no comparison finds out of any range
            self.fail(f"{value!r} is no figure", param, ctx)
        return figure


class Seconds(Figure):
    """Seconds that can be waited for: at most 23 days, which no system call exceeds at a time; no ``inf``, no ``nan``."""

    def __init__(self, least: float = 0) -> None:
        super().__init__(least, WAIT_MAX_MS // 1000)


class _Size(click.ParamType[int]):
    """Bytes, or a figure with a unit (of 1024): ``512M``, ``1.5GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = _SIZE.fullmatch(value)
        if parts is None:
            self.fail(f"{value!r} is no size: give bytes, or a figure with K, M, G or T, such as 512M or 1.5G", param, ctx)
        bytes_ = float(parts[1]) * _UNITS_BYTES[parts[2].lower()]
        if not 1 <= bytes_ <= _BYTES_MAX:
            self.fail(f"{value!r} is {'less than a byte' if bytes_ < 1 else 'more than there is'}", param, ctx)
        return round(bytes_)


class Output(click.Path):
    """A file that is written at the end of a run: what could not be is refused at its beginning, before that has taken its time."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, readable=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        super().convert(value, param, ctx)
        path = Path(value)
        if not path.parent.is_dir():
            self.fail(f"{path.parent}: there is no such folder", param, ctx)
        if not path.exists() and not os.access(path.parent, os.W_OK):
            self.fail(f"{path.parent}: no file can be made in this folder", param, ctx)
        return path


def written(path: Path, text: str) -> None:
    """Write such a file. An error names it, which that of a write does not."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class _Moment(click.ParamType[datetime]):
    """A date and time in ISO 8601; without a zone it is the reader's own."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            example = "2026-11-30T14:00 (in your own zone), or 2026-11-30T14:00Z"
            self.fail(f"{value!r} is no date and time: give one such as {example}", param, ctx)


class _WaitOrMoment(click.ParamType["float | datetime"]):
    """A wait from now, or a moment."""

    name = "wait or moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | datetime:
        if isinstance(value, str) and re.match(r"\d{4}-", value):
            return MOMENT.convert(value, param, ctx)
        return WAIT.convert(value, param, ctx)


class _Retry(click.ParamType["RetryPolicy"]):
    """``exponential``, ``linear``, ``never``, or a policy as JSON."""

    name = "policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RetryPolicy:
        import msgspec

        from jsonqueue.retry import RetryPolicy, policy_named

        if not isinstance(value, str):
            policy: RetryPolicy = value
            return policy
        try:
            read: RetryPolicy = msgspec.json.decode(value, type=RetryPolicy) if value.lstrip().startswith("{") else policy_named(value)
            return read
        except (ValueError, msgspec.MsgspecError) as error:
            self.fail(f'{error}; as JSON it reads {{"kind":"linear","step_ms":1000,"cap_ms":60000}}', param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in ("exponential", "linear", "never") if name.startswith(incomplete)]


WAIT = Wait()
LIMIT = _TimeLimit()
MOMENT = _Moment()
WAIT_OR_MOMENT = _WaitOrMoment()
RETRY = _Retry()
SIZE = _Size()
