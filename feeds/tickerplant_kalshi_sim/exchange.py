"""The simulated exchange as one pure object: a virtual clock goes in, the frames of that step come out.

Same seed and same calls at the same virtual times give byte-identical frames.
"""

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Protocol

from tickerplant_kalshi_sim.book import YesBook, as_yes_book
from tickerplant_kalshi_sim.catalogue import build_catalogue
from tickerplant_kalshi_sim.engine import MatchingEngine
from tickerplant_kalshi_sim.flow import FlowSettings, OrderFlow
from tickerplant_kalshi_sim.frames import (
    Emission,
    StampClock,
    TradeRecord,
    snapshot_body,
    ticker_body,
    ticker_state,
)
from tickerplant_kalshi_sim.lifecycle import Lifecycle, LifecycleSettings
from tickerplant_kalshi_sim.markets import Catalogue, ticker_uuid
from tickerplant_kalshi_sim.reference import ReferenceFeed
from tickerplant_kalshi_sim.subscriptions import Subscriptions

Levels = tuple[dict[int, int], dict[int, int]]
"""Sizes in 1e-2 contract by price in 1e-4 dollar: the YES bids, the NO bids."""


class MarketSource(Protocol):
    """What one connection is served from."""

    def play(self, now_ns: int, subscriptions: Subscriptions) -> None:
        """Send what belongs to this connection alone at `now_ns`."""

    sequenced_acknowledgements: bool
    """Whether `ok` replies take a number of the sid's sequence."""

    def opens_with_snapshot(self, ticker: str) -> bool:
        """Whether a subscription to `ticker` is answered with a snapshot of its book at once."""

    def snapshot(self, ticker: str, *, use_yes_price: bool) -> bytes:
        """The body of `orderbook_snapshot`; a market that does not exist has an empty book."""

    def tickers(self, tickers: Iterable[str] | None) -> Iterator[tuple[str, bytes]]:
        """The bodies of the current `ticker` of these markets, of all if None."""

    def ticker_of_market(self, market_id: str) -> str | None:
        """The ticker of a market id, if there is one."""


class Venue(Protocol):
    """What the servers need of an exchange, generated or recorded."""

    now_ns: int
    paused: bool
    catalogue: Catalogue

    def connect(self) -> MarketSource:
        """The source of a new connection."""

    def advance(self, now_ns: int) -> list[Emission]:
        """Move the clock and return the frames for every connection."""

    def flood(self, actions: int) -> None:
        """Add order actions to the next step."""

    def levels(self, ticker: str) -> Levels:
        """The two bid sides of `ticker`."""

    def trades(self) -> Sequence[TradeRecord]:
        """The newest trades, oldest first."""

    def books(self) -> dict[str, YesBook]:
        """Every book as YES bids and asks."""


class Exchange:
    """Books, order flow and lifecycle on a virtual clock that the caller moves."""

    sequenced_acknowledgements = True

    def __init__(
        self,
        *,
        seed: int,
        market_count: int,
        start_ns: int,
        flow: FlowSettings | None = None,
        lifecycle: LifecycleSettings | None = None,
    ) -> None:
        random = Random(seed)  # noqa: S311 - a reproducible simulation, no secret
        self.now_ns = start_ns
        self.catalogue: Catalogue = build_catalogue(random, market_count, start_ns)
        self._engine = MatchingEngine(random)
        settings = flow or FlowSettings()
        self._flow = OrderFlow(random, self._engine, settings)
        self._step_max_ns = settings.step_max_ns
        self._lifecycle = Lifecycle(
            random, self.catalogue, self._engine, lifecycle or LifecycleSettings(), start_ns
        )
        self._reference = ReferenceFeed(random, start_ns)
        self._clock = StampClock()
        self.paused = False
        self._flow.fill_books(self._lifecycle.tradable(), start_ns)
        self._engine.take_emissions()

    def advance(self, now_ns: int) -> list[Emission]:
        """Move the clock to `now_ns` and return the frames of this step, in order; none while paused."""
        from_ns = max(self.now_ns, now_ns - self._step_max_ns)
        self.now_ns = max(now_ns, self.now_ns)
        if self.paused:
            return []
        self._lifecycle.run(self.now_ns)
        tradable = self._lifecycle.tradable()
        self._flow.step(tradable, from_ns, self.now_ns)
        emissions = self._engine.take_emissions()
        combos = [m for m in tradable[-64:] if m.event.is_multivariate]
        emissions.extend(self._reference.run(self.now_ns, combos))
        return emissions

    def connect(self) -> MarketSource:
        """Every connection is served from the one exchange."""
        return self

    def play(self, now_ns: int, subscriptions: Subscriptions) -> None:
        """All frames of a generated exchange are for everyone."""

    def flood(self, actions: int) -> None:
        """Add `actions` order actions to the next step."""
        self._flow.flood(actions)

    # --- what REST and the server ask ---------------------------------------------------------------

    def levels(self, ticker: str) -> Levels:
        """The two bid sides of `ticker`; empty if there is no such market."""
        market = self.catalogue.markets.get(ticker)
        return market.book.levels if market else ({}, {})

    def trades(self) -> Sequence[TradeRecord]:
        """The newest trades, oldest first."""
        return self._engine.trades

    def books(self) -> dict[str, YesBook]:
        """Every book as YES bids and asks."""
        return {
            ticker: as_yes_book(*market.book.levels)
            for ticker, market in self.catalogue.markets.items()
        }

    # --- MarketSource ---------------------------------------------------------------------------------

    def opens_with_snapshot(self, ticker: str) -> bool:
        """Always, as on the exchange."""
        del ticker
        return True

    def snapshot(self, ticker: str, *, use_yes_price: bool) -> bytes:
        """See `MarketSource`."""
        market = self.catalogue.markets.get(ticker)
        market_id = market.market_id if market else ticker_uuid(ticker)
        yes_levels, no_levels = self.levels(ticker)
        return snapshot_body(ticker, market_id, yes_levels, no_levels, use_yes_price=use_yes_price)

    def tickers(self, tickers: Iterable[str] | None) -> Iterator[tuple[str, bytes]]:
        """See `MarketSource`."""
        markets = self.catalogue.markets
        for ticker in list(markets) if tickers is None else tickers:
            market = markets.get(ticker)
            if market is not None and market.status != "finalized":
                stamp = self._clock.stamp(market.stamp_ns or market.created_ns)
                yield ticker, ticker_body(market, ticker_state(market), stamp)

    def ticker_of_market(self, market_id: str) -> str | None:
        """See `MarketSource`."""
        return self.catalogue.ticker_by_market_id.get(market_id)
