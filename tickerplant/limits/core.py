"""Bounds of the core: wire format, keys, numbers, books."""

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
FRAMES_AT_ONCE = 32
"""Frames handed on together: few enough to be still in the processor's first cache."""
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
