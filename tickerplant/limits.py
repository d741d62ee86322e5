"""Every bound in one place, with what happens at the bound.

Relations between bounds are asserted at the end, so that an edit that breaks one fails at import.
"""

# --- wire (KTP/1) ----------------------------------------------------------------------------------
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

# --- authenticity ---------------------------------------------------------------------------------
DATAGRAM_KEY_BYTES = 32
"""Length of a key that signs datagrams; any other length is refused."""
DATAGRAM_KEYS_MAX = 16
"""Keys in one key file; more are refused."""
DATAGRAM_KEY_FILE_MAX_BYTES = 8 * 1024
"""A larger file is refused unread: it is no file of datagram keys."""
REPLAY_WINDOW_NS = 60_000_000_000
"""With keys: a datagram sent longer ago, or further ahead, by the receiver's clock is refused, counted."""
SEQUENCE_AHEAD_MESSAGES = 1_000_000
"""No stream publishes so many messages a second. Without keys a sequence further ahead than that in the time since the
stream was last heard, and one second more, is refused as forged, counted."""

# --- numbers --------------------------------------------------------------------------------------
PRICE_E4_MAX = 10_000
"""One dollar in units of 1e-4 dollar; an order price lies strictly between 0 and this."""
SIZE_E2_MAX = 10**15
"""Ten trillion contracts in units of 1e-2 contract; a frame beyond it is unusable (counted, healed)."""
DECIMAL_TEXT_MAX_CHARACTERS = 32
"""Longer decimal strings are refused before any arithmetic."""
FIXEDPOINT_CACHE_ENTRIES = 16_384
"""Distinct decimal strings remembered: every price, and the usual sizes. At the bound the cache is emptied and fills
anew; emptying takes 0.2 ms, four times as many entries 10 ms."""

# --- plant ----------------------------------------------------------------------------------------
MARKETS_MAX = 500_000
"""Books in one plant (the exchange's own limit per session); more are refused and counted."""
FRAMES_PER_FLUSH = 256
"""Frames of one read batch between two flushes and two clock reads."""
IMAGE_DATAGRAMS_PER_SECOND = 2_000
"""Pace of full images, resyncs and stale notices; the rest waits in the publish queue, one entry a book."""
IMAGE_BURST_DATAGRAMS = 64
"""Datagrams of that kind that may go out at once: fits a default receive buffer."""
IMAGE_RESUME_DATAGRAMS = 8
"""A queue that has used up its pace waits until so many may go: full datagrams instead of many small ones."""
NOTICES_MAX = 1_000_000
"""Status messages about markets without book that wait for the pace; more are dropped and counted."""
VERIFY_LOOKS_MAX = 1_000
"""Books looked at for one that is in step, each time a checksum is due; then none is told this time."""
DIVERGENCES_KEPT = 64
"""Divergences that wait to be logged one by one; further ones are only counted."""
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

