"""With keys: any attack on any feed, drawn at random, changes nothing that a subscriber does."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from signed_subscription import (
    MS,
    NOW_NS,
    OTHER,
    RING,
    SESSION,
    STATUS,
    Subscription,
    heartbeat,
    trade,
)

from tickerplant.core.messages import SessionStart
from tickerplant.core.wire import FLAGS_OFFSET, Kind, encode_datagram
from tickerplant.limits import STREAM_DEAD_NS

_SESSION_SEQ_TIME = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Arrival:
    """A datagram of the plant as it comes."""

    at_ns: int
    line: int
    datagram: bytes


@st.composite
def feeds(draw: st.DrawFn) -> list[Arrival]:
    """Two sessions of a plant on two lossy lines: trades, heartbeats, ends."""
    arrivals = []
    at_ns = NOW_NS
    for session in (SESSION, SESSION + 1):
        start = SessionStart("", 0, 0, at_ns, session - 1, ())
        sent = [RING.sign(encode_datagram(0, STATUS, session, 1, at_ns, [start]))]
        seq = 1
        for _ in range(draw(st.integers(1, 8))):
            at_ns += draw(st.sampled_from((1_000, 2 * MS, 900 * MS, 4_000 * MS)))
            if draw(st.integers(0, 3)):
                count = draw(st.integers(1, 3))
                sent.append(trade(seq, count, sent_ns=at_ns, session=session))
                seq += count
            else:
                sent.append(heartbeat(seq, sent_ns=at_ns, session=session))
                sent.append(heartbeat(2, stream=STATUS, sent_ns=at_ns, session=session))
        sent.append(heartbeat(seq, sent_ns=at_ns + MS, session=session, kind=Kind.END_OF_SESSION))
        for datagram in sent:
            (sent_ns,) = struct.unpack_from("<Q", datagram, 24)
            arrivals += [
                Arrival(sent_ns + line * 1_000, line, datagram)
                for line in (0, 1)
                if draw(st.integers(0, 5))
            ]
        at_ns += 2_000 * MS
    return sorted(arrivals, key=lambda arrival: arrival.at_ns)


def _forged_header(chance: Any, datagram: bytes) -> bytes:
    """Another session, sequence or time, the rest as it was; signed with another key, or with the old trailer."""
    session, seq, sent_ns = _SESSION_SEQ_TIME.unpack_from(datagram, 8)
    session = chance.choice((session, session + 1, session - 1, 2**63, session + 10**9))
    seq = chance.choice((seq, seq + 1, 2**60, 2**64 - 100, 1))
    sent_ns = chance.choice((sent_ns, sent_ns + MS, 0, 2**63))
    forged = datagram[:8] + _SESSION_SEQ_TIME.pack(session, seq, sent_ns) + datagram[32:]
    if forged == datagram:
        return datagram[:-1]
    if chance.random() < 0.5:
        return forged
    plain = bytearray(forged[:-20])
    plain[FLAGS_OFFSET] &= ~4
    return bytes(plain) if chance.random() < 0.5 else OTHER.sign(bytes(plain))


def attacks(chance: Any, heard: list[bytes], coming: bytes) -> Iterator[bytes]:
    """What an attacker sends who knows all that was on the wire, and guesses what comes next."""
    for _ in range(chance.randrange(4)):
        known = chance.choice(heard) if heard else coming
        kind = chance.randrange(5)
        if kind == 0 and heard:
            again = bytearray(known)
            again[FLAGS_OFFSET] |= chance.choice((0, 0, 1, 2, 3))
            yield bytes(again)
        elif kind == 1:
            yield _forged_header(chance, chance.choice((known, coming)))
        elif kind == 2:
            damaged = bytearray(coming)
            place = chance.randrange(len(damaged))
            damaged[place] ^= 1 << chance.randrange(8)
            if place != FLAGS_OFFSET:
                yield bytes(damaged)
        elif kind == 3:
            yield coming[: chance.randrange(len(coming))]
        else:
            yield chance.randbytes(chance.randrange(200))


@given(feeds(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=120)
def test_under_attack_a_subscriber_does_what_it_does_in_peace(
    feed: list[Arrival], chance: Any
) -> None:
    """Delivers, tells and waits the same, whatever is forged, damaged, cut or played back in between."""
    peace, war = Subscription(), Subscription()
    heard: list[bytes] = []
    sent = 0
    for arrival in feed:
        for one in (peace, war):
            one.advance(arrival.at_ns)
        for datagram in attacks(chance, heard, arrival.datagram):
            sent += 1
            war.receive(datagram, chance.randrange(2))
            assert war.output == peace.output
        for one in (peace, war):
            one.receive(arrival.datagram, arrival.line)
        heard.append(arrival.datagram)
        assert war.output == peace.output
        assert war.arbiter.next_deadline_ns() == peace.arbiter.next_deadline_ns()
    for one in (peace, war):
        one.advance(feed[-1].at_ns + 2 * STREAM_DEAD_NS if feed else NOW_NS)
    assert war.output == peace.output
    assert not peace.refusals()
    assert len(war.arbiter.plants) <= 1
