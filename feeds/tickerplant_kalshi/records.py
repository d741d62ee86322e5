"""What is known of one market, bounded, and how REST reads and lifecycle frames change it. Pure.

Texts that cannot be published whole are refused (left empty) and named in `MarketRecord.refused`, never cut into
something that looks right. Prices are in 1e-4 dollar, times in nanoseconds since the epoch.
"""

from decimal import Decimal, InvalidOperation

import msgspec

from tickerplant.core.fixedpoint import parse_price_e4
from tickerplant.core.messages import MarketInfo, MarketPhase
from tickerplant.errors import FixedPointError
from tickerplant.limits import (
    PRICE_BANDS_MAX,
    PRICE_E4_MAX,
    SHORT_TEXT_MAX_BYTES,
    TICKER_MAX_BYTES,
)
from tickerplant_kalshi.messages import LifecycleBody, PriceRange
from tickerplant_kalshi.normalise import rfc3339_ns
from tickerplant_kalshi.rest_messages import RestMarket, Strike

COMBO_PREFIX = "KXMVE"
FINISHED_PHASES = frozenset({MarketPhase.CLOSED, MarketPhase.DETERMINED, MarketPhase.SETTLED})
"""Phases in which a market no longer trades."""

PHASE_OF_STATUS = {
    "initialized": MarketPhase.INITIALIZED,
    "active": MarketPhase.ACTIVE,
    "inactive": MarketPhase.INACTIVE,
    "closed": MarketPhase.CLOSED,
    "determined": MarketPhase.DETERMINED,
    "disputed": MarketPhase.DETERMINED,
    "amended": MarketPhase.DETERMINED,
    "finalized": MarketPhase.SETTLED,
}
"""REST `status`; any other is UNKNOWN and the times decide."""

_SECOND_NS = 1_000_000_000
_TIME_MAX_NS = 2**63 - 1
_STRIKE_EXPONENT_MAX = SHORT_TEXT_MAX_BYTES
PriceBands = tuple[tuple[int, int, int], ...]


class MarketRecord(msgspec.Struct, frozen=True, gc=False):
    """One market; empty, 0 or -1 where unknown.

    `phase` is what the exchange last said; openings and closings are not announced, see `phase_at`. `price_bands`
    are at most 16 (start_e4, end_e4, step_e4). `read_ns` is when the REST request was sent, 0 if no read told it.
    `refused` names the fields that could not be held.
    """

    ticker: str
    event_ticker: str = ""
    series_ticker: str = ""
    phase: MarketPhase = MarketPhase.UNKNOWN
    open_ns: int = 0
    close_ns: int = 0
    price_level_structure: str = ""
    price_bands: PriceBands = ()
    strike_type: str = ""
    floor_strike: str = ""
    cap_strike: str = ""
    result: str = ""
    settlement_e4: int = -1
    combo: bool = False
    read_ns: int = 0
    refused: tuple[str, ...] = ()

    def info(self, g: int, ts_recv_ns: int) -> MarketInfo:
        """The message that publishes it; the bounds of its fields make it fit a datagram."""
        return MarketInfo(
            self.ticker,
            g,
            0,
            ts_recv_ns,
            self.event_ticker,
            self.series_ticker,
            self.open_ns,
            self.close_ns,
            self.price_level_structure,
            self.price_bands,
            self.strike_type,
            self.floor_strike,
            self.cap_strike,
        )


def record_from_rest(
    market: RestMarket, *, series_ticker: str = "", read_ns: int = 0
) -> MarketRecord:
    """The record of a market that REST told at `read_ns`."""
    refused: list[str] = []
    return MarketRecord(
        ticker=market.ticker,
        event_ticker=_ticker(market.event_ticker, "event_ticker", refused),
        series_ticker=_ticker(series_ticker, "series_ticker", refused),
        phase=PHASE_OF_STATUS.get(market.status, MarketPhase.UNKNOWN),
        open_ns=_rest_time_ns(market.open_time, "open_time", refused),
        close_ns=_rest_time_ns(market.close_time, "close_time", refused),
        price_level_structure=_short(
            market.price_level_structure, "price_level_structure", refused
        ),
        price_bands=_bands(market.price_ranges, refused),
        strike_type=_short(market.strike_type, "strike_type", refused),
        floor_strike=strike_text(market.floor_strike, "floor_strike", refused),
        cap_strike=strike_text(market.cap_strike, "cap_strike", refused),
        result=_short(market.result, "result", refused),
        settlement_e4=_settlement(market.settlement_value_dollars, refused),
        combo=bool(market.mve_collection_ticker) or market.ticker.startswith(COMBO_PREFIX),
        read_ns=read_ns,
        refused=tuple(refused),
    )


