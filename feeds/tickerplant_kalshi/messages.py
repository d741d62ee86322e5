"""Frames of the Kalshi WebSocket (API of late 2026) as typed structs; wire vocabulary stops here.

Only the fields that a market-data client needs are declared; unknown keys are ignored. Required fields are those of
the official AsyncAPI, so that a renamed field is loud. The fields of the format before 2026-03-12 (`price`, `delta`,
`count`, `yes`, ... as integers) are recognised by `obsolete_fields`.
"""

from typing import Annotated, Literal

import msgspec

BookSide = Literal["yes", "no"]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=2**43)]
"""Unix time in ms, to the year 2248; a value beyond it makes a frame unusable."""
Ordinal = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A `sid`, `seq` or `id`; a frame with another number is unreadable."""
Levels = tuple[tuple[str, str], ...]


class SnapshotBody(msgspec.Struct, gc=False, frozen=True):
    """`orderbook_snapshot.msg`: (price, size) pairs per side; an empty side is an absent key."""

    market_ticker: str
    yes_dollars_fp: Levels = ()
    no_dollars_fp: Levels = ()


class DeltaBody(msgspec.Struct, gc=False, frozen=True):
    """`orderbook_delta.msg`: `delta_fp` is a signed change. `ts`, the deprecated twin of `ts_ms`: `delta_ts`."""

    market_ticker: str
    price_dollars: str
    delta_fp: str
    side: BookSide
    ts_ms: Milliseconds = 0


class TickerBody(msgspec.Struct, gc=False, frozen=True):
    """`ticker.msg`; `price_dollars` is empty or zero for a market never traded."""

    market_ticker: str
    price_dollars: str
    yes_bid_dollars: str
    yes_ask_dollars: str
    volume_fp: str
    open_interest_fp: str
    dollar_volume: int
    dollar_open_interest: int
    yes_bid_size_fp: str
    yes_ask_size_fp: str
    last_trade_size_fp: str
    ts_ms: Milliseconds = 0
    ts: str | int | None = None


class TradeBody(msgspec.Struct, gc=False, frozen=True):
    """`trade.msg`; `taker_outcome_side` is canonical since 2026-05-06, `taker_side` its deprecated twin."""

    trade_id: str
    market_ticker: str
    yes_price_dollars: str
    no_price_dollars: str
    count_fp: str
    taker_outcome_side: BookSide | None = None
    taker_side: BookSide | None = None
    is_block_trade: bool = False
    ts_ms: Milliseconds = 0
    ts: str | int | None = None


class PriceRange(msgspec.Struct, frozen=True):
    """One band of valid prices, in dollars: from `start` to `end` in steps of `step`."""

    start: str
    end: str
    step: str


class AdditionalMetadata(msgspec.Struct, frozen=True):
    """`additional_metadata` of a created market; the long texts are left to REST."""

    event_ticker: str = ""
    title: str = ""
    yes_sub_title: str = ""
    strike_type: str = ""
    floor_strike: float | int | str | None = None
    cap_strike: float | int | str | None = None


class LifecycleBody(msgspec.Struct, frozen=True):
    """`market_lifecycle_v2.msg` and `multivariate_market_lifecycle.msg`; all `*_ts` are in seconds."""

    event_type: str
    market_ticker: str
    exchange_index: int = 0
    open_ts: int | None = None
    close_ts: int | None = None
    price_level_structure: str | None = None
    price_ranges: tuple[PriceRange, ...] | None = None
    additional_metadata: AdditionalMetadata | None = None
    is_deactivated: bool | None = None
    determination_ts: int | None = None
    result: str | None = None
    settlement_value: str | None = None
    settled_ts: int | None = None
    strike_type: str | None = None
    floor_strike: float | int | str | None = None
    cap_strike: float | int | str | None = None
    yes_sub_title: str | None = None


class EventBody(msgspec.Struct, frozen=True):
    """`event_lifecycle.msg`."""

    event_ticker: str
    series_ticker: str = ""
    title: str = ""
    subtitle: str = ""
    exchange_index: int = 0


class EventFeeBody(msgspec.Struct, frozen=True):
    """`event_fee_update.msg`."""

    event_ticker: str
    fee_type_override: str | None = None
    fee_multiplier_override: float | int | None = None


class SubscribedBody(msgspec.Struct, frozen=True):
    """`subscribed.msg`: the sid is nested here, and nowhere at the top."""

    channel: str
    sid: Ordinal


class ErrorBody(msgspec.Struct, frozen=True):
    """`error.msg`; codes 10 and 25 end the subscription of the frame's sid."""

    code: int
    msg: str = ""
    market_ticker: str | None = None
    market_tickers: tuple[str, ...] | None = None


class OrderbookDelta(msgspec.Struct, tag="orderbook_delta", gc=False, frozen=True):
    """A signed change of one level."""

    sid: Ordinal
    seq: Ordinal
    msg: DeltaBody


class OrderbookSnapshot(msgspec.Struct, tag="orderbook_snapshot", gc=False, frozen=True):
    """A whole book; `id` echoes a `get_snapshot` command."""

    sid: Ordinal
    seq: Ordinal
    msg: SnapshotBody
    id: Ordinal = 0


