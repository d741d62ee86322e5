"""The arbiter: every message once and in order, or covered by exactly one gap."""

from collections.abc import Callable
from typing import Any

import pytest

from tickerplant.core.messages import GapCause, SessionStart, Stream, Trade
from tickerplant.core.wire import HeartbeatBody, Kind, encode_datagram, encode_heartbeat
from tickerplant.limits import (
    PLANTS_MAX,
    REORDER_DATAGRAMS_MAX,
    REORDER_WAIT_NS,
    SESSION_AHEAD_MAX_NS,
    STREAM_DEAD_NS,
)
from tickerplant_subscriber.events import (
    UNKNOWN_SEQ,
    DatagramsRefused,
    Event,
    Gap,
    SessionChanged,
    SessionEnded,
    StreamAlive,
    StreamDead,
)

SESSION = 1_000
TRADE = Stream.TRADE
MakeBench = Callable[..., Any]


def test_in_order_datagrams_are_delivered_at_once(bench: Any) -> None:
    bench.data(1, 3)
    bench.data(4, 2)
    assert bench.seqs() == [1, 2, 3, 4, 5]
    assert [item[3].g for item in bench.output if isinstance(item, tuple)] == [1, 2, 3, 4, 5]
    assert bench.events() == [SessionChanged(SESSION, 0)]


def test_the_second_line_is_dropped_and_counted(bench: Any) -> None:
    for seq in (1, 2, 3):
        bench.data(seq, line=0)
        bench.data(seq, line=1)
    lines = next(state for state in bench.arbiter.states() if state.stream == TRADE).lines
    assert bench.seqs() == [1, 2, 3]
    assert [(line.datagrams, line.wins, line.duplicates) for line in lines] == [
        (3, 3, 0),
        (3, 0, 3),
    ]


def test_line_b_fills_what_line_a_lost(bench: Any) -> None:
    bench.data(1)
    bench.data(3)
    assert bench.seqs() == [1]
    bench.data(2, line=1)
    assert bench.seqs() == [1, 2, 3]
    bench.wait(10 * REORDER_WAIT_NS)
    assert not bench.events(Gap)


def test_a_hole_is_a_gap_after_the_wait_and_not_before(bench: Any) -> None:
    bench.data(1)
    bench.data(5, 2)
    bench.wait(REORDER_WAIT_NS - 1)
    assert bench.seqs() == [1]
    bench.wait(1)
    assert bench.output[-3] == Gap(TRADE, SESSION, 2, 4, GapCause.NETWORK)
    assert bench.seqs() == [1, 5, 6]


def test_messages_that_come_after_their_gap_are_dropped(bench: Any) -> None:
    bench.data(1)
    bench.data(3)
    bench.wait(REORDER_WAIT_NS)
    bench.data(2)
    assert bench.seqs() == [1, 3]


def test_each_hole_has_its_own_deadline(bench: Any) -> None:
    bench.data(1)
    bench.data(3)
    bench.wait(REORDER_WAIT_NS // 2)
    bench.data(5)
    bench.wait(REORDER_WAIT_NS // 2)
    assert bench.seqs() == [1, 3]
    bench.data(4)
    assert bench.seqs() == [1, 3, 4, 5]
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 2, 2, GapCause.NETWORK)]


def test_partial_overlap_delivers_only_what_was_not_seen(bench: Any) -> None:
    bench.data(1, 4)
    bench.data(3, 4, line=1)
    bench.data(2, 2, line=1)
    assert bench.seqs() == [1, 2, 3, 4, 5, 6]
    bench.data(10, 2)
    bench.data(9, 5, line=1)
    bench.data(7, 4, line=1)
    assert bench.seqs() == list(range(1, 14))


def test_a_heartbeat_reveals_what_was_lost_at_the_tail(bench: Any) -> None:
    bench.data(1, 2)
    bench.heartbeat(4)
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 3, 3, GapCause.NETWORK)]
    bench.data(4)
    assert bench.seqs() == [1, 2, 4]