def record_from_created(body: LifecycleBody, *, combo: bool) -> MarketRecord:
    """The record of a market that a `created` frame announced; it names the event, not the series."""
    refused: list[str] = []
    metadata = body.additional_metadata
    return MarketRecord(
        ticker=body.market_ticker,
        event_ticker=_ticker(metadata.event_ticker, "event_ticker", refused) if metadata else "",
        phase=MarketPhase.INITIALIZED,
        open_ns=_seconds_ns(body.open_ts),
        close_ns=_seconds_ns(body.close_ts),
        price_level_structure=_short(body.price_level_structure, "price_level_structure", refused),
        price_bands=_bands(body.price_ranges, refused),
        strike_type=_short(metadata.strike_type if metadata else "", "strike_type", refused),
        floor_strike=strike_text(
            metadata.floor_strike if metadata else None, "floor_strike", refused
        ),
        cap_strike=strike_text(metadata.cap_strike if metadata else None, "cap_strike", refused),
        combo=combo or body.market_ticker.startswith(COMBO_PREFIX),
        refused=tuple(refused),
    )


def record_after_event(record: MarketRecord, body: LifecycleBody, now_ns: int) -> MarketRecord:
    """The record after a lifecycle frame other than `created`; unchanged for an event type that is unknown.

    `close_date_updated` into the future re-opens a finished market as INACTIVE until `activated` follows.
    """
    refused: list[str] = []
    changes: dict[str, object] = {}
    match body.event_type:
        case "activated":
            changes = {"phase": MarketPhase.ACTIVE, "result": "", "settlement_e4": -1}
        case "deactivated":
            changes = {"phase": MarketPhase.INACTIVE}
        case "close_date_updated":
            changes = _close_changes(record, _seconds_ns(body.close_ts), now_ns)
        case "determined" | "settled":
            settled = body.event_type == "settled" or record.phase is MarketPhase.SETTLED
            settlement_e4 = _settlement(body.settlement_value, refused)
            changes = {
                "phase": MarketPhase.SETTLED if settled else MarketPhase.DETERMINED,
                "result": _short(body.result, "result", refused) or record.result,
                "settlement_e4": settlement_e4 if settlement_e4 >= 0 else record.settlement_e4,
            }
        case "price_level_structure_updated":
            structure = _short(body.price_level_structure, "price_level_structure", refused)
            bands = _bands(body.price_ranges, refused)
            changes = {"price_level_structure": structure, "price_bands": bands}
        case "metadata_updated":
            changes = {
                "strike_type": _short(body.strike_type, "strike_type", refused)
                or record.strike_type,
                "floor_strike": strike_text(body.floor_strike, "floor_strike", refused)
                or record.floor_strike,
                "cap_strike": strike_text(body.cap_strike, "cap_strike", refused)
                or record.cap_strike,
            }
    return msgspec.structs.replace(record, **changes, refused=tuple(refused))


def record_after_read(record: MarketRecord, read: MarketRecord) -> MarketRecord:
    """The record after a newer REST read: what the read knows wins, what it lacks (and the event) stays."""
    structure = read.price_level_structure or record.price_level_structure
    bands = read.price_bands
    if not bands and structure == record.price_level_structure:
        bands = record.price_bands
    return msgspec.structs.replace(
        read,
        event_ticker=record.event_ticker or read.event_ticker,
        series_ticker=read.series_ticker or record.series_ticker,
        phase=read.phase or record.phase,
        open_ns=read.open_ns or record.open_ns,
        close_ns=read.close_ns or record.close_ns,
        price_level_structure=structure,
        price_bands=bands,
        strike_type=read.strike_type or record.strike_type,
        floor_strike=read.floor_strike or record.floor_strike,
        cap_strike=read.cap_strike or record.cap_strike,
        combo=read.combo or record.combo,
    )


def record_completed(record: MarketRecord, other: MarketRecord) -> MarketRecord:
    """The record with what it lacks taken from `other`, e.g. from a read that may be older than it."""
    filled = record_after_read(other, record)
    return msgspec.structs.replace(
        filled,
        event_ticker=record.event_ticker or other.event_ticker,
        result=record.result or other.result,
        settlement_e4=record.settlement_e4 if record.settlement_e4 >= 0 else other.settlement_e4,
        read_ns=max(record.read_ns, other.read_ns),
        refused=(),
    )


