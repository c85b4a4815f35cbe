"""What runs in the processes of a benchmark: a queue, a publisher, or a consumer.

``python -m jsonqueue.cli.bench.actors ROLE QUEUE_DIR``. It says ``{}`` when it is ready. Then each line on its standard input is an order
(``{"do":"publish",…}``) and each line on its standard output the answer, or, before one that takes its time, how far it is
(``{"so_far":…}``). It ends when its standard input does, in the midst of an order too, so none outlives the benchmark, however that ends.
Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.cli.app import to_nowhere
from jsonqueue.cli.bench.figures import Spread, spread_of
from jsonqueue.cli.bench.machine import written_bytes
from jsonqueue.cli.processes import play
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.publisher import Publisher
from jsonqueue.task import Task, TaskIn

__all__ = ["main"]

_TELL_EVERY_S = 10.0

Order = dict[str, Any]


class QueueActor:
    """The brokers and their manager."""

    def __init__(self, queue_dir: str) -> None:
        self._queue_dir = queue_dir
        self._manager: BrokerManager | None = None

    def start(self, order: Order) -> Order:
        """Start; answers when both brokers are ready."""
        began = time.monotonic()
        self._manager = BrokerManager(self._queue_dir)
        self._manager.start()
        self._manager.wait_ready(timeout=600)
        return {"seconds": time.monotonic() - began, **self.status({})}

    def status(self, order: Order) -> Order:
        """Counters, process ids, checkpoints so far."""
        assert self._manager is not None
        status = self._manager.status()
        counters = {name: value for broker in status.brokers for name, value in broker.counters.items()}
        pids = [os.getpid(), *(broker.pid for broker in status.brokers)]
        settled = counters.get("deliveries", 0) - counters.get("in_progress", 0)
        return {
            "pids": pids, "settled": settled, "published": counters.get("published", 0), "ready": counters.get("ready", 0),
            "tasks": counters.get("tasks", 0), "checkpoints": status.checkpoints, "checkpoint_ms": status.checkpoint_took_ms,
        }  # fmt: skip

    def checkpoint(self, order: Order) -> Order:
        """Bring queue.json up to date."""
        assert self._manager is not None
        began = time.monotonic()
        self._manager.checkpoint(timeout=600)
        return {"began": began, "ended": time.monotonic()}

    def stop(self, order: Order) -> Order:
        """A clean stop, folding everything into queue.json."""
        began = time.monotonic()
        if self._manager is not None:
            self._manager.stop()
        # Of brokers that have ended, the system counts what they wrote as this process's own.
        return {"seconds": time.monotonic() - began, "written": written_bytes([os.getpid()])}


class PublisherActor:
    """A publisher, connected before it is told to begin."""

    def __init__(self, queue_dir: str) -> None:
        self._publisher = Publisher(queue_dir, timeout=600)

    def bulk(self, order: Order) -> Order:
        """Publish ``tasks`` in batches; ``delay_s``: to be run that much later."""
        given = _delayed(order["tasks"], order["delay_s"]) if order.get("delay_s") else _payloads(order["tasks"])
        began = time.monotonic()
        self._publisher.publish_many(given, on_progress=_Progress().tell)
        return {"began": began, "ended": time.monotonic()}

    def singly(self, order: Order) -> Order:
        """Publish ``tasks`` one by one, each durable before the next; ``every_s``: at this pace. Payloads say when they were sent."""
        publish, clock = self._publisher.publish, time.monotonic_ns
        every_s, took_ns = order.get("every_s", 0.0), []
        progress = _Progress()
        began = time.monotonic()
        for n in range(order["tasks"]):
            sent = clock()
            publish({"n": n, "data": _FILL, "sent": sent})
            took_ns.append(clock() - sent)
            progress.tell(n)
            if every_s:
                time.sleep(every_s)
        return {"began": began, "ended": time.monotonic(), "took": _in_ms(took_ns)}


class _Progress:
    """Tells now and then how far an order is, so that whoever waits for its end knows that there will be one."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def tell(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if now - self._told > _TELL_EVERY_S:
            self._told = now
            _say({"so_far": done})


