"""Properties of the arbiter: whatever the lines lose, double or reorder, each sequence is accounted for once."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tickerplant.core.messages import Stream, Trade
from tickerplant.core.wire import HeartbeatBody, encode_datagram, encode_heartbeat
from tickerplant.limits import REORDER_WAIT_NS
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.events import Event, Gap, SessionChanged
from tickerplant_subscriber.stream_state import Messages, StreamState

SESSION = 1_000
TRADE = Stream.TRADE


@given(st.lists(st.binary(max_size=100), max_size=20))
@settings(deadline=None)
def test_arbitrary_bytes_never_raise(datagrams: list[bytes]) -> None:
    arbiter = Arbiter(tuple(Stream), lambda *_: None, lambda _: None, started_ns=0)
    good = encode_datagram(0, TRADE, SESSION, 1, 7, [Trade("T", 1, 0, 0, "a", 1, 1, 0)])
    for bytes_ in datagrams:
        arbiter.receive(0, bytes_, 1)
        arbiter.receive(0, good[: len(bytes_)] + bytes_, 1)
        arbiter.receive(0, good[:40] + bytes_, 1)
    arbiter.handle_timer(10**18)


Packing = list[tuple[int, int]]
"""(first sequence, count) of each datagram"""


def pack(counts: list[int]) -> Packing:
    """Datagrams of these sizes, from sequence 1."""
    packing = []
    seq = 1
    for count in counts:
        packing.append((seq, count))
        seq += count
    return packing


@st.composite
def lossy_lines(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, int]]]:
    """The last sequence, and (time, line, first sequence, count) in order of arrival; count 0 is a heartbeat.

    Both lines carry the same messages, in datagrams of their own sizes, with loss, duplicates and reordering.
    """
    total = draw(st.integers(1, 60))
    arrivals: list[tuple[int, int, int, int]] = []
    for line in (0, 1):
        counts: list[int] = []
        while sum(counts) < total:
            counts.append(min(draw(st.integers(1, 6)), total - sum(counts)))
        at_ns = 0
        for seq, count in pack(counts):
            at_ns += draw(st.sampled_from((0, 1_000, 100_000, 700_000)))
            for _ in range(draw(st.sampled_from((0, 0, 1, 1, 1, 1, 2)))):
                late_ns = draw(st.sampled_from((0, 0, 0, 5_000, 300_000, 900_000, 2_500_000)))
                arrivals.append((at_ns + late_ns, line, seq, count))
            if draw(st.booleans()):
                arrivals.append((at_ns, line, seq + count, 0))
    arrivals.sort(key=lambda arrival: arrival[0])
    return total, arrivals


@given(lossy_lines())
@settings(deadline=None, max_examples=150)
def test_deliveries_and_gaps_partition_the_sequence(
    case: tuple[int, list[tuple[int, int, int, int]]],
) -> None:
    """Whatever is lost, doubled or reordered: each sequence once, in order, delivered or in one gap.

    And nothing that had arrived is ever in a gap.
    """
    total, arrivals = case
    covered: list[int] = []
    arrived: set[int] = set()

    def deliver(_state: StreamState, first_seq: int, messages: Messages, _sent_ns: int) -> None:
        assert all(
            message is not None and message.g == first_seq + i for i, message in enumerate(messages)
        )
        covered.extend(range(first_seq, first_seq + len(messages)))

    def tell(event: Event) -> None:
        if isinstance(event, Gap):
            lost = range(event.from_seq, event.to_seq + 1)
            assert arrived.isdisjoint(lost)
            covered.extend(lost)

    arbiter = Arbiter((TRADE,), deliver, tell, started_ns=0)
    for at_ns, line, seq, count in [*arrivals, (10**8, 0, total + 1, 0)]:
        while (due_ns := arbiter.next_deadline_ns()) is not None and due_ns <= at_ns:
            arbiter.handle_timer(due_ns)
        if count:
            messages = [Trade("T", seq + i, 0, 0, "a", 1, 1, 0) for i in range(count)]
            arrived.update(range(seq, seq + count))
            arbiter.receive(line, encode_datagram(0, TRADE, 1, seq, 0, messages), at_ns)
        else:
            arbiter.receive(line, encode_heartbeat(TRADE, 1, seq, 0, HeartbeatBody(0)), at_ns)
        assert covered == list(range(1, len(covered) + 1))
    arbiter.handle_timer(2 * 10**8)
    assert covered == list(range(1, total + 1))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_reordering_within_the_wait_loses_nothing(counts: list[int], random: Any) -> None:
    packing = pack(counts)
    random.shuffle(packing)
    delivered: list[int] = []
    events: list[Event] = []

    def deliver(_state: StreamState, first_seq: int, messages: Messages, _sent_ns: int) -> None:
        delivered.extend(range(first_seq, first_seq + len(messages)))

    arbiter = Arbiter((TRADE,), deliver, events.append, started_ns=0)
    for index, (seq, count) in enumerate(packing):
        messages = [Trade("T", seq + i, 0, 0, "a", 1, 1, 0) for i in range(count)]
        now_ns = index * REORDER_WAIT_NS // (len(packing) + 1)
        arbiter.receive(index % 2, encode_datagram(0, TRADE, 1, seq, 0, messages), now_ns)
        arbiter.handle_timer(now_ns)
    assert delivered == list(range(1, sum(counts) + 1))
    assert events == [SessionChanged(1, 0)]
