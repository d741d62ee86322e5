"""The small pure parts of recovery: index, recent datagrams, rates, stream filter."""

import itertools
import random
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.log_index import LogIndex, SegmentPoints, Unplaced, Where
from tickerplant.core.logformat import (
    FIRST_SEQS,
    NO_SEQS,
    SEGMENT_HEADER_BYTES,
    LogPosition,
    SegmentHeader,
    SegmentName,
)
from tickerplant.core.messages import Stream
from tickerplant.core.rates import ClientRates, Rate
from tickerplant.core.recent_datagrams import RecentDatagrams
from tickerplant.core.recovery_wire import StreamRequest
from tickerplant.core.stream_filter import StreamFilter
from tickerplant.core.wire import HEADER, Header, Kind
from tickerplant.limits import RECOVERY_INDEX_STEP_BYTES

SECOND_NS = 1_000_000_000
DELTA = int(Stream.DELTA)


def segment(session, ordinal, first_seqs=FIRST_SEQS, previous=(0, NO_SEQS)):
    header = SegmentHeader(
        session=session,
        ordinal=ordinal,
        publisher=3,
        partition=0,
        created_ns=0,
        first_seqs=first_seqs,
        previous_session=session if ordinal > 1 else previous[0],
        previous_seqs=previous[1],
    )
    return SegmentName(session, ordinal), header


def seqs(number):
    return (number,) * 5


# --- index ------------------------------------------------------------------------------------------


@given(gaps=st.lists(st.integers(50, 200_000), min_size=1, max_size=60), wanted=st.integers(1, 70))
def test_a_point_is_before_the_sequence_and_near_it(gaps, wanted):
    """Never after it; and what lies between is at most a step and one record's distance."""
    points = SegmentPoints(SEGMENT_HEADER_BYTES)
    offsets = [SEGMENT_HEADER_BYTES]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    for number, offset in enumerate(offsets, start=1):
        points.add(offset, seqs(number))
    found = points.find(DELTA, wanted)
    true_offset = offsets[min(wanted, len(offsets)) - 1]
    assert found is not None
    assert found <= true_offset
    assert true_offset - found < RECOVERY_INDEX_STEP_BYTES + 200_000
    assert points.find(DELTA, 0) is None


def test_locate_takes_the_last_segment_that_begins_before():
    index = LogIndex()
    for ordinal in (1, 2, 3):
        part = index.add_segment(*segment(7, ordinal, seqs(100 * ordinal - 99)))
        index.begin_points(part, 0)
        index.add_point(part, 500, seqs(100 * ordinal - 99))
    for seq, ordinal in ((1, 1), (100, 1), (101, 2), (200, 2), (201, 3), (10**9, 3)):
        assert index.locate(7, DELTA, seq) == LogPosition(7, ordinal, 500)
    assert index.locate(6, DELTA, 1) == Unplaced(Where.TOO_OLD)
    assert index.locate(8, DELTA, 1) == Unplaced(Where.UNKNOWN_SESSION)
    assert index.remove_missing({SegmentName(7, 2), SegmentName(7, 3)}) == 1
    assert index.locate(7, DELTA, 100) == Unplaced(Where.TOO_OLD)
    assert index.oldest_seqs(7) == seqs(101)
    assert index.following(SegmentName(7, 2)) == SegmentName(7, 3)
    assert index.following(SegmentName(7, 3)) is None
    assert index.remove_missing(set()) == 2
    assert (index.sessions, index.point_count) == ({}, 0)


def test_a_segment_without_points_is_to_be_indexed():
    index = LogIndex()
    part = index.add_segment(*segment(7, 1))
    assert index.locate(7, DELTA, 5) == Unplaced(Where.NOT_INDEXED, part.name)
    index.begin_points(part, 9_000)
    index.add_point(part, 9_000, seqs(50))
    assert index.locate(7, DELTA, 5) == Unplaced(Where.NOT_INDEXED, part.name)
    assert index.locate(7, DELTA, 50) == LogPosition(7, 1, 9_000)


