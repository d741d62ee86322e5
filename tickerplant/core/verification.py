"""Whose checksum is told next, so that a subscriber finds out a divergence that no sequence number shows. Pure.

One book after the other, at a steady pace and in the order in which they were chosen; a book that subscribers do not
hold now is passed over, because its `BookReady` is still to come.
"""

from collections.abc import Mapping

from tickerplant.core.books import BookEntry
from tickerplant.limits import VERIFY_LOOKS_MAX


class Verification:
    """One book every `interval_ns`; 0 is never. Nothing is made up for after a pause."""

    def __init__(self, interval_ns: int, now_ns: int) -> None:
        self.books_verified = 0
        self.rounds = 0
        self._interval_ns = interval_ns
        self._due_ns = now_ns + interval_ns
        self._round: list[BookEntry] = []

    def next_deadline_ns(self) -> int | None:
        """When the next book is due; None: never."""
        return self._due_ns if self._interval_ns else None

    def take_due(self, entries: Mapping[str, BookEntry], now_ns: int) -> BookEntry | None:
        """The book of `entries` whose checksum is to be told now; None if it is not time or there is none."""
        if not self._interval_ns or now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + self._interval_ns
        for _ in range(min(len(self._round) + len(entries), VERIFY_LOOKS_MAX)):
            if not self._round:
                self._begin_round(entries)
            entry = self._round.pop()
            if entry.in_sync:
                self.books_verified += 1
                return entry
        return None

    def _begin_round(self, entries: Mapping[str, BookEntry]) -> None:
        """A market that closes during the round is no longer in sync; a new one waits for the next round."""
        self._round = list(entries.values())
        self._round.reverse()
        self.rounds += 1
