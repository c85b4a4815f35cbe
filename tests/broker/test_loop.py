"""The loop that runs a broker: what one turn does, and that no peer can harm another."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import threading
from random import Random

import pytest
from msgspec import Raw

from jsonqueue.broker.consumer_broker import ConsumerBroker
from jsonqueue.broker.loop import MARKS_PEER, BrokerLoop
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.channel.pipe import Pipe
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.event import (
    Assign,
    Complete,
    Event,
    EventOwner,
    Heartbeat,
    Join,
    Look,
    Mark,
    Result,
    Revoke,
    Watch,
    Write,
    Written,
    decoder_for,
    encode,
)
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.task import Task, TaskIn, TaskStatus


class FrozenClock:
    """A monotonic clock that a test moves."""

    now_ms = 0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms


class CountingClock(SystemClock):
    """Counts how often it is asked."""

    asked = 0

    def monotonic_ms(self) -> int:
        self.asked += 1
        return super().monotonic_ms()


class NotingBroker:
    """A broker that notes what happens to it, and answers each Write."""

    role = EventOwner.PUBLISHER_BROKER
    epoch = 1
    hungry = True

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.steps = 0
        self.due_ms: int | None = None
        self.padding = ""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def attach(self, peer: int) -> None:
        self.heard.append(("attach", peer))

    def detach(self, peer: int) -> None:
        self.heard.append(("detach", peer))

    def step(self, arrivals, send) -> None:
        self.steps += 1
        self.heard += arrivals
        for peer, event in arrivals:
            if isinstance(event, Write):
                send(peer, Written(event.request, number=1, durability=self.padding))

    def next_due_ms(self) -> int | None:
        return self.due_ms

    def counters(self) -> dict[str, int]:
        return {}


@pytest.fixture
def broker():
    return NotingBroker()


@pytest.fixture
def loop(broker):
    loop = BrokerLoop(broker, FrozenClock())
    yield loop
    loop.close()


@pytest.fixture
def client(loop):
    """Makes clients: attaches a Pipe as peer 1, 2, ... and gives its other end."""
    made: list[Pipe] = []

    def make(owner: EventOwner = EventOwner.PUBLISHER, *, pending_max: int = 1 << 20) -> Pipe:
        brokers_end, clients_end = Pipe.pair()
        made.append(Pipe(clients_end))
        loop.attach(len(made), Pipe(brokers_end, pending_max=pending_max), owner, "tester")
        return made[-1]

    yield make
    for pipe in made:
        pipe.close()


def test_a_turn_takes_in_all_that_came_and_answers_it(loop, broker, client):
    """Three frames of two peers are one step, and each peer gets its own answers, in order."""
    one, two = client(), client()
    one.post(encode(Write(1, [])), encode(Write(2, [])))
    two.post(encode(Write(3, [])))
    assert loop.turn(1000)
    assert broker.steps == 1
    assert sorted(event.request for _, event in broker.heard[2:]) == [1, 2, 3]
    assert one.receive(1) == [encode(Written(1, number=1)), encode(Written(2, number=1))]
    assert two.receive(1) == [encode(Written(3, number=1))]


def test_a_turn_without_events_happens_when_the_broker_is_due(loop, broker):
    """The broker's own time wakes the loop: it steps, with nothing in hand."""
    broker.due_ms = 0
    assert not loop.turn()
    assert broker.steps == 1


def test_marks_come_before_everything_else_of_a_turn(loop, broker, client):
    """What a caller was told is durable is known to the ConsumerBroker before it judges the question; of many marks the newest counts."""
    ours, theirs = Pipe.pair()
    loop.listen_to(Pipe(ours))
    teller, caller = Pipe(theirs), client(EventOwner.CALLER)
    caller.post(encode(Look(1, "a")))
    teller.post(encode(Mark(7, 1)), encode(Mark(8, 1)))
    loop.turn(1000)
    assert broker.heard[1:] == [(MARKS_PEER, Mark(8, 1)), (1, Look(1, "a"))]
    teller.close()


