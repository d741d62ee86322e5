"""The plant as a whole: inputs in, datagrams out, read by the strict subscriber model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from plant_bed import MS, SECOND, T0, PlantBed, kinds

from tickerplant.core import wire
from tickerplant.core.book import Book
from tickerplant.core.messages import (
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookState,
    FeedPhase,
    FeedState,
    GapCause,
    LevelUpdate,
    MarketInfo,
    MarketPhase,
    MarketState,
    SessionStart,
    StaleReason,
    Stream,
    Ticker,
    Trade,
    UpdateCause,
    UpstreamGap,
)
from tickerplant.core.plant import Plant, acceptable_ticker
from tickerplant.limits import END_OF_SESSION_AT_NS, MARKETS_MAX


@pytest.fixture
def bed():
    """A plant before its first input."""
    return PlantBed()


# --- session --------------------------------------------------------------------------------------


def test_the_first_status_message_is_the_session_start():
    """Sequence 1, with the ends of the session before; then the state of the feed."""
    bed = PlantBed(previous_session=6, final_seqs=[(1, 10), (4, 900)], publisher=9)
    first, second = bed.flush()
    assert first == SessionStart("", 0, 0, T0, 6, ((1, 10), (4, 900)))
    assert second == FeedState("", 0, 0, T0, FeedPhase.CONNECTING, "starting")
    header = bed.subscriber.header
    assert (header.session, header.publisher, header.seq, header.stream) == (7, 9, 1, Stream.STATUS)


def test_g_counts_the_inputs_and_stands_in_every_message(bed):
    """Messages of one input share its ordinal and its time."""
    (entry,) = bed.open("A")
    bed.now_ns += 5
    messages = bed.snapshot(entry)
    assert {m.g for m in messages if m.stream is not Stream.STATUS} == {2}
    assert {m.ts_recv_ns for m in messages if m.stream is not Stream.STATUS} == {T0 + 5}
    bed.now_ns += 5
    for message in bed.delta(entry, 0, 3300, 1):
        assert (message.g, message.ts_event_ns, message.ts_recv_ns) == (3, 5, T0 + 10)
    assert dict(bed.plant.counters())["inputs"] == 3


def test_without_log_every_datagram_says_that_it_cannot_be_repaired():
    """Flag 64, also on heartbeats; with a log it is absent."""
    for log_on in (False, True):
        plant = Plant(7, T0, log_on=log_on)
        for _, datagram in plant.handle_timer(T0):
            flags = wire.decode_header(datagram).flags
            assert bool(flags & wire.FLAG_NOT_REPAIRABLE) is not log_on


def test_the_end_of_session_is_told_four_times(bed):
    """At 0, 10, 50 and 250 ms, with the next sequence of each stream; no heartbeat between."""
    bed.flush()
    bed.subscriber.receive(bed.plant.end_session(bed.now_ns))
    begin_ns, told_ns = bed.now_ns, []
    while not bed.plant.ended:
        bed.now_ns = bed.plant.next_deadline_ns()
        datagrams = bed.plant.handle_timer(bed.now_ns)
        headers = [wire.decode_header(datagram) for _, datagram in datagrams]
        assert {h.kind for h in headers} == {wire.Kind.END_OF_SESSION}
        assert sorted(h.stream for h in headers) == sorted(Stream)
        bed.subscriber.receive(datagrams)
        told_ns.append(bed.now_ns - begin_ns)
    assert tuple(told_ns) == END_OF_SESSION_AT_NS == (0, 10 * MS, 50 * MS, 250 * MS)
    assert bed.plant.handle_timer(bed.now_ns + SECOND) == []


def test_a_late_timer_still_tells_every_end_of_session(bed):
    """A loop that was held up for a second tells all four at once."""
    bed.plant.end_session(T0)
    datagrams = bed.plant.handle_timer(T0 + SECOND)
    assert sum(wire.decode_header(d).kind == 2 for _, d in datagrams) == 4 * len(Stream)
    assert bed.plant.ended


def test_what_was_published_is_sent_before_the_session_ends(bed):
    """Messages of the last batch go out before the first end; the queue of images is given up."""
    live, waiting = bed.open("A", "B")
    bed.snapshot(live)
    bed.plant.apply_delta(live, 0, 3300, 7, 0)
    bed.plant.apply_snapshot(waiting, ((1, 1),), ())
    messages = bed.subscriber.receive(bed.plant.end_session(T0))
    assert kinds(m for m in messages if m.stream is Stream.DELTA) == [LevelUpdate]
    for wait_ns in END_OF_SESSION_AT_NS:
        bed.subscriber.receive(bed.plant.handle_timer(T0 + wait_ns))
    assert bed.subscriber.ended == set(Stream)
    assert bed.plant.ended


# --- books ----------------------------------------------------------------------------------------


def test_a_new_book_is_an_image(bed):
    """Clear, levels, ready; then its best bid and offer as live."""
    (entry,) = bed.open("A")
    bed.flush()
    messages = bed.snapshot(entry)
    delta = [m for m in messages if m.stream is Stream.DELTA]
    assert kinds(delta) == [BookClear, BookLevels, BookReady]
    assert bed.subscriber.books["A"].live
    bbo = bed.subscriber.bbos["A"]
    assert (bbo.bid_e4, bbo.bid_size_e2, bbo.ask_e4, bbo.ask_size_e2) == (3300, 100, 3500, 200)
    assert bbo.state == BookState.LIVE


def test_an_empty_book_is_live_too(bed):
    """Neither side: one empty part, and a best bid and offer of zeros."""
    (entry,) = bed.open("A")
    bed.snapshot(entry, (), ())
    assert bed.subscriber.books["A"].live
    assert entry.live
    assert bed.subscriber.bbos["A"].bid_e4 == bed.subscriber.bbos["A"].ask_e4 == 0


def test_deltas_tell_the_level_and_a_moved_best(bed):
    """Delta and absolute size; no Bbo while the best stays."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    update, bbo = sorted(bed.delta(entry, 0, 3400, 50), key=lambda m: m.stream, reverse=True)
    assert update == LevelUpdate("A", 3, 5, T0, 0, 3400, 50, 50, UpdateCause.EXCHANGE)
    assert bbo == Bbo("A", 3, 5, T0, 3400, 50, 3500, 200, BookState.LIVE)
    assert kinds(bed.delta(entry, 0, 3000, 50)) == [LevelUpdate]
    assert kinds(bed.delta(entry, 0, 3400, -50)) == [Bbo, LevelUpdate]
    assert bed.subscriber.bbos["A"].bid_e4 == 3300


