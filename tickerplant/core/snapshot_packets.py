"""A cut as KTP/1 datagrams: what a snapshot consists of. Pure."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from tickerplant.core.messages import AnyMessage, Stream
from tickerplant.core.packed_books import fits_a_frame, frame_books
from tickerplant.core.recovery_cut import (
    ARRAY_HEADER_MAX_BYTES,
    Chunk,
    Cut,
    MarketImage,
    book_chunks,
)
from tickerplant.core.wire import FLAG_SNAPSHOT, Kind, encode_message, frame_body
from tickerplant.limits import BODY_MAX_BYTES

_ROOM_BYTES = BODY_MAX_BYTES - ARRAY_HEADER_MAX_BYTES
_new_chunk = Chunk._make
SNAPSHOT_STREAMS = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
"""Streams that have a state; trades have none."""


def array_header(count: int) -> bytes:
    """What a msgpack array of `count` elements, at most 65,535, begins with."""
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


class _Body:
    """The body being filled of one stream."""

    __slots__ = ("count", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0
        self.size = 0


class SnapshotPackets:
    """The datagrams of one snapshot: `start`, then `add` each slice of the cut, then `finish`.

    With `is_packed` books go whole, beside the datagrams: `books` has the frames of a slice.

    They carry `FLAG_SNAPSHOT` and, as sequence, the next one of their stream at the cut; they have no trailer, because
    one that vouched for them would vouch for them on the multicast group too.
    """

    def __init__(self, cut: Cut, streams: Collection[int], *, is_packed: bool = False) -> None:
        self._cut = cut
        self._is_packed = is_packed
        self._has_books = Stream.DELTA in streams
        self._bodies = {stream: _Body() for stream in SNAPSHOT_STREAMS if stream in streams}
        self.counts = dict.fromkeys(map(int, self._bodies), 0)
        """Messages by stream, so far."""

    def start(self, now_ns: int) -> list[bytes]:
        """What is about the whole plant."""
        messages = (self._cut.session_start, self._cut.feed_state)
        return self._put(Stream.STATUS, _chunks(messages), now_ns)

    def add(self, images: Sequence[MarketImage], now_ns: int) -> list[bytes]:
        """The datagrams that these markets filled."""
        put = self._put
        levels = [
            chunk
            for image in images
            if image.book and self._has_books and not self._goes_whole(image.book)
            for chunk in book_chunks(image.book)
        ]
        statuses = (one for image in images for one in (image.info, image.market_state))
        return [
            *put(Stream.STATUS, _chunks(statuses), now_ns),
            *put(Stream.DELTA, levels, now_ns),
            *put(Stream.BBO, _chunks(image.bbo for image in images), now_ns),
            *put(Stream.TICKER, _chunks(image.ticker_update for image in images), now_ns),
        ]

    def books(self, images: Sequence[MarketImage]) -> list[bytes]:
        """Payloads of the frames of these markets' books, where those go whole."""
        if not (self._is_packed and self._has_books):
            return []
        whole = [image.book for image in images if image.book and fits_a_frame(image.book)]
        self.counts[Stream.DELTA] += len(whole)
        return frame_books(self._cut.session, whole)

    def _goes_whole(self, book: bytes) -> bool:
        return self._is_packed and fits_a_frame(book)

    def finish(self, now_ns: int) -> list[bytes]:
        """The datagrams that are not full."""
        return [
            self._close(stream, body, now_ns) for stream, body in self._bodies.items() if body.count
        ]

    def _put(self, stream: Stream, chunks: Iterable[Chunk], now_ns: int) -> list[bytes]:
        body = self._bodies.get(stream)
        full: list[bytes] = []
        if body is None:
            return full
        for encoded, message_count in chunks:
            size = body.size + len(encoded)
            if size > _ROOM_BYTES:
                full.append(self._close(stream, body, now_ns))
                body = self._bodies[stream] = _Body()
                size = len(encoded)
            body.parts.append(encoded)
            body.size = size
            body.count += message_count
        return full

    def _close(self, stream: int, body: _Body, now_ns: int) -> bytes:
        self.counts[stream] += body.count
        cut = self._cut
        return frame_body(
            array_header(body.count) + b"".join(body.parts),
            kind=Kind.DATA,
            stream=stream,
            session=cut.session,
            seq=cut.next_seqs[stream - 1],
            ts_send_ns=now_ns,
            count=body.count,
            publisher=cut.publisher,
            partition=cut.partition,
            flags=FLAG_SNAPSHOT,
        )


def _chunks(messages: Iterable[AnyMessage | None]) -> Iterator[Chunk]:
    """Each message that there is, encoded once it is asked for."""
    return (_new_chunk((encode_message(one), 1)) for one in messages if one is not None)
