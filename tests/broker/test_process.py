"""A broker's process by itself: what ends it, and what it still does then."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest
from msgspec import Raw

from jsonqueue.broker import child as child_module
from jsonqueue.broker.child import Child
from jsonqueue.broker.liveness import is_alive
from jsonqueue.broker.loop import BrokerLoop
from jsonqueue.broker.marks import MarksOutlet
from jsonqueue.broker.narration import ending
from jsonqueue.channel.control import Ask, Attach, Counters, Failed, News, Ready, Stop
from jsonqueue.channel.pipe import Pipe
from jsonqueue.config import Config
from jsonqueue.errors import ConnectionClosed
from jsonqueue.event import EventOwner, Mark, Write, Written, encode
from jsonqueue.storage.folder import open_folder
from jsonqueue.task import TaskIn

pytestmark = pytest.mark.processes


class Held:
    """A PublisherBroker's process, with the test as its manager."""

    def __init__(self, queue_dir) -> None:
        open_folder(queue_dir, create=True).shut()
        marks, theirs = Pipe.pair()
        self.marks = Pipe(marks)
        self.child = Child(EventOwner.PUBLISHER_BROKER, str(queue_dir), Config(), theirs, now_ms=0)
        self.peers: list[Pipe] = []
        self._heard: list[News] = []

    def news(self) -> News:
        while not self._heard:
            assert select.select([self.child.control], [], [], 5)[0]
            self._heard += self.child.hear()
        return self._heard.pop(0)

    def attach(self) -> Pipe:
        brokers_end, clients_end = Pipe.pair()
        self.peers.append(Pipe(clients_end))
        self.child.post(Attach(len(self.peers), EventOwner.PUBLISHER, "tester", os.getpid()), brokers_end)
        return self.peers[-1]

    def await_end(self) -> int:
        return self.child._process.wait(5)

    def close(self) -> None:
        self.child.kill()
        self.marks.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def broker(tmp_path):
    held = Held(tmp_path / "queue")
    yield held
    held.close()


def test_it_tells_when_it_is_ready_and_says_its_mark(broker):
    """The other broker learns at once how far the log is durable."""
    assert broker.news() == Ready(epoch=1)
    assert broker.marks.receive(5) == [encode(Mark(0, 0))]


def test_told_to_stop_it_serves_what_has_arrived_and_ends_well(broker):
    """What was in its Pipes is stored and acknowledged before it goes."""
    broker.news()
    peer = broker.attach()
    peer.send(encode(Write(1, [TaskIn(id="a", data=Raw(b"1"))])))
    broker.child.post(Stop())
    assert peer.receive(5) == [encode(Written(1, number=1))]
    with pytest.raises(ConnectionClosed):
        peer.receive(5)
    assert broker.await_end() == 0


def test_orders_that_come_before_it_is_open_wait_for_it(broker):
    """A client that is attached to a broker that still loads is served when it has."""
    peer = broker.attach()
    peer.send(encode(Write(1, [TaskIn(id="a", data=Raw(b"1"))])))
    broker.child.post(Ask(7))
    assert peer.receive(5) == [encode(Written(1, number=1))]
    assert broker.news() == Ready(epoch=1)
    news = broker.news()
    assert isinstance(news, Counters)
    assert (news.request, news.peers) == (7, 1)


@pytest.mark.parametrize("while_it_boots", [True, False])
def test_signals_are_the_managers_business(broker, while_it_boots):
    """They go to the whole group: none may end a broker before the manager has decided, be it ever so young."""
    if not while_it_boots:
        broker.news()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(broker.child.pid, number)
    peer = broker.attach()
    peer.send(encode(Write(1, [TaskIn(id="a", data=Raw(b"1"))])))
    assert peer.receive(5) == [encode(Written(1, number=1))]
    broker.child.post(Stop())
    assert broker.await_end() == 0


def test_without_its_manager_it_ends_at_once(broker):
    """The end of the control Pipe is the end of the broker."""
    broker.news()
    broker.child.control.close()
    assert broker.await_end() == 0


def test_a_broker_whose_parent_is_another_than_its_manager_ends(tmp_path, monkeypatch):
    """A manager that died while its broker started is not waited for, even if somebody else holds the Pipe."""
    monkeypatch.setattr(child_module.os, "getpid", lambda: 1)
    held = Held(tmp_path / "queue")
    assert held.await_end() == 0
    held.close()


def test_nonsense_from_the_manager_ends_it_with_last_words(broker):
    """It cannot know what it was told; the reason is told back."""
    broker.news()
    broker.child.control.post(b"nonsense")
    words = broker.news()
    assert isinstance(words, Failed)
    assert words.error == "BadFrame"
    assert broker.await_end() == 76


def test_a_child_that_is_dead_is_told_in_vain(broker):
    """Posting to it neither raises nor leaks the fd."""
    broker.child.kill()
    before = len(os.listdir("/dev/fd"))
    peer = broker.attach()
    peer.close()
    assert len(os.listdir("/dev/fd")) == before


def test_only_the_newest_mark_waits_for_a_consumer_broker_that_is_busy():
    """However long it takes, one mark waits; and it is the last one."""
    ours, theirs = Pipe.pair()
    loop, outlet, reader = BrokerLoop(_Idle(), _Clock()), MarksOutlet(), Pipe(theirs)
    outlet.renew(Pipe(ours), loop)
    said = 0
    while not outlet._waiting:
        said += 1
        outlet.announce(Mark(said, 1))
    for number in range(said + 1, said + 1000):
        outlet.announce(Mark(number, 1))
    heard = []
    while not heard or heard[-1] != encode(Mark(said + 999, 1)):
        heard += reader.read()
        loop.turn(0)
    assert len(heard) <= said + 1
    loop.close()
    reader.close()
    outlet.announce(Mark(1, 1))  # Nobody hears it any more: that is no error, a new Pipe will come.
    outlet.announce(Mark(2, 1))
    assert outlet._pipe is None


def test_whether_a_process_lives():
    """One that ended is dead, reaped or not; that of another user lives."""
    assert is_alive(os.getpid())
    assert is_alive(1)
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid)
    process.communicate()
    assert not is_alive(process.pid)
    assert not is_alive(2**31)
    assert not is_alive(2**64), "a kernel does not count so far"


@pytest.mark.parametrize(("status", "words"), [(0, "exit status 0"), (74, "exit status 74"), (-9, "signal SIGKILL"), (-63, "signal 63")])
def test_how_a_process_ended_is_said_in_words(status, words):
    """A negative status is a signal."""
    assert ending(status) == words


class _Clock:
    def wall_ms(self) -> int:
        return 0

    def monotonic_ms(self) -> int:
        return 0


class _Idle:
    role = EventOwner.PUBLISHER_BROKER
    epoch = 1

    def step(self, arrivals, send) -> None: ...

    def next_due_ms(self) -> None:
        return None
