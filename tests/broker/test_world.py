"""Whole histories of both brokers on a disk that fails, each from a seed."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.world import World

SEEDS = 120


@pytest.mark.parametrize("block", range(6))
def test_nothing_acknowledged_is_lost_and_nothing_completes_twice(block: int) -> None:
    """Kills, power cuts in the midst of any operation, failed syncs, checkpoints: the promises hold in each world."""
    happened: Counter[str] = Counter()
    for seed in range(block * SEEDS // 6, (block + 1) * SEEDS // 6):
        world = World(seed)
        try:
            world.run(120)
        except BaseException as error:
            error.add_note(f"World({seed}).run(120); last operations: {world.files.trace[-12:]}")
            raise
        happened += world.happened
    for fault in ("power cut in the midst of it", "kill in the midst of it", "failed sync", "kill_all", "checkpoint"):
        assert happened[fault], f"{fault} never happened: the worlds are too kind"
