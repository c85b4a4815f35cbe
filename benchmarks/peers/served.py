"""Queues behind a server, where that is installed: Redis Streams through the raw client, and beanstalkd."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peers.peer import Handler, Payload, Peer, Stop, free_port, running

__all__ = ["Beanstalkd", "RedisAlways", "RedisEverySecond", "RedisServed"]

_ACKS_AT_ONCE = 100
_BATCH = 1000


class RedisServed(Peer):
    """A Redis server on a socket in the peer's folder, with its append-only file synced as ``fsync`` says."""

    server = "redis-server"
    modules: tuple[str, ...] = ("redis",)
    fsync = "always"

    @contextmanager
    def served(self) -> Iterator[None]:
        where = ["--port", "0", "--unixsocket", self.socket, "--dir", str(self.folder)]
        command = ["redis-server", *where, "--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""]
        with running(command, self.folder / "log"):
            self._await_server()
            yield

    @property
    def socket(self) -> str:
        return str(self.folder / "redis.sock")

    def client(self) -> Any:
        from redis import Redis

        return Redis(unix_socket_path=self.socket)

    def prepare(self, client: Any) -> None:
        """Make what publishers and workers expect to find."""
        client.ping()

    def _await_server(self) -> None:
        from redis.exceptions import ConnectionError as Refused

        until = time.monotonic() + 10
        while True:
            try:
                self.prepare(self.client())
            except Refused:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return


class RedisAlways(RedisServed):
    """Redis Streams with a consumer group: ``appendfsync always``, 100 tasks read and acknowledged at a time. No library above it."""

    name = "Redis Streams, AOF always"

    def prepare(self, client: Any) -> None:
        client.xgroup_create("queue", "workers", id="0", mkstream=True)

    def sender(self) -> _RedisSender:
        return _RedisSender(self.client())

    def work(self, handler: Handler, stop: Stop) -> None:
        client = self.client()
        while not stop.is_set():
            found = client.xreadgroup("workers", str(os.getpid()), {"queue": ">"}, count=_ACKS_AT_ONCE, block=50)
            entries = _entries(found)
            if entries:
                # Handled and acknowledged together: what a crash repeats is up to a hundred tasks.
                client.xack("queue", "workers", *(key for key, _ in entries))
                for _, fields in entries:
                    handler(json.loads(fields[b"task"]))


def _entries(found: Any) -> list[Any]:
    """Of the one stream that was read; newer clients give a dict of lists, older ones lists of pairs."""
    if isinstance(found, dict):
        return [entry for lists in found.values() for entries in lists for entry in entries]
    return [entry for _, entries in found or () for entry in entries]


class RedisEverySecond(RedisAlways):
    """The same, synced once a second: up to a second of acknowledged tasks is lost in a power cut."""

    name = "Redis Streams, AOF 1 s"
    durable = "1 s"
    fsync = "everysec"


class _RedisSender:
    def __init__(self, client: Any) -> None:
        self._client = client

    def one(self, payload: Payload) -> None:
        self._client.xadd("queue", {"task": json.dumps(payload)})

    def many(self, payloads: Sequence[Payload]) -> None:
        for first in range(0, len(payloads), _BATCH):
            pipeline = self._client.pipeline(transaction=False)
            for payload in payloads[first : first + _BATCH]:
                pipeline.xadd("queue", {"task": json.dumps(payload)})
            pipeline.execute()

    def close(self) -> None:
        self._client.close()


class Beanstalkd(Peer):
    """beanstalkd with ``-b -f0``: an fsync for each job."""

    name = "beanstalkd -f0"
    server = "beanstalkd"
    modules = ("greenstalk",)
    batches = False

    @property
    def _port_file(self) -> Any:
        return self.folder / "port"

    @contextmanager
    def served(self) -> Iterator[None]:
        port = str(free_port())
        self._port_file.write_text(port)
        with running(["beanstalkd", "-l", "127.0.0.1", "-p", port, "-b", str(self.folder), "-f0"], self.folder / "log"):
            time.sleep(0.3)
            yield

    def _client(self) -> Any:
        import greenstalk

        return greenstalk.Client(("127.0.0.1", int(self._port_file.read_text())))

    def sender(self) -> _BeanstalkSender:
        return _BeanstalkSender(self._client())

    def work(self, handler: Handler, stop: Stop) -> None:
        import greenstalk

        client = self._client()
        while not stop.is_set():
            try:
                job = client.reserve(timeout=0)
            except greenstalk.TimedOutError:
                continue
            handler(json.loads(job.body))
            client.delete(job)


class _BeanstalkSender:
    def __init__(self, client: Any) -> None:
        self._client = client
        self.close = client.close

    def one(self, payload: Payload) -> None:
        self._client.put(json.dumps(payload))