# --- subscriber -----------------------------------------------------------------------------------
REORDER_WAIT_NS = 1_000_000
"""How long a hole waits for reordering or line B before it is a gap."""
REORDER_DATAGRAMS_MAX = 4_096
"""Datagrams held behind a hole per stream, and holes. At the bound: without recovery the oldest hole is a gap at once,
with recovery newer datagrams are dropped and asked for later."""
GAP_FILL_AT_NS = (0, 5_000_000, 20_000_000, 80_000_000)
"""When, after the wait, recovery is asked over UDP for what a hole lacks; then it is asked over TCP."""
GAP_FILL_LAST_WAIT_NS = 20_000_000
"""How long the last of these requests is waited for."""
GAP_FILL_JITTER_PERCENT = 20
"""Up to so much is added to the time between two requests, so that subscribers do not ask in step."""
GAP_FILL_IN_FLIGHT = 32
"""Requests over UDP without reply; further holes wait, and are asked for over TCP if that lasts."""
GAP_FILL_IN_FLIGHT_WAIT_NS = 5_000_000
"""How long a hole waits that could not be asked for because of that."""
GAP_FILL_MESSAGES_MAX = 4_096
"""Missing messages of one stream up to which recovery is asked over UDP; more are asked for over TCP."""
GAP_FILL_HOLES_MAX = 64
"""The same for the number of holes."""
RECOVERY_ADDRESSES_MAX = 8
"""Recovery addresses of one subscriber; more are a configuration error."""
RECOVERY_ANSWER_NS = 1_000_000_000
"""Without connection or hello for so long another address is tried."""
RECOVERY_SILENCE_NS = 3_500_000_000
"""A connection on which nothing came for so long is closed, and what was missing asked for anew."""
RECOVERY_BACKOFF_BASE_NS = 20_000_000
RECOVERY_BACKOFF_CAP_NS = 1_000_000_000
"""Wait before the next attempt after all addresses failed; it doubles up to the cap."""
REPAIR_NO_ROOM_WAIT_NS = 20_000_000
"""How long a hole waits that cannot be filled because too much is buffered before it."""
REPAIR_GIVE_UP_NS = 5_000_000_000
"""A hole in which recovery filled nothing for so long is a gap."""
JOIN_WAIT_NS = 3_000_000_000
"""How long a late joiner waits for recovery to answer at all; then it goes on without, and keeps trying."""
RESUME_PATIENCE_NS = 10_000_000_000
"""The same for one that goes on from a position."""
SNAPSHOT_MESSAGES_MAX = 16_000_000
"""Messages of one snapshot; a larger one is given up."""
SNAPSHOT_TICKERS_MAX = 200
"""Tickers named in the request for a snapshot; who wants more gets all."""
STREAM_BEHIND_NS = 100_000_000
"""A stream whose delivery has waited for so long is behind: what is kept from it is STALE until it has caught up."""
SESSION_CONFIRM_NS = 2_000_000_000
"""A higher session that recovery has not named for so long is refused, or taken if recovery is out of reach and the
session before is silent."""
SESSION_SILENT_NS = 1_500_000_000
"""Neither data nor heartbeat on any stream for so long: a session that recovery cannot be asked about is over."""
SESSION_FINISH_NS = 1_000_000_000
"""What an old session lacks is waited for as long as recovery makes progress, and so long without; then it is a gap."""
SESSION_CANDIDATES_MAX = 4
"""Higher sessions of one plant that wait for confirmation; datagrams of further ones are refused, counted."""
END_OF_SESSION_DOUBT_NS = 500_000_000
"""A heartbeat so long after an end of session shows that the plant lives and the end was forged."""
STREAM_DEAD_NS = 3_000_000_000
"""Neither data nor heartbeat for so long: the stream is dead, its books are STALE."""
SUBSCRIBER_QUEUE_MESSAGES = 65_536
"""Messages waiting for `async for`; at the bound the oldest are dropped and a Gap with cause consumer is told."""
SUBSCRIBER_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
DATAGRAMS_PER_DRAIN = 512
"""Datagrams read in one go before the loop runs other work."""
MESSAGES_PER_TURN = 256
"""Messages that `async for` hands out before the loop runs other work, the sockets first."""
PLANTS_MAX = 16
"""Plants (publisher, partition) followed on one set of groups; datagrams of further ones are refused, counted."""
TICKER_MATCHES_MAX = 500_000
"""Tickers whose match with the patterns is remembered; at the bound all are forgotten and matched anew."""
REFUSED_EVENT_INTERVAL_NS = 1_000_000_000
"""Least time between two events about refused datagrams of one kind; all are counted."""
KERNEL_DROPS_READ_INTERVAL_NS = 5_000_000
"""Least time between two looks at the kernel's drop counters; a gap in between takes the last ones read."""
UDP_TABLE_MAX_BYTES = 4 * 1024 * 1024
"""How much of the kernel's socket table is read; sockets beyond it show no drops."""
FAULT_LOG_INTERVAL_NS = 1_000_000_000
"""Least time between two logged faults of one kind, gaps and exceptions of callbacks; all are counted."""
REPLAY_DATAGRAMS_PER_TURN = 256
"""Recorded datagrams that are played before the loop runs other work."""
REPLAY_PUBLISH_PER_SECOND = 10_000
"""Recorded datagrams sent onto multicast groups in a second at most, whatever the speed: receivers have to follow."""
REPLAY_IDLE_MAX_NS = 10_000_000_000
"""A longer silence of a recording is played as one of this length: heartbeats come each second, so no plant ran."""
DECISION_DELAY_MAX_NS = 100_000_000
"""How long a due hole or silence waits while sockets still hold unread datagrams; then it is decided anyway."""