def test_a_delta_before_its_snapshot_is_dropped(bed):
    """And counted; nothing is published."""
    (entry,) = bed.open("A")
    bed.flush()
    assert bed.delta(entry, 0, 3400, 50) == []
    assert bed.plant.deltas_dropped == 1


def test_a_delta_below_zero_makes_the_book_stale(bed):
    """The contradiction is told on both streams, and the levels are kept as subscribers hold them."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    messages = bed.delta(entry, 1, 3500, -201)
    assert kinds(m for m in messages if m.stream is Stream.DELTA) == [BookStale]
    assert bed.subscriber.bbos["A"].state == BookState.STALE
    assert bed.subscriber.bbos["A"].bid_e4 == 3300
    assert entry.state is BookState.STALE
    assert bed.subscriber.books["A"].sides == ({3300: 100}, {3500: 200})


def test_a_stale_book_heals_by_the_levels_that_differ(bed):
    """Stale, dropped deltas, fresh snapshot: only the differences, then ready."""
    (entry,) = bed.open("A")
    levels = [(price_e4, 100) for price_e4 in range(1000, 3000, 100)]
    bed.snapshot(entry, levels, ())
    bed.stale(entry)
    assert bed.delta(entry, 0, 1000, 5) == []
    messages = bed.snapshot(entry, [*levels[1:], (3100, 7)], ())
    delta = [m for m in messages if m.stream is Stream.DELTA]
    assert kinds(delta) == [LevelUpdate, LevelUpdate, BookReady]
    assert all(m.cause == UpdateCause.RESYNC for m in delta[:2])
    assert bed.subscriber.books["A"].live
    assert bed.subscriber.bbos["A"].bid_e4 == 3100


def test_a_stale_book_that_did_not_change_is_only_told_ready(bed):
    """A reconnect over a quiet market costs two messages."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    assert kinds(bed.stale(entry)).count(BookStale) == 1
    messages = bed.snapshot(entry)
    assert kinds(m for m in messages if m.stream is Stream.DELTA) == [BookReady]


