"""A feed that keeps everything that goes into it (pure: where it is kept is the sink's business).

`RecordedFeed` stands in the place of `KalshiFeed` where a capture is wanted; without one nothing of this module runs.
What was read is written right before it is published, in one record: nothing is on the wire whose cause is not kept.
"""

from collections.abc import Sequence
from typing import Protocol

from tickerplant.core.logformat import NO_SEQS, NextSeqs
from tickerplant.core.packets import Datagram
from tickerplant.core.plant import Plant
from tickerplant.limits import CAPTURE_BATCH_BYTES, CAPTURE_INPUTS_PER_RECORD
from tickerplant_kalshi.directory import MarketDirectory
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.inputs import (
    Activity,
    AnyInput,
    Begin,
    Closed,
    Discovered,
    EndTimer,
    EventRead,
    Flush,
    Frames,
    LogTold,
    MarketsRead,
    Opened,
    Outgoing,
    SessionBegun,
    SessionEnding,
    Settled,
    Timer,
    UnreadLookedUp,
    encode_inputs,
)
from tickerplant_kalshi.protocol import FeedConnection
from tickerplant_kalshi.records import MarketRecord


class InputSink(Protocol):
    """Where records are kept."""

    @property
    def is_on(self) -> bool:
        """Whether what is written is kept; once False it stays so."""

    def write(self, record: bytes) -> None:
        """Keep one record. Never raises."""


class InputRecorder:
    """Puts inputs together into records. Frames wait in a list of their own, which costs little for each."""

    def __init__(self, sink: InputSink) -> None:
        self.frame_count = 0
        self.input_count = 0
        self.inputs_lost = 0
        self._sink = sink
        self._inputs: list[AnyInput] = []
        self.frames: list[bytes] = []
        self.frames_connection = -1
        self.frames_now_ns = 0

    def begin_frames(self, connection: int, now_ns: int) -> None:
        """Frames of another connection, or read at another time, follow."""
        self._seal_frames()
        self.frames_connection = connection
        self.frames_now_ns = now_ns

    def add(self, item: AnyInput) -> None:
        """An input that publishes nothing by itself."""
        if self.frames:
            self._seal_frames()
        self._inputs.append(item)
        if len(self._inputs) >= CAPTURE_INPUTS_PER_RECORD:
            self.write()

    def commit(self, item: AnyInput) -> None:
        """An input that publishes: it and all before it are written."""
        if self.frames:
            self._seal_frames()
        self._inputs.append(item)
        self.write()

    def write(self) -> None:
        """Write what waits."""
        if self.frames:
            self._seal_frames()
        inputs, self._inputs = self._inputs, []
        if not self._sink.is_on:
            self.inputs_lost += len(inputs)
            return
        if not inputs:
            return
        self.input_count += len(inputs)
        if sum(map(_bytes_of, inputs)) > CAPTURE_BATCH_BYTES:
            for item in inputs:
                for part in _split(item):
                    self._sink.write(encode_inputs([part]))
        else:
            self._sink.write(encode_inputs(inputs))

    def _seal_frames(self) -> None:
        frames = self.frames
        if frames:
            self.frame_count += len(frames)
            self._inputs.append(Frames(self.frames_now_ns, self.frames_connection, frames))
            self.frames = []
        self.frames_connection = -1


class RecordedConnection(FeedConnection):
    """A connection whose frames are kept."""

    recorder: InputRecorder

    def receive_frames(self, frames: Sequence[bytes], now_ns: int) -> None:
        """Keep the text messages, then do with them what is to be done."""
        recorder = self.recorder
        if recorder.frames_connection != self.index or recorder.frames_now_ns != now_ns:
            recorder.begin_frames(self.index, now_ns)
        kept = recorder.frames
        kept += frames
        if len(kept) >= CAPTURE_INPUTS_PER_RECORD:
            recorder.write()
        FeedConnection.receive_frames(self, frames, now_ns)

    def note_activity(self, now_ns: int) -> None:
        """See `FeedConnection`."""
        self.recorder.add(Activity(now_ns, self.index))
        super().note_activity(now_ns)

    def outgoing(self, now_ns: int) -> list[bytes]:
        """See `FeedConnection`."""
        self.recorder.add(Outgoing(now_ns, self.index))
        return super().outgoing(now_ns)


