"""Recovery's checkpoints: when they are written, how many are kept, and which one a start takes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog
from recovery_server import ask, recovery, until
from tick_log import options_of

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import SnapshotEnd, SnapshotRequest
from tickerplant.runtime.checkpoints import (
    CHECKPOINTS_FOLDER,
    checkpoint_path,
    checkpoint_positions,
    read_checkpoint,
)
from tickerplant.runtime.logfolder import load_position, segment_names
from tickerplant.runtime.recovery import RecoveryService

STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
HOURS_S = 36_000.0


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[PlantLog]:
    with PlantLog(tmp_path / "log", seed=4, options=options_of(segment_max_bytes=8_192)) as log:
        yield log


async def caught_up(server: RecoveryService, plant: PlantLog) -> None:
    """The books have all that was published."""
    min_seqs = tuple(enumerate(plant.next_seqs, start=1))
    answer = await ask(server, SnapshotRequest(1, 0, plant.session, min_seqs, STATES))
    assert isinstance(answer.end, SnapshotEnd), answer.end


def right_books(server: RecoveryService, plant: PlantLog) -> bool:
    markets = server.ticklog.state.markets
    return all(
        markets[entry.ticker].book.checksum() == entry.checksum()
        for entry in plant.plant.entries.values()
        if entry.in_sync
    )


async def test_each_rotation_is_followed_by_one_and_two_are_kept(plant: PlantLog) -> None:
    """However long the interval is; the log is kept from the older one on."""
    async with recovery(plant.folder, checkpoint_interval_s=HOURS_S) as server:
        for _ in range(3):
            newest = segment_names(plant.folder)[-1]
            while segment_names(plant.folder)[-1] == newest:
                plant.step()
            rotated = segment_names(plant.folder)[-1]
            await until(
                lambda rotated=rotated: (
                    [one.segment for one in checkpoint_positions(plant.folder)][-1:] == [rotated]
                )
            )
        kept = checkpoint_positions(plant.folder)
        assert len(kept) == 2
        await until(lambda: load_position(plant.folder, "recovery") == kept[0])
        assert server.counters()["checkpoints_written"] >= 3
        assert server.counters()["checkpoints_failures"] == 0


async def test_without_rotation_the_interval_counts_and_nothing_new_is_not_written_again(
    tmp_path: Path,
) -> None:
    with PlantLog(tmp_path / "log", options=options_of(segment_max_bytes=1 << 24)) as plant:
        async with recovery(plant.folder, checkpoint_interval_s=0.05) as server:
            await until(lambda: server.counters()["checkpoints_written"] == 1)
            for count in (2, 3, 4):
                plant.step(5)
                await until(lambda count=count: server.counters()["checkpoints_written"] >= count)
            positions = checkpoint_positions(plant.folder)
            assert len(positions) == 2
            assert {one.segment for one in positions} == set(segment_names(plant.folder))
            states = [read_checkpoint(plant.folder, one) for one in positions]
            assert sum(states[0].next_seqs) < sum(states[1].next_seqs)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, empty])
@pytest.mark.parametrize("damaged", [1, 2])
async def test_a_start_takes_the_newest_that_is_whole(
    plant: PlantLog, damage: Callable[[Path], None], damaged: int
) -> None:
    """And says which it refused; with none the log is read from the session's start."""
    async with recovery(plant.folder) as server:
        plant.step(20)
        await caught_up(server, plant)
        await until(lambda: checkpoint_positions(plant.folder))
    async with recovery(plant.folder) as server:
        plant.step(20)
        await caught_up(server, plant)
    older, newer = checkpoint_positions(plant.folder)
    for position in [newer, older][:damaged]:
        damage(checkpoint_path(plant.folder, position))
    left = plant.folder / CHECKPOINTS_FOLDER / "left-by-a-crash.new"
    left.write_bytes(b"half of one")
    plant.step(20)
    async with recovery(plant.folder) as server:
        assert len(server.log.of("checkpoint_refused")) == damaged
        (started,) = server.log.of("recovery_started")
        assert started["from_checkpoint"] is (damaged == 1)
        if damaged == 1:
            assert started["offset"] == older.offset
        await caught_up(server, plant)
        assert right_books(server, plant)
        assert server.counters()["log_holes"] == 0
    assert not left.exists()


async def test_a_list_of_the_folder_that_is_a_moment_old_takes_nothing_away(
    plant: PlantLog,
) -> None:
    """It is made on a thread, and a session may begin meanwhile; or the segment was deleted under the reader."""
    async with recovery(plant.folder) as server:
        for _ in range(2):
            before = segment_names(plant.folder)
            plant.begin_session()
            await caught_up(server, plant)
            list(server.ticklog.take_folder(None, before))
            plant.step(3)
            await caught_up(server, plant)
            assert plant.session in server.ticklog.index.sessions
        assert right_books(server, plant)
        assert server.supervisor.error is None
