"""Whole books as recovery sends them in snapshots: one struct each, with the very bytes that its checksum is of. Pure.

A snapshot of thousands of books is read in one go. Levels as messages would be two hundred thousand tuples; like this
the sum is taken over the bytes as they came, and the four lists of a `Book` are cut out of them.
"""

from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

import msgspec

from tickerplant.core.book import Book
from tickerplant.core.messages import AnyMessage, BookLevels, BookReady, BookStale
from tickerplant.core.publication import image_parts
from tickerplant.errors import MalformedBodyError
from tickerplant.limits import PACKED_BOOK_MAX_BYTES, PACKED_FRAME_BYTES

IS_LIVE = -1
"""In the place of the reason why a book is stale."""


class PackedBook(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A book after the message that the first four fields are of; `levels` as `Book.packed` has them, bids first.

    `stale_reason` is `IS_LIVE` or a `StaleReason`; `checksum` is that of the levels in either case.
    """

    ticker: str
    g: int
    ts_event_ns: int
    ts_recv_ns: int
    stale_reason: int
    bid_count: int
    checksum: int
    levels: bytes


class PackedBooks(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The payload of a frame: books of a snapshot of `session`."""

    session: int
    books: list[PackedBook]


class _EncodedBooks(msgspec.Struct, array_like=True, gc=False, frozen=True):
    session: int
    books: list[msgspec.Raw]


encode_book = msgspec.msgpack.Encoder().encode
"""One book; see `frame_books`."""
_encode_books = encode_book
_decode_book = msgspec.msgpack.Decoder(PackedBook).decode
_decode_books = msgspec.msgpack.Decoder(PackedBooks).decode


def fits_a_frame(encoded: bytes) -> bool:
    """Whether an encoded book is sent whole; a larger one goes as messages."""
    return len(encoded) <= PACKED_BOOK_MAX_BYTES


def frame_books(session: int, encoded: Iterable[bytes]) -> list[bytes]:
    """Payloads of as few frames as the encoded books, each of which `fits_a_frame`, go into."""
    payloads: list[bytes] = []
    books: list[msgspec.Raw] = []
    size = 0
    for one in encoded:
        if size + len(one) > PACKED_FRAME_BYTES:
            payloads.append(_encode_books(_EncodedBooks(session, books)))
            books, size = [], 0
        books.append(msgspec.Raw(one))
        size += len(one)
    if books:
        payloads.append(_encode_books(_EncodedBooks(session, books)))
    return payloads


def decode_books(payload: bytes) -> PackedBooks:
    """The books of a frame, not checked any further. Raises `MalformedBodyError`."""
    try:
        return _decode_books(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedBodyError(f"books of a snapshot: {error}") from error


class WholeBook(NamedTuple):
    """A book that came packed, ready to be used; `book` is None where the levels make none or have another sum."""

    packed: PackedBook
    book: Book | None


def unpack(packed: PackedBook) -> WholeBook:
    """The book; what it holds is what it says, or there is none."""
    if crc32(packed.levels) != packed.checksum:
        return WholeBook(packed, None)
    book = Book()
    try:
        book.load_packed(packed.levels, packed.bid_count)
    except ValueError:
        return WholeBook(packed, None)
    return WholeBook(packed, book)


def messages_of(whole: WholeBook) -> list[AnyMessage]:
    """What says the same as messages of the delta stream; nothing of what is no book."""
    packed, book = whole
    if book is None:
        return []
    stamp = (packed.ticker, packed.g, packed.ts_event_ns, packed.ts_recv_ns)
    parts = image_parts(book)
    messages: list[AnyMessage] = [
        BookLevels(*stamp, part, len(parts), *sides) for part, sides in enumerate(parts)
    ]
    if packed.stale_reason == IS_LIVE:
        messages.append(BookReady(*stamp, packed.checksum))
    else:
        messages.append(BookStale(*stamp, packed.stale_reason))
    return messages


def messages_of_encoded(encoded: bytes) -> list[AnyMessage]:
    """The same of a book that this process encoded."""
    return messages_of(unpack(_decode_book(encoded)))
