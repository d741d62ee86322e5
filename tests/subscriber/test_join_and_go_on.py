"""Late join, positions, new sessions, silence and slow users, on real sockets with a real recovery of a real log."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import every, listening
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.keyring import KeyRing, format_key
from tickerplant.core.messages import GapCause, Stream, Trade
from tickerplant.core.wire import decode_header
from tickerplant_subscriber import (
    Gap,
    SessionChanged,
    SnapshotApplied,
    Strategy,
    StreamAlive,
    StreamDead,
    run_async,
)

MakePlant = Callable[..., MulticastPlant]
OLD, NEW = (7, b"o" * 32), (8, b"n" * 32)


@pytest.fixture
def make_plant(tmp_path: Path, group: str, port: int) -> Iterator[MakePlant]:
    plants: list[MulticastPlant] = []

    def make(**options: Any) -> MulticastPlant:
        plants.append(MulticastPlant(tmp_path / "log", group, port, **options))
        return plants[-1]

    yield make
    for plant in plants:
        plant.close()


async def test_a_late_join_on_idle_streams_needs_nothing_but_a_heartbeat(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """Nothing is published any more: books, quotes and markets come from recovery, and are told live."""
    plant = make_plant()
    plant.step(30)
    async with recovery(plant.folder) as server, listening(group, port, server) as listener:
        await listener.until_whole(plant)
        assert {gap.cause for gap in listener.of(Gap)} == {GapCause.LATE_JOIN}
        assert {each.stream for each in listener.of(SnapshotApplied)} == set(Stream) - {
            Stream.TRADE
        }
        await listener.until(
            lambda: not any(each.behind for each in listener.subscriber.stats().streams), plant
        )


async def test_without_a_sign_of_life_nothing_is_live(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """A stream of which no live datagram was heard stays behind, whatever recovery says of it."""
    plant = make_plant()
    plant.is_lost = lambda header: header.stream == Stream.DELTA
    async with recovery(plant.folder) as server, listening(group, port, server) as listener:
        await listener.until(
            lambda: any(each.stream == Stream.DELTA for each in listener.of(SnapshotApplied)),
            plant,
        )
        assert listener.subscriber.books()
        assert not any(view.live for view in listener.subscriber.books())
        plant.is_lost = lambda _header: False
        await listener.until_whole(plant)


async def test_another_subscriber_goes_on_where_one_has_stopped(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """Stopped in one session, gone on in the next one, with loss all the time: together each trade once."""
    plant = make_plant()
    async with recovery(plant.folder) as server:
        async with listening(group, port, server, streams=["trade"]) as first:
            await first.until(lambda: first.places()[0] == plant.session, plant)
            plant.is_lost = every(6)
            for _ in range(100):
                plant.step()
                await asyncio.sleep(0.0005)
            position = first.subscriber.position
        session = plant.session
        plant.step(50)
        plant.begin_session()
        plant.step(20)
        async with listening(group, port, server, streams=["trade"], resume=position) as second:
            for _ in range(50):
                plant.step()
                await asyncio.sleep(0.0005)
            plant.is_lost = lambda _header: False
            await second.until(
                lambda: (
                    second.places() == (plant.session, (plant.next_seqs[0], plant.next_seqs[4]))
                ),
                plant,
            )
            await second.until(lambda: not second.subscriber.waiting_count, plant)
    published = plant.published(Stream.TRADE, session) + plant.published(Stream.TRADE)
    got = first.of(Trade)[: len(first.of(Trade))] + second.of(Trade)
    assert not second.of(Gap)
    late = [gap for gap in first.of(Gap) if gap.stream == Stream.TRADE]
    assert got == published[late[0].to_seq if late else 0 :]


async def test_a_new_session_is_followed_and_an_older_one_is_not(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """The old one is finished from recovery without a gap; what is sent under it afterwards is dropped."""
    plant = make_plant()
    async with recovery(plant.folder) as server, listening(group, port, server) as listener:
        await listener.until_whole(plant)
        old = plant.datagrams[-1]
        plant.is_lost = every(5)
        plant.step(60)
        previous = plant.session
        plant.begin_session()
        plant.step(60)
        plant.is_lost = lambda _header: False
        await listener.until_whole(plant)
        changed = [each for each in listener.of(SessionChanged) if each.previous_session]
        assert [(each.previous_session, each.session) for each in changed] == [
            (previous, plant.session)
        ]
        assert {gap.cause for gap in listener.of(Gap)} <= {GapCause.LATE_JOIN}
        plant.send(decode_header(old).stream, old)
        await listener.until(lambda: listener.subscriber.stats().lower_session_datagrams, plant)
        await listener.until_whole(plant)


async def test_a_single_silent_group_is_found_and_makes_up_for_it(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """Within about 3 s; the others go on. Once it is heard again, what was published meanwhile is fetched."""
    plant = make_plant()
    async with recovery(plant.folder) as server, listening(group, port, server) as listener:
        await listener.until_whole(plant)
        plant.is_lost = lambda header: header.stream == Stream.DELTA
        silent = time.monotonic()
        await listener.until(lambda: listener.of(StreamDead), plant)
        assert 2.5 < time.monotonic() - silent < 10
        assert {each.stream for each in listener.of(StreamDead)} == {Stream.DELTA}
        assert not any(view.live for view in listener.subscriber.books())
        plant.step(50)
        plant.is_lost = lambda _header: False
        await listener.until_whole(plant)
        assert {each.stream for each in listener.of(StreamAlive)} == {Stream.DELTA}
        assert {gap.cause for gap in listener.of(Gap)} <= {GapCause.LATE_JOIN}


class Slow(Strategy):
    """Counts trades and gaps."""

    def __init__(self) -> None:
        self.trades: list[Trade] = []
        self.gaps: list[Any] = []

    def on_trade(self, trade: Trade) -> None:
        self.trades.append(trade)

    def on_gap(self, gap: Any) -> None:
        self.gaps.append(gap)


def publish(plant: MulticastPlant, count: int) -> None:
    """So many inputs, a datagram or more each; unlike `step` it leaves the clock about where it is."""
    for _ in range(count):
        plant._input()
        plant.flush()


async def slow_run(plant: MulticastPlant, group: str, port: int, server: Any, when: Any) -> Slow:
    """A strategy that does not run while far more is published than its sockets hold."""
    strategy = Slow()
    address = f"127.0.0.1:{server.port}"
    task = asyncio.create_task(
        run_async(
            strategy,
            when_slow=when,
            recovery=[address],
            group_a=group,
            port=port,
            receive_buffer_bytes=4_096,
        )
    )
    try:
        async with asyncio.timeout(25):
            while not strategy.gaps or strategy.gaps[0].cause is not GapCause.LATE_JOIN:
                publish(plant, 1)
                plant.tick()
                await asyncio.sleep(0.01)
            # This blocks the loop: nobody reads.
            publish(plant, 600)
            end = plant.next_seqs[Stream.TRADE - 1]
            while True:
                plant.tick()
                await asyncio.sleep(0.005)
                stats = strategy.stats()
                if stats is not None and any(
                    each.stream == Stream.TRADE and each.next_seq == end for each in stats.streams
                ):
                    break
    finally:
        strategy.stop()
        await task
    return strategy


async def test_a_slow_strategy_gets_what_the_kernel_dropped_from_recovery(
    make_plant: MakePlant, group: str, port: int
) -> None:
    plant = make_plant()
    publish(plant, 20)
    async with recovery(plant.folder) as server:
        strategy = await slow_run(plant, group, port, server, "block")
    assert {gap.cause for gap in strategy.gaps} == {GapCause.LATE_JOIN}
    published = plant.published(Stream.TRADE)
    assert strategy.trades == published[len(published) - len(strategy.trades) :]


async def test_a_slow_strategy_that_skips_is_told_what_the_kernel_dropped(
    make_plant: MakePlant, group: str, port: int
) -> None:
    plant = make_plant()
    publish(plant, 20)
    async with recovery(plant.folder) as server:
        strategy = await slow_run(plant, group, port, server, "skip")
    told = [gap for gap in strategy.gaps if gap.cause is not GapCause.LATE_JOIN]
    assert {gap.cause for gap in told} == {GapCause.KERNEL_DROP}
    lost = sum(gap.message_count for gap in strategy.gaps if gap.stream == Stream.TRADE)
    assert lost + len(strategy.trades) == len(plant.published(Stream.TRADE))


async def test_signed_repairs_go_on_when_the_keys_change(
    make_plant: MakePlant, group: str, port: int, tmp_path: Path
) -> None:
    """Gap fill and connections are signed with the key of the file as it is now, and what is not is refused."""
    path = tmp_path / "keys"
    path.write_text(format_key(*OLD))
    path.chmod(0o600)
    plant = make_plant(key=OLD)
    async with recovery(plant.folder, keys=KeyRing([OLD]).keys, key_id=7) as server:
        async with listening(group, port, server, key_path=str(path)) as listener:
            await listener.until_whole(plant)
            plant.is_lost = every(4)
            plant.step(40)
            plant.is_lost = lambda _header: False
            await listener.until_whole(plant)
            path.write_text(format_key(*NEW) + format_key(*OLD))
            ring = listener.subscriber._reception.arbiter.admission
            await listener.until(lambda: ring.key_ring.signing_key_id == 8, plant)
            address = server.port
            await server.close()
            async with recovery(
                plant.folder, keys=KeyRing([NEW, OLD]).keys, key_id=8, port=address
            ):
                plant.key = NEW
                plant.is_lost = every(4)
                plant.step(40)
                plant.is_lost = lambda _header: False
                await listener.until_whole(plant)
        assert {gap.cause for gap in listener.of(Gap)} <= {GapCause.LATE_JOIN}
        assert listener.subscriber.stats().refused == {}
