"""One order book in YES prices: levels, best bid and offer, depth, checksum.

Each side is two parallel lists, prices ascending and their sizes, searched with `bisect`. At the sizes a market
reaches (tens of levels, 10,000 at the finest tick) this beats dicts and sorted containers, because with thousands of
books the cost of a change is the memory it touches; prices are shared objects for the same reason. `make bench`
shows it beside a `SortedDict` book.
"""

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import lt

from tickerplant.core.messages import LevelUpdate
from tickerplant.limits import PRICE_E4_MAX, SIZE_E2_MAX

Level = tuple[int, int]
"""(price_e4, size_e2)"""

_LEVEL_BYTES = 16
_SHARED_PRICES = tuple(range(PRICE_E4_MAX + 1))
_share_price = _SHARED_PRICES.__getitem__


def _shared(price_e4: int) -> int:
    return _SHARED_PRICES[price_e4] if 0 <= price_e4 <= PRICE_E4_MAX else price_e4


def _are_prices(prices: tuple[int, ...]) -> bool:
    """Whether these are the prices of a side: ascending, and none that an exchange cannot quote."""
    if not prices:
        return True
    return prices[0] > 0 and prices[-1] < PRICE_E4_MAX and all(map(lt, prices, prices[1:]))


class Levels:
    """The levels of one market, read-only; absent sides read as 0."""

    __slots__ = ("_ask_prices", "_ask_sizes", "_bid_prices", "_bid_sizes", "best_moved")

    _bid_prices: list[int]
    _bid_sizes: list[int]
    _ask_prices: list[int]
    _ask_sizes: list[int]

    def size_at(self, side: int, price_e4: int) -> int:
        """Size of a level, 0 if absent."""
        prices = self._ask_prices if side else self._bid_prices
        index = bisect_left(prices, price_e4)
        if index == len(prices) or prices[index] != price_e4:
            return 0
        return (self._ask_sizes if side else self._bid_sizes)[index]

    @property
    def bids(self) -> dict[int, int]:
        """Bids as a new dict, price_e4 -> size_e2, prices ascending."""
        return dict(zip(self._bid_prices, self._bid_sizes, strict=True))

    @property
    def asks(self) -> dict[int, int]:
        """Asks as a new dict, price_e4 -> size_e2, prices ascending."""
        return dict(zip(self._ask_prices, self._ask_sizes, strict=True))

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
        sizes = self._bid_sizes
        return sizes[-1] if sizes else 0

    @property
    def best_ask_size_e2(self) -> int:
        """Size at the best ask, 0 if there is none."""
        sizes = self._ask_sizes
        return sizes[0] if sizes else 0

    def bbo(self) -> tuple[int, int, int, int]:
        """(bid_e4, bid_size_e2, ask_e4, ask_size_e2); an absent side is 0, 0."""
        prices = self._bid_prices
        if prices:
            bid_e4 = prices[-1]
            bid_size_e2 = self._bid_sizes[-1]
        else:
            bid_e4 = bid_size_e2 = 0
        prices = self._ask_prices
        if prices:
            return bid_e4, bid_size_e2, prices[0], self._ask_sizes[0]
        return bid_e4, bid_size_e2, 0, 0

    def depth(self, count: int) -> tuple[list[Level], list[Level]]:
        """The `count` best (price_e4, size_e2) of bids and of asks, best first."""
        if count <= 0:
            return [], []
        bids = zip(self._bid_prices[-count:], self._bid_sizes[-count:], strict=True)
        asks = zip(self._ask_prices[:count], self._ask_sizes[:count], strict=True)
        return list(bids)[::-1], list(asks)

    def ascending(self, side: int) -> list[Level]:
        """All levels of a side, prices ascending."""
        if side:
            return list(zip(self._ask_prices, self._ask_sizes, strict=True))
        return list(zip(self._bid_prices, self._bid_sizes, strict=True))

    def sides(self) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        """All bids and all asks, prices ascending."""
        return (
            tuple(zip(self._bid_prices, self._bid_sizes, strict=True)),
            tuple(zip(self._ask_prices, self._ask_sizes, strict=True)),
        )

    @property
    def bid_count(self) -> int:
        """Levels of the bids."""
        return len(self._bid_prices)

    @property
    def level_count(self) -> int:
        """Levels of both sides."""
        return len(self._bid_prices) + len(self._ask_prices)

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
        """Whether the best bid is above the best ask; seen for moments on the exchange, counted by the plant."""
        spread_e4 = self.spread_e4
        return spread_e4 is not None and spread_e4 < 0

    def checksum(self) -> int:
        """CRC-32 of `packed`."""
        return zlib.crc32(self.packed())

    def packed(self) -> bytes:
        """`<qq` (price_e4, size_e2) of each level, bids then asks, prices ascending."""
        prices = self._bid_prices + self._ask_prices
        sizes = self._bid_sizes + self._ask_sizes
        # Price and size in turn: slices do in one step what a loop takes three times as long for.
        numbers = prices + sizes
        numbers[::2], numbers[1::2] = prices, sizes
        return struct.pack(f"<{len(numbers)}q", *numbers)


