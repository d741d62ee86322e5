"""The reference load: order-book frames of 2,000 markets, 20 levels a side, a quarter of the deltas moving a best.

Sizes are drawn as in 4,495 real production deltas of March 2026: their quantiles, and how often a size repeats (538
distinct ones, the commonest 7 % of all, the commonest 15 almost half). Frames are as the exchange writes them (about
260 bytes) and consistent: no level falls below zero. Same seed, same frames.
"""

import random
from bisect import insort
from collections.abc import Iterator
from itertools import accumulate

from tickerplant.core.fixedpoint import format_price_e4, format_size_e2

MARKETS = 2_000
LEVELS = 20
BEST_SHARE = 0.25
DISTINCT_SIZES = 538
SIZE_QUANTILES = (1, 5, 19, 100, 240, 1_111, 4_000, 5_960, 15_000, 30_000, 50_000)
SIZE_PROBABILITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
_START_MS = 1_795_197_851_207
_TS_TEXT = "2026-11-20T18:04:11.207123Z"
_MARKET_ID = "5f0c1c1e-7a52-4d0e-9f77-2b9a4a1f6d10"
_CENT_E4 = 100


class _SideModel:
    """One side as the exchange quotes it: bids in its own prices, best = highest; at most 25 levels."""

    def __init__(self, rng: random.Random, best_e4: int) -> None:
        self.sizes = {best_e4 - depth * _CENT_E4: draw_size_e2(rng) for depth in range(LEVELS)}
        self.prices = sorted(self.sizes)
        self.ceiling_e4 = best_e4 + 3 * _CENT_E4

    def change(self, rng: random.Random) -> tuple[int, int]:
        """(price_e4, delta_e2) of one consistent change."""
        prices = self.prices
        if rng.random() < BEST_SHARE:
            return self._change_best(rng)
        price_e4 = prices[rng.randrange(len(prices) - 1)]
        choice = rng.random()
        if choice < 0.15 and len(prices) > LEVELS - 5:
            return self._remove(price_e4)
        if choice < 0.3 and len(prices) < LEVELS + 5:
            return self._insert(rng, prices[0] - _CENT_E4 if prices[0] > _CENT_E4 else price_e4)
        return self._resize(rng, price_e4)

    def _change_best(self, rng: random.Random) -> tuple[int, int]:
        best_e4 = self.prices[-1]
        choice = rng.random()
        if choice < 0.25 and len(self.prices) > LEVELS - 5:
            return self._remove(best_e4)
        if choice < 0.5 and best_e4 < self.ceiling_e4:
            return self._insert(rng, best_e4 + _CENT_E4)
        return self._resize(rng, best_e4)

    def _insert(self, rng: random.Random, price_e4: int) -> tuple[int, int]:
        if price_e4 in self.sizes:
            return self._resize(rng, price_e4)
        self.sizes[price_e4] = size_e2 = draw_size_e2(rng)
        insort(self.prices, price_e4)
        return price_e4, size_e2

    def _remove(self, price_e4: int) -> tuple[int, int]:
        self.prices.remove(price_e4)
        return price_e4, -self.sizes.pop(price_e4)

    def _resize(self, rng: random.Random, price_e4: int) -> tuple[int, int]:
        delta_e2 = draw_size_e2(rng)
        if rng.random() < 0.5 and self.sizes[price_e4] > delta_e2:
            delta_e2 = -delta_e2
        self.sizes[price_e4] += delta_e2
        return price_e4, delta_e2


def _draw_size(rng: random.Random) -> int:
    draw = rng.random()
    for index, probability in enumerate(SIZE_PROBABILITIES):
        if draw <= probability:
            low = SIZE_QUANTILES[index - 1] if index else 1
            return rng.randint(low, SIZE_QUANTILES[index])
    return SIZE_QUANTILES[-1]


_SIZES_E2 = [_draw_size(random.Random(rank)) * 100 for rank in range(DISTINCT_SIZES)]  # noqa: S311  # a load
_SIZE_WEIGHTS = list(accumulate(1 / (rank + 2.5) for rank in range(DISTINCT_SIZES)))


def draw_size_e2(rng: random.Random) -> int:
    """A size as the real ones, whole contracts, in 1e-2 contract."""
    return rng.choices(_SIZES_E2, cum_weights=_SIZE_WEIGHTS)[0]


class ReferenceLoad:
    """Generates the frames of one subscription in sequence; `seq` goes on over all calls."""

    def __init__(self, *, markets: int = MARKETS, seed: int = 1, sid: int = 1) -> None:
        self._rng = rng = random.Random(seed)  # noqa: S311  # a load, not a secret
        self.sid = sid
        self.seq = 0
        self.tickers = [f"KXBENCH-26NOV21-T{index:05d}" for index in range(markets)]
        self._sides = [
            (_SideModel(rng, 4_500 + 100 * rng.randrange(5)), _SideModel(rng, 4_500))
            for _ in self.tickers
        ]

    def snapshots(self) -> Iterator[bytes]:
        """One `orderbook_snapshot` per market."""
        for ticker, (yes, no) in zip(self.tickers, self._sides, strict=True):
            self.seq += 1
            yield (
                f'{{"type":"orderbook_snapshot","sid":{self.sid},"seq":{self.seq},"msg":{{"market_ticker":"{ticker}",'
                f'"market_id":"{_MARKET_ID}","yes_dollars_fp":{_levels(yes)},"no_dollars_fp":{_levels(no)}}}}}'
            ).encode()

    def deltas(self, count: int) -> list[bytes]:
        """The next `count` `orderbook_delta` frames."""
        rng, frames = self._rng, []
        for _ in range(count):
            index = rng.randrange(len(self.tickers))
            side = rng.randrange(2)
            price_e4, delta_e2 = self._sides[index][side].change(rng)
            self.seq += 1
            frames.append(
                (
                    f'{{"type":"orderbook_delta","sid":{self.sid},"seq":{self.seq},"msg":{{"market_ticker":'
                    f'"{self.tickers[index]}","market_id":"{_MARKET_ID}","price_dollars":"{format_price_e4(price_e4)}",'
                    f'"delta_fp":"{format_size_e2(delta_e2)}","side":"{"no" if side else "yes"}","ts":"{_TS_TEXT}",'
                    f'"ts_ms":{_START_MS + self.seq}}}}}'
                ).encode()
            )
        return frames

    def books(self) -> dict[str, tuple[dict[int, int], dict[int, int]]]:
        """The model's books by now, as YES bids and YES asks (price_e4 -> size_e2)."""
        return {
            ticker: (dict(yes.sizes), {10_000 - price: size for price, size in no.sizes.items()})
            for ticker, (yes, no) in zip(self.tickers, self._sides, strict=True)
        }


def _levels(side: _SideModel) -> str:
    pairs = (
        f'["{format_price_e4(price_e4)}","{format_size_e2(side.sizes[price_e4])}"]'
        for price_e4 in side.prices
    )
    return "[" + ",".join(pairs) + "]"
