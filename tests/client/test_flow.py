"""What a flow says when its patience is over; time, the wire and the log are the test's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from client.fakes import FakeBroker, Side
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client import direct
from jsonqueue.client.exchange import Exchange, Line, NoAnswer
from jsonqueue.client.flow import Flow
from jsonqueue.client.patience import Patience
from jsonqueue.client.publisher import Publisher
from jsonqueue.client.window import WINDOW, Batch
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, BrokerUnavailable, ConnectionClosed, CorruptQueue, FolderRefused, PublishUnknown, StorageError
from jsonqueue.event import EventOwner, Write, Written, decoder_for
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import TaskIn

direct_append = direct.append
FULL = "the publisher broker is not up: it waits for room on the disk"


class HandClock:
    now_ms = 0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def pass_by(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


class Manager:
    """Says ``words`` to the first who call, one a call; to all others nothing for as long as they wait."""

    def __init__(self, clock: HandClock, *words: str | Callable[[float], tuple[Pipe, Config]]) -> None:
        self.clock, self.words = clock, list(words)

    def connect(self, timeout: float) -> tuple[Pipe, Config]:
        if not self.words:
            self.clock.pass_by(timeout)
            raise BrokerUnavailable("q", cause="the manager did not answer in time", silent=True)
        word = self.words.pop(0)
        if isinstance(word, str):
            raise BrokerUnavailable("q", cause=word)
        return word(timeout)


def flow_over(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """One task is on its way; somebody else holds the log."""
    monkeypatch.setattr(direct, "append", lambda *_, **__: None)
    flow = Flow(
        Path("q"),
        Exchange(Path("q"), manager.connect, decoder_for(EventOwner.PUBLISHER_BROKER)),
        lambda *_: None,
        patience=Patience(30.0, manager.clock),
        clock=manager.clock,
        pause=manager.clock.pass_by,
    )
    flow.push(Batch([TaskIn(id="a", data=Raw(b"1"))], [0], 1))
    return flow


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FULL], f"({FULL})"),
        ([FULL, "too many clients"], "(too many clients)"),
        ([FULL, ""], "running on q"),
        ([], "(the manager did not answer in time)"),
    ],
    ids=["a reason", "another one since", "nobody there since", "none at all"],
)
def test_the_last_reason_that_was_told_is_the_one_to_give(words: Sequence[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that none was given in the last moment, when there was no time left to be told one."""
    with pytest.raises(BrokerUnavailable) as caught:
        flow_over(Manager(HandClock(), *words), monkeypatch).finish()
    assert str(caught.value).endswith(said)


def test_an_unknown_outcome_has_its_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task was on its way when the broker went, and the next one finds no room."""
    broker = FakeBroker(EventOwner.PUBLISHER)

    def hear_and_go(line: Line, *_: object) -> list[bytes]:
        broker.accept().hear(Write)
        line.close()
        raise ConnectionClosed("gone")

    monkeypatch.setattr(Line, "answer", hear_and_go)
    with pytest.raises(PublishUnknown) as caught:
        flow_over(Manager(HandClock(), broker.connect, FULL), monkeypatch).finish()
    broker.close()
    assert caught.value.cause == f"the connection was lost, and no broker came back: {FULL}"


def test_the_patience_is_with_each_answer_and_not_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take together, and however long whoever publishes takes from one batch to the next."""
    clock, broker = HandClock(), FakeBroker(EventOwner.PUBLISHER)
    answered = []

    def late(line: Line, request: int, patience: Patience) -> Written:
        clock.pass_by(20.0)
        if patience.over:
            raise NoAnswer
        answered.append(request)
        return Written(request, 1)

    monkeypatch.setattr(Line, "answer", late)
    flow = flow_over(Manager(clock, broker.connect), monkeypatch)
    for number in range(2 * WINDOW):
        clock.pass_by(40.0)
        flow.push(Batch([TaskIn(id=f"t{number}", data=Raw(b"1"))], [number], 1))
    flow.finish()
    flow._exchange.close()
    broker.close()
    assert len(answered) == 2 * WINDOW + 1


def test_a_line_that_somebody_else_made_carries_what_was_lost_with_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads publish over one Exchange; the other saw it break first. Nobody answers on the new one what the old one was asked."""
    broker = FakeBroker(EventOwner.PUBLISHER)
    flow = flow_over(Manager(HandClock(), broker.connect, broker.connect), monkeypatch)
    flow._over_the_line(lambda: True)
    peer = broker.accept()
    assert [task.id for task in peer.hear(Write).tasks] == ["a"]
    peer.hang_up()
    flow._exchange._line.close()
    flow._exchange.line(flow._patience)
    side = Side(flow.finish)
    peer = broker.accept()
    write = peer.hear(Write)
    assert [task.id for task in write.tasks] == ["a"]
    peer.say(Written(write.request, 1))
    side.result()
    flow._exchange.close()
    broker.close()


def test_a_broker_that_hangs_up_on_the_first_words_is_not_called_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the second time there is a pause, longer each time; where anything was answered, none."""
    waits: list[float] = []

    def hung_up_on(timeout: float) -> tuple[Pipe, Config]:
        ours, theirs = Pipe.pair()
        Pipe(theirs).close()
        return Pipe(ours), Config()

    exchange = Exchange(Path("q"), hung_up_on, decoder_for(EventOwner.PUBLISHER_BROKER), pause=waits.append)
    patience = Patience(30.0, HandClock())
    for _ in range(8):
        exchange.line(patience).close()
    assert waits == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64]
    exchange.line(patience).heard = True
    exchange.line(patience).close()
    exchange.line(patience).close()
    exchange.line(patience)
    exchange.close()
    assert waits[6:] == [1.0]


