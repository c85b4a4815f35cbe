"""(interface draft; being filled in)"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    file: str
    offset: int
    batch: int | None
    what: str  # one sentence
    kind: str  # "torn-tail" | "leftover" | "damaged-batch" | "damaged-queue" | "edited" | "newer" | "broken-history" | "gap"
    harmless: bool
    options: str  # what to do


class Report(NamedTuple):
    findings: list[Finding]
    done: list[str]  # repair: what was changed, one sentence each
    lost: list[str]  # repair --accept-loss: what is lost, one sentence each
    tasks: int | None  # how many tasks the queue holds, if it could be read

    # property ok: no finding that is not harmless


def verify(queue_dir: str | Path) -> Report:
    """Read-only check of all files."""


def repair(queue_dir: str | Path, *, accept_loss: bool = False, accept_edit: bool = False) -> Report:
    """Takes all three locks (ManagerRunning if held). Lossless unless told otherwise."""