@pytest.fixture
def watched(broker):
    """A loop that hears marks for a broker that nobody waits at; its clock, the selector that it sleeps in, and the end that says marks."""
    broker.hungry = False
    clock, selector = FrozenClock(), selectors.DefaultSelector()
    loop = BrokerLoop(broker, clock, selector)
    listener, teller = Pipe.pair()
    loop.listen_to(Pipe(listener))
    said = Pipe(teller)
    loop.turn(0)
    broker.heard.clear()
    yield loop, clock, selector, said
    loop.close()
    said.close()


def test_marks_that_nobody_waits_for_wake_the_broker_once_in_a_while(broker, watched):
    """The first does; those behind it gather, the newest is read 20 ms later; after a pause without any, the next one wakes again."""
    loop, clock, selector, said = watched
    said.post(encode(Mark(1, 1)))
    assert selector.select(1)
    loop.turn(0)
    said.post(encode(Mark(2, 1)), encode(Mark(3, 1)))
    assert not selector.select(0)
    assert loop.next_due_ms() == 20
    clock.now_ms = 20
    loop.turn()  # would wait for ever, were it not due
    assert broker.heard == [(MARKS_PEER, Mark(1, 1)), (MARKS_PEER, Mark(3, 1))]
    assert loop.next_due_ms() == 40
    clock.now_ms = 40
    loop.turn()
    assert loop.next_due_ms() is None
    said.post(encode(Mark(4, 1)))
    assert selector.select(1)


def test_whatever_else_is_to_be_done_finds_all_marks_read(broker, watched):
    """A question about a task that was published within the pause is asked of a broker that knows it."""
    loop, _, _, said = watched
    said.post(encode(Mark(1, 1)))
    loop.turn(1000)
    said.post(encode(Mark(2, 1)))
    loop.turn(0)
    assert broker.heard[-1] == (MARKS_PEER, Mark(2, 1))
    assert loop.next_due_ms() == 20


def test_as_soon_as_somebody_waits_marks_wake_the_broker(broker, watched):
    """A mark that came in the pause does, too."""
    loop, _, selector, said = watched
    said.post(encode(Mark(1, 1)))
    loop.turn(1000)
    broker.hungry = True
    loop.turn(0)
    said.post(encode(Mark(2, 1)))
    assert selector.select(1)
    assert loop.next_due_ms() is None


def test_a_mark_that_somebody_waited_for_is_not_the_last_to_wake_the_broker(broker, watched):
    """One at a time, each consumer that is served waits again a moment later: no pause is made in between."""
    loop, _, selector, said = watched
    broker.hungry = True
    loop.turn(0)
    said.post(encode(Mark(1, 1)))
    broker.hungry = False
    loop.turn(1000)
    said.post(encode(Mark(2, 1)))
    assert selector.select(1)
    loop.turn(1000)
    said.post(encode(Mark(3, 1)))
    assert not selector.select(0), "that one was in vain"


def test_marks_may_end_in_a_pause(broker, watched):
    """It is noticed at the next look, and nobody looks any more."""
    loop, clock, _, said = watched
    said.post(encode(Mark(1, 1)))
    loop.turn(1000)
    said.close()
    clock.now_ms = 20
    loop.turn()
    assert loop.next_due_ms() is None


def test_what_is_to_be_done_after_a_turn_is_not_put_off_until_something_comes(loop):
    """An order may have come before the first turn."""
    done = []
    loop.afterwards(lambda: done.append(True))
    loop.turn()  # would wait for ever
    assert done


def test_the_last_words_go_out_without_heed_of_what_else_is_said(broker):
    """One client does not read, the manager talks on: nothing is looked at again and again meanwhile."""
    clock = CountingClock()
    loop = BrokerLoop(broker, clock)
    ours, theirs = Pipe.pair()
    deaf, (order, manager) = Pipe(theirs), os.pipe()
    loop.attach(1, Pipe(ours, pending_max=1 << 30), EventOwner.PUBLISHER, "tester")
    broker.padding = "x" * 8_000_000
    deaf.post(encode(Write(1, [])))
    loop.turn(1000)
    loop.watch(order, lambda: None)
    os.write(manager, b"more")
    clock.asked = 0
    loop.drain(100)
    assert clock.asked < 20
    deaf.close()
    loop.close()
    os.close(order)
    os.close(manager)


