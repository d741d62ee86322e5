"""Messages and events of a subscriber as lines of text or JSON."""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import msgspec

from tickerplant.core.fixedpoint import format_price_e4, format_size_e2
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    BookVerify,
    FeedPhase,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    MarketPhase,
    MarketState,
    Message,
    SessionStart,
    Side,
    StaleReason,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant_subscriber.event_log import describe, stream_name
from tickerplant_subscriber.events import Live, Stale
from tickerplant_subscriber.message_queue import Item

_TICKER_WIDTH = 34


def as_json(item: Item) -> str:
    """One JSON object: the fields of the wire, with `message` and `stream` or, for what happened to us, `event`."""
    if isinstance(item, Message):
        fields: dict[str, Any] = {
            "message": type(item).__name__,
            "stream": item.stream.name.lower(),
        }
    else:
        fields = {"event": type(item).__name__}
    return msgspec.json.encode(fields | msgspec.structs.asdict(item)).decode()


def as_text(item: Item) -> str:
    """Time of receipt by the plant (UTC), stream, ticker and what happened; events begin with ***."""
    if not isinstance(item, Message):
        return f"*** {_event_text(item)}"
    detail = _MESSAGE_TEXTS[type(item)](item)
    ticker = item.ticker or "-"
    return f"{time_text(item.ts_recv_ns)}  {item.stream.name.lower():<6}  {ticker:<{_TICKER_WIDTH}}  {detail}"


def time_text(time_ns: int) -> str:
    """Time of day in UTC with microseconds."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}.{nanoseconds // 1000:06d}"


def name_of(kind: type[IntEnum], value: int) -> str:
    """The member's name in lower case, or the number of one this version does not know."""
    try:
        return kind(value).name.lower()
    except ValueError:
        return str(value)


def quote_text(price_e4: int, size_e2: int) -> str:
    """`0.4200 x 10.00`, or `-` for an absent side."""
    return f"{format_price_e4(price_e4)} x {format_size_e2(size_e2)}" if size_e2 else "-"


def _event_text(event: Any) -> str:
    if isinstance(event, Stale):
        reason = name_of(StaleReason, event.reason)
        return f"stale: {event.ticker} on {stream_name(event.stream)}, {reason}"
    if isinstance(event, Live):
        return f"live: {event.ticker} on {stream_name(event.stream)}"
    return describe(event)


def _trade(trade: Trade) -> str:
    taker = "bought yes" if trade.taker_side == Side.BID else "bought no"
    block = ", block" if trade.is_block else ""
    return f"{quote_text(trade.price_e4, trade.size_e2)}, taker {taker}{block}"


def _bbo(bbo: Bbo) -> str:
    state = "" if bbo.state == BookState.LIVE else f"  {name_of(BookState, bbo.state)}"
    bid = quote_text(bbo.bid_e4, bbo.bid_size_e2)
    return f"{bid}  |  {quote_text(bbo.ask_e4, bbo.ask_size_e2)}{state}"


def _ticker(ticker: Ticker) -> str:
    last = format_price_e4(ticker.last_e4) if ticker.last_e4 else "-"
    volume, interest = format_size_e2(ticker.volume_e2), format_size_e2(ticker.open_interest_e2)
    return f"last {last}, volume {volume}, open interest {interest}"


def _level(update: LevelUpdate) -> str:
    side = name_of(Side, update.side)
    sign = "+" if update.delta_e2 > 0 else ""
    cause = (
        "" if update.cause == UpdateCause.EXCHANGE else f", {name_of(UpdateCause, update.cause)}"
    )
    delta, size = format_size_e2(update.delta_e2), format_size_e2(update.size_e2)
    return f"{side} {format_price_e4(update.price_e4)} {sign}{delta} -> {size}{cause}"


def _levels(levels: BookLevels) -> str:
    count = f"{len(levels.bids)} bids, {len(levels.asks)} asks"
    return f"image part {levels.part + 1} of {levels.parts}: {count}"


def _upstream_gap(gap: UpstreamGap) -> str:
    span = f"{time_text(gap.from_ns)} to {time_text(gap.to_ns)}"
    stream = stream_name(gap.on_stream)
    return f"lost before the plant on {stream}: {span}, {name_of(GapCause, gap.cause)}"


def _market_info(info: MarketInfo) -> str:
    closes = datetime.fromtimestamp(info.close_ns // 1_000_000_000, UTC) if info.close_ns else "-"
    return f"event {info.event_ticker}, prices {info.price_level_structure}, closes {closes}"


def _market_state(state: MarketState) -> str:
    result = f", result {state.result}" if state.result else ""
    settlement = (
        "" if state.settlement_e4 < 0 else f", settled at {format_price_e4(state.settlement_e4)}"
    )
    return f"market {name_of(MarketPhase, state.phase)}{result}{settlement}"


_MESSAGE_TEXTS: dict[type[AnyMessage], Callable[[Any], str]] = {
    Trade: _trade,
    UpstreamGap: _upstream_gap,
    Bbo: _bbo,
    Ticker: _ticker,
    LevelUpdate: _level,
    BookStale: lambda message: f"book stale: {name_of(StaleReason, message.reason)}",
    BookClear: lambda _message: "book cleared",
    BookLevels: _levels,
    BookReady: lambda message: f"book ready, checksum {message.checksum:08x}",
    BookVerify: lambda message: f"book checksum {message.checksum:08x}",
    SessionStart: lambda message: f"session starts, previous {message.previous_session or 'none'}",
    MarketInfo: _market_info,
    MarketState: _market_state,
    FeedState: lambda message: f"feed {name_of(FeedPhase, message.phase)} {message.cause}".rstrip(),
}
