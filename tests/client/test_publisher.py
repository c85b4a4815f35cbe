"""A Publisher and its three outcomes, against a broker that the test plays."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import orjson
import pytest

from client.fakes import PATIENCE_S, FakeBroker, Peer, Side
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.handle import TaskHandle
from jsonqueue.client.publisher import Publisher, PublishSummary
from jsonqueue.client.window import WINDOW
from jsonqueue.clock import SystemClock
from jsonqueue.config import CONFIG_FILE, Config
from jsonqueue.errors import BrokerUnavailable, ConnectionClosed, InvalidTask, PublishRejected, PublishUnknown, TaskNotFound, TasksRejected
from jsonqueue.event import EventOwner, Refusal, Write, Written
from jsonqueue.storage.locks import hold
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import TaskIn, TaskStatus


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    broker = FakeBroker(EventOwner.PUBLISHER, Config(payload_max_bytes=100))
    yield broker
    broker.close()


class StillClock(SystemClock):
    """No time passes while a batch is filled, however slow the machine."""

    def monotonic_ms(self) -> int:
        return 0


@pytest.fixture
def publisher(broker: FakeBroker, tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "q", connect=broker.connect, chance=Random(7), timeout=5, clock=StillClock()) as publisher:
        yield publisher


def acknowledge(peer: Peer, *, duplicates: list[int] | None = None, refused: list[Refusal] | None = None) -> Write:
    write = peer.hear(Write)
    peer.say(Written(write.request, 1, duplicates or [], refused or []))
    return write


# ── one ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_publish_returns_once_it_is_acknowledged(broker: FakeBroker, publisher: Publisher) -> None:
    """Not before: the handle means that the task is durable."""
    side = Side(lambda: publisher.publish({"a": 1}, id="a", priority=3, attempts_max=5, retry="never", after="b"))
    peer = broker.accept()
    write = peer.hear(Write)
    (task,) = write.tasks
    assert (task.id, bytes(task.data), task.priority, task.attempts_max, task.after) == ("a", b'{"a":1}', 3, 5, ("b",))
    assert side.running
    peer.say(Written(write.request, 1))
    handle = side.result()
    assert (handle.id, handle.duplicate) == ("a", False)


@pytest.mark.parametrize("timeout", [30 * 86_400.0, float("inf"), None], ids=["a month", "infinite", "for ever"])
def test_a_very_long_patience_is_one(broker: FakeBroker, tmp_path: Path, timeout: Any) -> None:
    """The kernel's own waits end at 24 days, and know no infinity."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect, timeout=timeout)
    side = Side(lambda: publisher.publish(1, id="a"))
    peer = broker.accept()
    peer.say(Written(peer.hear(Write).request, 1))
    assert side.result().id == "a"
    publisher.close()


@pytest.mark.parametrize(("timeout", "error"), [(float("nan"), ValueError), (-1, ValueError), ("5", TypeError), (timedelta(1), TypeError)])
def test_a_patience_that_is_none_is_refused_at_once(tmp_path: Path, timeout: Any, error: type[Exception]) -> None:
    """And not by the first publish, or never."""
    with pytest.raises(error, match="timeout is "):
        Publisher(tmp_path, timeout=timeout)


@pytest.mark.parametrize("data", [0, "", [], None, False])
def test_a_falsy_payload_is_published(broker: FakeBroker, publisher: Publisher, data: Any) -> None:
    side = Side(lambda: publisher.publish(data))
    assert acknowledge(broker.accept()).tasks[0].data is not None
    side.result()


def test_a_whole_task_brings_its_own_options(broker: FakeBroker, publisher: Publisher) -> None:
    side = Side(lambda: publisher.publish(TaskIn(data=1, id="x", priority=2)))
    assert acknowledge(broker.accept()).tasks[0].priority == 2
    assert side.result().id == "x"


def test_a_known_id_is_a_duplicate(broker: FakeBroker, publisher: Publisher) -> None:
    """No error: publishing is idempotent, and the handle is as good as the first one."""
    side = Side(lambda: publisher.publish(1, id="a"))
    acknowledge(broker.accept(), duplicates=[0])
    assert side.result().duplicate


