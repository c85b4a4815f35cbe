"""Message brokers through their raw clients: RabbitMQ by pika, NATS JetStream by nats-py. No task library above either."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peers.peer import Handler, Payload, Peer, Stop, free_port, running

__all__ = ["NatsJetStream", "RabbitMq"]

_BATCH = 1000
_AT_ONCE = 100
_START_S = 60.0
_RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"""Debian's own: the one on the PATH insists on the system's RabbitMQ and its user."""


class RabbitMq(Peer):
    """RabbitMQ with a quorum queue and publisher confirms: it confirms what is synced to its write-ahead log."""

    name = "RabbitMQ (quorum queue)"
    server = _RABBIT if Path(_RABBIT).exists() else "rabbitmq-server"
    modules = ("pika",)
    batches = False

    @contextmanager
    def served(self) -> Iterator[None]:
        port, distribution, names = free_port(), free_port(), str(free_port())
        (self.folder / "port").write_text(str(port))
        (self.folder / "enabled_plugins").write_text("[].\n")
        environment = {
            "HOME": str(self.folder), "ERL_EPMD_PORT": names, "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"bench{port}@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"), "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"), "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
        }  # fmt: skip
        try:
            with running([self.server], self.folder / "log", **environment):
                self._await_server()
                yield
        finally:  # Erlang's name server is a daemon of its own
            with suppress(FileNotFoundError):
                subprocess.run(["epmd", "-port", names, "-kill"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    def _await_server(self) -> None:
        from pika.exceptions import AMQPError

        until = time.monotonic() + _START_S
        while True:
            try:
                connection, _ = self._channel()
            except (AMQPError, OSError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                connection.close()
                return

    def _channel(self) -> tuple[Any, Any]:
        import pika

        port = int((self.folder / "port").read_text())
        connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, heartbeat=0))
        channel = connection.channel()
        channel.queue_declare("tasks", durable=True, arguments={"x-queue-type": "quorum"})
        return connection, channel

    def sender(self) -> _RabbitSender:
        return _RabbitSender(*self._channel())

    def work(self, handler: Handler, stop: Stop) -> None:
        connection, channel = self._channel()
        channel.basic_qos(prefetch_count=_AT_ONCE)

        def handle(channel: Any, method: Any, _: Any, body: bytes) -> None:
            handler(json.loads(body))
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume("tasks", handle)
        while not stop.is_set():
            connection.process_data_events(time_limit=0.05)
        connection.close()


class _RabbitSender:
    def __init__(self, connection: Any, channel: Any) -> None:
        import pika

        self._channel = channel
        self._properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
        self.close = connection.close
        channel.confirm_delivery()

    def one(self, payload: Payload) -> None:
        self._channel.basic_publish("", "tasks", json.dumps(payload), self._properties, mandatory=True)


class NatsJetStream(Peer):
    """NATS JetStream with file storage, as it comes: acknowledged before it is synced, which happens every two minutes."""

    name = "NATS JetStream"
    server = "nats-server"
    modules = ("nats", "nats.js.api")
    durable = "2 min"

    @contextmanager
    def served(self) -> Iterator[None]:
        port = free_port()
        (self.folder / "port").write_text(str(port))
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(self.folder / "data")]
        with running(command, self.folder / "log"):
            asyncio.run(self._prepare())
            yield

    async def _prepare(self) -> None:
        from nats.js.api import RetentionPolicy, StorageType

        client, stream = await self.connect()
        await stream.add_stream(name="tasks", subjects=["tasks"], storage=StorageType.FILE, retention=RetentionPolicy.WORK_QUEUE)
        await client.close()

    async def connect(self) -> tuple[Any, Any]:
        """A client, and its JetStream."""
        import nats

        until = time.monotonic() + _START_S
        address = f"nats://127.0.0.1:{(self.folder / 'port').read_text()}"
        while True:
            try:
                client = await nats.connect(address, allow_reconnect=False, error_cb=_ignore)
            except (OSError, nats.errors.Error):
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)
            else:
                return client, client.jetstream(publish_async_max_pending=_BATCH)

    def sender(self) -> _NatsSender:
        return _NatsSender(self)

    def work(self, handler: Handler, stop: Stop) -> None:
        asyncio.run(self._work(handler, stop))

    async def _work(self, handler: Handler, stop: Stop) -> None:
        client, stream = await self.connect()
        subscription = await stream.pull_subscribe("tasks", durable="workers")
        while not stop.is_set():
            try:
                messages = await subscription.fetch(_AT_ONCE, timeout=0.05)
            except TimeoutError:
                continue
            for message in messages:
                handler(json.loads(message.data))
                await message.ack()
        await client.flush()
        await client.close()


async def _ignore(error: Exception) -> None:
    """While the server starts, it is called again; nats-py would print each refusal."""


class _NatsSender:
    def __init__(self, peer: NatsJetStream) -> None:
        self._runner = asyncio.Runner()
        self._client, self._stream = self._run(peer.connect())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    def one(self, payload: Payload) -> None:
        self._run(self._stream.publish("tasks", json.dumps(payload).encode()))

    def many(self, payloads: Sequence[Payload]) -> None:
        self._run(self._many(payloads))

    async def _many(self, payloads: Sequence[Payload]) -> None:
        for first in range(0, len(payloads), _BATCH):
            batch = [
                await self._stream.publish_async("tasks", json.dumps(payload).encode()) for payload in payloads[first : first + _BATCH]
            ]
            await asyncio.gather(*batch)

    def close(self) -> None:
        self._run(self._client.close())
        self._runner.close()