# --- daemon ---------------------------------------------------------------------------------------
PUBLISH_SEND_BUFFER_BYTES = 4 * 1024 * 1024
"""Asked of the kernel per socket; what does not fit is lost (EAGAIN), counted and left to repair."""
STATE_FILE_MAX_BYTES = 4_096
"""A larger session file is not ours: it is not read, and the clock alone gives the session."""
WATCHED_DATAGRAMS_MAX = 1_024
"""Datagrams of our own status group looked at per second for a newer plant; the rest waits in the kernel."""
TIMER_WAIT_MAX_NS = 1_000_000_000
"""The loop timer fires at least so often, whatever the clock did."""
CLOCK_SLEW_DIVISOR = 20
"""How fast a clock that is ahead of the wall clock gives way: 1/20, i.e. 50 ms per second."""
LOOK_UPS_AT_ONCE = 4
"""REST look-ups of single markets and events under way; further ones wait."""
LOOK_UPS_PER_BATCH = 100
"""Look-ups answered together; a missing one among them holds up the others of its batch for some seconds."""
RECORDS_PER_INPUT = 200
"""Markets handed to the feed in one go; the loop runs other work between two."""
LOOK_UPS_WAITING_MAX = 50_000
"""Look-ups that wait; at the bound further ones are dropped, counted, and all markets are read anew."""
REFRESH_INTERVAL_S = 600
"""How often all chosen markets are read anew, in case a lifecycle frame was missed unseen."""
REFRESH_SPACING_S = 10
"""Least time between two readings of all markets, whatever asks for them."""

# --- tick log -------------------------------------------------------------------------------------
LOG_READ_BYTES = 1024 * 1024
"""Bytes of a segment that a reader takes in one go; the rest waits for its next call."""
LOG_SEGMENT_OVERRUN_BYTES = 256 * 1024**2
"""A segment that cannot be followed by another grows by so much beyond its size; then the log goes off."""
LOG_ROTATION_RETRY_BYTES = 1024 * 1024
"""A rotation that was not possible is tried again after so many further bytes."""
LOG_SEGMENTS_MAX = 10_000
"""Segment files kept; more are deleted, the oldest first, like bytes beyond the retention."""
LOG_ALARM_PERCENT = 80
"""Share of the log's largest size from which on it alarms; a full log that went off resumes below it."""
LOG_CONSUMERS_MAX = 64
"""Position files looked at; with more of them nothing is deleted."""
LOG_POSITION_MAX_BYTES = 512
"""A larger position file is not one of ours; while it is there nothing is deleted."""
LOG_OWNER_BYTES = 256
"""What the owner writes about itself into the lock file, always so long, so that it needs no new space on disk."""
LOG_WATCH_INTERVAL_S = 1
"""How often upkeep looks whether the segment being written is still there."""
LOG_SURVEY_INTERVAL_S = 10
"""How often upkeep lists the folder: total size and retention. Also after each rotation, and while the log is off."""
LOG_RESUME_WAIT_S = 5
"""A log that went off may resume after so long at the earliest; doubled each time it goes off again soon."""
LOG_RESUME_WAIT_MAX_S = 300
LOG_STABLE_S = 600
"""A log that stayed on for so long starts with the short wait anew."""
LOG_REMINDER_S = 60
"""A tick log that is off, nearly full or in trouble is logged again so often."""
LOG_CLOSE_TIMEOUT_S = 5
"""How long closing waits for the last fsync; after that it is left to the kernel."""
LOG_FOLDER_SETTLE_NS = 100_000_000
"""A folder that changed so recently is listed again, because its time stamp is too coarse to tell two changes apart."""
LOG_FAULTS_SHOWN = 100
"""Faults that `log verify` names each; the others are counted."""
LOG_FOLLOW_INTERVAL_S = 0.02
"""How long `log cat --follow` waits at the end of the log before it looks again."""

