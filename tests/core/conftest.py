"""Hypothesis profile of the core's property tests, and the way to the models that several areas share."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.append(str(Path(__file__).parent.parent / "models"))

# Examples are the same in every run, so that a failure is one for everybody; a slow machine is none.
settings.register_profile(
    "tickerplant",
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tickerplant")
