"""What onlookers are not shown: the values of ``redact_keys``, in whatever payload or result a command prints.

It changes what is printed, and nothing else: the files keep the values, handlers and whoever asks for a result get them. So it is for a
screen that others see and for the log that a command's output ends up in; it keeps nothing secret from who may read the files.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from jsonqueue.config import Config
from jsonqueue.task import StoredTask

__all__ = ["REDACTED", "Redaction", "redaction_of", "settings_in"]

REDACTED = "[redacted]"
_SHOWN_AS = Raw(msgspec.json.encode(REDACTED))

# A member's value stays the text that it is: what is not redacted is printed to the digit as it stands in the file.
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_elements = msgspec.json.Decoder(list[Raw]).decode


def settings_in(queue_dir: Path) -> Config:
    """The settings of its ``jsonqueue.toml``, read as the manager reads them: through no link. Raises :class:`InvalidConfig`."""
    from jsonqueue.storage.files import RealFiles
    from jsonqueue.storage.folder import load_config

    if not queue_dir.is_dir():
        return Config()  # There is none yet, or whoever uses it will say what is wrong with it.
    files = RealFiles(queue_dir, read_only=True)
    try:
        return load_config(files)
    finally:
        files.shut()


def redaction_of(queue_dir: Path) -> Redaction:
    """What this queue's settings want redacted. Raises :class:`InvalidConfig`: who cannot read what is to be hidden shows nothing."""
    return Redaction(settings_in(queue_dir).redact_keys)


class Redaction:
    """Takes the values of some keys out of what is to be shown, at whatever depth; large and small letters are the same."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = frozenset(key.casefold() for key in keys)

    def task(self, task: StoredTask) -> StoredTask:
        """The task as it is to be shown."""
        if not self._keys:
            return task
        return replace(task, data=self._value(task.data), result=task.result and self._value(task.result))

    def line(self, line: bytes) -> bytes:
        """The same of its line in queue.json, whose own members (an id, a reason) are no payload."""
        if not self._keys:
            return line
        return msgspec.json.encode({name: self._value(value) if name in _PAYLOADS else value for name, value in _members(line).items()})

    def _value(self, value: Raw) -> Raw:
        begins = bytes(memoryview(value)[:1])
        if begins == b"{":
            shown = {key: _SHOWN_AS if key.casefold() in self._keys else self._value(member) for key, member in _members(value).items()}
            return Raw(msgspec.json.encode(shown))
        if begins == b"[":
            return Raw(msgspec.json.encode([self._value(element) for element in _elements(value)]))
        return value


_PAYLOADS = frozenset({"data", "result"})
