"""A JSONL recording played through feed and plant without sockets: the simulated exchange at the other end of a call.

The same recording, sids, numbers and answers as `tickerplant sim --replay`, on a clock that is the recording's own. So
the feed subscribes, is acknowledged, asks for snapshots and heals as it would on a connection.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from tickerplant import __version__
from tickerplant.core.packets import Datagram
from tickerplant.errors import ConfigurationError
from tickerplant.limits import SIM_REPLAY_MAX_BYTES, SIM_SUBSCRIPTION_BUFFER_FRAMES
from tickerplant_kalshi.inputs import Begin
from tickerplant_kalshi.playback import feed_of, plant_of
from tickerplant_kalshi.records import MarketRecord, record_from_rest
from tickerplant_kalshi.rest_messages import RestMarket
from tickerplant_kalshi.selection import Selection
from tickerplant_kalshi.subscriptions import BOOK_CHANNEL
from tickerplant_kalshi_sim.capture import Capture, read_capture
from tickerplant_kalshi_sim.commands import CommandLimits, Commands
from tickerplant_kalshi_sim.replay import SETTLING_NS, ReplayVenue
from tickerplant_kalshi_sim.rest_objects import market_object
from tickerplant_kalshi_sim.subscriptions import Subscriptions

UNDATED_NS = 1_000_000_000_000_000_000
"""When a recording begins that carries no time at all."""
_CHANNELS = ("trade", "ticker", "market_lifecycle_v2", "multivariate_market_lifecycle")
TimedDatagrams = Iterator[tuple[int, list[Datagram]]]


def read_jsonl(path: Path) -> Capture:
    """The recording in a file. Raises `ConfigurationError` if it cannot be read or played."""
    try:
        if path.stat().st_size > SIM_REPLAY_MAX_BYTES:
            raise ConfigurationError(f"recording {path} is larger than {SIM_REPLAY_MAX_BYTES} B")
        return read_capture(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise ConfigurationError(f"cannot read recording {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"recording {path} is not UTF-8 text") from None


class OfflinePlant:
    """Feed, plant and exchange of one recording; `datagrams` runs them from beginning to end, once."""

    def __init__(self, recording: Capture, *, use_yes_price: bool = False) -> None:
        """`use_yes_price` says in which convention the recording was made."""
        self._now_ns = recording.first_ns or UNDATED_NS
        begin = Begin(
            now_ns=self._now_ns,
            session=self._now_ns,
            publisher=1,
            previous_session=0,
            final_seqs=(),
            selection=Selection(tickers=tuple(recording.market_ids)),
            channels=tuple(name for name in _CHANNELS if name in recording.channels),
            connection_count=1,
            use_yes_price=use_yes_price,
            version=__version__,
        )
        self.feed = feed_of(begin, plant_of(begin))
        self._connection = self.feed.connections[0]
        venue = ReplayVenue(
            recording, speed=1.0, use_yes_price=use_yes_price, start_ns=self._now_ns
        )
        self._player = venue.connect()
        self._subscriptions = Subscriptions(SIM_SUBSCRIPTION_BUFFER_FRAMES, {})
        self._commands = Commands(self._player, self._subscriptions, CommandLimits())
        self._records = _records_of(venue, self._now_ns)
        assert BOOK_CHANNEL not in begin.channels

    def datagrams(self) -> TimedDatagrams:
        """(time, datagrams) in order. Raises `ObsoleteFormatError`."""
        yield self._flush()
        self.feed.markets_read(self._records, self._now_ns)
        self.feed.discovery_done(self._now_ns)
        self.feed.connection_opened(0, self._now_ns)
        yield from self._converse()
        self._player.play(self._now_ns, self._subscriptions)
        if self._player.next_due_ns is None and not self._player.finished:
            # Some of its markets cannot be subscribed: it plays without them.
            yield from self._advance(self._now_ns + SETTLING_NS)
            self._player.play(self._now_ns, self._subscriptions)
        yield from self._converse()
        while (due_ns := self._player.next_due_ns) is not None:
            yield from self._advance(due_ns)
            self._player.play(self._now_ns, self._subscriptions)
            yield from self._converse()
        yield from self._end()

    def _flush(self) -> tuple[int, list[Datagram]]:
        return self._now_ns, self.feed.flush(self._now_ns)

    def _converse(self) -> TimedDatagrams:
        """Frames to the feed and commands to the exchange until neither has more to say."""
        while True:
            frames = self._subscriptions.take_frames()
            if frames:
                self._connection.receive_frames(frames, self._now_ns)
            self._connection.note_activity(self._now_ns)
            yield self._flush()
            self.feed.settle()
            self.feed.take_look_ups()
            commands = self._connection.outgoing(self._now_ns)
            for command in commands:
                self._commands.receive(command, self._now_ns)
            if not commands and not self._subscriptions.backlog:
                return

    def _advance(self, until_ns: int) -> TimedDatagrams:
        """Timers up to a time, each at its own; the connection is alive all the while."""
        while (due_ns := self.feed.next_deadline_ns()) <= until_ns:
            self._now_ns = max(self._now_ns, due_ns)
            self._connection.note_activity(self._now_ns)
            yield self._now_ns, self.feed.handle_timer(self._now_ns)
            yield from self._converse()
        self._now_ns = max(self._now_ns, until_ns)

    def _end(self) -> TimedDatagrams:
        """What waits for its pace, and the orderly end."""
        while len(self.feed.plant.publication):
            yield from self._advance(self.feed.plant.next_deadline_ns())
        yield self._now_ns, self.feed.end_session(self._now_ns)
        while not self.feed.ended:
            self._now_ns = max(self._now_ns, self.feed.plant.next_deadline_ns())
            yield self._now_ns, self.feed.handle_end_timer(self._now_ns)


def _records_of(venue: ReplayVenue, now_ns: int) -> list[MarketRecord]:
    """The recorded markets as REST would tell them."""
    records = []
    for market in venue.catalogue.markets.values():
        told = msgspec.convert(market_object(market, venue.levels(market.ticker)), RestMarket)
        series_ticker = market.event.series.ticker
        records.append(record_from_rest(told, series_ticker=series_ticker, read_ns=now_ns))
    return records
