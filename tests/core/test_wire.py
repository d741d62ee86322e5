"""KTP/1 both ways: every message type at its bounds, and nothing but `WireError` out of garbage."""

import contextlib

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tickerplant.core import wire
from tickerplant.core.messages import (
    AnyMessage,
    Bbo,
    BookClear,
    BookLevels,
    BookReady,
    BookStale,
    BookVerify,
    FeedState,
    LevelUpdate,
    MarketInfo,
    MarketState,
    SessionStart,
    Stream,
    Ticker,
    Trade,
    UpstreamGap,
)
from tickerplant.core.wire import HeartbeatBody, Kind
from tickerplant.errors import (
    AuthenticationError,
    ForeignDatagramError,
    LengthMismatchError,
    MalformedBodyError,
    OversizedMessageError,
    TruncatedDatagramError,
    UnsupportedVersionError,
    WireError,
)
from tickerplant.limits import (
    BODY_MAX_BYTES,
    BOOK_LEVELS_PER_PART,
    BOOK_PARTS_MAX,
    DATAGRAM_MAX_BYTES,
    HEADER_BYTES,
    PRICE_BANDS_MAX,
    PRICE_E4_MAX,
    SHORT_TEXT_MAX_BYTES,
    SIZE_E2_MAX,
    TEXT_FIELD_MAX_BYTES,
    TICKER_MAX_BYTES,
    TRAILER_BYTES,
)

U64_MAX = 2**64 - 1
I64_MAX = 2**63 - 1


def text_within(limit):
    """Texts of any script up to `limit` bytes of UTF-8, the bound itself often."""
    cut = st.text(st.characters(exclude_categories=["Cs"]), max_size=limit).map(
        lambda text: text.encode()[:limit].decode(errors="ignore")
    )
    return st.one_of(st.just("X" * limit), st.just(""), cut)


def between(low, high):
    """Integers with the bounds often."""
    return st.one_of(st.just(low), st.just(high), st.integers(low, high))


