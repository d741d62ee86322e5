"""Bounds of the simulated exchange and the demo."""

# --- simulated exchange ---------------------------------------------------------------------------
SIM_MARKETS_MAX = 100_000
"""Markets of the generator; a larger number is a configuration error."""
SIM_TRADES_KEPT = 100_000
"""Newest trades that REST can list; older ones are forgotten."""
SIM_SETTLED_MARKETS_KEPT = 1_000
"""Settled markets still listed; the oldest then moves to the historical endpoints."""
SIM_ARCHIVED_MARKETS_KEPT = 10_000
"""Markets of the historical endpoints; the oldest is then forgotten."""
SIM_CANDLES_KEPT = 300
"""Candles of one minute kept for each market, five hours of them; older ones are forgotten."""
SIM_CANDLES_PER_REPLY = 10_000
"""Candlesticks in one reply; a request for more is refused."""
SIM_COMMAND_MAX_BYTES = 4 * 1024 * 1024
"""One command of a client; a longer one closes the connection with code 1009."""
SIM_SUBSCRIPTION_BUFFER_FRAMES = 65_536
"""Frames waiting for a slow client per subscription; at the bound it ends with error 25."""
SIM_OUTBOX_FRAMES = 1_000_000
"""Frames of any kind waiting for one connection; at the bound it is reset."""
SIM_WRITE_BUFFER_BYTES = 1024 * 1024
"""Bytes in a transport above which the connection counts as slow and its frames wait in the subscriptions."""
SIM_TICKS_PER_WAKE = 100
"""Ticks made up in one go when the process was held up; further ones are skipped and counted."""
SIM_FAULTS_WAITING = 1_024
"""Faults waiting for the next frame of one subscription, and entries of a fault script; more are refused."""
SIM_FLOOD_ACTIONS_MAX = 1_000_000
"""Order actions of one flood."""
SIM_REPLAY_MAX_BYTES = 512 * 1024 * 1024
"""Size of a capture that is replayed; a larger one is refused."""
SIM_REPLAY_FRAMES_PER_TICK = 2_000
"""Recorded frames sent to one client in one tick, whatever the speed."""
SIM_HANDSHAKE_TIMEOUT_S = 10
"""A TCP connection that has not finished its upgrade by then is closed."""
SIM_RATE_LIMITED_KEYS = 1_024
"""Token buckets kept; at the bound the oldest is forgotten."""

# --- demo -----------------------------------------------------------------------------------------
DEMO_START_TIMEOUT_S = 60
"""Until a part of the demo is up, and until all markets are live; then it ends with an error."""
DEMO_DRAIN_TIMEOUT_S = 20
"""After the flow was stopped, until everything has arrived; what is missing then is a failure of the check."""
DEMO_STOP_TIMEOUT_S = 10
"""A process of the demo that has not ended so long after SIGTERM is killed."""
DEMO_REQUEST_TIMEOUT_S = 10
"""One HTTP request to the demo's own exchange or plant."""
DEMO_OUTPUT_LINES_KEPT = 50
"""Newest lines of output of each process, for the error if it ends too early."""
DEMO_OUTPUT_LINE_MAX_BYTES = 256 * 1024
"""A longer line of output is dropped."""
DEMO_STORED_BOOKS = 40
"""Books that the demo rebuilds from stored rows, spread over all of them; a larger market is sampled."""
DEMO_FAULTS_SHOWN = 5
"""Gaps, stale and unequal books that are named each; the others are counted."""
