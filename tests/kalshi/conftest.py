"""Hypothesis profile of the core's property tests, and the way to the models that several areas share."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.append(str(Path(__file__).parent.parent / "models"))

# The machine is shared in CI, so an example may take its time; the number of examples is the bound.
settings.register_profile(
    "tickerplant", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tickerplant")

from rest_exchange import (  # noqa: E402, F401 - fixtures, found on the path set above
    ed25519_key,
    pem_of,
    rest_exchange,
    rsa_key,
    signature_verifies,
)
