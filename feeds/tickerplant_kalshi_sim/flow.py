"""Order flow: seeded random actions on open markets, `rate` of them a second of virtual time.

Some markets are busier than others; now and then one event bursts. Quotes gather around a price that wanders, so
that orders cross and trade without any special case.
"""

from collections.abc import Sequence
from random import Random

import msgspec

from tickerplant.limits import PRICE_E4_MAX
from tickerplant_kalshi_sim.book import Order
from tickerplant_kalshi_sim.engine import MatchingEngine
from tickerplant_kalshi_sim.frames import NANOSECONDS, Stamp, StampClock
from tickerplant_kalshi_sim.markets import Market

FRACTIONAL_SHARE = 0.4
WANDER_SHARE = 0.05
LOT_SIZES_E2 = (100, 200, 300, 500, 1_000, 1_500, 2_500, 5_000, 10_000, 25_000, 100_000)


class FlowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Order actions a second, resting orders a market settles at, and how bursts look.

    `step_max_ns` is the time for which one step draws actions at most: what a longer jump of the clock would have held
    does not happen.
    """

    rate: int = 500
    step_max_ns: int = NANOSECONDS
    orders_per_market: int = 20
    burst_interval_s: int = 5
    burst_factor: int = 8
    burst_ms: int = 100


class OrderFlow:
    """Draws the actions of each step of the virtual clock."""

    def __init__(self, random: Random, engine: MatchingEngine, settings: FlowSettings) -> None:
        self._random = random
        self._engine = engine
        self._settings = settings
        self._clock = StampClock()
        self._owed = 0
        self._flood = 0
        self._burst_until_ns = 0
        self._burst_start = 0

    def flood(self, actions: int) -> None:
        """Add `actions` to the next step."""
        self._flood += actions

    def fill_books(self, markets: Sequence[Market], now_ns: int) -> None:
        """Bring the books of `markets` to their usual number of orders."""
        stamp = self._clock.stamp(now_ns)
        for market in markets:
            for _ in range(self._settings.orders_per_market if market.quoted_sides else 0):
                self._place(market, stamp)

    def step(self, markets: Sequence[Market], from_ns: int, to_ns: int) -> None:
        """The actions between two moments; their stamps are spread evenly over the step."""
        if not markets:
            return
        span_ns = to_ns - from_ns
        rate = self._settings.rate
        if self._bursting(len(markets), from_ns, to_ns):
            rate *= self._settings.burst_factor
        count, self._owed = divmod(self._owed + rate * span_ns, NANOSECONDS)
        count += self._flood
        self._flood = 0
        for index in range(count):
            stamp = self._clock.stamp(from_ns + span_ns * (index + 1) // (count + 1))
            self.act(self._choose(markets, to_ns), stamp)

    def act(self, market: Market, stamp: Stamp) -> None:
        """One random action on `market`."""
        random = self._random.random
        if not market.quoted_sides:
            return
        if random() < WANDER_SHARE:
            self._wander(market)
        orders = market.book.orders
        crowding = len(orders) / self._settings.orders_per_market
        choice = random()
        if choice < 0.12:
            self._take(market, stamp)
        elif choice < 0.13:
            self._block(market, stamp)
        elif choice < 0.133:
            side = market.quoted_sides[int(random() * len(market.quoted_sides))]
            self._engine.cancel(market, market.book.orders_of(side), stamp)
        elif orders and choice < 0.30:
            self._amend(market, self._some_order(orders), stamp)
        elif orders and random() < crowding / (1 + crowding):
            self._engine.cancel(market, [self._some_order(orders)], stamp)
        else:
            self._place(market, stamp)

    def _bursting(self, market_count: int, from_ns: int, to_ns: int) -> bool:
        if from_ns < self._burst_until_ns:
            return True
        chance = (to_ns - from_ns) / (self._settings.burst_interval_s * NANOSECONDS)
        if self._random.random() < chance:
            self._burst_until_ns = to_ns + self._settings.burst_ms * 1_000_000
            self._burst_start = int(self._random.random() * market_count)
        return False

    def _choose(self, markets: Sequence[Market], now_ns: int) -> Market:
        draw = self._random.random()
        if now_ns <= self._burst_until_ns:
            return markets[(self._burst_start + int(draw * 8)) % len(markets)]
        return markets[int(draw * draw * len(markets))]

    def _some_order(self, orders: list[Order]) -> Order:
        return orders[int(self._random.random() * len(orders))]

    def _size_e2(self) -> int:
        random = self._random.random
        if random() < FRACTIONAL_SHARE:
            return 1 + int(random() * random() * 50_000)
        return LOT_SIZES_E2[int(random() * random() * len(LOT_SIZES_E2))]

    def _wander(self, market: Market) -> None:
        reach = max(1, len(market.grid) // 60)
        step = int(self._random.random() * (2 * reach + 1)) - reach
        market.fair = min(max(market.fair + step, 1), len(market.grid) - 2)

    def _quote_e4(self, market: Market, side: int) -> int:
        """A price below the fair one on `side`; the grid is symmetrical, so its complement is valid too."""
        random = self._random.random
        distance = int(random() * random() * max(8, len(market.grid) // 8))
        if side == 0:
            return market.grid[max(0, market.fair - 1 - distance)]
        top = len(market.grid) - 1
        return PRICE_E4_MAX - market.grid[min(top, market.fair + 1 + distance)]

    def _place(self, market: Market, stamp: Stamp) -> None:
        side = market.quoted_sides[int(self._random.random() * len(market.quoted_sides))]
        price_e4 = self._quote_e4(market, side)
        self._engine.submit(market, side, price_e4, self._size_e2(), stamp)

    def _amend(self, market: Market, order: Order, stamp: Stamp) -> None:
        price_e4 = self._quote_e4(market, order.side)
        if price_e4 == order.price_e4 or market.book.crosses(order.side, price_e4):
            self._engine.cancel(market, [order], stamp)
            return
        self._engine.amend(market, order, price_e4, self._size_e2(), stamp)

    def _take(self, market: Market, stamp: Stamp) -> None:
        """A marketable order: at the touch, or sweeping a little through the book."""
        random = self._random.random
        side = int(random() * 2)
        opposite_e4 = market.book.best[1 - side]
        if not opposite_e4:
            self._place(market, stamp)
            return
        sweep_e4 = int(random() * random() * 400)
        limit_e4 = min(PRICE_E4_MAX - 1, PRICE_E4_MAX - opposite_e4 + sweep_e4)
        self._engine.submit(market, side, limit_e4, self._size_e2(), stamp, rests=False)

    def _block(self, market: Market, stamp: Stamp) -> None:
        side = int(self._random.random() * 2)
        price_e4 = market.grid[market.fair]
        self._engine.block_trade(market, side, price_e4, 10 * self._size_e2(), stamp)
