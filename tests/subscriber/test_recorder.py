"""The recorder over real multicast, with a real recovery: every message once, through absence and new sessions."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from recovery_server import recovery
from repaired_feed import MulticastPlant

from tickerplant.core.messages import Stream
from tickerplant.core.wire import Kind, decode_body, decode_header
from tickerplant.errors import ConfigurationError, RecordingError
from tickerplant.limits import SESSION_FINISH_NS
from tickerplant_subscriber import (
    Recorder,
    Strategy,
    Trade,
    read_log,
    read_recording,
    recorded_events,
    replay,
)
from tickerplant_subscriber.recording_files import (
    is_being_written,
    read_extent,
    read_position,
    segment_names,
)
from tickerplant_subscriber.recording_format import INDEX_ENTRY_BYTES, decode_index, index_name

MakePlant = Callable[..., MulticastPlant]
Numbered = dict[tuple[int, int], list[Any]]
"""(session, stream) -> its messages from sequence 1 on"""


@pytest.fixture
def make_plant(tmp_path: Path, group: str, port: int) -> Iterator[MakePlant]:
    plants: list[MulticastPlant] = []

    def make(**options: Any) -> MulticastPlant:
        plants.append(MulticastPlant(tmp_path / "log", group, port, **options))
        return plants[-1]

    yield make
    for plant in plants:
        plant.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recording"


class Recording:
    """A recorder that runs in the background."""

    def __init__(self, recorder: Recorder, plant: MulticastPlant) -> None:
        self.recorder = recorder
        self._plant = plant

    async def until(self, condition: Callable[[], object]) -> None:
        """`condition()` holds; the plant's heartbeats go on."""
        async with asyncio.timeout(20):
            while not condition():
                self._plant.tick()
                await asyncio.sleep(0.002)

    async def caught_up(self) -> None:
        """Every stream is where the plant is."""
        plant = self._plant

        def is_there() -> bool:
            places = self.recorder._reception.arbiter.places().get((1, 0), {})
            wanted = zip(Stream, plant.next_seqs, strict=True)
            return all(
                places.get(stream) == (plant.session, next_seq) for stream, next_seq in wanted
            )

        await self.until(is_there)


@asynccontextmanager
async def recording(
    folder: Path, plant: MulticastPlant, group: str, port: int, server: Any, **options: Any
) -> AsyncIterator[Recording]:
    addresses = [] if server is None else [f"127.0.0.1:{server.port}"]
    recorder = Recorder(folder, group_a=group, port=port, recovery=addresses, **options)
    task = asyncio.create_task(recorder.run())
    try:
        yield Recording(recorder, plant)
    finally:
        recorder.stop()
        await task


def numbered(datagrams: list[bytes]) -> Numbered:
    """What datagrams hold; fails unless each sequence is there once and in order, from 1."""
    found: Numbered = {}
    for datagram in datagrams:
        header = decode_header(datagram)
        messages = found.setdefault((header.session, header.stream), [])
        if header.kind == Kind.DATA:
            assert header.seq == len(messages) + 1, "each sequence once and in order"
            messages += decode_body(datagram, header)
        else:
            assert header.seq == len(messages) + 1
    return {key: messages for key, messages in found.items() if messages}


def recorded(folder: Path) -> Numbered:
    return numbered([datagram for _, datagram in read_recording(folder)])


async def steps(plant: MulticastPlant, count: int) -> None:
    for _ in range(count):
        plant.step()
        await asyncio.sleep(0.0005)


def gaps(folder: Path, session: int) -> list[Any]:
    return [event for event in recorded_events(folder, session) if event.kind == "Gap"]


