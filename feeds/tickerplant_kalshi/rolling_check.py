"""One LIVE book after the other compared with the exchange, so that silent divergence is found (pure).

The reply to `get_snapshot` has its place in the sid's sequence, so that it equals the book there or the book is wrong.
A check never stands in the way: it waits while any other command or snapshot is under way, at most one is, and it is
not repeated when it is refused or not answered.
"""

from collections.abc import Mapping

from tickerplant.core.books import BookEntry
from tickerplant.limits import CHECK_LOOKS_MAX


class RollingCheck:
    """Chooses a market every `interval_ns`; 0 is never. Nothing is made up for after a pause."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._due_ns = 0
        self._round: list[str] = []

    def restart(self, now_ns: int) -> None:
        """A connection opened: the first check is due an interval later. The round goes on where it was."""
        self._due_ns = now_ns + self._interval_ns

    def next_deadline_ns(self) -> int | None:
        """When the next check is due; None: never."""
        return self._due_ns if self._interval_ns else None

    def is_due(self, now_ns: int) -> bool:
        """Whether `take` is to be called."""
        return bool(self._interval_ns) and now_ns >= self._due_ns

    def postpone(self, now_ns: int) -> None:
        """The connection has something better to do."""
        self._due_ns = now_ns + self._interval_ns

    def take(
        self, tickers: Mapping[str, bool], entries: Mapping[str, BookEntry], now_ns: int
    ) -> str:
        """The next market to check: subscribed for certain, its book LIVE. Empty if there is none at this time."""
        self._due_ns = now_ns + self._interval_ns
        for _ in range(min(len(self._round) + len(tickers), CHECK_LOOKS_MAX)):
            if not self._round:
                self._round = list(tickers)
                self._round.reverse()
            ticker = self._round.pop()
            entry = entries.get(ticker)
            if entry is not None and entry.live and tickers.get(ticker):
                return ticker
        return ""
