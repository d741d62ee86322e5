"""Every bound, with what happens at the bound. Each is imported from here, whichever part of it defines it.

Relations between bounds are asserted at the end, so that an edit that breaks one fails at import.
"""

from tickerplant.limits.core import *
from tickerplant.limits.feed import *
from tickerplant.limits.recovery import *
from tickerplant.limits.runtime import *
from tickerplant.limits.simulation import *
from tickerplant.limits.store import *
from tickerplant.limits.subscriber import *

assert HEADER_BYTES + BODY_MAX_BYTES + TRAILER_BYTES == DATAGRAM_MAX_BYTES
assert PACKED_BOOK_MAX_BYTES < PACKED_FRAME_BYTES < RECOVERY_FRAME_MAX_BYTES - 1_024
assert SOCKET_SILENCE_NS > 2 * PING_INTERVAL_NS
assert STREAM_DEAD_NS > 2 * HEARTBEAT_INTERVAL_NS
assert HEARTBEAT_INTERVAL_NS < SESSION_SILENT_NS < SESSION_CONFIRM_NS
assert RECOVERY_ANSWER_NS < JOIN_WAIT_NS < REPAIR_GIVE_UP_NS
assert SESSION_FINISH_NS < REPAIR_GIVE_UP_NS < RESUME_PATIENCE_NS
assert list(GAP_FILL_AT_NS) == sorted(GAP_FILL_AT_NS)
assert GAP_FILL_AT_NS[-1] + GAP_FILL_LAST_WAIT_NS >= STREAM_BEHIND_NS
assert END_OF_SESSION_AT_NS[-1] < END_OF_SESSION_DOUBT_NS < HEARTBEAT_INTERVAL_NS
assert list(HEARTBEAT_AFTER_DATA_NS) == sorted(HEARTBEAT_AFTER_DATA_NS)
assert HEARTBEAT_AFTER_DATA_NS[-1] < HEARTBEAT_INTERVAL_NS
assert RECONNECT_BASE_NS < RECONNECT_CAP_NS
assert REST_BACKOFF_BASE_NS < REST_BACKOFF_CAP_NS
assert REST_TICKERS_PER_REQUEST_BYTES > TICKER_MAX_BYTES
assert LOG_READ_BYTES > 2 * (DATAGRAM_MAX_BYTES + 8)
assert CAPTURE_BATCH_BYTES + FRAME_MAX_BYTES < CAPTURE_RECORD_MAX_BYTES
assert LOG_RESUME_WAIT_S < LOG_RESUME_WAIT_MAX_S < LOG_STABLE_S
assert LOG_WATCH_INTERVAL_S <= LOG_SURVEY_INTERVAL_S
assert SETTLED_KEEP_NS > FINISHED_GRACE_NS > SUBSCRIBE_LEAD_NS
assert FINISHED_KEEP_NS > FINISHED_GRACE_NS
# MarketInfo: three tickers, four short texts, the bands, six numbers and their msgpack headers.
assert (
    3 * (TICKER_MAX_BYTES + 3) + 4 * (SHORT_TEXT_MAX_BYTES + 3) + PRICE_BANDS_MAX * 10 + 6 * 9 + 16
    < BODY_MAX_BYTES
)
