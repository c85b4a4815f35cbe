"""The way of many tasks into the queue: in batches, several in flight, none out of sight until it is answered.

What to send, what an answer settles and what is sent again is decided by a :class:`~jsonqueue.client.window.Window`; here is the waiting.
There are three ends to a flow: all is answered, the patience is over (which each answer renews), or the queue refuses a whole batch, and it
makes no sense to go on.

With no broker running, batches are appended directly, in growing bursts: opening the log costs what the queue is large.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonqueue.client import direct
from jsonqueue.client.exchange import Exchange, Line, NoAnswer, TooLarge
from jsonqueue.client.patience import Patience
from jsonqueue.client.window import Batch, Window
from jsonqueue.clock import Clock
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed, FolderRefused, JsonQueueError, PublishUnknown
from jsonqueue.event import Refusal, Write, Written

__all__ = ["PAUSE_S", "Flow", "unanswered"]

PAUSE_S = 0.02
"""Between two looks for a broker, while neither it nor the log is to be had."""


def unanswered(line: Line, ids: tuple[str, ...], patience: Patience) -> PublishUnknown:
    """What to raise when the patience with this line is over. It is given up: a late answer would be one to a question long forgotten."""
    line.close()
    return PublishUnknown(ids, cause=f"the broker did not answer within {patience.seconds:g} s")


class Flow:
    """Takes batches, sees each of them answered. For one thread."""

    def __init__(
        self,
        queue_dir: Path,
        exchange: Exchange,
        answered: Callable[[Batch, Written], None],
        *,
        patience: Patience,
        clock: Clock,
        pause: Callable[[float], None],
    ) -> None:
        self._queue_dir = queue_dir
        self._exchange = exchange
        self._answered = answered
        self._patience = patience
        self._clock = clock
        self._pause = pause
        self._window = Window()
        self._line: Line | None = None
        """On which what is in flight was sent."""

    def push(self, batch: Batch) -> None:
        """Take a batch; blocks while too many are unanswered."""
        window = self._window
        window.push(batch)
        self._patience.renew()
        if self._exchange.connected:
            self._advance(lambda: window.has_room)
        else:
            self._advance(lambda: window.burst_has_room)

    def finish(self, last: Batch | None = None, *, asked: bool = False, doubtful: bool = False) -> None:
        """Return when everything is answered, ``last`` included. ``asked``: a broker was asked already, and the patience has begun with
        that; ``doubtful``: with all of the question, before the connection broke.

        Raises :class:`PublishUnknown` or :class:`BrokerUnavailable` when the patience is over.
        """
        if last is not None:
            self._window.push(last, doubtful=doubtful)
        if not asked:
            self._patience.renew()
        self._advance(lambda: self._window.empty)

    def give_up(self) -> Window:
        """Something else has gone wrong: what is on its way is answered to nobody. The books as they stand."""
        if self._line is not None:
            for request, _ in self._window.in_flight:
                self._line.abandon(request)
        return self._window

    def _advance(self, enough: Callable[[], bool]) -> None:
        while not enough():
            try:
                self._over_the_line(enough)
            except ConnectionClosed:
                self._window.broken()
            except BrokerUnavailable as error:
                self._window.broken()
                self._directly(error)
            except (FolderRefused, BadFrame) as error:  # Nobody can be asked any more.
                self._window.broken()
                self._raise_if_unknown(error)
                raise

    def _over_the_line(self, enough: Callable[[], bool]) -> None:
        window = self._window
        line = self._exchange.line(self._patience)
        if line is not self._line:
            window.broken()  # Somebody else saw the other line break, and made this one.
            self._line = line
        window.connected()
        while (batch := window.head()) is not None:
            request = self._exchange.number()
            try:
                line.ask(request, Write(request, batch.tasks), self._patience)
            except TooLarge as error:
                self._cut(batch, str(error))
            else:
                window.sent(request)
        if window.in_flight and not enough():
            self._fetch(line)

    def _fetch(self, line: Line) -> None:
        request, _ = self._window.in_flight[0]
        try:
            answer = line.answer(request, self._patience)
        except NoAnswer:
            raise unanswered(line, self._window.ids, self._patience) from None
        batch = self._window.answered(request)
        assert batch is not None
        self._settle(batch, answer)

    def _directly(self, unavailable: BrokerUnavailable) -> None:
        window = self._window
        try:
            appended = direct.append(self._queue_dir, [batch.tasks for batch in window.unsent], clock=self._clock)
        except JsonQueueError as error:
            self._raise_if_unknown(error)
            raise
        if appended is not None:
            for answer in appended.answers:
                self._settle(window.appended(), answer)
            if appended.error is not None:
                raise PublishUnknown(window.ids, cause=str(appended.error)) from appended.error
            window.burst_over()
        elif self._patience.over:
            if window.uncertain:
                why = f": {unavailable.cause}" if unavailable.cause else ""
                raise PublishUnknown(window.ids, cause=f"the connection was lost, and no broker came back{why}") from unavailable
            raise unavailable
        else:
            self._pause(PAUSE_S)

    def _raise_if_unknown(self, error: JsonQueueError) -> None:
        """Nothing was stored now; what was on its way to a broker before may be."""
        if self._window.uncertain:
            raise PublishUnknown(self._window.ids, cause=str(error)) from error

    def _cut(self, batch: Batch, why: str) -> None:
        """It is larger than a broker takes at once: two halves may not be. A task by itself cannot be sent at all."""
        count = len(batch.tasks)
        if count > 1:
            self._window.replace(batch, batch.only(range(count // 2)), batch.only(range(count // 2, count)))
        elif self._window.doubts(batch):  # It may have been sent before, to a broker with other settings.
            raise PublishUnknown(self._window.ids, cause=why)
        else:
            self._window.replace(batch)
            self._settle(batch, Written(0, 0, refused=[Refusal(0, why)]))

    def _settle(self, batch: Batch, answer: Written) -> None:
        self._patience.renew()
        self._answered(batch, answer)
