"""Ids and their task numbers as text: a fifth of the memory that a dict of them takes, at some five times its time.

A shelf is a string, ``"\\nuser-42 17\\nuser-7 18\\n"``, and holds some sixteen ids, found by their hash and then by a search of its text.
For each sixteen ids there is one more shelf, by dividing one after the other in two (linear hashing): so no single addition has all of them
to rearrange.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Shelves", "can_be_shelved"]

_ON_A_SHELF = 16


def can_be_shelved(task_id: str) -> bool:
    """Whether it would be found again: an id that is one has neither spaces nor line breaks."""
    return " " not in task_id and "\n" not in task_id


class Shelves:
    """Id → task number."""

    __slots__ = ("_count", "_low_bits", "_next", "_texts")

    def __init__(self) -> None:
        self._texts = ["\n"]
        self._count = 0
        self._low_bits = 0
        """Of a hash, those that name a shelf; one bit more for the shelves before the next one, which are divided already."""
        self._next = 0
        """Which is divided next."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            yield from (entry.partition(" ")[0] for entry in _entries(text))

    def get(self, task_id: str) -> int | None:
        """The number of its task; None: it is not there."""
        text = self._texts[self._place(task_id)]
        _, found, behind = text.partition(f"\n{task_id} ")
        return int(behind[: behind.index("\n")]) if found else None

    def add(self, numbers: Iterable[tuple[str, int]]) -> None:
        """Put these in their places. None of them is there."""
        texts, place = self._texts, self._place
        for task_id, number in numbers:
            texts[place(task_id)] += f"{task_id} {number}\n"
            self._count += 1
            if self._count > _ON_A_SHELF * len(texts):
                self._divide()

    def remove(self, task_id: str, number: int) -> None:
        """Take out this one, which is there with this number."""
        place = self._place(task_id)
        text = self._texts[place].replace(f"\n{task_id} {number}\n", "\n", 1)
        self._texts[place] = text if len(text) > 1 else "\n"  # the one that all empty shelves share
        self._count -= 1

    def are_free(self, ids: Iterable[str]) -> bool:
        """Whether none of these is there."""
        texts, place = self._texts, self._place
        return not any(f"\n{task_id} " in texts[place(task_id)] for task_id in ids)

    def _place(self, task_id: str) -> int:
        place = hash(task_id) & self._low_bits
        return place if place >= self._next else hash(task_id) & (2 * self._low_bits + 1)

    def _divide(self) -> None:
        bit = self._low_bits + 1
        parts = ["\n"], ["\n"]
        for entry in _entries(self._texts[self._next]):
            parts[hash(entry.partition(" ")[0]) & bit > 0].append(f"{entry}\n")
        self._texts[self._next] = "".join(parts[0])
        self._texts.append("".join(parts[1]))
        self._next += 1
        if self._next == bit:
            self._low_bits, self._next = 2 * bit - 1, 0


def _entries(text: str) -> list[str]:
    return text.split("\n")[1:-1]
