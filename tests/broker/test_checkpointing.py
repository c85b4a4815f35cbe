"""When a checkpoint begins, in which steps it goes, and what ends it."""

from __future__ import annotations

import copy
import errno
import threading

import pytest

from jsonqueue.broker import checkpointing
from jsonqueue.broker.checkpointing import Checkpointing
from jsonqueue.broker.narration import Narration
from jsonqueue.channel.control import Forget, Rotate, Rotated
from jsonqueue.config import Config
from jsonqueue.errors import CorruptQueue, DiskFull, JsonQueueError, SyncFailed, UnreadableFile
from jsonqueue.event import EventOwner
from jsonqueue.storage.checkpoint import CheckpointDone
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.recovery import load_state
from storage.history import Queue

PUBLISHER, CONSUMER = EventOwner.PUBLISHER_BROKER, EventOwner.CONSUMER_BROKER
CUT = Rotated(1, progress=(3, 1), published=(5, 1))


class FrozenClock:
    now_ms = 0

    def wall_ms(self) -> int:
        return 1_000_000 + self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms


class FolderOfSizes:
    """Only what the rule looks at: names and lengths."""

    def __init__(self) -> None:
        self.sizes = {"published-1-1.jsonl": 500, "progress-1-1.jsonl": 500, "queue.json": 1000}

    def list(self, folder: str = "") -> list[str]:
        return sorted(self.sizes)

    def identity(self, name: str):
        return (1, self.sizes[name], 0) if name in self.sizes else None


class Stage:
    """A Checkpointing with everything around it played by the test; the folding thread is awaited, not raced."""

    def __init__(self, monkeypatch) -> None:
        self.clock, self.files = FrozenClock(), FolderOfSizes()
        self.posted: list[tuple[EventOwner, object]] = []
        self.damage: list[Exception] = []
        self.folds: list[object] = []
        self.outcome: CheckpointDone | Exception = CheckpointDone({}, 9, 9, 1000, 2)
        self.brought = threading.Semaphore(0)
        self.wishes: list = []
        monkeypatch.setattr(checkpointing, "checkpoint", self._checkpoint)
        monkeypatch.setattr(checkpointing, "log_bytes", lambda files: sum(n for name, n in files.sizes.items() if name != "queue.json"))
        self.checkpointing = Checkpointing(
            self.files,
            Config(flush_interval_ms=100),
            self.clock,
            Narration("q"),
            post=lambda role, order: self.posted.append((role, order)),
            submit=self._submit,
            on_damage=self.damage.append,
        )

    def _checkpoint(self, files, cut, *, config, at_ms, left) -> CheckpointDone:
        self.folds.append(cut)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def _submit(self, wish) -> None:
        self.wishes.append(wish)
        self.brought.release()

    def fold(self, took_ms: int = 0) -> None:
        """Let the thread finish, and bring its word to the supervisor's thread."""
        assert self.brought.acquire(timeout=5)
        self.clock.now_ms += took_ms
        self.wishes.pop(0)()

    def after(self, ms: int) -> None:
        self.clock.now_ms += ms
        self.checkpointing.tick(self.clock.now_ms)

    def answer(self, request: int) -> None:
        """Both brokers seal, and the cut has moved since the last time."""
        self.checkpointing.rotated(PUBLISHER, Rotated(request))
        self.checkpointing.rotated(CONSUMER, Rotated(request, progress=(3 * request, 1), published=(5 * request, 1)))


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


def test_the_publisher_seals_before_the_consumer_names_the_cut(stage):
    """In this order the cut covers what was published before; then one fold, then the ids that left."""
    stage.outcome = CheckpointDone({"a": 1}, 9, 9, 1000, 2)
    stage.after(100)
    assert stage.posted == [(PUBLISHER, Rotate(1))]
    stage.checkpointing.rotated(PUBLISHER, Rotated(1))
    assert stage.posted[1:] == [(CONSUMER, Rotate(1))]
    stage.checkpointing.rotated(CONSUMER, CUT)
    stage.fold()
    assert stage.folds == [((3, 1), (5, 1))]
    assert stage.posted[2:] == [(PUBLISHER, Forget({"a": 1}, 9))]
    assert stage.checkpointing.count == 1


