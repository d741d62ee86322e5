"""The rules of one connection, frame by frame: sequence, faults, ownership, channels, formats."""

import pytest
from connection_bed import (
    ALL_CHANNELS,
    BOOKS,
    SECOND,
    ConnectionBed,
    delta,
    kinds,
    snapshot,
    stale_tickers,
    ticker,
    trade,
)

from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookState,
    GapCause,
    LevelUpdate,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant.limits import SEQUENCE_GAP_MAX


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


# --- sequence -------------------------------------------------------------------------------------


def test_frames_in_order_are_applied(bed):
    """The sequence of a sid runs across its markets."""
    bed.feed(delta(3, "A"), delta(4, "B", size="2.00"), delta(5, "A", side="no", price="0.6500"))
    assert bed.entry("A").bids == {3300: 200}
    assert bed.entry("A").asks == {3500: 300}
    assert bed.entry("B").bids == {3300: 300}
    assert bed.counters.sequence_gaps == 0


@pytest.mark.parametrize(
    ("times", "expected_ns"),
    [
        ({"ts_ms": 1_795_197_851_207, "ts": 5}, 1_795_197_851_207_000_000),
        ({"ts": "2026-11-20T18:04:11.207123Z"}, 1_795_197_851_207_123_000),
        ({"ts": 1_795_197_851}, 1_795_197_851_000_000_000),
        ({"ts": ["neither"]}, 0),
        ({}, 0),
    ],
)
def test_the_time_of_a_delta_is_ts_ms_or_else_the_deprecated_ts(bed, times, expected_ns):
    (update,) = (m for m in bed.feed(delta(3, "A", **times)) if isinstance(m, LevelUpdate))
    assert update.ts_event_ns == expected_ns
    assert bed.state("A") == "LIVE"


def test_a_hole_makes_every_book_of_the_sid_stale(bed):
    """And asks for snapshots of all; deltas are dropped until they come."""
    messages = bed.feed(delta(4, "A"))
    assert stale_tickers(messages) == dict.fromkeys("AB", StaleReason.SEQUENCE_GAP)
    assert {m.state for m in messages if isinstance(m, Bbo)} == {BookState.STALE}
    assert (bed.counters.sequence_gaps, bed.counters.missing_frames) == (1, 1)
    (command,) = bed.commands()
    assert command["cmd"] == "update_subscription"
    assert command["params"] == {
        "sids": [1],
        "action": "get_snapshot",
        "market_tickers": ["A", "B"],
    }
    assert bed.feed(delta(5, "A")) == []
    healed = bed.feed(snapshot(6, "A", command_id=command["id"]))
    assert (bed.state("A"), bed.state("B")) == ("LIVE", "STALE")
    assert kinds(healed).count("BookReady") == 1
    bed.feed(snapshot(7, "B", command_id=command["id"]))
    assert bed.state("B") == "LIVE"
    assert bed.asked_for() == []


def test_a_frame_that_comes_again_is_dropped(bed):
    """At or below the last seq: counted, not applied twice; a snapshot of old is not taken either."""
    bed.feed(delta(3, "A"))
    assert bed.feed(delta(3, "A"), snapshot(1, "A"), delta(0, "A")) == []
    assert bed.entry("A").bids == {3300: 200}
    assert bed.counters.duplicate_frames == 3


def test_the_first_frame_of_a_sid_may_already_show_a_hole():
    """The sequence begins at 1."""
    bed = ConnectionBed(tickers=("A", "B"))
    bed.subscribed()
    bed.feed(snapshot(2, "B"))
    assert bed.counters.missing_frames == 1
    assert bed.state("B") == "LIVE"
    assert bed.state("A") == "SYNCING"
    assert bed.asked_for() == ["A"]


