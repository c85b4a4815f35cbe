"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The same examples on every run, so that a red test is red for the next one who runs it; JSONQUEUE_EXPLORE=1 looks for new ones.
# A slow machine is no bug: no deadline for a single example.
settings.register_profile(
    "jsonqueue", deadline=None, derandomize=not os.environ.get("JSONQUEUE_EXPLORE"), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jsonqueue")