def test_a_rejection_says_why(broker: FakeBroker, publisher: Publisher) -> None:
    """The task is certainly not stored."""
    side = Side(lambda: publisher.publish(1, id="a"))
    acknowledge(broker.accept(), refused=[Refusal(0, "the queue is full")])
    with pytest.raises(PublishRejected, match="the queue is full") as caught:
        side.result()
    assert caught.value.task_id == "a"


def test_what_is_invalid_never_reaches_the_broker(broker: FakeBroker, publisher: Publisher) -> None:
    """The limits are those that the queue told at registration."""
    with pytest.raises(InvalidTask, match="this queue takes 100"):
        publisher.publish("x" * 100)
    with pytest.raises(InvalidTask, match="invalid id"):
        publisher.publish(1, id="a b")
    assert broker.accept().silent()


def test_a_fragment_that_is_no_json_never_reaches_the_broker(broker: FakeBroker, publisher: Publisher) -> None:
    """orjson writes an ``orjson.Fragment`` as it stands: no broker could read the frame, and each would hang up on it."""
    with pytest.raises(InvalidTask, match=r"the payload is no JSON: .*malformed"):
        publisher.publish({"a": orjson.Fragment(b"{broken")})
    with pytest.raises(InvalidTask, match=r"the payload is no JSON: .*trailing characters"):
        publisher.publish(orjson.Fragment(b'1,"priority":9'))
    assert broker.accept().silent()


def test_the_folder_stays_the_same_when_the_program_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon goes to ``/``; what it then published would be acknowledged, and lie in a queue there that nobody serves."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    with Publisher("q") as publisher:
        monkeypatch.chdir(there)
        handle = publisher.publish(1)
    assert handle.status() == "pending"
    assert (list(here.iterdir()), list(there.iterdir())) == ([here / "q"], [])


def test_a_tilde_is_a_folder_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is to a BrokerManager, and to whoever looks for one: what is appended without one must not go elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Publisher("~/q") as publisher:
        publisher.publish(1)
    assert list(tmp_path.iterdir()) == [tmp_path / "~"]


@pytest.mark.parametrize("queue", [None, b"q", 5])
def test_what_is_no_folder_is_refused_by_name(queue: Any) -> None:
    with pytest.raises(TypeError, match=f"{queue!r} is no queue folder: give its path"):
        Publisher(queue)


@pytest.mark.parametrize("made", [Publisher, BrokerManager, lambda queue: Consumer(queue, len), lambda queue: TaskHandle(queue, "a")])
def test_an_empty_name_is_no_folder(made: Callable[[str], Any]) -> None:
    """A variable without a value: as a path it would be the current folder, which the command line does not take it for either."""
    with pytest.raises(ValueError, match=r"^an empty name is no queue folder \(the current one is '\.'\)"):
        made("")


def test_a_lost_connection_is_bridged_under_the_same_id(broker: FakeBroker, publisher: Publisher) -> None:
    """Whether the first write was stored nobody knows; the second one settles it. An id of our own cannot be somebody else's duplicate."""
    side = Side(lambda: publisher.publish(1))
    first = broker.accept()
    lost = first.hear(Write)
    first.hang_up()
    again = acknowledge(broker.accept(), duplicates=[0])
    assert again.tasks[0].id == lost.tasks[0].id
    assert not side.result().duplicate


