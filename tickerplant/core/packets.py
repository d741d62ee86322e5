"""Packing of messages into datagrams, per stream, and the heartbeats that make tail loss evident.

Packets are closed when full or at a flush, never by a timer. Their length is estimated while they fill and checked
when they are encoded as a whole: encoding a list once is three times cheaper than message by message.
"""

from collections.abc import Sequence

from tickerplant.core.messages import AnyMessage, Stream
from tickerplant.core.wire import (
    SCHEMA,
    HeartbeatBody,
    Kind,
    encode_body,
    encode_heartbeat,
    frame_body,
)
from tickerplant.limits import BODY_MAX_BYTES, HEARTBEAT_AFTER_DATA_NS, HEARTBEAT_INTERVAL_NS

Datagram = tuple[int, bytes]
"""(stream, datagram)"""

PACKET_ROOM_BYTES = BODY_MAX_BYTES - 3
"""Of a body, less its array header."""
assert SCHEMA == 1


class StreamPackets:
    """The open packet and the closed bodies of one stream."""

    __slots__ = (
        "closed",
        "datagrams_sent",
        "estimated_bytes",
        "heartbeat_due_ns",
        "heartbeat_step",
        "messages",
        "next_seq",
        "oversized",
        "stream",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = int(stream)
        self.messages: list[AnyMessage] = []
        self.estimated_bytes = 0
        self.closed: list[tuple[int, int, bytes]] = []
        self.next_seq = 1
        self.datagrams_sent = 0
        self.oversized = 0
        self.heartbeat_step = 0
        self.heartbeat_due_ns = 0

    def append(self, message: AnyMessage, estimated_bytes: int) -> None:
        """Adds a message that takes about `estimated_bytes`; closes the packet first if it would not fit."""
        total = self.estimated_bytes + estimated_bytes
        if total > PACKET_ROOM_BYTES and self.messages:
            self.close()
            total = estimated_bytes
        self.messages.append(message)
        self.estimated_bytes = total

    def append_measured(self, message: AnyMessage) -> None:
        """Adds a message of a rare type at its exact length."""
        self.append(message, len(encode_body(message)))

    def close(self) -> None:
        """Encodes the open packet into `closed`."""
        messages = self.messages
        if messages:
            self.messages = []
            self.estimated_bytes = 0
            self._encode(messages)

    def _encode(self, messages: Sequence[AnyMessage]) -> None:
        body = encode_body(messages)
        count = len(messages)
        if len(body) <= BODY_MAX_BYTES:
            self.closed.append((self.next_seq, count, body))
            self.next_seq += count
        elif count > 1:
            self._encode(messages[: count // 2])
            self._encode(messages[count // 2 :])
        else:
            self.oversized += 1


class Packets:
    """The packets of all streams of one session."""

    def __init__(self, session: int, publisher: int, now_ns: int) -> None:
        self.session = session
        self.publisher = publisher
        self.flags = 0
        self.trade = StreamPackets(Stream.TRADE)
        self.bbo = StreamPackets(Stream.BBO)
        self.ticker = StreamPackets(Stream.TICKER)
        self.delta = StreamPackets(Stream.DELTA)
        self.status = StreamPackets(Stream.STATUS)
        # Best bid and offer leave first: they are what a strategy waits for.
        self.streams = (self.bbo, self.trade, self.delta, self.ticker, self.status)
        for packets in self.streams:
            packets.heartbeat_due_ns = now_ns
        self._next_heartbeat_ns = now_ns

    def by_stream(self, stream: int) -> StreamPackets:
        """The packets of one stream number."""
        return next(packets for packets in self.streams if packets.stream == stream)

    def flush(self, now_ns: int) -> list[Datagram]:
        """All messages so far as datagrams stamped `now_ns`, in sequence order per stream."""
        datagrams: list[Datagram] = []
        for packets in self.streams:
            if packets.messages:
                packets.close()
            if packets.closed:
                for seq, count, body in packets.closed:
                    datagram = frame_body(
                        body,
                        kind=0,
                        stream=packets.stream,
                        session=self.session,
                        seq=seq,
                        ts_send_ns=now_ns,
                        count=count,
                        publisher=self.publisher,
                        flags=self.flags,
                    )
                    datagrams.append((packets.stream, datagram))
                packets.datagrams_sent += len(packets.closed)
                packets.closed = []
                packets.heartbeat_step = 0
                due_ns = now_ns + HEARTBEAT_AFTER_DATA_NS[0]
                packets.heartbeat_due_ns = due_ns
                self._next_heartbeat_ns = min(self._next_heartbeat_ns, due_ns)
        return datagrams

    def next_deadline_ns(self) -> int:
        """When `heartbeats` may have something to send."""
        return self._next_heartbeat_ns

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
        self._next_heartbeat_ns = min(packets.heartbeat_due_ns for packets in self.streams)
        return datagrams

    def ends_of_session(self, now_ns: int) -> list[Datagram]:
        """One end of session per stream; its seq is the next that would have come."""
        return [
            (packets.stream, self._heartbeat(packets, Kind.END_OF_SESSION, now_ns))
            for packets in self.streams
        ]

    def _heartbeat(self, packets: StreamPackets, kind: Kind, now_ns: int) -> bytes:
        return encode_heartbeat(
            packets.stream,
            self.session,
            packets.next_seq,
            now_ns,
            HeartbeatBody(packets.datagrams_sent),
            kind=kind,
            publisher=self.publisher,
            flags=self.flags,
        )