def test_the_end_of_the_marks_is_no_end_of_the_loop(loop, broker, client):
    """When the other broker dies, this one serves on, and takes its marks from a new Pipe later."""
    ours, theirs = Pipe.pair()
    loop.listen_to(Pipe(ours))
    Pipe(theirs).close()
    assert not loop.turn(1000)
    ours, theirs = Pipe.pair()
    loop.listen_to(Pipe(ours))
    teller = Pipe(theirs)
    teller.post(encode(Mark(9, 2)))
    assert loop.turn(1000)
    assert broker.heard == [(MARKS_PEER, Mark(9, 2))]
    teller.close()


def test_a_peer_that_hangs_up_is_detached(loop, broker, client):
    """What it said before is heard first."""
    gone = client()
    gone.post(encode(Write(1, [])))
    gone.close()
    loop.turn(1000)
    loop.turn(0)
    assert broker.heard == [("attach", 1), (1, Write(1, [])), ("detach", 1)]
    assert loop.peers == 0


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("!i", 5) + b"hello",
        struct.pack("!i", -1) + b"\0" * 8,
        struct.pack("!i", 2**31 - 1),
        struct.pack("!i", 0),
        struct.pack("!i", 4) + b"null",
        struct.pack("!i", 3000) + b"[" * 3000,
        struct.pack("!i", 28) + b'{"type":"look","request":1}\n',
        struct.pack("!i", 39) + b'{"type":"write","request":1,"tasks":0}\n ',
        struct.pack("!i", 27) + b"\x80\x04cposix\nsystem\n(S'true'\ntR",
    ],
    ids=["text", "negative", "huge", "empty", "null", "deep", "foreign", "ill-typed", "pickle"],
)
def test_a_malformed_frame_costs_its_own_connection_and_no_other(loop, broker, client, garbage, caplog):
    """The one that talks nonsense is dropped and told of once; the other one is served in the same turn."""
    bad, good = client(), client()
    with socket.socket(fileno=os.dup(bad.fileno())) as raw:
        raw.sendall(garbage)
    good.post(encode(Write(1, [])))
    with caplog.at_level(logging.WARNING, "jsonqueue.broker"):
        loop.turn(1000)
    assert good.receive(1) == [encode(Written(1, number=1))]
    assert ("detach", 1) in broker.heard
    assert ("detach", 2) not in broker.heard
    assert len(caplog.records) == 1
    assert "publisher tester" in caplog.text


def test_nothing_counts_of_a_read_that_ends_in_nonsense(loop, broker, client):
    """A connection is dropped as a whole: no half of what it said is acted upon."""
    peer = client()
    peer.post(encode(Write(1, [])), b"nonsense")
    loop.turn(1000)
    assert broker.heard == [("attach", 1), ("detach", 1)]


def test_a_peer_that_hangs_up_before_its_answer_is_nothing_to_speak_of(loop, broker, client, caplog):
    """A worker that was interrupted ends in the midst of things: the broker hears of it, its log does not."""
    peer = client()
    peer.post(encode(Write(1, [])))
    peer.close()
    with caplog.at_level(logging.INFO, "jsonqueue.broker"):
        loop.turn(0)
        loop.turn(0)
    assert broker.heard[-1] == ("detach", 1)
    assert not caplog.records


def test_what_a_peer_said_before_it_ended_is_heard_though_nothing_reaches_it_any_more(loop, broker, client):
    """A consumer's last completion may come in the very turn in which it is assigned more, and dies: its work need not be done again."""
    one = client()
    one.post(encode(Write(1, [])))

    def step(arrivals, send, step=broker.step):
        if arrivals and arrivals[0][1] == Write(1, []):
            one.post(encode(Write(2, [])))
            one.close()
        step(arrivals, send)

    broker.step = step
    for _ in range(3):
        loop.turn(0)
    assert broker.heard == [("attach", 1), (1, Write(1, [])), (1, Write(2, [])), ("detach", 1)]