def test_an_append_that_breaks_off_says_what_is_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails at the second batch: the first is durable and counted, of the others nothing is known."""
    publisher = Publisher(tmp_path / "q", connect=Manager(HandClock(), *["nobody"] * 9).connect)
    publisher.publish(0, id="before")
    writes, write_at = [], RealFiles.write_at

    def fails(files: RealFiles, handle: int, offset: int, data: bytes) -> int:
        if b'"n":' in data:
            writes.append(data)
            if len(writes) == 2:
                raise StorageError("a file of the queue: Input/output error")
        return write_at(files, handle, offset, data)

    monkeypatch.setattr(RealFiles, "write_at", fails)
    with pytest.raises(PublishUnknown, match="Input/output error") as caught:
        publisher.publish_many((TaskIn(id=f"t{n}", data={"n": n}) for n in range(6)), batch_max=2)
    assert (caught.value.published, caught.value.task_ids) == (2, ("t2", "t3", "t4", "t5"))
    monkeypatch.undo()
    assert list(inspect(tmp_path / "q").state.tasks) == ["before", "t0", "t1"]


def test_a_log_that_cannot_be_opened_leaves_what_was_on_its_way_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is appended now; but the broker may have stored it before it went."""

    def cannot(*_: object, **__: object) -> None:
        raise CorruptQueue("published-*.jsonl", offset=0, why="for the test")

    flow = flow_over(Manager(HandClock(), FULL, FULL), monkeypatch)
    monkeypatch.setattr(direct, "append", cannot)
    with pytest.raises(CorruptQueue):
        flow.finish()
    flow._window.sent(1)
    with pytest.raises(PublishUnknown, match="for the test"):
        flow.finish()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), PermissionError(errno.EACCES, "Permission denied")])
def test_what_the_system_says_of_the_folder_leaves_it_unknown_as_well(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Where nothing had been on its way, nothing is stored, for certain: an error of the queue's files."""

    def cannot(*_: object, **__: object) -> None:
        raise error

    flow = flow_over(Manager(HandClock(), FULL, FULL), monkeypatch)
    monkeypatch.setattr(direct, "append", direct_append)
    monkeypatch.setattr(direct, "open_folder", cannot)
    with pytest.raises(StorageError, match=f"q: {error.strerror}"):
        flow.finish()
    flow._window.sent(1)
    with pytest.raises(PublishUnknown, match=error.strerror) as caught:
        flow.finish()
    assert caught.value.task_ids == ("a",)


@pytest.mark.parametrize("error", [FolderRefused("it is a file by now"), BadFrame("not an answer of a manager")])
def test_a_folder_that_is_refused_meanwhile_leaves_what_was_on_its_way_unknown(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Nobody can be asked any more. So it is where a manager of another version took over, whose answer says nothing to us."""

    def refused(timeout: float) -> tuple[Pipe, Config]:
        raise error

    flow = flow_over(Manager(HandClock(), refused, refused), monkeypatch)
    with pytest.raises(type(error)):
        flow.finish()
    flow._window.sent(1)
    with pytest.raises(PublishUnknown, match=str(error)):
        flow.finish()


def test_a_want_of_open_files_in_the_midst_of_an_append_says_what_is_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is durable; the next may be."""
    publisher = Publisher(tmp_path / "q", connect=Manager(HandClock(), *["nobody"] * 9).connect)
    step, steps = PublisherBroker.step, []

    def fails(broker: PublisherBroker, *arguments: Any) -> None:
        steps.append(arguments)
        if len(steps) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        step(broker, *arguments)

    monkeypatch.setattr(PublisherBroker, "step", fails)
    with pytest.raises(PublishUnknown, match="Too many open files") as caught:
        publisher.publish_many((TaskIn(id=f"t{n}", data=n) for n in range(6)), batch_max=2)
    assert (caught.value.published, caught.value.task_ids) == (2, ("t2", "t3", "t4", "t5"))


def test_an_append_that_finds_the_queue_damaged_leaves_no_file_open(tmp_path: Path) -> None:
    """A program that publishes lives on: one more at each try, it would come to have none left."""
    publisher = Publisher(tmp_path / "q", connect=Manager(HandClock(), *["nobody"] * 9).connect)
    publisher.publish(1, id="a")
    files = open_folder(tmp_path / "q", create=False)
    final_checkpoint(files, config=Config(), at_ms=0)
    files.shut()
    queue = tmp_path / "q" / "queue.json"
    queue.write_bytes(queue.read_bytes().replace(b'"id":"a"', b'"id":"b"'))
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(CorruptQueue):
        publisher.publish(2)
    assert len(os.listdir("/dev/fd")) == before


def test_a_reason_is_forgotten_once_there_was_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had kept the task from going then is not what keeps it now."""
    broker = FakeBroker(EventOwner.PUBLISHER)

    def take_and_go(timeout: float) -> tuple[Pipe, Config]:
        pipe, config = broker.connect(timeout)
        broker.accept().hang_up()
        return pipe, config

    with pytest.raises(BrokerUnavailable, match="did not answer in time"):
        flow_over(Manager(HandClock(), FULL, take_and_go), monkeypatch).finish()
    broker.close()
