"""A full disk refuses publishers, lets what is queued be finished, and is no longer full as soon as there is room."""

from __future__ import annotations

import pytest
from msgspec import Raw

from faults.life import CONFIG, Ledger, Life, judge
from jsonqueue.errors import DiskFull
from jsonqueue.event import Event, Heartbeat, Look, Result, Revoke, Write, Written
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.reserve import RESERVE, Reserve
from jsonqueue.task import StoredTaskIn, TaskIn


def _full(disk: MemoryFiles) -> None:
    disk.room = 0


@pytest.fixture
def unpadded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when all padding is used up: each batch needs room of its own."""
    monkeypatch.setattr("jsonqueue.storage.log.PADDING", 1)


@pytest.mark.usefixtures("unpadded")
def test_completions_land_from_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program took all that was left: publishing is refused with a reason, what is held is completed all the same."""
    disk, ledger = MemoryFiles(), Ledger()
    monkeypatch.setattr("faults.life.CONFIG", _with_reserve(1 << 24))
    life = Life(disk, ledger.hear)
    life.start()
    assert len(disk.get(RESERVE)) == 1 << 20
    life.publish("a", "b", "c")
    _full(disk)
    life.publish("d")
    assert ledger.refused == {"d"}
    life.complete(2)
    life.complete(2)
    assert set(ledger.completed) == {"a", "b", "c"}
    assert 0 < len(disk.get(RESERVE)) < 1 << 20
    disk.crash()
    judge(disk, ledger, drain=False)


@pytest.mark.usefixtures("unpadded")
def test_what_is_stored_is_not_said_to_be_refused() -> None:
    """A task that is published again comes in one batch, or one turn, with another that finds no room: it is there all the same."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a")
    disk.room = 0  # between two looks at it: the broker finds out as it writes
    answers: list[Event] = []
    writes = [Write(1, [_plain("a"), _plain("b")]), Write(2, [_plain("a")]), Write(3, [_plain("b")])]
    life.pb.step([(1, write) for write in writes], lambda peer, event: answers.append(event))
    assert [(answer.duplicates, [refusal.index for refusal in answer.refused]) for answer in answers if isinstance(answer, Written)] == [
        ([0], [1]),
        ([0], []),
        ([], [0]),
    ]


def _plain(task_id: str) -> StoredTaskIn:
    return TaskIn(id=task_id, data=Raw(b"null"))


def test_service_resumes_when_room_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to start anything anew; the reserve is filled again with the next checkpoint."""
    disk, ledger = MemoryFiles(), Ledger()
    monkeypatch.setattr("faults.life.CONFIG", _with_reserve(1 << 24))
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a", "b")
    _full(disk)
    life.clock.ms += 1_000
    life.complete(1)
    life.publish("c")
    assert ledger.refused == {"c"}
    disk.room = 1 << 30
    life.clock.ms += 1_000
    life.publish("c")
    assert "c" in ledger.acknowledged
    life.checkpoint()
    assert len(disk.get(RESERVE)) == 1 << 20


@pytest.mark.usefixtures("unpadded")
def test_without_a_reserve_a_turn_waits_for_room() -> None:
    """Nobody hears of a completion before it is written; then everybody does."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a", "b")
    _full(disk)
    life.complete(1)
    assert not ledger.completed
    disk.room = 1 << 30
    life.clock.ms += 1_000
    life.turn()
    assert ledger.completed


@pytest.mark.usefixtures("unpadded")
def test_what_waits_for_room_is_unsettled_and_is_tried_again_a_tenth_of_a_second_later() -> None:
    """A broker that is to end waits for it, as for what its consumers hold; and does not look for room without end."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a", "b")
    assert (life.cb.unsettled, life.cb.counters()["stalled"]) == (2, 0)
    _full(disk)
    life.complete(1)
    assert (life.cb.unsettled, life.cb.counters()["stalled"]) == (2, 1), "one that is held, one that is not written"
    assert life.cb.next_due_ms() == life.clock.ms + 100
    disk.room = 1 << 30
    life.clock.ms += 99
    life.turn()
    assert not ledger.completed
    life.clock.ms += 1
    life.turn()
    assert ledger.completed
    assert (life.cb.unsettled, life.cb.counters()["stalled"]) == (1, 0)