def test_a_broker_that_does_not_answer_leaves_the_outcome_unknown(broker: FakeBroker, tmp_path: Path) -> None:
    """After the timeout, and not forgotten: the error names the id to publish again."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect, timeout=0.05)
    with pytest.raises(PublishUnknown) as caught:
        publisher.publish(1, id="a")
    assert caught.value.task_ids == ("a",)
    assert broker.accept().hear(Write).tasks[0].id == "a"


class HandClock(SystemClock):
    now_ms = 0

    def monotonic_ms(self) -> int:
        return self.now_ms


def test_a_connection_that_breaks_late_begins_no_second_patience(broker: FakeBroker, tmp_path: Path) -> None:
    """Seconds without an answer are counted from the first question on: a publish took up to twice as long to give up."""
    clock = HandClock()
    with Publisher(tmp_path / "q", connect=broker.connect, timeout=5, clock=clock) as publisher:
        side = Side(lambda: publisher.publish(0))
        peer = broker.accept()
        acknowledge(peer)
        side.result()
        side = Side(lambda: publisher.publish(1, id="a"))
        peer.hear(Write)
        clock.now_ms, broker.up = 5_001, False
        with hold(tmp_path / "q", "published"):
            peer.hang_up()
            with pytest.raises(PublishUnknown) as unknown:
                side.result()
        assert unknown.value.task_ids == ("a",)


def test_a_broker_that_does_not_read_for_its_time_is_given_no_second_one(
    broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a question was not taken as a whole leaves no doubt, and took the time all the same."""
    clock, waits = HandClock(), []

    def connect(timeout: float) -> tuple[Pipe, Config]:
        broker.up = timeout > 0  # No manager answers in no time.
        return broker.connect(timeout)

    def full(pipe: Pipe, frame: bytes, *, timeout: float | None = None) -> None:
        assert timeout is not None
        waits.append(timeout)
        clock.now_ms += round(timeout * 1000)
        raise ConnectionClosed(f"the other end did not read for {timeout:g} s")

    with Publisher(tmp_path / "q", connect=connect, timeout=5, clock=clock) as publisher:
        side = Side(lambda: publisher.publish(0))
        acknowledge(broker.accept())
        side.result()
        monkeypatch.setattr(Pipe, "send", full)
        with hold(tmp_path / "q", "published"), pytest.raises(BrokerUnavailable):
            publisher.publish(1)
        assert sum(waits) == 5


def test_threads_share_one_connection_and_get_their_own_answers(broker: FakeBroker, publisher: Publisher) -> None:
    """Several writes are in flight at once, answered in any order."""
    sides = {name: Side(lambda name=name: publisher.publish(1, id=name)) for name in "abcdefgh"}  # type: ignore[misc]
    peer = broker.accept()
    writes = [peer.hear(Write) for _ in sides]
    for write in reversed(writes):
        peer.say(Written(write.request, 1, [0] if write.tasks[0].id in "aceg" else []))
    for name, side in sides.items():
        assert (side.result().id, side.result().duplicate) == (name, name in "aceg")


def test_a_forked_child_makes_other_ids_on_a_connection_of_its_own(broker: FakeBroker, tmp_path: Path) -> None:
    """It would otherwise count on with its parent's prefix, and write between its parent's frames."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect)
    side = Side(lambda: publisher.publish(1))
    mine = acknowledge(broker.accept()).tasks[0].id
    side.result()
    publisher._pid = os.getpid() + 1  # as a child sees it
    side = Side(lambda: publisher.publish(1))
    theirs = acknowledge(broker.accept()).tasks[0].id
    side.result()
    assert mine.partition("-")[0] != theirs.partition("-")[0]
    publisher._inherited.close()
    publisher.close()


class Dice(Random):
    """Does something before it is thrown."""

    before: Callable[[], object] = staticmethod(lambda: None)

    def choices(self, *arguments: Any, **options: Any) -> Any:
        self.before()
        return super().choices(*arguments, **options)


def test_threads_of_a_forked_child_that_publish_at_once_go_neither_by_their_parents_connection_nor_by_its_ids(
    broker: FakeBroker, tmp_path: Path
) -> None:
    """The second one found that the first had noticed the fork, and what the parent's is not replaced yet. Of two tasks of one id, one is
    taken for a duplicate, and lost."""
    dice = Dice(7)
    publisher = Publisher(tmp_path / "q", connect=broker.connect, chance=dice)
    side = Side(lambda: publisher.publish(1))
    parents = broker.accept()
    mine = acknowledge(parents).tasks[0].id
    side.result()
    meanwhile: SimpleQueue[tuple[Side, bool]] = SimpleQueue()

    def let_another_in() -> None:
        del dice.before
        side = Side(lambda: publisher.publish(3))
        meanwhile.put((side, parents.silent(0.2)))

    dice.before = let_another_in
    publisher._pid = os.getpid() + 1  # as a child sees it
    first = Side(lambda: publisher.publish(2))
    second, silent = meanwhile.get(timeout=PATIENCE_S)
    assert silent, "it went by its parent's connection"
    peer = broker.accept()
    ids = {acknowledge(peer).tasks[0].id for _ in range(2)}
    first.result()
    second.result()
    assert len(ids) == 2
    assert mine.partition("-")[0] not in {drawn.partition("-")[0] for drawn in ids}
    publisher._inherited.close()
    publisher.close()


def test_it_can_be_handed_to_another_process(tmp_path: Path) -> None:
    """As ``multiprocessing`` hands over an argument: the copy has ids and a connection of its own, however busy the first one is."""
    with Publisher(tmp_path, timeout=7) as publisher:
        publisher.publish(1)
        copied = copy.copy(publisher)  # by __reduce__, as pickling does
        with copied:
            assert copied.publish(2).queue_dir == tmp_path
        publisher.publish(3)
    assert (copied.queue_dir, copied.timeout) == (tmp_path, 7)
    assert copied._exchange is not publisher._exchange
    assert [bytes(task.data) for task in inspect(tmp_path).state.tasks.values()] == [b"1", b"2", b"3"]


def test_a_forked_child_that_closes_does_not_hang_up_on_its_parent(broker: FakeBroker, tmp_path: Path) -> None:
    """As at the end of a ``with`` block that both leave."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect)
    side = Side(lambda: publisher.publish(1))
    peer = broker.accept()
    acknowledge(peer)
    side.result()
    publisher._pid = os.getpid() + 1  # as a child sees it
    publisher.close()
    assert peer.silent()  # hung up, it would say so
    publisher._inherited.close()