def test_a_fault_that_repeats_is_told_once(bed):
    """A book that is stale already says nothing more."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    bed.stale(entry)
    assert bed.stale(entry) == []
    assert bed.plant.books_gone_stale == 1


def test_a_fresh_snapshot_equal_to_the_book_is_silent(bed):
    """A rolling check of live books costs subscribers nothing."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    assert bed.snapshot(entry) == []


def test_a_fresh_snapshot_that_differs_from_a_live_book_is_a_divergence(bed):
    """The book was wrong unseen: subscribers are told stale, the differences, ready; it is counted."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    messages = bed.snapshot(entry, ((3300, 101),), ((3500, 200),))
    delta = [m for m in messages if m.stream is Stream.DELTA]
    assert kinds(delta) == [BookStale, LevelUpdate, BookReady]
    assert delta[0].reason == StaleReason.INCONSISTENT
    assert bed.plant.books_diverged == 1


def test_a_crossed_book_is_counted_and_published_as_it_is(bed):
    """The exchange has them for moments: at or above the ask, by a delta or in a snapshot; one side alone is none."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    assert bed.plant.quotes_crossed == 0
    (quote,) = (m for m in bed.delta(entry, 0, 3500, 10) if type(m) is Bbo)
    assert (quote.bid_e4, quote.ask_e4, quote.state) == (3500, 3500, BookState.LIVE)
    bed.delta(entry, 0, 3100, 10)
    assert bed.plant.quotes_crossed == 1
    bed.snapshot(entry, ((3600, 1),), ((3500, 1),))
    assert bed.plant.quotes_crossed == 2
    bed.snapshot(entry, ((3600, 1),), ())
    bed.delta(entry, 0, 3700, 1)
    assert bed.plant.quotes_crossed == 2
    assert dict(bed.plant.counters())["quotes_crossed"] == 2