@pytest.mark.usefixtures("unpadded")
def test_a_delivery_that_waited_for_room_is_leased_from_the_moment_it_goes_out() -> None:
    """However long there was none, and whatever its consumer said meanwhile, which could not speak of it: no attempt is lost."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    life.pb.step([(1, Write(1, [_plain("a")]))], lambda peer, event: None)
    _full(disk)
    life.turn()
    for _ in range(3):
        life.clock.ms += CONFIG.lease_ms
        life.turn((life.consumer, Heartbeat([], [], 2)))
    assert not life.held
    disk.room = 1 << 30
    life.clock.ms += CONFIG.lease_ms
    life.turn()
    assert list(life.held.values()) == ["a"]
    life.complete(1)
    assert set(ledger.completed) == {"a"}


@pytest.mark.usefixtures("unpadded")
def test_a_delivery_that_waited_for_room_does_not_go_out_after_its_deadline() -> None:
    """What else was to go out with it does; the other dies of its deadline, without an attempt, and the log says so."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    until_ms = life.clock.wall_ms() + 1_000
    tasks = [TaskIn(id=i, data=Raw(b"null"), deadline_ms=at_ms) for i, at_ms in (("late", until_ms), ("soon", until_ms + 1))]
    life.pb.step([(1, Write(1, tasks))], lambda peer, event: None)
    _full(disk)
    life.turn()
    life.clock.ms += 1_000
    disk.room = 1 << 30
    life.turn()
    assert list(life.held.values()) == ["soon"]
    found = load_state(disk).state.tasks
    assert (found["late"].status, found["late"].attempt, found["late"].reason) == ("dead", 0, "its deadline passed before it could run")
    assert (found["soon"].status, found["soon"].attempt) == ("in_progress", 1)
    life.complete(1)
    assert set(ledger.completed) == {"soon"}


def _slow(life: Life, disk: MemoryFiles, ms: int) -> None:
    """The next write of the consumer broker takes so long."""

    def wait(number: int, operation: str) -> None:
        if operation.startswith("write progress-"):
            disk.fail = lambda number, operation: None
            life.clock.ms += ms

    disk.fail = wait


def test_a_delivery_whose_write_takes_long_is_leased_from_the_moment_it_goes_out() -> None:
    """Longer than a lease, here. It was taken back in the next turn, before its consumer could send a heartbeat."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    _slow(life, disk, 2 * CONFIG.lease_ms)
    life.publish("a")
    life.clock.ms += CONFIG.lease_ms - 1
    life.turn()
    assert list(life.held.values()) == ["a"]
    assert load_state(disk).state.tasks["a"].status == "in_progress"
    life.complete(1)
    assert set(ledger.completed) == {"a"}


def test_a_delivery_whose_write_takes_long_does_not_go_out_after_its_deadline() -> None:
    """It dies of it, without an attempt. What else was to go out with it does."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    until_ms = life.clock.wall_ms() + 150
    tasks = [TaskIn(id=i, data=Raw(b"null"), deadline_ms=at_ms) for i, at_ms in (("late", until_ms), ("soon", until_ms + 1))]
    _slow(life, disk, 150)
    life.pb.step([(1, Write(1, tasks))], lambda peer, event: None)
    life.turn()
    assert list(life.held.values()) == ["soon"]
    due_ms = life.cb.next_due_ms()
    assert due_ms is not None
    assert due_ms <= life.clock.monotonic_ms(), "nobody has to say anything before the other one is ended"
    life.turn()
    found = load_state(disk).state.tasks
    assert (found["late"].status, found["late"].attempt, found["late"].reason) == ("dead", 0, "its deadline passed before it could run")
    life.complete(1)
    assert set(ledger.completed) == {"soon"}


@pytest.mark.usefixtures("unpadded")
def test_of_what_is_said_again_and_again_while_there_is_no_room_the_last_is_kept() -> None:
    """A consumer with thousands of short tasks names them all in each heartbeat: those of an hour would be more than all else."""
    disk, heard = MemoryFiles(), []
    life = Life(disk, lambda line: None)
    life.start()
    life.pb.step([(1, Write(1, [_plain("a")]))], lambda peer, event: None)
    _full(disk)
    life.turn()
    said = [(7, Heartbeat(["x"], [7], 0)), (8, Look(8, "a")), (life.consumer, Heartbeat(["y"], [8], 0)), (7, Look(9, "a"))]
    for _ in range(3):
        life.clock.ms += 10
        life.turn(*said, (7, Heartbeat(["z"], [9], 0)))
    disk.room = 1 << 30
    life.clock.ms += 1_000
    life.cb.step([], lambda peer, event: heard.append((peer, event)))
    assert sorted((peer, event.ids) for peer, event in heard if isinstance(event, Revoke)) == [(7, ["z"]), (life.consumer, ["y"])]
    assert [(peer, event.request) for peer, event in heard if isinstance(event, Result)] == 3 * [(8, 8), (7, 9)]


