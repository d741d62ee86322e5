"""A plant that goes over to another session while it runs: everything is told anew, from memory."""

from hypothesis import given, settings
from hypothesis import strategies as st
from plant_bed import MS, SECOND, T0, PlantBed

from tickerplant.core import wire
from tickerplant.core.messages import (
    BookState,
    FeedPhase,
    MarketInfo,
    MarketPhase,
    MarketState,
    SessionStart,
    StaleReason,
    Stream,
)
from tickerplant.limits import IMAGE_DATAGRAMS_PER_SECOND


def ready_bed(*tickers):
    """A plant that was READY without log, its books live."""
    bed = PlantBed(log_on=False)
    bed.connect()
    for entry in bed.open(*tickers):
        bed.snapshot(entry)
        bed.delta(entry, 0, 3200, 7)
    assert bed.phases[-1] is FeedPhase.READY
    return bed


def told_markets(bed):
    """Markets whose book the subscriber holds live."""
    return {ticker for ticker, book in bed.subscriber.books.items() if book.live}


def assert_all_told(bed):
    """The subscriber holds what the plant holds."""
    assert told_markets(bed) == {t for t, e in bed.plant.entries.items() if e.live}
    for ticker, book in bed.subscriber.books.items():
        entry = bed.plant.entries[ticker]
        assert book.sides == (entry.bids, entry.asks)
        assert bed.subscriber.bbos[ticker].state == BookState.LIVE


def test_it_begins_with_the_ends_of_the_session_before():
    bed = ready_bed("A")
    finals = tuple(enumerate(bed.plant.packets.next_seqs, start=1))
    assert max(seq for _, seq in finals) > 1
    bed.begin_session()
    assert bed.subscriber.session == 8
    first = next(m for m in bed.subscriber.messages if isinstance(m, SessionStart) and m.final_seqs)
    assert first == SessionStart("", 0, 0, bed.now_ns, 7, finals)


def test_books_and_markets_are_told_anew_and_equal():
    bed = ready_bed("A", "B")
    info = MarketInfo("A", 1, 0, T0, "EVENT", "SERIES", 1, 2, "linear_cent", ())
    state = MarketState("A", 1, 0, T0, MarketPhase.ACTIVE)
    bed.plant.begin_input(bed.now_ns)
    bed.plant.publish_market("A", info, state)
    bed.flush()
    messages = bed.begin_session()
    assert_all_told(bed)
    kept = [m for m in messages if isinstance(m, MarketInfo | MarketState)]
    assert [(m.ticker, type(m), m.g) for m in kept] == [("A", MarketInfo, 0), ("A", MarketState, 0)]
    assert bed.phases == [FeedPhase.SYNCING, FeedPhase.READY]
    assert bed.plant.unready_books == 0


def test_numbers_start_anew_and_counts_go_on():
    bed = ready_bed("A")
    messages_before = sum(one.next_seq - 1 for one in bed.plant.packets.streams)
    bed.begin_session()
    assert bed.plant.g == 0
    counted = sum(one.earlier_messages + one.next_seq - 1 for one in bed.plant.packets.streams)
    assert counted == len(bed.subscriber.messages) > messages_before


def test_the_log_is_on_from_the_first_datagram():
    bed = ready_bed("A")
    assert wire.decode_header(bed.plant.handle_timer(bed.now_ns)[0][1]).flags & 64
    plant = bed.plant
    plant.begin_session(8, bed.now_ns)
    datagrams = plant.handle_timer(bed.now_ns)
    headers = [wire.decode_header(datagram) for _, datagram in datagrams]
    assert not any(header.flags & wire.FLAG_NOT_REPAIRABLE for header in headers)
    bodies = [
        wire.decode_heartbeat(datagram, header)
        for header, (_, datagram) in zip(headers, datagrams, strict=True)
        if header.kind == wire.Kind.HEARTBEAT
    ]
    assert {(body.log_on, body.oldest_seq) for body in bodies} == {(True, 1)}


def test_heartbeats_begin_at_once_on_every_stream():
    bed = ready_bed("A")
    bed.now_ns += 30 * SECOND
    bed.timer()
    bed.begin_session()
    heard = []
    for wait_ns in (0, 10 * MS):
        bed.now_ns += wait_ns
        datagrams = bed.plant.handle_timer(bed.now_ns)
        bed.subscriber.receive(datagrams)
        heard += [stream for stream, _ in datagrams]
    assert sorted(heard) == list(Stream)