TICKERS = text_within(TICKER_MAX_BYTES)
TEXTS = text_within(TEXT_FIELD_MAX_BYTES)
SHORT = text_within(SHORT_TEXT_MAX_BYTES)
TIMES = between(0, I64_MAX)
PRICES = between(0, PRICE_E4_MAX)
SIZES = between(0, SIZE_E2_MAX)
SIGNED = between(-SIZE_E2_MAX, SIZE_E2_MAX)
ENUMS = between(0, 255)
U64 = between(0, U64_MAX)
STAMP = (TICKERS, U64, TIMES, TIMES)
LEVELS = st.one_of(
    st.just(tuple((PRICE_E4_MAX - slot, SIZE_E2_MAX) for slot in range(BOOK_LEVELS_PER_PART))),
    st.lists(st.tuples(PRICES, SIZES), max_size=BOOK_LEVELS_PER_PART).map(tuple),
)
BANDS = st.one_of(
    st.just(((PRICE_E4_MAX,) * 3,) * PRICE_BANDS_MAX),
    st.lists(st.tuples(PRICES, PRICES, PRICES), max_size=PRICE_BANDS_MAX).map(tuple),
)
FIELDS = {
    Trade: (*STAMP, TEXTS, PRICES, SIZES, ENUMS, st.booleans()),
    UpstreamGap: (*STAMP, TIMES, TIMES, ENUMS, ENUMS),
    Bbo: (*STAMP, PRICES, SIZES, PRICES, SIZES, ENUMS),
    Ticker: (*STAMP, PRICES, PRICES, SIZES, PRICES, SIZES, SIZES, SIZES, SIZES, SIGNED, SIGNED),
    LevelUpdate: (*STAMP, ENUMS, PRICES, SIGNED, SIZES, ENUMS),
    BookStale: (*STAMP, ENUMS),
    BookClear: STAMP,
    BookReady: (*STAMP, between(0, 2**32 - 1)),
    BookVerify: (*STAMP, between(0, 2**32 - 1)),
    SessionStart: (
        *STAMP,
        U64,
        st.lists(st.tuples(between(0, 255), U64), max_size=len(Stream)).map(tuple),
    ),
    MarketInfo: (*STAMP, TICKERS, TICKERS, TIMES, TIMES, SHORT, BANDS, SHORT, SHORT, SHORT),
    MarketState: (*STAMP, ENUMS, SHORT, between(-1, PRICE_E4_MAX)),
    FeedState: (*STAMP, ENUMS, TEXTS),
}
MESSAGES = {kind: st.builds(kind, *fields) for kind, fields in FIELDS.items()}
MESSAGES[BookLevels] = st.builds(
    lambda stamp, part, parts, levels, split: BookLevels(
        *stamp, part, parts, levels[:split], levels[split:]
    ),
    st.tuples(*STAMP),
    between(0, BOOK_PARTS_MAX - 1),
    between(1, BOOK_PARTS_MAX),
    LEVELS,
    between(0, BOOK_LEVELS_PER_PART),
)
ANY = st.one_of(*MESSAGES.values())
WIDEST_TEXT = "\N{GRINNING FACE}" * (TICKER_MAX_BYTES // 4)
WIDEST = {
    Trade: (WIDEST_TEXT, PRICE_E4_MAX, SIZE_E2_MAX, 255, True),
    UpstreamGap: (I64_MAX, I64_MAX, 255, 255),
    Bbo: (PRICE_E4_MAX, SIZE_E2_MAX, PRICE_E4_MAX, SIZE_E2_MAX, 255),
    Ticker: (
        PRICE_E4_MAX,
        PRICE_E4_MAX,
        SIZE_E2_MAX,
        PRICE_E4_MAX,
        *[SIZE_E2_MAX] * 4,
        *[-SIZE_E2_MAX] * 2,
    ),
    LevelUpdate: (255, PRICE_E4_MAX, -SIZE_E2_MAX, SIZE_E2_MAX, 255),
    BookStale: (255,),
    BookClear: (),
    BookReady: (2**32 - 1,),
    BookVerify: (2**32 - 1,),
    SessionStart: (U64_MAX, tuple((int(stream), U64_MAX) for stream in Stream)),
    MarketInfo: (
        *(WIDEST_TEXT, WIDEST_TEXT, I64_MAX, I64_MAX),
        *("X" * SHORT_TEXT_MAX_BYTES, ((PRICE_E4_MAX,) * 3,) * PRICE_BANDS_MAX),
        *["X" * SHORT_TEXT_MAX_BYTES] * 3,
    ),
    MarketState: (255, "X" * SHORT_TEXT_MAX_BYTES, PRICE_E4_MAX),
    FeedState: (255, "X" * TEXT_FIELD_MAX_BYTES),
    BookLevels: (
        *(BOOK_PARTS_MAX - 1, BOOK_PARTS_MAX),
        ((PRICE_E4_MAX, SIZE_E2_MAX),) * (BOOK_LEVELS_PER_PART // 2),
        ((PRICE_E4_MAX, SIZE_E2_MAX),) * (BOOK_LEVELS_PER_PART // 2),
    ),
}


def datagram_of(messages, *, stream=Stream.DELTA, seq=1, session=7, flags=0):
    """A data datagram."""
    return wire.encode_datagram(Kind.DATA, stream, session, seq, 1, messages, flags=flags)


def decode(datagram):
    """(header, messages or heartbeat body), as a receiver does it."""
    header = wire.decode_header(datagram)
    if header.kind == Kind.DATA:
        return header, wire.decode_body(datagram, header)
    return header, wire.decode_heartbeat(datagram, header)


def test_every_message_type_is_covered_here():
    """A new message type must come with its bounds."""
    assert set(MESSAGES) == set(WIDEST) == set(wire.MESSAGE_TYPES)
    tags = [kind.__struct_config__.tag for kind in wire.MESSAGE_TYPES]
    assert len(set(tags)) == len(tags)
    assert all(kind.stream in Stream for kind in wire.MESSAGE_TYPES)


@given(st.data(), st.sampled_from(wire.MESSAGE_TYPES))
@settings(max_examples=200)
def test_each_message_alone_goes_round_within_its_datagram(data, kind):
    """Any message within its documented bounds fits one datagram and comes back equal."""
    message = data.draw(MESSAGES[kind])
    datagram = datagram_of([message])
    assert len(datagram) + TRAILER_BYTES <= DATAGRAM_MAX_BYTES
    _, messages = decode(datagram)
    assert messages == [message]
    assert type(messages[0]) is kind


@pytest.mark.parametrize("kind", wire.MESSAGE_TYPES)
def test_the_widest_message_of_each_type_fits(kind):
    """Every field at the bound that costs the most bytes, at once."""
    message = kind(WIDEST_TEXT, U64_MAX, I64_MAX, I64_MAX, *WIDEST[kind])
    assert len(WIDEST_TEXT.encode()) == TICKER_MAX_BYTES == TEXT_FIELD_MAX_BYTES
    assert len(wire.encode_body([message])) <= BODY_MAX_BYTES
    assert decode(datagram_of([message]))[1] == [message]


@given(
    st.lists(ANY, min_size=1, max_size=12),
    st.sampled_from(Stream),
    between(1, 2**64 - 20),
    U64,
    st.integers(0, 65_535),
    st.integers(0, 65_535),
)
def test_datagrams_go_round(messages, stream, seq, session, publisher, partition):
    """Header and messages come back; a body that does not fit is refused before it is sent."""
    fields = {"publisher": publisher, "partition": partition, "flags": 16 | 64}
    size = len(wire.encode_body(messages))
    if size > BODY_MAX_BYTES:
        with pytest.raises(OversizedMessageError):
            wire.encode_datagram(0, stream, session, seq, 5, messages, **fields)
        return
    datagram = wire.encode_datagram(0, stream, session, seq, 5, messages, **fields)
    header, decoded = decode(datagram)
    assert decoded == messages
    assert header == wire.Header(
        *(wire.MAGIC, 1, 0, stream, 80, 1, session, seq, 5, len(messages), size),
        *(publisher, partition),
    )
    assert decode(memoryview(datagram)) == (header, decoded)


@given(st.sampled_from(Stream), between(1, 2**64 - 1), U64, U64, st.booleans())
def test_heartbeats_and_ends_of_session_go_round(stream, next_seq, sent, oldest, log_on):
    """Both carry the next expected seq and the same body."""
    body = HeartbeatBody(sent, oldest, log_on)
    for kind in (Kind.HEARTBEAT, Kind.END_OF_SESSION):
        datagram = wire.encode_heartbeat(stream, 9, next_seq, 3, body, kind=kind)
        header, decoded = decode(datagram)
        assert (header.kind, header.seq, header.message_count, decoded) == (kind, next_seq, 0, body)


def test_the_header_is_laid_out_as_the_design_says():
    """Byte by byte, so that another language can read it."""
    datagram = wire.encode_datagram(
        0, 4, 0x1122334455667788, 5, 0x0102030405060708, [BookClear("A", 1, 2, 3)], 9, 10, 64
    )
    assert datagram[:8] == bytes.fromhex("4b54 01 00 04 40 0100")
    assert datagram[8:16] == bytes.fromhex("8877665544332211")
    assert datagram[16:24] == bytes([5, 0, 0, 0, 0, 0, 0, 0])
    assert datagram[24:32] == bytes.fromhex("0807060504030201")
    assert datagram[32:40] == bytes([1, 0, 8, 0, 9, 0, 10, 0])
    assert datagram[40:] == bytes.fromhex("91 95 07 a1 41 01 02 03")
    assert HEADER_BYTES == 40


# --- evolution ------------------------------------------------------------------------------------


@given(ANY, st.lists(st.one_of(st.integers(0, U64_MAX), st.text(), st.none()), max_size=3))
def test_appended_fields_are_tolerated(message, appended):
    """A newer publisher may append fields to any message."""
    fields = [*msgspec.to_builtins(message), *appended]
    body = msgspec.msgpack.encode([fields])
    datagram = wire.frame_body(body, kind=0, stream=4, session=1, seq=1, ts_send_ns=0, count=1)
    assert decode(datagram)[1] == [message]


@given(st.lists(st.one_of(ANY, st.integers(15, 1000)), min_size=1, max_size=5))
def test_unknown_tags_are_skipped_and_take_their_sequence_number(parts):
    """None stands where a newer message type stood; its neighbours are read."""
    encoded = [
        [part, "x", 1] if isinstance(part, int) else msgspec.to_builtins(part) for part in parts
    ]
    body = msgspec.msgpack.encode(encoded)
    if len(body) > BODY_MAX_BYTES:
        return
    datagram = wire.frame_body(
        body, kind=0, stream=4, session=1, seq=1, ts_send_ns=0, count=len(parts)
    )
    expected = [None if isinstance(part, int) else part for part in parts]
    assert decode(datagram)[1] == expected


def test_fields_with_defaults_may_be_missing():
    """An older publisher that does not know the appended fields is still understood."""
    body = msgspec.msgpack.encode([[1, "A", 1, 2, 3, "id", 4, 5, 0]])
    datagram = wire.frame_body(body, kind=0, stream=1, session=1, seq=1, ts_send_ns=0, count=1)
    assert decode(datagram)[1] == [Trade("A", 1, 2, 3, "id", 4, 5, 0, is_block=False)]


# --- garbage --------------------------------------------------------------------------------------


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=1300, max_size=1500)))
def test_random_bytes_are_a_wire_error(data):
    """Noise on the group never looks like a datagram."""
    with pytest.raises(WireError):
        decode(data)


