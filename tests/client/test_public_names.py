"""What ``import jsonqueue`` gives, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import jsonqueue


def loaded_by(code: str) -> set[str]:
    """The modules a fresh interpreter has loaded after this."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(run, capture_output=True, check=True, text=True, timeout=30, env=environment).stdout.split())


@pytest.mark.parametrize("name", jsonqueue.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(jsonqueue, name) is not None
    assert name in dir(jsonqueue)


def test_every_name_that_is_looked_for_elsewhere_is_public() -> None:
    """The table of homes and the list of names agree."""
    assert set(jsonqueue._HOME_OF) <= set(jsonqueue.__all__)


def test_another_name_is_none_of_ours() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Worker'"):
        jsonqueue.Worker  # noqa: B018 - looking is the test


def test_importing_costs_nothing_until_something_is_used() -> None:
    """No dependency and no asyncio comes along."""
    assert not loaded_by("import jsonqueue") & {"msgspec", "orjson", "filelock", "asyncio", "jsonqueue.task"}


def test_a_consumer_with_a_plain_handler_needs_no_asyncio() -> None:
    """Only an async handler pays for it. (filelock brings its own, so this looks at what we load.)"""
    code = "from jsonqueue import Consumer\nConsumer('queue_data', print)"
    assert "jsonqueue.client.coroutines" not in loaded_by(code)