def test_points_are_bounded_and_those_not_asked_for_go_first():
    index = LogIndex(points_max=25)
    parts = []
    for ordinal in range(1, 6):
        part = index.add_segment(*segment(7, ordinal, seqs(10 * ordinal - 9)))
        parts.append(part)
        index.begin_points(part, 0)
        for number in range(10):
            if ordinal == 4 and number == 0:
                index.locate(7, DELTA, 1)
            index.add_point(
                part,
                SEGMENT_HEADER_BYTES + number * RECOVERY_INDEX_STEP_BYTES,
                seqs(10 * ordinal - 9 + number),
            )
            assert index.point_count <= 25
            assert index.point_count == sum(len(one.points) for one in parts if one.points)
    assert parts[-1].points is not None


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1))))
def test_a_session_ends_where_its_successor_says(order):
    """Whichever of the two is met first."""
    index = LogIndex()
    both = [segment(7, 1), segment(9, 1, previous=(7, seqs(40)))]
    for number in order:
        index.add_segment(*both[number])
    extent = index.sessions[7]
    assert (extent.next_seqs, extent.is_final, extent.is_end_known) == (seqs(40), True, True)
    assert not index.sessions[9].is_final
    assert index.sessions[9].plant == (3, 0)


def test_a_damaged_header_takes_what_else_is_known():
    index = LogIndex()
    index.add_segment(SegmentName(7, 2), None, seqs(30))
    assert index.oldest_seqs(7) == seqs(30)
    assert index.sessions[7].plant is None
    index.add_segment(*segment(7, 3, seqs(60)))
    assert index.sessions[7].plant == (3, 0)


# --- recent datagrams -------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=80),
    hole_at=st.integers(0, 100),
    max_bytes=st.integers(200, 20_000),
    data=st.data(),
)
def test_recent_datagrams_are_what_was_sent_or_nothing(counts, hole_at, max_bytes, data):
    recent = RecentDatagrams(max_bytes)
    recent.clear(1)
    sent, seq = [], 1
    for number, count in enumerate(counts):
        if number == hole_at:
            seq, sent = seq + 3, []
        datagram = bytes([number]) * 40
        recent.add(DELTA, seq, seq + count, datagram)
        sent.append((seq, seq + count, datagram))
        seq += count
        assert recent.size_bytes <= max_bytes + 160
    from_seq = data.draw(st.integers(1, seq + 2))
    to_seq = data.draw(st.integers(from_seq, seq + 10))
    limit = data.draw(st.integers(1, 10))
    found = recent.find(DELTA, from_seq, to_seq, limit, 10**6)
    wanted = [one for start, end, one in sent if start <= to_seq and end > from_seq]
    if found is not None:
        assert sent[0][0] <= from_seq
        assert found == wanted[:limit]
    else:
        starts = [start for start, _end, _one in sent]
        kept = max_bytes // 160
        is_kept = bisect_right(starts, from_seq) - 1 >= max(0, len(sent) - kept)
        assert from_seq >= seq or from_seq < starts[0] or not is_kept
    assert recent.find(DELTA, 1, 10**9, 100, 39) in (None, [])
    assert recent.find(int(Stream.BBO), 1, 1, 1, 1_000) is None


def test_recent_datagrams_of_a_long_session_stay_bounded():
    recent = RecentDatagrams(100_000)
    recent.clear(1)
    for seq in range(1, 50_001):
        recent.add(DELTA, seq, seq + 1, b"x" * 80)
    ring = recent._rings[DELTA]
    assert recent.size_bytes <= 100_000
    assert len(ring.seqs) < 4_000
    assert recent.find(DELTA, 50_000, 50_000, 9, 10**6) == [b"x" * 80]
    assert recent.find(DELTA, 40_000, 40_000, 9, 10**6) is None


