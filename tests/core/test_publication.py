"""The publish queue: paced, complete, and each book once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subscriber_model import SubscriberModel

from tickerplant.core import wire
from tickerplant.core.book import Book
from tickerplant.core.books import BookEntry, BookEvent
from tickerplant.core.messages import (
    BookLevels,
    BookReady,
    BookState,
    LevelUpdate,
    MarketInfo,
    MarketPhase,
    MarketState,
    StaleReason,
    Stream,
)
from tickerplant.core.packets import Packets
from tickerplant.core.plant import Plant
from tickerplant.core.publication import Publication, image_parts
from tickerplant.limits import (
    BOOK_LEVELS_PER_PART,
    BOOK_PARTS_MAX,
    IMAGE_BURST_DATAGRAMS,
    IMAGE_DATAGRAMS_PER_SECOND,
    NOTICES_MAX,
)

SECOND_NS = 1_000_000_000
LEVELS = st.dictionaries(st.integers(1, 9_999), st.integers(1, 10**15), max_size=150)


@given(LEVELS, LEVELS)
def test_image_parts_hold_the_book_once_in_order(bids, asks):
    """At most 64 levels a part, bids before asks, prices ascending; an empty book still has one part."""
    parts = image_parts(Book(bids.items(), asks.items()))
    assert 1 <= len(parts) == max(1, -(-(len(bids) + len(asks)) // BOOK_LEVELS_PER_PART))
    assert len(parts) <= BOOK_PARTS_MAX
    assert all(len(part[0]) + len(part[1]) <= BOOK_LEVELS_PER_PART for part in parts)
    assert [level for part in parts for level in part[0]] == sorted(bids.items())
    assert [level for part in parts for level in part[1]] == sorted(asks.items())


def test_the_largest_possible_book_stays_within_the_bound_of_parts():
    """Every price slot on both sides."""
    slots = [(price_e4, 1) for price_e4 in range(1, 10_000)]
    assert len(image_parts(Book(slots, slots))) == 313 <= BOOK_PARTS_MAX


class Bed:
    """A plant with many books, and the datagrams it hands out with their times."""

    def __init__(self):
        self.now_ns = 10**18
        self.plant = Plant(1, self.now_ns)
        self.subscriber = SubscriberModel()
        self.sent = []
        self.flush()

    def flush(self):
        """Ends a read batch."""
        self.take(self.plant.flush(self.now_ns))

    def take(self, datagrams):
        """Gives datagrams to the subscriber, and notes how many of paced streams went when."""
        paced = [d for stream, d in datagrams if stream in {Stream.DELTA, Stream.BBO}]
        self.sent.append((self.now_ns, len(paced), sum(map(len, paced))))
        self.subscriber.receive(datagrams)

    def snapshot(self, ticker, bids, asks):
        """A snapshot frame of a market."""
        self.plant.begin_input(self.now_ns)
        self.plant.apply_snapshot(self.plant.open_book(ticker), bids, asks)

    def run_timers(self, seconds=60):
        """Wakes at every deadline until the queue is empty."""
        end_ns = self.now_ns + seconds * SECOND_NS
        while len(self.plant.publication) and self.now_ns < end_ns:
            self.now_ns = max(self.now_ns, self.plant.next_deadline_ns())
            self.take(self.plant.handle_timer(self.now_ns))

    def assert_paced(self, largest_image_datagrams):
        """Over any window: at most the burst, the rate, and what one book may overshoot."""
        for start in range(len(self.sent)):
            datagrams = 0
            for now_ns, count, _ in self.sent[start:]:
                datagrams += count
                window_s = (now_ns - self.sent[start][0]) / SECOND_NS
                bound = IMAGE_BURST_DATAGRAMS + IMAGE_DATAGRAMS_PER_SECOND * window_s
                assert datagrams <= bound + largest_image_datagrams

    def assert_all_in_step(self):
        """What the subscriber holds as live is exactly every book of the plant."""
        assert len(self.plant.publication) == 0
        assert self.plant.unready_books == 0
        for ticker, entry in self.plant.entries.items():
            mirrored = self.subscriber.books[ticker]
            assert mirrored.live
            assert mirrored.sides == (entry.bids, entry.asks)
            assert self.subscriber.bbos[ticker].state == BookState.LIVE


@pytest.mark.parametrize("levels", [0, 3, 20, 64, 200])
@pytest.mark.parametrize("ticker_bytes", [12, 200])
def test_images_of_many_books_are_paced_and_complete(levels, ticker_bytes):
    """400 books at once: a burst, then the rate; in the end every book is held by subscribers."""
    bed = Bed()
    bids = [(1 + slot, 10**9 + slot) for slot in range(levels)]
    asks = [(9_999 - slot, 10**9 + slot) for slot in range(levels)]
    for index in range(400):
        bed.snapshot(f"{index:04}".ljust(ticker_bytes, "X"), bids, asks)
    bed.flush()
    bed.run_timers()
    bed.assert_all_in_step()
    bed.assert_paced(largest_image_datagrams=2 + -(-2 * levels // BOOK_LEVELS_PER_PART))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(["snapshot", "stale", "delta"]),
            st.dictionaries(st.integers(1, 9_999), st.integers(1, 10**6), max_size=60),
            st.sampled_from([0, 0, 1_000, 1_000_000, 40_000_000]),
        ),
        max_size=80,
    )
)
@settings(max_examples=50)
def test_any_mix_of_snapshots_and_faults_ends_in_step(events):
    """However often a book changes while it waits, subscribers end with its last state."""
    bed = Bed()
    for index, kind, levels, wait_ns in events:
        ticker = f"KXTEST-{index}"
        bed.now_ns += wait_ns
        if kind == "snapshot":
            bed.snapshot(ticker, levels.items(), ())
        elif ticker in bed.plant.entries:
            entry = bed.plant.entries[ticker]
            bed.plant.begin_input(bed.now_ns)
            if kind == "stale":
                bed.plant.mark_stale(entry, StaleReason.SEQUENCE_GAP)
            else:
                bed.plant.apply_delta(entry, 1, 5_000, 100, 0)
        if wait_ns:
            bed.flush()
    for ticker in list(bed.plant.entries):
        bed.snapshot(ticker, [(1, 1)], [(2, 2)])
    bed.flush()
    bed.run_timers()
    bed.assert_all_in_step()


def queue_at(now_ns=0):
    """(packets, publication) of their own."""
    packets = Packets(1, 1, now_ns)
    return packets, Publication(packets, now_ns)


def live_entry(ticker, bids=(), asks=()):
    """An entry whose book is LIVE and not yet published."""
    entry = BookEntry(ticker)
    entry.transit(BookEvent.SNAPSHOT)
    entry.load(bids, asks)
    return entry


def test_a_book_that_goes_stale_is_told_before_images_that_wait():
    """Nobody trades on it while a thousand other books are on their way."""
    bed = Bed()
    bed.snapshot("HELD", [(1, 1)], [(2, 2)])
    bed.flush()
    assert bed.subscriber.bbos["HELD"].state == BookState.LIVE
    bids = [(1 + slot, 10**9) for slot in range(200)]
    for index in range(1_000):
        bed.snapshot(f"{index:04}", bids, [])
    bed.flush()
    waiting = len(bed.plant.publication)
    assert waiting > 900
    bed.plant.begin_input(bed.now_ns)
    bed.plant.mark_stale(bed.plant.entries["HELD"], StaleReason.SEQUENCE_GAP)
    while bed.subscriber.bbos["HELD"].state == BookState.LIVE:
        bed.now_ns = bed.plant.next_deadline_ns()
        bed.take(bed.plant.handle_timer(bed.now_ns))
    assert not bed.subscriber.books["HELD"].live
    assert len(bed.plant.publication) > waiting - 20
    bed.snapshot("HELD", [(1, 1)], [(2, 2)])
    bed.run_timers()
    bed.assert_all_in_step()


def test_an_entry_waits_once():
    """However often it changes."""
    _, publication = queue_at()
    entry = live_entry("A")
    for _ in range(3):
        publication.enqueue(entry)
    assert len(publication) == 1
    assert publication.publish_due(1, 0) == 1
    assert (len(publication), entry.queued, entry.in_sync) == (0, False, True)
    assert publication.next_deadline_ns() is None
    assert publication.publish_due(2, 0) == 0


def test_the_deadline_is_when_the_queue_can_go_on():
    """Just before it nothing goes, at it something does: no busy loop and no oversleeping."""
    packets, publication = queue_at()
    for index in range(3_000):
        publication.enqueue(live_entry(f"KXTEST-{index}", [(1, 1)], [(2, 2)]))
    now_ns = 0
    publication.publish_due(1, now_ns)
    wakes = 0
    while len(publication):
        waiting = len(publication)
        deadline_ns = publication.next_deadline_ns()
        assert deadline_ns > now_ns
        publication.publish_due(1, deadline_ns - 1)
        assert len(publication) == waiting
        assert publication.next_deadline_ns() == deadline_ns
        now_ns = deadline_ns
        publication.publish_due(1, now_ns)
        assert len(publication) < waiting
        packets.flush(now_ns)
        wakes += 1
    assert 5 < wakes < 200
    assert packets.delta.oversized == 0


def test_a_clock_that_goes_back_earns_nothing():
    """Going back and forth over the same second does not publish it twice."""
    packets, publication = queue_at(10 * SECOND_NS)
    for index in range(5_000):
        publication.enqueue(live_entry(f"KXTEST-{index}", [(1, 1)], [(2, 2)]))
    publication.publish_due(1, 10 * SECOND_NS)
    waiting = len(publication)
    for now_ns in (5 * SECOND_NS, 10 * SECOND_NS, 9 * SECOND_NS, 10 * SECOND_NS):
        assert publication.publish_due(1, now_ns) == 0
    assert len(publication) == waiting
    packets.flush(10 * SECOND_NS)
    assert publication.publish_due(1, publication.next_deadline_ns()) > 0


def test_a_resync_tells_only_the_levels_that_differ():
    """A book that subscribers hold is not sent again whole."""
    packets, publication = queue_at()
    bids = [(price_e4, 100) for price_e4 in range(100, 200)]
    entry = live_entry("A", bids, [(9_000, 5)])
    publication.enqueue(entry)
    publication.publish_due(1, 0)
    packets.flush(0)
    entry.mirror, entry.in_sync = Book(bids, [(9_000, 5)]), False
    entry.load(bids[1:], [(9_000, 7)])
    publication.enqueue(entry)
    publication.publish_due(2, 0)
    kinds = [type(message) for message in packets.delta.messages]
    assert kinds.count(LevelUpdate) == 2
    assert BookLevels not in kinds
    assert kinds[-1] is BookReady
    assert (publication.images, publication.resyncs, publication.resync_levels) == (1, 1, 2)


def test_a_resync_of_almost_everything_is_an_image():
    """Where the whole book is shorter than its differences."""
    packets, publication = queue_at()
    entry = live_entry("A", [(price_e4, 100) for price_e4 in range(100, 200)])
    entry.mirror = Book([(price_e4, 7) for price_e4 in range(300, 400)])
    publication.enqueue(entry)
    publication.publish_due(2, 0)
    kinds = [type(message) for message in packets.delta.messages]
    assert LevelUpdate not in kinds
    assert BookLevels in kinds


def test_what_is_known_of_a_market_is_told_before_its_book():
    """Once, and not again with the next image."""
    packets, publication = queue_at()
    entry = live_entry("A", [(1, 1)])
    entry.info = MarketInfo("A", 1, 0, 0, "E", "S", 0, 0, "linear_cent")
    publication.enqueue(entry)
    publication.publish_due(1, 0)
    assert [type(message) for message in packets.status.messages] == [MarketInfo]
    entry.in_sync = False
    publication.enqueue(entry)
    publication.publish_due(1, 0)
    assert len(packets.status.messages) == 1


def test_one_image_larger_than_the_burst_still_goes_and_is_paid_for():
    """The largest possible book is sent whole; the next one waits until it is paid."""
    packets, publication = queue_at()
    slots = [(price_e4, 10**6) for price_e4 in range(1, 10_000)]
    publication.enqueue(live_entry("A", slots, slots))
    publication.enqueue(live_entry("B", [(1, 1)]))
    assert publication.publish_due(1, 0) == 1
    sent = len(packets.flush(0))
    assert sent > IMAGE_BURST_DATAGRAMS
    due_ns = publication.next_deadline_ns()
    assert due_ns * IMAGE_DATAGRAMS_PER_SECOND >= (sent - IMAGE_BURST_DATAGRAMS) * SECOND_NS
    assert publication.publish_due(1, due_ns - 1) == 0
    assert publication.publish_due(1, due_ns) == 1


def test_notices_of_markets_without_book_wait_their_turn_and_are_bounded():
    """Status messages share the pace; past the bound they are dropped and counted."""
    packets, publication = queue_at()
    state = MarketState("A", 1, 0, 0, MarketPhase.ACTIVE)
    for _ in range(NOTICES_MAX + 3):
        publication.enqueue_notice(state)
    assert (len(publication), publication.notices_dropped) == (NOTICES_MAX, 3)
    now_ns = told = 0
    for _ in range(20):
        publication.publish_due(1, now_ns)
        datagrams = packets.flush(now_ns)
        assert 0 < len(datagrams) <= IMAGE_BURST_DATAGRAMS + 1
        told += sum(wire.decode_header(datagram).message_count for _, datagram in datagrams)
        now_ns = publication.next_deadline_ns()
    assert told == NOTICES_MAX - len(publication) > 1_000
