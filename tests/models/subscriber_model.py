"""An independent, strict subscriber: decodes datagrams and rebuilds books by the message semantics of KTP/1.

It asserts what a publisher owes: contiguous sequences, `old + delta == size`, complete images in ascending order,
right checksums, no exchange delta for a book that is not live.
"""

import struct
import zlib

from tickerplant.core import wire
from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    FeedPhase,
    FeedState,
    LevelUpdate,
    SessionStart,
    Stream,
    UpdateCause,
)
from tickerplant.limits import DATAGRAM_MAX_BYTES, TRAILER_BYTES


class MirroredBook:
    """Levels of one market as a subscriber holds them."""

    def __init__(self):
        self.sides = ({}, {})
        self.live = False
        self.parts_due = 0
        self.parts_seen = 0

    def checksum(self):
        """CRC-32 over `<qq`, bids then asks, ascending."""
        return zlib.crc32(
            b"".join(
                struct.pack("<qq", *level) for side in self.sides for level in sorted(side.items())
            )
        )


class SubscriberModel:
    """All streams of one session, read in the order in which the plant handed them out."""

    def __init__(self):
        self.session = None
        self.next_seq = dict.fromkeys(Stream, 1)
        self.datagrams = dict.fromkeys(Stream, 0)
        self.last_g = dict.fromkeys(Stream, 0)
        self.books = {}
        self.bbos = {}
        self.phases = []
        self.messages = []
        self.ended = set()
        self.header = None

    def begin_session(self):
        """What comes next belongs to another session: numbers and books start anew, what was told stays."""
        told = self.messages, self.phases
        self.__init__()
        self.messages, self.phases = told[0], []

    def receive(self, datagrams):
        """Checks and applies (stream, datagram) pairs; returns the messages in order."""
        received = []
        for stream, datagram in datagrams:
            received += self._receive_one(stream, datagram)
        self.messages += received
        return received

    def _receive_one(self, stream, datagram):
        assert len(datagram) <= DATAGRAM_MAX_BYTES - TRAILER_BYTES
        self.header = header = wire.decode_header(datagram)
        assert header.stream == stream
        assert self.session in {None, header.session}
        self.session = header.session
        assert header.seq == self.next_seq[stream], "sequence broken"
        if header.kind != wire.Kind.DATA:
            body = wire.decode_heartbeat(datagram, header)
            assert body.datagrams_sent == self.datagrams[stream]
            if header.kind == wire.Kind.END_OF_SESSION:
                self.ended.add(stream)
            return []
        assert stream not in self.ended, "data after the end of session"
        self.datagrams[stream] += 1
        self.next_seq[stream] += header.message_count
        messages = wire.decode_body(datagram, header)
        for message in messages:
            assert message is not None
            assert message.g >= self.last_g[stream], "g must not go back within a stream"
            self.last_g[stream] = message.g
            self._apply(message)
        return messages

    def _apply(self, message):
        if isinstance(message, SessionStart):
            assert self.next_seq[Stream.STATUS] >= 2
            assert not self.phases
        elif isinstance(message, FeedState):
            self.phases.append(FeedPhase(message.phase))
        elif isinstance(message, Bbo):
            self.bbos[message.ticker] = message
        elif message.stream is Stream.DELTA:
            self._apply_to_book(self.books.setdefault(message.ticker, MirroredBook()), message)

    def _apply_to_book(self, book, message):
        if isinstance(message, LevelUpdate):
            assert book.live or message.cause == UpdateCause.RESYNC, (
                "delta of a book that is not live"
            )
            assert not (book.live and message.cause == UpdateCause.RESYNC), "resync of a live book"
            assert book.parts_seen == book.parts_due, "update within an image"
            levels = book.sides[message.side]
            assert levels.pop(message.price_e4, 0) + message.delta_e2 == message.size_e2
            assert message.size_e2 >= 0
            if message.size_e2:
                levels[message.price_e4] = message.size_e2
        elif isinstance(message, BookStale):
            book.live = False
        elif isinstance(message, BookClear):
            book.__init__()
        elif isinstance(message, BookLevels):
            self._add_part(book, message)
        elif isinstance(message, BookReady):
            assert book.parts_seen == book.parts_due, "image incomplete"
            assert book.checksum() == message.checksum
            book.live = True
        else:
            assert book.live
            assert book.checksum() == message.checksum

    @staticmethod
    def _add_part(book, message):
        assert not book.live
        assert message.part == book.parts_seen
        assert book.parts_due in {0, message.parts}
        book.parts_due = message.parts
        book.parts_seen += 1
        for levels, new in zip(book.sides, (message.bids, message.asks), strict=True):
            for price_e4, size_e2 in new:
                assert size_e2 > 0
                assert price_e4 > max(levels, default=0), "prices must ascend"
                levels[price_e4] = size_e2
