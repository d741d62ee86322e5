"""The messages of KTP/1, schema 1: what the plant publishes and a strategy receives.

Every message is an array-like tagged struct whose first fields are `ticker, g, ts_event_ns, ts_recv_ns`:

* `ticker`: market ticker; empty where a message is about the whole feed.
* `g`: ordinal of the plant's input that caused it (frame, timer, REST reply, connection event), per session.
* `ts_event_ns`: the exchange's time of the event, 0 where it gives none. `ts_recv_ns`: when the plant read it.

Prices (`_e4`) are YES prices in 1e-4 dollar; an ask is 1 - NO bid. Sizes (`_e2`) are in 1e-2 contract. Fields are
only ever appended, with defaults. Enumerations travel as integers and stay open: an unknown value is not an error.
"""

from enum import IntEnum
from typing import ClassVar

import msgspec


class Stream(IntEnum):
    """Multicast stream, one group each; `stream` in the datagram header."""

    TRADE = 1
    BBO = 2
    TICKER = 3
    DELTA = 4
    STATUS = 5


class Side(IntEnum):
    """Side of the YES book."""

    BID = 0
    ASK = 1


class BookState(IntEnum):
    """What a book is worth: only LIVE may be traded on."""

    SYNCING = 0
    LIVE = 1
    STALE = 2
    CLOSED = 3


class UpdateCause(IntEnum):
    """Why a level changed: the exchange's own delta, or a fresh snapshot that differed."""

    EXCHANGE = 0
    RESYNC = 1


class StaleReason(IntEnum):
    """Why a book went stale."""

    UNKNOWN = 0
    SEQUENCE_GAP = 1
    UNUSABLE_FRAME = 2
    INCONSISTENT = 3
    CONNECTION_LOST = 4
    SUBSCRIPTION_ENDED = 5
    SNAPSHOT_OVERDUE = 6
    # Seen by the subscriber itself, never on the wire:
    NETWORK_GAP = 100
    STREAM_DEAD = 101
    NEW_SESSION = 102
    CHECKSUM_MISMATCH = 103
    REPAIRING = 104


class GapCause(IntEnum):
    """Where messages were lost."""

    UNKNOWN = 0
    UPSTREAM = 1
    PLANT = 2
    NETWORK = 3
    KERNEL_DROP = 4
    CONSUMER = 5
    LATE_JOIN = 6
    STREAM_DEAD = 7


class MarketPhase(IntEnum):
    """Where a market stands in its life."""

    UNKNOWN = 0
    INITIALIZED = 1
    ACTIVE = 2
    INACTIVE = 3
    CLOSED = 4
    DETERMINED = 5
    SETTLED = 6


class FeedPhase(IntEnum):
    """State of the whole feed. READY: every chosen book is LIVE."""

    CONNECTING = 0
    SYNCING = 1
    READY = 2
    DEGRADED = 3
    DOWN = 4


class Message(msgspec.Struct, array_like=True, tag=0, gc=False, frozen=True, kw_only=False):
    """The fields that every message begins with; see the module's text."""

    stream: ClassVar[Stream]

    ticker: str
    g: int
    ts_event_ns: int
    ts_recv_ns: int


class Trade(Message, array_like=True, tag=1, gc=False, frozen=True):
    """A trade. `taker_side` BID: the taker bought YES. A block trade does not touch the book."""

    stream: ClassVar[Stream] = Stream.TRADE

    trade_id: str
    price_e4: int
    size_e2: int
    taker_side: int
    is_block: bool = False


class UpstreamGap(Message, array_like=True, tag=2, gc=False, frozen=True):
    """Messages of this stream between two times were lost before the plant; on TRADE and TICKER."""

    stream: ClassVar[Stream] = Stream.TRADE

    from_ns: int
    to_ns: int
    cause: int
    on_stream: int = Stream.TRADE


class Bbo(Message, array_like=True, tag=3, gc=False, frozen=True):
    """Best bid and offer; an absent side is 0, 0. Only state LIVE may be traded on."""

    stream: ClassVar[Stream] = Stream.BBO

    bid_e4: int
    bid_size_e2: int
    ask_e4: int
    ask_size_e2: int
    state: int


