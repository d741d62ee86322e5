"""The recovery protocol: round trips, authenticity, and that garbage raises typed errors only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.packed_books import PackedBook, decode_books, encode_book, frame_books
from tickerplant.core.recovery_wire import (
    GAP_FILL_BYTES,
    Alive,
    AnyControl,
    FrameKind,
    FrameReader,
    GapFill,
    GapFillKind,
    Hello,
    Open,
    RecoveryCode,
    Reject,
    Seal,
    SessionRange,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
    decode_gap_fill,
    encode_control,
    encode_frame,
    encode_gap_fill,
    is_gap_fill,
)
from tickerplant.errors import (
    AuthenticationError,
    LengthMismatchError,
    MalformedBodyError,
    WireError,
)
from tickerplant.limits import RECOVERY_FRAME_MAX_BYTES

KEYS = {7: b"k" * 32}
SEQS = ((1, 5), (4, 2**63))
CONTROLS: tuple[AnyControl, ...] = (
    Open(1, b"n" * 16),
    Hello(1, 1, 0, (SessionRange(9, SEQS, SEQS, final=True),), repairable=False, nonce=b"s" * 16),
    StreamRequest(1, 0, 9, SEQS, SEQS),
    SnapshotRequest(1, 0, 9, SEQS, (2, 4), ("KXA", "KXB"), packed=True),
    StreamEnd(9, SEQS),
    SnapshotEnd(9, SEQS, SEQS),
    Reject(RecoveryCode.TOO_OLD, "gone"),
    Alive(123),
)
U64 = st.integers(1, 2**64 - 1)


def frames_of(data: bytes, seal: Seal | None = None) -> list[bytes | AnyControl]:
    """Everything complete in `data`."""
    reader = FrameReader(seal)
    reader.feed(data)
    frames = []
    while (frame := reader.next()) is not None:
        frames.append(frame)
    return frames


@given(
    kind=st.sampled_from(GapFillKind),
    stream=st.integers(1, 5),
    code=st.integers(0, 2**16 - 1),
    request_id=st.integers(0, 2**32 - 1),
    session=U64,
    seqs=st.tuples(U64, U64).map(sorted),
)
def test_gap_fill_round_trip(
    kind: GapFillKind, stream: int, code: int, request_id: int, session: int, seqs: list[int]
) -> None:
    """Plain and signed."""
    message = GapFill(kind, stream, code, request_id, 3, 2, session, seqs[0], seqs[1])
    plain = encode_gap_fill(message)
    assert len(plain) == GAP_FILL_BYTES == 40
    assert is_gap_fill(plain)
    assert decode_gap_fill(plain) == message
    signed = decode_gap_fill(encode_gap_fill(message, (7, KEYS[7])), KEYS)
    assert signed._replace(flags=0) == message


def test_gap_fill_unsigned_forged_or_of_another_key_is_refused() -> None:
    """With a key configured nothing else counts."""
    message = GapFill(GapFillKind.REQUEST, 4, 0, 1, 1, 0, 9, 3, 8)
    with pytest.raises(AuthenticationError):
        decode_gap_fill(encode_gap_fill(message), KEYS)
    with pytest.raises(AuthenticationError):
        decode_gap_fill(encode_gap_fill(message, (8, b"x" * 32)), KEYS)
    signed = bytearray(encode_gap_fill(message, (7, KEYS[7])))
    signed[24] ^= 1
    with pytest.raises(AuthenticationError):
        decode_gap_fill(bytes(signed), KEYS)


def test_gap_fill_range_must_be_one() -> None:
    """Sequences begin at 1 and a range is not empty."""
    for from_seq, to_seq in ((0, 5), (6, 5)):
        with pytest.raises(LengthMismatchError):
            decode_gap_fill(
                encode_gap_fill(GapFill(GapFillKind.REQUEST, 4, 0, 1, 1, 0, 9, from_seq, to_seq))
            )


@given(st.binary(max_size=80))
def test_garbage_is_a_wire_error_or_a_gap_fill(data: bytes) -> None:
    """With and without a magic that fits."""
    for datagram in (data, b"\x46\x47\x01\x01\x04" + data):
        try:
            decode_gap_fill(datagram)
        except WireError:
            continue


@given(st.lists(st.integers(1, 200), max_size=60))
def test_control_messages_round_trip_in_any_pieces(cuts: list[int]) -> None:
    """The reader does not depend on how the bytes arrive."""
    data = b"".join(map(encode_control, CONTROLS)) + encode_frame(FrameKind.DATAGRAM, b"KT...")
    reader, seen = FrameReader(), []
    start = 0
    for size in (*cuts, len(data)):
        reader.feed(data[start : start + size])
        start += size
        while (frame := reader.next()) is not None:
            seen.append(frame)
    assert seen == [*CONTROLS, b"KT..."]


def test_sealed_frames_verify_in_their_order_and_connection_only() -> None:
    """Not replayed, not moved, not changed, not of another connection."""
    sending = Seal(7, KEYS, b"client")
    frames = [encode_control(control, sending) for control in CONTROLS]
    assert frames_of(b"".join(frames), Seal(7, KEYS, b"client")) == list(CONTROLS)
    changed = bytearray(frames[0])
    changed[6] ^= 1
    for wrong, nonce in (
        (frames[1], b"client"),
        (frames[0] + frames[0], b"client"),
        (frames[0], b"other"),
        (bytes(changed), b"client"),
    ):
        with pytest.raises(WireError):
            frames_of(wrong, Seal(7, KEYS, nonce))
    with pytest.raises(WireError):
        frames_of(encode_control(CONTROLS[0]), Seal(7, KEYS, b"client"))


def test_renewed_seal_goes_on_with_its_numbers() -> None:
    """`Open` is signed before the server's nonce is known."""
    sending, receiving = Seal(7, KEYS, b""), Seal(7, KEYS, b"")
    first = encode_control(CONTROLS[0], sending)
    assert frames_of(first, receiving) == [CONTROLS[0]]
    second = encode_control(CONTROLS[2], sending.renew(b"s"))
    assert frames_of(second, receiving.renew(b"s")) == [CONTROLS[2]]