def test_snapshots_after_a_gap_publish_only_what_differs(bed):
    """Stale, then the levels that changed with cause resync, then ready."""
    levels = [(f"0.{cents:02}00", "1.00") for cents in range(10, 30)]
    bed.feed(snapshot(3, "A", yes=levels))
    bed.feed(delta(5, "B"))
    messages = bed.feed(snapshot(6, "A", yes=[*levels[1:], ("0.4000", "3.00")]))
    updates = [m for m in messages if isinstance(m, LevelUpdate)]
    assert [(m.price_e4, m.delta_e2, m.size_e2) for m in updates] == [
        (1000, -100, 0),
        (4000, 300, 300),
    ]
    assert {m.cause for m in updates} == {UpdateCause.RESYNC}
    assert "BookLevels" not in kinds(messages)
    assert isinstance(messages[-1], BookReady) or BookReady in map(type, messages)


def test_a_jump_beyond_any_loss_is_a_broken_counter(bed):
    """Else everything after it would be dropped as a repetition: the connection is made anew."""
    bed.feed(delta(3 + SEQUENCE_GAP_MAX, "A"))
    assert bed.connection.close_reason is None
    bed.feed(delta(2**53, "A"))
    assert "jumps" in bed.connection.close_reason


@pytest.mark.parametrize("kind", ["ok", "unsubscribed", "error", "orderbook_news"])
def test_every_frame_with_seq_counts(bed, kind):
    """Control replies and unknown types consume numbers of the sid; no phantom gap follows."""
    frame = {"type": kind, "sid": 1, "seq": 3, "msg": {"code": 11, "msg": "x"}}
    bed.feed(frame, delta(4, "A"))
    assert bed.counters.sequence_gaps == 0
    assert bed.entry("A").bids == {3300: 200}


@pytest.mark.parametrize("kind", ["ok", "unsubscribed", "error", "orderbook_news"])
def test_every_frame_with_seq_shows_a_hole_before_it(bed, kind):
    """A gap seen by a control frame is a gap."""
    bed.feed({"type": kind, "sid": 1, "seq": 4, "msg": {"code": 11, "msg": "x"}})
    assert bed.counters.sequence_gaps == 1
    assert bed.asked_for() == ["A", "B"]


def test_unsubscribed_may_repeat_the_last_number(bed):
    """Sources differ: the last or the next number are both in order."""
    bed.feed({"type": "unsubscribed", "sid": 1, "seq": 2}, delta(3, "A"))
    bed.feed({"type": "unsubscribed", "sid": 1, "seq": 4}, delta(5, "A"))
    assert bed.counters.sequence_gaps == 0
    assert bed.entry("A").bids == {3300: 300}


def test_sids_are_counted_apart(full):
    """Trades, lifecycle and books each have their own sequence."""
    full.feed(trade(1), delta(2, "A"), trade(2), delta(3, "A"))
    assert full.counters.sequence_gaps == 0


# --- subscriptions and their frames ---------------------------------------------------------------


def test_data_before_its_acknowledgement_is_taken():
    """The first frame tells the sid; the late acknowledgement changes nothing."""
    bed = ConnectionBed()
    (command,) = bed.commands()
    bed.feed(snapshot(1, "A", sid=9))
    assert bed.state() == "LIVE"
    ack = {"type": "subscribed", "id": command["id"], "msg": {"channel": BOOKS, "sid": 9}}
    bed.feed(ack, delta(2, "A", sid=9))
    assert bed.entry().bids == {3300: 200}
    assert bed.counters.sequence_gaps == 0


@pytest.mark.parametrize(
    ("channel", "frame"),
    [
        ("trade", trade(1, sid=9)),
        ("ticker", ticker(sid=9)),
        (
            "market_lifecycle_v2",
            {
                "type": "market_lifecycle_v2",
                "sid": 9,
                "seq": 1,
                "msg": {"event_type": "activated", "market_ticker": "A"},
            },
        ),
    ],
)
def test_data_before_its_acknowledgement_on_other_channels(channel, frame):
    """The frame's type tells the channel."""
    bed = ConnectionBed((channel,), tickers=())
    bed.commands()
    bed.feed(frame)
    assert bed.connection.commands.subscriptions[channel].sid == 9
    assert bed.counters.unknown_sid_frames == 0


