"""One order book in YES prices: levels, best bid and offer, depth, checksum.

Each side is a dict (price_e4 -> size_e2) for sizes and a sorted list of prices for the order: a plain list with
`bisect` beats a sorted container at the sizes a market reaches (10,000 price slots a side at the finest tick),
because an insertion is one memory move. `make bench` shows both.
"""

import struct
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

Level = tuple[int, int]
"""(price_e4, size_e2)"""


class Book:
    """The levels of one market. `bids` and `asks` are read-only for callers; absent sides read as 0."""

    __slots__ = ("_ask_prices", "_bid_prices", "asks", "best_moved", "bids")

    def __init__(self, bids: Iterable[Level] = (), asks: Iterable[Level] = ()) -> None:
        self.load(bids, asks)

    def load(self, bids: Iterable[Level], asks: Iterable[Level]) -> None:
        """Replaces all levels; sizes must be positive and prices distinct within a side."""
        self.bids: dict[int, int] = dict(bids)
        self.asks: dict[int, int] = dict(asks)
        self._bid_prices = sorted(self.bids)
        self._ask_prices = sorted(self.asks)
        self.best_moved = True

    def clear(self) -> None:
        """Forgets all levels."""
        self.load((), ())

    def apply(self, side: int, price_e4: int, delta_e2: int) -> int:
        """Adds `delta_e2` to a level (side 0 bid, 1 ask) and returns its new size; 0 means the level is gone.

        Returns -1, with the book unchanged, if the level would fall below zero. `best_moved` then says whether the
        change was at or beyond the best of its side, so that its price or size moved.
        """
        if side:
            levels = self.asks
            prices = self._ask_prices
            self.best_moved = not prices or price_e4 <= prices[0]
        else:
            levels = self.bids
            prices = self._bid_prices
            self.best_moved = not prices or price_e4 >= prices[-1]
        old_e2 = levels.get(price_e4, 0)
        size_e2 = old_e2 + delta_e2
        if size_e2 > 0:
            levels[price_e4] = size_e2
            if not old_e2:
                insort(prices, price_e4)
            return size_e2
        if size_e2 < 0:
            return -1
        if old_e2:
            del levels[price_e4]
            del prices[bisect_left(prices, price_e4)]
        return 0

    def set_level(self, side: int, price_e4: int, size_e2: int) -> None:
        """Sets a level to an absolute size (0 removes it)."""
        levels = self.asks if side else self.bids
        self.apply(side, price_e4, size_e2 - levels.get(price_e4, 0))

    def size_at(self, side: int, price_e4: int) -> int:
        """Size of a level, 0 if absent."""
        return (self.asks if side else self.bids).get(price_e4, 0)

    @property
    def best_bid_e4(self) -> int:
        """Highest bid, 0 if there is none."""
        prices = self._bid_prices
        return prices[-1] if prices else 0

    @property
    def best_ask_e4(self) -> int:
        """Lowest ask, 0 if there is none."""
        prices = self._ask_prices
        return prices[0] if prices else 0

    @property
    def best_bid_size_e2(self) -> int:
        """Size at the best bid, 0 if there is none."""
        return self.bids.get(self.best_bid_e4, 0)

    @property
    def best_ask_size_e2(self) -> int:
        """Size at the best ask, 0 if there is none."""
        return self.asks.get(self.best_ask_e4, 0)

    def bbo(self) -> tuple[int, int, int, int]:
        """(bid_e4, bid_size_e2, ask_e4, ask_size_e2); an absent side is 0, 0."""
        bid_prices, ask_prices = self._bid_prices, self._ask_prices
        if bid_prices:
            bid_e4 = bid_prices[-1]
            bid_size_e2 = self.bids[bid_e4]
        else:
            bid_e4 = bid_size_e2 = 0
        if ask_prices:
            ask_e4 = ask_prices[0]
            return bid_e4, bid_size_e2, ask_e4, self.asks[ask_e4]
        return bid_e4, bid_size_e2, 0, 0

    def depth(self, count: int) -> tuple[list[Level], list[Level]]:
        """The `count` best (price_e4, size_e2) of bids and of asks, best first."""
        bids, asks = self.bids, self.asks
        best_bids = self._bid_prices[-count:][::-1] if count > 0 else []
        best_asks = self._ask_prices[:count] if count > 0 else []
        return [(price, bids[price]) for price in best_bids], [
            (price, asks[price]) for price in best_asks
        ]

    def ascending(self, side: int) -> list[Level]:
        """All levels of a side, prices ascending."""
        levels, prices = (self.asks, self._ask_prices) if side else (self.bids, self._bid_prices)
        return [(price, levels[price]) for price in prices]

    @property
    def level_count(self) -> int:
        """Levels of both sides."""
        return len(self.bids) + len(self.asks)

    @property
    def mid_e5(self) -> int | None:
        """Middle of best bid and best ask in 1e-5 dollar (exact); None unless both sides exist."""
        if not self._bid_prices or not self._ask_prices:
            return None
        return (self._bid_prices[-1] + self._ask_prices[0]) * 5

    @property
    def spread_e4(self) -> int | None:
        """Best ask minus best bid (negative when crossed); None unless both sides exist."""
        if not self._bid_prices or not self._ask_prices:
            return None
        return self._ask_prices[0] - self._bid_prices[-1]

    @property
    def crossed(self) -> bool:
        """Whether the best bid is above the best ask; seen for moments on the exchange, counted, not fatal."""
        spread_e4 = self.spread_e4
        return spread_e4 is not None and spread_e4 < 0

    def checksum(self) -> int:
        """CRC-32 over `<qq` (price_e4, size_e2), bids then asks, prices ascending."""
        numbers: list[int] = []
        bids, asks = self.bids, self.asks
        for price_e4 in self._bid_prices:
            numbers += (price_e4, bids[price_e4])
        for price_e4 in self._ask_prices:
            numbers += (price_e4, asks[price_e4])
        return zlib.crc32(struct.pack(f"<{len(numbers)}q", *numbers))

    def __eq__(self, other: object) -> bool:
        """Equal levels on both sides."""
        if not isinstance(other, Book):
            return NotImplemented
        return self.bids == other.bids and self.asks == other.asks

    __hash__ = None  # type: ignore[assignment]  # mutable: not hashable

    def __repr__(self) -> str:
        """Best levels and counts."""
        return f"Book(bbo={self.bbo()}, levels={self.level_count})"


def level_changes(held: Book, fresh: Book) -> Sequence[tuple[int, int, int, int]]:
    """(side, price_e4, delta_e2, size_e2) that turn the levels of `held` into those of `fresh`, in a fixed order."""
    changes: list[tuple[int, int, int, int]] = []
    for side, old, new in ((0, held.bids, fresh.bids), (1, held.asks, fresh.asks)):
        for price_e4 in sorted(old.keys() | new.keys()):
            old_e2, new_e2 = old.get(price_e4, 0), new.get(price_e4, 0)
            if old_e2 != new_e2:
                changes.append((side, price_e4, new_e2 - old_e2, new_e2))
    return changes