def test_frames_beyond_the_bound_are_refused_both_ways() -> None:
    """Before anything is held."""
    with pytest.raises(LengthMismatchError):
        encode_frame(FrameKind.DATAGRAM, bytes(RECOVERY_FRAME_MAX_BYTES))
    with pytest.raises(LengthMismatchError):
        frames_of((RECOVERY_FRAME_MAX_BYTES + 1).to_bytes(4, "little") + b"\x00")


@given(st.binary(max_size=200))
def test_garbage_on_tcp_is_a_wire_error(data: bytes) -> None:
    """Whatever comes; also as a control message of the right length."""
    for stream in (data, encode_frame(FrameKind.CONTROL, data)):
        try:
            frames_of(stream)
        except WireError:
            continue


@pytest.mark.parametrize("seal", [None, (7, KEYS, b"n" * 16)])
def test_books_are_frames_within_the_bound_and_come_back_as_they_were(seal):
    books = [PackedBook(f"KX{n}", n, 0, 1, -1, 3, n, bytes(n)) for n in range(0, 30_000, 500)]
    payloads = frame_books(9, [encode_book(book) for book in books])
    assert 1 < len(payloads) < len(books)
    sending = None if seal is None else Seal(*seal)
    data = b"".join(encode_frame(FrameKind.BOOKS, payload, sending) for payload in payloads)
    frames = frames_of(data, None if seal is None else Seal(*seal))
    assert [frame.session for frame in frames] == [9] * len(payloads)
    assert [book for frame in frames for book in frame.books] == books


@given(st.binary(max_size=100))
def test_books_that_do_not_decode_are_malformed(payload):
    data = encode_frame(FrameKind.BOOKS, payload)
    try:
        frames_of(data)
    except MalformedBodyError:
        return
    decode_books(payload)