# ── many ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(peer: Peer, batches: int) -> list[Write]:
    return [acknowledge(peer) for _ in range(batches)]


def test_many_tasks_go_in_batches(broker: FakeBroker, publisher: Publisher) -> None:
    """In order; ids are made up where none are given, and can be asked for afterwards."""
    told: list[int] = []
    side = Side(lambda: publisher.publish_many([0, TaskIn(data=1, id="one"), 2, 3, 4], batch_max=2, on_progress=told.append))
    writes = serve(broker.accept(), 3)
    assert [bytes(task.data) for write in writes for task in write.tasks] == [b"0", b"1", b"2", b"3", b"4"]
    summary: PublishSummary = side.result()
    assert (summary.published, summary.duplicates) == (5, 0)
    assert list(summary.ids) == [task.id for write in writes for task in write.tasks]
    assert summary.ids[1] == "one"
    assert summary.ids[-1] == summary.ids[4:][0]
    assert told == [2, 4, 5]


def test_nothing_at_all_is_published_without_a_word(broker: FakeBroker, publisher: Publisher) -> None:
    assert publisher.publish_many([]).published == 0


def test_several_batches_are_in_flight_and_no_more_are_read_meanwhile(broker: FakeBroker, publisher: Publisher) -> None:
    """The iterable may be endless: what is read of it is what is in flight, and one batch."""
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    side = Side(lambda: publisher.publish_many(numbers(), batch_max=1))
    peer = broker.accept()
    first = [peer.hear(Write) for _ in range(WINDOW)]
    assert len(read) == WINDOW
    for write in first:
        peer.say(Written(write.request, 1))
    serve(peer, 100 - WINDOW)
    assert side.result().published == 100


def test_large_payloads_make_small_batches(tmp_path: Path) -> None:
    """A batch is bounded in bytes, too."""
    broker = FakeBroker(EventOwner.PUBLISHER)
    publisher = Publisher(tmp_path / "q", connect=broker.connect, clock=StillClock())
    side = Side(lambda: publisher.publish_many(["x" * 600_000] * 4))
    assert [len(write.tasks) for write in serve(broker.accept(), 2)] == [2, 2]
    side.result()
    publisher.close()
    broker.close()


class LeapingClock(SystemClock):
    """Ten milliseconds pass at each look."""

    def __init__(self) -> None:
        self._now_ms = 0

    def monotonic_ms(self) -> int:
        self._now_ms += 10
        return self._now_ms


