"""Exchange bodies to integers: exact, bounded, both price conventions, yes/no to bid/ask."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from connection_bed import ConnectionBed, delta, snapshot, ticker, trade
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.messages import LevelUpdate, Side, Stream, Ticker, Trade
from tickerplant.errors import FixedPointError
from tickerplant.limits import FIXEDPOINT_CACHE_ENTRIES, SIZE_E2_MAX
from tickerplant_kalshi.normalise import SidePrices, event_time_ns, rfc3339_ns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- times ----------------------------------------------------------------------------------------


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(0, 9))  # noqa: DTZ001 - hypothesis adds the zone itself
def test_rfc3339_times_are_exact(when, digits):
    """To the nanosecond, with 0-9 fractional digits, against datetime's own arithmetic."""
    micros = (when.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    fraction = f"{micros % 1_000_000:06}789"[:digits]
    text = (
        when.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + ("." + fraction if digits else "") + "Z"
    )
    expected = micros // 1_000_000 * 10**9 + int(fraction.ljust(9, "0"))
    assert rfc3339_ns(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "yesterdayZ",
        "2026-11-20T18:04:11",
        "2026-11-20T18:04:11+01:00",
        "2026-11-20T18:04:11+01:00Z",
        "2026-13-20T18:04:11Z",
        "2026-11-20T18:04:11.1234567890Z",
        "2026-11-20T18:04:11.12x4Z",
        "2026-11-20T18:04:11.\u00b2Z",
        "2026-11-20T18:04:11.-5Z",
    ],
)
def test_what_is_no_utc_time_is_zero(text):
    """Zero means: the exchange gave none."""
    assert rfc3339_ns(text) == 0


@pytest.mark.parametrize(
    ("ts_ms", "ts", "expected"),
    [
        (1_795_197_851_207, None, 1_795_197_851_207_000_000),
        (1_795_197_851_207, 5, 1_795_197_851_207_000_000),
        (0, 1_795_197_851, 1_795_197_851_000_000_000),
        (0, "2026-11-20T18:04:11.207Z", 1_795_197_851_207_000_000),
        (0, None, 0),
        (0, "", 0),
        (0, -5, 0),
        (0, 10**30, 0),
        (10**30, None, 0),
        (-1, None, 0),
        (0, "1969-12-31T23:59:59Z", 0),
    ],
)
def test_event_times_in_order_of_preference(ts_ms, ts, expected):
    """`ts_ms`, else `ts`, else nothing; never beyond 63 bits."""
    assert event_time_ns(ts_ms, ts) == expected


# --- books ----------------------------------------------------------------------------------------

CENTS = st.integers(1, 9_999)
LEVELS = st.dictionaries(CENTS, st.integers(1, SIZE_E2_MAX), max_size=30)


def text(value, scale):
    """Decimal's own text of an integer at a scale."""
    return format(Decimal(value).scaleb(-scale), "f")


@given(LEVELS, LEVELS)
def test_both_price_conventions_give_the_same_book(bids, asks):
    """NO prices flipped, or YES prices as sent: the book is the same, and in YES prices."""
    for use_yes_price in (False, True):
        bed = ConnectionBed(use_yes_price=use_yes_price)
        bed.subscribed()
        quoted = {p if use_yes_price else 10_000 - p: s for p, s in asks.items()}
        bed.feed(
            snapshot(
                1,
                yes=[(text(p, 4), text(s, 2)) for p, s in bids.items()],
                no=[(text(p, 4), text(s, 2)) for p, s in quoted.items()],
            )
        )
        assert (bed.entry().bids, bed.entry().asks) == (bids, asks)


@given(st.booleans(), st.sampled_from(["yes", "no"]), CENTS, st.integers(1, 10**9))
def test_deltas_of_both_conventions(use_yes_price, side, price_e4, size_e2):
    """A NO bid at p is an ask at 1 - p, or as sent with `use_yes_price`."""
    bed = ConnectionBed(use_yes_price=use_yes_price)
    bed.subscribed()
    frame = delta(2, price=text(price_e4, 4), size=text(size_e2, 2), side=side, ts_ms=7)
    bed.feed(snapshot(1, yes=(), no=()))
    (update,) = [m for m in bed.feed(frame) if isinstance(m, LevelUpdate)]
    flipped_e4 = price_e4 if use_yes_price else 10_000 - price_e4
    expected = ({price_e4: size_e2}, {}) if side == "yes" else ({}, {flipped_e4: size_e2})
    assert (bed.entry().bids, bed.entry().asks) == expected
    assert (update.side, update.ts_event_ns) == (side == "no", 7_000_000)


def test_sub_cent_prices_and_fractional_sizes():
    """A tick of 0.0001 and a hundredth of a contract are exact, with more digits only if they are zeros."""
    bed = ConnectionBed()
    bed.subscribed()
    bed.feed(snapshot(1, yes=[("0.0001", "0.01"), ("0.330000", "5")], no=[("0.9998", "1.5")]))
    assert (bed.entry().bids, bed.entry().asks) == ({1: 1, 3300: 500}, {2: 150})


def test_levels_of_size_zero_are_no_levels():
    """A snapshot may carry them; the book does not."""
    bed = ConnectionBed()
    bed.subscribed()
    bed.feed(snapshot(1, yes=[("0.3300", "0.00"), ("0.3200", "1.00")], no=()))
    assert bed.entry().bids == {3200: 100}


