"""The state of a plant at one place of its streams, read piece by piece while the state goes on. Pure.

A cut is a list of markets and, for those that change before they were read, what they were: copies are made on
change, and of what is encoded already only a reference is kept.
"""

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from tickerplant.core.book import Book
from tickerplant.core.logformat import NextSeqs
from tickerplant.core.messages import (
    Bbo,
    BookState,
    FeedState,
    MarketInfo,
    MarketState,
    Message,
    SessionStart,
    Ticker,
)
from tickerplant.core.packed_books import (
    IS_LIVE,
    PackedBook,
    encode_book,
    messages_of_encoded,
)
from tickerplant.core.wire import encode_message
from tickerplant.limits import (
    BODY_MAX_BYTES,
    SNAPSHOT_SLICE_BYTES,
    SNAPSHOT_SLICE_LEVELS,
    SNAPSHOT_SLICE_MARKETS,
)

ARRAY_HEADER_MAX_BYTES = 3
"""Of a msgpack array of at most 65,535 elements."""


class Chunk(NamedTuple):
    """Encoded messages, one after the other, that fit into one datagram."""

    encoded: bytes
    message_count: int


class Market:
    """What is known of one market.

    `phase` is SYNCING while the levels, if any, may be wrong. `last` is the newest message that changed the book;
    `image` its encoded book, None after a change. `cut_number` is that of the newest cut that needs this market no
    more as it is.
    """

    __slots__ = (
        "bbo",
        "book",
        "cut_number",
        "image",
        "info",
        "is_finished",
        "last",
        "market_state",
        "next_part",
        "phase",
        "reason",
        "ticker",
        "ticker_update",
    )

    def __init__(self, ticker: str, cut_number: int) -> None:
        self.ticker = ticker
        self.book = Book()
        self.phase = BookState.SYNCING
        self.reason = 0
        self.last: Message | None = None
        self.next_part: int | None = None
        self.bbo: Bbo | None = None
        self.ticker_update: Ticker | None = None
        self.info: MarketInfo | None = None
        self.market_state: MarketState | None = None
        self.is_finished = False
        self.image: bytes | None = None
        self.cut_number = cut_number


class MarketImage(NamedTuple):
    """What is known of a market at one place; `book` is an encoded `PackedBook`, empty of an unknown one."""

    book: bytes
    bbo: Bbo | None
    ticker_update: Ticker | None
    info: MarketInfo | None
    market_state: MarketState | None


class Cut:
    """See the module's text. `is_failed`: a hole in the log made it unreadable; ask for another.

    Made by `PlantState.cut`, which also tells it what changes.
    """

    def __init__(
        self,
        *,
        session: int,
        publisher: int,
        partition: int,
        next_seqs: NextSeqs,
        session_start: SessionStart | None,
        feed_state: FeedState | None,
        markets: list[Market],
    ) -> None:
        self.session = session
        self.publisher = publisher
        self.partition = partition
        self.next_seqs = next_seqs
        self.session_start = session_start
        self.feed_state = feed_state
        self.is_failed = False
        self.levels_encoded = 0
        self._markets = markets
        self._wanted = frozenset(markets)
        self._images: dict[Market, MarketImage] = {}

    @property
    def is_open(self) -> bool:
        """Whether it still has to be told of changes."""
        return not self.is_failed and len(self._images) < len(self._markets)

    def fail(self) -> None:
        """It cannot be read to its end, or nobody reads it any more."""
        self.is_failed = True
        self._images.clear()

    def preserve(self, market: Market) -> None:
        """`market` is about to change."""
        if not self.is_failed and market in self._wanted and market not in self._images:
            self._images[market] = self._image_of(market)

    def slices(self) -> Iterator[list[MarketImage]]:
        """All images, in pieces of bounded work; the state may go on between two. Several may read at a time."""
        images: list[MarketImage] = []
        encoded, size = self.levels_encoded, 0
        for market in self._markets:
            image = self._images.get(market)
            if image is None:
                image = self._images[market] = self._image_of(market)
            images.append(image)
            size += len(image.book)
            is_heavy = (
                self.levels_encoded - encoded >= SNAPSHOT_SLICE_LEVELS
                or size >= SNAPSHOT_SLICE_BYTES
            )
            if is_heavy or len(images) >= SNAPSHOT_SLICE_MARKETS:
                yield images
                images, encoded, size = [], self.levels_encoded, 0
        if images:
            yield images

    def _image_of(self, market: Market) -> MarketImage:
        book = market.image
        if book is None:
            book = market.image = pack_market(market)
            self.levels_encoded += market.book.level_count
        return MarketImage(book, market.bbo, market.ticker_update, market.info, market.market_state)


def pack_market(market: Market) -> bytes:
    """The book of a LIVE or STALE market, encoded; nothing of an unknown one."""
    last = market.last
    if market.phase not in (BookState.LIVE, BookState.STALE) or last is None:
        return b""
    book = market.book
    levels = book.packed()
    return encode_book(
        PackedBook(
            market.ticker,
            last.g,
            last.ts_event_ns,
            last.ts_recv_ns,
            IS_LIVE if market.phase == BookState.LIVE else market.reason,
            book.bid_count,
            crc32(levels),
            levels,
        )
    )


def book_chunks(encoded: bytes) -> tuple[Chunk, ...]:
    """The messages that make an encoded book what it is."""
    return join_chunks([encode_message(message) for message in messages_of_encoded(encoded)])


def join_chunks(encoded: list[bytes]) -> tuple[Chunk, ...]:
    """Encoded messages joined to as few chunks as they fit in, in order."""
    whole = b"".join(encoded)
    if len(whole) <= BODY_MAX_BYTES - ARRAY_HEADER_MAX_BYTES:
        return (Chunk(whole, len(encoded)),)
    chunks: list[Chunk] = []
    parts: list[bytes] = []
    size = 0
    for message in encoded:
        if parts and size + len(message) > BODY_MAX_BYTES - ARRAY_HEADER_MAX_BYTES:
            chunks.append(Chunk(b"".join(parts), len(parts)))
            parts, size = [], 0
        parts.append(message)
        size += len(message)
    chunks.append(Chunk(b"".join(parts), len(parts)))
    return tuple(chunks)
