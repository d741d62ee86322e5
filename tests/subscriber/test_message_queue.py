"""The queue behind `async for`: bounded, and what it drops is told."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tickerplant.core.messages import GapCause, StaleReason, Stream, Trade
from tickerplant_subscriber.events import (
    DatagramsRefused,
    Event,
    Gap,
    Live,
    SessionChanged,
    Stale,
    StreamAlive,
    StreamDead,
)
from tickerplant_subscriber.message_queue import Batch, Item, MessageQueue

TRADE = Stream.TRADE


def batch(seq: int, count: int, stream: Stream = TRADE) -> Batch:
    """`count` trades from sequence `seq`, whose `g` is their sequence."""
    items: list[Item] = [Trade("T", seq + i, 0, 0, "", 1, 1, 0) for i in range(count)]
    return Batch(items, 1, 0, stream, 7, seq, seq + count - 1)


def take_all(queue: MessageQueue) -> list[Item]:
    """Everything that waits."""
    items: list[Item] = []
    while taken := queue.take().items:
        items += taken
    return items


def test_what_fits_comes_out_in_order() -> None:
    queue = MessageQueue(10)
    queue.put(batch(1, 3))
    queue.put(Batch([Live("T", Stream.BBO)]))
    queue.put(batch(4, 2))
    items = take_all(queue)
    assert [getattr(item, "g", None) for item in items] == [1, 2, 3, None, 4, 5]
    assert queue.item_count == 0


def test_the_oldest_are_dropped_and_told_first() -> None:
    queue = MessageQueue(5)
    for seq in (1, 4, 7):
        queue.put(batch(seq, 3))
    items = take_all(queue)
    assert items[0] == Gap(TRADE, 7, 1, 6, GapCause.CONSUMER)
    assert [item.g for item in items[1:] if isinstance(item, Trade)] == [7, 8, 9]
    assert queue.messages_dropped == 6


def test_gaps_are_told_per_stream_and_swallow_the_gaps_between() -> None:
    queue = MessageQueue(2)
    queue.put(batch(1, 2))
    queue.put(batch(1, 1, Stream.BBO))
    queue.put(Batch([Gap(TRADE, 7, 3, 4, GapCause.NETWORK)]))
    queue.put(batch(5, 2))
    queue.put(batch(7, 2))
    assert take_all(queue)[:2] == [
        Gap(TRADE, 7, 1, 6, GapCause.CONSUMER),
        Gap(Stream.BBO, 7, 1, 1, GapCause.CONSUMER),
    ]


def test_of_dropped_events_the_latest_of_each_kind_is_told() -> None:
    queue = MessageQueue(1)
    latest: list[Event] = [
        SessionChanged(9, 8),
        Stale("A", Stream.BBO, StaleReason.NETWORK_GAP),
        Live("B", Stream.BBO),
        StreamAlive(TRADE, 9, contiguous=False),
        DatagramsRefused(0, "x", 2, ""),
        DatagramsRefused(1, "x", 1, ""),
    ]
    older: list[Event] = [
        SessionChanged(8, 7),
        Live("A", Stream.BBO),
        Stale("B", Stream.BBO, StaleReason.UNKNOWN),
        StreamDead(TRADE, 9),
        DatagramsRefused(0, "x", 1, ""),
    ]
    for event in (*older, *latest):
        queue.put(Batch([event]))  # type: ignore[list-item]  # every subclass of Event is an AnyEvent
    queue.put(batch(1, 1))
    assert take_all(queue)[:-1] == latest


def test_one_batch_always_fits() -> None:
    queue = MessageQueue(2)
    queue.put(batch(1, 9))
    assert len(take_all(queue)) == 9


@given(st.lists(st.one_of(st.integers(1, 5), st.just(0)), max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_every_sequence_is_handed_out_or_in_a_gap(steps: list[int], item_max: int) -> None:
    """Puts of 1-5 messages and takes (0) in any order."""
    queue = MessageQueue(item_max)
    seq = 1
    covered: list[int] = []

    def take() -> None:
        for item in queue.take().items:
            if isinstance(item, Trade):
                covered.append(item.g)
            else:
                assert isinstance(item, Gap)
                covered.extend(range(item.from_seq, item.to_seq + 1))

    for count in steps:
        if count:
            queue.put(batch(seq, count))
            seq += count
            assert queue.item_count <= max(item_max, 5)
        else:
            take()
    while queue.item_count:
        take()
    take()
    assert covered == list(range(1, seq))
