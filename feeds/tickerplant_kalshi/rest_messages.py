"""Bodies of the Kalshi REST API (v2, late 2026) as typed structs; wire vocabulary stops here.

Fields that the plant acts on are required, so that a renamed field is loud; everything else has a default and unknown
keys are ignored. Enumerations are plain text (they grow without notice) and arrays may be null. Prices are dollar
strings, sizes count strings, times RFC 3339. Source: the official TypeScript SDK 3.30.0.
"""

import msgspec

from tickerplant.limits import REST_ERROR_TEXT_MAX_CHARACTERS
from tickerplant_kalshi.messages import Levels, PriceRange

Strike = float | int | str | None


class RestMarket(msgspec.Struct, frozen=True):
    """A market; REST gives no series, which is found through the event. A combo has `mve_collection_ticker`."""

    ticker: str
    event_ticker: str
    status: str
    open_time: str
    close_time: str
    result: str
    price_level_structure: str
    price_ranges: tuple[PriceRange, ...] | None
    market_type: str = ""
    title: str = ""
    yes_sub_title: str = ""
    no_sub_title: str = ""
    created_time: str = ""
    updated_time: str = ""
    latest_expiration_time: str = ""
    expected_expiration_time: str | None = None
    settlement_timer_seconds: int = 0
    yes_bid_dollars: str = ""
    yes_bid_size_fp: str = ""
    yes_ask_dollars: str = ""
    yes_ask_size_fp: str = ""
    last_price_dollars: str = ""
    volume_fp: str = ""
    volume_24h_fp: str = ""
    open_interest_fp: str = ""
    notional_value_dollars: str = ""
    can_close_early: bool = False
    expiration_value: str = ""
    rules_primary: str = ""
    rules_secondary: str = ""
    settlement_value_dollars: str | None = None
    settlement_ts: str | None = None
    strike_type: str | None = None
    floor_strike: Strike = None
    cap_strike: Strike = None
    functional_strike: str | None = None
    mve_collection_ticker: str | None = None
    is_provisional: bool | None = None
    exchange_index: int | None = None


class RestEvent(msgspec.Struct, frozen=True):
    """An event: the only place that names the series of its markets. `markets` only if asked nested."""

    event_ticker: str
    series_ticker: str
    title: str = ""
    sub_title: str = ""
    collateral_return_type: str = ""
    mutually_exclusive: bool = False
    strike_date: str | None = None
    strike_period: str | None = None
    last_updated_ts: str | None = None
    fee_type_override: str | None = None
    fee_multiplier_override: float | int | None = None
    exchange_index: int | None = None
    markets: tuple[RestMarket, ...] | None = None


class RestSeries(msgspec.Struct, frozen=True):
    """A series."""

    ticker: str
    title: str = ""
    frequency: str = ""
    category: str = ""
    categories: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    contract_url: str = ""
    contract_terms_url: str = ""
    fee_type: str = ""
    fee_multiplier: float | int | None = None
    additional_prohibitions: tuple[str, ...] | None = None
    last_updated_ts: str | None = None
    exchange_index: int | None = None


class RestTrade(msgspec.Struct, frozen=True):
    """A trade; `trade_id` is that of the WebSocket. A block trade did not touch the book."""

    trade_id: str
    ticker: str
    count_fp: str
    yes_price_dollars: str
    no_price_dollars: str
    created_time: str
    taker_outcome_side: str | None = None
    taker_book_side: str | None = None
    taker_side: str | None = None
    is_block_trade: bool = False


class RestLevels(msgspec.Struct, frozen=True):
    """(price, size) pairs of both bid books, NO levels in NO prices, in no order to rely on."""

    yes_dollars: Levels | None = None
    no_dollars: Levels | None = None


