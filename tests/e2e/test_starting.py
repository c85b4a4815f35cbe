"""The beginning of a manager's life: many at once, and the end before it has begun."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cast import Cast
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.registration import SOCKET_NAME
from jsonqueue.client.publisher import Publisher
from jsonqueue.storage.locks import hold

pytestmark = pytest.mark.processes
PATIENCE_S = 40.0
PARENTS, FORKS = 5, 10

STARTER = """
import os, sys
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.config import Config
from jsonqueue.errors import ManagerRunning

folder, told, gate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
manager = BrokerManager(folder, Config(flush_interval_ms=3_600_000))
CHANGES = {"os.rename", "os.remove", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.rmdir", "os.utime", "socket.bind"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def watch(touched):
    def hook(event, arguments):
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            touched.add(os.path.basename(os.fsdecode(arguments[0])))
        elif event in CHANGES:
            touched.add(event)
    sys.addaudithook(hook)

def start():
    touched = set()
    watch(touched)
    try:
        manager.start()
    except ManagerRunning as error:
        os.write(told, f"lost {error.exit_status} {','.join(sorted(touched))}\\n".encode())
        os._exit(error.exit_status)
    manager.wait_ready()
    os.write(told, b"won\\n")
    os.read(gate, 1)
    manager.stop()
    os.write(told, b"stopped\\n")
    os._exit(0)

os.write(told, b"here\\n")
while os.read(0, 1):
    for _ in range(int(sys.argv[4])):
        if not os.fork():
            start()
"""


class Starters:
    """Some processes that fork as many managers as they are told to, all at once."""

    def __init__(self, queue_dir: Path) -> None:
        self._ear, told = os.pipe()
        gate, self._gate = os.pipe()
        self._heard = b""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", STARTER, str(queue_dir), str(told), str(gate), str(FORKS)]
        self._parents = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, pass_fds=(told, gate), start_new_session=True)
            for _ in range(PARENTS)
        ]
        os.close(told)
        os.close(gate)
        assert self.hear(PARENTS) == ["here"] * PARENTS

    def go(self) -> list[str]:
        """All of them start; what each has to say."""
        for parent in self._parents:
            assert parent.stdin is not None
            parent.stdin.write(b"!")
            parent.stdin.flush()
        return self.hear(PARENTS * FORKS)

    def hear(self, number: int) -> list[str]:
        while self._heard.count(b"\n") < number:
            assert select.select([self._ear], [], [], PATIENCE_S)[0], self._heard
            self._heard += os.read(self._ear, 65_536)
        *lines, self._heard = self._heard.split(b"\n", number)
        return [line.decode() for line in lines]

    def let_winner_stop(self) -> None:
        os.write(self._gate, b"!")
        assert self.hear(1) == ["stopped"]

    def end(self) -> None:
        for parent in self._parents:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.communicate()
        os.close(self._ear)
        os.close(self._gate)


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


def _all_of(queue_dir: Path) -> dict[str, tuple[int, int, bytes]]:
    """Each file: its inode, when it was changed last, and what is in it."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(queue_dir.rglob("*"))
    }


def test_of_fifty_managers_that_start_at_once_one_serves(tmp_path: Path) -> None:
    """The others exit with 75, having opened nothing to write to but the lock file; fifty more, while it serves, leave every file as it is,
    to the byte and the nanosecond."""
    queue_dir = tmp_path / "queue"
    with BrokerManager(queue_dir) as manager, Publisher(manager) as publisher:
        publisher.publish("kept")
    starters = Starters(queue_dir)
    try:
        told = starters.go()
        assert sorted(told) == ["lost 75 queue.lock"] * (PARENTS * FORKS - 1) + ["won"]
        before = _all_of(queue_dir)
        assert starters.go() == ["lost 75 queue.lock"] * (PARENTS * FORKS)
        assert _all_of(queue_dir) == before
        starters.let_winner_stop()
    finally:
        starters.end()
    document = json.loads((queue_dir / "queue.json").read_bytes())
    assert document["epochs"] == [2, 2], "one start before, one now"
    assert [task["data"] for task in document["tasks"]] == ["kept"]
    assert not list(queue_dir.glob("*.jsonl"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_it_serves_leaves_nothing_behind(cast: Cast, number: int) -> None:
    """Ctrl-C while a large queue is loaded, say: brokers and socket are gone, and the exit is a clean one."""
    cast.queue_dir.mkdir(mode=0o700)
    with hold(cast.queue_dir, "published", what="a broker that takes its time"):
        serve = cast.start("serve", "--grace", "30", stderr=subprocess.PIPE)
        while not (cast.queue_dir / SOCKET_NAME).exists():
            assert serve.poll() is None
        serve.send_signal(number)
        while (cast.queue_dir / SOCKET_NAME).exists():
            assert serve.poll() is None, "it ended without tidying up"
    told, errors = serve.communicate(timeout=PATIENCE_S)
    assert (serve.returncode, told) == (0, b""), errors
    assert not (cast.queue_dir / SOCKET_NAME).exists()
    assert not list(cast.queue_dir.glob("*.jsonl"))
    with hold(cast.queue_dir, "progress"):
        pass
