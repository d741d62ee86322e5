"""A cut as KTP/1 datagrams: what a snapshot consists of. Pure."""

from collections.abc import Collection, Iterable

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_cut import (
    ARRAY_HEADER_MAX_BYTES,
    Chunk,
    Cut,
    MarketImage,
)
from tickerplant.core.wire import FLAG_SNAPSHOT, Kind, encode_message, frame_body
from tickerplant.limits import BODY_MAX_BYTES

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

    def has_room(self, chunk: Chunk) -> bool:
        return self.size + len(chunk.encoded) <= BODY_MAX_BYTES - ARRAY_HEADER_MAX_BYTES

    def add(self, chunk: Chunk) -> None:
        self.parts.append(chunk.encoded)
        self.size += len(chunk.encoded)
        self.count += chunk.message_count


class SnapshotPackets:
    """The datagrams of one snapshot: `start`, then `add` each slice of the cut, then `finish`.

    They carry `FLAG_SNAPSHOT` and, as sequence, the next one of their stream at the cut; they have no trailer, because
    one that vouched for them would vouch for them on the multicast group too.
    """

    def __init__(self, cut: Cut, streams: Collection[int]) -> None:
        self._cut = cut
        self._bodies = {stream: _Body() for stream in SNAPSHOT_STREAMS if stream in streams}
        self.counts = dict.fromkeys(map(int, self._bodies), 0)
        """Messages by stream, so far."""

    def start(self, now_ns: int) -> list[bytes]:
        """What is about the whole plant."""
        full: list[bytes] = []
        for message in (self._cut.session_start, self._cut.feed_state):
            if message is not None:
                self._put(Stream.STATUS, [Chunk(encode_message(message), 1)], now_ns, full)
        return full

    def add(self, images: Iterable[MarketImage], now_ns: int) -> list[bytes]:
        """The datagrams that these markets filled."""
        full: list[bytes] = []
        for image in images:
            self._put(Stream.DELTA, image.levels, now_ns, full)
            for stream, message in (
                (Stream.STATUS, image.info),
                (Stream.STATUS, image.market_state),
                (Stream.BBO, image.bbo),
                (Stream.TICKER, image.ticker_update),
            ):
                if message is not None and stream in self._bodies:
                    self._put(stream, [Chunk(encode_message(message), 1)], now_ns, full)
        return full

    def finish(self, now_ns: int) -> list[bytes]:
        """The datagrams that are not full."""
        return [
            self._close(stream, body, now_ns) for stream, body in self._bodies.items() if body.count
        ]

    def _put(self, stream: int, chunks: Iterable[Chunk], now_ns: int, full: list[bytes]) -> None:
        body = self._bodies.get(Stream(stream))
        if body is None:
            return
        for chunk in chunks:
            if body.count and not body.has_room(chunk):
                full.append(self._close(stream, body, now_ns))
                body = self._bodies[Stream(stream)] = _Body()
            body.add(chunk)

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