# --- raw capture ----------------------------------------------------------------------------------
CAPTURE_RECORD_MAX_BYTES = 64 * 1024 * 1024
"""One record of a capture; what a reader finds beyond it is damage. A batch of frames is split before it gets there."""
CAPTURE_BATCH_BYTES = 32 * 1024 * 1024
"""Inputs that would make a larger record are written as several."""
CAPTURE_INPUTS_PER_RECORD = 1_024
"""Inputs that wait to be written; at the bound they are, though no batch has ended."""
CAPTURE_READ_BYTES = 1024 * 1024
"""Bytes of a segment that are read, or compressed, in one go."""
CAPTURE_ROTATION_RETRY_BYTES = 1024 * 1024
"""A rotation that was not possible is tried again after so many further bytes; at twice its size the capture ends."""
CAPTURE_SEGMENTS_MAX = 100_000
"""Segment files kept; more are deleted, the oldest first, like bytes beyond the bound."""
CAPTURE_UPKEEP_INTERVAL_S = 1
"""How often the capture is synced and looked after."""
CAPTURE_SURVEY_INTERVAL_S = 10
"""How often the folder is listed for retention and compression. Also after each rotation."""
CAPTURE_CLOSE_TIMEOUT_S = 5
"""How long closing waits for the last sync; after that it is left to the kernel."""
CAPTURE_FAULTS_SHOWN = 100
"""Faults of a capture that are named each; the others are counted."""

# --- companions -----------------------------------------------------------------------------------
COMPANION_BACKOFF_BASE_S = 0.25
"""Wait before a companion process that ended is started again; doubled each time."""
COMPANION_BACKOFF_CAP_S = 30.0
"""The longest wait; it is started again and again, so seldom, without end."""
COMPANION_LOOK_S = 0.25
"""How often to look whether it has ended, where the system has no descriptor left to tell."""
COMPANION_STABLE_S = 60.0
"""One that ran for so long starts with the short wait anew."""
COMPANION_STOP_TIMEOUT_S = 10.0
"""One that was asked to end and has not by then is killed."""

