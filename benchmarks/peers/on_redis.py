"""Task libraries on Redis, as a program would use them: dramatiq, taskiq, RQ, SAQ and Celery. One worker, one task at a time, a process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from peers.peer import Handler, Payload, Stop
from peers.served import RedisServed

__all__ = ["CeleryRedis", "DramatiqRedis", "RqRedis", "SaqRedis", "TaskiqRedis"]

_BATCH = 100
_handlers: list[Handler] = []


def bench(payload: Payload) -> None:
    """The task, for libraries that find it by its name in every process."""
    _handlers[0](payload)


class DramatiqRedis(RedisServed):
    """dramatiq with ``appendfsync always``. It keeps no results unless told to, and publishes one by one."""

    name = "dramatiq (Redis, AOF always)"
    modules = ("redis", "dramatiq", "dramatiq.brokers.redis")
    batches = False

    def _actor(self, handler: Handler) -> tuple[Any, Any]:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        broker = RedisBroker(client=self.client())
        return broker, dramatiq.actor(handler, broker=broker, actor_name="bench")

    def sender(self) -> _OneByOne:
        _, actor = self._actor(lambda payload: None)
        return _OneByOne(actor.send)

    def work(self, handler: Handler, stop: Stop) -> None:
        import dramatiq

        broker, _ = self._actor(handler)
        worker = dramatiq.Worker(broker, worker_threads=1)
        worker.start()
        stop.wait()
        worker.stop()


class _OneByOne:
    def __init__(self, one: Callable[[Payload], Any], close: Callable[[], Any] = lambda: None) -> None:
        self.one = one
        self.close = close


class RqRedis(RedisServed):
    """RQ with its SimpleWorker, which starts no process for each job."""

    name = "RQ (Redis, AOF 1 s)"
    modules = ("redis", "rq")
    durable = "1 s"
    fsync = "everysec"

    def sender(self) -> _RqSender:
        from rq import Queue

        return _RqSender(Queue(connection=self.client()))

    def work(self, handler: Handler, stop: Stop) -> None:
        from rq import Queue, SimpleWorker

        _handlers[:] = [handler]
        client = self.client()
        worker = SimpleWorker([Queue(connection=client)], connection=client)
        # An idle worker waits for minutes, and only a signal ends that; it ends the worker in order.
        threading.Thread(target=lambda: (stop.wait(), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
        worker.work(logging_level="ERROR")


class _RqSender:
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def one(self, payload: Payload) -> None:
        self._queue.enqueue(bench, payload)

    def many(self, payloads: Sequence[Payload]) -> None:
        for first in range(0, len(payloads), _BATCH):
            self._queue.enqueue_many([self._queue.prepare_data(bench, (payload,)) for payload in payloads[first : first + _BATCH]])

    def close(self) -> None: ...


class CeleryRedis(RedisServed):
    """Celery with its ``solo`` pool; results are ignored."""

    name = "Celery (Redis, AOF 1 s)"
    modules = ("redis", "celery", "celery.apps.worker", "celery.worker.components", "kombu.transport.redis")
    durable = "1 s"
    fsync = "everysec"
    batches = False

    def _app(self, handler: Handler) -> tuple[Any, Any]:
        from celery import Celery

        app = Celery("bench", broker=f"redis+socket://{self.socket}")
        app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
        return app, app.task(handler, name="bench")

    def sender(self) -> _OneByOne:
        _, task = self._app(bench)
        return _OneByOne(task.delay)

    def work(self, handler: Handler, stop: Stop) -> None:
        app, _ = self._app(handler)
        worker = app.Worker(pool="solo", concurrency=1, loglevel="ERROR", quiet=True, without_mingle=True, without_gossip=True)
        threading.Thread(target=lambda: (stop.wait(), worker.stop()), daemon=True).start()
        worker.start()


class _OnLoop:
    """A sender whose library speaks asyncio."""

    def __init__(self, one: Callable[[Payload], Coroutine[Any, Any, Any]], close: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._runner = asyncio.Runner()
        self._one, self._close = one, close

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._runner.run(coroutine)

    def one(self, payload: Payload) -> None:
        self._runner.run(self._one(payload))

    def many(self, payloads: Sequence[Payload]) -> None:
        """It has no call for many: a hundred are sent at once."""
        for first in range(0, len(payloads), _BATCH):
            self._runner.run(self._some(payloads[first : first + _BATCH]))

    async def _some(self, payloads: Sequence[Payload]) -> None:
        await asyncio.gather(*map(self._one, payloads))

    def close(self) -> None:
        self._runner.run(self._close())
        self._runner.close()


class TaskiqRedis(RedisServed):
    """taskiq on Redis Streams, without a result backend."""

    name = "taskiq (Redis Streams, AOF 1 s)"
    modules = ("redis", "taskiq.receiver", "taskiq_redis")
    durable = "1 s"
    fsync = "everysec"

    def _task(self, handler: Handler) -> tuple[Any, Any]:
        from taskiq_redis import RedisStreamBroker

        broker = RedisStreamBroker(url=f"unix://{self.socket}")

        async def bench(payload: Payload) -> None:
            handler(payload)

        return broker, broker.register_task(bench, task_name="bench")

    def sender(self) -> _OnLoop:
        broker, task = self._task(lambda payload: None)
        sender = _OnLoop(task.kiq, broker.shutdown)
        sender.begin(broker.startup())
        return sender

    def work(self, handler: Handler, stop: Stop) -> None:
        asyncio.run(self._work(handler, stop))

    async def _work(self, handler: Handler, stop: Stop) -> None:
        from taskiq.receiver import Receiver

        broker, _ = self._task(handler)
        broker.is_worker_process = True
        await broker.startup()
        finish = asyncio.Event()
        listening = asyncio.create_task(Receiver(broker, max_async_tasks=100, run_startup=False).listen(finish))
        await asyncio.to_thread(stop.wait)
        finish.set()
        listening.cancel()


class SaqRedis(RedisServed):
    """SAQ, one task at a time."""

    name = "SAQ (Redis, AOF 1 s)"
    modules = ("redis", "saq", "saq.queue.redis")
    durable = "1 s"
    fsync = "everysec"

    def _queue(self) -> Any:
        from redis.asyncio import Redis
        from saq.queue.redis import RedisQueue

        return RedisQueue(Redis(unix_socket_path=self.socket))

    def sender(self) -> _OnLoop:
        queue = self._queue()
        sender = _OnLoop(lambda payload: queue.enqueue("bench", payload=payload), queue.disconnect)
        sender.begin(queue.connect())
        return sender

    def work(self, handler: Handler, stop: Stop) -> None:
        asyncio.run(self._work(handler, stop))

    async def _work(self, handler: Handler, stop: Stop) -> None:
        from saq import Worker

        async def bench(_: Any, *, payload: Payload) -> None:
            handler(payload)

        worker = Worker(self._queue(), functions=[("bench", bench)], concurrency=1)
        working = asyncio.create_task(worker.start())
        await asyncio.to_thread(stop.wait)
        await worker.stop()
        working.cancel()