def test_a_closed_book_is_forgotten(bed):
    """Clear and a closed Bbo; a second close does nothing, and the market may come again."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    assert set(kinds(bed.close(entry))) == {BookClear, Bbo}
    assert not bed.subscriber.books["A"].live
    assert bed.subscriber.bbos["A"].state == BookState.CLOSED
    assert "A" not in bed.plant.entries
    assert bed.close(entry) == []
    assert (bed.plant.unready_books, bed.plant.stale_books) == (0, 0)
    (again,) = bed.open("A")
    assert again is not entry
    bed.snapshot(again)
    assert bed.subscriber.books["A"].live


@pytest.mark.parametrize("moment", ["syncing", "queued", "stale", "stale queued"])
def test_a_book_may_be_closed_at_any_moment(bed, moment):
    """The counts of unready and stale books come out even."""
    bed.connect()
    (entry,) = bed.open("A")
    if moment != "syncing":
        bed.plant.apply_snapshot(entry, ((1, 1),), ())
    if moment == "stale":
        bed.flush()
        bed.stale(entry)
    if moment == "stale queued":
        bed.plant.mark_stale(entry, StaleReason.SEQUENCE_GAP)
    bed.close(entry)
    assert (bed.plant.unready_books, bed.plant.stale_books) == (0, 0)
    assert bed.phases[-1] is FeedPhase.READY
    assert len(bed.plant.publication) == 0


def test_unacceptable_tickers_are_refused_and_counted(bed):
    """Empty, or more than 200 bytes of UTF-8; the same for a book too many."""
    assert bed.open("", "X" * 201, "\N{GREEK SMALL LETTER ALPHA}" * 101) == [None] * 3
    assert bed.plant.refused_tickers == 3
    assert acceptable_ticker("X" * 200)
    assert acceptable_ticker("\N{GREEK SMALL LETTER ALPHA}" * 100)
    bed.plant.entries.update(dict.fromkeys(range(MARKETS_MAX)))
    assert bed.open("A") == [None]
    bed.plant.entries.clear()


# --- other streams --------------------------------------------------------------------------------


def test_trades_tickers_and_gaps_are_passed_on(bed):
    """Each on its stream, with the common fields."""
    bed.flush()
    bed.plant.begin_input(bed.now_ns)
    bed.plant.publish_trade("A", 5, "id", 3300, 100, 1, True)
    bed.plant.publish_ticker("A", 5, *range(10))
    bed.plant.publish_upstream_gap(Stream.TRADE, 1, 2, GapCause.UPSTREAM)
    bed.plant.publish_upstream_gap(Stream.TICKER, 3, 4, GapCause.UPSTREAM)
    stamp = ("A", 1, 5, T0)
    assert bed.flush() == [
        Trade(*stamp, "id", 3300, 100, 1, is_block=True),
        UpstreamGap("", 1, 0, T0, 1, 2, GapCause.UPSTREAM, Stream.TRADE),
        Ticker(*stamp, *range(10)),
        UpstreamGap("", 1, 0, T0, 3, 4, GapCause.UPSTREAM, Stream.TICKER),
    ]
    assert (bed.plant.trades, bed.plant.tickers) == (1, 1)


def test_trades_and_tickers_that_cannot_be_sent_are_refused_and_counted(bed):
    """Too long a ticker or trade id, in bytes."""
    bed.flush()
    bed.plant.publish_trade("X" * 201, 5, "id", 1, 1, 1, False)
    bed.plant.publish_trade("A", 5, "i" * 201, 1, 1, 1, False)
    bed.plant.publish_ticker("X" * 201, 5, *range(10))
    assert bed.flush() == []
    assert bed.plant.refused_tickers == 3
    bed.plant.publish_trade("A", 5, "\N{GRINNING FACE}" * 200, 1, 1, 1, False)
    bed.flush()
    assert bed.plant.packets.trade.oversized == 0


def test_what_is_known_of_markets_is_told_with_or_without_a_book(bed):
    """The newest word only, once, and again after a change."""
    bed.flush()
    bed.open("A")
    info = MarketInfo("A", 1, 0, T0, "E", "S", 1, 2, "linear_cent")
    active = MarketState("A", 1, 0, T0, MarketPhase.ACTIVE)
    bed.plant.publish_market("A", info=info)
    bed.plant.publish_market("A", state=MarketState("A", 1, 0, T0, MarketPhase.INITIALIZED))
    bed.plant.publish_market("A", state=active)
    other = MarketState("OTHER", 1, 0, T0, MarketPhase.SETTLED, "yes", 10_000)
    bed.plant.publish_market("OTHER", state=other)
    told = [m for m in bed.flush() if not isinstance(m, FeedState)]
    assert told == [replace(m, g=bed.plant.g) for m in (info, active, other)]
    assert bed.flush() == []
    bed.plant.publish_market("A", state=MarketState("A", 1, 0, T0, MarketPhase.CLOSED))
    assert kinds(bed.flush()) == [MarketState]


def test_g_does_not_go_back_when_what_waited_for_the_pace_is_told(bed):
    """Thousands of markets are told over seconds; other inputs are told of meanwhile."""
    bed.flush()
    for number in range(8_000):
        bed.plant.begin_input(bed.now_ns)
        info = MarketInfo(f"M{number}", bed.plant.g, 0, bed.now_ns, "E", "S", 1, 2, "linear_cent")
        bed.plant.publish_market(info.ticker, info=info)
    bed.flush()
    for step in range(50):
        bed.now_ns += 20 * MS
        bed.plant.begin_input(bed.now_ns)
        bed.plant.set_upstream(connections_missing=bool(step % 2), discovered=True)
        bed.flush()  # the strict subscriber checks `g`
    told = [m for m in bed.subscriber.messages if isinstance(m, MarketInfo)]
    assert len(told) == 8_000
    assert {m.ts_recv_ns for m in told} == {T0}, "when it was read stays as it was"


# --- anything -------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["snapshot", "snapshot", "delta", "delta", "delta", "stale", "close", "timer"]
        ),
        st.integers(0, 3),
        st.integers(0, 1),
        st.sampled_from([1, 2, 3300, 3400, 9999]),
        st.integers(-3, 5),
        st.sampled_from([0, 1_000, 10 * MS, SECOND]),
    ),
    max_size=100,
)


@given(EVENTS)
@settings(max_examples=200)
def test_any_inputs_leave_subscribers_with_the_plants_live_books(events):
    """After every flush: held live = the plant's book, or the book as it was before it went stale unseen."""
    bed = PlantBed()
    bed.connect()
    for kind, index, side, price_e4, amount, wait_ns in events:
        bed.now_ns += wait_ns
        entry = bed.plant.entries.get(f"M{index}")
        if kind == "timer":
            bed.timer()
        elif entry is None:
            bed.open(f"M{index}")
            bed.flush()
        elif kind == "snapshot":
            bed.snapshot(entry, ((price_e4, 1 + abs(amount)),), ((5000 + index, 2),))
        elif kind == "delta":
            bed.delta(entry, side, price_e4, amount)
        elif kind == "stale":
            bed.stale(entry)
        else:
            bed.close(entry)
        assert_subscriber_is_right(bed)


