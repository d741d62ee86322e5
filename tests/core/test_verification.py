"""`BookVerify`: the checksum of one live book after the other, steadily, and of no book that is not in step."""

import pytest
from plant_bed import MS, SECOND, T0, PlantBed

from tickerplant.core.messages import BookVerify, StaleReason, Stream
from tickerplant.limits import VERIFY_LOOKS_MAX

INTERVAL_NS = 100 * MS


@pytest.fixture
def bed():
    """Markets A, B and C live."""
    bed = PlantBed(verify_interval_ns=INTERVAL_NS)
    for entry in bed.open("A", "B", "C"):
        bed.snapshot(entry, ((1000 + ord(entry.ticker), 100),))
    return bed


def verified(bed, seconds):
    """The `BookVerify` of some time: (time since T0, message)."""
    end_ns = bed.now_ns + int(seconds * SECOND)
    found = []
    while (due_ns := bed.plant.next_deadline_ns()) <= end_ns:
        bed.now_ns = max(bed.now_ns, due_ns)
        found += [
            (bed.now_ns - T0, message) for message in bed.timer() if isinstance(message, BookVerify)
        ]
    bed.now_ns = end_ns
    return found


def test_every_live_book_is_verified_in_turn(bed):
    """In the order in which they were chosen, one an interval; the strict subscriber compares the checksums."""
    found = verified(bed, 0.7)
    assert [message.ticker for _, message in found] == ["A", "B", "C", "A", "B", "C", "A"]
    assert [at_ns for at_ns, _ in found] == [INTERVAL_NS * index for index in range(1, 8)]
    assert dict(bed.plant.counters())["books_verified"] == 7
    assert bed.plant.verification.rounds == 3


def test_the_checksum_holds_at_its_place_among_the_deltas(bed):
    """Deltas before and after it, also in the same instant: the subscriber finds each checksum right."""
    entry = bed.plant.entries["A"]
    for step in range(30):
        bed.delta(entry, step % 2, 2000 + 10 * step, 5)
        bed.now_ns += 40 * MS
        bed.timer()
    assert dict(bed.plant.counters())["books_verified"] == 10
    verify = [m for m in bed.subscriber.messages if isinstance(m, BookVerify)]
    assert len({m.checksum for m in verify if m.ticker == "A"}) > 2


def test_a_verification_is_an_input(bed):
    """It has an ordinal and a time of its own, like every input; a timer with nothing to say has none."""
    inputs = bed.plant.g
    (found,) = verified(bed, 0.1)
    assert found[1].g == inputs + 1 == bed.plant.g
    assert found[1].ts_recv_ns == T0 + INTERVAL_NS
    assert found[1].ts_event_ns == 0


def test_a_book_that_is_not_in_step_is_passed_over(bed):
    """A stale one, one that waits for its image, and one that closed during the round."""
    bed.stale(bed.plant.entries["B"], StaleReason.SEQUENCE_GAP)
    (late,) = bed.open("D")
    assert not late.in_sync
    assert [m.ticker for _, m in verified(bed, 0.4)] == ["A", "C", "A", "C"]
    bed.close(bed.plant.entries["C"])
    assert [m.ticker for _, m in verified(bed, 0.3)] == ["A", "A", "A"]
    bed.snapshot(late)
    bed.snapshot(bed.plant.entries["B"])
    assert {m.ticker for _, m in verified(bed, 0.6)} == {"A", "B", "D"}


def test_after_a_pause_nothing_is_made_up_for(bed):
    """A loop that was held up for a second verifies one book, not ten."""
    bed.now_ns += SECOND
    assert len([m for m in bed.timer() if isinstance(m, BookVerify)]) == 1
    assert bed.timer() == []


def test_without_an_interval_nothing_is_verified():
    """And no timer is wanted for it."""
    bed = PlantBed()
    (entry,) = bed.open("A")
    bed.snapshot(entry)
    assert verified(bed, 10) == []
    assert bed.plant.verification.next_deadline_ns() is None


def test_an_ending_session_verifies_nothing(bed):
    """After the ends of session nothing may follow."""
    bed.subscriber.receive(bed.plant.end_session(bed.now_ns))
    bed.now_ns += SECOND
    bed.timer()
    assert bed.plant.ended
    assert not [m for m in bed.subscriber.messages if isinstance(m, BookVerify)]


def test_books_that_are_not_in_step_cannot_hold_up_the_plant():
    """Of very many a bounded number is looked at in one go; the search goes on the next time."""
    bed = PlantBed(verify_interval_ns=INTERVAL_NS)
    entries = bed.open(*(f"T{number}" for number in range(VERIFY_LOOKS_MAX + 10)))
    bed.snapshot(entries[-1])
    assert [at_ns for at_ns, _ in verified(bed, 0.25)] == [2 * INTERVAL_NS]


def test_the_messages_of_a_run_do_not_depend_on_anything_else(bed):
    """Two plants with the same inputs at the same times publish the same bytes."""

    def run():
        datagrams = []
        other = PlantBed(verify_interval_ns=INTERVAL_NS)
        for entry in other.open("A", "B"):
            other.snapshot(entry)
        for _ in range(50):
            other.now_ns += 33 * MS
            datagrams += other.plant.handle_timer(other.now_ns)
        return datagrams

    first = run()
    assert first == run()
    assert len([d for stream, d in first if stream == Stream.DELTA]) > 10