def test_a_disk_without_room_for_another_segment_refuses_nobody() -> None:
    """A rotation that finds no room is left for later: what was stored before it is acknowledged, not refused."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a", size=CONFIG.segment_max_bytes - 500)

    def no_new_file(number: int, operation: str) -> None:
        if operation.startswith("create published-"):
            raise DiskFull("no room for another file")

    disk.fail = no_new_file
    life.publish("b", size=800)
    assert ledger.acknowledged == {"a", "b"}
    assert not ledger.refused
    life.checkpoint()
    disk.fail = lambda number, operation: None
    life.publish("c")
    disk.crash()
    judge(disk, ledger)


def test_a_progress_log_goes_on_in_another_segment_when_it_is_long() -> None:
    """Not only when a checkpoint begins: there may be no room for one."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    for number in range(60):
        life.publish(f"t{number}")
        life.complete()
    sizes = [len(disk.get(name).rstrip(b"\n")) for name in disk.list() if name.startswith("progress-")]
    assert 2 < len(sizes) < 20, "and not with each turn"
    assert max(sizes) < 2 * CONFIG.segment_max_bytes
    judge(disk, ledger)


def test_padding_is_room() -> None:
    """What is written over it needs none: on a full disk small batches land for a while, and are there after a power cut."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a", "b")
    _full(disk)
    life.complete(2)
    life.publish("c")
    assert ledger.acknowledged == {"a", "b", "c"}
    assert ledger.completed
    disk.crash()
    disk.room = 1 << 30
    judge(disk, ledger)


def test_a_broker_starts_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs room for its new segment, and takes it from the reserve."""
    disk, ledger = MemoryFiles(), Ledger()
    Reserve(disk, 1 << 24).fill()
    _full(disk)
    monkeypatch.setattr("faults.life.CONFIG", _with_reserve(1 << 24))
    life = Life(disk, ledger.hear)
    life.start()
    assert 0 < len(disk.get(RESERVE)) < 1 << 20


def test_a_broker_that_starts_on_a_full_disk_leaves_the_rest_of_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gave up all of it for a segment of a few hundred bytes. What had filled the disk took the rest, and what consumers had done
    could not be written down; nor did the other broker find room to start in."""
    disk, ledger = MemoryFiles(), Ledger()
    monkeypatch.setattr("faults.life.CONFIG", _with_reserve(1 << 24))
    life = Life(disk, ledger.hear)
    life.start()
    life.publish("a", "b", size=200_000)
    for start in (life.start_publisher_broker, life.start_consumer_broker):
        _full(disk)
        start()
    _full(disk)
    monkeypatch.setattr("jsonqueue.storage.log.PADDING", 1)
    life.complete(1)
    life.complete(1)
    assert set(ledger.completed) == {"a", "b"}
    assert len(disk.get(RESERVE)) > 1 << 18


@pytest.mark.parametrize("reserved", [True, False])
def test_so_does_a_consumer_broker_alone(reserved: bool) -> None:
    """Its sibling has started while there was room. Where nothing is set aside, it says that there is none."""
    disk, ledger = MemoryFiles(), Ledger()
    life = Life(disk, ledger.hear)
    life.start_publisher_broker()
    if reserved:
        Reserve(disk, 1 << 24).fill()
    _full(disk)
    if reserved:
        life.start_consumer_broker()
        assert 0 < len(disk.get(RESERVE)) < 1 << 20, "it has given up what that took, and no more"
    else:
        with pytest.raises(DiskFull):
            life.start_consumer_broker()


def _with_reserve(size: int):  # type: ignore[no-untyped-def]
    from msgspec.structs import replace

    return replace(CONFIG, disk_reserve_bytes=size)