def assert_subscriber_is_right(bed):
    """Every book that a subscriber may offer, its Bbo, and the counts behind the feed's state."""
    entries = bed.plant.entries
    for ticker, mirrored in bed.subscriber.books.items():
        entry = entries.get(ticker)
        bbo = bed.subscriber.bbos[ticker]
        if not mirrored.live:
            assert entry is None or not entry.in_sync
            assert bbo.state in {BookState.STALE, BookState.CLOSED}
            continue
        assert entry is not None
        # What went stale or was replaced within the last instant may still wait for its turn to be told.
        assert entry.in_sync or entry.queued
        held = entry if entry.in_sync else entry.mirror
        assert mirrored.sides == (held.bids, held.asks)
        assert (bbo.bid_e4, bbo.bid_size_e2, bbo.ask_e4, bbo.ask_size_e2) == held.bbo()
        assert bbo.state == BookState.LIVE
    assert bed.plant.unready_books == sum(not entry.in_sync for entry in entries.values())
    assert bed.plant.stale_books == sum(e.state is BookState.STALE for e in entries.values())
    if bed.phases[-1] is FeedPhase.READY:
        assert bed.plant.stale_books == 0


def test_what_subscribers_hold_is_kept_while_the_book_moves_on(bed):
    """Between stale and ready, deltas change the plant's book and not the mirror."""
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    bed.plant.mark_stale(entry, StaleReason.SEQUENCE_GAP)
    bed.plant.apply_snapshot(entry, ((1, 1),), ())
    bed.plant.apply_delta(entry, 0, 1, 5, 0)
    assert entry.mirror == Book([(3300, 100)], [(3500, 200)])
    bed.flush()
    assert entry.mirror is None
    assert bed.subscriber.books["A"].sides == ({1: 6}, {})


def test_a_contradiction_in_a_book_that_waits_for_publication(bed):
    """It is stale again before subscribers saw it live."""
    (entry,) = bed.open("A")
    bed.plant.apply_snapshot(entry, ((1, 1),), ())
    assert not bed.plant.apply_delta(entry, 0, 1, -2, 0)
    assert entry.state is BookState.STALE
    assert BookReady not in kinds(bed.flush())
