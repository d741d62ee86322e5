"""Recovery started again on a log that has lost something: what it offers is right, and the rest it does not offer."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog, Rebuilt, rebuild, visible
from recovery_server import Answer, ask, gap_fill, recovery, until
from tick_log import eventually, options_of

from tickerplant.core.messages import BookState, Stream
from tickerplant.core.recovery_wire import (
    RecoveryCode,
    Reject,
    SnapshotEnd,
    SnapshotRequest,
    StreamRequest,
)
from tickerplant.core.wire import Kind, decode_header
from tickerplant.runtime import logupkeep
from tickerplant.runtime.checkpoints import (
    CHECKPOINTS_FOLDER,
    checkpoint_path,
    checkpoint_positions,
)
from tickerplant.runtime.logfolder import segment_names
from tickerplant.runtime.recovery import RecoveryService

STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
SEGMENT_BYTES = 4_096
SMALL = options_of(segment_max_bytes=SEGMENT_BYTES)
ENDS_ALL_PARTS = 10**12


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[PlantLog]:
    """Small segments, so that a session has many; nothing is deleted."""
    with PlantLog(tmp_path / "log", seed=3, options=SMALL) as log:
        yield log


def change_levels(plant: PlantLog) -> None:
    """A level of each market grows: nothing in it says what the other levels are."""
    for index in range(len(plant.tickers)):
        plant.delta(index)
        plant.flush()


def grow(plant: PlantLog, segments: int, step: Callable[[PlantLog], None]) -> None:
    """Go on until the log has so many segments more."""
    wanted = len(segment_names(plant.folder)) + segments

    def is_there() -> bool:
        step(plant)
        return len(segment_names(plant.folder)) >= wanted

    eventually(is_there, "rotation", seconds=30)


async def snapshot_of(server: RecoveryService, plant: PlantLog) -> Answer:
    """All that the plant has published so far."""
    min_seqs = tuple(enumerate(plant.next_seqs, start=1))
    answer = await ask(server, SnapshotRequest(1, 0, plant.session, min_seqs, STATES))
    assert isinstance(answer.end, SnapshotEnd), answer.end
    return answer


def told_by(answer: Answer) -> Rebuilt:
    """What a snapshot says. Its messages have no sequences of their own."""
    unnumbered = [
        datagram[:16] + (1).to_bytes(8, "little") + datagram[24:] for datagram in answer.datagrams
    ]
    return visible(rebuild(unnumbered, answer.end.session, (ENDS_ALL_PARTS,) * 5))


def truth_of(plant: PlantLog) -> Rebuilt:
    """The same from what was sent, whatever became of the log."""
    return visible(rebuild(plant.datagrams, plant.session, plant.next_seqs))


def live_in(markets: Rebuilt) -> set[str]:
    return {ticker for ticker, one in markets.items() if one["state"] == BookState.LIVE}


def assert_nothing_wrong(told: Rebuilt, truth: Rebuilt) -> None:
    """A book that is offered is the plant's, and so is each last value."""
    for ticker, one in told.items():
        if one["state"] != BookState.SYNCING:
            assert (one["state"], one["sides"]) == (truth[ticker]["state"], truth[ticker]["sides"])
        for kind, value in one["values"].items():
            assert value == truth[ticker]["values"][kind], (ticker, kind)