def test_a_heartbeat_that_overtakes_its_data_is_no_gap(bench: Any) -> None:
    bench.heartbeat(3, line=1)
    bench.data(1, 2)
    bench.wait(2 * REORDER_WAIT_NS)
    assert bench.seqs() == [1, 2]
    assert not bench.events(Gap)


@pytest.mark.parametrize(
    ("started_ns", "cause"), [(SESSION, GapCause.LATE_JOIN), (SESSION - 1, GapCause.NETWORK)]
)
def test_a_session_older_than_our_start_was_joined_late(
    make_bench: MakeBench, started_ns: int, cause: GapCause
) -> None:
    bench = make_bench(started_ns=started_ns)
    bench.data(50, 2)
    assert bench.seqs() == []
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 1, 49, cause)]
    bench.data(55)
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(Gap)[1:] == [Gap(TRADE, SESSION, 52, 54, GapCause.NETWORK)]


def test_a_late_join_on_a_quiet_stream_is_told_by_the_heartbeat(make_bench: MakeBench) -> None:
    bench = make_bench(started_ns=SESSION)
    bench.heartbeat(10, 9)
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 1, 9, GapCause.LATE_JOIN)]


def test_kernel_drops_name_the_cause_once(bench: Any) -> None:
    bench.data(1)
    bench.arbiter.note_kernel_drops(TRADE, 3)
    bench.data(3)
    bench.wait(REORDER_WAIT_NS)
    bench.data(5)
    bench.wait(REORDER_WAIT_NS)
    causes = [gap.cause for gap in bench.events(Gap)]
    assert causes == [GapCause.KERNEL_DROP, GapCause.NETWORK]


def test_the_reorder_buffer_is_bounded(bench: Any) -> None:
    bench.data(1)
    for seq in range(3, 3 + 2 * REORDER_DATAGRAMS_MAX + 2, 2):
        bench.data(seq)
    state = next(state for state in bench.arbiter.states() if state.stream == TRADE)
    assert len(state.buffered) <= REORDER_DATAGRAMS_MAX
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 2, 2, GapCause.NETWORK)]
    assert bench.seqs() == [1, 3]


def test_heartbeats_alone_cannot_pile_up_holes(bench: Any) -> None:
    for next_seq in range(2, REORDER_DATAGRAMS_MAX + 10):
        bench.heartbeat(next_seq)
    state = next(state for state in bench.arbiter.states() if state.stream == TRADE)
    assert len(state.holes) == REORDER_DATAGRAMS_MAX
    assert len(bench.events(Gap)) == 8


# --- sessions -------------------------------------------------------------------------------------


def start_message(previous: int, *final_seqs: tuple[int, int]) -> SessionStart:
    """The first status message of a session."""
    return SessionStart("", 0, 0, 0, previous, final_seqs)


def test_a_new_session_starts_at_one_and_the_old_one_is_dropped(bench: Any) -> None:
    bench.data(1, 3)
    bench.data(1, 2, session=SESSION + 1)
    bench.data(4, session=SESSION)
    assert bench.events(SessionChanged)[1:] == [SessionChanged(SESSION + 1, SESSION)]
    assert bench.seqs(session=SESSION) == [1, 2, 3]
    assert bench.seqs(session=SESSION + 1) == [1, 2]
    assert bench.arbiter.lower_session_datagrams == 1


def test_other_streams_finish_the_old_session_first(bench: Any) -> None:
    bench.data(1)
    bench.data(1, stream=Stream.STATUS, session=SESSION + 1, messages=[start_message(SESSION)])
    bench.data(2, 2)
    assert bench.seqs(session=SESSION) == [1, 2, 3]