class ConsumerActor:
    """A consumer with one worker."""

    def __init__(self, queue_dir: str) -> None:
        self._queue_dir = queue_dir
        self._consumer: Consumer | None = None
        self._waited_ns: list[tuple[int, int]] = []
        self._ended: list[float] = []

    def start(self, order: Order) -> Order:
        """Connect and begin to work: at nothing, for ``work_s`` a task, or noting how long each task was on its way (``stamped``)."""
        self._consumer = Consumer(self._queue_dir, self._handler(order), name="bench")
        self._consumer.start()
        return {}

    def _handler(self, order: Order) -> Callable[[Task[Any]], object]:
        if order.get("stamped"):
            return self._note
        if order.get("work_s"):
            return lambda task: self._work(order["work_s"])
        return _nothing

    def _work(self, seconds: float) -> None:
        time.sleep(seconds)
        self._ended.append(time.monotonic())

    def _note(self, task: Task[Any]) -> None:
        now = time.monotonic_ns()
        self._waited_ns.append((now, now - task.data["sent"]))

    def forget(self, order: Order) -> Order:
        """What was noted so far was for warming up."""
        self._waited_ns.clear()
        return {}

    def waits(self, order: Order) -> Order:
        """How long the tasks were on their way that came between ``since`` and ``until`` (monotonic seconds)."""
        since, until = order.get("since", 0.0) * 1e9, order.get("until", 1e18) * 1e9
        return {"waited": _in_ms([waited for at, waited in self._waited_ns if since <= at <= until])}

    def ended(self, order: Order) -> Order:
        """How many tasks with ``work_s`` ended between ``since`` and ``until`` (monotonic seconds)."""
        return {"count": sum(order["since"] < at <= order["until"] for at in self._ended)}

    def stop(self, order: Order) -> Order:
        """Drain and leave."""
        assert self._consumer is not None
        self._consumer.stop()
        return {"completed": self._consumer.stats.completed}


_FILL = "x" * 64


def _payloads(tasks: int) -> Iterator[dict[str, Any]]:
    return ({"n": n, "data": _FILL} for n in range(tasks))


def _delayed(tasks: int, delay_s: float) -> Iterator[TaskIn[Any]]:
    run_at_ms = int(1000 * (time.time() + delay_s))
    return (TaskIn(data=data, run_at_ms=run_at_ms) for data in _payloads(tasks))


def _nothing(task: Task[Any]) -> None:
    """The handler whose cost is none."""


def _in_ms(values_ns: list[int]) -> Spread:
    return spread_of([value / 1e6 for value in values_ns])


_ROLES: dict[str, Callable[[str], QueueActor | PublisherActor | ConsumerActor]] = {
    "queue": QueueActor,
    "publisher": PublisherActor,
    "consumer": ConsumerActor,
}


def main(role: str, queue_dir: str) -> None:
    """Take orders until there are no more."""
    actor = _ROLES[role](queue_dir)
    orders: Queue[bytes] = Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    _say({})
    while line := orders.get():
        order = json.loads(line)
        answer = getattr(actor, order["do"])(order)
        orders.task_done()
        _say(answer)


def _listen(orders: Queue[bytes]) -> None:
    """Take orders in while one is carried out; when there will be no more, that one is for nobody."""
    # Unbuffered: at the end of a process that fails nobody waits for the lock of a buffer that is being read.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as given:
        for line in given:
            orders.put(line)
    if orders.unfinished_tasks:
        os._exit(1)
    orders.put(b"")


def _say(answer: Order) -> None:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # The benchmark is gone: on its terminal, which is this one's, nobody waits for a traceback.
        to_nowhere(sys.stdout)
        sys.exit(1)


if __name__ == "__main__":
    play(main)