def test_a_frame_that_no_broker_takes_goes_in_parts(broker: FakeBroker, publisher: Publisher) -> None:
    """However many tasks are to go together, and whatever they wait for. What is too large by itself is refused with the reason."""
    after = tuple(f"{number:0>128}" for number in range(40_000))  # 131 bytes each, and a frame is 4 MiB here
    tasks = [TaskIn(data=number, id=f"t{number}", after=after[:12_000]) for number in range(5)]
    tasks[3:3] = [TaskIn(data=0, id="vast", after=after)]
    side = Side(lambda: publisher.publish_many(tasks, batch_max=100))
    peer = broker.accept()
    heard = [[task.id for task in acknowledge(peer).tasks] for _ in range(3)]
    assert heard == [["t0"], ["t1", "t2"], ["t3", "t4"]]
    with pytest.raises(TasksRejected, match=r"it comes to a frame of 5,240,\d+ bytes, and the broker takes 4,194,404") as caught:
        side.result()
    assert [(rejection.index, rejection.task_id) for rejection in caught.value.rejected] == [(3, "vast")]
    assert caught.value.published == 5


def test_what_was_sent_before_and_is_too_large_by_now_leaves_the_outcome_unknown(broker: FakeBroker, publisher: Publisher) -> None:
    """The settings were changed between two brokers: the first one may have stored it."""
    broker.config = Config(payload_max_bytes=2**23)
    side = Side(lambda: publisher.publish("x" * 5_000_000, id="a"))
    peer = broker.accept()
    peer.hear(Write)
    broker.config = Config(payload_max_bytes=100)
    peer.hang_up()
    with pytest.raises(PublishUnknown, match=r"it comes to a frame of 5,000,0\d+ bytes, and the broker takes 4,194,404"):
        side.result()


def test_a_batch_does_not_wait_long_for_more(broker: FakeBroker, tmp_path: Path) -> None:
    """A source that gives a task now and then must not hold back a thousand."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect, clock=LeapingClock())
    side = Side(lambda: publisher.publish_many(range(12)))
    assert [len(write.tasks) for write in serve(broker.accept(), 2)] == [6, 6]
    assert side.result().published == 12
    publisher.close()


def test_what_was_in_flight_is_sent_again_in_order(broker: FakeBroker, publisher: Publisher) -> None:
    """Nothing is lost and nothing doubled: the ids are the same."""
    side = Side(lambda: publisher.publish_many(range(4), batch_max=1))
    first = broker.accept()
    writes = [first.hear(Write) for _ in range(4)]
    first.say(Written(writes[0].request, 1))
    first.hang_up()
    again = serve(broker.accept(), 3)
    assert [write.tasks[0].id for write in again] == [write.tasks[0].id for write in writes[1:]]
    assert side.result().published == 4


def test_bad_tasks_do_not_stop_the_good_ones_and_are_all_named(broker: FakeBroker, publisher: Publisher) -> None:
    """Some are refused here, some by the broker; each is listed with its place in what was given."""
    tasks = [1, {2}, TaskIn(data=3, id="no good"), TaskIn(data=4, id="four"), 5]
    side = Side(lambda: publisher.publish_many(tasks))
    acknowledge(broker.accept(), refused=[Refusal(1, "it would wait for 'x'")])
    with pytest.raises(TasksRejected) as caught:
        side.result()
    assert [(rejection.index, rejection.reason[:8]) for rejection in caught.value.rejected] == [
        (1, "the payl"),
        (2, "invalid "),
        (3, "it would"),
    ]
    assert (caught.value.published, caught.value.count, caught.value.stopped_after) == (2, 3, None)


@pytest.mark.parametrize("options", [{"id": "a"}, {"priority": 4}, {"delay": 0}, {"after": "b"}, {"retry": "never"}, {"attempts_max": 1}])
def test_a_ready_made_task_takes_no_further_options(publisher: Publisher, options: dict[str, Any]) -> None:
    """They would count for nothing."""
    with pytest.raises(InvalidTask, match="brings its own options"):
        publisher.publish(TaskIn(data=1), **options)


def payloads_written(broker: FakeBroker) -> Iterator[list[bytes]]:
    """The payloads of each write, acknowledged."""
    peer = broker.accept()
    while True:
        yield [bytes(task.data) for task in acknowledge(peer).tasks]


def test_fragments_that_are_no_json_do_not_stop_the_others(broker: FakeBroker, publisher: Publisher) -> None:
    """Among bare values too, where what is around one could make an option of it: a broker gets to see none of them."""
    texts = [b"1", b"{broken", b"3", b'4,"priority":9', b'5},{"id":"x","data":5', b"6"]
    side = Side(lambda: publisher.publish_many(map(orjson.Fragment, texts), batch_max=2))
    assert list(islice(payloads_written(broker), 2)) == [[b"1", b"3"], [b"6"]]
    with pytest.raises(TasksRejected, match="the payload is no JSON") as caught:
        side.result()
    assert [rejection.index for rejection in caught.value.rejected] == [1, 3, 4]
    assert (caught.value.published, caught.value.count, caught.value.stopped_after) == (3, 3, None)


@pytest.mark.parametrize("one", [{"a": 1}, "text", b"bytes", bytearray(b"x"), TaskIn(data=1)])
def test_one_task_is_not_many(publisher: Publisher, one: Any) -> None:
    """A dict's keys and a text's letters were published, a task each."""
    with pytest.raises(InvalidTask, match=f"publish_many was given a {type(one).__name__}") as caught:
        publisher.publish_many(one)
    assert caught.value.hint.startswith("publish() takes one payload")


def test_what_is_no_iterable_says_so(publisher: Publisher) -> None:
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        publisher.publish_many(5)  # type: ignore[arg-type]


def test_no_more_is_read_where_the_queue_takes_no_more(broker: FakeBroker, publisher: Publisher) -> None:
    """The rest is its owner's, also of a generator."""
    rest = (number for number in range(100))
    side = Side(lambda: publisher.publish_many(rest, batch_max=2))
    peer = broker.accept()
    for _ in range(WINDOW):
        acknowledge(peer, refused=[Refusal(0, "full"), Refusal(1, "full")])
    with pytest.raises(TasksRejected) as caught:
        side.result()
    assert next(rest) == caught.value.stopped_after


