"""What a publisher sends next, what an answer settles, and what it sends again."""

from __future__ import annotations

import pytest
from msgspec import Raw

from jsonqueue.client.window import _BURST_MAX_BYTES, WINDOW, Batch, Window
from jsonqueue.task import TaskIn


def batch(number: int) -> Batch:
    return Batch([TaskIn(id=f"t{number}", data=Raw(b"null"))], [number], 4)


def filled(count: int) -> Window:
    window = Window()
    for number in range(count):
        window.push(batch(number))
    return window


def send_all(window: Window, first: int = 1) -> None:
    while window.head() is not None:
        window.sent(first)
        first += 1


def test_no_more_than_a_window_is_in_flight() -> None:
    """The next one goes when an answer comes."""
    window = filled(WINDOW + 2)
    send_all(window)
    assert (len(window.in_flight), len(window.unsent), window.has_room) == (WINDOW, 2, False)
    assert window.answered(1) == batch(0)
    assert window.head() == batch(WINDOW)


def test_there_is_room_for_another_batch_where_all_are_on_their_way_and_fewer_than_a_window() -> None:
    window = filled(1)
    assert not window.has_room, "that one goes first"
    window.sent(1)
    assert window.has_room
    for number in range(2, WINDOW + 1):
        window.push(batch(number))
        window.sent(number)
    assert not window.has_room
    window.answered(1)
    assert window.has_room


def test_a_broken_line_puts_everything_back_in_its_order() -> None:
    """Under the same ids, before what was never sent; and whether it is stored is uncertain from then on."""
    window = filled(3)
    window.sent(1)
    window.sent(2)
    assert window.answered(2) == batch(1)
    assert not window.uncertain
    window.broken()
    assert (list(window.unsent), window.uncertain) == ([batch(0), batch(2)], True)
    assert window.ids == ("t0", "t2")
    window.sent(3)
    window.sent(4)
    window.broken()
    assert list(window.unsent) == [batch(0), batch(2)]


def test_nothing_is_uncertain_any_more_once_it_is_answered() -> None:
    """Of those behind it, which were never on their way, nothing ever was; parts of a batch are as uncertain as it was."""
    window = filled(3)
    window.sent(1)
    window.sent(2)
    window.broken()
    first, second, third = window.unsent
    assert [window.doubts(one) for one in (first, second, third)] == [True, True, False]
    window.sent(3)
    window.broken()  # once more
    window.sent(4)
    assert window.answered(4) == first
    two = Batch([*second.tasks, *third.tasks], [1, 2], 8)
    window.replace(second, two)
    assert window.doubts(two)
    parts = two.only([0]), two.only([1])
    window.replace(two, *parts)
    assert [window.doubts(part) for part in parts] == [True, True]
    window.sent(5)
    assert window.answered(5) is parts[0]
    assert window.uncertain
    assert window.appended() is parts[1]
    assert not window.uncertain


def test_a_batch_goes_in_parts() -> None:
    """At its place and in its order; what was not among them does not go, nor does a part with nothing in it."""
    three = Batch([TaskIn(id=name, data=Raw(b"1" * size)) for size, name in enumerate("abc", 1)], [4, 5, 6], 6)
    window = Window()
    for one in (batch(0), three, batch(1)):
        window.push(one)
    window.replace(three, three.only([0]), three.only([]), three.only([1, 2]))
    first, rest = Batch(three.tasks[:1], [4], 1), Batch(three.tasks[1:], [5, 6], 5)
    assert list(window.unsent) == [batch(0), first, rest, batch(1)]
    window.replace(rest, rest.only([]))
    assert list(window.unsent) == [batch(0), first, batch(1)]


def test_a_part_with_nothing_in_it_is_in_no_doubt() -> None:
    """A batch that may be stored, of which nothing is left to be sent; ``doubtful``: handed in as one that was on its way before."""
    window = Window()
    window.push(batch(0), doubtful=True)
    assert window.uncertain
    window.replace(window.unsent[0], batch(0).only([]))
    assert not window.uncertain


def test_a_line_that_breaks_with_nothing_in_flight_leaves_no_doubt() -> None:
    """What was never sent is certainly not stored."""
    window = filled(2)
    window.broken()
    assert not window.uncertain


def test_an_answer_that_nobody_waits_for_settles_nothing() -> None:
    """It may come twice, or after its line was given up."""
    window = filled(1)
    window.sent(1)
    assert window.answered(1) == batch(0)
    assert window.answered(1) is None
    assert window.empty


def test_bursts_grow_without_a_line_and_begin_small_with_one() -> None:
    """Opening the log costs what the queue is large: the more there is, the more goes with one opening."""
    window = filled(WINDOW)
    assert not window.burst_has_room
    for _ in range(WINDOW):
        window.appended()
    window.burst_over()
    for number in range(WINDOW):
        window.push(batch(number))
    assert window.burst_has_room
    window.connected()
    assert not window.burst_has_room


@pytest.mark.parametrize("answered", ["over a line", "without one"])
def test_bursts_of_large_batches_do_not_grow(answered: str) -> None:
    """They are all in memory at once, however small the last of them was."""
    window = Window()
    for size in (_BURST_MAX_BYTES // WINDOW, 1):
        window.push(batch(0)._replace(bytes=size))
        if answered == "over a line":
            window.sent(1)
            window.answered(1)
        else:
            window.appended()
    window.burst_over()
    for number in range(WINDOW):
        window.push(batch(number))
    assert not window.burst_has_room
