"""jsonqueue: two brokers and their manager in a process of their own, as ``jsonqueue serve`` runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jsonqueue import Consumer, Publisher

from peers.peer import Handler, Payload, Peer, Stop

__all__ = ["JsonQueue"]

_SERVE = "import sys; from jsonqueue import BrokerManager\nwith BrokerManager(sys.argv[1]): print('ready', flush=True); sys.stdin.read()"


class JsonQueue(Peer):
    """With everything on: fsync before each acknowledgement, leases, results."""

    name = "jsonqueue"

    @contextmanager
    def served(self) -> Iterator[None]:
        command = [sys.executable, "-c", _SERVE, str(self.folder / "queue")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            yield
            server.communicate()

    def sender(self) -> _Sender:
        return _Sender(self.folder / "queue")

    def work(self, handler: Handler, stop: Stop) -> None:
        with Consumer(self.folder / "queue", lambda task: handler(task.data), name="worker"):
            stop.wait()


class _Sender:
    def __init__(self, queue_dir: object) -> None:
        self._publisher = Publisher(str(queue_dir))
        self.one = self._publisher.publish
        self.close = self._publisher.close

    def many(self, payloads: Sequence[Payload]) -> None:
        self._publisher.publish_many(payloads)