def test_a_queue_that_refuses_a_whole_batch_ends_it(broker: FakeBroker, publisher: Publisher) -> None:
    """It is full: to read on would only turn the rest into rejections. The error says how far it got."""
    side = Side(lambda: publisher.publish_many(iter(range(10_000)), batch_max=2))
    peer = broker.accept()
    writes = [peer.hear(Write) for _ in range(WINDOW)]
    peer.say(Written(writes[0].request, 1))
    writes.append(peer.hear(Write))
    for write in writes[1:]:
        peer.say(Written(write.request, 1, [], [Refusal(0, "full"), Refusal(1, "full")]))
    with pytest.raises(TasksRejected, match="no more were read") as caught:
        side.result()
    assert (caught.value.published, caught.value.count) == (2, 2 * WINDOW)
    assert caught.value.stopped_after == 2 * (WINDOW + 1)


def test_a_batch_of_which_each_task_waits_for_what_is_not_there_stops_no_other(tmp_path: Path) -> None:
    """That is the fault of these tasks; it was taken for a queue that refuses all, and nothing behind them was read."""
    tasks = [TaskIn(data=n, after=("nope",)) for n in range(20)] + [TaskIn(data=n) for n in range(20)]
    with Publisher(tmp_path / "q") as publisher, pytest.raises(TasksRejected) as caught:
        publisher.publish_many(iter(tasks), batch_max=2)
    assert (caught.value.published, caught.value.count, caught.value.stopped_after) == (20, 20, None)


def test_a_full_queue_ends_it_though_each_task_waits_for_another(tmp_path: Path) -> None:
    """One that is there: so it is not for its own sake that it is refused. The iterable may have no end."""
    (tmp_path / "q").mkdir(mode=0o700)
    (tmp_path / "q" / CONFIG_FILE).write_text("tasks_max = 1\n")
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(0, id="a")
        with pytest.raises(TasksRejected, match="the queue is full") as caught:
            publisher.publish_many((TaskIn(data=n, after=("a",)) for n in range(1_000)), batch_max=2)
    assert caught.value.stopped_after is not None
    assert caught.value.stopped_after < 1_000


def test_duplicates_are_counted(broker: FakeBroker, publisher: Publisher) -> None:
    side = Side(lambda: publisher.publish_many([TaskIn(data=1, id="a"), TaskIn(data=1, id="a"), 2]))
    acknowledge(broker.accept(), duplicates=[1])
    assert side.result()[:2] == (2, 1)


