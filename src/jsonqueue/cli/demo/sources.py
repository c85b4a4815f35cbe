"""What the demo's tasks are: the files of the standard library, of a folder, or the lines of a JSON Lines file."""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from typing import Any

import click
import orjson

from jsonqueue.cli.demo.facts import Facts, facts_of_file, facts_of_record
from jsonqueue.cli.text import printable

__all__ = ["DemoTask", "Source", "source_of"]

_SKIPPED = {"__pycache__", "site-packages", "dist-packages", "node_modules"}


@dataclass(frozen=True)
class DemoTask:
    """One task to publish."""

    id: str
    data: dict[str, Any]

    @property
    def where(self) -> str:
        """The file or the line, as a person says it."""
        return str(self.data.get("path") or f"line {self.data.get('line')}")

    def direct(self) -> Facts:
        """The same work without a queue."""
        if "record" in self.data:
            return facts_of_record(self.data["record"])
        return facts_of_file(self.data["root"], self.data["path"])


@dataclass(frozen=True)
class Source:
    """All the tasks of a run."""

    title: str
    things: str
    """What the tasks are, in the plural."""
    tasks: list[DemoTask]


def source_of(given: Path | None, *, run: str) -> Source:
    """The tasks of a run whose ids begin with ``run``. None: the standard library of the running Python."""
    if given is None:
        root = Path(sysconfig.get_path("stdlib")).resolve()
        title = f"the standard library of {platform.python_implementation()} {platform.python_version()}"
        return _of_files(root, (path for path in _files(root) if path.endswith(".py")), run, title, "Python files")
    if given.is_dir():
        root = given.resolve()
        return _of_files(root, _files(root), run, printable(str(given)), "files")
    return _of_lines(given, run)


def _of_files(root: Path, paths: Iterator[str], run: str, title: str, things: str) -> Source:
    tasks = [DemoTask(_id(run, path), {"root": str(root), "path": path}) for path in sorted(paths)]
    return Source(title, things, _checked(tasks, "files", title))


def _files(root: Path) -> Iterator[str]:
    """Regular files below ``root``, without hidden and installed ones. Names that are not UTF-8 cannot stand in JSON and are left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path) and not os.path.islink(path) and path.isprintable():
                yield os.path.relpath(path, root)


def _of_lines(file: Path, run: str) -> Source:
    tasks = []
    for number, line in enumerate(file.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise click.UsageError(f"{printable(str(file))}, line {number}: not JSON ({error})") from None
            tasks.append(DemoTask(f"{run}:{number}", {"line": number, "record": record}))
    return Source(printable(str(file)), "records", _checked(tasks, "lines", printable(str(file))))


def _checked(tasks: list[DemoTask], what: str, title: str) -> list[DemoTask]:
    if not tasks:
        raise click.UsageError(f"nothing to do: found no {what} in {title}")
    return tasks


def _id(run: str, path: str) -> str:
    """``json/decoder.py`` as ``demo-4kt2:json:decoder.py``: an id that reads as the file. What would not be unique so gets a digest."""
    name = path.replace(os.sep, ":")
    if len(name) > 100 or ":" in path or not re.fullmatch(r"[A-Za-z0-9._:@-]+", name):
        name = re.sub(r"[^A-Za-z0-9._:@-]", "_", name)[-80:] + "@" + blake2s(path.encode(), digest_size=8).hexdigest()
    return f"{run}:{name}"