def test_many_ids_that_left_are_told_in_several_messages(stage, monkeypatch):
    """No message outgrows a frame."""
    monkeypatch.setattr(checkpointing, "_IDS_AT_ONCE", 2)
    stage.outcome = CheckpointDone({"a": 1, "b": 2, "c": 3}, 9, 9, 1000, 2)
    stage.after(100)
    stage.answer(1)
    stage.fold()
    assert stage.posted[2:] == [(PUBLISHER, Forget({"a": 1, "b": 2}, 9)), (PUBLISHER, Forget({"c": 3}, 9))]


def test_nothing_happens_before_the_interval_nor_without_news(stage):
    """An idle queue is left alone: no message, no write."""
    stage.after(99)
    assert stage.posted == []
    stage.after(1)
    stage.answer(1)
    stage.fold()
    told = len(stage.posted)
    for _ in range(5):
        stage.after(100)
        assert stage.checkpointing.next_due_ms() == stage.clock.now_ms + 100, "it does not look again at once"
    assert len(stage.posted) == told
    stage.files.sizes["published-1-1.jsonl"] += 1
    stage.after(100)
    assert stage.posted[told:] == [(PUBLISHER, Rotate(2))]


def test_a_large_queue_waits_until_the_logs_are_worth_it(stage):
    """A checkpoint is due when the logs are twice as long as queue.json, or as a segment may be: else too much of it would be copying."""
    stage.files.sizes["queue.json"] = 8 << 20
    stage.after(100)
    assert stage.posted == []
    stage.files.sizes["published-1-1.jsonl"] = (16 << 20) - 501  # the other log has 500
    stage.after(100)
    assert stage.posted == []
    stage.files.sizes["published-1-1.jsonl"] += 1
    stage.after(100)
    assert stage.posted == [(PUBLISHER, Rotate(1))]


def test_a_large_queue_in_which_little_happens_is_brought_up_to_date_now_and_then(stage):
    """After as long as it takes for the copy to come to 256 KiB a second; then it waits as long again."""
    stage.files.sizes["queue.json"] = 8 << 20
    for request, ms in ((1, 32_768), (2, 32_768)):
        told = len(stage.posted)
        stage.files.sizes["published-1-1.jsonl"] += 1
        stage.after(ms - 101)
        stage.after(1)
        assert len(stage.posted) == told
        stage.after(100)
        assert len(stage.posted) == told + 1
        stage.answer(request)
        stage.fold()


def test_a_small_queue_is_never_further_behind_than_the_interval(stage):
    """As much as is written at 256 KiB a second is small: 25 KiB at 100 ms, half a megabyte at the default of 2 s."""
    stage.files.sizes["queue.json"] = 25_600
    stage.after(100)
    assert stage.posted == [(PUBLISHER, Rotate(1))]


def test_a_queue_that_has_no_file_yet_gets_one(stage):
    """Its logs are all there is."""
    del stage.files.sizes["queue.json"]
    stage.after(100)
    assert stage.posted == [(PUBLISHER, Rotate(1))]


def test_a_segment_over_its_limit_is_worth_it_however_large_the_queue(stage):
    """The files' growth is bounded."""
    stage.files.sizes["queue.json"] = 1 << 33
    stage.files.sizes["progress-1-1.jsonl"] = 64 << 20
    stage.after(100)
    assert stage.posted == [(PUBLISHER, Rotate(1))]


def test_open_files_may_run_out_between_two_looks_at_the_folder(stage, monkeypatch):
    """The names were found, the segments were not: it is left to the attempt to say so, and the manager lives."""
    stage.files.sizes["queue.json"] = 1 << 33

    def no_more(files):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(checkpointing, "log_bytes", no_more)
    stage.after(100)
    assert stage.posted == [(PUBLISHER, Rotate(1))]


