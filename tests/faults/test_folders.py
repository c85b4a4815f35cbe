"""The folders in memory that fault lanes work in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from faults.lanes import TESTS, fast_folder

_LANE = """
import sys
from faults.lanes import fast_folder
with fast_folder() as folder:
    (folder / "file").write_text("left")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_lane_left_goes_with_the_next_one() -> None:
    """Its time limit kills it, and nobody else would ever take its folder away. One that lives keeps its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *[path for path in sys.path if path]])}
    lane = subprocess.Popen([sys.executable, "-c", _LANE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with lane:
        assert lane.stdout is not None
        left = Path(lane.stdout.readline().strip())
        with fast_folder():
            assert (left / "file").exists()
        lane.kill()
    with fast_folder() as folder:
        assert not left.exists()
        assert folder.is_dir()
    assert not folder.exists()