@given(st.binary(max_size=200), st.integers(0, 5), st.sampled_from(Kind))
@example(b"\xdd\xff\xff\xff\xff", 1, Kind.DATA)
@example(b"\x91" * 200, 1, Kind.DATA)
@example(b"\x91\x93\x08\xa1\xff", 1, Kind.DATA)
@example(b"\x91\xc1", 1, Kind.DATA)
@example(b"\x91\x91\xc3", 1, Kind.DATA)
@example(b"\x91\x91\xcf" + b"\xff" * 8, 1, Kind.DATA)
def test_random_bodies_decode_or_are_malformed(body, count, kind):
    """Whatever stands behind a valid header is messages, or one typed error."""
    datagram = wire.frame_body(
        body, kind=kind, stream=4, session=1, seq=1, ts_send_ns=0, count=count
    )
    try:
        header, decoded = decode(datagram)
    except (MalformedBodyError, LengthMismatchError):
        return
    if kind == Kind.DATA:
        assert header.message_count == len(decoded) == count


@given(st.lists(ANY, min_size=1, max_size=3), st.data())
def test_damaged_datagrams_decode_or_are_a_wire_error(messages, data):
    """Bits flipped, cut and spliced: a message list of the right length, or `WireError`."""
    body = wire.encode_body(messages)
    if len(body) > BODY_MAX_BYTES:
        return
    datagram = bytearray(datagram_of(messages))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(datagram[: data.draw(st.integers(0, len(datagram)))])
    for candidate in (bytes(datagram), damaged):
        with contextlib.suppress(WireError):
            header, decoded = decode(candidate)
            assert header.kind != Kind.DATA or len(decoded) == header.message_count


