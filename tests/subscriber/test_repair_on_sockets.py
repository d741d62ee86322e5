"""Repair, late join, sessions and positions with a real plant log, a real recovery and real multicast."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import books_right, every, listening
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.messages import Bbo, GapCause, Stream, Trade
from tickerplant_subscriber import Gap, SnapshotApplied, Subscriber

MakePlant = Callable[..., MulticastPlant]


@pytest.fixture
def make_plant(tmp_path: Path, group: str, port: int) -> Iterator[MakePlant]:
    plants: list[MulticastPlant] = []

    def make(**options: Any) -> MulticastPlant:
        plants.append(MulticastPlant(tmp_path / "log", group, port, **options))
        return plants[-1]

    yield make
    for plant in plants:
        plant.close()


async def test_what_is_lost_on_the_way_is_repaired(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """Every seventh datagram is lost; each message comes once, in order, and the books are right."""
    plant = make_plant()
    async with recovery(plant.folder) as server, listening(group, port, server) as listener:
        await listener.until(lambda: listener.of(SnapshotApplied), plant)
        first = plant.next_seqs
        plant.is_lost = every(7)
        for _ in range(300):
            plant.step()
            await asyncio.sleep(0.0005)
        plant.is_lost = lambda _header: False
        subscriber = listener.subscriber

        def all_here() -> bool:
            stats = {each.stream: each.next_seq for each in subscriber.stats().streams}
            return tuple(stats[stream] for stream in Stream) == plant.next_seqs

        await listener.until(all_here, plant)
        await listener.until(lambda: books_right(plant, subscriber), plant)
        stats = subscriber.stats()
        await listener.until(lambda: not subscriber.waiting_count)
    assert plant.lost > 20
    assert stats.recovery is not None
    assert stats.recovery.is_reachable
    assert sum(each.messages_repaired for each in stats.streams) >= plant.lost
    gaps = listener.of(Gap)
    assert {gap.cause for gap in gaps} <= {GapCause.LATE_JOIN}
    for kind, stream in ((Trade, Stream.TRADE), (Bbo, Stream.BBO)):
        wanted = [each for each in plant.published(stream) if isinstance(each, kind)]
        got = listener.of(kind)
        tail = wanted[first[stream - 1] - 1 :]
        assert got[len(got) - len(tail) :] == tail


async def test_a_late_join_works_on_uvloop_as_well(
    make_plant: MakePlant, group: str, port: int
) -> None:
    """It is the loop that `run` takes, and its transports are others."""
    plant = make_plant()
    plant.step(20)

    async def join(recovery_port: int) -> bool:
        async with Subscriber(
            group_a=group, port=port, recovery=[f"127.0.0.1:{recovery_port}"]
        ) as subscriber:
            async for item in subscriber:
                if isinstance(item, SnapshotApplied):
                    return True
        return False

    async with recovery(plant.folder) as server:
        joining = asyncio.create_task(asyncio.to_thread(uvloop.run, join(server.port)))
        async with asyncio.timeout(10):
            while not joining.done():
                plant.step()
                await asyncio.sleep(0.002)
        assert await joining