def test_where_the_folder_cannot_be_opened_whoever_asked_is_told(stage, monkeypatch):
    """And the next try follows."""

    def no_more():
        raise OSError(errno.EMFILE, "too many open files")

    told: list[str] = []
    with monkeypatch.context() as full:
        full.setattr(stage.files, "list", no_more)
        stage.checkpointing.now(told.append)
    assert (len(told), "too many open files" in told[0]) == (1, True)
    stage.after(1_000)
    assert stage.posted == [(PUBLISHER, Rotate(1))]


def test_where_no_thread_is_to_be_had_whoever_asked_is_told(stage, monkeypatch):
    """And the next try follows."""

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    told: list[str] = []
    stage.checkpointing.now(told.append)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_more)
        stage.answer(1)
    assert (len(told), "can't start new thread" in told[0]) == (1, True)
    stage.after(1_000)
    assert stage.posted[-1] == (PUBLISHER, Rotate(2))


def test_a_checkpoint_takes_at_most_a_tenth_of_the_time(stage):
    """One that took a second is followed by nine without."""
    stage.after(100)
    stage.answer(1)
    stage.fold(took_ms=1000)
    stage.files.sizes["published-1-1.jsonl"] += 1
    told = len(stage.posted)
    stage.after(8999)
    assert len(stage.posted) == told
    stage.after(1)
    assert len(stage.posted) == told + 1


def test_the_same_cut_is_not_folded_twice(stage):
    """A new name of a segment alone is no news."""
    stage.after(100)
    stage.checkpointing.rotated(PUBLISHER, Rotated(1))
    stage.checkpointing.rotated(CONSUMER, CUT)
    stage.fold()
    stage.files.sizes["published-1-1.jsonl"] += 1
    stage.after(100)
    stage.checkpointing.rotated(PUBLISHER, Rotated(2))
    stage.checkpointing.rotated(CONSUMER, Rotated(2, progress=CUT.progress, published=CUT.published))
    assert len(stage.folds) == 1


def test_asked_for_now_it_answers_when_it_is_durable(stage):
    """Due or not, and only after the fold."""
    told: list[str] = []
    stage.checkpointing.now(told.append)
    stage.answer(1)
    assert told == []
    stage.fold()
    assert told == [""]


def test_one_that_found_nothing_to_fold_in_is_not_counted(stage):
    """It answers as any other does."""
    counts = []
    for request, folded in ((1, 2), (2, 0)):
        stage.outcome = CheckpointDone({}, 9, 9, 1000, folded)
        stage.checkpointing.now(lambda why: counts.append((why, stage.checkpointing.count)))
        stage.answer(request)
        stage.fold()
    assert counts == [("", 1), ("", 1)]


def test_asked_for_during_another_it_makes_one_more(stage):
    """The one under way may have missed the latest tasks."""
    told: list[str] = []
    stage.after(100)
    stage.checkpointing.now(told.append)
    stage.answer(1)
    stage.fold()
    assert told == []
    stage.answer(2)
    stage.fold()
    assert told == [""]


def test_a_broker_that_dies_ends_the_attempt(stage):
    """Its answer will not come; a late one of the old attempt changes nothing; the next interval tries again."""
    told: list[str] = []
    stage.checkpointing.now(told.append)
    stage.checkpointing.abandon("the publisher broker died")
    assert told == ["the publisher broker died"]
    stage.answer(1)
    assert stage.folds == []
    stage.after(100)
    assert stage.posted[-1] == (PUBLISHER, Rotate(2))


