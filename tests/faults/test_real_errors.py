"""Errors of the system in real processes, put there by strace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cast import Cast
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import JsonQueueError

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path / "queue") as cast:
        yield cast


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_whose_fsync_fails_again_and_again_stops_the_brokers(cast: Cast, error: str) -> None:
    """Each restart meets it again; after a few of them all ends with status 74, and what was acknowledged is there."""
    serving = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", f"inject=fdatasync:error={error}:when=4+",
         sys.executable, "-m", "jsonqueue.main", "--queue", str(cast.queue_dir), "serve"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    acknowledged = []
    try:
        assert serving.stdout is not None
        assert b"serving" in serving.stdout.readline()
        with Publisher(cast.queue_dir, timeout=20) as publisher:
            for number in range(2_000):
                if serving.poll() is not None:
                    break
                try:
                    acknowledged.append(publisher.publish({"n": number}).id)
                except JsonQueueError:
                    continue  # Unknown, or nobody there: not acknowledged.
        assert serving.wait(60) == 74
    finally:
        serving.kill()
        serving.wait()
        serving.stdout.close()
    assert acknowledged
    assert set(acknowledged) <= cast.tasks().keys()