def phase_at(record: MarketRecord, now_ns: int) -> MarketPhase:
    """The phase at `now_ns`: no frame announces opening and closing, the record's times do."""
    if record.phase in FINISHED_PHASES:
        return record.phase
    if record.open_ns > now_ns:
        return MarketPhase.INITIALIZED
    if record.close_ns and record.close_ns <= now_ns:
        return MarketPhase.CLOSED
    if record.phase is MarketPhase.INITIALIZED and record.open_ns:
        return MarketPhase.ACTIVE
    if record.phase is MarketPhase.UNKNOWN and record.open_ns and record.close_ns:
        return MarketPhase.ACTIVE
    return record.phase


def same_info(one: MarketRecord, other: MarketRecord) -> bool:
    """Whether both make the same `MarketInfo`."""
    return (
        one.price_bands == other.price_bands
        and one.close_ns == other.close_ns
        and one.open_ns == other.open_ns
        and one.price_level_structure == other.price_level_structure
        and one.event_ticker == other.event_ticker
        and one.series_ticker == other.series_ticker
        and one.strike_type == other.strike_type
        and one.floor_strike == other.floor_strike
        and one.cap_strike == other.cap_strike
    )


def strike_text(value: Strike, name: str, refused: list[str]) -> str:
    """A strike as plain decimal text without trailing zeros, the same whether REST or a frame told it.

    A strike is any number, not a price: 58, 58.0 and "58" are all "58".
    """
    if value is None or value == "":
        return ""
    try:
        number = Decimal(repr(value) if isinstance(value, float) else str(value))
        exponent = number.adjusted() if number.is_finite() else _STRIKE_EXPONENT_MAX + 1
    except InvalidOperation:
        return _short(str(value), name, refused)
    if abs(exponent) > _STRIKE_EXPONENT_MAX:
        refused.append(name)
        return ""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return _short("0" if text in ("-0", "") else text, name, refused)


def fits_ticker(ticker: str) -> bool:
    """Whether a ticker is non-empty and can be published."""
    return 0 < len(ticker) <= TICKER_MAX_BYTES and _bytes_of(ticker) <= TICKER_MAX_BYTES


def _close_changes(record: MarketRecord, close_ns: int, now_ns: int) -> dict[str, object]:
    """What a new close time changes; a finished market whose close lies ahead again waits for `activated`."""
    if not close_ns:
        return {}
    if close_ns > now_ns and phase_at(record, now_ns) in FINISHED_PHASES:
        return {
            "close_ns": close_ns,
            "phase": MarketPhase.INACTIVE,
            "result": "",
            "settlement_e4": -1,
        }
    return {"close_ns": close_ns}


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _ticker(text: str, name: str, refused: list[str]) -> str:
    if not text or fits_ticker(text):
        return text
    refused.append(name)
    return ""


def _short(text: str | None, name: str, refused: list[str]) -> str:
    if not text:
        return ""
    if _bytes_of(text) <= SHORT_TEXT_MAX_BYTES:
        return text
    refused.append(name)
    return ""


def _seconds_ns(seconds: int | None) -> int:
    time_ns = (seconds or 0) * _SECOND_NS
    return time_ns if 0 <= time_ns <= _TIME_MAX_NS else 0


def _rest_time_ns(text: str, name: str, refused: list[str]) -> int:
    """RFC 3339 as nanoseconds; 0 (unknown) and refused if it is not, 0 for times before the epoch."""
    time_ns = rfc3339_ns(text)
    if time_ns == 0 and text:
        refused.append(name)
    return time_ns if 0 < time_ns <= _TIME_MAX_NS else 0


def _settlement(text: str | None, refused: list[str]) -> int:
    """A settlement value in 1e-4 dollar from 0 to one dollar, -1 if none or unusable."""
    if not text:
        return -1
    try:
        value_e4 = parse_price_e4(text)
    except FixedPointError:
        value_e4 = -1
    if 0 <= value_e4 <= PRICE_E4_MAX:
        return value_e4
    refused.append("settlement")
    return -1


def _bands(ranges: tuple[PriceRange, ...] | None, refused: list[str]) -> PriceBands:
    """All bands in 1e-4 dollar, or none of them if one is unusable or they are too many."""
    if not ranges:
        return ()
    try:
        bands = tuple(
            (parse_price_e4(band.start), parse_price_e4(band.end), parse_price_e4(band.step))
            for band in ranges[: PRICE_BANDS_MAX + 1]
        )
    except FixedPointError:
        bands = ((-1, -1, -1),)
    usable = all(0 <= start < end <= PRICE_E4_MAX and step > 0 for start, end, step in bands)
    if usable and len(bands) <= PRICE_BANDS_MAX:
        return bands
    refused.append("price_ranges")
    return ()
