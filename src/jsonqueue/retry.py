"""Retry policies: how long a task waits after a failed attempt, as data.

A policy travels with its task as plain JSON (``{"kind":"exponential","first_ms":100,...}``). Chance comes in by the door, so that a
simulated run can be replayed from its seed. Whether there *is* another attempt is not decided here: that is the attempt limit's
and the deadline's business; only :class:`Never` has an opinion.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["Exponential", "Linear", "Never", "RetryPolicy", "policy_named"]

_Ms = Annotated[int, Meta(ge=0, le=10**12)]


class Exponential(Struct, frozen=True, tag="exponential", tag_field="kind", omit_defaults=True, forbid_unknown_fields=True):
    """Wait ``first_ms``, then ``factor`` times longer after each further attempt, at most ``cap_ms``.

    ``jitter`` is the share of the wait that is drawn by chance: 0.5 waits between 50 % and 100 % of it, so that tasks that failed
    together do not come back together.
    """

    first_ms: _Ms = 100
    factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    cap_ms: _Ms = 60_000
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.5

    def wait_ms(self, attempt: int, chance: Random) -> int | None:
        """Milliseconds to wait after attempt number ``attempt`` (from 1) has failed."""
        try:
            full = min(self.cap_ms, self.first_ms * float(self.factor) ** (attempt - 1))
        except OverflowError:  # 100 ** 1000 is more than a float holds
            full = self.cap_ms if self.first_ms else 0
        return round(full * (1 - self.jitter * chance.random()))


class Linear(Struct, frozen=True, tag="linear", tag_field="kind", omit_defaults=True, forbid_unknown_fields=True):
    """Wait ``step_ms`` after the first attempt, twice that after the second, and so on, at most ``cap_ms``."""

    step_ms: _Ms = 1_000
    cap_ms: _Ms = 60_000

    def wait_ms(self, attempt: int, chance: Random) -> int | None:
        """Milliseconds to wait after attempt number ``attempt`` (from 1) has failed."""
        return min(self.cap_ms, self.step_ms * attempt)


class Never(Struct, frozen=True, tag="never", tag_field="kind", forbid_unknown_fields=True):
    """No second attempt after a failure. (A lost consumer is no failure: its task is delivered again.)"""

    def wait_ms(self, attempt: int, chance: Random) -> int | None:
        """Always None: there is nothing to wait for."""
        return None


RetryPolicy = Exponential | Linear | Never

_NAMED: dict[str, RetryPolicy] = {"exponential": Exponential(), "linear": Linear(), "never": Never()}


def policy_named(name: str) -> RetryPolicy:
    """The policy of this name with its default figures. Raises ``ValueError`` that lists the names."""
    try:
        return _NAMED[name]
    except KeyError:
        known = ", ".join(_NAMED)
        raise ValueError(f"unknown retry policy {name!r}: use one of {known}, or Exponential(...), Linear(...), Never()") from None
