"""Queues without a server: huey, litequeue and persist-queue, all on SQLite, all told to sync each commit."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from peers.peer import Handler, Payload, Peer, Stop

__all__ = ["HueySqlite", "LiteQueuePeer", "PersistQueue"]

_POLL_S = 0.001
_BATCH = 1000


class HueySqlite(Peer):
    """huey with ``SqliteHuey(fsync=True)`` and its own consumer, one worker a process."""

    name = "huey (SQLite)"
    modules = ("huey", "huey.consumer")
    batches = False

    def _huey(self) -> object:
        from huey import SqliteHuey

        return SqliteHuey(filename=str(self.folder / "huey.db"), fsync=True)

    def sender(self) -> _HueySender:
        return _HueySender(self._huey(), lambda payload: None)

    def work(self, handler: Handler, stop: Stop) -> None:
        huey = self._huey()
        _task_of(huey, handler)
        consumer = huey.create_consumer(workers=1, periodic=False)  # type: ignore[attr-defined]
        consumer.start()
        stop.wait()
        consumer.stop(graceful=True)


def _task_of(huey: object, handler: Handler) -> object:
    def bench(payload: Payload) -> None:  # known by its name and module, in every process
        handler(payload)

    return huey.task()(bench)  # type: ignore[attr-defined]


class _HueySender:
    def __init__(self, huey: object, handler: Handler) -> None:
        self.one = _task_of(huey, handler)

    def close(self) -> None: ...


class LiteQueuePeer(Peer):
    """litequeue with ``synchronous=FULL`` in place of its NORMAL. It has no push: workers poll each millisecond."""

    name = "litequeue (FULL)"
    modules = ("litequeue",)

    def sender(self) -> _LiteSender:
        return _LiteSender(_litequeue(self))

    def work(self, handler: Handler, stop: Stop) -> None:
        queue = _litequeue(self)
        while not stop.is_set():
            message = queue.pop()  # type: ignore[attr-defined]
            if message is None:
                time.sleep(_POLL_S)
                continue
            handler(json.loads(message.data))
            queue.done(message.message_id)  # type: ignore[attr-defined]


def _litequeue(peer: Peer) -> object:
    from litequeue import LiteQueue

    queue = LiteQueue(str(peer.folder / "lite.db"))
    queue.conn.execute("PRAGMA synchronous=FULL")
    queue.conn.execute("PRAGMA busy_timeout=60000")
    return queue


class _LiteSender:
    def __init__(self, queue: object) -> None:
        self._queue = queue

    def one(self, payload: Payload) -> None:
        self._queue.put(json.dumps(payload))  # type: ignore[attr-defined]

    def many(self, payloads: Sequence[Payload]) -> None:
        connection = self._queue.conn  # type: ignore[attr-defined]
        for first in range(0, len(payloads), _BATCH):
            connection.execute("BEGIN IMMEDIATE")
            for payload in payloads[first : first + _BATCH]:
                self.one(payload)
            connection.execute("COMMIT")

    def close(self) -> None:
        self._queue.close()  # type: ignore[attr-defined]


class PersistQueue(Peer):
    """persist-queue's SQLiteAckQueue. Opening it takes back what other processes hold, so there can be but one worker."""

    name = "persist-queue (ack)"
    modules = ("persistqueue",)
    batches = False
    workers_max = 1

    def _queue(self) -> object:
        from persistqueue import SQLiteAckQueue

        return SQLiteAckQueue(str(self.folder / "persist"), auto_commit=True, multithreading=True, timeout=60)

    def sender(self) -> _PersistSender:
        return _PersistSender(self._queue())

    def work(self, handler: Handler, stop: Stop) -> None:
        from persistqueue.exceptions import Empty

        queue = self._queue()
        while not stop.is_set():
            try:
                payload = queue.get(block=False)  # type: ignore[attr-defined]
            except Empty:
                time.sleep(_POLL_S)
                continue
            handler(payload)
            queue.ack(payload)  # type: ignore[attr-defined]


class _PersistSender:
    def __init__(self, queue: object) -> None:
        self.one = queue.put  # type: ignore[attr-defined]
        self.close = queue.close  # type: ignore[attr-defined]
