"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_AUDIT = str(Path(__file__).parent / "audit")

# The same examples on every run, so that a red test is red for the next one who runs it; JSONQUEUE_EXPLORE=1 looks for new ones.
# A slow machine is no bug: no deadline for a single example.
settings.register_profile(
    "jsonqueue", deadline=None, derandomize=not os.environ.get("JSONQUEUE_EXPLORE"), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jsonqueue")


@pytest.fixture(scope="session", autouse=True)
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every broker process that any test starts is watched (``audit/sitecustomize.py``); what one did that a broker never does is an error
    at the end. Where that is written down."""
    report = tmp_path_factory.mktemp("audit") / "report"
    report.touch()
    # In front of both: tests hand a child either this environment or this sys.path.
    sys.path.insert(0, _AUDIT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_AUDIT, os.environ.get("PYTHONPATH"))))
    os.environ["JSONQUEUE_TESTS_AUDIT"] = str(report)
    yield report
    done = [line for line in report.read_text().splitlines() if not line.endswith(" watched")]
    assert not done, "brokers did what no broker does:\n" + "\n".join(done[:20])
