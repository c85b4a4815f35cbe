"""The processes of the demo: started here, and ended here in every case, each by its own pid.

Each child says how it stands on its standard output, one JSON object a line, and ends by itself when its standard input does: so none
outlives a demo that is killed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from jsonqueue.cli.processes import ProcessFailed, start

__all__ = ["Child", "ChildFailed", "Stage"]

_END_S = 10.0


class ChildFailed(ProcessFailed):
    """A process of the demo ended with an error; the message is what it said last."""

    def __init__(self, who: str, status: int, last: str) -> None:
        super().__init__(f"{who} ended with status {status}: {last or 'no message'}", status=status)


class Child:
    """One process. ``said`` is the latest of what it told, all its lines merged."""

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        self.said: dict[str, Any] = {}
        self._process = start(f"demo.{module}", *arguments, stderr=subprocess.PIPE)
        self._errors = b""
        self._threads = [threading.Thread(target=work, name=name, daemon=True) for work in (self._listen, self._collect)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    @property
    def ended_itself(self) -> bool:
        """Whether it has ended, and not because somebody killed it."""
        return self.over and self._process.returncode >= 0

    def tell(self, values: Iterable[Any]) -> None:
        """Give it its work, one JSON value a line, and let its input end there."""
        self.keep_telling(values)
        self.let_go()

    def keep_telling(self, values: Iterable[Any]) -> None:
        """Give it values; its input stays open."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; join() says so
            for value in values:
                self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def let_go(self) -> None:
        """End its input: a worker stops, a publisher has all its tasks."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def check(self) -> None:
        """Raise :class:`ChildFailed` if it ended with an error."""
        if self.over and self._process.returncode:
            self._join_threads()
            last = self._errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ChildFailed(f"{self.name} (pid {self.pid})", self._process.returncode, last)

    def join(self) -> None:
        """Wait until it has ended by itself."""
        self._process.wait()
        self._join_threads()
        self.check()

    def end(self) -> None:
        """Make it end: kindly, then by force."""
        self.let_go()
        if not self.over:
            self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._join_threads()

    def _join_threads(self) -> None:
        for thread in self._threads:
            thread.join(_END_S)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.said = {**self.said, **json.loads(line)}

    def _collect(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            self._errors = errors.read()


class Stage:
    """All the children; leaving the ``with`` block ends those that are left."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def start(self, name: str, module: str, *arguments: str) -> Child:
        """Start a module of the demo as a process."""
        child = Child(name, module, *arguments)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise :class:`ChildFailed` if one of them ended with an error."""
        for child in self.children:
            child.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self.children:
            child.let_go()
        for child in self.children:
            child.end()
