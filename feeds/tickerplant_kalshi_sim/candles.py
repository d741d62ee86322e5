"""Candlesticks of one market: one a minute while anything changes; longer periods are made from them when asked.

A candle ends at a whole minute (hour, day) and holds what happened up to and with its end. Prices are YES prices in
1e-4 dollar. Source: Kalshi "candlesticks" endpoints.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from tickerplant.limits import SIM_CANDLES_KEPT

MINUTE_NS = 60_000_000_000


class Range(msgspec.Struct, gc=False):
    """First, lowest, highest and last value of one price in a period."""

    open_e4: int
    low_e4: int
    high_e4: int
    close_e4: int

    def take(self, other: "Range") -> None:
        """Goes on with a range that follows."""
        self.low_e4 = min(self.low_e4, other.low_e4)
        self.high_e4 = max(self.high_e4, other.high_e4)
        self.close_e4 = other.close_e4


def _at(price_e4: int) -> Range:
    return Range(price_e4, price_e4, price_e4, price_e4)


class Candle(msgspec.Struct, gc=False):
    """One period, which ends at `end_ns`. `traded` None: no trade; `traded_e6` is the sum of price times size."""

    end_ns: int
    bid: Range
    ask: Range
    traded: Range | None
    previous_e4: int
    traded_e6: int
    volume_e2: int
    open_interest_e2: int

    def take(self, other: "Candle") -> None:
        """Goes on with a candle that follows within the same period."""
        self.bid.take(other.bid)
        self.ask.take(other.ask)
        if self.traded is None:
            self.traded = msgspec.structs.replace(other.traded) if other.traded else None
        elif other.traded is not None:
            self.traded.take(other.traded)
        self.traded_e6 += other.traded_e6
        self.volume_e2 += other.volume_e2
        self.open_interest_e2 = other.open_interest_e2

    @property
    def mean_e4(self) -> int:
        """Volume-weighted mean of the trades, rounded down; 0 without any."""
        return self.traded_e6 // self.volume_e2 if self.volume_e2 else 0


class Candles:
    """The newest `SIM_CANDLES_KEPT` candles of one market, one minute each; older ones are forgotten."""

    __slots__ = ("_last_trade_e4", "_minutes")

    def __init__(self) -> None:
        self._minutes: deque[Candle] = deque(maxlen=SIM_CANDLES_KEPT)
        self._last_trade_e4 = 0

    def quote(self, now_ns: int, bid_e4: int, ask_e4: int, open_interest_e2: int) -> None:
        """The best prices or the open interest changed."""
        candle = self._candle(now_ns, bid_e4, ask_e4)
        candle.bid.take(_at(bid_e4))
        candle.ask.take(_at(ask_e4))
        candle.open_interest_e2 = open_interest_e2

    def trade(self, now_ns: int, price_e4: int, size_e2: int, best: tuple[int, ...]) -> None:
        """A trade, `best` being bid and ask before it."""
        candle = self._candle(now_ns, *best)
        if candle.traded is None:
            candle.traded = _at(price_e4)
        else:
            candle.traded.take(_at(price_e4))
        candle.traded_e6 += price_e4 * size_e2
        candle.volume_e2 += size_e2
        self._last_trade_e4 = price_e4

    def between(self, start_ns: int, end_ns: int, period_ns: int) -> Iterator[Candle]:
        """The candles whose ends lie in `start_ns`..`end_ns`, both included, oldest first."""
        for candle in _merged(self._minutes, period_ns):
            if start_ns <= candle.end_ns <= end_ns:
                yield candle

    def before(self, start_ns: int, period_ns: int) -> Candle | None:
        """The newest candle that ended before `start_ns`."""
        earlier = [c for c in _merged(self._minutes, period_ns) if c.end_ns < start_ns]
        return earlier[-1] if earlier else None

    def _candle(self, now_ns: int, bid_e4: int, ask_e4: int) -> Candle:
        end_ns = _end_ns(now_ns, MINUTE_NS)
        minutes = self._minutes
        if not minutes or minutes[-1].end_ns < end_ns:
            bid, ask = _at(bid_e4), _at(ask_e4)
            interest_e2 = minutes[-1].open_interest_e2 if minutes else 0
            minutes.append(Candle(end_ns, bid, ask, None, self._last_trade_e4, 0, 0, interest_e2))
        return minutes[-1]


def _end_ns(now_ns: int, period_ns: int) -> int:
    """The end of the period that holds `now_ns`; the end itself belongs to it."""
    return -(-now_ns // period_ns) * period_ns


def _merged(minutes: Iterable[Candle], period_ns: int) -> Iterator[Candle]:
    """Copies of the candles, put together to periods of that length."""
    whole: Candle | None = None
    for minute in minutes:
        end_ns = _end_ns(minute.end_ns, period_ns)
        if whole is not None and whole.end_ns == end_ns:
            whole.take(minute)
            continue
        if whole is not None:
            yield whole
        whole = msgspec.structs.replace(
            minute,
            end_ns=end_ns,
            bid=msgspec.structs.replace(minute.bid),
            ask=msgspec.structs.replace(minute.ask),
            traded=msgspec.structs.replace(minute.traded) if minute.traded else None,
        )
    if whole is not None:
        yield whole