GOOD = datagram_of([BookClear("A", 1, 2, 3)])


def changed(offset, value, datagram=GOOD):
    """The datagram with bytes replaced."""
    return datagram[:offset] + value + datagram[offset + len(value) :]


@pytest.mark.parametrize(
    ("datagram", "error"),
    [
        (b"", TruncatedDatagramError),
        (GOOD[:39], TruncatedDatagramError),
        (changed(0, b"\x00"), ForeignDatagramError),
        (changed(2, b"\x02"), UnsupportedVersionError),
        (changed(3, b"\x03"), UnsupportedVersionError),
        (changed(4, b"\x00"), UnsupportedVersionError),
        (changed(4, b"\x06"), UnsupportedVersionError),
        (GOOD[:-1], LengthMismatchError),
        (GOOD + b"\0", LengthMismatchError),
        (changed(5, b"\x04"), LengthMismatchError),
        (changed(16, bytes(8)), LengthMismatchError),
        (changed(16, b"\xff" * 8), LengthMismatchError),
        (changed(32, bytes(2)), LengthMismatchError),
        (changed(3, b"\x01"), LengthMismatchError),
        (changed(32, b"\x02\x00"), MalformedBodyError),
        (changed(40, b"\xc0"), MalformedBodyError),
        (changed(40, b"\x92"), MalformedBodyError),
        (changed(42, b"\xc0"), MalformedBodyError),
        (changed(45, b"\xc0"), MalformedBodyError),
    ],
)
def test_each_malformation_has_its_error(datagram, error):
    """The named error of the tree, and no other."""
    with pytest.raises(error) as caught:
        decode(datagram)
    assert type(caught.value) is error