# --- recovery -------------------------------------------------------------------------------------
RECOVERY_FRAME_MAX_BYTES = 64 * 1024
"""One frame of the recovery protocol over TCP; a longer one is refused and the connection closed."""
GAP_FILL_DATAGRAMS_MAX = 64
GAP_FILL_BYTES_MAX = 64 * 1024
"""What one gap-fill request over UDP is answered with at most; the requester asks again for the rest."""
RECOVERY_READ_BYTES = 64 * 1024
"""Of the log, that are read and passed on in one go; the loop runs other work before the next."""
RECOVERY_INDEX_STEP_BYTES = 64 * 1024
"""Least distance of two points of the log's index: what is searched for one sequence at most."""
RECOVERY_INDEX_POINTS_MAX = 500_000
"""Points kept (48 B each; 32 GiB of log); at the bound those of the segments not asked for longest are dropped."""
RECOVERY_RECENT_BYTES = 8 * 1024 * 1024
"""Newest datagrams of one stream kept in memory; older ones are read from the log."""
GAP_FILL_SEARCH_BYTES = 256 * 1024
"""Of the log, read for one gap-fill request; the requester asks again for the rest."""
GAP_FILL_TURN_DATAGRAMS = 256
"""Datagrams sent in one go for gap-fill requests; further requests wait in the kernel until other work was done."""
GAP_FILL_TURN_REQUESTS = 64
"""Requests looked at in one go."""
GAP_FILL_SOCKET_BUFFER_BYTES = 1024 * 1024
"""Asked of the kernel, each way; requests that do not fit are lost, the client asks again."""
RECOVERY_CLIENTS_MAX = 1_024
"""Addresses whose rate is counted each on its own; at the bound idle ones make room, further ones share one rate."""
RECOVERY_BURST_NS = 250_000_000
"""How long a client's, or the whole, rate can be saved up."""
RECOVERY_REFUSALS_PER_SECOND = 500
"""Gap-fill requests refused with an answer, per address; further ones are dropped, counted."""
RECOVERY_OPEN_TIMEOUT_NS = 5_000_000_000
"""A connection whose request is not complete by then is closed."""
RECOVERY_STALL_TIMEOUT_NS = 10_000_000_000
"""A connection whose send buffer did not drain for so long is closed."""
RECOVERY_SNAPSHOT_TIMEOUT_NS = 60_000_000_000
"""A snapshot that its client has not taken by then is broken off."""
RECOVERY_TAIL_WAIT_NS = 200_000_000
"""How long a snapshot, or a range, waits for the log to reach the asked sequences; then it is rejected NOT_YET."""
RECOVERY_INDEX_QUEUE = 64
"""Segments waiting to be indexed because a gap-fill request was about them; further ones are asked for again."""
RECOVERY_ALIVE_NS = 1_000_000_000
RECOVERY_WRITE_BUFFER_BYTES = 256 * 1024
"""Unsent bytes of one connection above which nothing more is written; also asked of the kernel for its send buffer."""
RECOVERY_BACKLOG = 128
RECOVERY_CONNECTIONS_MAX = 1_024
"""What recovery.connections_max can be; each takes up to 0.7 MB when its client is slow, and two open files."""
HELLO_SESSIONS_MAX = 64
"""Sessions named in a hello, the newest; older ones are served all the same."""
SNAPSHOT_SLICE_MARKETS = 100
SNAPSHOT_SLICE_LEVELS = 4_096
SNAPSHOT_SLICE_BYTES = 64 * 1024
"""Markets, levels to be encoded and bytes of books read from a cut in one go, whichever comes first; the loop runs
other work before the next."""
SNAPSHOT_CUTS_MAX = 4
"""Positions of which snapshots are sent at a time; for a further one the slowest makes room, or it is rejected."""
SNAPSHOT_GRACE_NS = 2_000_000_000
"""How long a snapshot is sent undisturbed; after that it is broken off when others wait."""
SNAPSHOT_SHARE_NS = 100_000_000
"""A cut not older than this serves further snapshots whose sequences it has."""
TAIL_FLUSH_DATAGRAMS_MAX = 8_192
"""Datagrams of one flush of the plant that wait for its end; beyond it the flush is taken in parts."""
TAIL_BACKLOG_DATAGRAMS_MAX = 16_384
"""Datagrams read and not yet in the books; beyond it nothing more is read until the books have followed."""
TAIL_TURN_MESSAGES = 2_000
TAIL_TURN_LEVELS = 8_192
"""Messages that go into the books, or levels that are encoded for a cut meanwhile, in one go."""
TAIL_QUIET_NS = 20_000_000
"""A flush after which nothing was written for so long is complete."""
TAIL_FAST_NS = 500_000
TAIL_SLOW_NS = 5_000_000
"""How often the end of the log is looked at while somebody waits for it or follows it, and otherwise."""
FINISHED_MARKETS_KEPT = 20_000
"""Closed markets of a session whose last values are kept; the oldest makes room."""
CHECKPOINT_MAX_BYTES = 1024 * 1024 * 1024
"""A larger checkpoint is not read."""
CHECKPOINTS_KEPT = 2
CHECKPOINT_BLOCK_MAX_BYTES = 1024 * 1024
"""One block of a checkpoint; a larger one is damage."""
RECOVERY_STOP_TIMEOUT_S = 3
"""How long the last checkpoint may take when recovery is told to stop; without it the next start reads more log."""
RECOVERY_RETRY_S = 1.0
"""How often the log's folder is tried again, while it cannot be read, and its owner's word and segments are read."""