def test_an_event_does_not_tell_its_channel():
    """`event_lifecycle` comes on two channels, so an unknown sid stays unknown."""
    bed = ConnectionBed(("market_lifecycle_v2", "multivariate_market_lifecycle"), tickers=())
    bed.commands()
    bed.feed({"type": "event_lifecycle", "sid": 9, "seq": 1, "msg": {"event_ticker": "E"}})
    assert bed.counters.unknown_sid_frames == 1
    assert bed.events.events == []


def test_frames_of_a_sid_that_is_not_ours_are_dropped_and_counted(full):
    """Data, tickers and unknown types."""
    before = full.entry().levels()
    full.feed(delta(1, "A", sid=8), snapshot(1, "A", sid=8), trade(1, sid=8), ticker(sid=8))
    assert full.counters.unknown_sid_frames == 4
    assert full.entry().levels() == before


def test_a_market_of_another_subscription_is_dropped_and_counted(bed):
    """Its number counts all the same."""
    bed.feed(delta(3, "FOREIGN"), snapshot(4, "FOREIGN"), delta(5, "A"))
    assert bed.counters.foreign_market_frames == 2
    assert bed.counters.sequence_gaps == 0
    assert bed.entry("A").bids == {3300: 200}


def test_one_connection_owns_a_market():
    """Frames of the same market on a second connection change nothing."""
    first = ConnectionBed()
    first.live()
    second = ConnectionBed(tickers=("B",), plant=first.plant, index=1)
    second.subscriber = first.subscriber
    second.subscribed()
    second.feed(snapshot(1, "A", yes=()), delta(2, "A"))
    assert second.counters.foreign_market_frames == 2
    assert first.entry("A").bids == {3300: 100}


def test_a_delta_before_its_snapshot_is_dropped():
    """The snapshot that follows contains it."""
    bed = ConnectionBed()
    bed.subscribed()
    bed.feed(delta(1, "A"), snapshot(2, "A"))
    assert bed.entry().bids == {3300: 100}
    assert bed.plant.deltas_dropped == 1


def test_empty_sides_and_an_empty_book_are_books(bed):
    """Absent keys; a number of the sequence is consumed, and the book is LIVE."""
    bed.feed(snapshot(3, "A", yes=()), snapshot(4, "B", yes=(), no=()))
    assert bed.entry("A").bids == {}
    assert bed.entry("A").asks == {3500: 200}
    assert bed.entry("B").level_count == 0
    assert bed.state("B") == "LIVE"
    assert bed.counters.sequence_gaps == 0


# --- other channels -------------------------------------------------------------------------------


def test_trades_and_tickers_are_published(full):
    """One message each."""
    assert [type(m) for m in full.feed(trade(1), ticker())] == [Trade, Ticker]


def test_a_hole_on_the_trade_sid_is_told_there(full):
    """From the last frame seen to this one; no book is touched."""
    full.feed(trade(1))
    seen_ns = full.now_ns
    full.now_ns += 3 * SECOND
    gap, message = full.feed(trade(3))
    assert gap == UpstreamGap(
        *("", full.plant.g, 0, full.now_ns, seen_ns, full.now_ns), GapCause.UPSTREAM, Stream.TRADE
    )
    assert isinstance(message, Trade)
    assert full.state() == "LIVE"


def test_a_repeated_trade_is_dropped(full):
    """No trade twice on the wire."""
    full.feed(trade(1))
    assert full.feed(trade(1)) == []
    assert full.counters.duplicate_frames == 1


