"""Bounds of the feed: connections, REST, markets."""

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
CHECK_LOOKS_MAX = 1_000
"""Markets looked at for one whose book can be compared, each time a check is due; then none is made this time."""
PING_INTERVAL_NS = 10_000_000_000
SOCKET_SILENCE_NS = 25_000_000_000
"""No frame of any kind (pong included) for so long: the socket is dead, reconnect."""
SUBSCRIPTION_SILENCE_NS = 30_000_000_000
"""No frame on a sid for so long: it is probed; no answer means resubscribe."""
SUBSCRIPTION_RETRY_NS = 1_000_000_000
"""A subscription that ends again and again is asked for once in so long."""
SEQUENCE_GAP_MAX = 1_000_000
"""Frames that can be missing on one sid; a larger jump of `seq` is a broken counter: reconnect."""
REFUSED_COMMAND_RETRY_NS = 1_000_000_000
MARKET_LIMIT_RETRY_NS = 30_000_000_000
"""After error 26 (too many markets) the command is tried again so much later, without end."""
RECONNECT_BASE_NS = 250_000_000
RECONNECT_CAP_NS = 30_000_000_000
"""Back-off doubles with jitter up to this cap; it never gives up."""
CONNECTIONS_MAX = 10
"""WebSocket connections per plant; the exchange's demo refuses the eleventh."""
CONNECT_TIMEOUT_S = 10
"""Name look-up, TCP, TLS and upgrade of one connection together; then the attempt has failed."""
CONNECT_ATTEMPTS_AT_START = 6
"""Failed attempts in a row before the first connection of all is up: ExchangeUnavailableError. Later: no bound."""
CONNECTION_STABLE_NS = 60_000_000_000
"""A connection that stayed up so long starts the back-off anew."""
SOCKET_DRAIN_TIMEOUT_S = 2
"""How long a closed connection may take to go before it is left to the kernel."""
TCP_KEEPALIVE_IDLE_S = 15
TCP_KEEPALIVE_INTERVAL_S = 5
TCP_KEEPALIVE_PROBES = 3
TCP_UNACKNOWLEDGED_MS = 30_000
"""Sent bytes that stay unacknowledged for so long: the kernel ends the connection."""
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
"""Pace when the account's own limits cannot be read; a request beyond the pace waits for its token."""
REST_REQUEST_COST = 10
"""Tokens one read costs by default; the account's limits are told in tokens."""
REST_CONNECTIONS_MAX = 4
"""TCP connections of one REST client; further requests wait for one."""
REST_BACKOFF_BASE_NS = 250_000_000
REST_BACKOFF_CAP_NS = 8_000_000_000
REST_PAGE_ITEMS = 1_000
"""Markets or trades asked per page (the exchange's own maximum; 1001 is refused)."""
REST_EVENT_PAGE_ITEMS = 200
REST_TICKERS_PER_REQUEST = 100
REST_TICKERS_PER_REQUEST_BYTES = 4_000
"""Tickers in one query string, by count and bytes; more are asked in several requests."""
REST_ERROR_TEXT_MAX_CHARACTERS = 200
"""Of an error text of the exchange so many characters are shown; the rest is cut."""
CLOCK_OFFSET_TOLERATED_NS = 2_000_000_000
"""A refused time stamp with a smaller clock offset was a slow request and is sent again; beyond: ClockSkewError."""
KEY_FILE_MAX_BYTES = 64 * 1024
"""A larger key file is refused unread: it is no PEM key."""
REFRESH_PAGE_ITEMS = 200
"""Markets per page of a refresh while the plant runs: decoding one page holds it up for about a millisecond."""
REFRESH_OVERLAP_NS = 60_000_000_000
"""A refresh asks for changes since so long before the last one, for clocks that differ."""
DISCOVERY_NAMES_SHOWN = 10
"""Names that an error about missing markets lists; it counts the others."""

# --- market directory -----------------------------------------------------------------------------
SUBSCRIBE_LEAD_NS = 1_000_000_000
"""A market is subscribed so long before it opens."""
FINISHED_GRACE_NS = 60_000_000_000
"""A closed or determined market stays subscribed so long, in case it re-opens."""
SETTLED_KEEP_NS = 600_000_000_000
FINISHED_KEEP_NS = 7 * 86_400 * 1_000_000_000
"""A settled, or a finished but never settled, market is forgotten after so long."""
REST_LAG_NS = 5_000_000_000
"""REST may lag the lifecycle channel: a read sent earlier than this after an event only fills what is unknown."""
EVENT_WAIT_NS = 2_000_000_000
"""An unknown event is looked up if `event_lifecycle` has not named its series within this time."""
EVENT_LOOK_UP_REPEAT_NS = 60_000_000_000
EVENT_LOOK_UPS_MAX = 3
"""Look-ups of one event without answer; then its undecided markets are dropped, counted."""
EVENTS_KNOWN_MAX = 200_000
"""Events whose series is remembered; the oldest makes room and would be looked up again."""
UNDECIDED_MARKETS_MAX = 50_000
"""Markets waiting for their event's series; more are refused and counted."""
UNKNOWN_MARKETS_MAX = 10_000
"""Markets seen in a lifecycle frame before they were known, waiting for their look-up; more are counted."""
LOOK_UP_ATTEMPTS = 5
"""Tries of one look-up while the exchange says it does not exist (it may lag); then it is reported missing."""
PRICE_BANDS_MAX = 16
"""Price bands of one market; more are refused (none published) and counted."""
SHORT_TEXT_MAX_BYTES = 64
"""Structure name, strike type, strike and result of a market; longer is refused (left empty) and counted."""
