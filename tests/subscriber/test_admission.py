"""With keys: whatever an attacker sends, a subscriber delivers, tells and waits as if nobody had."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import AnyMessage, SessionStart, Stream, Trade
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    FLAG_REBUILDING,
    FLAGS_OFFSET,
    HeartbeatBody,
    Kind,
    encode_datagram,
    encode_heartbeat,
)
from tickerplant.limits import (
    END_OF_SESSION_DOUBT_NS,
    REORDER_WAIT_NS,
    REPLAY_WINDOW_NS,
    SEQUENCE_AHEAD_MESSAGES,
    STREAM_DEAD_NS,
)
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Event,
    Gap,
    SessionChanged,
    SessionEnded,
    StreamAlive,
    StreamDead,
)
from tickerplant_subscriber.stream_state import Messages, StreamState

NOW_NS = 1_800_000_000_000_000_000
SESSION = NOW_NS - 1_000_000_000
MS = 1_000_000
RING = KeyRing([(7, b"k" * 32), (8, b"l" * 32)])
OTHER = KeyRing([(7, b"x" * 32)])
TRADE, STATUS = Stream.TRADE, Stream.STATUS
_SESSION_SEQ_TIME = struct.Struct("<QQQ")


@dataclass
class Subscription:
    """An arbiter with keys, and all that came out of it but refusals, which are counted apart."""

    ring: KeyRing | None = RING
    output: list[Any] = field(default_factory=list)
    refused: list[DatagramsRefused] = field(default_factory=list)
    now_ns: int = NOW_NS

    def __post_init__(self) -> None:
        self.arbiter = Arbiter(
            (TRADE, STATUS),
            self._deliver,
            self._tell,
            started_ns=0,
            admission=Admission(self.ring),
        )

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, sent_ns: int
    ) -> None:
        self.output += [
            (state.stream, state.session, first_seq + index, message, sent_ns)
            for index, message in enumerate(messages)
        ]

    def _tell(self, event: Event) -> None:
        if isinstance(event, DatagramsRefused):
            self.refused.append(event)
        else:
            self.output.append(event)

    def advance(self, now_ns: int) -> None:
        """Lets the time pass, timers included."""
        while (due_ns := self.arbiter.next_deadline_ns()) is not None and due_ns <= now_ns:
            self.arbiter.handle_timer(due_ns)
        self.now_ns = now_ns

    def receive(self, datagram: bytes, line: int = 0) -> None:
        self.arbiter.receive(line, datagram, self.now_ns)

    def refusals(self) -> dict[str, int]:
        """Datagrams refused so far, by reason."""
        counts: dict[str, int] = {}
        for (_, error), refusals in self.arbiter.refusals.items():
            counts[error] = counts.get(error, 0) + refusals.count
        return counts

    def seqs(self, stream: Stream = TRADE) -> list[int]:
        return [item[2] for item in self.output if isinstance(item, tuple) and item[0] == stream]

    def events(self, kind: type[Event]) -> list[Event]:
        return [item for item in self.output if isinstance(item, kind)]


def trade(
    seq: int,
    count: int = 1,
    *,
    sent_ns: int = NOW_NS,
    session: int = SESSION,
    ring: KeyRing | None = RING,
) -> bytes:
    """A datagram of trades."""
    messages: list[AnyMessage] = [
        Trade("KXTEST", seq + index, 0, 0, f"{seq + index}", 1, 1, 0) for index in range(count)
    ]
    datagram = encode_datagram(0, TRADE, session, seq, sent_ns, messages)
    return datagram if ring is None else ring.sign(datagram)


def heartbeat(
    next_seq: int,
    *,
    stream: Stream = TRADE,
    sent_ns: int = NOW_NS,
    session: int = SESSION,
    kind: Kind = Kind.HEARTBEAT,
    flags: int = 0,
    ring: KeyRing | None = RING,
) -> bytes:
    """A heartbeat or end of session."""
    datagram = encode_heartbeat(
        stream, session, next_seq, sent_ns, HeartbeatBody(next_seq - 1), kind, flags=flags
    )
    return datagram if ring is None else ring.sign(datagram)


@pytest.fixture
def subscription() -> Subscription:
    """One that has heard the first two trades."""
    made = Subscription()
    made.receive(trade(1, 2))
    return made


# --- what is not signed with our keys ---------------------------------------------------------------

FORGERIES = {
    "unsigned": trade(3, ring=None),
    "another key": trade(3, ring=OTHER),
    "unknown key": trade(3, ring=KeyRing([(9, b"k" * 32)])),
    "far sequence": trade(2**60, ring=None),
    "far sequence, another key": trade(2**60, ring=OTHER),
    "far heartbeat": heartbeat(2**60, ring=OTHER),
    "end of session": heartbeat(3, kind=Kind.END_OF_SESSION, ring=OTHER),
    "higher session": trade(1, session=SESSION + 1, ring=OTHER),
    "lower session": trade(1, session=SESSION - 1, ring=OTHER),
    "far session": trade(1, session=2**63, ring=OTHER),
    "another plant": heartbeat(1, ring=None)[:36] + b"\x07\0\0\0" + heartbeat(1, ring=None)[40:],
    "truncated": trade(3)[:-1],
    "header alone": trade(3)[:40],
    "too long": trade(3) + b"\0",
    "foreign": b"\x00" * 100,
    "empty": b"",
    "flag of the trailer removed": trade(3)[:5] + b"\0" + trade(3)[6:],
    "trailer removed, flag left": trade(3)[:-20],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_changes_nothing_and_is_counted(subscription: Subscription, name: str) -> None:
    before = list(subscription.output)
    deadline_ns = subscription.arbiter.next_deadline_ns()
    subscription.now_ns += 500 * MS
    subscription.receive(FORGERIES[name])
    assert subscription.output == before
    assert subscription.arbiter.next_deadline_ns() == deadline_ns
    assert sum(subscription.refusals().values()) == 1
    assert len(subscription.arbiter.plants) == 1
    subscription.receive(trade(3))
    assert subscription.seqs() == [1, 2, 3]
    assert not subscription.events(SessionChanged)[1:]


def test_what_is_refused_is_told_with_its_reason(subscription: Subscription) -> None:
    subscription.receive(trade(3, ring=None))
    (told,) = subscription.refused
    assert told.error == "AuthenticationError"
    assert "without trailer" in told.detail


def test_without_keys_a_trailer_is_no_obstacle() -> None:
    subscription = Subscription(ring=None)
    subscription.receive(trade(1))
    subscription.receive(trade(2, ring=None))
    assert subscription.seqs() == [1, 2]


def test_a_datagram_under_any_of_the_keys_is_taken(subscription: Subscription) -> None:
    """While a new key is rolled out both are on the wire."""
    newer = KeyRing([(8, b"l" * 32), (9, b"n" * 32)])
    subscription.receive(trade(3, ring=newer))
    assert subscription.seqs() == [1, 2, 3]
    subscription.arbiter.admission.key_ring = newer
    subscription.receive(trade(4, ring=KeyRing([(9, b"n" * 32)])))
    subscription.receive(trade(5, ring=KeyRing([(7, b"k" * 32)])))
    assert subscription.seqs() == [1, 2, 3, 4]


# --- what was signed, recorded, and is sent again ---------------------------------------------------


@pytest.mark.parametrize(
    ("age_ns", "taken"),
    [
        (0, True),
        (REPLAY_WINDOW_NS, True),
        (REPLAY_WINDOW_NS + 1, False),
        (-REPLAY_WINDOW_NS, True),
        (-REPLAY_WINDOW_NS - 1, False),
    ],
)
def test_the_replay_window(age_ns: int, taken: bool) -> None:
    """A session recorded yesterday is not heard by a subscriber that starts today."""
    subscription = Subscription()
    subscription.receive(trade(1, sent_ns=NOW_NS - age_ns))
    assert subscription.seqs() == ([1] if taken else [])
    assert subscription.refusals() == ({} if taken else {"outside_replay_window": 1})


def test_the_replay_window_follows_the_wall_clock() -> None:
    """Our own clock was an hour ahead when we started, and is right now."""
    subscription = Subscription()
    subscription.now_ns = NOW_NS + 3_600_000 * MS
    subscription.receive(trade(1))
    assert subscription.seqs() == []
    assert "played back, or the clocks" in subscription.refused[0].detail
    subscription.arbiter.admission.wall_step_ns = -3_600_000 * MS
    subscription.receive(trade(1))
    assert subscription.seqs() == [1]


def test_a_dead_plant_cannot_be_played_alive(subscription: Subscription) -> None:
    """Its last datagrams come again and again; the stream is dead all the same, and only the plant revives it."""
    recorded = [trade(1, 2), heartbeat(3, sent_ns=NOW_NS + 10 * MS)]
    subscription.receive(recorded[1])
    for step in range(1, 40):
        subscription.advance(NOW_NS + step * 100 * MS)
        for datagram in recorded:
            subscription.receive(datagram, step % 2)
    assert TRADE in {event.stream for event in subscription.events(StreamDead)}  # type: ignore[attr-defined]
    assert not subscription.events(StreamAlive)
    subscription.receive(heartbeat(3, sent_ns=subscription.now_ns))
    (alive,) = subscription.events(StreamAlive)
    assert (alive.stream, alive.contiguous) == (TRADE, True)  # type: ignore[attr-defined]
    assert subscription.seqs() == [1, 2]


def test_an_older_heartbeat_does_not_take_back_what_a_newer_one_said(
    subscription: Subscription,
) -> None:
    old = heartbeat(3, sent_ns=NOW_NS + MS, flags=FLAG_NOT_REPAIRABLE | FLAG_REBUILDING)
    subscription.receive(old)
    state = next(state for state in subscription.arbiter.states() if state.stream == TRADE)
    assert state.flags & FLAG_NOT_REPAIRABLE
    subscription.receive(heartbeat(3, sent_ns=NOW_NS + 2 * MS))
    for line in (0, 1):
        subscription.receive(old, line)
        assert not state.flags & FLAG_NOT_REPAIRABLE


def test_each_line_is_heard_for_itself(subscription: Subscription) -> None:
    """The copy on line B was sent at the same time as that on line A, and shows that line B lives."""
    state = next(state for state in subscription.arbiter.states() if state.stream == TRADE)
    subscription.now_ns += 10 * MS
    subscription.receive(trade(3, sent_ns=NOW_NS + 9 * MS))
    subscription.now_ns += MS
    subscription.receive(trade(3, sent_ns=NOW_NS + 9 * MS), 1)
    subscription.receive(heartbeat(4, sent_ns=NOW_NS + 20 * MS), 1)
    assert state.last_heard_ns == subscription.now_ns
    assert [line.last_heard_ns for line in state.lines] == [NOW_NS + 10 * MS, NOW_NS + 11 * MS]
    assert [line.heartbeats for line in state.lines] == [0, 1]


def test_the_first_end_of_session_may_be_as_old_as_the_last_data(
    subscription: Subscription,
) -> None:
    subscription.receive(heartbeat(3, kind=Kind.END_OF_SESSION))
    state = next(state for state in subscription.arbiter.states() if state.stream == TRADE)
    assert state.ended


def test_an_older_session_played_back_is_fenced(subscription: Subscription) -> None:
    subscription.receive(trade(1, session=SESSION + 5, sent_ns=NOW_NS + MS))
    subscription.receive(trade(3, sent_ns=NOW_NS + 2 * MS))
    subscription.receive(trade(2, session=SESSION + 5, sent_ns=NOW_NS + 3 * MS))
    sessions = [item[1:3] for item in subscription.output if isinstance(item, tuple)]
    assert sessions == [(SESSION, 1), (SESSION, 2), (SESSION + 5, 1), (SESSION + 5, 2)]


def test_a_plant_whose_clock_was_set_back_between_sessions_is_heard(
    subscription: Subscription,
) -> None:
    """The newer session counts, not the older time."""
    subscription.receive(trade(1, session=SESSION + 5, sent_ns=NOW_NS - 30_000 * MS))
    subscription.advance(NOW_NS + STREAM_DEAD_NS - MS)
    subscription.receive(trade(2, session=SESSION + 5, sent_ns=NOW_NS - 27_000 * MS))
    subscription.advance(NOW_NS + STREAM_DEAD_NS + MS)
    dead = {event.stream for event in subscription.events(StreamDead)}  # type: ignore[attr-defined]
    assert TRADE not in dead


# --- without keys: what cannot be true --------------------------------------------------------------


@pytest.fixture
def unkeyed() -> Subscription:
    """One without keys that has heard the first two trades."""
    made = Subscription(ring=None)
    made.receive(trade(1, 2, ring=None))
    return made


@pytest.mark.parametrize(
    "forged",
    [
        trade(2**60, ring=None),
        trade(SEQUENCE_AHEAD_MESSAGES + 4, ring=None),
        heartbeat(2**60, ring=None),
        heartbeat(2**60, ring=None, kind=Kind.END_OF_SESSION),
        trade(2**60, ring=None, session=SESSION + 1),
    ],
    ids=["data", "just too far", "heartbeat", "end of session", "higher session"],
)
def test_a_sequence_that_cannot_be_true_is_refused(unkeyed: Subscription, forged: bytes) -> None:
    before = list(unkeyed.output)
    for _ in range(3):
        unkeyed.receive(forged)
    assert unkeyed.refusals() == {"sequence_ahead": 3}
    assert unkeyed.output == before
    assert all(not state.holes for state in unkeyed.arbiter.states())
    unkeyed.receive(trade(3, ring=None))
    assert unkeyed.seqs() == [1, 2, 3]


@pytest.mark.parametrize("silent_s", [0, 30, 3_600])
def test_what_a_plant_can_have_published_meanwhile_is_believed(
    unkeyed: Subscription, silent_s: int
) -> None:
    """After a blackout the stream goes on; what is missing is a gap."""
    unkeyed.advance(NOW_NS + silent_s * 1_000 * MS)
    furthest = 3 + SEQUENCE_AHEAD_MESSAGES * (silent_s + 1)
    unkeyed.receive(trade(furthest + 1, ring=None))
    assert unkeyed.seqs() == [1, 2]
    unkeyed.receive(trade(furthest, ring=None))
    unkeyed.advance(unkeyed.now_ns + REORDER_WAIT_NS)
    assert unkeyed.seqs() == [1, 2, furthest]
    (gap,) = unkeyed.events(Gap)
    assert (gap.from_seq, gap.to_seq) == (3, furthest - 1)  # type: ignore[attr-defined]


def test_the_first_sequence_of_a_late_join_is_bounded_by_the_age_of_the_session() -> None:
    unkeyed = Subscription(ring=None)
    unkeyed.receive(trade(10**9, ring=None))
    assert unkeyed.refusals() == {"sequence_ahead": 1}
    assert not unkeyed.arbiter.plants
    unkeyed.receive(trade(50_000_000, ring=None))
    assert unkeyed.events(SessionChanged)


def test_with_keys_a_signed_sequence_is_true_however_far(subscription: Subscription) -> None:
    subscription.receive(trade(2**60))
    subscription.advance(NOW_NS + REORDER_WAIT_NS)
    assert subscription.seqs() == [1, 2, 2**60]


def test_an_end_of_session_that_the_plant_contradicts_was_forged(unkeyed: Subscription) -> None:
    unkeyed.receive(heartbeat(3, ring=None, kind=Kind.END_OF_SESSION))
    assert unkeyed.events(SessionEnded)
    unkeyed.receive(trade(3, ring=None))
    (alive,) = unkeyed.events(StreamAlive)
    assert alive.contiguous  # type: ignore[attr-defined]
    unkeyed.receive(trade(4, ring=None))
    assert unkeyed.seqs() == [1, 2, 3, 4]
    assert len(unkeyed.events(SessionEnded)) == 1


def test_a_heartbeat_long_after_an_end_of_session_contradicts_it(unkeyed: Subscription) -> None:
    """One that comes soon after was only late."""
    unkeyed.receive(heartbeat(3, ring=None, kind=Kind.END_OF_SESSION))
    unkeyed.advance(NOW_NS + END_OF_SESSION_DOUBT_NS)
    unkeyed.receive(heartbeat(3, ring=None))
    assert not unkeyed.events(StreamAlive)
    unkeyed.advance(NOW_NS + END_OF_SESSION_DOUBT_NS + MS)
    unkeyed.receive(heartbeat(3, ring=None, kind=Kind.END_OF_SESSION))
    assert not unkeyed.events(StreamAlive)
    unkeyed.receive(heartbeat(3, ring=None))
    (alive,) = unkeyed.events(StreamAlive)
    assert alive.contiguous  # type: ignore[attr-defined]


# --- any attack on any feed -------------------------------------------------------------------------


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
@settings(deadline=None, max_examples=300)
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
