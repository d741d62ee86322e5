"""Bounds of recovery: its answers, checkpoints and snapshots."""

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
PACKED_BOOK_MAX_BYTES = 32 * 1024
"""An encoded book that a snapshot sends whole (2,000 levels); a larger one is sent as messages."""
PACKED_FRAME_BYTES = 60 * 1024
"""Of encoded books in one frame of a snapshot; the next one begins a new frame."""
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
