"""`tickerplant` with the waits of its feed shortened, so that half a minute sees what otherwise takes several.

Only how long things are waited for is changed, before anything else is imported; the plant is the real one.
"""

import sys

from tickerplant import limits

MILLISECOND_NS = 1_000_000
SHORT_TIMES_NS = {
    "PING_INTERVAL_NS": 500,
    "SOCKET_SILENCE_NS": 2_500,
    "SUBSCRIPTION_SILENCE_NS": 1_500,
    "SNAPSHOT_TIMEOUT_NS": 800,
    "COMMAND_TIMEOUT_NS": 2_000,
    "SUBSCRIPTION_RETRY_NS": 300,
    "REFUSED_COMMAND_RETRY_NS": 300,
    "RECONNECT_BASE_NS": 100,
    "RECONNECT_CAP_NS": 600,
    "CONNECTION_STABLE_NS": 2_000,
    "REST_BACKOFF_BASE_NS": 100,
    "REST_BACKOFF_CAP_NS": 800,
}
"""In milliseconds."""
SHORT_TIMES_S = {"REFRESH_SPACING_S": 1}

for name, milliseconds in SHORT_TIMES_NS.items():
    assert getattr(limits, name) > milliseconds * MILLISECOND_NS
    setattr(limits, name, milliseconds * MILLISECOND_NS)
for name, seconds in SHORT_TIMES_S.items():
    assert getattr(limits, name) > seconds
    setattr(limits, name, seconds)
assert limits.SOCKET_SILENCE_NS > 2 * limits.PING_INTERVAL_NS

if __name__ == "__main__":
    from tickerplant.cli import main

    sys.exit(main())
