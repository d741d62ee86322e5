"""Frames that cannot be applied: what each makes stale, and that nothing else ever comes of them."""

import json

import pytest
from connection_bed import (
    ALL_CHANNELS,
    BOOKS,
    ConnectionBed,
    delta,
    snapshot,
    stale_tickers,
    trade,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tickerplant.core.messages import GapCause, StaleReason, Stream, UpstreamGap
from tickerplant.errors import ObsoleteFormatError


@pytest.fixture
def bed():
    """Markets A and B live on sid 1, whose next seq is 3."""
    bed = ConnectionBed(tickers=("A", "B"))
    assert bed.live() == 3
    return bed


@pytest.fixture
def full():
    """All channels subscribed: books 1, trade 2, ticker 3, lifecycle 4, combos 5; market A live."""
    bed = ConnectionBed(ALL_CHANNELS)
    bed.live()
    return bed


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"price_dollars": "0.33001"},
        {"price_dollars": "1.0000"},
        {"price_dollars": None},
        {"price_dollars": 0.33},
        {"delta_fp": "x"},
        {"delta_fp": None},
        {"delta_fp": 5},
        {"side": "bid"},
        {"side": None},
        {"ts_ms": "now"},
        {"ts_ms": -1},
        {"delta_fp": "-99.00"},
    ],
)
def test_a_delta_that_cannot_be_applied_makes_its_market_stale(bed, changes):
    """Only its market, which is asked for again; the number counts, the others go on."""
    frame = delta(3, "A")
    frame["msg"].update(changes)
    frame["msg"] = {key: value for key, value in frame["msg"].items() if value is not None}
    messages = bed.feed(frame)
    below_zero = changes.get("delta_fp") == "-99.00"
    reason = StaleReason.INCONSISTENT if below_zero else StaleReason.UNUSABLE_FRAME
    assert stale_tickers(messages) == {"A": reason}
    assert bed.asked_for() == ["A"]
    bed.feed(delta(4, "B"))
    assert bed.entry("B").bids == {3300: 200}
    counters = bed.counters
    assert counters.unusable_frames + counters.contradicting_deltas == 1


@pytest.mark.parametrize("market", [None, 5, "", {"a": 1}])
def test_an_unreadable_market_makes_the_whole_sid_stale(bed, market):
    """It may have been any of them."""
    frame = delta(3, "A")
    frame["msg"]["market_ticker"] = market
    assert set(stale_tickers(bed.feed(frame))) == {"A", "B"}
    assert bed.asked_for() == ["A", "B"]


def test_an_unusable_snapshot_makes_its_market_stale(bed):
    """Asked for at once if it does not even decode; else after a time-out, since the next may be alike."""
    frame = snapshot(3, "A")
    frame["msg"]["yes_dollars_fp"] = [["0.3300"]]
    assert stale_tickers(bed.feed(frame)) == {"A": StaleReason.UNUSABLE_FRAME}
    assert bed.asked_for() == ["A"]
    bed.feed(snapshot(4, "B", yes=[("0.3300", "x")]))
    assert bed.state("B") == "STALE"
    assert bed.asked_for() == []
    bed.advance(5)
    assert set(bed.asked_for()) == {"A", "B"}


def test_a_frame_without_seq_is_found_by_the_next_one(bed):
    """Its market is stale at once, the others when the hole shows."""
    frame = delta(3, "A")
    del frame["seq"]
    bed.feed(frame)
    assert (bed.state("A"), bed.state("B")) == ("STALE", "LIVE")
    bed.feed(delta(4, "B"))
    assert bed.state("B") == "STALE"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[1,2]",
        b'"x"',
        b"nul",
        b"[" * 100_000,
        b'{"type":5,"sid":1,"seq":3}',
        b'{"type":"ok","sid":1,"seq":-1}',
        b'{"type":"trade","sid":99999999999999999999,"seq":1}',
    ],
)
def test_an_unreadable_frame_makes_everything_suspect(full, data):
    """Books stale, and a gap on every other stream: it may have been of any subscription."""
    messages = full.feed(data)
    assert set(stale_tickers(messages)) == {"A"}
    gaps = [m for m in messages if isinstance(m, UpstreamGap)]
    assert {m.on_stream for m in gaps} == {Stream.TRADE, Stream.TICKER}
    assert full.events.lifecycle_gaps == 2
    assert full.counters.unreadable_frames == 1


def test_a_frame_whose_sid_cannot_be_read_makes_everything_suspect(full):
    """A known type without sid."""
    frame = delta(2, "A")
    del frame["sid"]
    assert set(stale_tickers(full.feed(frame))) == {"A"}
    assert full.counters.unusable_frames == 1
    assert full.events.lifecycle_gaps == 2


