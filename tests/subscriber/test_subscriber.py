"""`Subscriber` on real multicast over loopback, against a plant in another process and a sender in this one."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from tickerplant.core.messages import (
    Bbo,
    BookState,
    GapCause,
    LevelUpdate,
    MarketState,
    Stream,
    Trade,
)
from tickerplant.errors import ConfigurationError, NetworkSetupError
from tickerplant_subscriber import (
    DatagramsRefused,
    Gap,
    Live,
    SessionChanged,
    SessionEnded,
    Stale,
    StreamStats,
    Subscriber,
)
from tickerplant_subscriber.message_queue import Item

StartPlant = Callable[..., Any]


async def collect(subscriber: Subscriber, until: Callable[[Item], bool]) -> list[Item]:
    """Items up to the first that `until` is true of, in at most 20 s."""
    items: list[Item] = []
    async with asyncio.timeout(20):
        async for item in subscriber:
            items.append(item)
            if until(item):
                return items
    raise AssertionError("the iteration ended")


def ends(stream: Stream) -> Callable[[Item], bool]:
    """Whether an item is the end of the session on a stream."""
    return lambda item: isinstance(item, SessionEnded) and item.stream == stream


def stats_of(subscriber: Subscriber, stream: Stream) -> StreamStats:
    """The counts of a stream, zero before it is heard."""
    nothing = StreamStats(0, 0, stream, *[0] * 13, lines=())  # type: ignore[arg-type]  # zeros
    streams = subscriber.stats().streams
    return next((each for each in streams if each.stream == stream), nothing)


def numbered(items: list[Item], kind: type[Any]) -> list[int]:
    """`g` of the messages of a kind."""
    return [item.g for item in items if type(item) is kind]


async def test_books_equal_those_of_a_plant_in_another_process(
    group: str, port: int, start_plant: StartPlant
) -> None:
    """Every message of every stream arrives, no gap is told and every book ends equal."""
    plant = start_plant(group, port, "--seconds", "1")
    async with Subscriber(group_a=group, port=port, recovery=()) as subscriber:
        plant.go()
        items: list[Item] = []
        ended: set[int] = set()
        async with asyncio.timeout(20):
            async for item in subscriber:
                items.append(item)
                if isinstance(item, SessionEnded):
                    ended.add(item.stream)
                if len(ended) == len(Stream):
                    break
        checksums = {book.ticker: book.checksum() for book in subscriber.books()}
        stats = subscriber.stats()
    result = await asyncio.to_thread(plant.result)
    assert not [item for item in items if isinstance(item, Gap | DatagramsRefused)]
    assert checksums == result["books"]
    assert {str(each.stream): each.messages for each in stats.streams} == result["sent"]
    assert result["sent"]["4"] > 1_000
    lives = [item for item in items if isinstance(item, Live) and item.stream == Stream.DELTA]
    assert {event.ticker for event in lives} == set(result["books"])


async def test_line_b_makes_up_for_line_a(
    group: str, group_b: str, port: int, start_plant: StartPlant
) -> None:
    """A third of line A is lost; nothing is missing and the loss is counted."""
    plant = start_plant(group, port, "--group-b", group_b, "--drop-a", "3", "--seconds", "0.7")
    async with Subscriber(group_a=group, group_b=group_b, port=port, recovery=()) as subscriber:
        plant.go()
        items = await collect(subscriber, ends(Stream.DELTA))
        async with asyncio.timeout(10):
            # Line A is compared with the plant's count at its own first end of session, which may come later.
            while not (delta := stats_of(subscriber, Stream.DELTA)).lines[0].heartbeats:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.005)
    await asyncio.to_thread(plant.result)
    assert not [item for item in items if isinstance(item, Gap) and item.stream == Stream.DELTA]
    assert delta.lines[0].lost >= delta.lines[1].datagrams // 4 > 0
    assert delta.lines[0].messages_missing >= delta.lines[0].lost
    assert delta.lines[1].lost == 0
    assert delta.lines[1].wins >= delta.lines[0].lost


async def test_loss_on_both_lines_is_told_and_no_stale_book_is_live(
    group: str, port: int, start_plant: StartPlant
) -> None:
    """Deliveries and gaps account for every message; whichever book is live at a gap goes stale."""
    plant = start_plant(group, port, "--drop-both", "40", "--seconds", "0.7")
    async with Subscriber(streams=["delta"], group_a=group, port=port, recovery=()) as subscriber:
        plant.go()
        items = await collect(subscriber, ends(Stream.DELTA))
        stats = subscriber.stats()
        still_live = [book.ticker for book in subscriber.books() if book.live]
    result = await asyncio.to_thread(plant.result)
    delta = next(each for each in stats.streams if each.stream == Stream.DELTA)
    gaps = [item for item in items if isinstance(item, Gap) and item.stream == Stream.DELTA]
    assert gaps
    assert all(gap.cause in (GapCause.NETWORK, GapCause.KERNEL_DROP) for gap in gaps)
    lost = sum(gap.message_count or 0 for gap in gaps)
    assert delta.messages + lost == result["sent"]["4"]
    assert lost == delta.messages_lost
    assert still_live == []
    assert [item for item in items if isinstance(item, Stale)]


async def test_a_subscriber_that_joins_late_says_so(
    group: str, port: int, start_plant: StartPlant
) -> None:
    """Two subscribers of one plant in one process: the second joins in the middle of the session."""
    plant = start_plant(group, port, "--seconds", "2")
    async with Subscriber(streams=["trade"], group_a=group, port=port, recovery=()) as early:
        plant.go()
        await collect(early, lambda item: isinstance(item, Trade))
        async with Subscriber(streams=["trade"], group_a=group, port=port, recovery=()) as late:
            items = await collect(late, lambda item: isinstance(item, Trade))
            stats = stats_of(late, Stream.TRADE)
    gaps = [item for item in items if isinstance(item, Gap) and item.stream == Stream.TRADE]
    assert [(gap.from_seq, gap.cause) for gap in gaps] == [(1, GapCause.LATE_JOIN)]
    assert stats.next_seq == 1 + stats.messages + stats.messages_lost


async def test_a_late_join_has_no_live_book(group: str, port: int, sender: Any) -> None:
    """Deltas without an image never make a book, and the gap says why."""
    session = time.time_ns() - 10**9
    async with Subscriber(streams=["delta"], group_a=group, port=port, recovery=()) as subscriber:
        update = LevelUpdate("KXTEST-1", 9, 0, 0, 0, 4_000, 5, 105)
        sender.messages(Stream.DELTA, 500, [update], session)
        items = await collect(subscriber, lambda item: isinstance(item, LevelUpdate))
        book = subscriber.book("KXTEST-1")
    assert items[:2] == [
        SessionChanged(session, 0),
        Gap(Stream.DELTA, session, 1, 499, GapCause.LATE_JOIN),
    ]
    assert book is not None
    assert book.state is BookState.SYNCING
    assert not book.live


async def test_only_chosen_streams_and_tickers_are_handed_out(
    group: str, port: int, sender: Any
) -> None:
    async with Subscriber(["KXB*"], ["trade"], group_a=group, port=port, recovery=()) as subscriber:
        sender.messages(Stream.STATUS, 1, [MarketState("KXB-1", 1, 0, 0, 2)])
        sender.messages(Stream.BBO, 1, [Bbo("KXB-1", 2, 0, 0, 1, 1, 2, 1, 1)])
        both = [Trade("KXA-1", 3, 0, 0, "a", 1, 1, 0), Trade("KXB-1", 4, 0, 0, "b", 1, 1, 0)]
        sender.messages(Stream.TRADE, 1, both)
        items = await collect(subscriber, lambda item: isinstance(item, Trade))
        assert subscriber.bbo("KXB-1") is None
        assert subscriber.book("KXB-1") is None
    assert [item for item in items if not isinstance(item, SessionChanged)] == [both[1]]


async def test_the_last_quote_can_be_asked(group: str, port: int, sender: Any) -> None:
    quote = Bbo("KXB-1", 2, 0, 0, 1, 1, 2, 1, 1)
    async with Subscriber(streams=["bbo"], group_a=group, port=port, recovery=()) as subscriber:
        sender.messages(Stream.BBO, 1, [quote])
        await collect(subscriber, lambda item: isinstance(item, Bbo))
        assert subscriber.bbo("KXB-1") == quote


async def test_a_consumer_that_is_too_slow_is_told_what_it_missed(
    group: str, port: int, sender: Any
) -> None:
    async with Subscriber(
        streams=["trade"], group_a=group, port=port, recovery=(), queue_messages=50
    ) as subscriber:
        for seq in range(1, 201):
            sender.messages(Stream.TRADE, seq, [Trade("T", seq, 0, 0, "t", 1, 1, 0)])
        async with asyncio.timeout(10):
            while subscriber.stats().messages_dropped < 150:  # noqa: ASYNC110  # there is no event to await
                await asyncio.sleep(0.005)
        items = await collect(subscriber, lambda item: isinstance(item, Trade) and item.g == 200)
    gap = next(item for item in items if isinstance(item, Gap))
    assert (gap.stream, gap.from_seq, gap.cause) == (Stream.TRADE, 1, GapCause.CONSUMER)
    assert numbered(items, Trade) == list(range(gap.to_seq + 1, 201))


async def test_a_busy_iteration_still_reads_the_sockets(group: str, port: int, sender: Any) -> None:
    """Without a turn for the loop now and then, a consumer that never waits would receive nothing more."""
    async with Subscriber(streams=["trade"], group_a=group, port=port, recovery=()) as subscriber:
        for seq in range(1, 4_001, 20):
            messages = [Trade("T", seq + i, 0, 0, "t", 1, 1, 0) for i in range(20)]
            sender.messages(Stream.TRADE, seq, messages)
        async with asyncio.timeout(10):
            while stats_of(subscriber, Stream.TRADE).messages < 4_000:  # noqa: ASYNC110  # there is no event to await
                await asyncio.sleep(0.005)
        sender.messages(Stream.TRADE, 4_001, [Trade("T", 4_001, 0, 0, "t", 1, 1, 0)])
        received_by: list[int] = []
        async for item in subscriber:
            if isinstance(item, Trade):
                received_by.append(stats_of(subscriber, Stream.TRADE).messages)
                if item.g == 4_001:
                    break
    assert received_by[0] == 4_000
    assert received_by[2_000] == 4_001


async def test_a_foreign_protocol_on_the_group_is_told(group: str, port: int, sender: Any) -> None:
    async with Subscriber(group_a=group, port=port, recovery=()) as subscriber:
        sender.send(Stream.TRADE, b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n")
        items = await collect(subscriber, lambda item: isinstance(item, DatagramsRefused))
        assert subscriber.stats().refused == {"ForeignDatagramError": 1}
    assert "another protocol" in items[0].detail  # type: ignore[union-attr]  # the one event


async def test_close_ends_the_iteration(group: str, port: int) -> None:
    async with Subscriber(group_a=group, port=port, recovery=()) as subscriber:
        asyncio.get_running_loop().call_later(0.05, subscriber.close)
        async with asyncio.timeout(5):
            assert [item async for item in subscriber] == []


async def test_an_interface_that_does_not_exist_is_one_line(group: str, port: int) -> None:
    with pytest.raises(NetworkSetupError, match=r"no interface has the address 192\.0\.2\.77"):
        async with Subscriber(group_a=group, port=port, recovery=(), interface="192.0.2.77"):
            pass


async def test_a_port_that_is_not_shared_is_one_line(group: str, port: int) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((group, port))
        with pytest.raises(NetworkSetupError, match="another program holds the port"):
            async with Subscriber(group_a=group, port=port, recovery=()):
                pass


@pytest.mark.parametrize(
    "options",
    [
        {"port": 0},
        {"group_a": "10.0.0.1"},
        {"group_a": "239.255.255.254"},
        {"group_b": "nonsense"},
        {"interface": "eth0"},
        {"interface": ""},
        {"source": "x"},
        {"receive_buffer_bytes": 0},
        {"queue_messages": 0},
        {"tickers": []},
        {"streams": []},
        {"streams": ["trades"]},
    ],
)
def test_options_that_cannot_be_right_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Subscriber(**options)


def test_one_stream_may_be_named_alone() -> None:
    assert Subscriber(streams="trade").stats().streams == ()