class Book(Levels):
    """The levels of one market, and how they change."""

    __slots__ = ()

    best_moved: bool

    def __init__(self, bids: Iterable[Level] = (), asks: Iterable[Level] = ()) -> None:
        if bids or asks:
            self.load(bids, asks)
        else:
            self.clear()

    def load(self, bids: Iterable[Level], asks: Iterable[Level]) -> None:
        """Replaces all levels; sizes must be positive and prices distinct within a side."""
        bid_levels, ask_levels = sorted(bids), sorted(asks)
        self._bid_prices = [_shared(price_e4) for price_e4, _ in bid_levels]
        self._bid_sizes = [size_e2 for _, size_e2 in bid_levels]
        self._ask_prices = [_shared(price_e4) for price_e4, _ in ask_levels]
        self._ask_sizes = [size_e2 for _, size_e2 in ask_levels]
        self.best_moved = True

    def load_packed(self, levels: bytes, bid_count: int) -> None:
        """Replaces all levels by those of `packed`, the first `bid_count` of them bids.

        Raises `ValueError`, with nothing changed, for what is not a book: a price or size out of range, or prices
        that do not ascend.
        """
        count, rest = divmod(len(levels), _LEVEL_BYTES)
        if rest or not 0 <= bid_count <= count:
            raise ValueError(f"{len(levels)} B are no levels, {bid_count} of them bids")
        numbers = struct.unpack(f"<{2 * count}q", levels)
        prices, sizes = numbers[::2], numbers[1::2]
        bid_prices, ask_prices = prices[:bid_count], prices[bid_count:]
        if not (_are_prices(bid_prices) and _are_prices(ask_prices)):
            raise ValueError("prices are out of range or do not ascend")
        if count and not (min(sizes) > 0 and max(sizes) <= SIZE_E2_MAX):
            raise ValueError("a size is out of range")
        self._bid_prices = list(map(_share_price, bid_prices))
        self._bid_sizes = list(sizes[:bid_count])
        self._ask_prices = list(map(_share_price, ask_prices))
        self._ask_sizes = list(sizes[bid_count:])
        self.best_moved = True

    def levels(self) -> "Book":
        """A book that shares these levels: theirs to keep once `load` or `take` has given this one others."""
        other = Book.__new__(Book)
        other.take(self)
        return other

    def take(self, other: "Book") -> None:
        """Takes the levels of another book, which must not be changed any more."""
        self._bid_prices = other._bid_prices
        self._bid_sizes = other._bid_sizes
        self._ask_prices = other._ask_prices
        self._ask_sizes = other._ask_sizes
        self.best_moved = True

    def clear(self) -> None:
        """Forgets all levels."""
        self._bid_prices = []
        self._bid_sizes = []
        self._ask_prices = []
        self._ask_sizes = []
        self.best_moved = True

    def apply(self, side: int, price_e4: int, delta_e2: int) -> int:
        """Adds `delta_e2` to a level (side 0 bid, 1 ask) and returns its new size; 0 means the level is gone.

        Returns -1, with the book unchanged, if the level would fall below zero or grow beyond `SIZE_E2_MAX`.
        `best_moved` then says whether the change was at or beyond the best of its side: its price or size moved.
        """
        if side:
            prices = self._ask_prices
            sizes = self._ask_sizes
            self.best_moved = not prices or price_e4 <= prices[0]
        else:
            prices = self._bid_prices
            sizes = self._bid_sizes
            self.best_moved = not prices or price_e4 >= prices[-1]
        index = bisect_left(prices, price_e4)
        if index < len(prices) and prices[index] == price_e4:
            size_e2 = sizes[index] + delta_e2
            if 0 < size_e2 <= SIZE_E2_MAX:
                sizes[index] = size_e2
                return size_e2
            if size_e2:
                return -1
            del prices[index], sizes[index]
            return 0
        if not 0 < delta_e2 <= SIZE_E2_MAX:
            return -1 if delta_e2 else 0
        prices.insert(index, _shared(price_e4))
        sizes.insert(index, delta_e2)
        return delta_e2

    def follow(self, update: LevelUpdate) -> bool:
        """Makes the change that another book made; False, with nothing changed, if this one cannot have been equal.

        `best_moved` says nothing of it.
        """
        price_e4 = update.price_e4
        size_e2 = update.size_e2
        if update.side:
            prices = self._ask_prices
            sizes = self._ask_sizes
        else:
            prices = self._bid_prices
            sizes = self._bid_sizes
        index = bisect_left(prices, price_e4)
        if index < len(prices) and prices[index] == price_e4:
            if sizes[index] + update.delta_e2 != size_e2 or not 0 <= size_e2 <= SIZE_E2_MAX:
                return False
            if size_e2:
                sizes[index] = size_e2
            else:
                del prices[index], sizes[index]
            return True
        if update.delta_e2 != size_e2 or not 0 <= size_e2 <= SIZE_E2_MAX:
            return False
        if not 0 < price_e4 < PRICE_E4_MAX:
            return False
        if size_e2:
            prices.insert(index, _SHARED_PRICES[price_e4])
            sizes.insert(index, size_e2)
        return True

    def set_level(self, side: int, price_e4: int, size_e2: int) -> None:
        """Sets a level to an absolute size (0 removes it)."""
        self.apply(side, price_e4, size_e2 - self.size_at(side, price_e4))

    def __eq__(self, other: object) -> bool:
        """Equal levels on both sides."""
        if not isinstance(other, Book):
            return NotImplemented
        return self.ascending(0) == other.ascending(0) and self.ascending(1) == other.ascending(1)

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