# --- store ----------------------------------------------------------------------------------------
ROW_CLOCK_DIFFERENCE_MAX_NS = 24 * 3_600 * 1_000_000_000
"""Exchange time of a live trade so far from its receive time is none: the row takes the receive time."""
QUESTDB_REFUSED_PER_BATCH_MAX = 100
"""Rows that the server refuses one by one in a batch; with more of them it is not the rows' fault: the store waits."""
QUESTDB_REQUEST_TIMEOUT_S = 30.0
"""One SQL statement of the store or of `tickerplant schema`; then the server counts as unavailable."""
QUESTDB_EXPORT_TIMEOUT_S = 600.0
"""Without a byte of an export, or until a table has applied what it was sent; then archiving ends with exit code 75."""
QUESTDB_CONVERT_TIMEOUT_S = 600.0
"""Until the server has turned a day into Parquet; then archiving ends with exit code 75."""
RESTORE_BATCH_ROWS = 50_000
"""Rows sent to QuestDB in one request when a day is restored."""
QUESTDB_ANSWER_MAX_BYTES = 64 * 1024**2
"""A longer answer to such a statement is cut, and so refused."""
SECRET_MAX_BYTES = 4_096
"""A larger password file is refused."""
QUESTDB_FETCH_TIMEOUT_S = 600
"""Fetching the server, or a Java for it; then it has failed."""
QUESTDB_START_TIMEOUT_S = 120
"""Until a server that was started answers; then it is ended."""
QUESTDB_START_ATTEMPTS = 3
"""Starts of a server, on other ports each time if they were free ones; then it has failed."""
QUESTDB_STOP_TIMEOUT_S = 20
"""A server that has not ended so long after SIGTERM is killed."""
STORE_READ_BYTES = 256 * 1024
"""Of the log, that the store takes in one go; the rest waits for the next turn."""
STORE_TAIL_S = 0.02
"""How long the store waits at the end of the log before it looks again."""
STORE_RETRY_S = 1.0
STORE_RETRY_MAX_S = 30.0
"""Database or disk cannot take rows: tried again after so long, twice as long each time, at most the second."""
STORE_BOOKS_READ_BYTES_MAX = 1024**3
"""Log between recovery's checkpoint and the store's place, read to know the books; beyond it they are stored whole only
after they were published anew."""
STORE_STOP_TIMEOUT_S = 3.0
"""How long the store goes on with the rest of the log when it is told to stop; what remains is for its next start."""
STORE_UPKEEP_S = 5.0
"""How often it is looked for work that can wait, such as merging files, when there was none."""
DEAD_LETTERS_MAX_BYTES = 64 * 1024 * 1024
"""Of rows that cannot be stored, kept with the reason; further ones are counted and dropped."""
SQL_SHOWN_ROWS = 1_000
"""Rows of an answer that are shown as a table unless told otherwise; the other formats have all."""
ARCHIVE_FETCH_MAX_BYTES = 8 * 1024**3
"""Of the archive, fetched for the questions of one history; a question that needs more is refused."""
SQL_BATCH_ROWS = 65_536
"""Rows of an answer that are held at a time where it is written as it comes."""
SQL_CSV_BLOCK_BYTES = 8 * 1024 * 1024
"""Of an answer of QuestDB, that become rows at a time; one row must fit."""
SQL_LISTING_ATTEMPTS = 3
"""A question whose files were merged and removed under it is asked again so often in all; then it has failed."""
BOOK_LATE_MAX_NS = 3_600 * 1_000_000_000
"""Rows read so much later than the exchange says that they happened are not found by the book at an instant."""
BENCH_STORE_TIMEOUT_S = 300
"""Until the store under measurement has stored everything, or ended; then the measurement has failed."""
PARQUET_ROW_GROUP_ROWS = 131_072
"""Rows of a table that wait in memory for their row group; then it is written."""
PARQUET_CONVERT_ROWS = 4_096
"""Rows of a table that wait as they came; then they become columns, which take a tenth of the memory."""
PARQUET_DAYS_PER_CLOSING = 64
"""Days of one table in one closing, a file each; with more of them it is closed at once, and the next begins."""
PARQUET_MERGE_COUNT = 32
"""Closings that follow each other, of one level, that are merged into one of the next."""
PARQUET_LEVEL_MAX = 2
"""Closings of this level are not merged again: 1,024 of the first make one."""
PARQUET_SUPERSEDED_KEEP_S = 60
"""How long merged closings stay, for queries that began before the merge."""
PARQUET_REJECTED_MAX = 1_000
"""Rows in one take that no column can hold, handed back one by one; further ones are only counted."""