def test_unusable_frames_of_other_channels_are_gaps_there(full):
    """A trade or lifecycle frame that does not decode; books are not concerned."""
    bad = trade(1)
    del bad["msg"]["trade_id"]
    (gap,) = full.feed(bad)
    assert (gap.on_stream, gap.cause) == (Stream.TRADE, GapCause.UPSTREAM)
    full.feed({"type": "market_lifecycle_v2", "sid": 4, "seq": 1, "msg": {"event_type": 5}})
    assert full.events.lifecycle_gaps == 1
    assert full.state() == "LIVE"
    full.feed(
        trade(2), {"type": "event_fee_update", "sid": 4, "seq": 2, "msg": {"event_ticker": "E"}}
    )
    assert full.counters.sequence_gaps == 0


def test_an_unusable_frame_that_repeats_a_number_heals_nothing(bed):
    """What it would have said was applied before."""
    frame = delta(2, "A")
    del frame["msg"]["side"]
    assert bed.feed(frame) == []
    assert bed.counters.duplicate_frames == 1
    assert bed.state() == "LIVE"


def test_unknown_types_are_counted_by_name(bed):
    """With or without a sequence; never a fault."""
    bed.feed({"type": "news", "sid": 1, "seq": 3, "msg": {}}, {"type": "fill", "sid": 6, "msg": {}})
    bed.feed({"type": "rfq_created", "sid": 10, "seq": 1, "msg": {}})
    assert bed.counters.frame_types == {"news": 1, "fill": 1, "rfq_created": 1}
    assert bed.counters.unusable_frames == 0
    assert bed.state() == "LIVE"


@settings(max_examples=10)
@given(st.lists(st.text(min_size=1, max_size=80), min_size=300, max_size=400, unique=True))
def test_names_that_are_counted_are_bounded(names):
    """Past the bound, new names share one; long ones are cut."""
    bed = ConnectionBed()
    for name in names:
        bed.feed({"type": name})
    assert len(bed.counters.frame_types) <= 257
    assert all(len(name) <= 60 for name in bed.counters.frame_types)


# --- the format of before 2026-03-12 --------------------------------------------------------------

OLD = [
    {
        "type": "orderbook_snapshot",
        "sid": 1,
        "seq": 1,
        "msg": {"market_ticker": "A", "yes": [[33, 100]], "no": [[65, 5]]},
    },
    {
        "type": "orderbook_delta",
        "sid": 1,
        "seq": 1,
        "msg": {"market_ticker": "A", "price": 33, "delta": -5, "side": "yes"},
    },
    {
        "type": "trade",
        "sid": 1,
        "seq": 1,
        "msg": {"market_ticker": "A", "yes_price": 33, "no_price": 67, "count": 5, "trade_id": "x"},
    },
    {
        "type": "ticker",
        "sid": 1,
        "msg": {"market_ticker": "A", "price": 33, "yes_bid": 32, "yes_ask": 34, "volume": 5},
    },
]


@pytest.mark.parametrize("frame", OLD)
def test_the_old_format_is_refused_loudly(frame):
    """Never misread as an empty book or a missing field."""
    channel = {"trade": "trade", "ticker": "ticker"}.get(frame["type"], BOOKS)
    bed = ConnectionBed((channel,))
    bed.commands()
    with pytest.raises(ObsoleteFormatError, match="2026-03-12"):
        bed.connection.receive_frame(json.dumps(frame).encode(), bed.now_ns)


@pytest.mark.parametrize("frame", OLD[:2])
def test_old_fields_in_a_running_feed_are_only_an_unusable_frame(bed, frame):
    """One odd frame does not stop a feed that works."""
    bed.feed({**frame, "seq": 3})
    assert bed.counters.unusable_frames == 1
    assert bed.state("A") == "STALE"
    assert bed.asked_for() == ["A"]


def test_deep_nesting_is_an_unusable_frame_at_any_depth():
    """Around the recursion limit, wherever a decoder meets it; nothing but counted."""
    for depth in range(900, 1_010):
        bed = ConnectionBed((BOOKS, "trade"), tickers=("A",))
        bed.live()
        nest = b"[" * depth + b"]" * depth
        bed.connection.receive_frame(
            b'{"type":"orderbook_delta","sid":1,"seq":2,"msg":{"market_ticker":"A","x":%b}}' % nest,
            bed.now_ns,
        )
        bed.connection.receive_frame(
            b'{"type":"orderbook_snapshot","sid":1,"seq":3,"msg":{"market_ticker":"A","x":%b}}'
            % nest,
            bed.now_ns,
        )
        bed.connection.receive_frame(
            b'{"type":"trade","sid":2,"seq":1,"msg":%b}' % nest, bed.now_ns
        )
        # Decodable to a certain depth, and without `ts_ms`: it is looked at once more, a call further down.
        bed.connection.receive_frame(
            b'{"type":"orderbook_delta","sid":1,"seq":4,"msg":{"market_ticker":"A",'
            b'"price_dollars":"0.3000","delta_fp":"5.00","side":"yes","x":%b}}' % nest,
            bed.now_ns,
        )
        bed.flush()
        faults = bed.counters.unusable_frames + bed.counters.unreadable_frames
        # The delta and the trade always, the snapshot and the other delta where nothing can be decoded.
        assert 2 <= faults <= 4
        assert (bed.state("A") == "STALE") == (faults > 2)