# --- rates ------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 70_000), max_size=300), seed=st.integers(0, 99))
def test_a_rate_is_kept_over_any_time(sizes, seed):
    """What is used while nothing had to be waited for never exceeds rate times time, a burst and one use."""
    chance = random.Random(seed)
    rate = Rate(1_000_000, burst_ns=SECOND_NS // 4)
    now_ns, used, started_ns = 10 * SECOND_NS, 0, 10 * SECOND_NS
    for size in sizes:
        now_ns += chance.randrange(0, 40_000_000)
        if rate.wait_ns(now_ns) == 0:
            rate.use(size, now_ns)
            used += size
        elapsed_s = (now_ns - started_ns) / SECOND_NS
        assert used <= 1_000_000 * (elapsed_s + 0.25) + 70_000 + 1


def test_rates_of_clients_are_their_own_and_that_of_all_is_shared():
    rates = ClientRates(1_000, 1_500)
    now_ns = SECOND_NS
    rates.use("a", 2_000, now_ns)
    assert rates.wait_ns("a", now_ns) == 1_750_000_000
    assert rates.wait_ns("b", now_ns) > 0
    now_ns += 1_200_000_000
    assert rates.wait_ns("a", now_ns) > 0
    assert rates.wait_ns("b", now_ns) == 0


def test_clients_are_bounded_and_idle_ones_make_room():
    rates = ClientRates(1_000, 10**9, clients_max=10)
    now_ns = SECOND_NS
    for number in range(10):
        rates.use(number, 5_000, now_ns)
    for number in range(10, 1_000):
        rates.use(number, 1, now_ns)
    assert len(rates) == 10
    # Those that are one too many share a rate, and it is used up.
    assert rates.wait_ns(5_000, now_ns) > 0
    now_ns += 60 * SECOND_NS
    rates.use("new", 1, now_ns)
    assert len(rates) == 1


# --- stream filter ----------------------------------------------------------------------------------


def header(stream, seq, count, session=7, kind=Kind.DATA):
    values = (0x544B, 1, kind, stream, 0, 1, session, seq, 0, count, 0, 1, 0)
    return Header(*HEADER.unpack(HEADER.pack(*values)))


def test_a_range_takes_what_intersects_it_of_its_streams():
    wanted = StreamFilter(StreamRequest(1, 0, 7, ((4, 5), (2, 1)), ((4, 9), (2, 3))))
    took = [
        wanted.take(header(*values))
        for values in [(4, 1, 4), (4, 5, 2), (1, 1, 9), (2, 1, 1), (4, 7, 5), (4, 12, 1)]
    ]
    assert took == [False, True, False, True, True, False]
    assert not wanted.is_complete
    assert not wanted.take(header(2, 2, 0, kind=Kind.HEARTBEAT))
    assert wanted.take(header(2, 2, 2))
    assert wanted.is_complete
    assert wanted.next_seqs == ((2, 4), (4, 12))


def test_a_range_whose_end_is_not_in_the_log_is_complete_all_the_same():
    wanted = StreamFilter(StreamRequest(1, 0, 7, ((4, 5),), ((4, 9),)))
    assert not wanted.take(header(4, 11, 1))
    assert wanted.is_complete
    wanted = StreamFilter(StreamRequest(1, 0, 7, ((4, 5),), ((4, 9),)))
    assert not wanted.take(header(4, 9, 0, kind=Kind.HEARTBEAT))
    assert wanted.is_complete


def test_a_range_ends_with_its_session():
    wanted = StreamFilter(StreamRequest(1, 0, 7, ((4, 5),), ((4, 9),)))
    assert not wanted.take(header(4, 1, 1, session=8))
    assert wanted.is_complete
    assert wanted.next_seqs == ((4, 5),)


def test_an_open_stream_goes_on_with_the_next_session_from_its_start():
    wanted = StreamFilter(StreamRequest(1, 0, 7, ((4, 5), (5, 3))))
    assert not wanted.take(header(4, 4, 1))
    assert wanted.take(header(4, 5, 1))
    assert wanted.take(header(5, 3, 0, kind=Kind.HEARTBEAT))
    assert not wanted.take(header(5, 2, 0, kind=Kind.HEARTBEAT))
    assert wanted.take(header(5, 3, 0, kind=Kind.END_OF_SESSION))
    assert wanted.take(header(5, 1, 1, session=8))
    assert not wanted.take(header(4, 6, 1, session=7))
    assert not wanted.take(header(1, 1, 1, session=8))
    assert wanted.next_seqs == ((4, 1), (5, 2))
    assert not wanted.is_complete
