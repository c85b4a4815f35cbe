"""The ids that are taken, each with the number of its task, in as little memory as it goes.

Most ids count on: ``k3jqd7m2xw5abc-1001``, ``…-1002``, and so on, as publishers make them, in batches or one by one. They are kept as runs:
the first counter, and the number of each task. So a million ids take eight megabytes instead of a hundred and forty. Every other id has an
entry in a dict at first, where it is dealt with quickest; when there are many of these, they go on shelves, where they take some thirty.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from jsonqueue.core.shelves import Shelves, can_be_shelved

__all__ = ["TakenIds"]

_RUN_MIN, _RUN_MAX = 16, 4096
"""Fewer ids take less as entries of their own; more would keep the memory of those that are gone for too long."""

_DIGITS_MAX = 18
_YOUNG_MAX = 1024
"""So many ids may have entries of their own: to shelve them all takes 1 or 2 ms, which somebody waits for."""


class _Run:
    """``{prefix}-{first}``, ``{prefix}-{first + 1}``, …: the number of each one's task, 0 for those that are gone."""

    __slots__ = ("first", "left", "numbers")

    def __init__(self, first: int, numbers: Iterable[int]) -> None:
        self.first = first
        self.numbers = array("Q", numbers)
        self.left = len(self.numbers)


_NO_RUN = _Run(0, ())


class _Series:
    """The runs of one prefix, in the order of their counters; no two overlap."""

    __slots__ = ("firsts", "runs")

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.runs: list[_Run] = []

    @property
    def next(self) -> str:
        """The counter behind the last run, as it is written."""
        last = self.runs[-1]
        return str(last.first + len(last.numbers))

    def before(self, end: int) -> _Run | None:
        """The last run that begins before ``end``."""
        place = bisect_right(self.firsts, end - 1)
        return self.runs[place - 1] if place else None

    def add(self, run: _Run) -> None:
        place = bisect_right(self.firsts, run.first)
        self.firsts.insert(place, run.first)
        self.runs.insert(place, run)

    def remove(self, run: _Run) -> None:
        place = bisect_right(self.firsts, run.first) - 1
        del self.firsts[place], self.runs[place]