async def test_a_recorder_that_joins_late_has_everything_from_the_beginning(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """Over a lossy network; and a session that ended in order is known to be at its end."""
    plant = make_plant()
    plant.step(50)
    chance = random.Random(1)
    async with (
        recovery(plant.folder) as server,
        recording(folder, plant, group, port, server) as one,
    ):
        plant.is_lost = lambda header: header.kind == Kind.DATA and chance.random() < 0.1
        await steps(plant, 200)
        plant.is_lost = lambda _header: False
        await one.caught_up()
        plant.end_session()
        await one.until(lambda: len(ended(folder, plant.session)) == 5)
        assert is_being_written(folder)
    assert plant.lost > 20
    assert recorded(folder) == numbered(plant.datagrams)
    assert gaps(folder, plant.session) == []
    assert not is_being_written(folder)
    assert one.recorder.counts()["messages"] == sum(map(len, recorded(folder).values()))


def ended(folder: Path, session: int) -> list[Any]:
    return [event for event in recorded_events(folder, session) if event.kind == "SessionEnded"]


async def test_after_hours_of_absence_it_goes_on_where_it_was(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """Away while one session ends, another comes and goes, and a third begins."""
    plant = make_plant()
    async with recovery(plant.folder) as server:
        async with recording(folder, plant, group, port, server) as one:
            await steps(plant, 60)
            await one.caught_up()
        plant.step(300)
        plant.begin_session()
        plant.step(200)
        plant.begin_session()
        plant.step(100)
        async with recording(folder, plant, group, port, server) as one:
            await steps(plant, 60)
            await one.caught_up()
            assert one.recorder.position is not None
    assert recorded(folder) == numbered(plant.datagrams)
    assert {session for session, _ in recorded(folder)} == {
        decode_header(datagram).session for datagram in plant.datagrams
    }
    assert one.recorder.counts()["gaps"] == 0


async def test_a_recorder_that_starts_before_recovery_waits_for_it(
    make_plant: MakePlant, group: str, port: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a boot of the machine: nothing of what came in its absence is given up meanwhile."""
    plant = make_plant()
    async with recovery(plant.folder) as server:
        async with recording(folder, plant, group, port, server) as one:
            await steps(plant, 30)
            await one.caught_up()
        address = server.port
    plant.step(100)
    again = Recorder(folder, group_a=group, port=port, recovery=[f"127.0.0.1:{address}"])
    task = asyncio.create_task(again.run())
    one = Recording(again, plant)
    await one.until(lambda: "recovery does not answer" in caplog.text)
    plant.step(50)
    async with recovery(plant.folder, port=address):
        await one.caught_up()
        again.stop()
        await task
    assert recorded(folder) == numbered(plant.datagrams)
    assert again.counts()["gaps"] == 0


async def test_what_the_end_of_a_session_lost_is_fetched_also_from_a_recovery_that_is_slow_to_come(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """The plant and its recovery are killed and started again; the last messages were lost on the way."""
    plant = make_plant()
    async with recovery(plant.folder) as server:
        address = server.port
        recorder = Recorder(folder, group_a=group, port=port, recovery=[f"127.0.0.1:{address}"])
        task = asyncio.create_task(recorder.run())
        one = Recording(recorder, plant)
        await steps(plant, 30)
        await one.caught_up()
    plant.is_lost = lambda _header: True
    plant.step(20)
    plant.is_lost = lambda _header: False
    plant.begin_session()
    arbiter = recorder._reception.arbiter
    await one.until(lambda: arbiter.plants[1, 0].session == plant.session)
    loop = asyncio.get_running_loop()
    heard_s = loop.time()
    while loop.time() < heard_s + 1.5 * SESSION_FINISH_NS / 1e9:
        plant.step()
        await asyncio.sleep(0.02)
    async with recovery(plant.folder, port=address):
        await one.caught_up()
        recorder.stop()
        await task
    assert recorder.counts()["gaps"] == 0
    assert recorded(folder) == numbered(plant.datagrams)


@pytest.mark.parametrize("cut_bytes", [1, 7, 300, 5_000])
async def test_a_torn_tail_is_cut_and_fetched_again(
    cut_bytes: int, make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """The machine stopped while it wrote: bytes are missing at the end, and rubbish stands there."""
    plant = make_plant()
    async with recovery(plant.folder) as server:
        async with recording(folder, plant, group, port, server) as one:
            await steps(plant, 60)
            await one.caught_up()
        path = folder / str(segment_names(folder)[-1])
        content = path.read_bytes()
        path.write_bytes(content[:-cut_bytes] + b"\x00rubbish" * (cut_bytes % 3))
        (folder / index_name(segment_names(folder)[-1])).unlink()
        async with recording(folder, plant, group, port, server) as one:
            await steps(plant, 30)
            await one.caught_up()
    assert recorded(folder) == numbered(plant.datagrams)
    assert one.recorder.counts()["gaps"] == 0


async def test_segments_rotate_and_the_index_finds_a_time(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """By index and without one the same is read; `read_log` reads the same files."""
    plant = make_plant()
    async with (
        recovery(plant.folder) as server,
        recording(folder, plant, group, port, server, segment_max_bytes=4_096) as one,
    ):
        await steps(plant, 150)
        await one.caught_up()
    names = segment_names(folder)
    assert len(names) > 5
    for name in names:
        entries = decode_index((folder / index_name(name)).read_bytes(), name.session)
        extent = read_extent(folder, name)
        assert extent is not None
        assert entries[-1] == extent.last
        assert extent.end == extent.size
    everything = list(read_recording(folder))
    assert everything == list(read_log(folder))
    from_ns, to_ns = (everything[len(everything) * part // 3][0] for part in (1, 2))
    wanted = [one for one in everything if from_ns <= one[0] <= to_ns]
    assert list(read_recording(folder, from_ns=from_ns, to_ns=to_ns)) == wanted
    trades = [one for one in everything if decode_header(one[1]).stream == Stream.TRADE]
    assert list(read_recording(folder, streams=[Stream.TRADE])) == trades
    position = read_position(folder)
    for name in names:
        index = folder / index_name(name)
        index.write_bytes(index.read_bytes()[: INDEX_ENTRY_BYTES - 1])
    assert list(read_recording(folder, from_ns=from_ns, to_ns=to_ns)) == wanted
    assert read_position(folder) == position


async def test_what_cannot_be_had_is_told_with_its_cause(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """Without recovery: a loss on the way, and after an absence what was missed; nothing comes twice."""
    plant = make_plant()
    async with recording(folder, plant, group, port, None) as one:
        await one.until(one.recorder._reception.arbiter.places)
        await steps(plant, 20)
        plant.is_lost = lambda header: header.kind == Kind.DATA and header.stream == Stream.DELTA
        before = plant.next_seqs[Stream.DELTA - 1]
        while plant.next_seqs[Stream.DELTA - 1] == before:
            plant.step()
        plant.is_lost = lambda _header: False
        await steps(plant, 20)
        await one.caught_up()
        (gap,) = [each for each in gaps_now(one, folder) if each.cause != "late_join"]
    assert (gap.stream, gap.from_seq, gap.cause) == (Stream.DELTA, before, "network")
    told = plant.next_seqs
    plant.step(40)
    missed = plant.next_seqs
    async with recording(folder, plant, group, port, None) as one:
        await steps(plant, 20)
        await one.caught_up()
    again = [each for each in gaps(folder, plant.session) if each.at_ns > gap.at_ns]
    assert {(each.stream, each.from_seq, each.cause) for each in again} == {
        (stream, seq, "late_join")
        for stream, seq, now in zip(Stream, told, missed, strict=True)
        if seq < now
    }
    for stream in Stream:
        seqs = [
            header.seq + index
            for _, datagram in read_recording(folder, streams=[stream])
            if (header := decode_header(datagram)).kind == Kind.DATA
            for index in range(header.message_count)
        ]
        assert seqs == sorted(set(seqs))


def gaps_now(one: Recording, folder: Path) -> list[Any]:
    """The recorder's events as they are on disk once it has flushed."""
    one.recorder._settle()
    (session,) = {name.session for name in segment_names(folder)}
    return gaps(folder, session)


async def test_a_strategy_is_told_the_same_by_the_recording_as_by_the_log(
    make_plant: MakePlant, group: str, port: int, folder: Path, tmp_path: Path
) -> None:
    class Keeper(Strategy):
        def __init__(self) -> None:
            self.told: list[Trade] = []

        def on_trade(self, trade: Trade) -> None:
            self.told.append(trade)

    plant = make_plant()
    async with (
        recovery(plant.folder) as server,
        recording(folder, plant, group, port, server) as one,
    ):
        await steps(plant, 80)
        await one.caught_up()
    by_log, by_recording = Keeper(), Keeper()
    await asyncio.to_thread(replay, by_log, read_log(tmp_path / "log"), speed=None)
    await asyncio.to_thread(replay, by_recording, read_recording(folder), speed=None)
    assert len(by_log.told) > 10
    assert by_recording.told == by_log.told


async def test_a_folder_has_one_recorder_and_one_plant(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    plant = make_plant()
    async with recording(folder, plant, group, port, None):
        with pytest.raises(RecordingError, match="another recorder"):
            Recorder(folder, group_a=group, port=port, recovery=[])
    with pytest.raises(ConfigurationError, match="must be positive"):
        Recorder(folder, segment_max_bytes=0)
    with pytest.raises(RecordingError, match="holds no recording"):
        list(read_recording(folder.parent))
    with pytest.raises(RecordingError, match="name the folder"):
        list(read_recording(folder / "nowhere"))
    (folder.parent / "file").touch()
    with pytest.raises(RecordingError, match="name another one"):
        Recorder(folder.parent / "file", recovery=[])


async def test_a_disk_that_takes_no_more_ends_the_recorder_and_it_goes_on_later(
    make_plant: MakePlant, group: str, port: int, folder: Path
) -> None:
    """The folder is gone when a segment is to begin; the line names it and the remedy."""
    plant = make_plant()
    async with recovery(plant.folder) as server:
        recorder = Recorder(
            folder,
            group_a=group,
            port=port,
            recovery=[f"127.0.0.1:{server.port}"],
            segment_max_bytes=4_096,
        )
        task = asyncio.create_task(recorder.run())
        one = Recording(recorder, plant)
        await steps(plant, 20)
        await one.caught_up()
        moved = folder.rename(folder.with_name("moved"))  # noqa: ASYNC240  # a moment on a local disk
        await one.until(lambda: plant.step() or task.done())
        with pytest.raises(RecordingError, match="goes on after its last record"):
            await task
        moved.rename(folder)
        async with recording(folder, plant, group, port, server) as one:
            await one.caught_up()
    assert recorded(folder) == numbered(plant.datagrams)
