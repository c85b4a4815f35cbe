"""How a PublisherBroker tells the ConsumerBroker how far its log is durable, however busy that one is."""

from __future__ import annotations

import selectors

from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.channel.pipe import Pipe
from jsonqueue.errors import ConnectionClosed
from jsonqueue.event import Mark, encode

__all__ = ["MarksOutlet"]


class MarksOutlet:
    """The PublisherBroker's end of the marks Pipe. Only the newest mark counts, so at most one waits for a ConsumerBroker that is busy."""

    def __init__(self) -> None:
        self._pipe: Pipe | None = None
        self._loop: BrokerLoop | None = None
        self._newest: Mark | None = None
        self._waiting = False

    def renew(self, pipe: Pipe, loop: BrokerLoop) -> None:
        """Use this Pipe from now on."""
        self._hang_up()
        self._pipe, self._loop = pipe, loop

    def announce(self, mark: Mark) -> None:
        """Say it now, or as soon as there is room."""
        self._newest = mark
        if not self._waiting:
            self._say()

    def _say(self) -> None:
        try:
            if self._pipe is None or (self._waiting and not self._pipe.flush()):
                return
            if self._newest is not None:
                self._pipe.post(encode(self._newest))
                self._newest = None
            if self._waiting or self._pipe.pending:
                self._wait_for_room(self._pipe, self._pipe.pending > 0)
        except ConnectionClosed:
            self._hang_up()  # The ConsumerBroker died. The manager brings a new Pipe, and the mark is told again.

    def _wait_for_room(self, pipe: Pipe, waiting: bool) -> None:
        if waiting != self._waiting and self._loop is not None:
            self._waiting = waiting
            if waiting:
                self._loop.watch(pipe, self._say, selectors.EVENT_WRITE)
            else:
                self._loop.unwatch(pipe)

    def _hang_up(self) -> None:
        if self._pipe is not None:
            self._wait_for_room(self._pipe, False)
            self._pipe.close()
            self._pipe = None
