"""A book rebuilt by the audit, with nothing of the plant's or the subscriber's own book. Pure.

Two dicts and a best price each; what the plant does with sorted lists must come to the same.
"""

import struct
from enum import IntEnum
from zlib import crc32

from tickerplant.core.messages import BookLevels, LevelUpdate


class Held(IntEnum):
    """What who listens holds of a book."""

    NOTHING = 0
    """Not told, or closed."""
    IMAGE = 1
    """Parts of an image, to be followed by its checksum."""
    LIVE = 2
    STALE = 3


class AuditBook:
    """Levels of one market. `proven`: they are all known; after a hole they are not, until a checksum says so."""

    __slots__ = ("asks", "best_ask", "best_bid", "bids", "held", "next_part", "parts", "proven")

    def __init__(self, *, proven: bool) -> None:
        self.proven = proven
        self.held = Held.NOTHING
        self.clear()

    def clear(self) -> None:
        """No levels, and no parts of an image."""
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.best_bid = 0
        self.best_ask = 0
        self.parts = 0
        self.next_part = 0

    def apply(self, update: LevelUpdate) -> bool | None:
        """Sets a level to its new size; whether a best moved, None if old size and change do not give the new one."""
        price, size = update.price_e4, update.size_e2
        levels = self.asks if update.side else self.bids
        right = levels.get(price, 0) + update.delta_e2 == size and 0 < price < 10_000 and size >= 0
        moved = self._set_ask(price, size) if update.side else self._set_bid(price, size)
        return moved if right else None

    def _set_bid(self, price: int, size: int) -> bool:
        bids = self.bids
        if size > 0:
            bids[price] = size
            if price < self.best_bid:
                return False
            self.best_bid = price
            return True
        bids.pop(price, None)
        if price != self.best_bid:
            return False
        self.best_bid = max(bids, default=0)
        return True

    def _set_ask(self, price: int, size: int) -> bool:
        asks = self.asks
        if size > 0:
            asks[price] = size
            if price > self.best_ask > 0:
                return False
            self.best_ask = price
            return True
        asks.pop(price, None)
        if price != self.best_ask:
            return False
        self.best_ask = min(asks, default=0)
        return True

    def add_part(self, part: BookLevels) -> bool:
        """One part of an image; False if it does not follow the one before or its levels are not ascending."""
        right = part.part == self.next_part and part.part < part.parts
        right = right and self.parts in (0, part.parts)
        self.parts = part.parts
        self.next_part = part.part + 1
        for levels, added in ((self.bids, part.bids), (self.asks, part.asks)):
            last = max(levels, default=0)
            for price, size in added:
                right = right and last < price < 10_000 and size > 0
                levels[price] = size
                last = price
        self.best_bid = max(self.bids, default=0)
        self.best_ask = min(self.asks, default=0)
        return right

    @property
    def image_complete(self) -> bool:
        """Whether all parts of the image came."""
        return self.next_part == self.parts

    def bbo(self) -> tuple[int, int, int, int]:
        """(bid, its size, ask, its size); an absent side is 0, 0."""
        return (
            self.best_bid,
            self.bids.get(self.best_bid, 0),
            self.best_ask,
            self.asks.get(self.best_ask, 0),
        )

    def levels(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(bids, asks), prices ascending."""
        return sorted(self.bids.items()), sorted(self.asks.items())

    def checksum(self) -> int:
        """CRC-32 over `<qq` (price_e4, size_e2), bids then asks, prices ascending."""
        numbers = [number for side in self.levels() for level in side for number in level]
        return crc32(struct.pack(f"<{len(numbers)}q", *numbers))
