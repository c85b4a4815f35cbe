"""Runs the snippets of a Markdown page, in the order in which a reader would.

The words behind a fence's language say what to do with it; a rendered page does not show them:

==============================  ========================================================================================
```` ```python ````             run as a program of its own
```` ```python file=tasks.py `` write to that file, for later snippets to use
```` ```python skip ````        check the syntax only
```` ```sh run ````             run with bash, any failing command fails it
```` ```sh background ````      start with bash; ended (SIGTERM) at the end of the page, and must not have failed before
```` ```sh ````                 check the syntax only: lines for other machines, or for a person at a terminal
```` ```text output ````        what the snippet before printed on standard output, exactly
==============================  ========================================================================================

All snippets of a page share one empty folder, in which they run. A shell snippet that uses a program which is no part of every system (jq)
is left out where that is missing, and :class:`Ran` says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Ran", "Snippet", "SnippetFailed", "environment", "run_page", "snippets_of"]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL)
_LIMIT_S = 50
_NOT_EVERYWHERE = re.compile(r"(?:^|[|;&(] *)(jq)\b", re.MULTILINE)


class SnippetFailed(AssertionError):
    """A snippet did not do what the page says."""


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def failed(self, why: str) -> SnippetFailed:
        return SnippetFailed(f"{self.page}:{self.line} ({' '.join((self.language, *self.words))}): {why}")


@dataclass
class Ran:
    """What became of a page."""

    snippets: int = 0
    left_out: list[str] = field(default_factory=list)


def snippets_of(page: Path) -> list[Snippet]:
    """The fenced blocks of a page, with the line each begins on."""
    whole = page.read_text()
    found = []
    for match in _FENCE.finditer(whole):
        language, *words = match["info"].split() or [""]
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        found.append(Snippet(page.name, whole.count("\n", 0, match.start()) + 1, language, tuple(words), text))
    return found


def environment() -> dict[str, str]:
    """That of a person who has activated the virtual environment."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"}


def run_page(page: Path, folder: Path) -> Ran:
    """Run what is to be run, in ``folder``. Raises :class:`SnippetFailed`."""
    ran = Ran()
    printed = ""
    with contextlib.ExitStack() as background:
        for snippet in snippets_of(page):
            if missing := _missing(snippet):
                ran.left_out.append(f"line {snippet.line} needs {missing}")
                continue
            match snippet.language, snippet.words:
                case (("python" | "toml"), (word,)) if word.startswith("file="):
                    (folder / word.removeprefix("file=")).write_text(snippet.text)
                case "python", ():
                    printed = _run(snippet, folder, [sys.executable, _program(snippet, folder)])
                case (("sh" | "bash" | "console"), ("run",)):
                    printed = _run(snippet, folder, ["bash", "-euo", "pipefail", "-c", snippet.text])
                case (("sh" | "bash" | "console"), ("background",)):
                    background.enter_context(_running(snippet, folder))
                case "text", ("output",):
                    _compare(snippet, printed)
                    continue
                case _:
                    _check_syntax(snippet)
                    continue
            ran.snippets += 1
    return ran


def _missing(snippet: Snippet) -> str:
    """The program that this snippet would need and that is not installed."""
    if snippet.words and snippet.language in {"sh", "bash", "console"}:
        for program in _NOT_EVERYWHERE.findall(snippet.text):
            if not shutil.which(program):
                return str(program)
    return ""


def _program(snippet: Snippet, folder: Path) -> str:
    path = folder / f"line_{snippet.line}.py"
    path.write_text(snippet.text)
    return path.name


def _run(snippet: Snippet, folder: Path, command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise snippet.failed(f"did not end within {_LIMIT_S} s\n{error.stdout}\n{error.stderr}") from None
    if done.returncode:
        raise snippet.failed(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def _running(snippet: Snippet, folder: Path) -> Iterator[None]:
    log = folder / f"line_{snippet.line}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", snippet.text],
            cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            yield
            if process.poll():
                raise snippet.failed(f"exit status {process.returncode}\n{log.read_text()}")
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group: bash waits for its child when it is asked to end."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
            break
    _wait_for_group(process.pid)


def _wait_for_group(group: int) -> None:
    """Until the last member is gone, so that the folder can be deleted."""
    until = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.01)


def _compare(snippet: Snippet, printed: str) -> None:
    if printed.rstrip() != snippet.text.rstrip():
        raise snippet.failed(f"the page says\n{snippet.text}\nprinted was\n{printed}")


def _check_syntax(snippet: Snippet) -> None:
    if snippet.language == "python":
        try:
            compile(snippet.text, f"{snippet.page}:{snippet.line}", "exec")
        except SyntaxError as error:
            raise snippet.failed(str(error)) from None
    elif snippet.language in {"sh", "bash"}:
        checked = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if checked.returncode:
            raise snippet.failed(checked.stderr)