def test_what_a_slow_peer_said_before_it_ended_is_heard_though_something_waits_for_it(loop, broker, client):
    broker.padding = "x" * 4_000_000
    one = client(pending_max=1 << 23)
    one.post(encode(Write(1, [])))
    loop.turn(0)
    one.post(encode(Write(2, [])))
    one.close()
    for _ in range(3):
        loop.turn(0)
    assert broker.heard == [("attach", 1), (1, Write(1, [])), (1, Write(2, [])), ("detach", 1)]


def test_a_peer_that_never_reads_is_dropped_and_delays_nobody(loop, broker, client, caplog):
    """Its answers wait up to the cap; then it goes, which is said. The loop never waits for it."""
    broker.padding = "x" * 200_000
    deaf, good = client(pending_max=500_000), client()
    request = 0
    while loop.peers == 2:
        request += 1
        deaf.post(encode(Write(request, [])))
        loop.turn(1000)
    assert ("detach", 1) in broker.heard
    assert "publisher tester: the other end does not read" in caplog.text
    good.post(encode(Write(1, [])))
    loop.turn(1000)
    assert good.receive(1)


def test_a_peer_that_is_to_be_dropped_costs_nothing_more(loop, broker, client, caplog, monkeypatch):
    """However much it asked for in one breath: a thousand questions are a few bytes, their answers may be a gigabyte."""
    encoded = []
    monkeypatch.setattr("jsonqueue.broker.loop.encode", lambda event: encoded.append(event) or encode(event))
    broker.padding = "x" * 1_000_000
    deaf = client(pending_max=4_000_000)
    deaf.post(*(encode(Write(request, [])) for request in range(1_000)))
    loop.turn(1000)
    assert broker.heard[-2:] == [(1, Write(999, [])), ("detach", 1)]
    assert 4 < len(encoded) < 12
    assert caplog.text.count("the other end does not read") == 1


class Teller(NotingBroker):
    """A broker that tells how large tasks stand: at once, whether they have ended or not."""

    status = TaskStatus.COMPLETED

    def step(self, arrivals, send) -> None:
        super().step(arrivals, send)
        for peer, event in arrivals:
            if isinstance(event, Look | Watch):
                for task_id in [event.id] if isinstance(event, Look) else event.ids:
                    send(peer, Result(event.request, task_id, Task(task_id, 1, self.status, 1, Raw(b'"%b"' % (b"x" * 1_000_000)))))


@pytest.fixture
def teller():
    return Teller()


@pytest.fixture
def tells(teller):
    """A loop that runs the teller, a caller's end, the broker's end of the same Pipe."""
    loop = BrokerLoop(teller, FrozenClock())
    ours, theirs = Pipe.pair()
    brokers_end = Pipe(ours, pending_max=3_500_000)
    loop.attach(1, brokers_end, EventOwner.CALLER, "")
    caller = Pipe(theirs)
    yield loop, caller, brokers_end
    caller.close()
    loop.close()


QUESTIONS = [Watch(1, ["a"]), Look(2, "b"), Watch(3, ["c", "d", "e", "f"]), Look(4, "a"), Look(5, "g")]
ASKED = [(1, "a"), (2, "b"), (3, "c"), (3, "d"), (3, "e"), (3, "f"), (4, "a"), (5, "g")]
decode_answer = decoder_for(EventOwner.CONSUMER_BROKER)


def told(tells, count: int) -> list[tuple[int, str]]:
    """What a caller is told until it is so much; meanwhile no more than the cap waits for it."""
    loop, caller, brokers_end = tells
    answers: list[tuple[int, str]] = []
    while len(answers) < count:
        loop.turn(0)
        assert brokers_end.pending <= 3_500_000
        answers += [(answer.request, answer.id) for answer in map(decode_answer, caller.read())]
    return answers


