"""What a market directory says, and what it counts. Pure."""

from collections import Counter

import msgspec

from tickerplant.core.messages import MarketPhase, MarketState
from tickerplant_kalshi.records import MarketRecord


class Subscribe(msgspec.Struct, frozen=True):
    """Subscribe this market; `InfoChanged` and `PhaseChanged` of it follow."""

    ticker: str


class Unsubscribe(msgspec.Struct, frozen=True):
    """Drop this subscribed market; `phase` says how it ended."""

    ticker: str
    phase: MarketPhase


class InfoChanged(msgspec.Struct, frozen=True):
    """Something that `MarketInfo` publishes is new or changed."""

    record: MarketRecord


class PhaseChanged(msgspec.Struct, frozen=True):
    """Something that `MarketState` publishes is new or changed; `settlement_e4` is -1 if there is none."""

    ticker: str
    phase: MarketPhase
    result: str
    settlement_e4: int

    def state(self, g: int, ts_recv_ns: int) -> MarketState:
        """The message that publishes it."""
        return MarketState(
            self.ticker, g, 0, ts_recv_ns, self.phase, self.result, self.settlement_e4
        )


class LookUpMarket(msgspec.Struct, frozen=True):
    """Read this market over REST and apply the record."""

    ticker: str


class LookUpEvent(msgspec.Struct, frozen=True):
    """Read this event over REST and apply its series."""

    event_ticker: str


Change = Subscribe | Unsubscribe | InfoChanged | PhaseChanged | LookUpMarket | LookUpEvent


class DirectoryCounters:
    """Plain counters, read at scrape time."""

    def __init__(self) -> None:
        """All zero."""
        self.markets_refused_full = 0
        self.tickers_refused = 0
        self.markets_not_wanted = 0
        self.undecided_dropped = 0
        self.stale_reads = 0
        self.early_reads = 0
        self.contradicting_events = 0
        self.look_ups_refused_full = 0
        self.markets_forgotten = 0
        self.unknown_event_types = 0
        self.fields_refused: Counter[str] = Counter()
        """By field name; the names are ours, so there are few."""