class RestOrderbook(msgspec.Struct, frozen=True):
    """One book of `/markets/orderbooks`; `orderbook` is what an empty book was seen to have on demo.

    It has neither sequence nor time and cannot be stitched to the deltas of the WebSocket.
    """

    ticker: str
    orderbook_fp: RestLevels | None = None
    orderbook: RestLevels | None = None

    @property
    def levels(self) -> RestLevels:
        """The levels under whichever key they came."""
        return self.orderbook_fp or self.orderbook or RestLevels()


class ExchangeShardStatus(msgspec.Struct, frozen=True):
    """Status of one matching engine."""

    exchange_index: int
    exchange_active: bool
    trading_active: bool
    description: str = ""


class ExchangeStatus(msgspec.Struct, frozen=True):
    """`/exchange/status`; the top-level flags are those of shard 0."""

    exchange_active: bool
    trading_active: bool
    exchange_estimated_resume_time: str | None = None
    exchange_index_statuses: tuple[ExchangeShardStatus, ...] | None = None


class RateLimit(msgspec.Struct, frozen=True):
    """A token bucket: tokens per second and tokens at most."""

    refill_rate: float | int
    bucket_capacity: float | int


class AccountLimits(msgspec.Struct, frozen=True):
    """`/account/limits`; a read costs 10 tokens by default."""

    usage_tier: str
    read: RateLimit
    write: RateLimit | None = None


class MarketsPage(msgspec.Struct, frozen=True):
    """A page of `/markets`; an empty or null cursor is the last."""

    markets: tuple[RestMarket, ...] | None
    cursor: str | None = None


class EventsPage(msgspec.Struct, frozen=True):
    """A page of `/events`, which leaves combos out, or of `/events/multivariate`."""

    events: tuple[RestEvent, ...] | None
    cursor: str | None = None


class SeriesPage(msgspec.Struct, frozen=True):
    """`/series`; the schema has no cursor, one is followed if it appears."""

    series: tuple[RestSeries, ...] | None
    cursor: str | None = None


class TradesPage(msgspec.Struct, frozen=True):
    """A page of `/markets/trades`, newest first."""

    trades: tuple[RestTrade, ...] | None
    cursor: str | None = None


class OrderbooksBody(msgspec.Struct, frozen=True):
    """`/markets/orderbooks`."""

    orderbooks: tuple[RestOrderbook, ...] | None


class MarketBody(msgspec.Struct, frozen=True):
    """`/markets/{ticker}`."""

    market: RestMarket


class EventBody(msgspec.Struct, frozen=True):
    """`/events/{event_ticker}`; the `markets` beside it, a deprecated twin of the nested ones, are skipped."""

    event: RestEvent


class OneSeriesBody(msgspec.Struct, frozen=True):
    """`/series/{series_ticker}`."""

    series: RestSeries


class ErrorDetail(msgspec.Struct, frozen=True):
    """What an error body says, whichever shape it has; fields that it lacks are empty."""

    code: str = ""
    message: str = ""
    details: str = ""

    def __str__(self) -> str:
        """One printable, bounded line."""
        text = ": ".join(part for part in (self.code, self.message, self.details) if part)
        printable = "".join(character if character.isprintable() else " " for character in text)
        return printable[:REST_ERROR_TEXT_MAX_CHARACTERS] or "no explanation"


def parse_error_body(body: bytes) -> ErrorDetail:
    """The error in `body`, never raising. Shapes: `{"error":{...}}`, flat, `{"msg"}`, `{"error":"text"}`."""
    try:
        outer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorDetail(message=body[:REST_ERROR_TEXT_MAX_CHARACTERS].decode(errors="replace"))
    if not isinstance(outer, dict):
        return ErrorDetail()
    nested = outer.get("error")
    fields = nested if isinstance(nested, dict) else outer
    message = fields.get("message") or fields.get("msg")
    if message is None and isinstance(nested, str):
        message = nested
    return ErrorDetail(_text(fields.get("code")), _text(message), _text(fields.get("details")))


def _text(value: object) -> str:
    return "" if value is None else str(value)[:REST_ERROR_TEXT_MAX_CHARACTERS]