@pytest.mark.parametrize("status", [TaskStatus.COMPLETED, TaskStatus.PENDING])
def test_a_caller_that_asks_for_more_than_may_wait_for_it_is_told_bit_by_bit(tells, teller, status, caplog):
    """It asked before it could read any of it. What there was no room for is asked again as it was asked."""
    loop, caller, _ = tells
    teller.status = status
    caller.post(*map(encode, QUESTIONS))
    assert told(tells, len(ASKED)) == ASKED
    assert (loop.peers, caplog.text) == (1, "")
    again = [event for _, event in teller.heard[1 + len(QUESTIONS) :]]
    assert Look(4, "a") in again
    assert Watch(3, ["f"]) in again
    assert {type(event) for event in again} == {Look, Watch}
    caller.post(encode(Look(6, "a")))
    assert told(tells, 1) == [(6, "a")]


def test_of_a_caller_that_reads_nothing_nothing_more_is_read(tells, teller, monkeypatch):
    """So what it asks waits with itself; and thirty questions in a breath cost no more answers than there is room for."""
    encoded = []
    monkeypatch.setattr("jsonqueue.broker.loop.encode", lambda event: encoded.append(event) or encode(event))
    loop, caller, _ = tells
    caller.post(*(encode(Look(request, "a")) for request in range(30)))
    loop.turn(1000)
    caller.post(encode(Look(30, "a")))
    for _ in range(20):
        loop.turn(0)
    assert teller.heard[-1] == (1, Look(29, "a"))
    assert 3 <= len(encoded) < 12
    assert [request for request, _ in told(tells, 31)] == list(range(31))


@pytest.mark.parametrize("reads", [False, True])
def test_a_caller_that_hangs_up_while_answers_wait_is_detached(tells, teller, reads):
    loop, caller, brokers_end = tells
    caller.post(*map(encode, QUESTIONS))
    loop.turn(1000)
    while reads and brokers_end.pending:
        caller.read()
        brokers_end.flush()
    caller.close()
    for _ in range(5):
        loop.turn(0)
    assert teller.heard[-1] == ("detach", 1)
    assert loop.peers == 0


def test_what_a_slow_peer_has_no_room_for_reaches_it_later(loop, broker, client):
    """A large answer goes out in pieces, over several turns, and whole."""
    broker.padding = "x" * 5_000_000
    slow = client(pending_max=1)
    slow.post(encode(Write(1, [])))
    loop.turn(1000)
    frames = slow.read()
    while not frames:
        loop.turn(0)
        frames = slow.read()
    assert frames == [encode(Written(1, number=1, durability=broker.padding))]
    assert loop.peers == 1


def test_no_peer_is_starved_when_there_is_more_to_read_than_a_turn_takes(loop, broker, client, monkeypatch):
    """Those that had to wait are read first in the next turn."""
    monkeypatch.setattr("jsonqueue.broker.loop._TURN_MAX_BYTES", 1)
    peers = [client() for _ in range(3)]
    for turn in range(3):
        for peer in peers:
            peer.post(encode(Write(turn, [])))
        loop.turn(1000)
    served = {peer for peer, event in broker.heard if isinstance(event, Event)}
    assert served == {1, 2, 3}


def test_draining_answers_what_came_before_the_stop(loop, broker, client):
    """A broker that is told to stop serves what is already in its Pipes."""
    one, two = client(), client()
    one.post(encode(Write(1, [])))
    two.post(encode(Write(2, [])))
    loop.drain(1000)
    assert one.receive(0) == [encode(Written(1, number=1))]
    assert two.receive(0) == [encode(Written(2, number=1))]


def test_draining_writes_out_large_answers(loop, broker, client):
    """An answer that does not fit at once is not cut short by the stop, as long as its peer reads."""
    broker.padding = "x" * 5_000_000
    peer = client(pending_max=1)
    peer.post(encode(Write(1, [])))
    frames = []
    reader = threading.Thread(target=lambda: frames.extend(peer.receive(5)))
    reader.start()
    loop.drain(5000)
    reader.join()
    assert frames == [encode(Written(1, number=1, durability=broker.padding))]


