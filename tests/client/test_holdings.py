"""The books of a consumer, without threads and without a wire: times are given."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw, structs

from client.fakes import delivered
from jsonqueue.client.holdings import FRAME_TASKS, OVERDUE_S, STALL_S, Holdings
from jsonqueue.client.outcome import cut
from jsonqueue.client.payload import NULL
from jsonqueue.config import Config
from jsonqueue.event import Complete, Event, Fail, Failure, Heartbeat, Join, Return, encode


def holding(*numbers: int, slots: int = 1) -> Holdings:
    holdings = Holdings(slots)
    holdings.assign([delivered(number) for number in numbers], 0.0)
    return holdings


def run(holdings: Holdings, seconds: float, verdict: Any = NULL, *, now: float = 0.0) -> None:
    """The next task, in the first slot."""
    slot = holdings.slots[0]
    assert holdings.take(slot, now) is not None
    holdings.settle(slot, verdict, now + seconds)


def packed(holdings: Holdings, kind: type[Event]) -> Any:
    (frame,) = holdings.pack()
    assert isinstance(frame, kind)
    return frame


def test_tasks_start_in_the_order_in_which_they_came() -> None:
    holdings = holding(1, 2)
    run(holdings, 0.1)
    holdings.assign([delivered(3)], 1.0)
    run(holdings, 0.1)
    run(holdings, 0.1)
    assert holdings.take(holdings.slots[0], 1.0) is None
    assert packed(holdings, Complete).ids == ["t1", "t2", "t3"]


@pytest.mark.parametrize(("seconds", "want"), [(0.0, 1024), (0.0001, 101), (0.001, 11), (0.010, 2), (0.029, 2), (0.031, 1), (5.0, 1)])
def test_it_wants_ten_milliseconds_of_work_ahead(seconds: float, want: int) -> None:
    """Short tasks never wait for the wire, long ones are never hoarded. One of 11 ms is not long: it would wait for each round trip."""
    holdings = holding(1)
    assert holdings.want == 1
    run(holdings, seconds)
    assert holdings.want == want


def test_it_wants_more_with_more_slots() -> None:
    holdings = holding(1, slots=4)
    assert holdings.want == 4
    run(holdings, 0.010)
    assert holdings.want == 8


def test_the_next_task_is_asked_for_while_there_is_one_to_run() -> None:
    """When the last of the buffer is taken, and not when it has ended: so the answer is there by then. Tasks that are over in a moment come
    by the dozen, and are asked for by the frame."""
    holdings = holding(1, 2, 3)
    run(holdings, 0.010)
    assert not holdings.running_dry
    holdings.take(holdings.slots[0], 0.0)
    holdings.settle(holdings.slots[0], NULL, 0.010)
    holdings.take(holdings.slots[0], 0.010)
    assert holdings.running_dry
    assert packed(holdings, Complete).want == 2
    assert not holdings.running_dry
    quick = holding(1, 2)
    run(quick, 0.0001)
    quick.take(quick.slots[0], 0.0)
    assert not quick.running_dry


def _waits(work_s: float, *, round_trip_s: float, tasks: int = 200) -> int:
    """How often one worker finds nothing to run, with a broker that always has more and answers after so long."""
    holdings, now, waits = Holdings(1), 0.0, 0
    coming: list[tuple[float, int]] = [(0.0, 1)]
    numbers, held = iter(range(10_000)), 1

    def say() -> None:
        nonlocal held
        frames: list[Any] = holdings.pack()
        held -= sum(len(frame.ids) for frame in frames)
        if frames and (more := frames[-1].want - held) > 0:
            coming.append((now + round_trip_s, more))
            held += more

    while holdings.stats.completed < tasks:
        while coming and coming[0][0] <= now:
            holdings.assign([delivered(next(numbers)) for _ in range(coming.pop(0)[1])], now)
        if holdings.take(holdings.slots[0], now) is None:
            say()
            now, waits = coming[0][0], waits + 1
            continue
        if holdings.running_dry:
            say()
        ends = now + work_s
        while (overdue := holdings.overdue_in(now)) is not None and now + overdue < ends:
            now += overdue
            if holdings.unsent:
                say()
            while coming and coming[0][0] <= now:
                holdings.assign([delivered(next(numbers)) for _ in range(coming.pop(0)[1])], now)
        now = ends
        holdings.settle(holdings.slots[0], NULL, now)
    return waits


@pytest.mark.parametrize("work_s", [0.0002, 0.001, 0.0025, 0.005, 0.010, 0.0101, 0.015, 0.029])
def test_a_worker_never_waits_while_the_broker_answers_in_time(work_s: float) -> None:
    """A few waits in the beginning, until it is known how long the tasks take; from then on the next one is there when one ends."""
    assert _waits(work_s, round_trip_s=0.001) <= 3


def test_a_long_task_waits_behind_no_other() -> None:
    """A worker of tasks of 40 ms holds none in reserve: it waits for each, which costs it a fortieth at most."""
    assert _waits(0.040, round_trip_s=0.001) >= 199


def test_an_outcome_waits_five_milliseconds_for_company() -> None:
    """Counted from the oldest. With nothing unsent and one task in the buffer, only a stall is to be watched for."""
    holdings = holding(1, 2, 3)
    assert holdings.overdue_in(0.0) == OVERDUE_S
    run(holdings, 0.010)
    assert holdings.overdue_in(0.012) == pytest.approx(0.003)
    assert holdings.overdue_in(9.0) == 0.0
    holdings.pack()
    assert holdings.overdue_in(9.0) == OVERDUE_S
    run(holdings, 0.010)
    holdings.pack()
    assert holdings.overdue_in(9.0) == STALL_S
    run(holdings, 0.010)
    holdings.pack()
    assert holdings.overdue_in(9.0) is None


def test_what_it_wants_follows_the_tasks() -> None:
    """One slow task among many fast ones changes little, many slow ones everything."""
    holdings = holding(*range(100))
    run(holdings, 0.0001)
    run(holdings, 0.010)
    assert 9 < holdings.want < 101
    for _ in range(60):
        run(holdings, 0.010)
    assert holdings.want == 2


def test_outcomes_go_in_frames_and_stay_until_they_are_settled() -> None:
    """A frame is kept whole, for the case that it must be sent again."""
    holdings = holding(1, 2)
    run(holdings, 0.1, Raw(b"7"))
    run(holdings, 0.1, Failure("t2", 102, "no use", cancel=True))
    complete, fail = holdings.pack()
    assert isinstance(complete, Complete)
    assert (complete.ids, complete.tokens, [bytes(result) for result in complete.results]) == (["t1"], [101], [b"7"])
    assert isinstance(fail, Fail)
    assert [failure.id for failure in fail.failures] == ["t2"]
    assert holdings.pack() == []
    assert list(holdings.unsettled.values()) == [complete, fail]
    holdings.settled(complete.request, [])
    holdings.settled(fail.request, [102])
    assert holdings.idle
    assert (holdings.stats.completed, holdings.stats.failed, holdings.stats.cancelled, holdings.stats.stale) == (1, 1, 1, 1)


def test_a_second_settled_counts_nothing_twice() -> None:
    holdings = holding(1)
    run(holdings, 0.1)
    frame = packed(holdings, Complete)
    holdings.settled(frame.request, [101])
    holdings.settled(frame.request, [101])
    holdings.settled(99, [101])
    assert holdings.stats.stale == 1


def test_a_frame_is_full_at_its_number_of_tasks_and_at_its_bytes() -> None:
    """Many small results, or few large ones."""
    holdings = holding(*range(2 * FRAME_TASKS + 1))
    for _ in range(FRAME_TASKS - 1):
        run(holdings, 0.0)
    assert not holdings.frame_full
    run(holdings, 0.0)
    assert holdings.frame_full
    holdings.pack()
    assert not holdings.frame_full
    run(holdings, 0.0, Raw(b"1" * 1024 * 1024))
    assert holdings.frame_full


def test_what_gathered_while_there_was_no_wire_is_cut_into_frames() -> None:
    """None grows beyond its number of tasks or, but for a single result, its bytes."""
    holdings = holding(*range(600))
    large = Raw(b'"' + b"x" * 600_000 + b'"')
    for number in range(600):
        run(holdings, 0.0, large if number in {10, 11, 12} else NULL)
    frames: list[Any] = holdings.pack()
    assert [token for frame in frames for token in frame.tokens] == [100 + number for number in range(600)]
    assert all(len(frame.ids) <= FRAME_TASKS for frame in frames)
    assert all(sum(len(bytes(result)) for result in frame.results) < 1024 * 1024 for frame in frames)


def test_failures_are_cut_into_frames_by_their_bytes_too() -> None:
    """The longest words there are, each letter of them six in JSON, are no frame that a broker would not read."""
    holdings = holding(*range(600))
    for number in range(600):
        run(holdings, 0.0, Failure(f"t{number}", 100 + number, cut("\x01" * 20_000)))
    frames: list[Any] = holdings.pack()
    assert [failure.token for frame in frames for failure in frame.failures] == [100 + number for number in range(600)]
    assert max(len(encode(frame)) for frame in frames) < 2**21
    for number in range(600):
        holdings.assign([delivered(number)], 0.0)
        run(holdings, 0.0, Failure(f"t{number}", 100 + number, "short"))
    assert [len(frame.failures) for frame in holdings.pack()] == [256, 256, 88]  # type: ignore[attr-defined]


def test_a_broker_takes_whatever_a_consumer_can_hold() -> None:
    """Twice as much as a broker gives out, under the longest names: in a Join, a Heartbeat or a Return."""
    tasks = [structs.replace(delivered(number), id=f"t{number:0>127}", token=2**63 - 1 - number) for number in range(2 * 4_096)]
    holdings = Holdings(1)
    holdings.assign(tasks, 0.0)
    frames = [Heartbeat(*holdings.leased(), 4_096)]
    holdings.give_back(0.0)
    frames += holdings.pack()
    frames += [Join("c" * 128, 2**31, 4_096, *holdings.held())]
    assert [type(frame) for frame in frames] == [Heartbeat, Return, Join]
    assert min(len(encode(frame)) for frame in frames) > 2**20
    assert max(len(encode(frame)) for frame in frames) < Config(payload_max_bytes=1).frame_max_bytes


def test_a_result_that_the_next_broker_does_not_take_has_failed() -> None:
    """Its settings were changed meanwhile. It could not even read the frame, which would be sent again and again; the others stay done."""
    holdings = holding(*range(5))
    small, large = Raw(b'"' + b"s" * 98 + b'"'), Raw(b'"' + b"l" * 99 + b'"')
    for result in (small, large, NULL):
        run(holdings, 0.0, result)
    holdings.pack()
    run(holdings, 0.0, small)
    kept = holdings.pack()
    run(holdings, 0.0, large)
    before = sorted(zip(*holdings.held(), strict=True))
    holdings.refit(100)
    assert sorted(zip(*holdings.held(), strict=True)) == before
    assert list(holdings.unsettled.values()) == kept
    done, failed = holdings.pack()
    assert isinstance(done, Complete)
    assert isinstance(failed, Fail)
    assert (done.ids, done.results) == (["t0", "t2"], [small, NULL])
    assert sorted(failure.id for failure in failed.failures) == ["t1", "t4"]
    assert "101 bytes of JSON, and this queue takes 100 by now" in failed.failures[0].error
    assert (holdings.stats.completed, holdings.stats.failed) == (3, 2)
    assert not holdings.unsent


def test_a_buffer_stuck_behind_a_long_task_is_given_back() -> None:
    """Others may have time for it. What it took this long is also learned, or the same would come again."""
    holdings = holding(1, 2, 3)
    run(holdings, 0.0001)
    packed(holdings, Complete)
    assert holdings.take(holdings.slots[0], 10.0) is not None
    assert not holdings.unstall(10.05)
    assert holdings.unstall(10.11)
    frame = packed(holdings, Return)
    assert (frame.ids, frame.tokens, frame.want) == (["t3"], [103], 1)
    assert not holdings.unstall(99.0)


def test_a_buffer_is_not_stuck_while_a_slot_is_free_or_takes_from_it() -> None:
    """The wait counts from the last task that was taken."""
    holdings = holding(1, 2, 3, slots=2)
    first, second = holdings.slots
    holdings.take(first, 0.0)
    assert not holdings.unstall(1.0)
    holdings.take(second, 1.0)
    assert not holdings.unstall(1.09)
    assert holdings.unstall(1.2)


def test_what_is_revoked_before_it_started_never_starts() -> None:
    holdings = holding(1, 2)
    assert holdings.revoke([101, 999]) == []
    run(holdings, 0.1)
    assert packed(holdings, Complete).ids == ["t2"]


def test_what_is_revoked_while_it_runs_is_told_and_then_forgotten() -> None:
    """Whatever the handler says then changes nothing, so it is not even sent."""
    holdings = holding(1)
    slot = holdings.slots[0]
    holdings.take(slot, 0.0)
    assert holdings.revoke([101]) == [(slot, 101)]
    assert slot.cancelled
    assert holdings.leased() == ([], [])
    holdings.settle(slot, NULL, 1.0)
    assert holdings.pack() == []
    assert holdings.stats.stale == 1
    holdings.assign([delivered(2)], 1.0)
    holdings.take(slot, 1.0)
    assert not slot.cancelled


def test_a_heartbeat_lists_what_has_no_verdict_on_its_way() -> None:
    """Ready, running, finished but unsaid; what was said ends its lease by itself. A new Pipe's Join lists that too."""
    holdings = holding(1, 2, 3, 4, 5)
    run(holdings, 0.1)
    said = packed(holdings, Complete)
    run(holdings, 0.1)
    run(holdings, 0.1, Failure("t3", 103, "no luck"))
    holdings.take(holdings.slots[0], 1.0)
    assert sorted(holdings.leased()[1]) == [102, 103, 104, 105]
    assert sorted(holdings.held()[0]) == ["t1", "t2", "t3", "t4", "t5"]
    holdings.settled(said.request, [])
    holdings.pack()
    assert sorted(holdings.leased()[1]) == [104, 105]
    assert sorted(holdings.held()[1]) == [102, 103, 104, 105]


def test_a_draining_consumer_gives_back_what_it_has_and_what_still_comes() -> None:
    """It wants nothing any more, and says so even if it has nothing to give back."""
    holdings = holding(1)
    holdings.drain(1.0, farewell=True)
    frame = packed(holdings, Return)
    assert (frame.ids, frame.want) == (["t1"], 0)
    assert not holdings.idle
    holdings.assign([delivered(2)], 2.0)
    assert packed(holdings, Return).ids == ["t2"]
    assert holdings.stats.returned == 2

    empty = Holdings(1)
    empty.drain(1.0, farewell=True)
    assert packed(empty, Return).ids == []
    lonely = Holdings(1)
    lonely.drain(1.0, farewell=False)
    assert lonely.idle
