"""The state of every book: SYNCING, LIVE or STALE, as a transition table.

    SYNCING  chosen, no snapshot yet: deltas are dropped
    LIVE     equals the exchange's book as far as anyone can know: deltas are applied
    STALE    may be wrong: deltas are dropped until a fresh snapshot

CLOSED is the end. What subscribers hold of a book is a second matter (`BookEntry.in_sync`), because images are paced.
"""

from enum import Enum, auto

from tickerplant.core.book import Book
from tickerplant.core.messages import BookState, MarketInfo, MarketState, StaleReason


class BookEvent(Enum):
    """What can happen to a book as a whole."""

    SNAPSHOT = auto()
    FAULT = auto()
    CLOSE = auto()


TRANSITIONS: dict[tuple[BookState, BookEvent], BookState] = {
    (BookState.SYNCING, BookEvent.SNAPSHOT): BookState.LIVE,
    (BookState.SYNCING, BookEvent.FAULT): BookState.SYNCING,
    (BookState.SYNCING, BookEvent.CLOSE): BookState.CLOSED,
    (BookState.LIVE, BookEvent.SNAPSHOT): BookState.LIVE,
    (BookState.LIVE, BookEvent.FAULT): BookState.STALE,
    (BookState.LIVE, BookEvent.CLOSE): BookState.CLOSED,
    (BookState.STALE, BookEvent.SNAPSHOT): BookState.LIVE,
    (BookState.STALE, BookEvent.FAULT): BookState.STALE,
    (BookState.STALE, BookEvent.CLOSE): BookState.CLOSED,
}


class BookEntry(Book):
    """One market of the plant: its book, and what subscribers hold of it.

    `in_sync` says that subscribers hold exactly this book and that it is LIVE: the one flag that the hot path reads.
    While it is False, `mirror` is what they hold (None: nothing) and the entry waits in the publish queue or for a
    snapshot. An entry is a book, rather than has one, because each object more is memory that every delta touches.
    """

    __slots__ = (
        "in_sync",
        "info",
        "info_told",
        "market_state",
        "market_state_told",
        "message_bytes",
        "mirror",
        "queued",
        "stale_reason",
        "stale_told",
        "state",
        "ticker",
    )

    def __init__(self, ticker: str) -> None:
        super().__init__()
        self.ticker = ticker
        self.state = BookState.SYNCING
        self.in_sync = False
        self.mirror: Book | None = None
        self.queued = False
        self.stale_told = False
        self.stale_reason = StaleReason.UNKNOWN
        self.info: MarketInfo | None = None
        self.info_told = False
        self.market_state: MarketState | None = None
        self.market_state_told = False
        # What a delta or bbo of this market takes in a packet, typically.
        self.message_bytes = len(ticker.encode()) + 46

    def begin_session(self) -> None:
        """In a new session nothing has been told yet."""
        self.in_sync = self.stale_told = self.info_told = self.market_state_told = False
        self.mirror = None

    @property
    def live(self) -> bool:
        """Whether the book equals the exchange's, as far as anyone can know."""
        return self.state is BookState.LIVE

    def transit(self, event: BookEvent) -> BookState:
        """Moves to the next state by the table, and returns the previous one."""
        previous = self.state
        self.state = TRANSITIONS[previous, event]
        return previous