class TickerFrame(msgspec.Struct, tag="ticker", gc=False, frozen=True):
    """The ticker channel carries no `seq`."""

    sid: Ordinal
    msg: TickerBody


class TradeFrame(msgspec.Struct, tag="trade", gc=False, frozen=True):
    """A trade."""

    sid: Ordinal
    seq: Ordinal
    msg: TradeBody


class MarketLifecycle(msgspec.Struct, tag="market_lifecycle_v2", frozen=True):
    """Lifecycle of a market, combos excluded."""

    sid: Ordinal
    seq: Ordinal
    msg: LifecycleBody


class MultivariateLifecycle(msgspec.Struct, tag="multivariate_market_lifecycle", frozen=True):
    """Lifecycle of a combo market (`KXMVE*`)."""

    sid: Ordinal
    seq: Ordinal
    msg: LifecycleBody


class EventLifecycle(msgspec.Struct, tag="event_lifecycle", frozen=True):
    """A new or changed event; the only frame that names the series."""

    sid: Ordinal
    seq: Ordinal
    msg: EventBody


class EventFeeUpdate(msgspec.Struct, tag="event_fee_update", frozen=True):
    """Fees of an event changed."""

    sid: Ordinal
    seq: Ordinal
    msg: EventFeeBody


class Subscribed(msgspec.Struct, tag="subscribed", frozen=True):
    """Reply to `subscribe`, one per channel."""

    msg: SubscribedBody
    id: Ordinal = 0


class Unsubscribed(msgspec.Struct, tag="unsubscribed", frozen=True):
    """Reply to `unsubscribe`; carries a number of the sid's sequence."""

    sid: Ordinal
    seq: Ordinal
    id: Ordinal = 0


class Ok(msgspec.Struct, tag="ok", frozen=True):
    """Reply to `update_subscription` (object `msg`), merging `subscribe`, or `list_subscriptions` (array `msg`)."""

    id: Ordinal = 0
    sid: Ordinal = 0
    seq: Ordinal = 0
    msg: msgspec.Raw = msgspec.Raw(b"null")


class ErrorFrame(msgspec.Struct, tag="error", frozen=True):
    """A refused command, or the end of a subscription."""

    msg: ErrorBody
    id: Ordinal = 0
    sid: Ordinal = 0
    seq: Ordinal = 0


Frame = (
    OrderbookDelta
    | OrderbookSnapshot
    | TickerFrame
    | TradeFrame
    | MarketLifecycle
    | MultivariateLifecycle
    | EventLifecycle
    | EventFeeUpdate
    | Subscribed
    | Unsubscribed
    | Ok
    | ErrorFrame
)
"""Frames that the plant acts on; every other type is counted by name (its `seq` too)."""


class FrameEnvelope(msgspec.Struct, frozen=True):
    """What can be read of a frame whose type or body is not understood."""

    type: str = ""
    sid: Ordinal = 0
    seq: Ordinal = 0
    id: Ordinal = 0
    msg: msgspec.Raw = msgspec.Raw(b"null")


class MarketTickerOnly(msgspec.Struct, frozen=True):
    """The market of a frame whose body is otherwise unusable."""

    market_ticker: str = ""


class TimeTextBody(msgspec.Struct, frozen=True):
    """`msg.ts` alone."""

    ts: str | int | None = None


class TimeTextFrame(msgspec.Struct, frozen=True):
    """A frame of which only `msg.ts` matters."""

    msg: TimeTextBody


class SubscriptionListing(msgspec.Struct, frozen=True):
    """One row of the reply to `list_subscriptions`."""

    channel: str
    sid: Ordinal


FRAME_DECODER = msgspec.json.Decoder(Frame)
ENVELOPE_DECODER = msgspec.json.Decoder(FrameEnvelope)
MARKET_TICKER_DECODER = msgspec.json.Decoder(MarketTickerOnly)
TIME_TEXT_DECODER = msgspec.json.Decoder(TimeTextFrame)
LISTING_DECODER = msgspec.json.Decoder(list[SubscriptionListing])


class CommandParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Parameters of the commands that a market-data client sends."""

    channels: list[str] | None = None
    market_tickers: list[str] | None = None
    sids: list[int] | None = None
    action: str | None = None
    use_yes_price: bool | None = None
    skip_ticker_ack: bool | None = None
    send_initial_snapshot: bool | None = None


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command; `id` counts from 1 per connection (0 would mean "no id")."""

    id: int
    cmd: str
    params: CommandParams | None = None


OBSOLETE_FIELDS = frozenset(
    {
        "price",
        "delta",
        "yes",
        "no",
        "yes_dollars",
        "no_dollars",
        "yes_price",
        "no_price",
        "count",
        "yes_bid",
        "yes_ask",
    }
)
"""Keys of `msg` that only the format before 2026-03-12 had."""


def obsolete_fields(body: bytes | msgspec.Raw) -> list[str]:
    """Names of keys in the JSON object `body` that only the format before 2026-03-12 had; empty if none."""
    try:
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return sorted(OBSOLETE_FIELDS.intersection(keys))


def delta_ts(frame: bytes) -> str | int | None:
    """`msg.ts` of a decodable `orderbook_delta`: read only where `ts_ms` is missing, because it costs every frame."""
    try:
        return TIME_TEXT_DECODER.decode(frame).msg.ts
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
