"""The subscriber's mirrored books and quotes against the exchange's own books (pure)."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from tickerplant.core.messages import Bbo, BookState, StaleReason

Levels = list[tuple[int, int]]


class OwnBook(Protocol):
    """The exchange's book: (price_e4, size_e2) by price ascending."""

    @property
    def bids(self) -> Levels:
        """YES bids."""

    @property
    def asks(self) -> Levels:
        """YES asks."""


class MirroredBook(Protocol):
    """The subscriber's book."""

    @property
    def ticker(self) -> str:
        """Of this market."""

    @property
    def live(self) -> bool:
        """Whether it may be traded on."""

    @property
    def stale_reason(self) -> StaleReason:
        """Why not."""

    @property
    def bids(self) -> Mapping[int, int]:
        """price_e4 -> size_e2."""

    @property
    def asks(self) -> Mapping[int, int]:
        """price_e4 -> size_e2."""


class Comparison(NamedTuple):
    """How many books and quotes were compared, and the tickers of those that differ; a book is in one list only."""

    books: int
    missing: list[str]
    """The exchange has levels, the subscriber has no book."""
    stale: list[str]
    """`ticker (reason)` of books that are not live."""
    unequal: list[str]
    quotes: int
    unequal_quotes: list[str]

    @property
    def equal_books(self) -> int:
        """Books that are live and equal."""
        return self.books - len(self.missing) - len(self.stale) - len(self.unequal)


def compare(
    own: Mapping[str, OwnBook],
    mirrored: Iterable[MirroredBook],
    quote_of: Callable[[str], Bbo | None],
) -> Comparison:
    """Every book that either side has, without markets that closed: there both sides must have nothing."""
    views = {view.ticker: view for view in mirrored}
    result = Comparison(0, [], [], [], 0, [])
    books = 0
    for ticker in sorted(views.keys() | own.keys()):
        book, view, quote = own.get(ticker), views.get(ticker), quote_of(ticker)
        bids, asks = (book.bids, book.asks) if book is not None else ([], [])
        is_closed = quote is None or quote.state == BookState.CLOSED
        if not bids and not asks and (view is None or (is_closed and not view.live)):
            continue
        books += 1
        if view is None:
            result.missing.append(ticker)
        elif not view.live:
            result.stale.append(f"{ticker} ({view.stale_reason.name.lower()})")
        elif dict(bids) != view.bids or dict(asks) != view.asks:
            result.unequal.append(ticker)
        if not _is_quote_of(quote, bids, asks):
            result.unequal_quotes.append(ticker)
    return result._replace(books=books, quotes=books)


def _is_quote_of(quote: Bbo | None, bids: Levels, asks: Levels) -> bool:
    """Whether a quote is live and the best of these levels."""
    if quote is None or quote.state != BookState.LIVE:
        return False
    best_bid, best_ask = (bids[-1] if bids else (0, 0)), (asks[0] if asks else (0, 0))
    return (quote.bid_e4, quote.bid_size_e2, quote.ask_e4, quote.ask_size_e2) == (
        *best_bid,
        *best_ask,
    )
