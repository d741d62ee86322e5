"""What the plant says of the whole feed: READY, DEGRADED, DOWN, and the hints in the headers."""

import pytest
from plant_bed import PlantBed

from tickerplant.core import wire
from tickerplant.core.messages import FeedPhase, FeedState, StaleReason
from tickerplant.core.plant import cut_text
from tickerplant.limits import TEXT_FIELD_MAX_BYTES


@pytest.fixture
def bed():
    """A plant before its first input."""
    return PlantBed()


def test_ready_exactly_when_all_chosen_books_are_live_and_published(bed):
    """Connected, discovered, and the last book published: not before."""
    one, two = bed.open("A", "B")
    bed.flush()
    assert bed.phases == [FeedPhase.CONNECTING]
    bed.plant.set_upstream(connections_missing=False, discovered=False)
    bed.flush()
    assert bed.phases[-1] is FeedPhase.SYNCING
    bed.snapshot(one)
    assert bed.phases[-1] is FeedPhase.SYNCING
    bed.snapshot(two)
    assert bed.phases[-1] is FeedPhase.SYNCING
    bed.connect()
    assert bed.phases == [FeedPhase.CONNECTING, FeedPhase.SYNCING, FeedPhase.READY]


def test_ready_waits_for_images_that_wait_for_their_turn(bed):
    """LIVE in the plant is not enough: subscribers must hold the book."""
    entries = bed.open(*[f"KXTEST-{index}" for index in range(2_000)])
    bed.plant.set_upstream(connections_missing=False, discovered=True)
    for entry in entries:
        bed.plant.apply_snapshot(entry, ((3300, 100),), ())
    bed.flush()
    assert bed.phases[-1] is FeedPhase.SYNCING
    for _ in range(2_000):
        if not len(bed.plant.publication):
            break
        assert bed.phases[-1] is FeedPhase.SYNCING
        bed.now_ns = bed.plant.next_deadline_ns()
        bed.timer()
    assert bed.phases[-1] is FeedPhase.READY
    assert all(book.live for book in bed.subscriber.books.values())
    assert len(bed.subscriber.books) == 2_000


def test_degraded_while_a_book_is_stale_and_ready_again(bed):
    """Two books go stale: one heals, still degraded; both heal, ready."""
    one, two = bed.open("A", "B")
    bed.snapshot(one)
    bed.snapshot(two)
    bed.connect()
    bed.stale(one)
    bed.stale(two)
    assert bed.phases[-1] is FeedPhase.DEGRADED
    assert bed.subscriber.header.flags & wire.FLAG_UPSTREAM_DEGRADED
    bed.snapshot(one)
    assert bed.phases[-1] is FeedPhase.DEGRADED
    bed.snapshot(two)
    assert bed.phases[-1] is FeedPhase.READY
    bed.delta(one, 0, 3300, 1)
    assert not bed.subscriber.header.flags & wire.FLAG_UPSTREAM_DEGRADED


def test_ready_after_degraded_waits_until_subscribers_hold_the_books(bed):
    """Healed in the plant, but still in the queue: not yet READY."""
    entries = bed.open(*[f"KXTEST-{index}" for index in range(2_000)])
    bed.connect()
    for entry in entries:
        bed.plant.apply_snapshot(entry, ((3300, 100),), ())
    while len(bed.plant.publication):
        bed.now_ns = bed.plant.next_deadline_ns()
        bed.timer()
    assert bed.phases[-1] is FeedPhase.READY
    bed.plant.begin_input(bed.now_ns)
    for entry in entries:
        bed.plant.mark_stale(entry, StaleReason.SEQUENCE_GAP)
    bed.flush()
    assert bed.phases[-1] is FeedPhase.DEGRADED
    bed.plant.begin_input(bed.now_ns)
    for entry in entries:
        bed.plant.apply_snapshot(entry, ((3400, 100),), ())
    bed.flush()
    while len(bed.plant.publication):
        assert bed.phases[-1] is FeedPhase.DEGRADED
        bed.now_ns = bed.plant.next_deadline_ns()
        bed.timer()
    assert bed.phases[-1] is FeedPhase.READY


def test_a_lost_upstream_is_down_with_its_cause(bed):
    """Then syncing or ready by what is left to do."""
    (entry,) = bed.open("A")
    bed.connect()
    bed.snapshot(entry)
    bed.plant.begin_input(bed.now_ns)
    bed.plant.set_upstream(connections_missing=True, discovered=True, cause="reset " + "x" * 300)
    (state,) = [m for m in bed.flush() if isinstance(m, FeedState)]
    assert state.phase == FeedPhase.DOWN
    assert state.cause == cut_text("reset " + "x" * 300)
    assert len(state.cause) == TEXT_FIELD_MAX_BYTES
    bed.stale(entry, StaleReason.CONNECTION_LOST)
    bed.connect()
    assert bed.phases[-1] is FeedPhase.SYNCING
    bed.snapshot(entry)
    assert bed.phases[-1] is FeedPhase.READY


def test_the_rebuilding_flag_stands_while_books_are_missing(bed):
    """A hint in every header, heartbeats included."""
    (entry,) = bed.open("A")
    bed.timer()
    assert bed.subscriber.header.flags & wire.FLAG_REBUILDING
    bed.connect()
    bed.snapshot(entry)
    assert not bed.subscriber.header.flags & wire.FLAG_REBUILDING