def test_draining_does_not_wait_for_a_peer_that_reads_nothing(loop, broker, client):
    """The time for it is bounded by the clock."""
    broker.padding = "x" * 5_000_000
    client(pending_max=1).post(encode(Write(1, [])))
    loop._clock.monotonic_ms = iter([0, 0, *[1001] * 9]).__next__
    loop.drain(1000)
    assert loop.peers == 1


def test_what_is_to_happen_afterwards_happens_after_the_step(loop, broker, client):
    """A cut that the manager asks for covers all that arrived before."""
    peer = client()
    peer.post(encode(Write(1, [])))
    loop.afterwards(lambda: broker.heard.append("cut"))
    loop.turn(1000)
    assert broker.heard == [("attach", 1), (1, Write(1, [])), "cut"]


def test_a_consumer_broker_wakes_for_what_is_due_and_not_before() -> None:
    """To the millisecond, or to look whether the wall clock has jumped; and not at all, while there is nothing to wait for."""
    clock, files, config = FrozenClock(), MemoryFiles(), Config(disk_reserve_bytes=0)
    clock.now_ms = 1_763_000_000_000
    publisher = PublisherBroker(files, clock, config, announce=lambda mark: None)
    publisher.open()
    consumer = ConsumerBroker(files, clock, config, chance=Random(1), wall_look_ms=1_000)
    consumer.open()

    def after(task: str, in_ms: int) -> int | None:
        publisher.step([(1, Write(1, [TaskIn(id=task, data=Raw(b"1"), run_at_ms=clock.now_ms + in_ms)]))], lambda peer, event: None)
        consumer.step([(0, publisher.mark)], lambda peer, event: None)
        due_ms = consumer.next_due_ms()
        return None if due_ms is None else due_ms - clock.now_ms

    assert (consumer.hungry, consumer.next_due_ms()) == (True, None), "it waits for the first mark"
    consumer.step([(0, publisher.mark)], lambda peer, event: None)
    assert (consumer.hungry, consumer.next_due_ms()) == (False, None)
    assert [after("far", 10_000), after("near", 400)] == [1_000, 400]
    clock.now_ms += 700
    assert consumer.next_due_ms() == clock.now_ms
    consumer.step([], lambda peer, event: None)
    assert consumer.next_due_ms() == clock.now_ms + 1_000
    consumer.detach(5)
    assert consumer.next_due_ms() == 0
    consumer.step([], lambda peer, event: None)
    assert consumer.next_due_ms() == clock.now_ms + 1_000
    consumer.close()
    publisher.close()


def test_a_consumer_broker_seals_its_segment_for_a_checkpoint_and_hands_out_nothing_in_its_drain() -> None:
    """Else its logs would grow for ever, and its end would come while a task has only just begun."""
    clock, files, config = FrozenClock(), MemoryFiles(), Config(disk_reserve_bytes=0)
    publisher = PublisherBroker(files, clock, config, announce=lambda mark: None)
    publisher.open()
    consumer = ConsumerBroker(files, clock, config, chance=Random(1))
    consumer.open()
    said: list[Event] = []

    def step(*arrivals: tuple[int, Event]) -> list[str]:
        said.clear()
        consumer.step([(0, publisher.mark), *arrivals], lambda peer, event: said.append(event))
        return [task.id for event in said if isinstance(event, Assign) for task in event.tasks]

    assert step((5, Join("c", 1, 1))) == []
    assert consumer.hungry
    publisher.step([(1, Write(1, [TaskIn(id=task_id, data=Raw(b"1")) for task_id in "ab"]))], lambda peer, event: None)
    assert step() == ["a"]
    cut = consumer.cut()
    assert cut is not None
    assert (cut.progress, cut.published) == (consumer.position, (publisher.mark.number, publisher.mark.epoch))
    assert len([name for name in files.list() if name.startswith("progress-")]) == 2
    assert step((6, Join("d", 2, 0))) == []
    consumer.drain()
    assert step((6, Heartbeat([], [], 1))) == []
    assert (consumer.hungry, consumer.unsettled) == (False, 1)
    consumer.close()
    publisher.close()
    assert not files._handles


