"""One book as a strategy sees it, and the books of one plant (pure); `mirror` keeps them."""

from collections.abc import Mapping

from tickerplant.core.book import Book, Level
from tickerplant.core.messages import BookState, StaleReason


class BookView:
    """A market's book as the plant has it, read-only and always current; trade on it only while `live`.

    Prices in 1e-4 dollar, sizes in 1e-2 contract; an absent side reads as 0. It changes between two callbacks:
    copy what must stay (`depth`).
    """

    __slots__ = ("_book", "_books", "_live", "_next_part", "_reason", "_state", "_ticker")

    def __init__(self, ticker: str, books: "PlantBooks") -> None:
        self._ticker = ticker
        self._books = books
        self._book = Book()
        self._state = BookState.SYNCING
        self._live = False
        self._reason = StaleReason.UNKNOWN
        self._next_part: int | None = None

    @property
    def ticker(self) -> str:
        """The market's ticker."""
        return self._ticker

    @property
    def state(self) -> BookState:
        """SYNCING, LIVE or STALE."""
        return BookState.STALE if self._live and self._books.behind else self._state

    @property
    def live(self) -> bool:
        """Whether the book equals the plant's; only then may it be traded on."""
        return self._live and not self._books.behind

    @property
    def stale_reason(self) -> StaleReason:
        """Why the book is STALE; of no meaning in another state."""
        return StaleReason.REPAIRING if self._live else self._reason

    @property
    def bids(self) -> Mapping[int, int]:
        """All bids, price_e4 -> size_e2, prices ascending; a copy."""
        return self._book.bids

    @property
    def asks(self) -> Mapping[int, int]:
        """All asks, price_e4 -> size_e2, prices ascending; a copy."""
        return self._book.asks

    @property
    def best_bid_e4(self) -> int:
        """Highest bid."""
        return self._book.best_bid_e4

    @property
    def best_bid_size_e2(self) -> int:
        """Size at the best bid."""
        return self._book.best_bid_size_e2

    @property
    def best_ask_e4(self) -> int:
        """Lowest ask."""
        return self._book.best_ask_e4

    @property
    def best_ask_size_e2(self) -> int:
        """Size at the best ask."""
        return self._book.best_ask_size_e2

    @property
    def mid_e5(self) -> int | None:
        """Middle of best bid and best ask in 1e-5 dollar, exact; None unless both exist."""
        return self._book.mid_e5

    @property
    def spread_e4(self) -> int | None:
        """Best ask minus best bid; None unless both exist."""
        return self._book.spread_e4

    @property
    def crossed(self) -> bool:
        """Whether the best bid is above the best ask."""
        return self._book.crossed

    @property
    def level_count(self) -> int:
        """Levels of both sides."""
        return self._book.level_count

    def bbo(self) -> tuple[int, int, int, int]:
        """(bid_e4, bid_size_e2, ask_e4, ask_size_e2)."""
        return self._book.bbo()

    def depth(self, count: int) -> tuple[list[Level], list[Level]]:
        """The `count` best (price_e4, size_e2) of bids and of asks, best first; a copy."""
        return self._book.depth(count)

    def size_at(self, side: int, price_e4: int) -> int:
        """Size of a level, 0 if absent."""
        return self._book.size_at(side, price_e4)

    def checksum(self) -> int:
        """CRC-32 over all levels, as in `BookReady`."""
        return self._book.checksum()

    def __repr__(self) -> str:
        """Ticker, state and best levels."""
        return f"BookView({self._ticker!r}, {self.state.name}, bbo={self._book.bbo()})"


class PlantBooks:
    """The books of one plant in its current session; `paused` were LIVE when the stream went silent."""

    __slots__ = ("behind", "paused", "session", "views")

    def __init__(self, session: int) -> None:
        self.session = session
        self.behind = False
        self.views: dict[str, BookView] = {}
        self.paused: list[BookView] = []