# --- audit ----------------------------------------------------------------------------------------
AUDIT_ROW_BLOCK_SEQS = 1_024
"""Messages whose stored rows are tallied together, and looked at row by row if the tally differs from the log's."""
AUDIT_ROW_BLOCKS_SHOWN = 64
"""Such blocks that are looked at row by row; further ones are named as a whole."""
AUDIT_FINDINGS_KEPT = 1_000
"""Findings that an audit lists one by one; further ones are only counted."""
AUDIT_STALE_TOLD_WITHIN_NS = 60_000_000_000
"""A hole upstream waits for the pace before it is told of each book; later than this the audit calls it untold."""
ARCHIVE_CHUNK_BYTES = 4 * 1024 * 1024
"""Of an object or an answer, read in one go."""
ARCHIVE_REQUEST_TIMEOUT_S = 60
ARCHIVE_REQUEST_RETRIES = 5
"""One request to the object store, and how often it is made again; then archiving ends with exit code 75."""
ARCHIVE_ATTEMPTS = 3
"""Times that a step of archiving one part is begun in one run, when what it made is damaged; then it fails."""
ARCHIVE_LATE_NS = 5_000_000_000
"""How long after midnight (UTC) what was received before it may still be sent and stored."""
MANIFEST_MAX_BYTES = 16 * 1024 * 1024
"""A larger manifest is refused."""

# --- recorder -------------------------------------------------------------------------------------
RECORDING_INDEX_STEP_BYTES = 256 * 1024
"""Least distance of two entries of a recording's index: what is read through to find a place."""
RECORDING_INDEX_MAX_BYTES = 16 * 1024 * 1024
"""Of one index (about 260,000 entries, 64 GiB of segment), that are read; places beyond are found by reading on."""
RECORDING_EVENTS_MAX_BYTES = 16 * 1024 * 1024
"""Events of one session kept beside a recording; further ones are counted and left out."""
RECORDING_SESSIONS_OPEN = 2
"""Sessions written at a time, for streams that still finish the one before; at the bound the oldest is closed."""
RECORDING_PENDING_BYTES_MAX = 256 * 1024
"""Records not yet handed to the kernel; beyond it they are, at once."""
RECORDING_RECOVERY_WAIT_S = 60
"""How long a recorder that goes on waits for recovery to be there; after that what it missed is told as lost."""
RECORDING_RECOVERY_RETRY_S = 1.0
"""How often it looks, and how long for an answer."""
RECORDING_FLUSH_S = 0.1
"""How long a record waits for others before it is handed to the kernel."""
RECORDING_SYNC_S = 1.0
"""How often a recording is synced to disk: what a power loss takes, and recovery gives again."""

# --- operator's shell -----------------------------------------------------------------------------
CONFIG_FILE_MAX_BYTES = 1024 * 1024
"""A larger configuration file is refused."""
LOG_REPEAT_NS = 1_000_000_000
"""One warning per event name in this time; the others are counted in the next one's `suppressed`."""
LOG_EVENT_NAMES_MAX = 512
"""Event names whose rate is limited each on its own; further names share one limit."""
LOG_TEXT_MAX_CHARACTERS = 16_384
"""A longer text is cut in the log, and says so."""
LOG_VALUE_DEPTH_MAX = 6
"""Nesting of a logged value that is searched for secrets; what lies deeper is not logged."""
METRIC_SERIES_MAX = 2_000
"""Label combinations of one metric in one scrape; further ones are left out and counted."""
METRICS_BACKLOG = 16
METRICS_KEEPALIVE_S = 75
HEARD_DATAGRAMS_MAX = 4_096
"""Datagrams read while listening on the groups before the start; the verdict is then made from these."""
HEARD_SENDERS_MAX = 256
"""Distinct (group, sender, session) of those that are remembered; further ones are ignored."""
CLOCK_OFFSET_WARN_NS = 1_000_000_000
"""Difference between our clock and the exchange's beyond which `doctor` warns."""
NETWORK_PROBE_TIMEOUT_S = 5
"""One check of `doctor` that waits for the network; then it fails."""
OPEN_FILES_WANTED = 1_024
"""Open files the plant may need; `doctor` warns below it."""
STATE_FREE_WANTED_BYTES = 1024**3
"""Free space in the state directory below which `doctor` warns."""
STATE_FREE_MIN_BYTES = 64 * 1024**2
"""Free space in the state directory below which `doctor` fails."""

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

assert HEADER_BYTES + BODY_MAX_BYTES + TRAILER_BYTES == DATAGRAM_MAX_BYTES
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
