"""What all long-running harnesses share: a command line, a share of the work, and a report that ends in one line of JSON.

A lane is a module with ``main()``, run as ``python -m faults.<lane>`` in a process of its own. So the tests, the long runs under
``scripts/`` and the planted bugs run the very same code; a lane that finds something prints it and exits with 1.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["TESTS", "Lane", "arguments", "fast_folder", "in_words", "row", "run_lane"]

TESTS = Path(__file__).resolve().parent.parent
_PREFIX = "jsonqueue-lane-"


class Lane:
    """Counts what was tried, keeps what was found, and knows when its time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []
        self._until = time.monotonic() + options.seconds if options.seconds else float("inf")

    @property
    def over(self) -> bool:
        """Whether to stop: no time is left, or enough was found."""
        return time.monotonic() > self._until or len(self.found) >= self.options.findings

    def is_mine(self, number: int) -> bool:
        """Whether this share of the work has that case."""
        mine, of = self.options.share
        return number % of == mine

    def attempt(self, what: str, case: Callable[[], None]) -> None:
        """One case; whatever it raises is a finding."""
        try:
            case()
        except Exception as error:  # noqa: BLE001 - any error at all is one
            self.find(f"{what}: {type(error).__name__}: {error}", "".join(traceback.format_exc().splitlines(keepends=True)[-24:]))

    def find(self, what: str, detail: str = "") -> None:
        self.found.append(what)
        print(f"FOUND {what}\n{detail}", flush=True)

    def end(self) -> None:
        """Print a row for docs/track-record.md (to standard error), and the report, and exit."""
        if not self.counts and not self.found:
            sys.exit("nothing was tried")
        print(row(f"{_lane_name()}, seed {self.options.seed}", in_words(self.counts), str(len(self.found))), file=sys.stderr)
        print(json.dumps({"found": len(self.found), **dict(sorted(self.counts.items()))}), flush=True)
        sys.exit(1 if self.found else 0)


def row(*cells: str) -> str:
    """A row of a table in docs/track-record.md: today, the commit, and what is given."""
    git = ("git", "-C", str(TESTS), "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=, changed")
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return f"| {' | '.join([time.strftime('%Y-%m-%d'), commit, *cells])} |"


def in_words(counts: Mapping[str, int]) -> str:
    """``1,291 trials, 2,596 kills``."""
    return ", ".join(f"{number:,} {what}" for what, number in sorted(counts.items()))


def _lane_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.rpartition(".")[2] if spec else "a lane"


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """``--share``, ``--seed``, ``--seconds``, ``--findings``, and a number for each of ``defaults``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--share", type=_share, default=(0, 1), help="k/n: the k-th of n parts of the work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0, help="stop after this long; 0: when everything is done")
    parser.add_argument("--findings", type=int, default=1, help="stop after so many findings")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


def _share(text: str) -> tuple[int, int]:
    mine, of = map(int, text.split("/"))
    if not 0 <= mine < of:
        raise ValueError("no such part")
    return mine, of


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: kill -9 takes nothing out of a page cache, so no disk is needed to test it.

    What lanes left there that were killed, by their own time limit say, is removed first.
    """
    base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    for left in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or gone by now
            _remove_left(left)
    folder, fd = _locked_folder(base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _locked_folder(base: Path) -> tuple[Path, int]:
    """A new one, and what tells others that its lane, or a fork of that, lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        with suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if folder.exists():
                return folder, fd
            os.close(fd)  # another lane took it for left in the moment before it was locked


def _remove_left(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)


def run_lane(name: str, *options: str, source: Path | None = None, prefix: tuple[str, ...] = (), timeout: float = 300) -> dict[str, Any]:
    """Run a lane to its end and return its report, with ``status`` and ``output``. ``source``: another tree of the package."""
    paths = [*([str(source)] if source else []), str(TESTS), *[path for path in sys.path if path]]
    # Not measured: a lane runs the same lines a million times.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE", "COV_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*prefix, sys.executable, "-m", f"faults.{name}", *options]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        status, output = done.returncode, done.stdout + done.stderr
        last = done.stdout.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired as late:
        status, output, last = -1, f"timed out after {late.timeout} s", ""
    report = json.loads(last) if last.startswith("{") else {}
    return {**report, "status": status, "output": output}