class RecordedFeed(KalshiFeed):
    """A feed whose inputs are kept; `begin` is the first of them, and says with what it was made."""

    connections: tuple[RecordedConnection, ...]
    connection_type = RecordedConnection

    def __init__(
        self, plant: Plant, directory: MarketDirectory, begin: Begin, recorder: InputRecorder
    ) -> None:
        self.recorder = recorder
        super().__init__(
            plant,
            directory,
            channels=begin.channels,
            connection_count=begin.connection_count,
            use_yes_price=begin.use_yes_price,
            check_interval_ns=begin.check_interval_ns,
        )
        for connection in self.connections:
            connection.recorder = recorder
        recorder.commit(begin)

    def connection_opened(self, index: int, now_ns: int) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(Opened(now_ns, index))
        super().connection_opened(index, now_ns)

    def connection_closed(self, index: int, now_ns: int, reason: str) -> None:
        """See `KalshiFeed`."""
        # A text that is no text cannot be kept; subscribers are told the same replacement.
        told = reason.encode(errors="replace").decode()
        self.recorder.add(Closed(now_ns, index, told))
        super().connection_closed(index, now_ns, reason)

    def markets_read(self, records: Sequence[MarketRecord], now_ns: int) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(MarketsRead(now_ns, tuple(records)))
        super().markets_read(records, now_ns)

    def event_read(self, event_ticker: str, series_ticker: str, now_ns: int) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(EventRead(now_ns, event_ticker, series_ticker))
        super().event_read(event_ticker, series_ticker, now_ns)

    def discovery_done(self, now_ns: int) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(Discovered(now_ns))
        super().discovery_done(now_ns)

    def look_up_unread(self, before_ns: int) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(UnreadLookedUp(before_ns))
        super().look_up_unread(before_ns)

    def settle(self) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(Settled(self.plant.now_ns))
        super().settle()

    def set_log(self, *, is_on: bool, oldest_seqs: NextSeqs = NO_SEQS) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(LogTold(self.plant.now_ns, is_on, oldest_seqs))
        super().set_log(is_on=is_on, oldest_seqs=oldest_seqs)

    def lose_log(self, datagrams: list[Datagram]) -> list[Datagram]:
        """See `KalshiFeed`."""
        self.recorder.add(LogTold(self.plant.now_ns, is_on=False, oldest_seqs=NO_SEQS))
        return super().lose_log(datagrams)

    def begin_session(self, session: int, now_ns: int) -> None:
        """See `KalshiFeed`."""
        self.recorder.add(SessionBegun(now_ns, session))
        super().begin_session(session, now_ns)

    def handle_timer(self, now_ns: int) -> list[Datagram]:
        """See `KalshiFeed`."""
        self.recorder.commit(Timer(now_ns))
        return super().handle_timer(now_ns)

    def end_session(self, now_ns: int) -> list[Datagram]:
        """See `KalshiFeed`."""
        self.recorder.commit(SessionEnding(now_ns))
        return super().end_session(now_ns)

    def handle_end_timer(self, now_ns: int) -> list[Datagram]:
        """See `KalshiFeed`."""
        self.recorder.commit(EndTimer(now_ns))
        return super().handle_end_timer(now_ns)

    def flush(self, now_ns: int) -> list[Datagram]:
        """See `KalshiFeed`."""
        self.recorder.commit(Flush(now_ns))
        return super().flush(now_ns)


def _bytes_of(item: AnyInput) -> int:
    """How much of a record it takes, where that may be much."""
    return sum(map(len, item.frames)) if type(item) is Frames else 0


def _split(item: AnyInput) -> list[AnyInput]:
    """The same as inputs that each fit into a record."""
    if type(item) is not Frames or _bytes_of(item) <= CAPTURE_BATCH_BYTES:
        return [item]
    return [Frames(item.now_ns, item.connection, [frame]) for frame in item.frames]