def test_a_consumer_broker_ends_also_where_it_never_heard_of_a_mark() -> None:
    """Its sibling did not get up. It drains, and holds nothing."""
    files = MemoryFiles()
    consumer = ConsumerBroker(files, FrozenClock(), Config(disk_reserve_bytes=0), chance=Random(1))
    consumer.open()
    consumer.drain()
    assert (consumer.unsettled, consumer.cut()) == (0, None)
    consumer.close()
    assert not files._handles


class Served:
    """A ConsumerBroker on a queue of these tasks, by a clock that the test moves."""

    def __init__(self, *ids: str, files: MemoryFiles | None = None) -> None:
        self.files, self.clock, self.alive = files or MemoryFiles(), FrozenClock(), True
        config = Config(lease_ms=1_000, disk_reserve_bytes=0)
        self.publisher = PublisherBroker(self.files, self.clock, config, announce=lambda mark: None)
        self.publisher.open()
        self.publish(*ids)
        self.consumer = ConsumerBroker(self.files, self.clock, config, chance=Random(1), is_alive=lambda pid: self.alive)
        self.consumer.open()

    def publish(self, *ids: str) -> None:
        if ids:
            self.publisher.step([(1, Write(1, [TaskIn(id=task_id, data=Raw(b"1")) for task_id in ids]))], lambda peer, event: None)

    def step(self, *arrivals: tuple[int, Event]) -> list[tuple[int, Event]]:
        said: list[tuple[int, Event]] = []
        self.consumer.step([(0, self.publisher.mark), *arrivals], lambda peer, event: said.append((peer, event)))
        return said

    def assigned(self, *arrivals: tuple[int, Event]) -> list[tuple[int, str]]:
        return [(peer, task.id) for peer, event in self.step(*arrivals) if isinstance(event, Assign) for task in event.tasks]

    def close(self) -> None:
        self.consumer.close()
        self.publisher.close()


def test_who_is_gone_holds_nothing_and_is_told_nothing() -> None:
    """In the next turn, not a lease later."""
    served = Served("a")
    assert served.assigned((5, Join("c", 1, 1)), (8, Watch(1, ["a"]))) == [(5, "a")]
    served.consumer.detach(5)
    served.consumer.detach(8)
    said = served.step((6, Join("d", 2, 1)))
    (task,) = [task for _, event in said if isinstance(event, Assign) for task in event.tasks]
    said = served.step((6, Complete(1, ["a"], [task.token], [Raw(b"1")], 1)))
    assert [peer for peer, _ in said] == [6]
    served.close()


def test_a_delivery_that_goes_out_at_once_renews_no_other() -> None:
    """Who is given one task after the other, and says nothing, loses each a lease after it was given."""
    served = Served("a")
    assert served.assigned((5, Join("c", 1, 2))) == [(5, "a")]
    served.clock.now_ms += 500
    served.publish("b")
    assert served.assigned() == [(5, "b")]
    served.clock.now_ms += 500
    assert [event.ids for _, event in served.step() if isinstance(event, Revoke)] == [["a"]]
    served.close()


def test_who_died_with_the_broker_before_is_looked_for_again_and_again() -> None:
    """It lives at the first look, and at the second it does not: its task goes on then, and not when its lease is over."""
    before = Served("a")
    assert before.assigned((5, Join("c", 1, 1))) == [(5, "a")]
    before.close()
    served = Served(files=before.files)
    assert served.assigned((6, Join("d", 2, 1))) == []
    assert served.consumer.next_due_ms() == served.clock.now_ms + 200
    served.alive = False
    served.clock.now_ms += 200
    assert served.assigned() == [(6, "a")]
    served.close()
