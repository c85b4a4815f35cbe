"""Questions and answers over one Pipe: many may be in flight, from many threads, each answer finds who asked.

There is no reader thread: whoever waits for an answer first reads for all the others, and hands the reading on when it has its own. So a
lone caller pays no thread switch between question and answer, and a crowd shares one Pipe.

A :class:`Line` lives as long as its Pipe. An :class:`Exchange` makes a line when one is needed, and a new one when that breaks; what was
in flight then is the asker's to decide, who gets :class:`ConnectionClosed`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonqueue.channel.pipe import FRAME_MAX_BYTES, Pipe
from jsonqueue.client.patience import Patience
from jsonqueue.client.presence import told_better
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed
from jsonqueue.event import Event, encode

__all__ = ["Connect", "Exchange", "Line", "NoAnswer", "TooLarge"]

Connect = Callable[[float], tuple[Pipe, Config]]
"""Makes a Pipe to the broker, within so many seconds; raises BrokerUnavailable."""


_PAUSE_S, _PAUSE_MAX_S = 0.02, 1.0


class NoAnswer(TimeoutError):
    """The asker's patience is over; the question still stands."""


class TooLarge(Exception):
    """A question that no broker would take: nothing of it was sent."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"it comes to a frame of {size:,} bytes, and the broker takes {most:,}")


class Line:
    """One Pipe, from its making to its breaking."""

    def __init__(self, pipe: Pipe, config: Config, decode: Callable[[bytes], Any]) -> None:
        self.config = config
        self._frame_max = min(config.frame_max_bytes, FRAME_MAX_BYTES)
        self._pipe = pipe
        self._decode = decode
        self._lock = threading.RLock()  # A signal's handler may close what it came in the midst of.
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._answers: dict[int, Any] = {}
        self._left: dict[str, int] = {}
        """Questions that nobody waits for any more, by what they are about ..."""
        self._left_about: dict[int, str] = {}
        """... and the other way round."""
        self._reading = False
        self.heard = False
        """Whether there was any answer on it."""
        self.broken = False

    def ask(self, request: int, event: Event, patience: Patience) -> None:
        """Send a question; its answer is kept until :meth:`answer` fetches it, or :meth:`abandon` gives it up. Raises
        :class:`ConnectionClosed`, or :class:`TooLarge`."""
        frame = encode(event)
        if len(frame) > self._frame_max:
            raise TooLarge(len(frame), self._frame_max)
        with self._lock:
            if self.broken:
                raise ConnectionClosed("the connection to the broker is lost")
            self._answers[request] = None
        try:
            self._pipe.send(frame, timeout=patience.left)
        except BaseException:  # also of a signal: how much of it is sent, nobody knows
            self.close()
            raise

    def answer(self, request: int, patience: Patience) -> Any:
        """The answer to a question, waited for. Raises :class:`ConnectionClosed`, or :class:`NoAnswer` (it may be asked for again)."""
        try:
            return self._awaited(request, patience)
        except (ConnectionClosed, NoAnswer):
            raise
        except BaseException:
            # Of a signal, Ctrl-C for one: what was read may be lost, and others wait for it. They ask again on another line.
            self.close()
            raise

    def abandon(self, request: int, about: str = "") -> None:
        """Nobody waits for this answer any more: it is dropped, also if it comes later. Until then the other end knows the question, which
        may be taken up again by what it is ``about``."""
        with self._lock:
            open_still = request in self._answers and self._answers.pop(request) is None
            if open_still and about:
                self._left[about] = request
                self._left_about[request] = about

    def take_up(self, about: str) -> int | None:
        """Wait again for the answer to an abandoned question about this; its number. None: there is none whose answer is still to come."""
        with self._lock:
            request = self._left.pop(about, None)
            if request is not None:
                del self._left_about[request]
                self._answers[request] = None
            return request

    def _awaited(self, request: int, patience: Patience) -> Any:
        looked = False  # Whose patience is over from the beginning is given what is there.
        while True:
            with self._lock:
                while self._reading and self._answers.get(request) is None and not self.broken:
                    self._wait(patience)
                if self._answers.get(request) is not None:
                    return self._answers.pop(request)
                if self.broken:
                    raise ConnectionClosed("the connection to the broker is lost")
                left = patience.left
                if looked and left == 0.0:
                    raise NoAnswer
                self._reading = looked = True
            self._read(left)

    def _wait(self, patience: Patience) -> None:
        self._waiting += 1
        try:
            if not self._changed.wait(patience.left):
                raise NoAnswer
        finally:
            self._waiting -= 1

    def _read(self, timeout: float | None) -> None:
        """Read once, for everybody."""
        answers = []
        try:
            answers = [self._decode(frame) for frame in self._pipe.receive(timeout)]
        except (ConnectionClosed, BadFrame):
            self.close()
        finally:
            with self._lock:
                self._reading = False
                self.heard = self.heard or bool(answers)
                for answer in answers:
                    self._keep(answer)
                self._tell()

    def _keep(self, answer: Any) -> None:
        if answer.request in self._answers:
            self._answers[answer.request] = answer
        elif answer.request in self._left_about:  # Nobody waits for it any more; who asks the same again asks anew.
            self._left.pop(self._left_about.pop(answer.request), None)

    def _tell(self) -> None:
        if self._waiting:
            self._changed.notify_all()

    def close(self) -> None:
        """Give the line up; whoever still waits gets :class:`ConnectionClosed`."""
        with self._lock:
            self.broken = True
            self._tell()
        self._pipe.close()


class Exchange:
    """A line whenever one is needed."""

    def __init__(
        self, queue_dir: Path, connect: Connect, decode: Callable[[bytes], Any], *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._queue_dir = queue_dir
        self._connect = connect
        self._pause = pause
        self._silent = 0
        """Lines in a row on which nothing was heard."""
        self._decode = decode
        self._requests = itertools.count(1)
        self._making = threading.Lock()
        self._line: Line | None = None
        self.lines = 0
        """How many there have been."""

    def line(self, patience: Patience, *, least: float = 0.0, most: float = 10.0) -> Line:
        """The line as it stands, or a new one, for which the patience, but ``least`` seconds, and ``most``, are waited for. Raises
        :class:`BrokerUnavailable`."""
        line = self._line
        if line is not None and not line.broken:
            return line
        with self._making_it(patience, least):
            line = self._line
            if line is None or line.broken:
                self._wait_after(line, patience)
                try:
                    line = self._line = Line(*self._connect(max(least, patience.left_of(most))), self._decode)
                except BrokerUnavailable as error:
                    raise patience.reason(error) from None
                patience.forget_reason()
                self.lines += 1
            return line

    @contextmanager
    def _making_it(self, patience: Patience, least: float) -> Iterator[None]:
        """One thread at a time; how long another one may still have to wait for a manager that stands still, is not this one's patience."""
        left = patience.left
        if not self._making.acquire(timeout=-1 if left is None else max(least, left)):
            error = BrokerUnavailable(str(self._queue_dir), cause="nobody has answered another thread in time", silent=True)
            raise patience.reason(told_better(self._queue_dir, error))
        try:
            yield
        finally:
            self._making.release()

    def _wait_after(self, line: Line | None, patience: Patience) -> None:
        """A broker that hung up on the first words, and on the next first words, need not be called again at once."""
        self._silent = self._silent + 1 if line is not None and not line.heard else 0
        if self._silent > 1:
            self._pause(patience.left_of(min(_PAUSE_S * 2.0 ** (self._silent - 2), _PAUSE_MAX_S)))

    @property
    def line_at_hand(self) -> Line | None:
        """The line, if there is one that is whole, as far as is known."""
        line = self._line
        return None if line is None or line.broken else line

    @property
    def connected(self) -> bool:
        """Whether there is a line, as far as is known."""
        return self.line_at_hand is not None

    @property
    def met(self) -> bool:
        """Whether there has been a line at all."""
        return self._line is not None

    def number(self) -> int:
        """A number for a question, never used before."""
        return next(self._requests)

    def close(self) -> None:
        """Close the line, if there is one; the next question makes a new one."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
