"""How long a task waits after a failed attempt."""

from __future__ import annotations

from random import Random

import pytest

from jsonqueue.retry import Exponential, Linear, Never, policy_named


def test_exponential_doubles_up_to_its_cap() -> None:
    """0.1 s, then twice as long each time, 60 s at the most."""
    policy = Exponential(jitter=0)
    assert [policy.wait_ms(attempt, Random()) for attempt in (1, 2, 3, 10, 11, 64, 65, 1_000_000)] == [
        100, 200, 400, 51_200, 60_000, 60_000, 60_000, 60_000,
    ]  # fmt: skip


def test_a_factor_of_one_never_grows() -> None:
    assert Exponential(factor=1, jitter=0).wait_ms(1_000, Random()) == 100


def test_a_slow_growth_goes_on_beyond_any_number_of_attempts() -> None:
    """1 % more each time: 189 ms after 65 attempts, not the cap; and nothing, however often it is doubled, is nothing."""
    slow, none = Exponential(factor=1.01, jitter=0), Exponential(first_ms=0, jitter=0)
    assert [slow.wait_ms(attempt, Random()) for attempt in (64, 65, 66, 1_000_000)] == [187, 189, 191, 60_000]
    assert [none.wait_ms(attempt, Random()) for attempt in (1, 64, 65, 1_000_000)] == [0, 0, 0, 0]


def test_jitter_shortens_by_at_most_its_share() -> None:
    waits = {Exponential().wait_ms(3, Random(seed)) for seed in range(200)}
    assert len(waits) > 50
    assert min(w for w in waits if w is not None) >= 200
    assert max(w for w in waits if w is not None) <= 400


def test_linear_and_never() -> None:
    assert [Linear(step_ms=5, cap_ms=12).wait_ms(attempt, Random()) for attempt in (1, 2, 3)] == [5, 10, 12]
    assert Never().wait_ms(1, Random()) is None


def test_policies_by_name() -> None:
    assert policy_named("linear") == Linear()
    with pytest.raises(ValueError, match="use one of exponential, linear, never"):
        policy_named("hope")
