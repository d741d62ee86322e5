"""Segments of the raw capture: headers, records, torn tails, garbage."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.captureformat import (
    CAPTURE_HEADER_BYTES,
    CAPTURE_RECORD_HEADER_BYTES,
    CaptureHeader,
    CaptureName,
    RecordScanner,
    capture_seed,
    decode_capture_header,
    encode_capture_header,
    encode_record_header,
)
from tickerplant.errors import DamagedCaptureError
from tickerplant.limits import CAPTURE_RECORD_MAX_BYTES

SESSION = 1_790_000_000_000_000_000
SEED = capture_seed(SESSION)
PAYLOADS = [b"a", b"bc" * 500, bytes(40), b"z"]


def encoded(payloads=PAYLOADS, seed=SEED):
    """The records of a segment."""
    return b"".join(encode_record_header(payload, seed) + payload for payload in payloads)


def test_header_survives_and_names_sort_in_the_order_of_writing():
    header = CaptureHeader(SESSION, 7, SESSION + 5, 1_000)
    data = encode_capture_header(header)
    assert len(data) == CAPTURE_HEADER_BYTES
    assert decode_capture_header(data + b"more") == header
    names = [CaptureName(9, 10), CaptureName(9, 9), CaptureName(10, 1)]
    assert [str(name) for name in sorted(names)] == sorted(map(str, names))


@pytest.mark.parametrize("suffix", [".ktc", ".ktc.gz"])
def test_names_are_parsed_compressed_or_not(suffix):
    name = CaptureName(SESSION, 3)
    assert CaptureName.parse(str(name).replace(".ktc", suffix)) == name


@pytest.mark.parametrize("text", ["", "x.ktc", "1-2.ktc", f"{SESSION:020}-00000001.ktl", ".ktc.gz"])
def test_other_names_are_none(text):
    assert CaptureName.parse(text) is None


@pytest.mark.parametrize("place", range(CAPTURE_HEADER_BYTES))
def test_each_changed_byte_of_a_header_shows(place):
    data = bytearray(encode_capture_header(CaptureHeader(SESSION, 1, SESSION)))
    data[place] ^= 0x10
    with pytest.raises(DamagedCaptureError):
        decode_capture_header(bytes(data))


def test_a_header_cut_short_or_of_another_version_is_told():
    data = encode_capture_header(CaptureHeader(SESSION, 1, SESSION))
    with pytest.raises(DamagedCaptureError, match="cut short"):
        decode_capture_header(data[:-1])


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=8), st.integers(1, 70))
def test_records_come_back_however_the_bytes_are_cut(payloads, piece):
    data = encoded(payloads)
    scanner = RecordScanner(SEED)
    found = []
    for start in range(0, len(data), piece):
        found += scanner.feed(data[start : start + piece])
    assert found == payloads
    assert (scanner.offset, scanner.held_bytes) == (CAPTURE_HEADER_BYTES + len(data), 0)


@pytest.mark.parametrize("cut", [1, 7, 8, 9])
def test_a_torn_tail_is_held_and_not_a_record(cut):
    data = encoded()
    scanner = RecordScanner(SEED)
    assert list(scanner.feed(data[:-cut])) == PAYLOADS[:-1]
    last = CAPTURE_RECORD_HEADER_BYTES + 1
    assert scanner.held_bytes == max(0, last - cut)
    assert scanner.offset == CAPTURE_HEADER_BYTES + len(data) - last


def test_records_before_damage_come_first():
    data = bytearray(encoded())
    data[-1] ^= 1
    records = RecordScanner(SEED).feed(bytes(data))
    assert [next(records) for _ in PAYLOADS[:-1]] == PAYLOADS[:-1]
    with pytest.raises(DamagedCaptureError, match="does not verify"):
        next(records)


def test_zeros_records_of_another_session_and_giants_are_damage():
    for data in (
        bytes(100),
        encoded(seed=capture_seed(SESSION + 1)),
        (CAPTURE_RECORD_MAX_BYTES + 1).to_bytes(4, "little") + bytes(4),
    ):
        with pytest.raises(DamagedCaptureError):
            list(RecordScanner(SEED).feed(data))


def test_garbage_gives_typed_errors_only():
    random.seed(4)
    for _ in range(2_000):
        data = bytearray(encode_capture_header(CaptureHeader(SESSION, 1, SESSION)) + encoded())
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        data = bytes(data[: random.randint(0, len(data))])
        try:
            header = decode_capture_header(data)
            found = list(
                RecordScanner(capture_seed(header.session)).feed(data[CAPTURE_HEADER_BYTES:])
            )
        except DamagedCaptureError:
            continue
        assert found == PAYLOADS[: len(found)]