def test_holes_of_the_old_session_become_gaps_before_the_new_one(bench: Any) -> None:
    bench.data(1)
    bench.data(3)
    bench.data(1, session=SESSION + 1)
    kinds = [item if isinstance(item, Event) else item[1:3] for item in bench.output]
    assert kinds == [
        SessionChanged(SESSION, 0),
        (SESSION, 1),
        SessionChanged(SESSION + 1, SESSION),
        Gap(TRADE, SESSION, 2, 2, GapCause.NETWORK),
        (SESSION, 3),
        (SESSION + 1, 1),
    ]


def test_the_first_message_of_a_new_session_may_be_lost_too(bench: Any) -> None:
    bench.data(1)
    bench.data(2, session=SESSION + 1)
    bench.wait(REORDER_WAIT_NS)
    assert Gap(TRADE, SESSION + 1, 1, 1, GapCause.NETWORK) in bench.events(Gap)


@pytest.mark.parametrize("trade_moves_first", [True, False])
def test_session_start_uncovers_what_a_crash_lost(bench: Any, trade_moves_first: bool) -> None:
    bench.data(1, 3)
    start = start_message(SESSION, (TRADE, 7), (Stream.STATUS, 1))
    if trade_moves_first:
        bench.data(1, session=SESSION + 1)
    bench.data(1, stream=Stream.STATUS, session=SESSION + 1, messages=[start])
    if not trade_moves_first:
        bench.data(1, session=SESSION + 1)
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 4, 6, GapCause.NETWORK)]


def test_a_session_start_that_says_nothing_leaves_the_end_open(bench: Any) -> None:
    bench.data(1, 3)
    bench.data(1, session=SESSION + 1)
    bench.data(1, stream=Stream.STATUS, session=SESSION + 1, messages=[start_message(0)])
    assert bench.events(Gap) == [
        Gap(TRADE, SESSION, 4, UNKNOWN_SEQ, GapCause.UNKNOWN),
        Gap(Stream.STATUS, SESSION, 1, UNKNOWN_SEQ, GapCause.UNKNOWN),
    ]
    assert bench.events(Gap)[0].message_count is None


def test_a_lost_session_start_leaves_the_end_open(bench: Any) -> None:
    bench.data(1, 3)
    bench.data(1, session=SESSION + 1)
    bench.heartbeat(2, stream=Stream.STATUS, session=SESSION + 1)
    bench.wait(REORDER_WAIT_NS)
    assert Gap(TRADE, SESSION, 4, UNKNOWN_SEQ, GapCause.UNKNOWN) in bench.events(Gap)


def test_a_whole_session_that_was_missed_is_a_gap(bench: Any) -> None:
    bench.data(1, 3)
    start = start_message(SESSION + 1, (TRADE, 9))
    bench.data(1, stream=Stream.STATUS, session=SESSION + 2, messages=[start])
    bench.data(1, session=SESSION + 2)
    assert bench.events(Gap)[-2:] == [
        Gap(TRADE, SESSION, 4, UNKNOWN_SEQ, GapCause.UNKNOWN),
        Gap(TRADE, SESSION + 1, 1, 8, GapCause.NETWORK),
    ]


def test_an_orderly_end_proves_that_nothing_is_missing(bench: Any) -> None:
    bench.data(1, 3)
    for stream, next_seq in ((TRADE, 4), (Stream.STATUS, 1)):
        bench.heartbeat(next_seq, stream=stream, kind=Kind.END_OF_SESSION)
        bench.heartbeat(next_seq, stream=stream, kind=Kind.END_OF_SESSION)
    bench.wait(10 * STREAM_DEAD_NS)
    bench.data(1, session=SESSION + 1)
    bench.data(1, stream=Stream.STATUS, session=SESSION + 1, messages=[start_message(0)])
    assert bench.events(SessionEnded) == [
        SessionEnded(TRADE, SESSION),
        SessionEnded(Stream.STATUS, SESSION),
    ]
    assert not bench.events(Gap, StreamDead)