def test_a_hole_on_a_lifecycle_sid_asks_for_a_new_look(full):
    """Only REST knows what was missed."""
    full.feed({"type": "event_lifecycle", "sid": 4, "seq": 3, "msg": {"event_ticker": "E"}})
    assert full.events.lifecycle_gaps == 1
    assert [frame.msg.event_ticker for frame in full.events.events] == ["E"]


def test_markets_that_were_not_chosen_are_not_published(full):
    """Unfiltered channels carry the whole exchange: counted only."""
    full.events.chosen = {"A"}
    assert full.feed(trade(1, "OTHER"), ticker("OTHER")) == []
    assert full.counters.not_chosen_frames == 2
    assert kinds(full.feed(trade(2, "A"), ticker("A"))) == ["Trade", "Ticker"]


def test_lifecycle_frames_reach_the_feed(full):
    """Both channels; fee updates are only counted."""
    body = {"event_type": "activated", "market_ticker": "A", "is_deactivated": False}
    full.feed(
        {"type": "market_lifecycle_v2", "sid": 4, "seq": 1, "msg": body},
        {"type": "multivariate_market_lifecycle", "sid": 5, "seq": 1, "msg": body},
        {"type": "event_lifecycle", "sid": 5, "seq": 2, "msg": {"event_ticker": "E"}},
        {"type": "event_fee_update", "sid": 4, "seq": 2, "msg": {"event_ticker": "E"}},
        {"type": "market_lifecycle_v2", "sid": 4, "seq": 2, "msg": body},
    )
    assert len(full.events.lifecycles) == 2
    assert len(full.events.events) == 1
    assert full.counters.frame_types["event_fee_update"] == 1
    assert full.counters.duplicate_frames == 1


# --- connection -----------------------------------------------------------------------------------


def test_a_lost_connection_makes_its_books_stale_and_a_new_one_resyncs_them(bed):
    """Stale with their levels; after the reconnect sids and sequences begin anew, and only differences are told."""
    bed.connection.closed()
    messages = bed.flush()
    assert stale_tickers(messages) == dict.fromkeys("AB", StaleReason.CONNECTION_LOST)
    assert bed.commands() == []
    assert bed.connection.next_deadline_ns() is None
    assert bed.counters.connections_lost == 1
    bed.connection.opened(bed.now_ns)
    bed.advance(1)
    bed.subscribed()
    again = bed.feed(
        snapshot(1, "A"), snapshot(2, "B", yes=[("0.3300", "1.00"), ("0.3400", "1.00")])
    )
    told = [type(m) for m in again if m.stream is Stream.DELTA]
    assert told == [BookReady, LevelUpdate, BookReady]
    assert not {BookClear, BookLevels} & set(told)
    assert bed.state("A") == bed.state("B") == "LIVE"
    bed.feed(delta(3, "A"))
    assert bed.entry("A").bids == {3300: 200}


def test_a_reconnect_tells_what_was_missed_on_other_streams(full):
    """From the last frame to the new subscription, once for each stream."""
    full.feed(trade(1), ticker())
    seen_ns = full.now_ns
    full.now_ns += 5 * SECOND
    full.connection.closed()
    full.connection.closed()
    full.flush()
    full.now_ns += 5 * SECOND
    full.connection.opened(full.now_ns)
    full.subscribed()
    gaps = [m for m in full.subscriber.messages if isinstance(m, UpstreamGap)]
    assert {(m.on_stream, m.from_ns, m.to_ns) for m in gaps} == {
        (Stream.TRADE, seen_ns, full.now_ns),
        (Stream.TICKER, seen_ns, full.now_ns),
    }
    assert len(gaps) == 2
    assert full.events.lifecycle_gaps == 2


def test_nothing_is_wanted_of_a_closed_connection():
    """No commands, no timers, no second loss."""
    bed = ConnectionBed()
    bed.connection.closed()
    bed.connection.handle_timer(bed.now_ns + 10**12)
    assert bed.connection.close_reason is None
    assert not bed.connection.complete
    bed.want("B")
    assert bed.commands() == []
