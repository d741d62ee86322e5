"""The exchange's books in plain decimals, as its own frames tell them; no code of the plant. Pure."""

from decimal import Decimal, InvalidOperation
from typing import Any

Change = tuple[int, int, int]
"""(side, price_e4, delta_e2), side 0 bid and 1 ask, in YES prices."""
_LARGEST_E2 = 10**15


class UnusableFrameError(Exception):
    """A frame whose content cannot be taken as it stands."""


def units(text: object, scale: int) -> int:
    """A decimal string in units of 10**-scale, exactly. Raises `UnusableFrameError`."""
    if not isinstance(text, str):
        raise UnusableFrameError(f"{text!r:.40} is no decimal")
    try:
        value = Decimal(text).scaleb(scale)
        whole = int(value)
    except (InvalidOperation, ValueError, OverflowError):
        raise UnusableFrameError(f"{text!r:.40} is no decimal") from None
    if whole != value or abs(whole) > _LARGEST_E2:
        raise UnusableFrameError(f"{text!r:.40} is not exact or too large")
    return whole


def order_price_e4(text: object, *, is_ask: bool, yes_price: bool) -> int:
    """The YES price of a level; a NO bid at p is an ask at 1 - p, unless it was sent as that already."""
    price_e4 = units(text, 4)
    if not 0 < price_e4 < 10_000:
        raise UnusableFrameError(f"{text!r:.40} is no price of an order")
    return 10_000 - price_e4 if is_ask and not yes_price else price_e4


class ExchangeBook:
    """One market. `known`: its levels are those of the exchange, as far as the frames tell."""

    __slots__ = ("connection", "known", "levels", "sid")

    def __init__(self) -> None:
        self.levels: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.known = False
        self.connection = -1
        self.sid = 0

    def take_snapshot(self, msg: dict[str, Any], *, yes_price: bool) -> bool:
        """All levels anew; True if they are not what they had to be. Raises `UnusableFrameError`."""
        is_empty = not msg.get("yes_dollars_fp") and not msg.get("no_dollars_fp")
        if is_empty and msg.keys() & {"yes", "no", "yes_dollars", "no_dollars"}:
            raise UnusableFrameError("levels under names of before 2026-03-12")
        sides: list[dict[int, int]] = []
        for is_ask, key in ((False, "yes_dollars_fp"), (True, "no_dollars_fp")):
            levels: dict[int, int] = {}
            for price, size in msg.get(key) or ():
                price_e4 = order_price_e4(price, is_ask=is_ask, yes_price=yes_price)
                size_e2 = units(size, 2)
                if size_e2 < 0 or price_e4 in levels:
                    raise UnusableFrameError(f"level {price} of {size} cannot be")
                levels[price_e4] = size_e2
            sides.append({price: size for price, size in levels.items() if size})
        fresh = (sides[0], sides[1])
        diverged = self.known and fresh != self.levels
        self.levels = fresh
        self.known = True
        return diverged

    def take_delta(self, msg: dict[str, Any], *, yes_price: bool) -> Change:
        """One change. Raises `UnusableFrameError`, also for a level below zero; nothing is changed then."""
        side = {"yes": 0, "no": 1}.get(msg.get("side", ""))
        if side is None:
            raise UnusableFrameError("a delta of no side")
        price_e4 = order_price_e4(msg.get("price_dollars"), is_ask=bool(side), yes_price=yes_price)
        delta_e2 = units(msg.get("delta_fp"), 2)
        levels = self.levels[side]
        size_e2 = levels.get(price_e4, 0) + delta_e2
        if not 0 <= size_e2 <= _LARGEST_E2:
            raise UnusableFrameError(f"level {price_e4} would hold {size_e2}")
        if size_e2:
            levels[price_e4] = size_e2
        else:
            levels.pop(price_e4, None)
        return side, price_e4, delta_e2

    def ascending(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(bids, asks), prices ascending."""
        return sorted(self.levels[0].items()), sorted(self.levels[1].items())