def test_an_oversized_body_is_refused_on_both_sides():
    """Nobody sends one, and one that comes all the same is not decoded."""
    body = b"\x91" + b"\xc0" * BODY_MAX_BYTES
    fields = {"kind": 0, "stream": 1, "session": 1, "seq": 1, "ts_send_ns": 0, "count": 1}
    with pytest.raises(OversizedMessageError):
        wire.frame_body(body, **fields)
    forged = wire.frame_body(b"", **fields)
    forged = changed(34, len(body).to_bytes(2, "little"), forged) + body
    with pytest.raises(LengthMismatchError):
        wire.decode_header(forged)


# --- authentication -------------------------------------------------------------------------------

KEY = bytes(range(32))
SIGNED = wire.authenticate(GOOD, 42, KEY)


def verify(datagram, keys=None):
    """Decodes and verifies, as a receiver with a key does."""
    header = wire.decode_header(datagram)
    wire.verify_authentic(datagram, header, {42: KEY} if keys is None else keys)
    return header


@given(
    st.lists(ANY, min_size=1, max_size=2),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=1, max_size=64),
)
def test_signed_datagrams_verify_and_decode(messages, key_id, key):
    """The trailer goes behind the body and changes nothing else."""
    if len(wire.encode_body(messages)) > BODY_MAX_BYTES:
        return
    signed = wire.authenticate(datagram_of(messages, flags=64), key_id, key)
    assert len(signed) <= DATAGRAM_MAX_BYTES
    header = verify(signed, {key_id: key})
    assert header.flags == wire.FLAG_AUTHENTICATED | wire.FLAG_NOT_REPAIRABLE
    assert wire.decode_body(signed, header) == messages


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_logged_bytes_stay_valid_when_resent(flags):
    """The flags retransmitted and snapshot may be set after signing."""
    resent = changed(wire.FLAGS_OFFSET, bytes([SIGNED[wire.FLAGS_OFFSET] | flags]), SIGNED)
    assert verify(resent).flags == 4 | flags
    fresh = wire.authenticate(changed(wire.FLAGS_OFFSET, bytes([flags])), 42, KEY)
    assert fresh == resent


def test_every_changed_bit_is_detected():
    """Header, body, key id and digest: only the two unsigned flags may change unseen."""
    for offset in range(len(SIGNED)):
        for bit in range(8):
            if offset == wire.FLAGS_OFFSET and bit < 2:
                continue
            tampered = changed(offset, bytes([SIGNED[offset] ^ (1 << bit)]), SIGNED)
            with pytest.raises(WireError):
                verify(tampered)


def test_wrong_missing_and_unknown_keys():
    """Each is an authentication error of its own words."""
    for datagram, keys, words in (
        (GOOD, {42: KEY}, "without trailer"),
        (SIGNED, {}, "unknown key id 42"),
        (SIGNED, {42: b"other"}, "does not verify"),
    ):
        with pytest.raises(AuthenticationError, match=words):
            verify(datagram, keys)


def test_any_message_is_the_union_of_all_types():
    """The decoder knows what the type says."""
    assert set(AnyMessage.__args__) == set(wire.MESSAGE_TYPES)
