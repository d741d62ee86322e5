"""One book as a strategy sees it, and the books of one plant (pure); `mirror` keeps them."""

from tickerplant.core.book import Book, Levels
from tickerplant.core.messages import BookState, StaleReason


class BookView(Levels):
    """A market's book as the plant has it, read-only and always current; trade on it only while `live`.

    Prices in 1e-4 dollar, sizes in 1e-2 contract; an absent side reads as 0. It changes between two callbacks:
    copy what must stay (`depth`).
    """

    __slots__ = ("_live", "_next_part", "_plant", "_reason", "_state", "_ticker")

    def __init__(self, ticker: str, books: "PlantBooks") -> None:
        self._ticker = ticker
        self._plant = books
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
        return BookState.STALE if self._live and self._plant.behind else self._state

    @property
    def live(self) -> bool:
        """Whether the book equals the plant's; only then may it be traded on."""
        return self._live and not self._plant.behind

    @property
    def stale_reason(self) -> StaleReason:
        """Why the book is STALE; of no meaning in another state."""
        return StaleReason.REPAIRING if self._live else self._reason

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        """Ticker, state and best levels."""
        return f"BookView({self._ticker!r}, {self.state.name}, bbo={self.bbo()})"


class MirroredBook(BookView, Book):  # type: ignore[misc]  # hashed as a view, not as a book: by identity
    """The same as `mirror` changes it: view and levels in one object, because a change costs the memory it touches."""

    __slots__ = ()

    def __init__(self, ticker: str, books: "PlantBooks") -> None:
        super().__init__(ticker, books)
        self.clear()


class PlantBooks:
    """The books of one plant in its current session; `paused` were LIVE when the stream went silent."""

    __slots__ = ("behind", "paused", "session", "views")

    def __init__(self, session: int) -> None:
        self.session = session
        self.behind = False
        self.views: dict[str, MirroredBook] = {}
        self.paused: list[MirroredBook] = []
