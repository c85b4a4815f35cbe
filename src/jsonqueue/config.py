"""The settings of a queue, validated once.

They live with the queue, in ``jsonqueue.toml`` beside its files, since brokers, publishers and consumers in many processes share them;
``BrokerManager(config=...)`` and ``jsonqueue serve --set name=value`` override them for one run. Every setting carries its unit in its
name.
"""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from jsonqueue.errors import InvalidConfig
from jsonqueue.retry import Exponential, RetryPolicy
from jsonqueue.waits import WAIT_MAX_MS

__all__ = ["CONFIG_FILE", "PAYLOAD_MAX_BYTES", "Config", "checked", "config_from", "parse_config"]

CONFIG_FILE = "jsonqueue.toml"

_Count = Annotated[int, Meta(ge=1)]
_Ms = Annotated[int, Meta(ge=1)]

_FRAME_ROOM_BYTES = 4 * 1024 * 1024

PAYLOAD_MAX_BYTES = 24 * 1024 * 1024
"""A payload, the result of it, and all that was said of a hundred attempts go into one frame of 64 MiB."""

Durability = Literal["power-cut", "process-crash"]


class Config(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Every default, in one place."""

    attempts_max: _Count = 3
    """Attempts a task gets if it does not say otherwise."""
    retry: RetryPolicy = Exponential()
    """The wait between attempts, if the task does not say otherwise."""
    lease_ms: Annotated[int, Meta(ge=100, le=WAIT_MAX_MS)] = 30_000
    """A consumer that has not been heard of for this long loses its tasks. It sends a heartbeat each third of it. At most 23 days."""
    flush_interval_ms: Annotated[int, Meta(ge=10, le=WAIT_MAX_MS)] = 2_000
    """How far queue.json may lie behind the logs while the queue is small (256 KiB for each second of it). At most 23 days."""
    finished_keep_ms: Annotated[int, Meta(ge=0)] = 24 * 3_600_000
    """How long an ended task stays in the queue, with its result, or as long as another waits for it and for more; after that it
    moves to the archive. Its id is taken as long."""
    finished_keep_max: Annotated[int, Meta(ge=0)] = 100_000
    """At most this many ended tasks stay, whatever their age. Dead letters, and those that others still rest on, do not count."""
    finished_keep_bytes: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    """At most this many bytes of results and payloads of ended tasks stay, counted alike."""
    dead_keep_ms: Annotated[int, Meta(ge=0)] = 30 * 24 * 3_600_000
    """How long a dead letter stays to be looked at and replayed."""
    archive: bool = True
    """Whether tasks past their retention are kept in archive/, or dropped."""
    payload_max_bytes: Annotated[int, Meta(ge=1, le=PAYLOAD_MAX_BYTES)] = 1024 * 1024
    """Largest payload, and largest result, as JSON. At most 24 MiB."""
    depth_max: Annotated[int, Meta(ge=1, le=200)] = 64
    """Deepest nesting of a payload."""
    keys_max: _Count = 10_000
    """Most keys of a payload, those of all its objects together."""
    string_max_bytes: Annotated[int, Meta(ge=0)] = 0
    """Longest string in a payload, as JSON; 0: as long as the payload may be."""
    tasks_max: _Count = 10_000_000
    """The queue refuses new tasks beyond this many."""
    disk_reserve_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    """Publishing is refused while the disk has less room than this, so that what is queued can still be finished."""
    segment_max_bytes: Annotated[int, Meta(ge=4096)] = 64 * 1024 * 1024
    """A log segment is sealed, at the latest, at this size."""
    redact_keys: tuple[str, ...] = ()
    """Keys, in large or small letters, whose values in payloads and results ``list``, ``show`` and ``dead`` print as "[redacted]", at
    whatever depth. For onlookers' eyes alone: the files keep the values, and handlers and ``result`` get them. Only in jsonqueue.toml,
    where these commands read it."""
    durability: Durability = "power-cut"
    """``process-crash`` skips the fsync before each acknowledgement: it survives kill -9, and may lose the last moments in a power cut."""

    @property
    def frame_max_bytes(self) -> int:
        """The largest frame that a broker takes of a client: what a batch comes to (1 MiB, and the payload or result that fills it up), and
        3 MiB for all that is no payload: ids, options, errors, and the tasks that a consumer holds."""
        return self.payload_max_bytes + _FRAME_ROOM_BYTES


def config_from(settings: dict[str, Any], *, source: str = "settings", base: Config | None = None) -> Config:
    """The settings laid over ``base`` (or the defaults). Raises :class:`InvalidConfig` that names the setting and its range."""
    known = msgspec.to_builtins(base) if base else {}
    unknown = sorted(set(settings) - set(Config.__struct_fields__))
    if unknown:
        raise InvalidConfig(
            f"{source}: unknown setting {unknown[0]!r}", hint="the settings are: " + ", ".join(sorted(Config.__struct_fields__))
        )
    try:
        return msgspec.convert({**known, **settings}, Config)
    except msgspec.ValidationError:
        raise InvalidConfig(f"{source}: {_wrong(settings, Config)}") from None


def _wrong(given: dict[str, Any], kind: type[Struct], at: str = "") -> str:
    """Which of the members given is not as ``kind`` wants it, and what it may be."""
    from msgspec import inspect  # noqa: PLC0415 - only needed where something is wrong

    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    members = {field.name: field.type for field in info.fields}
    for name, value in given.items():
        if name not in members:
            if name != info.tag_field:
                return f"{at}{name} is none of the members of {info.tag}: these are {', '.join(members) or 'none'}"
        elif not _fits({name: value}, kind):
            return _wrong_value(f"{at}{name}", value, members[name])
    raise AssertionError("one of them is wrong")


def _fits(given: dict[str, Any], kind: type[Struct]) -> bool:
    tag = {kind.__struct_config__.tag_field: kind.__struct_config__.tag} if kind.__struct_config__.tag_field else {}
    try:
        msgspec.convert(given | tag, kind)
    except msgspec.ValidationError:
        return False
    return True


def _wrong_value(name: str, value: Any, wanted: Any) -> str:
    from msgspec import inspect  # noqa: PLC0415 - as above

    match wanted:
        case inspect.IntType() | inspect.FloatType():
            number = "a whole number" if isinstance(wanted, inspect.IntType) else "a number"
            may = f"{number} " + (f"of {wanted.ge:,} or more" if wanted.le is None else f"from {wanted.ge:,} to {wanted.le:,}")
        case inspect.BoolType():
            may = "true or false"
        case inspect.VarTupleType():
            may = 'a list of strings, such as ["password", "token"]'
        case inspect.LiteralType():
            may = " or ".join(f'"{value}"' for value in wanted.values)
        case _:
            kinds = get_args(RetryPolicy)
            for kind in kinds if isinstance(value, dict) else ():
                if kind.__struct_config__.tag == value.get("kind"):
                    return _wrong(value, kind, f"{name}.")
            names = ", ".join(kind.__struct_config__.tag for kind in kinds)
            may = f"""a table with a kind ({names}), such as {{ kind = "linear", step_ms = 1_000 }}"""
    said = f"{value!r}".lower() if isinstance(value, bool) else f"{value!r}"
    return f"{name} is {said[:80]}, and must be {may}"


def checked(config: Config) -> Config:
    """Settings that a program made, of which nothing is checked until here. Raises :class:`InvalidConfig`."""
    if not isinstance(config, Config):
        raise InvalidConfig(f"the config is {config!r}", hint="give a Config(...), or leave it out for jsonqueue.toml or the defaults")
    try:
        return config_from(msgspec.to_builtins(config), source="Config")
    except TypeError as error:
        raise InvalidConfig(f"Config: {error}") from None


def parse_config(text: str, *, source: str = CONFIG_FILE) -> Config:
    """The settings of a ``jsonqueue.toml``."""
    try:
        settings = tomllib.loads(text.removeprefix("\ufeff"))  # the mark that editors, those of Windows above all, put before it
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{source} is not valid TOML: {error}") from None
    return config_from(settings, source=source)
