"""A list of recovery addresses: as long as one of them answers, nothing is missing."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from listening import Listening, every, listening
from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.messages import GapCause
from tickerplant.runtime.recovery import bind_both
from tickerplant_subscriber import Gap, SnapshotApplied

LOOPBACK = "127.0.0.1"


@pytest.fixture
def plant(tmp_path: Path, group: str, port: int) -> Iterator[MulticastPlant]:
    with MulticastPlant(tmp_path / "log", group, port) as plant:
        yield plant


def closed_port() -> int:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Where connections are taken and requests received, and nothing is ever answered."""
    with ExitStack() as stack:
        tcp, udp = bind_both(LOOPBACK, 0)
        for opened in (tcp, udp):
            stack.enter_context(opened)
        tcp.listen()
        yield int(tcp.getsockname()[1])


async def lose_and_repair(plant: MulticastPlant, listener: Listening) -> None:
    """Each fifth datagram is lost, and all of it comes."""
    before = plant.lost
    plant.is_lost = every(5)
    for _ in range(60):
        plant.step()
        await asyncio.sleep(0.001)
    plant.is_lost = lambda _header: False
    await listener.until_whole(plant)
    assert plant.lost > before + 5
    assert {gap.cause for gap in listener.of(Gap)} == {GapCause.LATE_JOIN}


@pytest.mark.parametrize("is_first", [True, False])
async def test_one_address_at_which_nobody_is_costs_nothing(
    is_first: bool, plant: MulticastPlant, group: str, port: int
) -> None:
    async with recovery(plant.folder) as server:
        ports = [closed_port(), server.port] if is_first else [server.port, closed_port()]
        addresses = [f"{LOOPBACK}:{each}" for each in ports]
        async with listening(group, port, server, recovery=addresses) as listener:
            await listener.until(lambda: listener.of(SnapshotApplied), plant)
            await lose_and_repair(plant, listener)


async def test_one_that_hangs_is_left_for_the_next(
    silent_port: int, plant: MulticastPlant, group: str, port: int
) -> None:
    """It takes a while to find out, and then the join goes on, and so do repairs."""
    async with recovery(plant.folder) as server:
        addresses = [f"{LOOPBACK}:{silent_port}", f"{LOOPBACK}:{server.port}"]
        async with listening(group, port, server, recovery=addresses) as listener:
            await listener.until(lambda: listener.of(SnapshotApplied), plant)
            await lose_and_repair(plant, listener)


async def test_when_one_goes_the_other_takes_over(
    plant: MulticastPlant, group: str, port: int
) -> None:
    """Beginning with a loss that nobody can repair yet."""
    second = closed_port()
    async with recovery(plant.folder) as server:
        addresses = [f"{LOOPBACK}:{server.port}", f"{LOOPBACK}:{second}"]
        joined = listening(group, port, server, recovery=addresses)
        listener = await joined.__aenter__()
        await listener.until(lambda: listener.of(SnapshotApplied), plant)
        await lose_and_repair(plant, listener)
    try:
        plant.is_lost = every(2)
        plant.step(3)
        plant.is_lost = lambda _header: False
        async with recovery(plant.folder, port=second):
            await lose_and_repair(plant, listener)
    finally:
        await joined.__aexit__(None, None, None)
