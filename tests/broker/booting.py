"""Brokers that begin elsewhere than in the real entry point: in one that first breaks or bends what they stand on."""

from __future__ import annotations

import pytest

from jsonqueue.broker import child, process

__all__ = ["boot_by"]


def boot_by(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """From now on, what a manager of this process starts begins with ``main`` of this module, which goes on with the real one."""
    real = "from jsonqueue.broker.process import main"
    assert real in process.BOOT
    monkeypatch.setattr(child, "BOOT", process.BOOT.replace(real, f"from {module} import main"))
