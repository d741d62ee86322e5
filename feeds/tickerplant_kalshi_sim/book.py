"""The matching engine's book of one market: resting orders of two bid sides, price-time priority.

A YES bid at p and a NO bid at q match when p + q reaches one dollar. Prices in 1e-4 dollar, sizes in 1e-2 contract.
"""

from typing import Final, NamedTuple

from tickerplant.limits import PRICE_E4_MAX

YES: Final = 0
NO: Final = 1
SIDE_NAMES: Final = ("yes", "no")


class Order:
    """A resting order; `place` is its index in `OrderBook.orders`."""

    __slots__ = ("place", "price_e4", "side", "size_e2")

    def __init__(self, side: int, price_e4: int, size_e2: int, place: int) -> None:
        self.side = side
        self.price_e4 = price_e4
        self.size_e2 = size_e2
        self.place = place


class Fill(NamedTuple):
    """One match: the maker's side and price, and the size taken from it."""

    maker_side: int
    maker_price_e4: int
    size_e2: int


class OrderBook:
    """Resting orders, sizes per level, and the cached best bid per side (0 when the side is empty)."""

    __slots__ = ("best", "levels", "orders", "queues")

    def __init__(self) -> None:
        self.levels: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.queues: tuple[dict[int, list[Order]], dict[int, list[Order]]] = ({}, {})
        self.orders: list[Order] = []
        self.best = [0, 0]

    def add(self, side: int, price_e4: int, size_e2: int) -> None:
        """Rest an order; it must not cross."""
        order = Order(side, price_e4, size_e2, len(self.orders))
        self.orders.append(order)
        self.queues[side].setdefault(price_e4, []).append(order)
        levels = self.levels[side]
        levels[price_e4] = levels.get(price_e4, 0) + size_e2
        self.best[side] = max(self.best[side], price_e4)

    def remove(self, order: Order) -> None:
        """Take `order` out of the book."""
        self._take_from_level(order, order.size_e2)
        queue = self.queues[order.side][order.price_e4]
        queue.remove(order)
        if not queue:
            del self.queues[order.side][order.price_e4]
        last = self.orders.pop()
        if last is not order:
            self.orders[order.place] = last
            last.place = order.place

    def match(self, taker_side: int, limit_e4: int, size_e2: int) -> list[Fill]:
        """Consume the opposite side up to `limit_e4`; the fills, best maker first, oldest first."""
        maker_side = 1 - taker_side
        fills: list[Fill] = []
        while (
            size_e2 and self.best[maker_side] and self.best[maker_side] + limit_e4 >= PRICE_E4_MAX
        ):
            price_e4 = self.best[maker_side]
            maker = self.queues[maker_side][price_e4][0]
            taken_e2 = min(size_e2, maker.size_e2)
            if taken_e2 == maker.size_e2:
                self.remove(maker)
            else:
                self._take_from_level(maker, taken_e2)
                maker.size_e2 -= taken_e2
            fills.append(Fill(maker_side, price_e4, taken_e2))
            size_e2 -= taken_e2
        return fills

    def crosses(self, side: int, price_e4: int) -> bool:
        """Whether an order at that price would match."""
        opposite_e4 = self.best[1 - side]
        return bool(opposite_e4) and opposite_e4 + price_e4 >= PRICE_E4_MAX

    def orders_of(self, side: int) -> list[Order]:
        """The resting orders of one side."""
        return [order for order in self.orders if order.side == side]

    def _take_from_level(self, order: Order, size_e2: int) -> None:
        levels = self.levels[order.side]
        rest_e2 = levels[order.price_e4] - size_e2
        assert rest_e2 >= 0
        if rest_e2:
            levels[order.price_e4] = rest_e2
            return
        del levels[order.price_e4]
        if order.price_e4 == self.best[order.side]:
            self.best[order.side] = max(levels, default=0)


YesBook = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
"""(bids, asks) in YES prices: (price_e4, size_e2) pairs, prices ascending on both sides."""


def as_yes_book(yes_levels: dict[int, int], no_levels: dict[int, int]) -> YesBook:
    """Two bid sides as one YES book: a NO bid at q is a YES ask at one dollar minus q."""
    asks = sorted((PRICE_E4_MAX - price_e4, size_e2) for price_e4, size_e2 in no_levels.items())
    return tuple(sorted(yes_levels.items())), tuple(asks)
