"""The ids that are taken: whatever is kept in runs behaves as a plain dict would."""

from __future__ import annotations

import tracemalloc
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from jsonqueue.core.shelves import Shelves
from jsonqueue.core.taken import TakenIds

_PREFIXES = st.sampled_from(["a", "b", "a-b", "order"])
_STARTS = st.integers(1, 60)
_BATCHES = st.builds(
    lambda prefix, start, count: [f"{prefix}-{n}" for n in range(start, start + count)], _PREFIXES, _STARTS, st.integers(1, 40)
)
_ODD_ONES = ["a", "a-", "a-0", "a-007", "a-1x", "-5", "16", "-16", "a-٣", "a-²", "a-1\na-2", "9" * 30, "a-" + "9" * 30, "a-b"]
_ID = st.one_of(st.sampled_from(_ODD_ONES), st.builds(lambda prefix, n: f"{prefix}-{n}", _PREFIXES, st.integers(0, 110)))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.one_of(_BATCHES, st.lists(_ID, max_size=20))),
        st.tuples(st.just("forget"), st.one_of(_BATCHES, st.lists(_ID, max_size=20))),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(_STEPS, st.sampled_from([0, 3, 1024]))
def test_taken_ids_are_a_dict_that_takes_less_room(steps: list[tuple[str, list[str]]], young_max: int) -> None:
    """Published in batches that count on or do not, forgotten in any order, published again: the same ids with the same numbers."""
    taken, model, number = TakenIds(young_max=young_max), dict[str, int](), 1
    for what, ids in steps:
        if what == "publish":
            free = len(set(ids)) == len(ids) and model.keys().isdisjoint(ids)
            assert free or not taken.all_free(ids)
            new = list(dict.fromkeys(task_id for task_id in ids if task_id not in taken))
            assert new == list(dict.fromkeys(task_id for task_id in ids if task_id not in model))
            taken.add(new, number)
            model.update(zip(new, range(number, number + len(new)), strict=True))
            number += len(new)
        else:
            assert [taken.get(task_id) for task_id in ids] == [model.get(task_id) for task_id in ids]
            # Of every seventh there is an old story only: that was another task of the same id.
            gone = {task_id: max(1, model.get(task_id, 1) - (place % 7 == 6)) for place, task_id in enumerate(ids)}
            taken.discard(gone)
            model = {task_id: number for task_id, number in model.items() if gone.get(task_id) != number}
        assert len(taken) == len(model)
        assert taken == model
    assert all((task_id in taken) == (task_id in model) for task_id in _ODD_ONES)


@settings(max_examples=100, deadline=None)
@given(st.lists(_BATCHES, max_size=5), st.data())
def test_what_is_loaded_from_a_file_with_gaps_is_what_was_there(batches: list[list[str]], data: st.DataObject) -> None:
    """Tasks that are gone leave gaps in the numbers, and none in what is known of the others."""
    ids = list(dict.fromkeys(task_id for batch in batches for task_id in batch))
    numbers = {task_id: number for number, task_id in enumerate(ids, 1)}
    for task_id in data.draw(st.lists(st.sampled_from(ids), max_size=10)) if ids else []:
        numbers.pop(task_id, None)
    taken = TakenIds()
    taken.add_loaded(list(numbers), list(numbers.values()))
    assert taken == numbers


def test_an_id_that_is_not_written_as_we_would_is_another_one() -> None:
    """It would be taken for a duplicate, and its task be lost; or it would be there, and not be found again."""
    taken = TakenIds()
    taken.add([f"a-{n}" for n in range(1, 21)], 1)
    assert [task_id for task_id in (*_ODD_ONES, "a-01", "a-1 ", "a-21") if task_id in taken] == []
    odd = [f"b-{n}" for n in range(20)]
    taken.add(odd, 21)
    assert [taken.get(task_id) for task_id in odd] == list(range(21, 41))


def test_the_id_behind_a_run_that_is_not_the_last_one_is_free() -> None:
    taken = TakenIds()
    for first in (1, 101):
        taken.add([f"a-{n}" for n in range(first, first + 20)], first)
    assert [task_id in taken for task_id in ("a-20", "a-21", "a-100", "a-101")] == [True, False, False, True]


def test_a_gap_behind_the_first_that_is_loaded_is_one_too() -> None:
    taken = TakenIds()
    taken.add_loaded(["a", "b", "c", "d"], [1, 3, 4, 6])
    assert dict(taken) == {"a": 1, "b": 3, "c": 4, "d": 6}


def test_ids_that_count_on_take_next_to_no_room() -> None:
    """Ten bytes each, where a dict takes more than a hundred; and none at all once they are forgotten."""
    tracemalloc.start()
    try:
        taken, before = TakenIds(), tracemalloc.get_traced_memory()[0]
        for first in range(1, 100_001, 1_000):
            taken.add([f"k3jqd7m2xw5abc-{n}" for n in range(first, first + 1_000)], first)
        assert tracemalloc.get_traced_memory()[0] - before < 10 * 100_000
        for number in range(1, 100_001):
            taken.discard({f"k3jqd7m2xw5abc-{number}": number})
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
    assert not taken


def test_ids_of_ones_own_take_a_quarter_of_what_a_dict_takes() -> None:
    """Forty bytes each, the last few thousand of them being in a dict; and next to none once they are forgotten."""
    chance = Random(1)
    ids = [f"order-{chance.getrandbits(40):010x}" for _ in range(100_000)]
    numbers = list(range(1, 100_001))
    tracemalloc.start()
    try:
        taken, before = TakenIds(), tracemalloc.get_traced_memory()[0]
        for first in range(0, 100_000, 1_000):
            taken.add(ids[first : first + 1_000], first + 1)
        assert tracemalloc.get_traced_memory()[0] - before < 40 * 100_000
        assert [taken[task_id] for task_id in ids] == numbers
        taken.discard(dict(zip(ids, numbers, strict=True)))
        assert tracemalloc.get_traced_memory()[0] - before < 1 * 100_000
    finally:
        tracemalloc.stop()
    assert not taken


def test_shelves_divide_evenly() -> None:
    """However many there are: none is searched for long."""
    shelves = Shelves()
    for number in range(1, 5_001):
        shelves.add([(f"id{number}", number)])
        if number % 97 == 0:
            assert max(text.count(" ") for text in shelves._texts) < 80
    assert sorted(shelves) == sorted(f"id{number}" for number in range(1, 5_001))


def test_so_do_ids_that_count_on_and_come_one_by_one() -> None:
    """From several publishers in turns, so that the numbers of their tasks do not follow each other."""
    prefixes = [letter * 14 for letter in "abc"]
    tracemalloc.start()
    try:
        taken, number, before = TakenIds(), 0, tracemalloc.get_traced_memory()[0]
        for counter in range(1, 10_001):
            for prefix in prefixes:
                number += 1
                taken.add([f"{prefix}-{counter}"], number)
        assert tracemalloc.get_traced_memory()[0] - before < 12 * 30_000
    finally:
        tracemalloc.stop()
    assert [taken[f"{prefix}-7777"] for prefix in prefixes] == [3 * 7776 + place for place in (1, 2, 3)]
    assert len(taken) == 30_000