class TakenIds(Mapping[str, int]):
    """Id → task number."""

    __slots__ = ("_in_runs", "_series", "_shelved", "_single", "_young_max")

    def __init__(self, numbers: Mapping[str, int] | None = None, *, young_max: int = _YOUNG_MAX) -> None:
        self._single: dict[str, int] = dict(numbers or {})
        self._shelved = Shelves()
        self._young_max = young_max
        self._series: dict[str, _Series] = {}
        self._in_runs = 0

    def __len__(self) -> int:
        return len(self._single) + len(self._shelved) + self._in_runs

    def __iter__(self) -> Iterator[str]:
        yield from self._single
        yield from self._shelved
        for prefix, series in self._series.items():
            for run in series.runs:
                yield from (f"{prefix}-{counter}" for counter, there in enumerate(run.numbers, run.first) if there)

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, str) and (
            task_id in self._single or self._shelved.get(task_id) is not None or self._in_run(task_id) is not None
        )

    def __getitem__(self, task_id: str) -> int:
        if (number := self._single.get(task_id)) is not None:
            return number
        if (number := self._shelved.get(task_id)) is not None:
            return number
        if (found := self._in_run(task_id)) is None:
            raise KeyError(task_id)
        run, offset = found
        return run.numbers[offset]

    def discard(self, gone: Mapping[str, int]) -> None:
        """Forget these, each only if it still stands for the task of that number."""
        single, shelved, run, stem, offset = self._single, self._shelved, _NO_RUN, "", 0
        for task_id, number in gone.items():
            if single.get(task_id) == number:
                del single[task_id]
                continue
            if shelved and shelved.get(task_id) == number:
                shelved.remove(task_id, number)
                continue
            offset += 1  # neighbours leave together: most often it is the one after the one before
            if offset >= len(run.numbers) or run.numbers[offset] != number or task_id != f"{stem}{run.first + offset}":
                found = self._in_run(task_id)
                if found is None or found[0].numbers[found[1]] != number:
                    continue
                (run, offset), stem = found, _parts(task_id)[0] + "-"
            run.numbers[offset] = 0
            run.left -= 1
            self._in_runs -= 1
            if not run.left:
                self._drop(stem[:-1], run)

    def add(self, ids: list[str], first: int) -> None:
        """These are taken from now on, by tasks with the numbers from ``first`` on. None of them was."""
        self._add(ids, first)
        if len(self._single) > self._young_max:
            self._shelve()

    def _add(self, ids: list[str], first: int) -> None:
        if len(ids) == 1:
            self._add_one(ids[0], first)
            return
        counting = _counting(ids)
        if counting is not None and not self._overlaps(*counting, len(ids)):
            self._begin(*counting, range(first, first + len(ids)))
        elif len(ids) < _RUN_MIN:
            for number, task_id in enumerate(ids, first):
                self._add_one(task_id, number)
        else:
            self._single.update(zip(ids, range(first, first + len(ids)), strict=True))

    def _add_one(self, task_id: str, number: int) -> None:
        """Of ids that come one by one and count on, every sixteenth may begin a run, which the ones after it join."""
        prefix, counter = _parts(task_id)
        series = self._series.get(prefix)
        run = series.before(counter + 1) if series and counter else None
        if run is not None and counter == run.first + len(run.numbers) and len(run.numbers) < _RUN_MAX:
            run.numbers.append(number)
            run.left += 1
            self._in_runs += 1
        elif counter and counter % _RUN_MIN == 0 and not self._overlaps(prefix, counter, 1):
            self._begin(prefix, counter, (number,))
        else:
            self._single[task_id] = number

    def _shelve(self) -> None:
        """All that can be: mostly that is all there are."""
        odd = () if can_be_shelved("".join(self._single)) else [task_id for task_id in self._single if not can_be_shelved(task_id)]
        left = {task_id: self._single.pop(task_id) for task_id in odd}
        self._shelved.add(self._single.items())
        self._single = left

    def _begin(self, prefix: str, counter: int, numbers: Sequence[int]) -> None:
        self._series.setdefault(prefix, _Series()).add(_Run(counter, numbers))
        self._in_runs += len(numbers)

    def add_loaded(self, ids: list[str], numbers: list[int]) -> None:
        """The same for tasks as they stand in a file: in the order of their numbers, some of them missing."""
        begin = 0
        for end in [*(place for place in range(1, len(ids)) if numbers[place] != numbers[place - 1] + 1), len(ids)]:
            self.add(ids[begin:end], numbers[begin] if begin < end else 0)
            begin = end

    def all_free(self, ids: list[str]) -> bool:
        """Whether none of these is taken and none comes twice. Of many it may say no where a look at each would have found them free."""
        counting = _counting(ids)
        if counting is not None:
            return not self._overlaps(*counting, len(ids)) and self._none_by_itself(ids)
        fresh = set(ids)
        if len(fresh) < len(ids) or not self._none_by_itself(fresh):
            return False
        return not self._series or all(self._in_run(task_id) is None for task_id in fresh)

    def _none_by_itself(self, ids: Collection[str]) -> bool:
        """Whether none of these is taken outside of the runs."""
        return (not self._single or self._single.keys().isdisjoint(ids)) and (not self._shelved or self._shelved.are_free(ids))

    def _overlaps(self, prefix: str, counter: int, count: int) -> bool:
        series = self._series.get(prefix)
        run = series.before(counter + count) if series else None
        return run is not None and run.first + len(run.numbers) > counter

    def _in_run(self, task_id: str) -> tuple[_Run, int] | None:
        prefix, dash, digits = task_id.rpartition("-")
        series = self._series.get(prefix)
        if series is None or not dash or digits == series.next:  # as are most that are asked for: they are about to count on
            return None
        counter = _counter(digits)
        run = series.before(counter + 1) if counter else None
        if run is None:
            return None
        offset = counter - run.first
        return (run, offset) if offset < len(run.numbers) and run.numbers[offset] else None

    def _drop(self, prefix: str, run: _Run) -> None:
        series = self._series[prefix]
        series.remove(run)
        if not series.runs:
            del self._series[prefix]


def _parts(task_id: str) -> tuple[str, int]:
    """``"abc-17"`` as ``("abc", 17)``. The counter is 0 if there is none, or if it is written as we would not write it."""
    prefix, dash, digits = task_id.rpartition("-")
    return prefix, _counter(digits) if dash else 0


def _counter(digits: str) -> int:
    if not digits.isdecimal() or not digits.isascii() or digits[0] == "0" or len(digits) > _DIGITS_MAX:
        return 0
    return int(digits)


def _counting(ids: list[str]) -> tuple[str, int] | None:
    """Prefix and first counter, if these are many and count on one by one."""
    if len(ids) < _RUN_MIN:
        return None
    prefix, counter = _parts(ids[0])
    if not counter or "\n" in prefix:
        return None
    # Joined and compared as a whole, which is quicker than one by one. No id can hold the separator: there would be more of them.
    digits = map(str, range(counter, counter + len(ids)))
    return (prefix, counter) if "\n".join(ids) == f"{prefix}-" + f"\n{prefix}-".join(digits) else None
