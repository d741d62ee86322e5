"""Packing and heartbeats: any list of messages gives small, contiguous, ordered datagrams."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core import wire
from tickerplant.core.messages import Bbo, BookLevels, FeedState, LevelUpdate, Stream, Trade
from tickerplant.core.packets import Packets
from tickerplant.limits import (
    BODY_MAX_BYTES,
    DATAGRAM_MAX_BYTES,
    HEARTBEAT_AFTER_DATA_NS,
    HEARTBEAT_INTERVAL_NS,
    TRAILER_BYTES,
)

SESSION = 1_790_000_000_000_000_000
MS = 1_000_000
TICKERS = st.sampled_from(
    ["A", "KXBTC-26NOV21-T58", "K" * 200, "\N{GREEK SMALL LETTER ALPHA}" * 100]
)
STAMP = (TICKERS, st.integers(0, 2**40), st.integers(0, 2**62), st.integers(0, 2**62))
SIZES = st.integers(0, 10**15)
MESSAGES = {
    Stream.DELTA: st.one_of(
        st.builds(LevelUpdate, *STAMP, st.just(1), st.integers(1, 9999), SIZES, SIZES),
        st.builds(
            lambda stamp, count: BookLevels(*stamp, 0, 1, ((9_999, 10**15),) * count, ()),
            st.tuples(*STAMP),
            st.integers(0, 64),
        ),
    ),
    Stream.BBO: st.builds(Bbo, *STAMP, st.just(1), SIZES, st.just(2), SIZES, st.just(1)),
    Stream.TRADE: st.builds(
        Trade, *STAMP, st.text("x", max_size=200), st.just(1), SIZES, st.just(0)
    ),
    Stream.STATUS: st.builds(FeedState, *STAMP, st.just(2), st.text("y", max_size=200)),
}
ENTRIES = st.one_of(
    *[st.tuples(st.just(stream), messages, st.booleans()) for stream, messages in MESSAGES.items()]
)
FLUSH = st.just(None)


def read(datagrams):
    """{stream: [(header, messages)]} of data datagrams."""
    by_stream = {stream: [] for stream in Stream}
    for stream, datagram in datagrams:
        assert len(datagram) <= DATAGRAM_MAX_BYTES - TRAILER_BYTES
        header = wire.decode_header(datagram)
        assert header.stream == stream
        by_stream[stream].append((header, wire.decode_body(datagram, header)))
    return by_stream


@given(st.lists(st.one_of(ENTRIES, ENTRIES, ENTRIES, FLUSH), max_size=120))
def test_any_messages_come_out_complete_in_order_and_small(entries):
    """However sizes mix and whenever it is packed: nothing lost or reordered, sequences contiguous from 1."""
    packets = Packets(SESSION, 3, 0)
    datagrams, appended, now_ns = [], {stream: [] for stream in Stream}, 0
    for entry in [*entries, None]:
        if entry is None:
            now_ns += 1
            datagrams += packets.flush(now_ns)
            assert not packets.flush(now_ns), "a second flush has nothing left"
            continue
        stream, message, packs_early = entry
        appended[stream].append(message)
        packets.by_stream(stream).messages.append(message)
        if packs_early:
            packets.by_stream(stream).pack(keep_last=True)
    for stream, received in read(datagrams).items():
        next_seq = 1
        for header, messages in received:
            assert (header.session, header.publisher) == (SESSION, 3)
            assert header.seq == next_seq
            next_seq += len(messages)
        assert [m for _, messages in received for m in messages] == appended[stream]
        assert packets.by_stream(stream).next_seq == next_seq
        assert packets.by_stream(stream).datagrams_sent == len(received)
        assert packets.by_stream(stream).oversized == 0


@pytest.mark.parametrize("ticker", ["A", "KXBTC-26NOV21-T58", "K" * 200])
@pytest.mark.parametrize("batch", [1, 7, 256])
def test_datagrams_are_full(ticker, batch):
    """Batches of deltas cost as few datagrams as their bytes need, but for the place of one message in each."""
    packets = Packets(SESSION, 1, 0)
    for start in range(0, 2048, batch):
        messages = [
            LevelUpdate(ticker, g, 10**18, 10**18, 0, 3300, 100 * 10 ** (g % 7), 200)
            for g in range(start, start + batch)
        ]
        packets.delta.messages.extend(messages)
        datagrams = packets.flush(start)
        sizes = [len(wire.encode_body(message)) for message in messages]
        assert len(datagrams) <= 2 + sum(sizes) / (BODY_MAX_BYTES - max(sizes))


def test_what_fits_in_one_packet_can_be_kept_open():
    """`keep_last` closes only what is full."""
    packets = Packets(SESSION, 1, 0)
    small = Bbo("A", 1, 0, 0, 1, 1, 2, 2, 1)
    packets.bbo.messages.append(small)
    packets.bbo.pack(keep_last=True)
    assert (packets.bbo.messages, packets.bbo.closed) == ([small], [])
    packets.bbo.messages.extend([small] * 200)
    packets.bbo.pack(keep_last=True)
    assert packets.bbo.closed
    assert 0 < len(packets.bbo.messages) < 200
    packets.bbo.pack()
    assert packets.bbo.messages == []
    assert sum(count for _, count, _ in packets.bbo.closed) == 201


def test_a_message_too_large_for_any_datagram_is_counted_and_takes_no_sequence_number():
    """Its neighbours in the packet go out, contiguously."""
    packets = Packets(SESSION, 1, 0)
    giant = BookLevels("A", 1, 0, 0, 0, 1, ((9_999, 10**15),) * 200, ())
    small = Bbo("A", 1, 0, 0, 1, 1, 2, 2, 1)
    packets.delta.messages.extend((small, giant, small))
    ((header, messages), (second, rest)) = read(packets.flush(1))[Stream.DELTA]
    assert (header.seq, second.seq, messages + rest) == (1, 2, [small, small])
    assert packets.delta.oversized == 1
    packets.delta.messages.append(giant)
    assert packets.flush(2) == []
    assert (packets.delta.oversized, packets.delta.next_seq) == (2, 3)


def test_best_bid_and_offer_leave_first():
    """They are what a strategy waits for."""
    packets = Packets(SESSION, 1, 0)
    for stream in Stream:
        packets.by_stream(stream).messages.append(FeedState("", 1, 0, 0, 2))
    assert packets.flush(1)[0][0] == Stream.BBO
    with pytest.raises(StopIteration):
        packets.by_stream(9)


def test_flags_and_time_stand_in_every_header():
    """Flags are hints of the moment of sending."""
    packets = Packets(SESSION, 1, 0)
    packets.flags = wire.FLAG_REBUILDING | wire.FLAG_NOT_REPAIRABLE
    packets.bbo.messages.append(Bbo("A", 1, 0, 0, 1, 1, 2, 2, 1))
    sent = packets.flush(77) + packets.heartbeats(77)
    for _, datagram in sent:
        header = wire.decode_header(datagram)
        assert (header.flags, header.ts_send_ns) == (96, 77)


# --- heartbeats -----------------------------------------------------------------------------------


def heartbeat_times(packets, data_times_ns, until_ns):
    """{stream: [times]} of heartbeats when the shell wakes exactly at every deadline."""
    times = {stream: [] for stream in Stream}
    pending = sorted(data_times_ns)
    now_ns = 0
    for _ in range(10_000):
        deadline_ns = packets.next_heartbeat_ns
        data_next = bool(pending) and pending[0] < deadline_ns
        now_ns = pending.pop(0) if data_next else deadline_ns
        if now_ns > until_ns:
            return times
        if data_next:
            packets.bbo.messages.append(Bbo("A", 1, 0, 0, 1, 1, 2, 2, 1))
            packets.flush(now_ns)
        for stream, datagram in packets.heartbeats(now_ns):
            header = wire.decode_header(datagram)
            assert (header.kind, header.message_count) == (wire.Kind.HEARTBEAT, 0)
            assert header.seq == packets.by_stream(stream).next_seq
            body = wire.decode_heartbeat(datagram, header)
            assert body.datagrams_sent == packets.by_stream(stream).datagrams_sent
            times[stream].append(now_ns)
    raise AssertionError("deadlines do not advance")


def test_heartbeats_at_10_50_250_ms_after_the_last_data_then_each_second():
    """The stream with data follows the schedule from its last datagram; the others are not disturbed."""
    times = heartbeat_times(Packets(SESSION, 1, 0), [5_000 * MS], 9_000 * MS)
    after = [now_ns - 5_000 * MS for now_ns in times[Stream.BBO] if now_ns >= 5_000 * MS]
    assert after == [10 * MS, 50 * MS, 250 * MS, 1250 * MS, 2250 * MS, 3250 * MS]
    others = [times[stream] for stream in Stream if stream is not Stream.BBO]
    assert all(other == others[0] for other in others)


def test_every_stream_has_heartbeats_from_the_start():
    """At once, and never more than a second apart while there is no data."""
    times = heartbeat_times(Packets(SESSION, 1, 0), [], 5_000 * MS)
    for stream_times in times.values():
        assert stream_times[0] == 0
        gaps = [b - a for a, b in itertools.pairwise(stream_times)]
        assert max(gaps) == HEARTBEAT_INTERVAL_NS
        assert stream_times[-1] > 4_000 * MS


@given(st.lists(st.integers(0, 4_000 * MS), max_size=20))
def test_heartbeats_follow_any_data(data_times_ns):
    """After every datagram: a heartbeat at +10, +50, +250 ms and +1 s steps unless data came first."""
    until_ns = 6_000 * MS
    times = heartbeat_times(Packets(SESSION, 1, 0), data_times_ns, until_ns)[Stream.BBO]
    steps = list(HEARTBEAT_AFTER_DATA_NS)
    while steps[-1] < until_ns:
        steps.append(steps[-1] + HEARTBEAT_INTERVAL_NS)
    data = sorted(set(data_times_ns))
    expected = []
    for index, start_ns in enumerate(data):
        # A heartbeat that falls on the very time of the next data may go before it.
        end_ns = data[index + 1] if index + 1 < len(data) else until_ns
        expected += [start_ns + step for step in steps if start_ns + step <= end_ns]
    first_ns = data[0] if data else until_ns
    assert [t for t in times if t > first_ns] == [t for t in expected if t > first_ns]


def test_a_late_timer_sends_one_heartbeat_and_goes_on():
    """A loop that was held up does not send a burst of missed heartbeats."""
    packets = Packets(SESSION, 1, 0)
    assert len(packets.heartbeats(10_000 * MS)) == len(Stream)
    assert packets.heartbeats(10_000 * MS) == []
    assert packets.next_heartbeat_ns > 10_000 * MS


def test_ends_of_session_say_what_would_have_come_next():
    """One per stream, with the next sequence."""
    packets = Packets(SESSION, 1, 0)
    packets.trade.messages.append(FeedState("", 1, 0, 0, 2))
    packets.flush(1)
    ends = {stream: wire.decode_header(datagram) for stream, datagram in packets.ends_of_session(2)}
    assert set(ends) == set(Stream)
    assert {header.kind for header in ends.values()} == {wire.Kind.END_OF_SESSION}
    assert (ends[Stream.TRADE].seq, ends[Stream.BBO].seq) == (2, 1)
