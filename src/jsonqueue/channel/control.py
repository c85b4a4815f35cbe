"""What the manager and a broker say to each other, over the control Pipe (an :class:`~jsonqueue.channel.pipe.FdPipe`).

=============  ===================  =====  =======================================================================================
message        from                 fds    meaning
=============  ===================  =====  =======================================================================================
``start``      manager              1      first frame: which broker to be, on which folder; the fd is its end of the marks Pipe
``attach``     manager              1      a client: the fd is the broker's end of the client's Pipe
``marks``      manager              1      the other broker was restarted: a new marks Pipe
``rotate``     manager                     seal the active segment; a ConsumerBroker names its cut
``forget``     manager                     these ids have left the queue (PublisherBroker)
``ask``        manager                     what have you counted?
``stop``       manager                     drain and exit
``ready``      broker                      open, and serving
``waiting``    broker                      it cannot start yet, and waits for room on the disk, or for its lock
``crowded``    broker                      no room for the client that was attached last
``rotated``    broker                      answer to ``rotate``
``counters``   broker                      answer to ``ask``
``failed``     broker                      last words: the error it exits with
=============  ===================  =====  =======================================================================================

There is no ``stopped``: the process ends, and the Pipe with it. A Pipe that ends without a ``stop`` means that the other side is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import Struct

from jsonqueue import errors
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, JsonQueueError, StorageError
from jsonqueue.event import EventOwner

__all__ = [
    "Ask",
    "Attach",
    "Counters",
    "Crowded",
    "Draining",
    "Failed",
    "Forget",
    "Marks",
    "News",
    "Order",
    "Ready",
    "Rotate",
    "Rotated",
    "Start",
    "Stop",
    "Waiting",
    "decode_news",
    "decode_order",
    "encode",
    "error_of",
    "failed_by",
]


class Order(Struct, tag_field="type", omit_defaults=True, forbid_unknown_fields=True):
    """From the manager to a broker."""


class Start(Order, tag="start"):
    """Be this broker. One fd: the end of the marks Pipe."""

    role: EventOwner
    queue_dir: str
    config: Config
    manager_pid: int
    seed: int
    """Of the broker's source of chance."""


class Attach(Order, tag="attach"):
    """Serve this client. One fd: its Pipe."""

    peer: int
    """What the client is called between manager and broker; never used twice."""
    owner: EventOwner
    name: str
    pid: int
    """Its process as seen from here; 0: in another pid namespace, where nobody here can tell whether it lives."""


class Marks(Order, tag="marks"):
    """Use this marks Pipe from now on. One fd."""


class Rotate(Order, tag="rotate"):
    """Seal the active segment, if there is anything in it."""

    request: int


class Forget(Order, tag="forget"):
    """These ids are no longer in queue.json. Each is forgotten only if it was published in a batch up to ``through``."""

    ids: dict[str, int]
    through: int


class Ask(Order, tag="ask"):
    """What have you counted?"""

    request: int


class Stop(Order, tag="stop"):
    """Serve what has arrived, then exit. A ConsumerBroker hands out nothing more, and waits this long for what consumers hold."""

    wait_max_ms: int = 0


class News(Struct, tag_field="type", omit_defaults=True, forbid_unknown_fields=True):
    """From a broker to the manager."""


class Ready(News, tag="ready"):
    """Its log is open under ``epoch``, what it needs is loaded, and it serves."""

    epoch: int


class Rotated(News, tag="rotated"):
    """The active segment is sealed. From a ConsumerBroker: its cut, both as (number, epoch)."""

    request: int
    progress: tuple[int, int] | None = None
    published: tuple[int, int] | None = None


class Counters(News, tag="counters"):
    """How many clients are connected, and what was counted since the start."""

    request: int
    peers: int
    counters: dict[str, int]


class Waiting(News, tag="waiting"):
    """It cannot start for want of room on the disk, or because somebody holds its lock, and does so when it can. Said again when the
    reason is another."""

    why: str
    """What it waits for; empty: for nothing any more."""


class Crowded(News, tag="crowded"):
    """It has no room for the client it was just given, whose Pipe it closed."""

    why: str


class Draining(News, tag="draining"):
    """It was told to stop, and waits for this many tasks that consumers hold."""

    held: int


class Failed(News, tag="failed"):
    """Last words."""

    error: str
    """Name of the class in :mod:`jsonqueue.errors`."""
    message: str
    hint: str


_M = TypeVar("_M")
_encoder = msgspec.json.Encoder()
_order_decoder: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Start | Attach | Marks | Rotate | Forget | Ask | Stop)
_news_decoder: msgspec.json.Decoder[News] = msgspec.json.Decoder(Ready | Waiting | Crowded | Rotated | Counters | Draining | Failed)


def encode(message: Order | News) -> bytes:
    """A message as the body of its frame."""
    return _encoder.encode(message)


def decode_order(frame: bytes) -> Order:
    """What the manager said. Raises :class:`BadFrame`."""
    return _decoded(_order_decoder.decode, frame)


def decode_news(frame: bytes) -> News:
    """What a broker said. Raises :class:`BadFrame`."""
    return _decoded(_news_decoder.decode, frame)


def _decoded(decode: Callable[[bytes], _M], frame: bytes) -> _M:
    try:
        return decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"not a control message: {error}") from None


def failed_by(error: JsonQueueError) -> Failed:
    """An error in the words in which :func:`error_of` finds it again, or the nearest of its bases that is public."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return Failed(kind.__name__, error.message, error.hint)


def error_of(news: Failed) -> JsonQueueError:
    """The error that ended a broker, of the same class, as far as that is known here (its own attributes do not travel)."""
    kind = getattr(errors, news.error, StorageError)
    if not (isinstance(kind, type) and issubclass(kind, JsonQueueError)):
        kind = StorageError
    error: JsonQueueError = kind.__new__(kind)
    JsonQueueError.__init__(error, news.message, hint=news.hint)
    return error
