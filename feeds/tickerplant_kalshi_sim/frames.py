"""Frame bodies as bytes, built once and shared by every connection.

A frame on the wire is a head that belongs to the connection (`{"type":...,"sid":...,"seq":`), the sequence number,
and a body that does not (`,"msg":{...}}`). `Emission` carries the body; `subscriptions` puts head and number before it.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from tickerplant.core.fixedpoint import format_price_e4, format_scaled, format_size_e2
from tickerplant.limits import PRICE_E4_MAX
from tickerplant_kalshi_sim.book import NO, SIDE_NAMES, OrderBook
from tickerplant_kalshi_sim.markets import Event, Market, PriceBand

PRICE_TEXT = tuple(format_price_e4(price_e4) for price_e4 in range(PRICE_E4_MAX + 1))
"""Dollars as the exchange writes them, by price in 1e-4 dollar."""
UNSEQUENCED_TYPES = frozenset({"ticker", "fill", "market_position", "user_order"})
NANOSECONDS = 1_000_000_000


class Emission(msgspec.Struct, frozen=True, gc=False):
    """One frame for every subscriber of `channel` that asked for `key`.

    `key` is what filters compare: a market ticker, an index id, or empty. `yes_body` is the body for subscribers with
    `use_yes_price`.
    """

    channel: str
    frame_type: str
    key: str
    body: bytes
    yes_body: bytes


def emission(channel: str, frame_type: str, key: str, body: bytes) -> Emission:
    """An emission whose body is the same under both price conventions."""
    return Emission(channel, frame_type, key, body, body)


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """One moment of the virtual clock: nanoseconds, milliseconds and RFC 3339 text."""

    ns: int
    ms: int
    text: str


class StampClock:
    """Makes stamps; remembers the text of the current second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def stamp(self, now_ns: int) -> Stamp:
        """The stamp of `now_ns`; the text has up to 6 fractional digits, trailing zeros trimmed."""
        second, rest_ns = divmod(now_ns, NANOSECONDS)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        fraction = f".{rest_ns // 1_000:06d}".rstrip("0").rstrip(".")
        return Stamp(now_ns, now_ns // 1_000_000, f"{self._text}{fraction}Z")


def rfc3339(time_ns: int) -> str:
    """Whole seconds of `time_ns` as REST writes times."""
    return datetime.fromtimestamp(time_ns // NANOSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_body(message: dict[str, Any]) -> bytes:
    """The body with `message` as `msg`."""
    return b',"msg":' + msgspec.json.encode(message) + b"}"


def delta_emission(
    market: Market, side: int, price_e4: int, delta_e2: int, stamp: Stamp
) -> Emission:
    """`orderbook_delta`: the size at a level of one side changed by `delta_e2`."""
    head = (
        f',"msg":{{"market_ticker":"{market.ticker}","market_id":"{market.market_id}"'
        ',"price_dollars":"'
    )
    tail = (
        f'","delta_fp":"{format_size_e2(delta_e2)}","side":"{SIDE_NAMES[side]}"'
        f',"ts":"{stamp.text}","ts_ms":{stamp.ms}}}}}'
    )
    body = f"{head}{PRICE_TEXT[price_e4]}{tail}".encode()
    yes_body = body
    if side == NO:
        yes_body = f"{head}{PRICE_TEXT[PRICE_E4_MAX - price_e4]}{tail}".encode()
    return Emission("orderbook_delta", "orderbook_delta", market.ticker, body, yes_body)


def snapshot_body(
    ticker: str,
    market_id: str,
    yes_levels: dict[int, int],
    no_levels: dict[int, int],
    *,
    use_yes_price: bool,
) -> bytes:
    """`orderbook_snapshot`: levels with the best last; an empty side is an absent key.

    `ticker` is what a client asked for, and may be any text.
    """
    name = msgspec.json.encode(ticker).decode()
    sides = ""
    if yes_levels:
        sides += f',"yes_dollars_fp":[{_level_list(sorted(yes_levels.items()))}]'
    if no_levels:
        levels: Iterable[tuple[int, int]] = sorted(no_levels.items())
        if use_yes_price:
            levels = ((PRICE_E4_MAX - price_e4, size_e2) for price_e4, size_e2 in levels)
        sides += f',"no_dollars_fp":[{_level_list(levels)}]'
    return f',"msg":{{"market_ticker":{name},"market_id":"{market_id}"{sides}}}}}'.encode()


def _level_list(levels: Iterable[tuple[int, int]]) -> str:
    return ",".join(
        f'["{PRICE_TEXT[price_e4]}","{format_size_e2(size_e2)}"]' for price_e4, size_e2 in levels
    )


def ticker_state(market: Market) -> tuple[int, ...]:
    """The fields of the ticker channel that a change of makes the exchange send one."""
    book: OrderBook = market.book
    yes_e4, no_e4 = book.best
    return (
        market.last_price_e4,
        yes_e4,
        PRICE_E4_MAX - no_e4,
        market.volume_e2,
        market.open_interest_e2,
        book.levels[0].get(yes_e4, 0),
        book.levels[1].get(no_e4, 0),
        market.last_size_e2,
    )


def ticker_body(market: Market, state: tuple[int, ...], stamp: Stamp) -> bytes:
    """`ticker`: amounts in whole dollars are integers, everything else is a string."""
    last_e4, bid_e4, ask_e4, volume_e2, interest_e2, bid_size_e2, ask_size_e2, last_size_e2 = state
    return (
        f',"msg":{{"market_id":"{market.market_id}","market_ticker":"{market.ticker}"'
        f',"price_dollars":"{PRICE_TEXT[last_e4]}","yes_bid_dollars":"{PRICE_TEXT[bid_e4]}"'
        f',"yes_ask_dollars":"{PRICE_TEXT[ask_e4]}","volume_fp":"{format_size_e2(volume_e2)}"'
        f',"open_interest_fp":"{format_size_e2(interest_e2)}"'
        f',"dollar_volume":{market.dollar_volume_e6 // 1_000_000}'
        f',"dollar_open_interest":{interest_e2 * last_e4 // 1_000_000}'
        f',"yes_bid_size_fp":"{format_size_e2(bid_size_e2)}"'
        f',"yes_ask_size_fp":"{format_size_e2(ask_size_e2)}"'
        f',"last_trade_size_fp":"{format_size_e2(last_size_e2)}"'
        f',"ts":{stamp.ms // 1_000},"ts_ms":{stamp.ms},"time":"{stamp.text}"}}}}'
    ).encode()


class TradeRecord(msgspec.Struct, frozen=True, gc=False):
    """A trade as kept for REST; `taker_side` is 0 for yes, 1 for no."""

    number: int
    trade_id: str
    ticker: str
    yes_price_e4: int
    size_e2: int
    taker_side: int
    is_block: bool
    created_ns: int


def trade_body(trade: TradeRecord, stamp: Stamp) -> bytes:
    """`trade`: the two prices sum to one dollar."""
    side = SIDE_NAMES[trade.taker_side]
    return (
        f',"msg":{{"trade_id":"{trade.trade_id}","market_ticker":"{trade.ticker}"'
        f',"yes_price_dollars":"{PRICE_TEXT[trade.yes_price_e4]}"'
        f',"no_price_dollars":"{PRICE_TEXT[PRICE_E4_MAX - trade.yes_price_e4]}"'
        f',"count_fp":"{format_size_e2(trade.size_e2)}","taker_side":"{side}"'
        f',"taker_outcome_side":"{side}","taker_book_side":"{BOOK_SIDE_NAMES[trade.taker_side]}"'
        f',"is_block_trade":{"true" if trade.is_block else "false"}'
        f',"ts":{stamp.ms // 1_000},"ts_ms":{stamp.ms}}}}}'
    ).encode()


BOOK_SIDE_NAMES = ("bid", "ask")
"""`taker_book_side`: buying YES is a bid, buying NO an ask."""


def price_ranges(bands: Iterable[PriceBand]) -> list[dict[str, str]]:
    """`price_ranges` as REST and lifecycle frames write them."""
    return [
        {
            "start": format_price_e4(band.start_e4),
            "end": format_price_e4(band.end_e4),
            "step": format_price_e4(band.step_e4),
        }
        for band in bands
    ]


def lifecycle_channel(market_or_event: Market | Event) -> str:
    """The channel that announces changes of a market or event: combos have their own."""
    event = market_or_event.event if isinstance(market_or_event, Market) else market_or_event
    return "multivariate_market_lifecycle" if event.is_multivariate else "market_lifecycle_v2"


def lifecycle_emission(market: Market, event_type: str, **fields: object) -> Emission:
    """A lifecycle frame of `market`; on both channels the frame's type is the channel's name."""
    channel = lifecycle_channel(market)
    message = {"event_type": event_type, "market_ticker": market.ticker, **fields}
    return emission(channel, channel, market.ticker, json_body(message))


def created_emission(market: Market) -> Emission:
    """`created`; combos carry no `price_ranges`. All `*_ts` are in seconds."""
    fields: dict[str, object] = {
        "exchange_index": market.event.series.exchange_index,
        "open_ts": market.open_ns // NANOSECONDS,
        "close_ts": market.close_ns // NANOSECONDS,
        "price_level_structure": market.structure,
    }
    if not market.event.is_multivariate:
        fields["price_ranges"] = price_ranges(market.bands)
    fields["additional_metadata"] = {
        "name": market.yes_sub_title,
        "title": market.event.title,
        "yes_sub_title": market.yes_sub_title,
        "no_sub_title": market.no_sub_title,
        "rules_primary": f"Resolves to Yes when {market.yes_sub_title}.",
        "rules_secondary": "",
        "can_close_early": True,
        "event_ticker": market.event.ticker,
        "expected_expiration_ts": market.close_ns // NANOSECONDS + market.settlement_timer_s,
        "strike_type": market.strike_type,
        "floor_strike": market.floor_strike,
    }
    return lifecycle_emission(market, "created", **fields)


def event_emission(event: Event) -> Emission:
    """`event_lifecycle`: the only frame that names the series."""
    body = json_body(
        {
            "event_ticker": event.ticker,
            "exchange_index": event.series.exchange_index,
            "title": event.title,
            "subtitle": event.subtitle,
            "collateral_return_type": "MECNET",
            "series_ticker": event.series.ticker,
            "strike_date": event.strike_ns // NANOSECONDS,
        }
    )
    return emission(lifecycle_channel(event), "event_lifecycle", event.ticker, body)


def event_fee_emission(event: Event) -> Emission:
    """`event_fee_update`; null means that the override was cleared."""
    body = json_body(
        {
            "event_ticker": event.ticker,
            "fee_type_override": event.fee_type_override,
            "fee_multiplier_override": event.fee_multiplier_override,
        }
    )
    return emission("market_lifecycle_v2", "event_fee_update", event.ticker, body)


def dollars_e8(value_e8: int) -> str:
    """A reference price with 8 decimals."""
    return format_scaled(value_e8, 8)