def test_an_unknown_outcome_of_many_says_how_many_are_certain(broker: FakeBroker, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "q", connect=broker.connect, timeout=1)
    told: list[list[str]] = []
    side = Side(lambda: publisher.publish_many([TaskIn(data=1, id=name) for name in "abc"], batch_max=1, on_acknowledged=told.append))
    acknowledge(broker.accept())
    with pytest.raises(PublishUnknown) as caught:
        side.result()
    assert caught.value.published == 1
    assert caught.value.task_ids == ("b", "c")
    assert told == [["a"]]


def test_who_asks_for_it_is_told_what_is_acknowledged(tmp_path: Path) -> None:
    """Batch by batch, and before the progress: what was there already, too, and nothing that is refused, by the publisher or the queue."""
    told: list[Any] = []
    tasks = [TaskIn(data=1, id="a"), TaskIn(data={1}, id="b"), TaskIn(data=1, id="c", after=("gone",)), TaskIn(data=1, id="d")]
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
        with pytest.raises(TasksRejected, match="2 tasks were rejected"):
            publisher.publish_many(tasks, batch_max=2, on_progress=told.append, on_acknowledged=told.append)
    assert told == [["a"], 3, ["d"], 4]


def broken_off(*tasks: Any, error: BaseException) -> Iterator[Any]:
    yield from tasks
    raise error


def test_what_an_iterable_gave_before_it_broke_is_published(broker: FakeBroker, publisher: Publisher) -> None:
    """The batch that was not full too; and all of it is answered before the error is raised, which counts it."""
    error = ValueError("line 6 is no good")
    tasks = [TaskIn(data=1, id="a"), 2, 3, {4}, 5]
    side = Side(lambda: publisher.publish_many(broken_off(*tasks, error=error), batch_max=3))
    peer = broker.accept()
    acknowledge(peer, duplicates=[0])
    assert [bytes(task.data) for task in acknowledge(peer).tasks] == [b"5"]
    with pytest.raises(ValueError, match="line 6") as caught:
        side.result()
    assert caught.value is error
    (note,) = error.__notes__
    assert note.startswith("jsonqueue: the iterable had given 5 tasks before: 3 published, 1 known already, 1 rejected (number 4, ")


def test_an_iterable_that_breaks_at_once_has_published_nothing(broker: FakeBroker, publisher: Publisher) -> None:
    with pytest.raises(ValueError, match="no") as caught:
        publisher.publish_many(broken_off(error=ValueError("no")))
    assert caught.value.__notes__ == ["jsonqueue: the iterable had given 0 tasks before: 0 published"]


