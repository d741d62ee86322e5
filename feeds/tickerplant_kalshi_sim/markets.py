"""What the simulated exchange lists: tick structures, series, events and markets.

Tick structures and their bands: Kalshi "fixed point" page; the bands of `banded_centi_cent` are undocumented and
invented here (0.0001 at the edges and in the centre 0.001). Prices are in 1e-4 dollar.
"""

import uuid
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple

import msgspec

from tickerplant.limits import PRICE_E4_MAX, SIM_ARCHIVED_MARKETS_KEPT
from tickerplant_kalshi_sim.book import OrderBook
from tickerplant_kalshi_sim.candles import Candles


class PriceBand(NamedTuple):
    """Prices from `start_e4` to `end_e4` in steps of `step_e4`."""

    start_e4: int
    end_e4: int
    step_e4: int


def _even(step_e4: int) -> tuple[PriceBand, ...]:
    return (PriceBand(0, PRICE_E4_MAX, step_e4),)


def _edged(edge_step_e4: int, centre_step_e4: int, edge_e4: int = 1_000) -> tuple[PriceBand, ...]:
    far_e4 = PRICE_E4_MAX - edge_e4
    return (
        PriceBand(0, edge_e4, edge_step_e4),
        PriceBand(edge_e4, far_e4, centre_step_e4),
        PriceBand(far_e4, PRICE_E4_MAX, edge_step_e4),
    )


TICK_STRUCTURES: dict[str, tuple[PriceBand, ...]] = {
    "linear_cent": _even(100),
    "deci_cent": _even(10),
    "tapered_deci_cent": _edged(10, 100),
    "center_whole_edge_half_cent": _edged(50, 100),
    "center_whole_edge_quint_cent": _edged(20, 100),
    "center_half_edge_half_cent": _even(50),
    "center_half_edge_quint_cent": _edged(20, 50),
    "center_half_edge_deci_cent": _edged(10, 50),
    "center_quint_edge_quint_cent": _even(20),
    "center_quint_edge_deci_cent": _edged(10, 20),
    "center_centi_edge_centi_cent": _even(1),
    "center_deci_edge_centi_cent": _edged(1, 10, edge_e4=100),
    "banded_centi_cent": _edged(1, 10),
}
COMBO_STRUCTURE = "center_deci_edge_centi_cent"


@cache
def price_grid(structure: str) -> tuple[int, ...]:
    """Every valid order price of `structure`, ascending; 0 and one dollar are not orderable."""
    prices: set[int] = set()
    for band in TICK_STRUCTURES[structure]:
        prices.update(range(band.start_e4, band.end_e4 + 1, band.step_e4))
    return tuple(sorted(prices - {0, PRICE_E4_MAX}))


class Series(msgspec.Struct, frozen=True):
    """A series of events; `exchange_index` names the matching engine."""

    ticker: str
    title: str
    category: str
    exchange_index: int = 0


class Event(msgspec.Struct, eq=False):
    """An event and the tickers of its markets; `is_succeeded` once the event that follows it is listed."""

    ticker: str
    series: Series
    title: str
    subtitle: str
    strike_ns: int
    updated_ns: int
    is_multivariate: bool = False
    is_succeeded: bool = False
    fee_type_override: str | None = None
    fee_multiplier_override: float | None = None
    market_tickers: list[str] = msgspec.field(default_factory=list)


class Market(msgspec.Struct, eq=False, kw_only=True):
    """One market: its definition, its order book and its running totals.

    `status` is as REST returns it: initialized, active, inactive, closed, determined, finalized. `fair` is the index
    of the price in `grid` around which the order flow quotes; `quoted_sides` are the sides that get any flow.
    """

    number: int
    ticker: str
    event: Event
    market_id: str
    structure: str
    yes_sub_title: str
    no_sub_title: str
    created_ns: int
    open_ns: int
    close_ns: int
    status: str = "active"
    strike_type: str = "greater_or_equal"
    floor_strike: int = 0
    cap_strike: int | None = None
    updated_ns: int = 0
    settlement_timer_s: int = 5
    result: str = ""
    settlement_value_e4: int | None = None
    settled_ns: int = 0
    grid: tuple[int, ...] = ()
    fair: int = 0
    quoted_sides: tuple[int, ...] = (0, 1)
    book: OrderBook = msgspec.field(default_factory=OrderBook)
    candles: Candles = msgspec.field(default_factory=Candles)
    volume_e2: int = 0
    dollar_volume_e6: int = 0
    open_interest_e2: int = 0
    last_price_e4: int = 0
    last_size_e2: int = 0
    published: tuple[int, ...] = ()
    stamp_ns: int = 0

    def __post_init__(self) -> None:
        self.grid = price_grid(self.structure)
        if not self.updated_ns:
            self.updated_ns = self.created_ns

    @property
    def bands(self) -> tuple[PriceBand, ...]:
        """`price_ranges` of the market."""
        return TICK_STRUCTURES[self.structure]


class Catalogue:
    """Everything listed, in order of creation."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.events: dict[str, Event] = {}
        self.markets: dict[str, Market] = {}
        self.archived: dict[str, Market] = {}
        """Settled markets of the historical tier, oldest first."""
        self.ticker_by_market_id: dict[str, str] = {}
        self.created = 0

    def add_series(self, series: Series) -> Series:
        """List `series`, once."""
        return self.series.setdefault(series.ticker, series)

    def add_event(self, event: Event) -> Event:
        """List `event` and its series."""
        self.add_series(event.series)
        self.events[event.ticker] = event
        return event

    def add_market(self, market: Market) -> Market:
        """List `market` under its event."""
        assert market.ticker not in self.markets, market.ticker
        self.markets[market.ticker] = market
        self.ticker_by_market_id[market.market_id] = market.ticker
        market.event.market_tickers.append(market.ticker)
        return market

    def remove_market(self, market: Market) -> None:
        """Move a settled market to the historical tier; its event goes with the last one of it."""
        del self.markets[market.ticker]
        self.archived[market.ticker] = market
        if len(self.archived) > SIM_ARCHIVED_MARKETS_KEPT:
            del self.archived[next(iter(self.archived))]
        del self.ticker_by_market_id[market.market_id]
        market.event.market_tickers.remove(market.ticker)
        if not market.event.market_tickers:
            del self.events[market.event.ticker]

    def next_number(self) -> int:
        """Place of the next market in the order of creation, from 1."""
        self.created += 1
        return self.created

    def markets_of(self, event: Event) -> Iterator[Market]:
        """The markets of `event`."""
        return (self.markets[ticker] for ticker in event.market_tickers)


def seeded_uuid(random: Random) -> str:
    """A version 4 UUID drawn from `random`."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def ticker_uuid(ticker: str) -> str:
    """The UUID under which a market that does not exist is answered: always the same for one ticker."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, ticker))
