"""Markets, events, series, books and trades as REST writes them. Source: Kalshi TypeScript SDK 3.30."""

from typing import Any

from tickerplant.core.fixedpoint import format_price_e4, format_size_e2
from tickerplant.limits import PRICE_E4_MAX
from tickerplant_kalshi_sim.book import SIDE_NAMES
from tickerplant_kalshi_sim.exchange import Levels, Venue
from tickerplant_kalshi_sim.frames import (
    BOOK_SIDE_NAMES,
    NANOSECONDS,
    PRICE_TEXT,
    StampClock,
    TradeRecord,
    price_ranges,
    rfc3339,
)
from tickerplant_kalshi_sim.markets import Event, Market, Series

Json = dict[str, Any]


def market_object(market: Market, levels: Levels) -> Json:
    """A market; optional keys that have no value are left out."""
    yes_levels, no_levels = levels
    bid_e4, no_bid_e4 = max(yes_levels, default=0), max(no_levels, default=0)
    ask_e4 = PRICE_E4_MAX - no_bid_e4
    last = PRICE_TEXT[market.last_price_e4]
    row: Json = {
        "ticker": market.ticker,
        "event_ticker": market.event.ticker,
        "market_type": "scalar" if market.result == "scalar" else "binary",
        "title": market.event.title,
        "yes_sub_title": market.yes_sub_title,
        "no_sub_title": market.no_sub_title,
        "created_time": rfc3339(market.created_ns),
        "updated_time": rfc3339(market.updated_ns),
        "open_time": rfc3339(market.open_ns),
        "close_time": rfc3339(market.close_ns),
        "latest_expiration_time": rfc3339(market.close_ns + 7 * 86_400 * NANOSECONDS),
        "settlement_timer_seconds": market.settlement_timer_s,
        "status": market.status,
        "yes_bid_dollars": PRICE_TEXT[bid_e4],
        "yes_bid_size_fp": format_size_e2(yes_levels.get(bid_e4, 0)),
        "yes_ask_dollars": PRICE_TEXT[ask_e4],
        "yes_ask_size_fp": format_size_e2(no_levels.get(no_bid_e4, 0)),
        "no_bid_dollars": PRICE_TEXT[no_bid_e4],
        "no_ask_dollars": PRICE_TEXT[PRICE_E4_MAX - bid_e4],
        "last_price_dollars": last,
        "previous_yes_bid_dollars": PRICE_TEXT[bid_e4],
        "previous_yes_ask_dollars": PRICE_TEXT[ask_e4],
        "previous_price_dollars": last,
        "volume_fp": format_size_e2(market.volume_e2),
        "volume_24h_fp": format_size_e2(market.volume_e2),
        "open_interest_fp": format_size_e2(market.open_interest_e2),
        "notional_value_dollars": format_price_e4(PRICE_E4_MAX),
        "result": market.result,
        "can_close_early": True,
        "expiration_value": "",
        "rules_primary": f"Resolves to Yes when {market.yes_sub_title}.",
        "rules_secondary": "",
        "price_level_structure": market.structure,
        "price_ranges": price_ranges(market.bands),
        "strike_type": market.strike_type,
        "floor_strike": market.floor_strike,
        "exchange_index": market.event.series.exchange_index,
    }
    return row | _optional_market_fields(market)


def _optional_market_fields(market: Market) -> Json:
    row: Json = {}
    if market.cap_strike is not None:
        row["cap_strike"] = market.cap_strike
    if market.settlement_value_e4 is not None:
        row["settlement_value_dollars"] = format_price_e4(market.settlement_value_e4)
    if market.settled_ns:
        row["settlement_ts"] = rfc3339(market.settled_ns)
    if market.event.is_multivariate:
        row["mve_collection_ticker"] = f"{market.event.series.ticker}-R"
        row["mve_selected_legs"] = []
    return row


def event_object(event: Event, venue: Venue, *, with_markets: bool) -> Json:
    """An event, with its markets if asked for."""
    row: Json = {
        "event_ticker": event.ticker,
        "series_ticker": event.series.ticker,
        "title": event.title,
        "sub_title": event.subtitle,
        "collateral_return_type": "MECNET",
        "mutually_exclusive": False,
        "settlement_sources": [],
        "strike_date": rfc3339(event.strike_ns),
        "last_updated_ts": rfc3339(event.updated_ns),
        "exchange_index": event.series.exchange_index,
    }
    if event.fee_type_override is not None:
        row["fee_type_override"] = event.fee_type_override
        row["fee_multiplier_override"] = event.fee_multiplier_override
    if with_markets:
        row["markets"] = [
            market_object(market, venue.levels(market.ticker))
            for market in venue.catalogue.markets_of(event)
        ]
    return row


def series_object(series: Series) -> Json:
    """A series; array fields may be null, as on the exchange."""
    return {
        "ticker": series.ticker,
        "frequency": "daily",
        "title": series.title,
        "category": series.category,
        "categories": [series.category],
        "tags": None,
        "settlement_sources": [],
        "contract_url": "",
        "contract_terms_url": "",
        "fee_type": "quadratic",
        "fee_multiplier": 1,
        "additional_prohibitions": None,
        "exchange_index": series.exchange_index,
    }


def orderbook_object(levels: Levels, depth: int) -> Json:
    """`orderbook_fp`: bids of both sides, best last; `depth` 0 means all levels."""
    yes_levels, no_levels = levels
    return {"yes_dollars": _rows(yes_levels, depth), "no_dollars": _rows(no_levels, depth)}


def _rows(levels: dict[int, int], depth: int) -> list[list[str]]:
    ordered = sorted(levels.items())[-depth:]
    return [[PRICE_TEXT[price_e4], format_size_e2(size_e2)] for price_e4, size_e2 in ordered]


def trade_object(trade: TradeRecord) -> Json:
    """A trade; the same id as on the WebSocket."""
    side = SIDE_NAMES[trade.taker_side]
    return {
        "trade_id": trade.trade_id,
        "ticker": trade.ticker,
        "count_fp": format_size_e2(trade.size_e2),
        "yes_price_dollars": PRICE_TEXT[trade.yes_price_e4],
        "no_price_dollars": PRICE_TEXT[PRICE_E4_MAX - trade.yes_price_e4],
        "taker_side": side,
        "taker_outcome_side": side,
        "taker_book_side": BOOK_SIDE_NAMES[trade.taker_side],
        "created_time": StampClock().stamp(trade.created_ns).text,
        "is_block_trade": trade.is_block,
    }
