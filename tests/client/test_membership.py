"""What a consumer says, and when: a conversation with its broker as a transcript, with no wire, no thread and no clock."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from jsonqueue.client.holdings import OVERDUE_S, STALL_S, Holdings
from jsonqueue.client.membership import Membership
from jsonqueue.client.outcome import NULL
from jsonqueue.event import Assign, Complete, Heartbeat, Return, Revoke, Settled, Welcome
from jsonqueue.task import Task, TaskStatus


def task(number: int) -> Task[Any]:
    return Task(id=f"t{number}", number=number, status=TaskStatus.IN_PROGRESS, published_ms=0, token=number, data=Raw(b"null"))


class Member(Membership):
    """With its books at hand."""

    def __init__(self, slots: int = 1) -> None:
        self.books = Holdings(slots)
        super().__init__(self.books, name="c")

    def joined_at(self, now: float, *, lease_ms: int = 30_000) -> Member:
        self.join(1)
        self.enter(Welcome("c@1", 1, lease_ms), now)
        return self


def test_nothing_is_said_before_the_welcome() -> None:
    """The Join alone; whatever has gathered by then follows the Welcome."""
    member = Member()
    member.joined_at(0.0)
    member.enter(Assign([task(1)]), 0.0)
    slot = member.books.slots[0]
    member.next_task(slot, None, 0.0)
    member.lost()
    member.next_task(slot, NULL, 0.1)
    assert (member.join(1).ids, member.speaks) == (["t1"], True)
    assert member.outgoing() == member.tend(9.0) == []
    assert member.patience(9.0) == 1.0, "with nobody to talk to there is nothing to be done in time"
    member.enter(Welcome("c@1", 2, 30_000), 9.0)
    assert [type(event) for event in member.outgoing()] == [Complete]


def test_what_a_lost_pipe_may_have_swallowed_is_said_again_first() -> None:
    """Under the same request and the same tokens; and with how much is wanted now, not then."""
    member = Member().joined_at(0.0)
    member.enter(Assign([task(1), task(2)]), 0.0)
    slot = member.books.slots[0]
    member.next_task(slot, None, 0.0)
    member.next_task(slot, NULL, 0.01)
    (said,) = member.outgoing()
    member.lost()
    member.join(1)
    member.enter(Welcome("c@1", 2, 30_000), 1.0)
    again, now = member.outgoing()
    assert again is said
    assert isinstance(now, Heartbeat)
    assert now.ids == ["t2"]
    member.enter(Settled(said.request, []), 1.1)  # type: ignore[attr-defined]
    assert not member.books.unsettled


def test_a_heartbeat_is_due_each_third_of_the_lease() -> None:
    """Whether or not anything runs."""
    member = Member().joined_at(0.0, lease_ms=3_000)
    assert member.patience(0.0) == 1.0
    assert member.tend(0.999) == []
    assert [type(event) for event in member.tend(1.0)] == [Heartbeat]
    assert member.patience(1.25) == 0.75


def test_an_outcome_waits_for_company_no_longer_than_it_may() -> None:
    """Then it is said, whatever else is going on."""
    member = Member().joined_at(0.0)
    member.enter(Assign([task(1), task(2)]), 0.0)
    slot = member.books.slots[0]
    member.next_task(slot, None, 0.0)
    member.next_task(slot, NULL, 0.001)
    assert member.patience(0.001) == OVERDUE_S
    assert member.tend(0.002) == []
    assert [type(event) for event in member.tend(0.001 + OVERDUE_S)] == [Complete]


def test_a_revoked_run_keeps_its_slot_and_no_task_is_asked_for_in_its_place() -> None:
    """Else what the broker sends in its place is given back 100 ms later, and sent again, ten times a second, until the run ends."""
    member = Member(slots=2).joined_at(0.0)
    member.enter(Assign([task(1), task(2)]), 0.0)
    one, two = member.books.slots
    member.next_task(one, None, 0.0)
    member.next_task(two, None, 0.0)
    member.enter(Revoke(["t1"], [1]), 1.0)
    member.enter(Assign([task(3)]), 1.0)  # was on its way
    (back,) = member.tend(1.0 + STALL_S)
    assert isinstance(back, Return)
    assert (back.ids, back.want) == (["t3"], 1)
    taken, speak = member.next_task(one, NULL, 5.0)
    assert (taken, speak, member.speaks) == (None, True, True)
    (news,) = member.outgoing()
    assert isinstance(news, Heartbeat)
    assert (news.ids, news.want) == (["t2"], 2), "its slot is free again, and nobody else would say so"
    assert not member.speaks


@pytest.mark.parametrize("tries", [1, 7])
def test_who_does_not_say_welcome_is_called_ever_less_often(tries: int) -> None:
    """At once, then from 50 ms up to a second; a Welcome begins anew."""
    member = Member()
    waits = [member.next_try() for _ in range(tries)]
    assert waits == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0][:tries]
    member.joined_at(0.0)
    assert member.next_try() == 0.0


def test_the_last_word_is_a_farewell() -> None:
    """A Return, be it of nothing: once it is settled, no task can be on its way any more."""
    member = Member().joined_at(0.0)
    member.drain(0.0, connected=True)
    (farewell,) = member.outgoing()
    assert isinstance(farewell, Return)
    assert (farewell.ids, farewell.want, member.stopping, member.books.idle) == ([], 0, True, False)
    member.enter(Settled(farewell.request, []), 0.1)
    assert member.books.idle


def test_a_slot_that_could_not_start_its_task_hands_it_back_and_wants_none_for_a_while() -> None:
    """The other one goes on; what is ready for nobody goes back too, and once the slot asks again there is room."""
    member = Member(2).joined_at(0.0)
    one, other = member.books.slots
    member.enter(Assign([task(1), task(2)]), 0.0)
    member.next_task(one, None, 0.0)
    member.next_task(other, None, 0.0)
    member.books.hand_back(one, 0.01)
    (returned,) = member.outgoing()
    assert isinstance(returned, Return)
    assert (returned.tokens, returned.want, member.books.stats.returned) == ([1], 1, 1)
    member.books.hand_back(other, 0.02)
    (returned,) = member.outgoing()
    assert isinstance(returned, Return)
    assert (returned.tokens, returned.want, member.books.running) == ([2], 0, 0)
    member.enter(Assign([task(3)]), 0.03)
    (returned,) = member.tend(0.03 + STALL_S)
    assert isinstance(returned, Return)
    assert returned.tokens == [3]
    assert member.next_task(one, None, 0.5) == (None, True)
    (beat,) = member.outgoing()
    assert isinstance(beat, Heartbeat)
    assert beat.want == 1


def test_a_task_that_was_revoked_before_it_could_not_be_started_is_not_returned() -> None:
    """It is somebody else's, or nobody's."""
    member = Member().joined_at(0.0)
    (slot,) = member.books.slots
    member.enter(Assign([task(1)]), 0.0)
    member.next_task(slot, None, 0.0)
    member.enter(Revoke(["t1"], [1]), 0.0)
    member.books.hand_back(slot, 0.0)
    assert (member.speaks, member.books.idle) == (False, True)
