"""Whole books at regular instants, as rows of `book_snapshots`. Pure.

The instants are multiples of the interval on the clock of the log (`ts_send_ns`): the same log always gives the same
snapshots, as far as the books are known. A row holds the book after its message `seq` of stream delta.

A change of a level tells the level's new size, and nothing is asked of a book between two instants but at its
checksums. So a book is a dict of sizes by price here, for which a change is one assignment; levels of size 0 stay in it
until it is next looked at as a whole.
"""

from collections.abc import Iterable
from typing import Any

from tickerplant.core.book import Book
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
from tickerplant.limits import MARKETS_MAX

BOOK_STREAMS = (Stream.DELTA, Stream.STATUS)
"""What tells of books and sessions."""
_BROKEN = -1
"""As the next part of an image: one before it is missing."""

_CHANGED = 2
_Followed = list[Any]
"""Of one book: sizes by price (0: no such level) of bids and of asks, and whether it changed since its last snapshot.

A list, and one for all three, because what a change costs is the memory that it touches.
"""


class _Books(dict[str, _Followed]):
    """By ticker; one that is asked for the first time is empty."""

    def __missing__(self, ticker: str) -> _Followed:
        book: _Followed = [{}, {}, True]
        # Beyond the bound a book is forgotten at once, and so never live.
        if len(self) < MARKETS_MAX:
            self[ticker] = book
        return book

    def levels(self, ticker: str) -> Book:
        """The levels that there are; the others are forgotten."""
        bids, asks, _ = self[ticker]
        for sizes in (bids, asks):
            for price_e4 in [price_e4 for price_e4, size_e2 in sizes.items() if not size_e2]:
                del sizes[price_e4]
        return Book(bids.items(), asks.items())


class BookSnapshots:
    """Follows the data datagrams of `BOOK_STREAMS`; the others may be left out.

    Books are live as in `PlantState`, from whose messages they are made: from a checksum that is right up to a hole, a
    message that says otherwise, or a checksum that is wrong.
    """

    def __init__(self, interval_ns: int, state: PlantState | None = None) -> None:
        """`state` is that before the first datagram; None: no book is known until it is published."""
        assert interval_ns > 0
        self.mismatches = 0
        """Books whose checksum was not the plant's."""
        self._interval_ns = interval_ns
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
                self._set_levels(messages)
            else:
                for message in messages:
                    self._apply(message)
        return rows

    def _take(self, time_ns: int) -> list[Row]:
        seq = self._next_seq - 1
        rows = []
        for ticker in sorted(self._live):
            book = self._books[ticker]
            if book[_CHANGED]:
                book[_CHANGED] = False
                levels = self._books.levels(ticker)
                rows.append(book_snapshot_row(time_ns, self._session, seq, ticker, levels))
        return rows

    # --- sequences --------------------------------------------------------------------------------

    def _begin_session(self, session: int) -> None:
        self._session = session
        self._next_seq = 1
        self._books = _Books()
        self._live: set[str] = set()
        self._next_part: dict[str, int] = {}
        """Of the image that is being told of a book."""

    def _enter(self, state: PlantState) -> None:
        self._next_seq = state.next_seqs[Stream.DELTA - 1]
        for ticker, market in state.markets.items():
            self._books[ticker] = [market.book.bids, market.book.asks, True]
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

    def _set_levels(self, updates: Iterable[Fields]) -> None:
        books = self._books
        for _, ticker, _, _, _, side, price_e4, _, size_e2, _ in updates:
            book = books[ticker]
            book[side != 0][price_e4] = size_e2
            book[_CHANGED] = True

    def _apply(self, message: Fields | AnyMessage | None) -> None:
        if isinstance(message, LevelUpdate):
            book = self._books[message.ticker]
            book[message.side != 0][message.price_e4] = message.size_e2
            book[_CHANGED] = True
        elif isinstance(message, BookReady | BookVerify):
            self._compare(message)
        elif isinstance(message, BookLevels):
            self._add_part(message)
        elif isinstance(message, BookStale):
            self._live.discard(message.ticker)
            self._books[message.ticker][_CHANGED] = True
        elif isinstance(message, BookClear):
            self._forget(message.ticker)

    def _forget(self, ticker: str) -> None:
        self._books.pop(ticker, None)
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
        bids, asks, _ = self._books[ticker]
        bids.update(message.bids)
        asks.update(message.asks)

    def _compare(self, message: BookReady | BookVerify) -> None:
        """The plant's book is live and has this checksum here; ours is live exactly if it has the same."""
        ticker = message.ticker
        is_equal = self._books.levels(ticker).checksum() == message.checksum
        if is_equal and type(message) is BookVerify and ticker in self._live:
            return
        self._books[ticker][_CHANGED] = True
        is_whole = self._next_part.pop(ticker, None) is None
        if is_equal and is_whole:
            self._live.add(ticker)
        else:
            self.mismatches += 1
            self._live.discard(ticker)
