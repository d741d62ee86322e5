"""Bringing what subscribers hold of each book in step with the plant's book, at a bounded pace.

Every book that differs waits once in a queue; images, resyncs and stale notices leave it no faster than
`IMAGE_DATAGRAMS_PER_SECOND`, because thousands of full books at once overflow every subscriber's receive buffer.
"""

from collections import deque

from tickerplant.core.book import Book, Level, level_changes
from tickerplant.core.books import BookEntry
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    LevelUpdate,
    UpdateCause,
)
from tickerplant.core.packets import Packets
from tickerplant.limits import (
    BODY_MAX_BYTES,
    BOOK_LEVELS_PER_PART,
    IMAGE_BURST_DATAGRAMS,
    IMAGE_DATAGRAMS_PER_SECOND,
    NOTICES_MAX,
)

_BYTES_PER_SECOND = IMAGE_DATAGRAMS_PER_SECOND * BODY_MAX_BYTES
_BURST_BYTES = IMAGE_BURST_DATAGRAMS * BODY_MAX_BYTES
_LEVEL_BYTES = 14
NOTICE_BYTES = 160
"""Typical bytes of a `MarketInfo`."""
_SECOND_NS = 1_000_000_000


class Publication:
    """The publish queue and its pace (a token bucket in bytes, on the caller's clock)."""

    def __init__(self, packets: Packets, now_ns: int) -> None:
        self.packets = packets
        self._queue: deque[BookEntry] = deque()
        self._notices: deque[AnyMessage] = deque()
        self._allowance_bytes = _BURST_BYTES
        self._allowance_at_ns = now_ns
        self.images = 0
        self.resyncs = 0
        self.resync_levels = 0
        self.stale_notices = 0
        self.notices_dropped = 0

    def __len__(self) -> int:
        """Entries and notices that wait."""
        return len(self._queue) + len(self._notices)

    def enqueue_notice(self, message: AnyMessage) -> None:
        """Lets a status message about a market without book wait; past `NOTICES_MAX` it is dropped and counted."""
        if len(self._notices) < NOTICES_MAX:
            self._notices.append(message)
        else:
            self.notices_dropped += 1

    def enqueue(self, entry: BookEntry) -> None:
        """Lets an entry wait for publication; once at most."""
        if not entry.queued:
            entry.queued = True
            self._queue.append(entry)

    def next_deadline_ns(self) -> int | None:
        """When the queue may go on; None while it is empty."""
        if not self._queue and not self._notices:
            return None
        short_bytes = max(0, BODY_MAX_BYTES - self._allowance_bytes)
        return self._allowance_at_ns + short_bytes * _SECOND_NS // _BYTES_PER_SECOND + 1

    def publish_due(self, g: int, now_ns: int) -> int:
        """Publishes waiting entries as far as the pace allows; returns how many came in step with LIVE books."""
        if not self._queue and not self._notices:
            return 0
        elapsed_ns = max(0, now_ns - self._allowance_at_ns)
        allowance = min(
            _BURST_BYTES, self._allowance_bytes + elapsed_ns * _BYTES_PER_SECOND // _SECOND_NS
        )
        synced = 0
        while self._queue and allowance >= BODY_MAX_BYTES:
            entry = self._queue.popleft()
            entry.queued = False
            was_in_sync = entry.in_sync
            allowance -= self._publish(entry, g, now_ns)
            synced += entry.in_sync and not was_in_sync
        while self._notices and allowance >= BODY_MAX_BYTES:
            self.packets.status.append_measured(self._notices.popleft())
            allowance -= NOTICE_BYTES
        self._allowance_bytes = allowance
        self._allowance_at_ns = now_ns
        return synced

    def _publish(self, entry: BookEntry, g: int, now_ns: int) -> int:
        """Publishes what subscribers lack of one entry and returns its bytes, estimated."""
        spent = self._tell_market(entry)
        if entry.live and not entry.in_sync:
            if entry.mirror is None:
                spent += self._publish_image(entry, g, now_ns)
            else:
                spent += self._publish_resync(entry, entry.mirror, g, now_ns)
            entry.mirror = None
            entry.in_sync = True
            entry.stale_told = False
            self._tell_bbo(entry, g, now_ns, BookState.LIVE)
            spent += entry.message_bytes
        elif entry.state is BookState.STALE and entry.mirror is not None and not entry.stale_told:
            spent += self._tell_stale(entry, g, now_ns)
        return spent

    def _tell_market(self, entry: BookEntry) -> int:
        spent = 0
        if entry.info is not None and not entry.info_told:
            self.packets.status.append_measured(entry.info)
            entry.info_told = True
            spent += NOTICE_BYTES
        if entry.market_state is not None and not entry.market_state_told:
            self.packets.status.append_measured(entry.market_state)
            entry.market_state_told = True
            spent += entry.message_bytes
        return spent

    def _tell_bbo(self, entry: BookEntry, g: int, now_ns: int, state: BookState) -> None:
        book = entry.mirror if entry.mirror is not None else entry.book
        message = Bbo(entry.ticker, g, 0, now_ns, *book.bbo(), state)
        self.packets.bbo.append(message, entry.message_bytes)

    def _tell_stale(self, entry: BookEntry, g: int, now_ns: int) -> int:
        message = BookStale(entry.ticker, g, 0, now_ns, entry.stale_reason)
        self.packets.delta.append(message, entry.message_bytes)
        self._tell_bbo(entry, g, now_ns, BookState.STALE)
        entry.stale_told = True
        self.stale_notices += 1
        return 2 * entry.message_bytes

    def _publish_resync(self, entry: BookEntry, held: Book, g: int, now_ns: int) -> int:
        """Only the levels that differ, or an image where that is shorter."""
        spent = 0 if entry.stale_told else self._tell_stale(entry, g, now_ns)
        changes = level_changes(held, entry.book)
        if len(changes) * entry.message_bytes > (entry.book.level_count + 8) * _LEVEL_BYTES:
            return spent + self._publish_image(entry, g, now_ns)
        append, ticker, estimate = self.packets.delta.append, entry.ticker, entry.message_bytes
        for side, price_e4, delta_e2, size_e2 in changes:
            update = LevelUpdate(
                ticker, g, 0, now_ns, side, price_e4, delta_e2, size_e2, UpdateCause.RESYNC
            )
            append(update, estimate)
        append(BookReady(ticker, g, 0, now_ns, entry.book.checksum()), estimate)
        self.resyncs += 1
        self.resync_levels += len(changes)
        return spent + (len(changes) + 1) * estimate

    def _publish_image(self, entry: BookEntry, g: int, now_ns: int) -> int:
        append, ticker, estimate = self.packets.delta.append, entry.ticker, entry.message_bytes
        append(BookClear(ticker, g, 0, now_ns), estimate)
        parts = image_parts(entry.book)
        for part, (bids, asks) in enumerate(parts):
            message = BookLevels(ticker, g, 0, now_ns, part, len(parts), bids, asks)
            append(message, estimate + _LEVEL_BYTES * (len(bids) + len(asks)))
        append(BookReady(ticker, g, 0, now_ns, entry.book.checksum()), estimate)
        self.images += 1
        return 2 * estimate + len(parts) * estimate + _LEVEL_BYTES * entry.book.level_count


def image_parts(book: Book) -> list[tuple[tuple[Level, ...], tuple[Level, ...]]]:
    """The book in parts of at most `BOOK_LEVELS_PER_PART` levels, bids first; an empty book has one empty part."""
    levels = [(0, level) for level in book.ascending(0)] + [
        (1, level) for level in book.ascending(1)
    ]
    parts = []
    for start in range(0, max(1, len(levels)), BOOK_LEVELS_PER_PART):
        chunk = levels[start : start + BOOK_LEVELS_PER_PART]
        bids = tuple(level for side, level in chunk if side == 0)
        asks = tuple(level for side, level in chunk if side == 1)
        parts.append((bids, asks))
    return parts