def test_what_cannot_be_published_after_an_iterable_broke_is_said_first(broker: FakeBroker, tmp_path: Path) -> None:
    """That some of it is unknown is more to know than where the iterable broke, which is said beside it."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect, timeout=0.1)
    with pytest.raises(PublishUnknown) as caught:
        publisher.publish_many(broken_off(1, 2, error=ValueError("line 3")))
    assert "jsonqueue: before that, the iterable raised ValueError('line 3')" in caught.value.__notes__


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupted_iterable_publishes_no_more_and_says_what_is_certain(
    broker: FakeBroker, publisher: Publisher, error: BaseException
) -> None:
    """What was not sent is not; what was sent is answered to nobody, and kept for nobody."""

    peer = Side(lambda: acknowledge(broker.accept()))
    with pytest.raises(type(error)) as caught:
        publisher.publish_many(broken_off(*range(2 * WINDOW + 1), error=error), batch_max=2)
    peer.result()
    assert caught.value.__notes__ == [
        "jsonqueue: the first 2 tasks are answered (2 published); number 3 to 16 may be published or not; no other is published"
    ]
    line = publisher._exchange.line_at_hand
    assert line is not None
    assert not line._answers


@pytest.mark.parametrize("told", ["on_progress", "on_acknowledged"])
@pytest.mark.parametrize("error", [TaskNotFound("elsewhere"), PublishUnknown(("of another queue",), cause="no")])
def test_an_error_of_ours_that_who_is_told_of_progress_raises_is_taken_for_theirs(tmp_path: Path, error: Exception, told: str) -> None:
    """Of what is stored and not answered yet it was said that it is not published."""

    def tell(what: object) -> None:
        raise error

    with Publisher(tmp_path / "q") as publisher, pytest.raises(type(error)) as caught:
        publisher.publish_many(range(6), batch_max=2, **{told: tell})
    assert len(inspect(tmp_path / "q").state.tasks) == 6
    assert caught.value.__notes__[-1] == (
        "jsonqueue: the first 2 tasks are answered (2 published); number 3 to 6 may be published or not; no other is published"
    )


# ── without a broker ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_broker_a_publish_appends_by_itself(broker: FakeBroker, publisher: Publisher) -> None:
    """The folder is made if need be; the task is found in its files."""
    broker.up = False
    handle = publisher.publish({"a": 1}, id="a")
    assert not handle.duplicate
    assert publisher.publish({"a": 1}, id="a").duplicate
    assert publisher.publish_many(range(3000), batch_max=100).published == 3000
    tasks = inspect(publisher.queue_dir).state.tasks
    assert len(tasks) == 3001
    assert bytes(tasks["a"].data) == b'{"a":1}'
    assert handle.status() is TaskStatus.PENDING


def test_without_a_broker_the_folders_own_limits_hold(broker: FakeBroker, publisher: Publisher) -> None:
    """They are read from its jsonqueue.toml."""
    broker.up = False
    publisher.publish(1)
    (publisher.queue_dir / "jsonqueue.toml").write_text("payload_max_bytes = 5\n")
    with pytest.raises(InvalidTask, match="takes 5"):
        publisher.publish("123456")
    assert publisher.publish("123").id


@pytest.mark.parametrize("texts", [[b"{broken"], [b"1,2"], [b"[1", b"2]"], [b'1},{"id":"x","data":2']])
def test_without_a_broker_fragments_that_are_no_json_do_not_get_into_the_log(
    broker: FakeBroker, publisher: Publisher, texts: list[bytes]
) -> None:
    """Nobody could read it any more: some of these make JSON of what is around them, and no task of it."""
    broker.up = False
    with pytest.raises(TasksRejected, match="the payload is no JSON") as caught:
        publisher.publish_many([TaskIn(data="before", id="a"), *map(orjson.Fragment, texts), TaskIn(data="after", id="b")])
    assert (caught.value.published, caught.value.count) == (2, len(texts))
    publisher.publish("later", id="c")
    assert list(inspect(publisher.queue_dir).state.tasks) == ["a", "b", "c"]


def test_a_held_log_and_no_broker_is_said_when_the_time_is_up(broker: FakeBroker, tmp_path: Path) -> None:
    """Certainly not stored: that is not the unknown outcome."""
    broker.up = False
    publisher = Publisher(tmp_path / "q", connect=broker.connect, timeout=0.2)
    publisher.publish(1)
    with hold(tmp_path / "q", "published"), pytest.raises(BrokerUnavailable):
        publisher.publish(2)
    assert len(inspect(tmp_path / "q").state.tasks) == 1


def test_what_could_not_be_sent_as_a_whole_is_certainly_not_stored(broker: FakeBroker, tmp_path: Path) -> None:
    """The broker went before the question: the outcome is not unknown."""
    publisher = Publisher(tmp_path / "q", connect=broker.connect)
    side = Side(lambda: publisher.publish(1))
    peer = broker.accept()
    acknowledge(peer)
    side.result()
    publisher.timeout = 0.05
    broker.up = False
    peer.hang_up()
    with hold(tmp_path / "q", "published"), pytest.raises(BrokerUnavailable):
        publisher.publish(2)
    publisher.close()


def test_while_somebody_holds_the_log_it_looks_for_a_broker_in_turn(broker: FakeBroker, publisher: Publisher) -> None:
    """Brokers that are just starting hold the log before they answer."""
    broker.up = False
    publisher.publish(1, id="a")
    with hold(publisher.queue_dir, "published"):
        side = Side(lambda: publisher.publish(2, id="b"))
        broker.up = True
        acknowledge(broker.accept())
        assert side.result().id == "b"
    assert list(inspect(publisher.queue_dir).state.tasks) == ["a"]


def test_what_was_in_flight_when_the_brokers_went_is_appended(broker: FakeBroker, publisher: Publisher) -> None:
    """The same ids, by another way."""
    side = Side(lambda: publisher.publish(1, id="a"))
    peer = broker.accept()
    peer.hear(Write)
    broker.up = False
    peer.hang_up()
    side.result()
    assert list(inspect(publisher.queue_dir).state.tasks) == ["a"]
