"""The matching engine: order actions on a market become the frames that the exchange would send.

Every action has one stamp. Its deltas and trades come in the order in which the book changed, then at most one
ticker, if price or size of a best, the last trade, volume or open interest changed.
"""

from collections import deque
from random import Random

from tickerplant.limits import PRICE_E4_MAX, SIM_TRADES_KEPT
from tickerplant_kalshi_sim.book import YES, Order
from tickerplant_kalshi_sim.frames import (
    Emission,
    Stamp,
    TradeRecord,
    delta_emission,
    emission,
    ticker_body,
    ticker_state,
    trade_body,
)
from tickerplant_kalshi_sim.markets import Market, seeded_uuid


class MatchingEngine:
    """Applies order actions and collects their emissions until they are taken."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._emissions: list[Emission] = []
        self.trades: deque[TradeRecord] = deque(maxlen=SIM_TRADES_KEPT)
        self.trade_count = 0

    def take_emissions(self) -> list[Emission]:
        """Everything emitted since the last call, in order."""
        emissions, self._emissions = self._emissions, []
        return emissions

    def emit(self, frame: Emission) -> None:
        """Add a frame that is not caused by an order."""
        self._emissions.append(frame)

    def submit(
        self,
        market: Market,
        side: int,
        price_e4: int,
        size_e2: int,
        stamp: Stamp,
        *,
        rests: bool = True,
    ) -> None:
        """A limit order: what crosses trades at the makers' prices, the remainder rests if `rests`."""
        for fill in market.book.match(side, price_e4, size_e2):
            maker_e4 = fill.maker_price_e4
            yes_price_e4 = maker_e4 if fill.maker_side == YES else PRICE_E4_MAX - maker_e4
            self._trade(market, side, yes_price_e4, fill.size_e2, stamp, is_block=False)
            self._delta(market, fill.maker_side, maker_e4, -fill.size_e2, stamp)
            size_e2 -= fill.size_e2
        if size_e2 and rests:
            market.book.add(side, price_e4, size_e2)
            self._delta(market, side, price_e4, size_e2, stamp)
        self._ticker_if_changed(market, stamp)

    def cancel(self, market: Market, orders: list[Order], stamp: Stamp) -> None:
        """Cancel `orders`: one delta each, all with one stamp."""
        for order in orders:
            market.book.remove(order)
            self._delta(market, order.side, order.price_e4, -order.size_e2, stamp)
        self._ticker_if_changed(market, stamp)

    def amend(
        self, market: Market, order: Order, price_e4: int, size_e2: int, stamp: Stamp
    ) -> None:
        """Move `order`, without crossing: two deltas with one stamp."""
        assert not market.book.crosses(order.side, price_e4)
        market.book.remove(order)
        self._delta(market, order.side, order.price_e4, -order.size_e2, stamp)
        market.book.add(order.side, price_e4, size_e2)
        self._delta(market, order.side, price_e4, size_e2, stamp)
        self._ticker_if_changed(market, stamp)

    def block_trade(
        self, market: Market, taker_side: int, yes_price_e4: int, size_e2: int, stamp: Stamp
    ) -> None:
        """A match off the book: a trade and new totals, no delta."""
        self._trade(market, taker_side, yes_price_e4, size_e2, stamp, is_block=True)
        self._ticker_if_changed(market, stamp)

    def _delta(self, market: Market, side: int, price_e4: int, delta_e2: int, stamp: Stamp) -> None:
        self._emissions.append(delta_emission(market, side, price_e4, delta_e2, stamp))

    def _trade(
        self,
        market: Market,
        taker_side: int,
        yes_price_e4: int,
        size_e2: int,
        stamp: Stamp,
        *,
        is_block: bool,
    ) -> None:
        self.trade_count += 1
        best = market.published[1:3] or (0, PRICE_E4_MAX)
        market.candles.trade(stamp.ns, yes_price_e4, size_e2, best)
        trade = TradeRecord(
            self.trade_count,
            seeded_uuid(self._random),
            market.ticker,
            yes_price_e4,
            size_e2,
            taker_side,
            is_block,
            stamp.ns,
        )
        self.trades.append(trade)
        market.volume_e2 += size_e2
        market.dollar_volume_e6 += size_e2 * yes_price_e4
        opened = int(self._random.random() * 3) - 1  # both close, one hands over, both open
        market.open_interest_e2 = max(0, market.open_interest_e2 + opened * size_e2)
        if not is_block:
            market.last_price_e4 = yes_price_e4
            market.last_size_e2 = size_e2
        body = trade_body(trade, stamp)
        self._emissions.append(emission("trade", "trade", market.ticker, body))

    def _ticker_if_changed(self, market: Market, stamp: Stamp) -> None:
        state = ticker_state(market)
        if state == market.published:
            return
        market.published = state
        market.stamp_ns = stamp.ns
        _, bid_e4, ask_e4, _, open_interest_e2, *_ = state
        market.candles.quote(stamp.ns, bid_e4, ask_e4, open_interest_e2)
        body = ticker_body(market, state, stamp)
        self._emissions.append(emission("ticker", "ticker", market.ticker, body))
