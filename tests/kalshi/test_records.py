"""REST markets and lifecycle frames become bounded records; nothing is cut into something that looks right."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.messages import MarketPhase
from tickerplant.limits import BODY_MAX_BYTES, SHORT_TEXT_MAX_BYTES, TICKER_MAX_BYTES
from tickerplant_kalshi.messages import AdditionalMetadata, LifecycleBody, PriceRange
from tickerplant_kalshi.records import (
    MarketRecord,
    phase_at,
    record_after_event,
    record_after_read,
    record_completed,
    record_from_created,
    record_from_rest,
    same_info,
    strike_text,
)
from tickerplant_kalshi.rest_messages import RestMarket

SECOND_NS = 1_000_000_000
OPEN_S, CLOSE_S = 1_795_212_000, 1_795_298_400
OPEN_NS, CLOSE_NS = OPEN_S * SECOND_NS, CLOSE_S * SECOND_NS
TAPERED = (
    PriceRange("0.0000", "0.1000", "0.0010"),
    PriceRange("0.1000", "0.9000", "0.0100"),
    PriceRange("0.9000", "1.0000", "0.0010"),
)


def rest_market(**fields: object) -> RestMarket:
    known: dict[str, object] = {
        "ticker": "KXDEMO-1-T58",
        "event_ticker": "KXDEMO-1",
        "status": "active",
        "open_time": "2026-11-21T10:00:00.5Z",
        "close_time": "2026-11-22T10:00:00Z",
        "result": "",
        "price_level_structure": "tapered_deci_cent",
        "price_ranges": [msgspec.to_builtins(band) for band in TAPERED],
    }
    return msgspec.convert({**known, **fields}, RestMarket)


def test_a_rest_market_becomes_integers() -> None:
    record = record_from_rest(
        rest_market(
            status="determined",
            result="yes",
            settlement_value_dollars="1.0000",
            floor_strike=58,
            cap_strike=60.50,
            strike_type="between",
        ),
        series_ticker="KXDEMO",
        read_ns=7,
    )
    assert record == MarketRecord(
        ticker="KXDEMO-1-T58",
        event_ticker="KXDEMO-1",
        series_ticker="KXDEMO",
        phase=MarketPhase.DETERMINED,
        open_ns=1_795_255_200_500_000_000,
        close_ns=1_795_341_600_000_000_000,
        price_level_structure="tapered_deci_cent",
        price_bands=((0, 1_000, 10), (1_000, 9_000, 100), (9_000, 10_000, 10)),
        strike_type="between",
        floor_strike="58",
        cap_strike="60.5",
        result="yes",
        settlement_e4=10_000,
        read_ns=7,
    )


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("initialized", MarketPhase.INITIALIZED),
        ("active", MarketPhase.ACTIVE),
        ("inactive", MarketPhase.INACTIVE),
        ("closed", MarketPhase.CLOSED),
        ("determined", MarketPhase.DETERMINED),
        ("disputed", MarketPhase.DETERMINED),
        ("amended", MarketPhase.DETERMINED),
        ("finalized", MarketPhase.SETTLED),
        ("a new one", MarketPhase.UNKNOWN),
    ],
)
def test_status_becomes_a_phase(status: str, phase: MarketPhase) -> None:
    assert record_from_rest(rest_market(status=status)).phase is phase


@pytest.mark.parametrize(
    ("fields", "name", "left"),
    [
        ({"open_time": "soon"}, "open_time", ("open_ns", 0)),
        ({"close_time": "2026-13-01T00:00:00Z"}, "close_time", ("close_ns", 0)),
        (
            {"price_level_structure": "x" * 65},
            "price_level_structure",
            ("price_level_structure", ""),
        ),
        ({"event_ticker": "E" * 201}, "event_ticker", ("event_ticker", "")),
        ({"event_ticker": "é" * 101}, "event_ticker", ("event_ticker", "")),
        ({"settlement_value_dollars": "1.00001"}, "settlement", ("settlement_e4", -1)),
        ({"settlement_value_dollars": "1.5"}, "settlement", ("settlement_e4", -1)),
        ({"floor_strike": "9" * 65}, "floor_strike", ("floor_strike", "")),
        ({"cap_strike": 1e300}, "cap_strike", ("cap_strike", "")),
        (
            {"price_ranges": [{"start": "0", "end": "1", "step": "0.01"}] * 17},
            "price_ranges",
            ("price_bands", ()),
        ),
        (
            {"price_ranges": [{"start": "0", "end": "1", "step": "0.00001"}]},
            "price_ranges",
            ("price_bands", ()),
        ),
        (
            {"price_ranges": [{"start": "0.5", "end": "0.4", "step": "0.01"}]},
            "price_ranges",
            ("price_bands", ()),
        ),
        (
            {"price_ranges": [{"start": "0", "end": "1", "step": "0"}]},
            "price_ranges",
            ("price_bands", ()),
        ),
    ],
)
def test_what_cannot_be_held_is_left_out_and_named(
    fields: dict[str, object], name: str, left: tuple[str, object]
) -> None:
    record = record_from_rest(rest_market(**fields))
    assert record.refused == (name,)
    assert getattr(record, left[0]) == left[1]


def test_times_before_the_epoch_are_unknown() -> None:
    record = record_from_rest(rest_market(open_time="0001-01-01T00:00:00Z", close_time=""))
    assert (record.open_ns, record.close_ns) == (0, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (58, "58"),
        (58.0, "58"),
        ("58.00", "58"),
        (0.1, "0.1"),
        (-2.50, "-2.5"),
        (0, "0"),
        (-0.0, "0"),
        (1e15, "1000000000000000"),
        (1e-7, "0.0000001"),
        (100, "100"),
        (None, ""),
        ("", ""),
        ("above 58", "above 58"),
    ],
)
def test_strikes_read_the_same_from_either_source(value: float | str | None, text: str) -> None:
    refused: list[str] = []
    assert strike_text(value, "floor_strike", refused) == text
    assert refused == []


@given(st.one_of(st.floats(), st.integers(), st.text(max_size=100)))
def test_any_strike_gives_a_short_text_or_is_refused(value: float | int | str) -> None:
    refused: list[str] = []
    text = strike_text(value, "floor_strike", refused)
    assert len(text.encode(errors="replace")) <= SHORT_TEXT_MAX_BYTES
    assert refused in ([], ["floor_strike"])
    if isinstance(value, float) and text:
        assert float(text) == value


def test_created_frame_becomes_a_record() -> None:
    body = LifecycleBody(
        event_type="created",
        market_ticker="KXDEMO-2-T1",
        open_ts=OPEN_S,
        close_ts=CLOSE_S,
        price_level_structure="tapered_deci_cent",
        price_ranges=TAPERED,
        additional_metadata=AdditionalMetadata(
            event_ticker="KXDEMO-2", strike_type="greater_or_equal", floor_strike=58
        ),
    )
    record = record_from_created(body, combo=False)
    assert record == MarketRecord(
        ticker="KXDEMO-2-T1",
        event_ticker="KXDEMO-2",
        phase=MarketPhase.INITIALIZED,
        open_ns=OPEN_NS,
        close_ns=CLOSE_NS,
        price_level_structure="tapered_deci_cent",
        price_bands=((0, 1_000, 10), (1_000, 9_000, 100), (9_000, 10_000, 10)),
        strike_type="greater_or_equal",
        floor_strike="58",
    )
    bare = record_from_created(LifecycleBody("created", "KXMVE-1", open_ts=-1), combo=False)
    assert bare == MarketRecord(ticker="KXMVE-1", phase=MarketPhase.INITIALIZED, combo=True)


def test_the_times_open_and_close_a_market_that_no_frame_does() -> None:
    record = MarketRecord("A", phase=MarketPhase.INITIALIZED, open_ns=OPEN_NS, close_ns=CLOSE_NS)
    for phase in (MarketPhase.INITIALIZED, MarketPhase.ACTIVE, MarketPhase.UNKNOWN):
        one = msgspec.structs.replace(record, phase=phase)
        assert phase_at(one, OPEN_NS - 1) is MarketPhase.INITIALIZED
        assert phase_at(one, OPEN_NS) is MarketPhase.ACTIVE
        assert phase_at(one, CLOSE_NS - 1) is MarketPhase.ACTIVE
        assert phase_at(one, CLOSE_NS) is MarketPhase.CLOSED
    paused = msgspec.structs.replace(record, phase=MarketPhase.INACTIVE)
    assert phase_at(paused, OPEN_NS) is MarketPhase.INACTIVE
    assert phase_at(paused, CLOSE_NS) is MarketPhase.CLOSED
    for phase in (MarketPhase.CLOSED, MarketPhase.DETERMINED, MarketPhase.SETTLED):
        assert phase_at(msgspec.structs.replace(record, phase=phase), OPEN_NS) is phase
    assert phase_at(MarketRecord("A"), OPEN_NS) is MarketPhase.UNKNOWN


def test_frames_change_the_record() -> None:
    record = MarketRecord(
        "A", phase=MarketPhase.ACTIVE, open_ns=OPEN_NS, close_ns=CLOSE_NS, floor_strike="1"
    )
    now_ns = OPEN_NS + 1

    def after(one: MarketRecord, event_type: str, **fields: object) -> MarketRecord:
        body = msgspec.convert(
            {"event_type": event_type, "market_ticker": "A", **fields}, LifecycleBody
        )
        return record_after_event(one, body, now_ns)

    assert after(record, "deactivated").phase is MarketPhase.INACTIVE
    earlier = after(record, "close_date_updated", close_ts=OPEN_S)
    assert (earlier.phase, earlier.close_ns) == (MarketPhase.ACTIVE, OPEN_NS)
    assert phase_at(earlier, now_ns) is MarketPhase.CLOSED
    reopened = after(earlier, "close_date_updated", close_ts=CLOSE_S)
    assert (reopened.phase, reopened.close_ns) == (MarketPhase.INACTIVE, CLOSE_NS)
    assert after(reopened, "activated").phase is MarketPhase.ACTIVE
    assert after(record, "close_date_updated").close_ns == CLOSE_NS

    determined = after(record, "determined", result="scalar", settlement_value="0.4200")
    assert (determined.phase, determined.result) == (MarketPhase.DETERMINED, "scalar")
    assert determined.settlement_e4 == 4_200
    settled = after(determined, "settled", settled_ts=OPEN_S)
    assert (settled.phase, settled.result, settled.settlement_e4) == (
        MarketPhase.SETTLED,
        "scalar",
        4_200,
    )
    assert after(settled, "determined", result="no").phase is MarketPhase.SETTLED

    restructured = after(record, "price_level_structure_updated", price_level_structure="deci_cent")
    assert (restructured.price_level_structure, restructured.price_bands) == ("deci_cent", ())
    moved = after(record, "metadata_updated", strike_type="between", cap_strike=60)
    assert (moved.strike_type, moved.floor_strike, moved.cap_strike) == ("between", "1", "60")
    assert after(record, "renamed") == record


def test_a_newer_read_wins_and_keeps_what_it_lacks() -> None:
    record = MarketRecord(
        "A",
        event_ticker="E",
        series_ticker="S",
        phase=MarketPhase.ACTIVE,
        open_ns=1,
        price_level_structure="deci_cent",
        price_bands=((0, 10_000, 10),),
        result="yes",
    )
    read = MarketRecord("A", event_ticker="E", close_ns=5, price_level_structure="", read_ns=9)
    merged = record_after_read(record, read)
    assert merged == MarketRecord(
        "A",
        event_ticker="E",
        series_ticker="S",
        phase=MarketPhase.ACTIVE,
        open_ns=1,
        close_ns=5,
        price_level_structure="deci_cent",
        price_bands=((0, 10_000, 10),),
        read_ns=9,
    )
    other_grid = msgspec.structs.replace(read, price_level_structure="linear_cent")
    assert record_after_read(record, other_grid).price_bands == ()


def test_completing_only_fills_what_is_unknown() -> None:
    record = MarketRecord("A", phase=MarketPhase.DETERMINED, close_ns=5, result="no", read_ns=3)
    other = MarketRecord(
        "A",
        event_ticker="E",
        phase=MarketPhase.ACTIVE,
        close_ns=9,
        result="yes",
        settlement_e4=0,
        read_ns=8,
    )
    assert record_completed(record, other) == MarketRecord(
        "A",
        event_ticker="E",
        phase=MarketPhase.DETERMINED,
        close_ns=5,
        result="no",
        settlement_e4=0,
        read_ns=8,
    )


def test_the_largest_record_fits_a_datagram_and_survives_a_round_trip() -> None:
    ticker = "T" * TICKER_MAX_BYTES
    short = "x" * SHORT_TEXT_MAX_BYTES
    most = 2**63 - 1
    bands = tuple((9_999, 10_000, 9_999) for _ in range(16))
    record = MarketRecord(
        ticker, ticker, ticker, MarketPhase.SETTLED, most, most, short, bands, short, short, short
    )
    info = record.info(most, most)
    assert info.ticker == ticker
    assert info.price_bands == bands
    assert len(msgspec.msgpack.encode(info)) < BODY_MAX_BYTES
    assert msgspec.json.decode(msgspec.json.encode(record), type=MarketRecord) == record


@pytest.mark.parametrize(
    "change",
    [
        {"event_ticker": "x"},
        {"series_ticker": "x"},
        {"open_ns": 1},
        {"close_ns": 1},
        {"price_level_structure": "x"},
        {"price_bands": ((0, 1, 1),)},
        {"strike_type": "x"},
        {"floor_strike": "x"},
        {"cap_strike": "x"},
    ],
)
def test_every_published_field_counts_as_info(change: dict[str, object]) -> None:
    record = MarketRecord("A")
    assert not same_info(record, msgspec.structs.replace(record, **change))
    unpublished = msgspec.structs.replace(record, read_ns=5, phase=MarketPhase.ACTIVE, result="x")
    assert same_info(record, unpublished)
