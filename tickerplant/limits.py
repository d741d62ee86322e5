"""Every bound in one place, with what happens at the bound.

Relations between bounds are asserted at the end, so that an edit that breaks one fails at import.
"""

# --- wire (design: KTP/1) -------------------------------------------------------------------------
DATAGRAM_MAX_BYTES = 1372
"""UDP payload of one datagram; never exceeded, a message that would is refused (OversizedMessageError)."""
HEADER_BYTES = 40
TRAILER_BYTES = 20
BODY_MAX_BYTES = 1312
"""msgpack body; a full packet is closed and the next message opens a new one."""
TICKER_MAX_BYTES = 200
"""UTF-8 bytes of a ticker; a longer one is refused and counted, its market is not published."""
TEXT_FIELD_MAX_BYTES = 200
"""UTF-8 bytes of any other text field on the wire; a longer one is refused or cut as its field says."""
BOOK_LEVELS_PER_PART = 64
"""Levels in one `BookLevels`; a larger book is sent in several parts."""
BOOK_PARTS_MAX = 1024
"""Parts of one book image; 10,000 price slots a side fit in 313. More is a malformed image."""

# --- numbers --------------------------------------------------------------------------------------
PRICE_E4_MAX = 10_000
"""One dollar in units of 1e-4 dollar; an order price lies strictly between 0 and this."""
SIZE_E2_MAX = 10**15
"""Ten trillion contracts in units of 1e-2 contract; a frame beyond it is unusable (counted, healed)."""
DECIMAL_TEXT_MAX_CHARACTERS = 32
"""Longer decimal strings are refused before any arithmetic."""
FIXEDPOINT_CACHE_ENTRIES = 65_536
"""Distinct decimal strings remembered; at the bound the cache is emptied and fills anew."""

# --- plant ----------------------------------------------------------------------------------------
MARKETS_MAX = 500_000
"""Books in one plant (the exchange's own limit per session); more are refused and counted."""
FRAMES_PER_FLUSH = 256
"""Frames of one read batch between two flushes and two clock reads."""
IMAGE_DATAGRAMS_PER_SECOND = 2_000
"""Pace of full images, resyncs and stale notices; the rest waits in the publish queue, one entry a book."""
IMAGE_BURST_DATAGRAMS = 64
"""Datagrams of that kind that may go out at once: fits a default receive buffer."""
HEARTBEAT_AFTER_DATA_NS = (10_000_000, 50_000_000, 250_000_000)
HEARTBEAT_INTERVAL_NS = 1_000_000_000
END_OF_SESSION_AT_NS = (0, 10_000_000, 50_000_000, 250_000_000)
SESSION_LISTEN_NS = 1_500_000_000
"""How long a starting plant listens on its groups for another plant."""
SESSION_AHEAD_MAX_NS = 60_000_000_000
"""A session number further in the future than this is forged or a broken clock: ignored, counted."""

# --- feed -----------------------------------------------------------------------------------------
FRAME_MAX_BYTES = 16 * 1024 * 1024
"""One WebSocket message, continuation frames included; beyond it the connection is closed and reopened."""
SOCKET_RECEIVE_BUFFER_BYTES = 256 * 1024
TICKERS_PER_COMMAND = 500
COMMANDS_IN_FLIGHT = 4
"""Commands without reply per connection; further ones wait in order."""
COMMAND_TIMEOUT_NS = 10_000_000_000
COMMAND_ATTEMPTS = 3
"""After so many timeouts the connection is reopened."""
SNAPSHOT_TICKERS_IN_FLIGHT = 1_000
"""Markets asked of `get_snapshot` without answer yet; the others wait STALE."""
SNAPSHOT_TIMEOUT_NS = 5_000_000_000
SNAPSHOT_ATTEMPTS = 3
PING_INTERVAL_NS = 10_000_000_000
SOCKET_SILENCE_NS = 25_000_000_000
"""No frame of any kind (pong included) for so long: the socket is dead, reconnect."""
SUBSCRIPTION_SILENCE_NS = 30_000_000_000
"""No frame on a sid for so long: it is probed; no answer means resubscribe."""
RECONNECT_BASE_NS = 250_000_000
RECONNECT_CAP_NS = 30_000_000_000
"""Back-off doubles with jitter up to this cap; it never gives up."""
CONNECTIONS_MAX = 10
"""WebSocket connections per plant; the exchange's demo refuses the eleventh."""
UNKNOWN_NAMES_COUNTED = 256
"""Distinct unknown message types or error codes counted by name; later ones share the name `other`."""

# --- REST -----------------------------------------------------------------------------------------
REST_BODY_MAX_BYTES = 32 * 1024 * 1024
REST_TIMEOUT_S = 20
REST_ATTEMPTS = 6
"""Tries of one request over 429, 5xx and network faults, with capped jittered back-off; then TemporaryError."""
REST_PAGES_MAX = 2_000
"""Pages of one cursor walk; more means a cursor that does not end: ExchangeError."""
REST_REQUESTS_PER_SECOND = 15

# --- subscriber -----------------------------------------------------------------------------------
REORDER_WAIT_NS = 1_000_000
"""How long a hole waits for reordering or line B before it is a gap."""
REORDER_DATAGRAMS_MAX = 4_096
"""Datagrams held behind a hole per stream; at the bound the hole is declared a gap at once."""
STREAM_DEAD_NS = 3_000_000_000
"""Neither data nor heartbeat for so long: the stream is dead, its books are STALE."""
SUBSCRIBER_QUEUE_MESSAGES = 65_536
"""Messages waiting for `async for`; at the bound the oldest are dropped and a Gap with cause consumer is told."""
SUBSCRIBER_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
DATAGRAMS_PER_DRAIN = 512
"""Datagrams read in one go before the loop runs other work."""

assert HEADER_BYTES + BODY_MAX_BYTES + TRAILER_BYTES == DATAGRAM_MAX_BYTES
assert SOCKET_SILENCE_NS > 2 * PING_INTERVAL_NS
assert STREAM_DEAD_NS > 2 * HEARTBEAT_INTERVAL_NS
assert list(HEARTBEAT_AFTER_DATA_NS) == sorted(HEARTBEAT_AFTER_DATA_NS)
assert HEARTBEAT_AFTER_DATA_NS[-1] < HEARTBEAT_INTERVAL_NS
assert RECONNECT_BASE_NS < RECONNECT_CAP_NS
