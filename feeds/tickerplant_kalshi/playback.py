"""Inputs that were kept, put through feed and plant again (pure): out come the datagrams that the plant sent then."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tickerplant.core.keyring import KeyRing
from tickerplant.core.packets import Datagram
from tickerplant.core.plant import Plant
from tickerplant.errors import DamagedCaptureError
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
    decode_inputs,
)
from tickerplant_kalshi.recording import InputRecorder, RecordedFeed

_NOTHING: list[Datagram] = []


def plant_of(begin: Begin, key_ring: KeyRing | None = None) -> Plant:
    """A plant at its beginning: the one that is recorded, or the same again. Keys sign, and change no body."""
    return Plant(
        begin.session,
        begin.now_ns,
        publisher=begin.publisher,
        previous_session=begin.previous_session,
        final_seqs=begin.final_seqs,
        log_on=begin.log_on,
        key_ring=key_ring,
        verify_interval_ns=begin.verify_interval_ns,
    )


def feed_of(begin: Begin, plant: Plant, recorder: InputRecorder | None = None) -> KalshiFeed:
    """Its feed; with a recorder everything that goes into it is kept from here on."""
    directory = MarketDirectory(begin.selection)
    if recorder is not None:
        return RecordedFeed(plant, directory, begin, recorder)
    return KalshiFeed(
        plant,
        directory,
        channels=begin.channels,
        connection_count=begin.connection_count,
        use_yes_price=begin.use_yes_price,
        check_interval_ns=begin.check_interval_ns,
    )


class Playback:
    """One recorded session; `apply` takes its inputs in order."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.feed = feed_of(begin, plant_of(begin))
        self._steps: dict[type, Callable[[Any], list[Datagram]]] = {
            Frames: self._frames,
            Activity: self._activity,
            Flush: self._flush,
            Timer: lambda item: self.feed.handle_timer(item.now_ns),
            Outgoing: self._outgoing,
            Opened: self._opened,
            Closed: self._closed,
            MarketsRead: self._markets_read,
            EventRead: self._event_read,
            Discovered: self._discovered,
            UnreadLookedUp: self._unread_looked_up,
            SessionEnding: lambda item: self.feed.end_session(item.now_ns),
            EndTimer: lambda item: self.feed.handle_end_timer(item.now_ns),
            Settled: self._settled,
            LogTold: self._log_told,
            SessionBegun: self._session_begun,
        }

    def apply(self, item: AnyInput) -> list[Datagram]:
        """What the plant sent upon this input, in order. Raises `DamagedCaptureError`, `ObsoleteFormatError`."""
        step = self._steps.get(type(item))
        if step is None:
            raise DamagedCaptureError("a capture begins twice: it was put together wrongly")
        return step(item)

    def _connection(self, item: Frames | Activity | Outgoing | Opened | Closed) -> int:
        if not 0 <= item.connection < len(self.feed.connections):
            raise DamagedCaptureError(
                f"an input of connection {item.connection}, which is not there"
            )
        return item.connection

    def _frames(self, item: Frames) -> list[Datagram]:
        self.feed.connections[self._connection(item)].receive_frames(item.frames, item.now_ns)
        return _NOTHING

    def _activity(self, item: Activity) -> list[Datagram]:
        self.feed.connections[self._connection(item)].note_activity(item.now_ns)
        return _NOTHING

    def _flush(self, item: Flush) -> list[Datagram]:
        return self.feed.flush(item.now_ns)

    def _outgoing(self, item: Outgoing) -> list[Datagram]:
        self.feed.connections[self._connection(item)].outgoing(item.now_ns)
        return _NOTHING

    def _opened(self, item: Opened) -> list[Datagram]:
        self.feed.connection_opened(self._connection(item), item.now_ns)
        return _NOTHING

    def _closed(self, item: Closed) -> list[Datagram]:
        self.feed.connection_closed(self._connection(item), item.now_ns, item.reason)
        return _NOTHING

    def _markets_read(self, item: MarketsRead) -> list[Datagram]:
        self.feed.markets_read(item.records, item.now_ns)
        return _NOTHING

    def _event_read(self, item: EventRead) -> list[Datagram]:
        self.feed.event_read(item.event_ticker, item.series_ticker, item.now_ns)
        return _NOTHING

    def _discovered(self, item: Discovered) -> list[Datagram]:
        self.feed.discovery_done(item.now_ns)
        return _NOTHING

    def _unread_looked_up(self, item: UnreadLookedUp) -> list[Datagram]:
        self.feed.look_up_unread(item.now_ns)
        return _NOTHING

    def _settled(self, _item: Settled) -> list[Datagram]:
        self.feed.settle()
        self.feed.take_look_ups()
        return _NOTHING

    def _log_told(self, item: LogTold) -> list[Datagram]:
        self.feed.set_log(is_on=item.is_on, oldest_seqs=item.oldest_seqs)
        return _NOTHING

    def _session_begun(self, item: SessionBegun) -> list[Datagram]:
        ends = self.feed.plant.packets.ends_of_session(item.now_ns)
        self.feed.begin_session(item.session, item.now_ns)
        return ends


def play(records: Iterable[bytes]) -> Iterator[tuple[int, list[Datagram]]]:
    """(time, datagrams) of each flush and timer of a recorded session, from the payloads of its records.

    Raises `DamagedCaptureError` if they are no capture from its beginning, and what the frames made the plant raise.
    """
    playback: Playback | None = None
    for record in records:
        for item in decode_inputs(record):
            if playback is None:
                if type(item) is not Begin:
                    raise DamagedCaptureError(
                        "the beginning of the capture is missing: the plant cannot be played without it"
                    )
                playback = Playback(item)
                continue
            datagrams = playback.apply(item)
            if datagrams:
                yield item.now_ns, datagrams
