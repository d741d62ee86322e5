"""With keys: whatever an attacker sends, a subscriber delivers, tells and waits as if nobody had."""

import pytest
from signed_subscription import (
    MS,
    NOW_NS,
    OTHER,
    SESSION,
    TRADE,
    Subscription,
    heartbeat,
    trade,
)

from tickerplant.core.keyring import KeyRing
from tickerplant.core.wire import (
    FLAG_NOT_REPAIRABLE,
    FLAG_REBUILDING,
    Kind,
)
from tickerplant.limits import (
    END_OF_SESSION_DOUBT_NS,
    REORDER_WAIT_NS,
    REPLAY_WINDOW_NS,
    SEQUENCE_AHEAD_MESSAGES,
    STREAM_DEAD_NS,
)
from tickerplant_subscriber.events import Gap, SessionChanged, SessionEnded, StreamAlive, StreamDead


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