def test_a_stale_book_is_told_only_once_it_is_right_again():
    bed = ready_bed("A", "B")
    entry = bed.plant.entries["A"]
    bed.stale(entry, StaleReason.SEQUENCE_GAP)
    bed.begin_session()
    assert told_markets(bed) == {"B"}
    assert "A" not in bed.subscriber.books
    assert bed.plant.stale_books == bed.plant.unready_books == 1
    bed.snapshot(entry, ((100, 5),), ())
    assert_all_told(bed)
    assert bed.phases[-1] is FeedPhase.READY


def test_a_lost_connection_stays_lost():
    bed = ready_bed("A")
    bed.plant.begin_input(bed.now_ns)
    bed.plant.set_upstream(connections_missing=True, discovered=True, cause="reset")
    bed.flush()
    bed.begin_session()
    assert bed.phases == [FeedPhase.DOWN]


def test_many_books_leave_at_the_pace_of_images():
    """And deltas that come while a book waits are in its image."""
    bed = ready_bed(*(f"KXMARKET-{number:04}" for number in range(600)))
    levels = [(price_e4, 100) for price_e4 in range(100, 4_100, 100)]
    for entry in bed.plant.entries.values():
        bed.now_ns += SECOND // 100
        bed.snapshot(entry, levels, ())
    bed.now_ns += 10 * SECOND
    bed.begin_session()
    first = len(told_markets(bed))
    assert 0 < first < 600
    waiting = next(e for e in bed.plant.entries.values() if not e.in_sync)
    bed.delta(waiting, 0, 100, 11)
    began_ns = bed.now_ns
    datagrams = 0
    while bed.plant.unready_books:
        bed.now_ns = max(bed.now_ns, bed.plant.next_deadline_ns())
        handed = bed.plant.handle_timer(bed.now_ns)
        datagrams += len(handed)
        bed.subscriber.receive(handed)
    assert_all_told(bed)
    assert bed.now_ns - began_ns > datagrams // 2 * SECOND // IMAGE_DATAGRAMS_PER_SECOND // 2


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["snapshot", "delta", "stale", "close", "timer", "session"]),
        st.integers(0, 3),
        st.integers(0, 1),
        st.integers(1, 9_999),
        st.integers(-500, 500).filter(bool),
        st.sampled_from([0, MS, 20 * MS, SECOND]),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=200)
def test_whatever_happened_before_subscribers_end_with_the_plants_books(steps):
    bed = PlantBed()
    bed.connect()
    for kind, index, side, price_e4, amount, wait_ns in [*steps, ("session", 0, 0, 0, 0, 0)]:
        bed.now_ns += wait_ns
        entry = bed.plant.entries.get(f"M{index}")
        if kind == "session":
            bed.begin_session()
        elif kind == "timer":
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
        entries = bed.plant.entries.values()
        assert bed.plant.unready_books == sum(not one.in_sync for one in entries)
        assert bed.plant.stale_books == sum(one.state is BookState.STALE for one in entries)
    bed.now_ns += SECOND
    bed.timer()
    assert_all_told(bed)


def test_a_log_lost_or_found_again_is_told_by_the_very_next_datagram():
    """Quiet batches go out without another look at phase and flags; flag 64 must be right in them too."""
    bed = PlantBed(log_on=True)
    bed.connect()
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    for is_on in (False, True):
        lost = bed.plant.packets.ends_of_session(bed.now_ns)
        if is_on:
            bed.plant.set_log(is_on=True)
        else:
            assert all(
                wire.decode_header(datagram).flags & wire.FLAG_NOT_REPAIRABLE
                for _, datagram in bed.plant.lose_log(lost)
            )
        bed.plant.unsettled = False
        bed.now_ns += 1
        bed.plant.apply_delta(entry, 0, 3300, 1, 5)
        sent = bed.plant.packets.flush(bed.now_ns)
        assert sent
        for _, datagram in sent:
            marked = bool(wire.decode_header(datagram).flags & wire.FLAG_NOT_REPAIRABLE)
            assert marked is not is_on
