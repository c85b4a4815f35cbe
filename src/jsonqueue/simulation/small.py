"""Small worlds, completely: every interleaving of a few participants and a few faults, through the real brokers.

The exploration walks all that can happen in a :mod:`~jsonqueue.simulation.small_world`, breadth first, each distinct state once. So the
first broken promise that it meets has the shortest trace.

What can go wrong: kill -9 of either broker, of the manager, of a consumer, at every operation on the disk or between two; power cuts, with
the unsynced names and bytes of each part of the disk lost or kept; a failed fsync, whose pages then count as clean or are dropped.
Time stands still, or passes from one moment at which something is due to the next.

Checked on the way: what is acknowledged is durable and stays, no id is stored twice, no token comes twice, a settled completion stays
and is the only one, every broker starts, every checkpoint folds what the logs say, the archive holds each task once. And from *every*
state, once nothing goes wrong any more, a fair schedule ends with everything done.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jsonqueue.simulation.cast import PRODUCTION, Cast
from jsonqueue.simulation.small_state import Faults, Scope, State
from jsonqueue.simulation.small_world import Explorer
from jsonqueue.simulation.verdict import Violation

__all__ = ["Explored", "Explorer", "Faults", "Scope", "State", "explore"]


class Explored(NamedTuple):
    """What was seen."""

    states: int
    transitions: int
    reactions: int
    """Calls that the real code was run for; all others were known."""
    complete: bool
    """Whether nothing was left to explore."""
    depth: int
    """The most that happened one after the other."""


def explore(
    scope: Scope,
    *,
    states_max: int = 200_000,
    cast: Cast = PRODUCTION,
    explorer: type[Explorer] = Explorer,
    liveness: bool = True,
) -> Explored:
    """Explore until everything, or so many distinct states, has been seen; then let each of them come to its end.

    Raises :class:`Violation` where a promise is broken; its notes are the shortest trace that leads there.
    """
    world = explorer(scope, cast)
    with _young_garbage_alone():
        return _explored(world, states_max, liveness)


@contextmanager
def _young_garbage_alone() -> Iterator[None]:
    """What was seen is kept to the end. To walk all of it again and again, for garbage that is not there, is a sixth of the work."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], 1 << 30)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _explored(world: Explorer, states_max: int, liveness: bool) -> Explored:
    seen = {world.start: 0}
    came: list[tuple[int, str]] = [(-1, "")]
    todo = deque([world.start])
    transitions = number = 0
    try:
        while todo and len(seen) < states_max:
            state = todo.popleft()
            number = seen[state]
            for label, then in world.next(state):
                transitions += 1
                if then not in seen:
                    seen[then] = len(came)
                    came.append((number, label))
                    todo.append(then)
        if liveness:
            world.real.mortal = False  # nobody dies of a fair schedule: what would be left of whom is not asked for
            for state, place in seen.items():
                number = place
                world.check_ends(state)
    except Violation as error:
        for place, label in enumerate([*_trace(came, number), *world.fairly, world.doing], 1):
            error.add_note(f"{place:3} {label}")
        raise
    return Explored(len(seen), transitions, world.real.computed, not todo, len(_trace(came, len(came) - 1)))


def _trace(came: list[tuple[int, str]], number: int) -> list[str]:
    steps = []
    while number > 0:
        number, label = came[number]
        steps.append(label)
    return steps[::-1]
