"""What a subscriber was handed, held against the tick log: every message once and in order, or where it was not."""

import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookVerify,
    FeedState,
    LevelUpdate,
    MarketInfo,
    MarketState,
    SessionStart,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.wire import Kind, decode_body, decode_header
from tickerplant.runtime.logreader import LogReader

STREAM_OF: dict[type, Stream] = {
    Trade: Stream.TRADE,
    Bbo: Stream.BBO,
    Ticker: Stream.TICKER,
    **dict.fromkeys(
        (LevelUpdate, BookStale, BookClear, BookLevels, BookReady, BookVerify), Stream.DELTA
    ),
    **dict.fromkeys((SessionStart, MarketInfo, MarketState, FeedState), Stream.STATUS),
}
"""But `UpstreamGap`, which two streams have."""

RECORD = struct.Struct("<cI")
"""Before each record of a recording: M for a message in msgpack or E for an event in JSON, and its length."""

_decode = msgspec.msgpack.Decoder(AnyMessage).decode


class Place(NamedTuple):
    """One message of the log."""

    session: int
    seq: int
    message: AnyMessage


Logged = dict[Stream, list[Place]]


def read_logged(folder: Path) -> Logged:
    """All messages of all sessions, in order. Fails on damage."""
    logged: Logged = {stream: [] for stream in Stream}
    with LogReader(folder) as reader:
        while (batch := reader.read()) is not None:
            assert not batch.faults
            for _, datagram in batch.records:
                header = decode_header(datagram)
                if header.kind == Kind.DATA:
                    places = logged[Stream(header.stream)]
                    for index, message in enumerate(decode_body(datagram, header)):
                        assert message is not None
                        places.append(Place(header.session, header.seq + index, message))
    return logged


class Proof:
    """How a recording compares. `faults` say what is not as it has to be, the first `FAULTS_KEPT`."""

    FAULTS_KEPT = 20

    def __init__(self, logged: Logged) -> None:
        self.faults: list[str] = []
        self.events: Counter[str] = Counter()
        self.handed_out: Counter[Stream] = Counter()
        self._logged = logged
        self._next = dict.fromkeys(Stream, 0)
        """Index of the message to come."""
        self._in_snapshot = dict.fromkeys(Stream, 0)

    def event(self, event: dict[str, Any]) -> None:
        """An event: only a snapshot moves anything."""
        name = event["event"]
        self.events[name] += 1
        if name == "Gap":
            self._fault(f"gap: {event}")
        elif name == "SnapshotApplied":
            stream = Stream(event["stream"])
            self._in_snapshot[stream] = event["message_count"]
            self._jump(stream, (event["session"], event["next_seq"]))

    def _jump(self, stream: Stream, to: tuple[int, int]) -> None:
        """A snapshot stands for what was published before: right at the join, or in place of what was lost."""
        places, index = self._logged[stream], self._next[stream]
        while index < len(places) and places[index][:2] < to:
            index += 1
        skipped = index - self._next[stream]
        if skipped and self.handed_out[stream]:
            self._fault(f"{stream.name}: a snapshot stands for {skipped} messages on the way")
        self._next[stream] = index

    def message(self, message: AnyMessage) -> None:
        """The next message that was handed out."""
        stream = self._stream_of(message)
        if self._in_snapshot[stream]:
            self._in_snapshot[stream] -= 1
            return
        places, index = self._logged[stream], self._next[stream]
        self.handed_out[stream] += 1
        if index < len(places) and places[index].message == message:
            self._next[stream] = index + 1
            return
        at = next((n for n, place in enumerate(places) if place.message == message), None)
        where = "is not in the log" if at is None else f"came as {at}, expected {index}"
        self._fault(f"{stream.name}: {type(message).__name__} {where}")
        self._next[stream] = index if at is None else at + 1

    def _stream_of(self, message: AnyMessage) -> Stream:
        """An `UpstreamGap` is on two streams: on that which has it next."""
        if type(message) is not UpstreamGap:
            return STREAM_OF[type(message)]
        places, index = self._logged[Stream.TRADE], self._next[Stream.TRADE]
        is_trade = index < len(places) and places[index].message == message
        return Stream.TRADE if is_trade else Stream.TICKER

    def end(self) -> None:
        """Nothing more was handed out."""
        for stream, places in self._logged.items():
            missing = len(places) - self._next[stream]
            if missing:
                self._fault(f"{stream.name}: the last {missing} of {len(places)} are missing")

    def _fault(self, text: str) -> None:
        if len(self.faults) < self.FAULTS_KEPT:
            self.faults.append(text)


def prove(recording: Path, log_folder: Path) -> Proof:
    """Compare the two, both complete."""
    proof = Proof(read_logged(log_folder))
    content = memoryview(recording.read_bytes())
    start = 0
    while start < len(content):
        kind, size = RECORD.unpack_from(content, start)
        start += RECORD.size
        record = bytes(content[start : start + size])
        start += size
        if kind == b"E":
            proof.event(msgspec.json.decode(record))
        else:
            proof.message(_decode(record))
    proof.end()
    return proof
