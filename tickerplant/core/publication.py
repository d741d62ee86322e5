"""Bringing what subscribers hold of each book in step with the plant's book, at a bounded pace.

Every book that differs waits once in a queue; images, resyncs and stale notices leave it no faster than
`IMAGE_DATAGRAMS_PER_SECOND`, because thousands of full books at once overflow every subscriber's receive buffer.
"""

from collections import deque

from msgspec.structs import replace

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
    BOOK_LEVELS_PER_PART,
    IMAGE_BURST_DATAGRAMS,
    IMAGE_DATAGRAMS_PER_SECOND,
    IMAGE_RESUME_DATAGRAMS,
    NOTICES_MAX,
)

_SECOND_NS = 1_000_000_000
_DATAGRAM_NS = _SECOND_NS // IMAGE_DATAGRAMS_PER_SECOND
_BURST_NS = IMAGE_BURST_DATAGRAMS * _DATAGRAM_NS
_RESUME_NS = IMAGE_RESUME_DATAGRAMS * _DATAGRAM_NS
_LEVEL_BYTES = 8
"""Typical bytes of one level of an image."""


class Publication:
    """The publish queue and its pace: `_paid_until_ns` is the time up to which the rate is used.

    Each datagram that an entry begins takes its share of time; at most a burst of it can be saved up. A queue that
    has used up its pace goes on with several datagrams at a time, so that they are full.
    """

    def __init__(self, packets: Packets, now_ns: int) -> None:
        self.packets = packets
        self._queue: deque[BookEntry] = deque()
        self._notices: deque[AnyMessage] = deque()
        self._paid_until_ns = now_ns - _BURST_NS
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

    def enqueue(self, entry: BookEntry, *, first: bool = False) -> None:
        """Lets an entry wait for publication, once at most; `first`: before all that wait."""
        if not entry.queued:
            entry.queued = True
            if first:
                self._queue.appendleft(entry)
            else:
                self._queue.append(entry)

    def next_deadline_ns(self) -> int | None:
        """When the queue may go on; None while it is empty."""
        if not self._queue and not self._notices:
            return None
        return self._paid_until_ns + _RESUME_NS

    def publish_due(self, g: int, now_ns: int) -> int:
        """Publishes waiting entries as far as the pace allows; returns how many came in step with LIVE books."""
        if not self._queue and not self._notices:
            return 0
        if now_ns < self._paid_until_ns + _RESUME_NS:
            return 0
        paid_until_ns = max(self._paid_until_ns, now_ns - _BURST_NS)
        synced = 0
        while (self._queue or self._notices) and paid_until_ns < now_ns:
            begun = self._datagrams_begun()
            if self._queue:
                entry = self._queue.popleft()
                entry.queued = False
                was_in_sync = entry.in_sync
                self._publish(entry, g, now_ns)
                synced += 1 if entry.in_sync and not was_in_sync else 0
            else:
                self._tell(self._notices.popleft(), g)
            paid_until_ns += (self._datagrams_begun() - begun) * _DATAGRAM_NS
        self._paid_until_ns = paid_until_ns
        return synced

    def _datagrams_begun(self) -> int:
        """Datagrams of the next flush so far, on the streams that are written here."""
        begun = 0
        for stream in (self.packets.delta, self.packets.bbo, self.packets.status):
            if stream.messages:
                stream.pack(keep_last=True)
            begun += len(stream.closed) + (1 if stream.messages else 0)
        return begun

    def _publish(self, entry: BookEntry, g: int, now_ns: int) -> None:
        """Publishes what subscribers lack of one entry."""
        self._tell_market(entry, g)
        if entry.live and not entry.in_sync:
            if entry.mirror is None:
                self._publish_image(entry, g, now_ns)
            else:
                self._publish_resync(entry, entry.mirror, g, now_ns)
            entry.mirror = None
            entry.in_sync = True
            entry.stale_told = False
            self._tell_bbo(entry, g, now_ns, BookState.LIVE)
        elif entry.state is BookState.STALE and entry.mirror is not None and not entry.stale_told:
            self._tell_stale(entry, g, now_ns)

    def _tell_market(self, entry: BookEntry, g: int) -> None:
        if entry.info is not None and not entry.info_told:
            self._tell(entry.info, g)
            entry.info_told = True
        if entry.market_state is not None and not entry.market_state_told:
            self._tell(entry.market_state, g)
            entry.market_state_told = True

    def _tell(self, message: AnyMessage, g: int) -> None:
        """With the ordinal of the input in which it goes out, so that `g` never goes back within a stream."""
        self.packets.status.messages.append(replace(message, g=g) if message.g != g else message)

    def _tell_bbo(self, entry: BookEntry, g: int, now_ns: int, state: BookState) -> None:
        book = entry.mirror if entry.mirror is not None else entry
        message = Bbo(entry.ticker, g, 0, now_ns, *book.bbo(), state)
        self.packets.bbo.messages.append(message)

    def _tell_stale(self, entry: BookEntry, g: int, now_ns: int) -> None:
        message = BookStale(entry.ticker, g, 0, now_ns, entry.stale_reason)
        self.packets.delta.messages.append(message)
        self._tell_bbo(entry, g, now_ns, BookState.STALE)
        entry.stale_told = True
        self.stale_notices += 1

    def _publish_resync(self, entry: BookEntry, held: Book, g: int, now_ns: int) -> None:
        """Only the levels that differ, or an image where that is shorter."""
        if not entry.stale_told:
            self._tell_stale(entry, g, now_ns)
        changes = level_changes(held, entry)
        if len(changes) * entry.message_bytes > (entry.level_count + 8) * _LEVEL_BYTES:
            self._publish_image(entry, g, now_ns)
            return
        append, ticker = self.packets.delta.messages.append, entry.ticker
        for side, price_e4, delta_e2, size_e2 in changes:
            update = LevelUpdate(
                ticker, g, 0, now_ns, side, price_e4, delta_e2, size_e2, UpdateCause.RESYNC
            )
            append(update)
        append(BookReady(ticker, g, 0, now_ns, entry.checksum()))
        self.resyncs += 1
        self.resync_levels += len(changes)

    def _publish_image(self, entry: BookEntry, g: int, now_ns: int) -> None:
        append, ticker = self.packets.delta.messages.append, entry.ticker
        append(BookClear(ticker, g, 0, now_ns))
        parts = image_parts(entry)
        for part, (bids, asks) in enumerate(parts):
            append(BookLevels(ticker, g, 0, now_ns, part, len(parts), bids, asks))
        append(BookReady(ticker, g, 0, now_ns, entry.checksum()))
        self.images += 1


def image_parts(book: Book) -> list[tuple[tuple[Level, ...], tuple[Level, ...]]]:
    """The book in parts of at most `BOOK_LEVELS_PER_PART` levels, bids first; an empty book has one empty part."""
    bids, asks = book.ascending(0), book.ascending(1)
    split, total = len(bids), len(bids) + len(asks)
    parts = []
    for start in range(0, max(1, total), BOOK_LEVELS_PER_PART):
        end = start + BOOK_LEVELS_PER_PART
        part_asks = asks[max(0, start - split) : max(0, end - split)]
        parts.append((tuple(bids[start:end]), tuple(part_asks)))
    return parts
