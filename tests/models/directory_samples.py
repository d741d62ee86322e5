"""Records, lifecycle frames and ways to look at changes, for the tests of the market directory."""

from typing import Any

from tickerplant.core.messages import MarketPhase
from tickerplant_kalshi.directory import (
    Change,
    MarketDirectory,
    MarketRecord,
    PhaseChanged,
    Selection,
    Subscribe,
    Unsubscribe,
)
from tickerplant_kalshi.messages import AdditionalMetadata, LifecycleBody

SECOND_NS = 1_000_000_000
NOW_NS = 1_795_000_000 * SECOND_NS
HOUR_NS = 3_600 * SECOND_NS
ALL_OPEN = Selection(all_open=True)


def record(ticker: str = "KXA-1-T1", **fields: Any) -> MarketRecord:
    known: dict[str, Any] = {
        "event_ticker": ticker.rpartition("-")[0],
        "series_ticker": ticker.partition("-")[0],
        "phase": MarketPhase.ACTIVE,
        "open_ns": NOW_NS - HOUR_NS,
        "close_ns": NOW_NS + HOUR_NS,
        "price_level_structure": "linear_cent",
        "price_bands": ((0, 10_000, 100),),
        "read_ns": NOW_NS,
    }
    return MarketRecord(ticker, **{**known, **fields})


def frame(event_type: str, ticker: str = "KXA-1-T1", **fields: Any) -> LifecycleBody:
    return LifecycleBody(event_type, ticker, **fields)


def created(ticker: str = "KXA-1-T1", *, open_in_s: int = 0, event: str = "KXA-1") -> LifecycleBody:
    now_s = NOW_NS // SECOND_NS
    return frame(
        "created",
        ticker,
        open_ts=now_s + open_in_s,
        close_ts=now_s + 3_600,
        price_level_structure="linear_cent",
        additional_metadata=AdditionalMetadata(event_ticker=event),
    )


def with_markets(selection: Selection, *records: MarketRecord, **options: Any) -> MarketDirectory:
    directory = MarketDirectory(selection, **options)
    directory.apply_markets(records, NOW_NS)
    return directory


def subscriptions(changes: list[Change]) -> list[str]:
    return [
        f"{'+' if isinstance(one, Subscribe) else '-'}{one.ticker}"
        for one in changes
        if isinstance(one, Subscribe | Unsubscribe)
    ]


def kinds(changes: list[Change]) -> list[str]:
    return [type(change).__name__ for change in changes]


def phases(changes: list[Change]) -> list[MarketPhase]:
    return [one.phase for one in changes if isinstance(one, PhaseChanged)]