def test_an_end_of_session_after_loss_is_told_after_the_gap(bench: Any) -> None:
    bench.data(1)
    bench.heartbeat(3, kind=Kind.END_OF_SESSION)
    assert not bench.events(SessionEnded)
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(Gap, SessionEnded) == [
        Gap(TRADE, SESSION, 2, 2, GapCause.NETWORK),
        SessionEnded(TRADE, SESSION),
    ]


def test_a_session_from_the_future_is_refused(bench: Any) -> None:
    bench.data(1)
    limit = bench.now_ns + SESSION_AHEAD_MAX_NS
    bench.data(1, session=limit + 1)
    assert [event.error for event in bench.events(DatagramsRefused)] == ["session_ahead"]
    bench.data(1, session=limit)
    assert bench.seqs(session=limit) == [1]


def test_a_clock_set_ahead_moves_the_limit_of_sessions(bench: Any) -> None:
    bench.arbiter.clock_step_ns = 3_600_000_000_000
    bench.data(1, session=bench.now_ns + 3_600_000_000_000)
    assert len(bench.events(SessionChanged)) == 1


def test_plants_are_followed_apart_and_in_bounded_number(bench: Any) -> None:
    for publisher in range(1, PLANTS_MAX + 3):
        bench.data(1, publisher=publisher, session=SESSION + publisher)
    assert len(bench.arbiter.plants) == PLANTS_MAX
    assert bench.arbiter.refusals[0, "too_many_plants"].count == 2


# --- silence --------------------------------------------------------------------------------------


def test_a_silent_stream_is_dead_once_and_alive_again(bench: Any) -> None:
    bench.data(1)
    bench.wait(STREAM_DEAD_NS - 1)
    assert not bench.events(StreamDead)
    bench.wait(1)
    bench.wait(5 * STREAM_DEAD_NS)
    assert StreamDead(TRADE, SESSION) in bench.events(StreamDead)
    assert len(bench.events(StreamDead)) == 2
    bench.heartbeat(2)
    assert bench.events(StreamAlive) == [StreamAlive(TRADE, SESSION, contiguous=True)]


def test_what_was_lost_while_dead_is_a_gap_of_that_cause(bench: Any) -> None:
    bench.data(1)
    bench.wait(STREAM_DEAD_NS)
    bench.data(4)
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(StreamAlive, Gap) == [
        StreamAlive(TRADE, SESSION, contiguous=False),
        Gap(TRADE, SESSION, 2, 3, GapCause.STREAM_DEAD),
    ]


def test_a_joined_stream_that_is_never_heard_is_dead(bench: Any) -> None:
    bench.heartbeat(1, stream=Stream.STATUS)
    bench.wait(STREAM_DEAD_NS)
    assert StreamDead(TRADE, SESSION) in bench.events(StreamDead)


def test_a_dead_stream_that_comes_back_in_a_new_session_is_not_contiguous(bench: Any) -> None:
    bench.data(1)
    bench.wait(STREAM_DEAD_NS)
    bench.data(1, session=SESSION + 1)
    assert bench.events(StreamAlive) == [StreamAlive(TRADE, SESSION + 1, contiguous=False)]


def test_nothing_is_due_before_a_plant_is_heard(bench: Any) -> None:
    assert bench.arbiter.next_deadline_ns() is None
    bench.arbiter.handle_timer(bench.now_ns)
    assert bench.output == []


# --- lines ----------------------------------------------------------------------------------------


def test_loss_is_counted_per_line(bench: Any) -> None:
    for seq in range(1, 11):
        bench.data(seq, line=0)
        if seq % 5:
            bench.data(seq, line=1)
    for line in (0, 1):
        bench.heartbeat(11, 10, line=line)
    lines = next(state for state in bench.arbiter.states() if state.stream == TRADE).lines
    assert [line.lost for line in lines] == [0, 2]


