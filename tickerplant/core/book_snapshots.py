"""Whole books at regular instants, as rows of `book_snapshots`. Pure.

The instants are multiples of the interval on the clock of the log (`ts_send_ns`): the same log always gives the same
snapshots, as far as the books are known. A row holds the book after its message `seq` of stream delta.

A change of a level tells the level's new size, and nothing is asked of a book between two instants but at its
checksums. So a book is an array with a place for each whole cent, in which a change is one assignment.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tickerplant.core.book import Book, Level
from tickerplant.core.columns import Fields, Messages, is_fields
from tickerplant.core.messages import (
    AnyMessage,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    LevelUpdate,
    Stream,
)
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.rows import Row, book_snapshot_row
from tickerplant.core.wire import Header
from tickerplant.limits import PRICE_E4_MAX

BOOK_STREAMS = (Stream.DELTA, Stream.STATUS)
"""What tells of books and sessions."""
_BROKEN = -1
"""As the next part of an image: one before it is missing."""

CENT_E4 = 100
PLACES = PRICE_E4_MAX // CENT_E4 + 1
"""Of a side: bids come first, then asks, each with its size or 0."""
CHANGED = 2 * PLACES
"""After the levels: whether the book changed since its last snapshot."""
SIZE = CHANGED + 1
NOWHERE = SIZE
PLACE_OF = tuple(
    tuple(
        side * PLACES + price_e4 // CENT_E4 if price_e4 % CENT_E4 == 0 else NOWHERE
        for price_e4 in range(PRICE_E4_MAX + 1)
    )
    for side in (0, 1)
)
"""By side and price; prices between two cents have no place."""


class Books(Protocol):
    """The levels of every book; one that is asked for the first time is empty and has changed."""

    def set_levels(self, updates: Sequence[Fields]) -> None:
        """Of messages `LevelUpdate` in their order, the new sizes."""
        ...

    def set_level(self, ticker: str, side: int, price_e4: int, size_e2: int) -> None:
        """Of any side, price and size."""
        ...

    def touch(self, ticker: str) -> None:
        """It has changed."""
        ...

    def take_change(self, ticker: str) -> bool:
        """Whether it has changed since this was asked."""
        ...

    def forget(self, ticker: str) -> None:
        """It is empty."""
        ...

    def levels(self, ticker: str) -> Book:
        """Those that there are."""
        ...


def book_of(sizes: Sequence[int], others: tuple[dict[int, int], dict[int, int]]) -> Book:
    """From sizes at their places, and by price those that have none."""
    sides = []
    for levels, first in zip(others, (0, PLACES), strict=True):
        found = enumerate(sizes[first : first + PLACES])
        sides.append([(place * CENT_E4, size_e2) for place, size_e2 in found if size_e2])
        sides[-1] += [level for level in levels.items() if level[1]]
    return Book(*sides)


class BookSnapshots:
    """Follows the data datagrams of `BOOK_STREAMS`; the others may be left out.

    Books are live as in `PlantState`, from whose messages they are made: from a checksum that is right up to a hole, a
    message that says otherwise, or a checksum that is wrong.
    """

    def __init__(
        self,
        interval_ns: int,
        state: PlantState | None,
        new_books: Callable[[], Books],
    ) -> None:
        """`state` is that before the first datagram; None: no book is known until it is published.

        `new_books`: an empty set of books, for each session.
        """
        assert interval_ns > 0
        self.mismatches = 0
        """Books whose checksum was not the plant's."""
        self._interval_ns = interval_ns
        self._new_books = new_books
        self._instant = 0
        self._begin_session(0 if state is None else state.session)
        if state is not None:
            self._enter(state)

    def receive(self, header: Header, messages: Messages) -> list[Row]:
        """The rows that are due before this datagram: books that are live and changed. Then it is applied.

        `messages` as `ColumnMapper.add` returns them.
        """
        rows: list[Row] = []
        if header.stream not in BOOK_STREAMS:
            return rows
        instant = header.ts_send_ns // self._interval_ns
        if instant != self._instant:
            if header.session == self._session and instant > self._instant > 0:
                rows = self._take(instant * self._interval_ns)
            self._instant = instant
        if self._admit(header):
            if is_fields(messages):
                self._books.set_levels(messages)
            else:
                for message in messages:
                    self._apply(message)
        return rows

    def _take(self, time_ns: int) -> list[Row]:
        seq = self._next_seq - 1
        rows = []
        for ticker in sorted(self._live):
            if self._books.take_change(ticker):
                levels = self._books.levels(ticker)
                rows.append(book_snapshot_row(time_ns, self._session, seq, ticker, levels))
        return rows

    # --- sequences --------------------------------------------------------------------------------

    def _begin_session(self, session: int) -> None:
        self._session = session
        self._next_seq = 1
        self._books = self._new_books()
        self._live: set[str] = set()
        self._next_part: dict[str, int] = {}
        """Of the image that is being told of a book."""

    def _enter(self, state: PlantState) -> None:
        self._next_seq = state.next_seqs[Stream.DELTA - 1]
        for ticker, market in state.markets.items():
            for side, levels in enumerate(market.book.sides()):
                self._set_side(ticker, side, levels)
            self._books.touch(ticker)
            if market.phase == BookState.LIVE:
                self._live.add(ticker)
            if market.next_part is not None:
                self._next_part[ticker] = market.next_part

    def _admit(self, header: Header) -> bool:
        """Whether its messages are to be applied; after a hole no book is live."""
        if header.session != self._session:
            if header.session < self._session:
                return False
            self._begin_session(header.session)
        if header.stream != Stream.DELTA or header.seq < self._next_seq:
            return False
        if header.seq > self._next_seq:
            self._live.clear()
            self._next_part = dict.fromkeys(self._next_part, _BROKEN)
        self._next_seq = header.seq + header.message_count
        return True

    # --- messages ---------------------------------------------------------------------------------

    def _set_side(self, ticker: str, side: int, levels: Iterable[Level]) -> None:
        for price_e4, size_e2 in levels:
            self._books.set_level(ticker, side, price_e4, size_e2)

    def _apply(self, message: Fields | AnyMessage | None) -> None:
        if isinstance(message, LevelUpdate):
            level = (message.side, message.price_e4, message.size_e2)
            self._books.set_level(message.ticker, *level)
        elif isinstance(message, BookReady | BookVerify):
            self._compare(message)
        elif isinstance(message, BookLevels):
            self._add_part(message)
        elif isinstance(message, BookStale):
            self._live.discard(message.ticker)
            self._books.touch(message.ticker)
        elif isinstance(message, BookClear):
            self._forget(message.ticker)

    def _forget(self, ticker: str) -> None:
        self._books.forget(ticker)
        self._live.discard(ticker)
        self._next_part.pop(ticker, None)

    def _add_part(self, message: BookLevels) -> None:
        ticker = message.ticker
        if message.part == 0:
            self._forget(ticker)
            self._next_part[ticker] = 0
        if message.part != self._next_part.get(ticker):
            self._next_part[ticker] = _BROKEN
            return
        if message.part + 1 < message.parts:
            self._next_part[ticker] = message.part + 1
        else:
            del self._next_part[ticker]
        self._set_side(ticker, 0, message.bids)
        self._set_side(ticker, 1, message.asks)

    def _compare(self, message: BookReady | BookVerify) -> None:
        """The plant's book is live and has this checksum here; ours is live exactly if it has the same."""
        ticker = message.ticker
        is_equal = self._books.levels(ticker).checksum() == message.checksum
        if is_equal and type(message) is BookVerify and ticker in self._live:
            return
        self._books.touch(ticker)
        is_whole = self._next_part.pop(ticker, None) is None
        if is_equal and is_whole:
            self._live.add(ticker)
        else:
            self.mismatches += 1
            self._live.discard(ticker)
