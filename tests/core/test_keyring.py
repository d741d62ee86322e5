"""The key ring signs and verifies exactly as the wire format says, faster; and reads keys without ever showing them."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tickerplant.core import wire
from tickerplant.core.keyring import KeyRing, add_flags, format_key, parse_keys
from tickerplant.core.messages import BookState, Stream, Trade
from tickerplant.core.plant import Plant
from tickerplant.errors import AuthenticationError, CredentialsError
from tickerplant.limits import (
    BODY_MAX_BYTES,
    DATAGRAM_KEYS_MAX,
    DATAGRAM_MAX_BYTES,
    END_OF_SESSION_AT_NS,
)

NOW_NS = 1_790_000_000_000_000_000
RING = KeyRing([(7, b"k" * 32), (8, b"l" * 32)])
FLAGS = st.integers(0, 255).map(lambda flags: flags & ~wire.FLAG_AUTHENTICATED)
KEYS = st.dictionaries(
    st.integers(1, 2**32 - 1), st.binary(min_size=32, max_size=32), min_size=1, max_size=4
)


def datagram_of(body: bytes = b"\x90", flags: int = 0) -> bytes:
    """A datagram with this body, whatever it holds."""
    return wire.frame_body(
        body, kind=0, stream=4, session=9, seq=3, ts_send_ns=1, count=1, flags=flags
    )


@given(st.binary(max_size=BODY_MAX_BYTES), FLAGS, KEYS, st.booleans())
def test_the_ring_signs_as_the_wire_format_says(body, flags, keys, announced):
    """Whether the flag was set before or not, and with every other flag."""
    ring = KeyRing(keys.items())
    plain = datagram_of(body, flags)
    signed = wire.authenticate(plain, *next(iter(keys.items())))
    given_datagram = (
        datagram_of(body, flags | wire.FLAG_AUTHENTICATED) if announced and not flags & 3 else plain
    )
    assert ring.sign(given_datagram) == signed
    ring.verify(signed)
    wire.verify_authentic(signed, wire.decode_header(signed), ring.keys)


@given(st.binary(max_size=60), FLAGS, st.data())
def test_every_changed_byte_is_detected(body, flags, data):
    signed = bytearray(RING.sign(datagram_of(body, flags)))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    if place == wire.FLAGS_OFFSET:
        # Set anew when a datagram is sent again from the log, so they are not signed.
        assume((signed[place] ^ flags) & ~7)
        assume(signed[place] & wire.FLAG_AUTHENTICATED)
    with pytest.raises(AuthenticationError):
        RING.verify(bytes(signed))


@pytest.mark.parametrize("flags", [wire.FLAG_RETRANSMITTED, wire.FLAG_SNAPSHOT, 3])
def test_what_is_sent_again_from_the_log_verifies(flags):
    signed = bytearray(RING.sign(datagram_of()))
    signed[wire.FLAGS_OFFSET] |= flags
    RING.verify(bytes(signed))
    signed[-1] ^= 1
    with pytest.raises(AuthenticationError, match="does not verify"):
        RING.verify(bytes(signed))


def test_missing_unknown_and_wrong_keys_are_told_apart():
    signed = RING.sign(datagram_of())
    with pytest.raises(AuthenticationError, match="without trailer"):
        RING.verify(datagram_of())
    with pytest.raises(AuthenticationError, match="unknown key id 7"):
        KeyRing([(8, b"k" * 32)]).verify(signed)
    with pytest.raises(AuthenticationError, match="does not verify under key id 7"):
        KeyRing([(7, b"m" * 32)]).verify(signed)
    KeyRing([(8, b"l" * 32), (7, b"k" * 32)]).verify(signed)


@given(FLAGS, st.integers(0, 255))
def test_flags_added_later_are_signed_too(flags, added):
    added &= ~wire.FLAG_AUTHENTICATED
    plain = datagram_of(b"\x90", flags)
    assert add_flags(plain, added, None) == datagram_of(b"\x90", flags | added)
    again = add_flags(RING.sign(plain), added, RING)
    assert again == RING.sign(datagram_of(b"\x90", flags | added))
    RING.verify(again)


# --- a whole plant ----------------------------------------------------------------------------------


def inputs(plant: Plant) -> list[bytes]:
    """What a plant sends: start, a book, trades that fill datagrams, heartbeats, the end."""
    now_ns = NOW_NS
    datagrams = plant.flush(now_ns)
    entry = plant.open_book("KXTEST")
    plant.apply_snapshot(entry, [(4_000 + i, 100) for i in range(200)], [(6_000, 5)])
    for index in range(100):
        plant.publish_trade("KXTEST" * 20, 1, f"trade-{index}", 1, 2, 1, False)
    datagrams += plant.flush(now_ns)
    for _ in range(5):
        now_ns += 50_000_000
        datagrams += plant.handle_timer(now_ns)
    assert entry.state is BookState.LIVE
    datagrams += plant.end_session(now_ns)
    datagrams += plant.handle_timer(now_ns + END_OF_SESSION_AT_NS[-1])
    assert plant.ended
    return [datagram for _stream, datagram in datagrams]


def test_every_datagram_of_a_plant_with_keys_is_signed():
    """The datagrams are those of a plant without, plus flag and trailer; a full one stays within its bound."""
    plain = inputs(Plant(NOW_NS, NOW_NS))
    signed = inputs(Plant(NOW_NS, NOW_NS, key_ring=RING))
    assert {datagram[3] for datagram in signed} == set(wire.Kind)
    assert max(map(len, signed)) > DATAGRAM_MAX_BYTES - 200
    for one, other in zip(signed, plain, strict=True):
        assert one == RING.sign(other)
        assert len(one) <= DATAGRAM_MAX_BYTES
        RING.verify(one)
        messages = wire.decode_header(one)
        if messages.kind == wire.Kind.DATA:
            wire.decode_body(one, messages)


def test_what_the_log_did_not_take_says_so_and_is_signed_again():
    """The flag is signed; and so is all that follows, under newer keys too."""
    plant = Plant(NOW_NS, NOW_NS, key_ring=RING, log_on=True)
    datagrams = plant.flush(NOW_NS)
    assert not any(wire.decode_header(one).flags & 64 for _, one in datagrams)
    newer = KeyRing([(8, b"l" * 32)])
    plant.use_keys(newer)
    for _stream, datagram in plant.lose_log(datagrams) + plant.handle_timer(NOW_NS):
        assert wire.decode_header(datagram).flags & wire.FLAG_NOT_REPAIRABLE
        newer.verify(datagram)


def test_the_messages_do_not_depend_on_the_key():
    stamp = ("KXTEST", 1, 2, 3)
    datagram = wire.encode_datagram(0, Stream.TRADE, 9, 1, 2, [Trade(*stamp, "a", 1, 2, 0)])
    signed = RING.sign(datagram)
    header = wire.decode_header(signed)
    assert wire.decode_body(signed, header) == [Trade(*stamp, "a", 1, 2, 0)]


# --- the text of a key file -------------------------------------------------------------------------


@given(KEYS)
def test_keys_go_round(keys):
    text = "# comment\n\n" + "".join(format_key(*item) for item in keys.items())
    ring = parse_keys(text)
    assert ring.keys == keys
    assert ring.signing_key == next(iter(keys.items()))


def test_the_first_key_signs_and_comments_are_left_out():
    ring = parse_keys(f"  12\t{'aB' * 32}  # old\r\n#{'9' * 9}\n 3 {'00' * 32}")
    assert ring.signing_key == (12, b"\xab" * 32)
    assert list(ring.keys) == [12, 3]
    assert repr(ring) == "KeyRing(key_ids=[12, 3])"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no key"),
        ("# nothing", "holds no key"),
        (f"7 {'ab' * 31}", "line 1"),
        (f"7 {'ab' * 33}", "line 1"),
        (f"7 {'xy' * 32}", "line 1"),
        (f"\n7{'ab' * 32}", "line 2"),
        (f"7 {'ab' * 32} 8", "line 1"),
        (f"-7 {'ab' * 32}", "line 1"),
        (f"{2**32} {'ab' * 32}", "out of range"),
        (f"0 {'ab' * 32}", "out of range"),
        (f"{'9' * 5000} {'ab' * 32}", "line 1"),
        (f"\N{SUPERSCRIPT TWO} {'ab' * 32}", "line 1"),
        (f"7 {'ab' * 32}\n7 {'cd' * 32}", "stands twice"),
        (f"7 {'ab' * 32}\n7 {'ab' * 32}", "stands twice"),
        ("".join(format_key(1 + i, b"k" * 32) for i in range(DATAGRAM_KEYS_MAX + 1)), "17 keys"),
    ],
)
def test_what_is_no_key_file_is_refused_without_showing_it(text, problem):
    with pytest.raises(CredentialsError, match=problem) as caught:
        parse_keys(text)
    assert "ab" * 8 not in str(caught.value)


def test_a_key_of_another_length_is_refused():
    with pytest.raises(CredentialsError, match="16 bytes"):
        KeyRing([(1, b"k" * 16)])
    with pytest.raises(CredentialsError, match="0 keys"):
        KeyRing([])
