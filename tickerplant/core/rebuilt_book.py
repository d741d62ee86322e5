"""Rows of `orderbook_deltas` back to the book that they were, every size and checksum on the way compared. Pure."""

from typing import NamedTuple

from tickerplant.core.book import Book
from tickerplant.core.messages import Side
from tickerplant.errors import DamagedStoreError

_SIDES = {side.name.lower(): int(side) for side in Side}
CHECKSUM_KINDS = ("ready", "verify")
"""Rows that hold the checksum of the whole book."""


class DeltaRow(NamedTuple):
    """What a row says, in the names of its columns."""

    seq: int
    kind: str
    side: str | None
    price_e4: int | None
    delta_e2: int | None
    size_e2: int | None
    cause: str | None
    checksum: int | None


class RebuiltBook:
    """The book of `ticker` after the rows given so far: all of one session, from a `clear` on, in their order."""

    def __init__(self, ticker: str) -> None:
        self.ticker = ticker
        self.book = Book()
        self.state = "syncing"
        """syncing (an image is being told), live, stale (it may be wrong)."""
        self.reason = ""
        """Why it is stale."""
        self.checks = 0
        """Checksums that it was compared with, and agreed."""
        self._is_begun = False

    def apply(self, row: DeltaRow) -> None:
        """Bring the book forward. Raises `DamagedStoreError` if the row does not follow from those before."""
        if row.kind == "clear":
            self.book.clear()
            self.state, self.reason, self._is_begun = "syncing", "", True
            return
        if not self._is_begun:
            raise self._damaged(row, "the rows before it are missing")
        if row.kind == "update":
            self._update(row)
        elif row.kind == "image":
            self._set(row)
        elif row.kind == "stale":
            self.state, self.reason = "stale", row.cause or ""
        elif row.kind in CHECKSUM_KINDS:
            self._compare(row)
            if row.kind == "ready":
                self.state, self.reason = "live", ""

    def _update(self, row: DeltaRow) -> None:
        if row.side is None or row.price_e4 is None or row.delta_e2 is None:
            raise self._damaged(row, "it has no level")
        size_e2 = self.book.apply(_SIDES[row.side], row.price_e4, row.delta_e2)
        if size_e2 != row.size_e2:
            raise self._damaged(row, f"the level is {size_e2} after it, it should be {row.size_e2}")

    def _set(self, row: DeltaRow) -> None:
        # A part of an image without levels is one row without side.
        if row.side is not None and row.price_e4 is not None and row.size_e2 is not None:
            self.book.set_level(_SIDES[row.side], row.price_e4, row.size_e2)

    def _compare(self, row: DeltaRow) -> None:
        found = self.book.checksum()
        if found != row.checksum:
            raise self._damaged(row, f"the book's checksum is {found}, it should be {row.checksum}")
        self.checks += 1

    def _damaged(self, row: DeltaRow, reason: str) -> DamagedStoreError:
        return DamagedStoreError(
            f"orderbook_deltas of {self.ticker}, seq {row.seq}: {reason}: rows before it are lost or wrong; take that "
            "part of the log again, or restore it from the archive"
        )