class Ticker(Message, array_like=True, tag=4, gc=False, frozen=True):
    """The exchange's ticker; `last_e4` 0 means never traded. Dollar amounts are whole dollars."""

    stream: ClassVar[Stream] = Stream.TICKER

    last_e4: int
    bid_e4: int
    bid_size_e2: int
    ask_e4: int
    ask_size_e2: int
    volume_e2: int
    open_interest_e2: int
    last_size_e2: int = 0
    dollar_volume: int = 0
    dollar_open_interest: int = 0


class LevelUpdate(Message, array_like=True, tag=5, gc=False, frozen=True):
    """One level changed by `delta_e2` and is now `size_e2` (0: gone)."""

    stream: ClassVar[Stream] = Stream.DELTA

    side: int
    price_e4: int
    delta_e2: int
    size_e2: int
    cause: int = UpdateCause.EXCHANGE


class BookStale(Message, array_like=True, tag=6, gc=False, frozen=True):
    """The book of `ticker` may be wrong until its next `BookReady`; its levels are kept."""

    stream: ClassVar[Stream] = Stream.DELTA

    reason: int


class BookClear(Message, array_like=True, tag=7, gc=False, frozen=True):
    """Forget the levels of `ticker`; an image may follow."""

    stream: ClassVar[Stream] = Stream.DELTA


class BookLevels(Message, array_like=True, tag=8, gc=False, frozen=True):
    """Part `part` (from 0) of `parts` of an image: (price_e4, size_e2) pairs, prices ascending, at most 64."""

    stream: ClassVar[Stream] = Stream.DELTA

    part: int
    parts: int
    bids: tuple[tuple[int, int], ...]
    asks: tuple[tuple[int, int], ...]


class BookReady(Message, array_like=True, tag=9, gc=False, frozen=True):
    """From here on the book is LIVE; `checksum` is `Book.checksum()` at this place of the sequence."""

    stream: ClassVar[Stream] = Stream.DELTA

    checksum: int


class BookVerify(Message, array_like=True, tag=10, gc=False, frozen=True):
    """A LIVE book must have this checksum at this place of the sequence."""

    stream: ClassVar[Stream] = Stream.DELTA

    checksum: int


class SessionStart(Message, array_like=True, tag=11, gc=False, frozen=True):
    """First status message of a session; `final_seqs` are (stream, next seq) of `previous_session` (0: none)."""

    stream: ClassVar[Stream] = Stream.STATUS

    previous_session: int
    final_seqs: tuple[tuple[int, int], ...] = ()


class MarketInfo(Message, array_like=True, tag=12, gc=False, frozen=True):
    """What a strategy needs of a market; long texts live in the database.

    `open_ns`, `close_ns` are 0 where unknown. `price_bands` are at most 16 (start_e4, end_e4, step_e4).
    """

    stream: ClassVar[Stream] = Stream.STATUS

    event_ticker: str
    series_ticker: str
    open_ns: int
    close_ns: int
    price_level_structure: str
    price_bands: tuple[tuple[int, int, int], ...] = ()
    strike_type: str = ""
    floor_strike: str = ""
    cap_strike: str = ""


class MarketState(Message, array_like=True, tag=13, gc=False, frozen=True):
    """A market's phase; `result` and `settlement_e4` (-1: none) once it is determined."""

    stream: ClassVar[Stream] = Stream.STATUS

    phase: int
    result: str = ""
    settlement_e4: int = -1


class FeedState(Message, array_like=True, tag=14, gc=False, frozen=True):
    """State of the whole feed and, in words of at most 200 bytes, why."""

    stream: ClassVar[Stream] = Stream.STATUS

    phase: int
    cause: str = ""


AnyMessage = (
    Trade
    | UpstreamGap
    | Bbo
    | Ticker
    | LevelUpdate
    | BookStale
    | BookClear
    | BookLevels
    | BookReady
    | BookVerify
    | SessionStart
    | MarketInfo
    | MarketState
    | FeedState
)
"""Every message that can stand in a datagram."""