def test_a_line_that_is_silent_as_a_whole_loses_everything(bench: Any) -> None:
    for seq in range(1, 11):
        bench.data(seq)
    bench.wait(STREAM_DEAD_NS - 1)
    bench.heartbeat(11, 10)
    bench.wait(2)
    bench.heartbeat(11, 10)
    lines = next(state for state in bench.arbiter.states() if state.stream == TRADE).lines
    assert [line.lost for line in lines] == [0, 10]


def test_what_a_line_sent_before_a_late_join_is_not_its_loss(make_bench: MakeBench) -> None:
    bench = make_bench(started_ns=SESSION)
    bench.data(101)
    bench.heartbeat(102, 101)
    bench.data(103)
    bench.heartbeat(104, 103)
    lines = next(state for state in bench.arbiter.states() if state.stream == TRADE).lines
    assert lines[0].lost == 1


def test_what_a_line_misses_is_known_without_heartbeats(make_bench: MakeBench) -> None:
    bench = make_bench(started_ns=SESSION)
    for seq in range(101, 121, 2):
        bench.data(seq, 2)
        if seq % 4 == 1:
            bench.data(seq, 2, line=1)
    state = next(state for state in bench.arbiter.states() if state.stream == TRADE)
    assert [state.messages_missing(line) for line in state.lines] == [0, 10]
    bench.data(1, 3, session=SESSION + 1)
    assert [state.messages_missing(line) for line in state.lines] == [0, 3]


# --- refusals -------------------------------------------------------------------------------------


def corrupt(kind: str) -> bytes:
    """A datagram that is wrong in one way."""
    good = encode_datagram(0, TRADE, SESSION, 1, 7, [Trade("T", 1, 0, 0, "a", 1, 1, 0)])
    return {
        "TruncatedDatagramError": good[:20],
        "ForeignDatagramError": b"XX" + good[2:],
        "UnsupportedVersionError": good[:2] + b"\x09" + good[3:],
        "LengthMismatchError": good + b"\x00",
        "MalformedBodyError": good[:40] + b"\xc1" * (len(good) - 40),
    }[kind]


@pytest.mark.parametrize(
    "error",
    [
        "TruncatedDatagramError",
        "ForeignDatagramError",
        "UnsupportedVersionError",
        "LengthMismatchError",
        "MalformedBodyError",
    ],
)
def test_unusable_datagrams_are_counted_by_error_and_told_once_a_second(
    bench: Any, error: str
) -> None:
    for _ in range(5):
        bench.arbiter.receive(1, corrupt(error), bench.now_ns)
    assert bench.arbiter.refusals[1, error].count == 5
    told = bench.events(DatagramsRefused)
    assert [(event.line, event.error, event.count) for event in told] == [(1, error, 1)]
    bench.now_ns += 1_000_000_000
    bench.arbiter.receive(1, corrupt(error), bench.now_ns)
    assert bench.events(DatagramsRefused)[-1].count == 6


def test_a_malformed_body_leaves_a_hole(bench: Any) -> None:
    bench.arbiter.receive(0, corrupt("MalformedBodyError"), bench.now_ns)
    bench.data(2)
    bench.wait(REORDER_WAIT_NS)
    assert bench.events(Gap) == [Gap(TRADE, SESSION, 1, 1, GapCause.NETWORK)]
    assert bench.seqs() == [2]


def test_a_malformed_heartbeat_is_refused(bench: Any) -> None:
    good = encode_heartbeat(TRADE, SESSION, 3, 7, HeartbeatBody(2))
    bench.arbiter.receive(0, good[:40] + b"\xc1" * (len(good) - 40), bench.now_ns)
    assert bench.arbiter.refusals[0, "MalformedBodyError"].count == 1
    assert not bench.events(Gap)


def test_a_stream_that_was_not_joined_is_refused(bench: Any) -> None:
    bench.data(1, stream=Stream.BBO)
    assert bench.arbiter.refusals[0, "unexpected_stream"].count == 1