def test_what_is_answered_to_an_attempt_that_is_over_is_no_answer_to_the_next(stage):
    """It was sealed before that one began: what was published since is not in the cut. Nor does one broker answer for the other."""
    stage.after(100)
    stage.checkpointing.abandon("the consumer broker died")
    stage.after(100)
    assert stage.posted[1:] == [(PUBLISHER, Rotate(2))]
    stage.checkpointing.rotated(PUBLISHER, Rotated(1))
    assert stage.posted[2:] == []
    stage.checkpointing.rotated(PUBLISHER, Rotated(2))
    stage.checkpointing.rotated(PUBLISHER, Rotated(2))
    stage.checkpointing.rotated(CONSUMER, Rotated(2, progress=(3, 1), published=(5, 1)))
    stage.fold()
    assert len(stage.folds) == 1
    assert stage.checkpointing.error == ""


def test_a_broker_that_dies_while_the_logs_are_folded_ends_nothing(stage):
    """The files alone say how to go on; nor is another fold begun beside that one."""
    told: list[str] = []
    stage.checkpointing.now(told.append)
    stage.answer(1)
    stage.checkpointing.abandon("the publisher broker died")
    stage.after(100)
    assert (told, stage.checkpointing.next_due_ms()) == ([], None)
    assert stage.posted[2:] == []
    stage.fold()
    assert told == [""]


def test_a_consumer_broker_that_is_still_loading_has_no_cut(stage):
    """Then there is no checkpoint, and the reason is told."""
    told: list[str] = []
    stage.checkpointing.now(told.append)
    stage.checkpointing.rotated(PUBLISHER, Rotated(1))
    stage.checkpointing.rotated(CONSUMER, Rotated(1))
    assert told == ["the queue is still being loaded"]


@pytest.mark.parametrize(
    "error",
    [
        CorruptQueue("queue.json", offset=7, why="checksum"), UnreadableFile("queue.json", offset=7, why="EIO"),
        SyncFailed("no"), ValueError("a bug"),
    ],
)  # fmt: skip
def test_damage_stops_everything(stage, error, caplog):
    """A checkpoint that finds damage, or a disk that lies, is no matter of trying again; and nobody says that nothing is lost."""
    stage.outcome = error
    stage.after(100)
    stage.answer(1)
    stage.fold()
    assert len(stage.damage) == 1
    assert isinstance(stage.damage[0], JsonQueueError)
    assert str(error) in str(stage.damage[0])
    assert "nothing is lost" not in caplog.text


@pytest.mark.parametrize("error", [DiskFull("no room"), FileNotFoundError("moved")])
def test_a_full_disk_is_tried_again(stage, error, caplog):
    """Nothing is lost by waiting; the reason is kept for the status until a checkpoint succeeds."""
    stage.outcome = error
    stage.after(100)
    stage.answer(1)
    stage.fold()
    assert stage.damage == []
    assert stage.checkpointing.error == str(error)
    assert caplog.text.count("nothing is lost, the next try follows") == 1
    stage.outcome = CheckpointDone({}, 9, 9, 1000, 2)
    stage.after(1000)
    stage.answer(2)
    stage.fold()
    assert stage.checkpointing.error == ""


def test_what_looks_like_damage_while_a_broker_restarts_is_looked_at_again(stage):
    """A starting broker replaces its newest segment, maybe while it is read. Damage that is real is found again."""
    stage.outcome = CorruptQueue("published-1-1.jsonl", offset=7, why="gone")
    stage.after(100)
    stage.answer(1)
    stage.checkpointing.abandon("the publisher broker died")
    stage.fold()
    assert stage.damage == []
    stage.after(1000)
    stage.answer(2)
    stage.fold()
    assert len(stage.damage) == 1


