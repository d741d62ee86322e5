"""The books of the snapshots as one array of numpy: changes of levels go into it by the thousand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tickerplant.core.book import Book
from tickerplant.core.book_snapshots import CHANGED, NOWHERE, PLACE_OF, SIZE, book_of
from tickerplant.core.columns import Fields
from tickerplant.limits import MARKETS_MAX, PRICE_E4_MAX, SIZE_E2_MAX, STORE_BOOK_UPDATES

_PLACES = np.array(PLACE_OF, dtype=np.int64)
_FIRST_ROWS = 1_024
_NO_ROW = 0
"""What is written there is of books beyond the bound, and never read."""


class _Rows(dict[str, int]):
    """The row of each book."""

    def __init__(self) -> None:
        super().__init__()
        self.free: list[int] = []
        self.count = _NO_ROW + 1

    def __missing__(self, ticker: str) -> int:
        if len(self) >= MARKETS_MAX:
            return _NO_ROW
        if self.free:
            row = self.free.pop()
        else:
            row, self.count = self.count, self.count + 1
        self[ticker] = row
        return row


class BookGrid:
    """See `core.book_snapshots.Books`."""

    def __init__(self) -> None:
        self._rows = _Rows()
        self._sizes: np.ndarray[Any, np.dtype[np.int64]] = _new_rows(_FIRST_ROWS)
        self._others: dict[str, tuple[dict[int, int], dict[int, int]]] = {}
        """Sizes by price of bids and of asks that have no place."""
        self._waiting: list[Fields] = []

    def set_levels(self, updates: Sequence[Fields]) -> None:
        """See `Books`."""
        self._waiting += updates
        if len(self._waiting) >= STORE_BOOK_UPDATES:
            self._fold()

    def set_level(self, ticker: str, side: int, price_e4: int, size_e2: int) -> None:
        """See `Books`."""
        self._fold()
        self._set_level(ticker, side, price_e4, size_e2)

    def touch(self, ticker: str) -> None:
        """See `Books`."""
        self._fold()
        self._sizes[self._row(ticker), CHANGED] = 1

    def take_change(self, ticker: str) -> bool:
        """See `Books`."""
        self._fold()
        row = self._row(ticker)
        is_changed = bool(self._sizes[row, CHANGED])
        self._sizes[row, CHANGED] = 0
        return is_changed

    def forget(self, ticker: str) -> None:
        """See `Books`."""
        self._fold()
        self._others.pop(ticker, None)
        row = self._rows.pop(ticker, _NO_ROW)
        if row != _NO_ROW:
            self._sizes[row] = 0
            self._sizes[row, CHANGED] = 1
            self._rows.free.append(row)

    def levels(self, ticker: str) -> Book:
        """See `Books`."""
        self._fold()
        row = self._row(ticker)
        if row == _NO_ROW:
            return Book()
        return book_of(self._sizes[row].tolist(), self._others.get(ticker, ({}, {})))

    def _fold(self) -> None:
        """What waits goes to its places; of two changes of a level the later one stays."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        count = len(waiting)
        _, tickers, _, _, _, sides, prices, _, sizes, _ = zip(*waiting, strict=True)
        rows = np.fromiter(map(self._rows.__getitem__, tickers), np.int64, count)
        self._grow()
        try:
            places = _PLACES[
                np.fromiter(sides, np.int64, count), np.fromiter(prices, np.int64, count)
            ]
            numbers = np.fromiter(sizes, np.int64, count)
        except (IndexError, OverflowError):
            for update in zip(tickers, sides, prices, sizes, strict=True):
                self._set_level(*update)
            return
        # Numpy goes through the places in order, so the last one stays; if it ever did not, no checksum would be right.
        # Those without a place go to the last column, and to where they belong one by one.
        self._sizes[rows, places] = numbers
        self._sizes[rows, CHANGED] = 1
        for index in np.flatnonzero(places == NOWHERE):
            self._set_level(tickers[index], sides[index], prices[index], sizes[index])

    def _set_level(self, ticker: str, side: int, price_e4: int, size_e2: int) -> None:
        row = self._row(ticker)
        self._sizes[row, CHANGED] = 1
        is_ask = side != 0
        place = PLACE_OF[is_ask][price_e4] if 0 <= price_e4 <= PRICE_E4_MAX else NOWHERE
        if place != NOWHERE and size_e2 <= SIZE_E2_MAX:
            self._sizes[row, place] = size_e2
        elif row != _NO_ROW:
            self._others.setdefault(ticker, ({}, {}))[is_ask][price_e4] = size_e2

    def _row(self, ticker: str) -> int:
        row = self._rows[ticker]
        self._grow()
        return row

    def _grow(self) -> None:
        """There is room for all rows."""
        held = len(self._sizes)
        if self._rows.count > held:
            fresh = _new_rows(max(2 * held, self._rows.count))
            fresh[:held] = self._sizes
            self._sizes = fresh


def _new_rows(count: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Empty books that have changed; after their columns one for what has no place."""
    rows = np.zeros((count, SIZE + 1), np.int64)
    rows[:, CHANGED] = 1
    return rows