@pytest.mark.parametrize(
    "levels",
    [
        [("0.3300", "1.00"), ("0.33", "2.00")],
        [("0.0000", "1.00")],
        [("1.0000", "1.00")],
        [("-0.3300", "1.00")],
        [("0.33001", "1.00")],
        [("0.3300", "1.001")],
        [("0.3300", "-1.00")],
        [("0.3300", "10000000000000.01")],
        [("1e-2", "1.00")],
        [("0.3300", "")],
    ],
)
@pytest.mark.parametrize("side", ["yes", "no"])
def test_an_unusable_level_makes_the_whole_snapshot_unusable(levels, side):
    """Twice the same price, a price at or beyond 0 or 1, inexact, negative, too large: nothing of it is applied."""
    bed = ConnectionBed()
    bed.live()
    before = bed.entry().levels()
    bed.feed(snapshot(2, **{"yes": (), "no": (), side: levels}))
    assert bed.state() == "STALE"
    assert bed.entry().levels() == before
    assert bed.counters.unusable_frames == 1


def test_side_prices_are_remembered_up_to_a_bound():
    """The cache of a side empties itself; what is refused is not remembered."""
    prices = SidePrices(flip=True)
    for price_e4 in range(1, 10_000):
        assert prices[text(price_e4, 4)] == 10_000 - price_e4
    for index in range(FIXEDPOINT_CACHE_ENTRIES):
        assert prices[f"0.5{'0' * (index % 3)}"] == 5_000
    prices.update({f"filler {index}": 0 for index in range(FIXEDPOINT_CACHE_ENTRIES)})
    assert prices["0.4400"] == 5_600
    prices["0.12"]
    assert len(prices) <= FIXEDPOINT_CACHE_ENTRIES
    for refused in ("0", "1", "1.0000", "0.00001", "x"):
        with pytest.raises(FixedPointError):
            prices[refused]
        assert refused not in prices


# --- trades ---------------------------------------------------------------------------------------


def passed_on(frame, channels=("trade", "ticker")):
    """(messages, bed) of one frame on its channel."""
    bed = ConnectionBed(channels, tickers=())
    bed.subscribed()
    bed.now_ns += 1
    return bed.feed(frame), bed


def test_a_trade_is_passed_on_in_yes_terms():
    """YES price, hundredths of a contract, the canonical taker's side, the exchange's time."""
    ((message,), bed) = passed_on(trade(1, sid=1, is_block_trade=True))
    assert message == Trade(
        *("A", bed.plant.g, 1_795_197_852_008_000_000, bed.now_ns),
        *("c2b6a1d4", 3500, 425, Side.BID),
        is_block=True,
    )


@pytest.mark.parametrize(
    ("outcome", "old", "side"),
    [
        ("yes", "no", Side.BID),
        ("no", "yes", Side.ASK),
        (None, "yes", Side.BID),
        (None, "no", Side.ASK),
    ],
)
def test_the_takers_side(outcome, old, side):
    """`taker_outcome_side`, else the deprecated `taker_side`."""
    ((message,), _) = passed_on(trade(1, sid=1, taker_outcome_side=outcome, taker_side=old))
    assert message.taker_side == side


@pytest.mark.parametrize(
    "changes",
    [
        {"taker_outcome_side": None, "taker_side": None},
        {"yes_price_dollars": "0.3501"},
        {"yes_price_dollars": "1.2000", "no_price_dollars": "-0.2000"},
        {"count_fp": "-1.00"},
        {"count_fp": "1.005"},
        {"no_price_dollars": ""},
    ],
)
def test_an_unusable_trade_is_a_gap_on_the_trade_stream(changes):
    """It cannot be repaired, so it is told: `UpstreamGap`, counted."""
    messages, bed = passed_on(trade(1, sid=1, **changes))
    assert [type(m).__name__ for m in messages] == ["UpstreamGap"]
    assert bed.counters.unusable_frames == 1
    assert bed.plant.trades == 0


# --- tickers --------------------------------------------------------------------------------------


def test_a_ticker_is_passed_on():
    """Every number at its scale; whole dollars may be negative."""
    ((message,), bed) = passed_on(ticker(sid=2))
    assert message == Ticker(
        *("A", bed.plant.g, 1_795_197_851_311_000_000, bed.now_ns),
        *(3200, 3100, 12_000, 3500, 1_025, 812_375, 501_100, 400, 2604, -3),
    )


def test_absent_sides_of_a_ticker_are_zero():
    """The exchange writes ask 1.0000 of size 0; never traded is an empty or zero price."""
    frame = ticker(
        sid=2,
        price_dollars="",
        yes_bid_dollars="0.0000",
        yes_bid_size_fp="0.00",
        yes_ask_dollars="1.0000",
        yes_ask_size_fp="0.00",
    )
    ((message,), _) = passed_on(frame)
    assert (message.last_e4, message.bid_e4, message.ask_e4) == (0, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"yes_bid_dollars": "1.0001"},
        {"yes_ask_dollars": "-0.0001"},
        {"volume_fp": "-1.00"},
        {"open_interest_fp": "1.001"},
        {"dollar_volume": 10**30},
        {"dollar_open_interest": -(10**16)},
        {"yes_bid_size_fp": "99999999999999.00"},
    ],
)
def test_an_unusable_ticker_is_a_gap_on_the_ticker_stream(changes):
    """The next one replaces it, but a quiet market may have none for long: it is told, as that of a trade."""
    messages, bed = passed_on(ticker(sid=2, **changes))
    assert [type(m).__name__ for m in messages] == ["UpstreamGap"]
    assert messages[0].on_stream == Stream.TICKER
    assert bed.counters.unusable_frames == 1
