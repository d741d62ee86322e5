"""Packing of messages into datagrams, per stream, and the heartbeats that make tail loss evident.

Messages gather in a list and are packed at a flush, never by a timer: a list is encoded at once, three times cheaper
than message by message, and how many fit is learned from the packet before.
"""

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import AnyMessage, Stream
from tickerplant.core.wire import (
    FLAG_AUTHENTICATED,
    HEADER,
    MAGIC,
    SCHEMA,
    VERSION,
    HeartbeatBody,
    Kind,
    encode_body,
    encode_heartbeat,
)
from tickerplant.limits import BODY_MAX_BYTES, HEARTBEAT_AFTER_DATA_NS, HEARTBEAT_INTERVAL_NS

Datagram = tuple[int, bytes]
"""(stream, datagram)"""
MessageRow = tuple[object, ...]
"""A message as the tuple that it encodes to: its tag, then every field in order."""

_FIRST_GUESS = 16
_FIRST_HEARTBEAT_NS = HEARTBEAT_AFTER_DATA_NS[0]
_pack_header = HEADER.pack


class StreamPackets:
    """The messages of one stream that wait for a flush (append to `messages`), and packets closed before it.

    `messages` stays the same list: its `append` may be kept.
    """

    __slots__ = (
        "_fitting",
        "closed",
        "datagrams_sent",
        "earlier_datagrams",
        "earlier_messages",
        "heartbeat_due_ns",
        "heartbeat_step",
        "messages",
        "next_seq",
        "oversized",
        "stream",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = int(stream)
        self.messages: list[AnyMessage | MessageRow] = []
        self.closed: list[tuple[int, int, bytes]] = []
        self.next_seq = 1
        self.datagrams_sent = 0
        self.earlier_messages = 0
        self.earlier_datagrams = 0
        self.oversized = 0
        self.heartbeat_step = 0
        self.heartbeat_due_ns = 0
        self._fitting = _FIRST_GUESS

    def begin_session(self, now_ns: int) -> None:
        """Sequences start at 1 again; nothing waits. Sessions before count as `earlier_...`."""
        assert not self.messages
        self.earlier_messages += self.next_seq - 1
        self.earlier_datagrams += self.datagrams_sent
        self.next_seq = 1
        self.datagrams_sent = 0
        self.heartbeat_step = 0
        self.heartbeat_due_ns = now_ns

    def pack(self, *, keep_last: bool = False) -> None:
        """Moves the waiting messages into `closed` packets, as full as they go; `keep_last` leaves what fits in one."""
        messages = self.messages
        total = len(messages)
        start = 0
        if 0 < total <= self._fitting and not keep_last:
            body = encode_body(messages)
            size = len(body)
            if size <= BODY_MAX_BYTES:
                if size + size // total <= BODY_MAX_BYTES:
                    self._fitting = max(self._fitting, total * BODY_MAX_BYTES // size)
                self.closed.append((self.next_seq, total, body))
                self.next_seq += total
                messages.clear()
                return
        while start < total:
            count = min(self._fitting, total - start)
            body = encode_body(messages[start : start + count])
            size = len(body)
            while size > BODY_MAX_BYTES and count > 1:
                count = self._fitting = min(count - 1, max(1, count * BODY_MAX_BYTES // size))
                body = encode_body(messages[start : start + count])
                size = len(body)
            if keep_last and start + count == total:
                break
            start += count
            if size > BODY_MAX_BYTES:
                # Bounded fields make this impossible; a bug here must not stop the feed.
                self.oversized += 1
                continue
            if size + size // count <= BODY_MAX_BYTES:
                self._fitting = max(self._fitting, count * BODY_MAX_BYTES // size)
            self.closed.append((self.next_seq, count, body))
            self.next_seq += count
        del messages[:start]


class Packets:
    """The packets of all streams of one session; with a `key_ring` every datagram is signed."""

    def __init__(
        self, session: int, publisher: int, now_ns: int, key_ring: KeyRing | None = None
    ) -> None:
        self.session = session
        self.publisher = publisher
        self._sign = None if key_ring is None else key_ring.sign
        self._flags_signed = 0 if key_ring is None else FLAG_AUTHENTICATED
        self.flags = 0
        self.log_on = False
        self.oldest_seqs: tuple[int, ...] = (0,) * len(Stream)
        """The oldest repairable sequence of each stream, streams 1 to 5 in order; told in heartbeats."""
        self.trade = StreamPackets(Stream.TRADE)
        self.bbo = StreamPackets(Stream.BBO)
        self.ticker = StreamPackets(Stream.TICKER)
        self.delta = StreamPackets(Stream.DELTA)
        self.status = StreamPackets(Stream.STATUS)
        # Best bid and offer leave first: they are what a strategy waits for.
        self.streams = (self.bbo, self.trade, self.delta, self.ticker, self.status)
        for packets in self.streams:
            packets.heartbeat_due_ns = now_ns
        self.next_heartbeat_ns = now_ns
        """When `heartbeats` may have something to send."""

    def use_keys(self, key_ring: KeyRing) -> None:
        """Sign with other keys from now on."""
        self._sign = key_ring.sign
        self._flags_signed = FLAG_AUTHENTICATED

    def by_stream(self, stream: int) -> StreamPackets:
        """The packets of one stream number."""
        return next(packets for packets in self.streams if packets.stream == stream)

    def begin_session(self, session: int, now_ns: int) -> None:
        """Go over to another session, after a flush."""
        self.session = session
        for packets in self.streams:
            packets.begin_session(now_ns)
        self.next_heartbeat_ns = now_ns

    @property
    def next_seqs(self) -> tuple[int, ...]:
        """The next sequence of each stream, streams 1 to 5 in order."""
        return tuple(self.by_stream(stream).next_seq for stream in Stream)

    def flush(self, now_ns: int) -> list[Datagram]:
        """All messages so far as datagrams stamped `now_ns`, in sequence order per stream."""
        datagrams: list[Datagram] = []
        flags = self.flags | self._flags_signed
        session, publisher = self.session, self.publisher
        for packets in self.streams:
            bodies = packets.closed
            if packets.messages:
                packets.pack()
            elif not bodies:
                continue
            stream = packets.stream
            for seq, count, body in bodies:
                # `frame_body`, written out: called by name it takes longer than the rest of this loop.
                header = _pack_header(
                    MAGIC,
                    VERSION,
                    0,
                    stream,
                    flags,
                    SCHEMA,
                    session,
                    seq,
                    now_ns,
                    count,
                    len(body),
                    publisher,
                    0,
                )
                datagrams.append((stream, header + body))
            packets.datagrams_sent += len(bodies)
            bodies.clear()
            packets.heartbeat_step = 0
            due_ns = packets.heartbeat_due_ns = now_ns + _FIRST_HEARTBEAT_NS
            self.next_heartbeat_ns = min(self.next_heartbeat_ns, due_ns)
        if self._sign is not None:
            return [(stream, self._sign(datagram)) for stream, datagram in datagrams]
        return datagrams

    def heartbeats(self, now_ns: int) -> list[Datagram]:
        """The heartbeats that are due: 10, 50, 250 ms after the last data, then each second."""
        datagrams: list[Datagram] = []
        for packets in self.streams:
            if packets.heartbeat_due_ns <= now_ns:
                datagrams.append((packets.stream, self._heartbeat(packets, Kind.HEARTBEAT, now_ns)))
                step = packets.heartbeat_step + 1
                packets.heartbeat_step = step
                if step < len(HEARTBEAT_AFTER_DATA_NS):
                    wait_ns = HEARTBEAT_AFTER_DATA_NS[step] - HEARTBEAT_AFTER_DATA_NS[step - 1]
                else:
                    wait_ns = HEARTBEAT_INTERVAL_NS
                packets.heartbeat_due_ns = now_ns + wait_ns
        self.next_heartbeat_ns = min(packets.heartbeat_due_ns for packets in self.streams)
        return datagrams

    def ends_of_session(self, now_ns: int) -> list[Datagram]:
        """One end of session per stream; its seq is the next that would have come."""
        return [
            (packets.stream, self._heartbeat(packets, Kind.END_OF_SESSION, now_ns))
            for packets in self.streams
        ]

    def _heartbeat(self, packets: StreamPackets, kind: Kind, now_ns: int) -> bytes:
        datagram = encode_heartbeat(
            packets.stream,
            self.session,
            packets.next_seq,
            now_ns,
            HeartbeatBody(
                packets.datagrams_sent, self.oldest_seqs[packets.stream - 1], self.log_on
            ),
            kind=kind,
            publisher=self.publisher,
            flags=self.flags | self._flags_signed,
        )
        return datagram if self._sign is None else self._sign(datagram)
