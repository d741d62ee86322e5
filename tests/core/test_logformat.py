"""The log's format: what is written comes back, and what is torn or damaged never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core import logformat
from tickerplant.core.logformat import (
    FIRST_SEQS,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    LogPosition,
    SegmentHeader,
    SegmentName,
    Tail,
)
from tickerplant.core.messages import LevelUpdate, Stream
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    HeartbeatBody,
    decode_header,
    encode_datagram,
    encode_heartbeat,
)
from tickerplant.errors import DamagedSegmentError
from tickerplant.limits import DATAGRAM_MAX_BYTES, HEADER_BYTES

SESSION = 1_790_000_000_000_000_000
SEEDS = logformat.crc_seeds(SESSION)
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
SEQS = st.tuples(*[U64] * 5)
NAMES = st.builds(SegmentName, U64, st.integers(0, 10**8 - 1))
HEADERS = st.builds(
    SegmentHeader,
    session=U64,
    ordinal=U32,
    publisher=U16,
    partition=U16,
    created_ns=U64,
    first_seqs=SEQS,
    previous_segment=st.builds(SegmentName, U64, U32),
    previous_bytes=U64,
    previous_session=U64,
    previous_seqs=SEQS,
    is_previous_complete=st.booleans(),
    boot_id=st.binary(min_size=16, max_size=16),
)
DATAGRAMS = st.binary(min_size=HEADER_BYTES, max_size=DATAGRAM_MAX_BYTES)


def data(seq: int, count: int = 1, stream: Stream = Stream.DELTA) -> bytes:
    messages = [LevelUpdate("KXBTC", seq, 1, 2, 0, 4_200, 100, 500)] * count
    return encode_datagram(0, stream, SESSION, seq, 3, messages)


def records_of(*datagrams: bytes) -> bytes:
    return logformat.encode_records([(4, datagram) for datagram in datagrams], SEEDS)


@given(NAMES, NAMES)
def test_segment_names_sort_as_text_in_the_order_of_writing(one, other):
    assert SegmentName.parse(str(one)) == one
    assert (str(one) < str(other)) == (one < other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ticklog.lock",
        "next-1.spare",
        "1-1.ktl",
        f"{1:020d}-{1:08d}.ktl.new",
        f"x{1:019d}-{1:08d}.ktl",
    ],
)
def test_other_files_are_no_segments(name):
    assert SegmentName.parse(name) is None


def test_positions_sort_in_the_order_of_writing():
    places = [LogPosition(2, 1, 0), LogPosition(1, 3, 0), LogPosition(1, 2, 3)]
    assert sorted(places) == places[::-1]
    assert places[2].segment == SegmentName(1, 2)


@given(HEADERS)
def test_segment_headers_come_back(header):
    encoded = logformat.encode_segment_header(header)
    assert len(encoded) == SEGMENT_HEADER_BYTES
    assert logformat.decode_segment_header(encoded + b"more") == header


@given(HEADERS, st.integers(0, SEGMENT_HEADER_BYTES * 8 - 1))
def test_a_segment_header_with_any_bit_flipped_is_refused(header, bit):
    encoded = bytearray(logformat.encode_segment_header(header))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedSegmentError):
        logformat.decode_segment_header(bytes(encoded))


@pytest.mark.parametrize(
    "content", [b"", bytes(SEGMENT_HEADER_BYTES), b"\xff" * SEGMENT_HEADER_BYTES]
)
def test_zeros_and_short_headers_are_refused(content):
    with pytest.raises(DamagedSegmentError):
        logformat.decode_segment_header(content)


@given(st.lists(DATAGRAMS, max_size=8), st.integers(0, 2**40))
def test_records_come_back_with_their_offsets(datagrams, base):
    encoded = records_of(*datagrams)
    scan = logformat.scan_records(encoded, base, SEEDS)
    assert [datagram for _offset, datagram in scan.records] == datagrams
    assert (scan.end, scan.tail) == (base + len(encoded), Tail.COMPLETE)
    for offset, datagram in scan.records:
        start = offset - base + RECORD_HEADER_BYTES
        assert encoded[start : start + len(datagram)] == datagram


def test_every_cut_of_the_tail_keeps_the_records_before_it():
    """Cut after any byte: the whole records are read, the rest waits as partial, and nothing else appears."""
    datagrams = [data(1), data(2, 20), data(22)]
    encoded = records_of(*datagrams)
    ends = [len(records_of(*datagrams[:count])) for count in range(4)]
    for cut in range(len(encoded) + 1):
        whole = sum(end <= cut for end in ends) - 1
        scan = logformat.scan_records(encoded[:cut], 0, SEEDS)
        assert [datagram for _offset, datagram in scan.records] == datagrams[:whole]
        assert scan.end == ends[whole]
        assert scan.tail is (Tail.COMPLETE if cut in ends else Tail.PARTIAL)


def test_every_flipped_bit_of_the_last_record_is_found_and_only_that_record_is_lost():
    first, last = data(1), data(2)
    encoded = records_of(first, last)
    start = len(records_of(first))
    for bit in range(start * 8, len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        scan = logformat.scan_records(bytes(damaged), 0, SEEDS)
        assert [datagram for _offset, datagram in scan.records] == [first]
        assert scan.end == start
        assert scan.tail is not Tail.COMPLETE
        assert logformat.find_record(bytes(damaged), start, SEEDS) == -1


def test_every_flipped_bit_of_a_record_in_the_middle_is_skipped_to_the_next_record():
    first, middle, last = data(1), data(2), data(3)
    encoded = records_of(first, middle, last)
    start, end = len(records_of(first)), len(records_of(first, middle))
    for bit in range(start * 8, end * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        scan = logformat.scan_records(bytes(damaged), 0, SEEDS)
        assert scan.end == start
        assert logformat.find_record(bytes(damaged), start + 1, SEEDS) == end


@given(st.integers(0, 3_000), st.booleans())
def test_zeros_are_never_a_record(size, follows_a_record):
    before = records_of(data(1)) if follows_a_record else b""
    scan = logformat.scan_records(before + bytes(size), 0, SEEDS)
    assert len(scan.records) == follows_a_record
    assert scan.end == len(before)
    assert logformat.find_record(bytes(size), 0, SEEDS) == -1
    if size >= RECORD_HEADER_BYTES:
        assert scan.tail is Tail.INVALID


def test_records_of_another_session_are_not_valid():
    encoded = records_of(data(1), data(2))
    other = logformat.crc_seeds(SESSION + 1)
    assert logformat.scan_records(encoded, 0, other) == ([], 0, Tail.INVALID)
    assert logformat.find_record(encoded, 0, other) == -1


@given(st.binary(max_size=3_000))
def test_garbage_never_raises_and_is_never_a_record(garbage):
    scan = logformat.scan_records(garbage, 0, SEEDS)
    assert scan.records == []
    assert logformat.find_record(garbage, 0, SEEDS) == -1


@given(st.binary(max_size=200), st.integers(1, 30))
def test_the_first_record_after_garbage_is_found(garbage, count):
    encoded = records_of(data(7, count))
    assert logformat.find_record(garbage + encoded + b"KT\x01", 0, SEEDS) == len(garbage)


def test_next_sequences_follow_from_the_last_datagram_of_each_stream():
    heartbeat = encode_heartbeat(Stream.TRADE, SESSION, 9, 5, HeartbeatBody(3))
    last = {int(Stream.DELTA): data(10, 4), int(Stream.TRADE): heartbeat}
    assert logformat.next_seqs_after(FIRST_SEQS, last) == (9, 1, 1, 14, 1)
    assert logformat.sent_ns_of(heartbeat) == 5


def test_unlogged_datagrams_say_so_and_are_otherwise_the_same():
    ((stream, marked),) = logformat.mark_not_repairable([(4, data(1))])
    assert stream == 4
    header = decode_header(marked)
    assert header.flags == FLAG_NOT_REPAIRABLE
    assert header._replace(flags=0) == decode_header(data(1))
    assert marked[HEADER_BYTES:] == data(1)[HEADER_BYTES:]
