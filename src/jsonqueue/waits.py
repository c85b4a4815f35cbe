"""How long anything is waited for at most."""

from __future__ import annotations

__all__ = ["FOR_EVER_S", "WAIT_MAX_MS"]

WAIT_MAX_MS = 2_000_000_000
"""23 days. The longest single wait, and the longest that a setting may ask for: no system call takes more than 2³¹ ms."""

FOR_EVER_S = 1e9
"""Thirty years. A timeout beyond it, infinity included, stands for ever."""