async def test_after_retention_cut_the_start_the_checkpoint_has_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a crash, of which no last checkpoint is: the log is kept from the one before on."""
    monkeypatch.setattr(logupkeep, "LOG_SURVEY_INTERVAL_S", 0.02)
    options = options_of(segment_max_bytes=SEGMENT_BYTES, retain_bytes=2 * SEGMENT_BYTES)
    with PlantLog(tmp_path / "log", seed=5, options=options) as plant:
        first = segment_names(plant.folder)[0]
        async with recovery(plant.folder, checkpoint_interval_s=0.05):

            def is_cut() -> bool:
                plant.step(5)
                return first not in segment_names(plant.folder)

            await until(is_cut, seconds=30)
        newest = checkpoint_positions(plant.folder)[-1]
        checkpoint_path(plant.folder, newest).unlink()
        plant.step(50)
        async with recovery(plant.folder) as server:
            answer = await snapshot_of(server, plant)
            assert told_by(answer) == truth_of(plant)
            assert server.counters()["log_holes"] == 0
            await assert_rest_is_served(server, plant)


async def test_a_stale_book_is_still_stale_after_a_restart_with_its_levels(plant: PlantLog) -> None:
    """And live again with what the plant then publishes, which is the difference alone."""
    plant.plant.begin_input(plant.now_ns)
    entry = plant.entries[0]
    plant.plant.mark_stale(entry, 2)
    plant.flush()
    async with recovery(plant.folder) as server:
        await snapshot_of(server, plant)
    async with recovery(plant.folder) as server:
        assert server.ticklog.tail.datagrams == 0
        told = told_by(await snapshot_of(server, plant))
        assert told == truth_of(plant)
        assert told[entry.ticker]["state"] == BookState.STALE
        plant.plant.begin_input(plant.now_ns)
        bids, asks = (entry.ascending(side) for side in (0, 1))
        plant.plant.apply_snapshot(entry, [*bids[1:], (1, 7)], asks)
        plant.flush()
        told = told_by(await snapshot_of(server, plant))
        assert told == truth_of(plant)
        assert entry.ticker in live_in(told)


async def assert_rest_is_served(server: RecoveryService, plant: PlantLog) -> None:
    """What was deleted is refused as too old, the rest comes whole."""
    oldest = server.ticklog.index.oldest_seqs(plant.session)
    assert oldest[Stream.DELTA - 1] > 1
    code, datagrams, _ = await gap_fill(server, plant.session, Stream.DELTA, 1, 2)
    assert (code, datagrams) == (RecoveryCode.TOO_OLD, [])
    all_of_it = StreamRequest(1, 0, plant.session, ((int(Stream.DELTA), 1),))
    refused = await ask(server, all_of_it)
    assert isinstance(refused.end, Reject)
    assert refused.end.code == RecoveryCode.TOO_OLD
    end = plant.next_seqs[Stream.DELTA - 1]
    wanted = ((int(Stream.DELTA), oldest[Stream.DELTA - 1]),)
    until_end = ((int(Stream.DELTA), end),)
    answer = await ask(server, StreamRequest(1, 0, plant.session, wanted, until_end))
    headers = [decode_header(one) for one in answer.datagrams]
    data = [one for one in headers if one.stream == Stream.DELTA and one.kind == Kind.DATA]
    seqs = [seq for one in data for seq in range(one.seq, one.seq + one.message_count)]
    assert seqs == list(range(seqs[0], end))
    assert seqs[0] <= oldest[Stream.DELTA - 1]


async def test_with_the_start_cut_and_no_checkpoint_it_offers_only_what_it_can_prove(
    plant: PlantLog,
) -> None:
    """Books of which it has no image are unknown, until one comes: with their market opened anew, or a session."""
    grow(plant, 3, lambda one: one.step(10))
    for name in segment_names(plant.folder)[:2]:
        (plant.folder / str(name)).unlink()
    async with recovery(plant.folder) as server:
        told, truth = told_by(await snapshot_of(server, plant)), truth_of(plant)
        assert_nothing_wrong(told, truth)
        assert live_in(told) < live_in(truth)
        reopened = plant.tickers[0]
        if reopened in plant.plant.entries:
            plant.plant.begin_input(plant.now_ns)
            plant.plant.close_book(plant.plant.entries[reopened])
        plant.flush()
        plant.plant.begin_input(plant.now_ns)
        plant.plant.apply_snapshot(plant.plant.open_book(reopened), [(4_000, 5)], [(4_100, 6)])
        plant.flush()
        plant.beat(10**9)
        told = told_by(await snapshot_of(server, plant))
        assert reopened in live_in(told)
        assert_nothing_wrong(told, truth_of(plant))
        plant.begin_session()
        assert told_by(await snapshot_of(server, plant)) == truth_of(plant)


def change_a_block(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for offset in range(middle, middle + 512, 16):
        content[offset] ^= 0x10
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [change_a_block, cut_short, Path.unlink])
@pytest.mark.parametrize("keeps_checkpoint", [True, False])
async def test_a_hole_is_known_after_every_restart(
    plant: PlantLog, damage: Callable[[Path], None], keeps_checkpoint: bool
) -> None:
    """Met from a checkpoint before it; then from one after it; or read anew from the start of the log."""
    change_levels(plant)
    async with recovery(plant.folder) as server:
        assert told_by(await snapshot_of(server, plant)) == truth_of(plant)
    first_after = len(segment_names(plant.folder))
    grow(plant, 3, change_levels)
    damage(plant.folder / str(segment_names(plant.folder)[first_after]))
    known: list[Rebuilt] = []
    for _ in range(2):
        async with recovery(plant.folder) as server:
            told, truth = told_by(await snapshot_of(server, plant)), truth_of(plant)
            assert_nothing_wrong(told, truth)
            assert not live_in(told)
            known.append(told)
        if not keeps_checkpoint:
            shutil.rmtree(plant.folder / CHECKPOINTS_FOLDER)
    assert known[0] == known[1]
    async with recovery(plant.folder) as server:
        plant.begin_session()
        assert told_by(await snapshot_of(server, plant)) == truth_of(plant)


async def test_a_hole_met_while_it_runs_fails_what_is_asked_and_not_the_rest(
    plant: PlantLog,
) -> None:
    """The missing range is refused, what follows it is served, and the books are unknown."""
    async with recovery(plant.folder) as server:
        at = plant.next_seqs[Stream.DELTA - 1]
        log, plant.ticklog = plant.ticklog, NoLog()
        for _ in range(5):
            plant.delta()
            plant.flush()
        missing_to = plant.next_seqs[Stream.DELTA - 1] - 1
        plant.ticklog = log
        change_levels(plant)
        await snapshot_of(server, plant)
        code, datagrams, _ = await gap_fill(server, plant.session, Stream.DELTA, at, missing_to)
        assert (code, datagrams) == (RecoveryCode.NOT_REPAIRABLE, [])
        last = plant.next_seqs[Stream.DELTA - 1] - 1
        code, datagrams, _ = await gap_fill(server, plant.session, Stream.DELTA, last, last)
        assert (code, len(datagrams)) == (RecoveryCode.SERVED, 1)
        assert server.counters()["log_holes"] >= 1
    for _ in range(2):
        async with recovery(plant.folder) as server:
            told = told_by(await snapshot_of(server, plant))
            assert_nothing_wrong(told, truth_of(plant))
            assert not live_in(told)


class NoLog:
    """In place of a tick log: takes datagrams and keeps nothing."""

    def append(self, _datagrams: object) -> bool:
        return True
