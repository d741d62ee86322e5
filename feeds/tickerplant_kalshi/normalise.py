"""Exchange bodies to the plant's integers; yes/no becomes bid/ask here and nowhere else.

A YES bid is a bid; a NO bid at p is an ask at 1 - p. With `use_yes_price` the exchange quotes the NO side in YES
prices already, so the ask is the price as sent. Every function raises `FixedPointError` for a value that is
malformed, inexact or out of range; nothing is applied then.
"""

from datetime import UTC, datetime

from tickerplant.core.book import Level
from tickerplant.core.books import BookEntry
from tickerplant.core.fixedpoint import PRICE_TEXTS, SIZE_TEXTS, parse_price_e4
from tickerplant.core.messages import Side
from tickerplant.core.plant import Plant
from tickerplant.errors import FixedPointError
from tickerplant.limits import FIXEDPOINT_CACHE_ENTRIES, PRICE_E4_MAX, SIZE_E2_MAX
from tickerplant_kalshi.messages import Levels, SnapshotBody, TickerBody, TradeBody

MILLISECOND_NS = 1_000_000
_SECOND_NS = 1_000_000_000
_INT64_MAX = 2**63 - 1


def event_time_ns(ts_ms: int, ts: str | int | None) -> int:
    """`ts_ms`, else the deprecated `ts` (seconds, or RFC 3339 with 0-9 fractional digits), else 0, in ns."""
    if ts_ms:
        time_ns = ts_ms * MILLISECOND_NS
    elif isinstance(ts, int):
        time_ns = ts * _SECOND_NS
    else:
        time_ns = rfc3339_ns(ts) if ts else 0
    return time_ns if 0 <= time_ns <= _INT64_MAX else 0


def rfc3339_ns(text: str) -> int:
    """An RFC 3339 UTC time as ns since the epoch, exactly; 0 if it is not one."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or len(fraction) > 9 or (fraction and not fraction.isdigit()):
        return 0
    try:
        moment = datetime.fromisoformat(whole)
        if moment.tzinfo is not None:
            return 0
        seconds = int(moment.replace(tzinfo=UTC).timestamp())
        return seconds * _SECOND_NS + int(fraction.ljust(9, "0"))
    except ValueError:
        return 0


class SidePrices(dict[str, int]):
    """Price texts of one side as YES prices in 1e-4 dollar, remembered: `prices[text]`.

    Bounded by `FIXEDPOINT_CACHE_ENTRIES`; when full it is emptied. Raises `FixedPointError` for a text that is
    malformed, inexact or not strictly between 0 and 1 dollar.
    """

    def __init__(self, *, flip: bool) -> None:
        super().__init__()
        self._flip = flip

    def __missing__(self, text: str) -> int:
        price_e4 = parse_price_e4(text)
        if not 0 < price_e4 < PRICE_E4_MAX:
            raise FixedPointError(f"price {text} is not between 0 and 1 dollar")
        if self._flip:
            price_e4 = PRICE_E4_MAX - price_e4
        if len(self) >= FIXEDPOINT_CACHE_ENTRIES:
            self.clear()
        self[text] = price_e4
        return price_e4


class Normaliser:
    """Applies exchange bodies of one price convention to the plant.

    `sides` is what the hot path of deltas looks up: `"yes"` or `"no"` -> (side, prices of that side).
    """

    def __init__(self, plant: Plant, *, use_yes_price: bool) -> None:
        self._plant = plant
        yes, no = SidePrices(flip=False), SidePrices(flip=not use_yes_price)
        self.sides: dict[str, tuple[int, SidePrices]] = {
            "yes": (int(Side.BID), yes),
            "no": (int(Side.ASK), no),
        }

    def apply_snapshot(self, entry: BookEntry, body: SnapshotBody) -> None:
        """One `orderbook_snapshot`; an absent side is empty. Raises `FixedPointError`."""
        bids = _levels(body.yes_dollars_fp, self.sides["yes"][1])
        asks = _levels(body.no_dollars_fp, self.sides["no"][1])
        self._plant.apply_snapshot(entry, bids, asks)

    def publish_trade(self, body: TradeBody) -> None:
        """One `trade`. Raises `FixedPointError`, also where the taker's side is missing."""
        taker = body.taker_outcome_side or body.taker_side
        if taker is None:
            raise FixedPointError("trade without taker_outcome_side and taker_side")
        price_e4 = PRICE_TEXTS[body.yes_price_dollars]
        size_e2 = SIZE_TEXTS[body.count_fp]
        if not 0 <= price_e4 <= PRICE_E4_MAX or not 0 <= size_e2 <= SIZE_E2_MAX:
            raise FixedPointError(
                f"trade of {body.count_fp} at {body.yes_price_dollars} is out of range"
            )
        if price_e4 + parse_price_e4(body.no_price_dollars) != PRICE_E4_MAX:
            raise FixedPointError(
                f"trade prices {body.yes_price_dollars} and {body.no_price_dollars} do not add to 1"
            )
        self._plant.publish_trade(
            body.market_ticker,
            event_time_ns(body.ts_ms, body.ts),
            body.trade_id,
            price_e4,
            size_e2,
            Side.BID if taker == "yes" else Side.ASK,
            body.is_block_trade,
        )

    def publish_ticker(self, body: TickerBody) -> None:
        """One `ticker`; an empty last price means never traded. Raises `FixedPointError`."""
        prices_e4 = [
            parse_price_e4(text) if text else 0
            for text in (body.price_dollars, body.yes_bid_dollars, body.yes_ask_dollars)
        ]
        sizes_e2 = [
            SIZE_TEXTS[text]
            for text in (
                body.yes_bid_size_fp,
                body.yes_ask_size_fp,
                body.volume_fp,
                body.open_interest_fp,
                body.last_trade_size_fp,
            )
        ]
        dollars = (body.dollar_volume, body.dollar_open_interest)
        if (
            not all(0 <= price_e4 <= PRICE_E4_MAX for price_e4 in prices_e4)
            or not all(0 <= size_e2 <= SIZE_E2_MAX for size_e2 in sizes_e2)
            or not all(abs(amount) <= SIZE_E2_MAX for amount in dollars)
        ):
            raise FixedPointError(f"ticker of {body.market_ticker!r:.60} is out of range")
        last_e4, bid_e4, ask_e4 = prices_e4
        bid_size_e2, ask_size_e2, volume_e2, open_interest_e2, last_size_e2 = sizes_e2
        # With no offer the exchange writes ask 1.0000 of size 0; on our streams an absent side is 0, 0.
        self._plant.publish_ticker(
            body.market_ticker,
            event_time_ns(body.ts_ms, body.ts),
            last_e4,
            bid_e4 if bid_size_e2 else 0,
            bid_size_e2,
            ask_e4 if ask_size_e2 else 0,
            ask_size_e2,
            volume_e2,
            open_interest_e2,
            last_size_e2,
            *dollars,
        )


def _levels(levels: Levels, prices: SidePrices) -> list[Level]:
    parsed: dict[int, int] = {}
    for price_text, size_text in levels:
        price_e4, size_e2 = prices[price_text], SIZE_TEXTS[size_text]
        if not 0 <= size_e2 <= SIZE_E2_MAX:
            raise FixedPointError(f"level {price_text} of {size_text} is out of range")
        if price_e4 in parsed:
            raise FixedPointError(f"level {price_text} stands twice in one snapshot")
        parsed[price_e4] = size_e2
    return [level for level in parsed.items() if level[1]]
