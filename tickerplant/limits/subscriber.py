"""Bounds of the subscriber's library and of recordings."""

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
BOOK_HEAL_INTERVAL_NS = 10_000_000_000
"""Least time between two snapshots asked for because a book was found to be wrong; until then it stays STALE."""
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