class RealStage:
    """A Checkpointing of real files, whose brokers do what they are asked, and what it tells of who has left."""

    def __init__(self) -> None:
        self.clock, self.files = FrozenClock(), MemoryFiles()
        self.queue = Queue(self.files)
        self.wishes: list = []
        self.left: dict[str, int] = {}
        self.damage: list[Exception] = []
        self.checkpointing = Checkpointing(
            self.files, Config(), self.clock, Narration("q"), post=self._post, submit=self.wishes.append, on_damage=self.damage.append
        )  # fmt: skip

    def _post(self, role, order) -> None:
        if isinstance(order, Forget):
            self.left |= order.ids
            self._look_after_a_power_cut(order.ids)
        elif role is PUBLISHER:
            self.queue.pub.rotate()
            self.wishes.append(lambda: self.checkpointing.rotated(PUBLISHER, Rotated(order.request)))
        else:
            self.queue.prog.rotate()
            cut = Rotated(order.request, progress=tuple(self.queue.prog.position), published=tuple(self.queue.pub.position))
            self.wishes.append(lambda: self.checkpointing.rotated(CONSUMER, cut))

    def _look_after_a_power_cut(self, ids) -> None:
        disk = copy.deepcopy(self.files)
        disk.crash()
        assert not set(ids) & set(load_state(disk).state.tasks), "told before it was durable"

    def attempt(self) -> str:
        """One checkpoint; why not, if so."""
        told: list[str] = []
        self.checkpointing.now(told.append)
        while not told:
            self.checkpointing.join()
            self.wishes.pop(0)()
        return told[0]


def test_who_has_left_is_told_whenever_an_attempt_ends_midway():
    """In each of its operations something fails that passes: no file may be opened, or a name not be taken away. The next one that
    succeeds tells who has left, although it may have nothing to fold; else their ids would be duplicates until the brokers start anew."""
    ended, operation = "", 0
    while ended or operation == 0:
        stage = RealStage()
        stage.queue.publish("a", "b")
        stage.queue.lease("a")
        stage.queue.complete("a")
        assert stage.attempt() == ""
        stage.queue.retire("a")
        left = operation

        def fail(number, name):
            nonlocal left
            if threading.current_thread().name == "jsonqueue-checkpoint":  # else it is a broker's, who rotates
                left -= 1
                if left < 0:
                    raise OSError(errno.EMFILE, f"too many open files: {name}")

        stage.files.fail = fail
        ended = stage.attempt()
        stage.files.fail = lambda number, name: None
        assert (stage.left == {"a": 1}) is not ended
        assert stage.attempt() == ""
        assert stage.left == {"a": 1}, ended
        assert stage.damage == []
        operation += 1
    assert operation > 10


def test_a_failed_sync_while_a_broker_restarts_is_no_matter_of_looking_again(stage):
    """Whatever a starting broker does to its segment, no sync fails of it; and a second one would succeed and mean nothing."""
    stage.outcome = SyncFailed("no")
    stage.after(100)
    stage.answer(1)
    stage.checkpointing.abandon("the consumer broker died")
    stage.fold()
    assert stage.damage == [stage.outcome]


def test_on_a_disk_that_stays_full_the_tries_become_rare(stage):
    """Each fills the disk with its draft while it goes on. One that is asked for is made at once; after a success all is as ever."""
    stage.outcome = DiskFull("no room")
    stage.after(100)
    pauses = []
    for request in range(1, 10):
        stage.answer(request)
        stage.fold()
        if request < 9:
            pauses.append(stage.checkpointing.next_due_ms() - stage.clock.now_ms)
            told = len(stage.posted)
            stage.after(pauses[-1] - 1)
            assert len(stage.posted) == told
            stage.after(1)
            assert len(stage.posted) == told + 1
    assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
    told: list[str] = []
    stage.outcome = CheckpointDone({}, 9, 9, 1000, 2)
    stage.checkpointing.now(told.append)
    stage.answer(10)
    stage.fold()
    assert told == [""]
    stage.files.sizes["published-1-1.jsonl"] += 1
    stage.after(100)
    stage.outcome = DiskFull("no room")
    stage.answer(11)
    stage.fold()
    assert stage.checkpointing.next_due_ms() - stage.clock.now_ms == 1_000
    stage.outcome = FileNotFoundError("moved")
    stage.after(1_000)
    stage.answer(12)
    stage.fold()
    assert stage.checkpointing.next_due_ms() - stage.clock.now_ms == 1_000
