"""The raw capture of a running plant: played again it gives what the plant logged and sent, byte for byte."""

import asyncio
import time
from pathlib import Path

import pytest
from plant_in_process import Place, Receiver, daemon_of, exchange, running, settled, until
from tick_log import read_folder

from tickerplant.config import CaptureConfig, Config, ExchangeConfig, InvalidValueError
from tickerplant.core.messages import FeedPhase
from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, FLAGS_OFFSET, Kind, decode_header
from tickerplant.errors import CaptureError
from tickerplant.runtime.capturefolder import capture_files, take_lock
from tickerplant.runtime.capturereader import CaptureReader, choose_session
from tickerplant.runtime.daemon import Daemon
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.inputs import AnyInput, Closed, Frames, MarketsRead, decode_inputs
from tickerplant_kalshi.playback import play
from tickerplant_kalshi.protocol import FeedConnection
from tickerplant_kalshi_sim.faults import Fault

ON = CaptureConfig(enabled=True, segment_max_bytes=64 * 1024, max_bytes=1 << 30)
FAULTS = ("skip_seq", "duplicate", "unusable", "inconsistent", "error_25", "reset", "late_ack")


def folder_of(place: Place) -> Path:
    """Where the plant keeps its capture unless told otherwise."""
    return place.folder / "state" / "capture"


def records_of(place: Place) -> list[bytes]:
    """The records of the newest session."""
    folder = folder_of(place)
    return list(CaptureReader(folder, choose_session(folder, None)).whole_records())


def inputs_of(place: Place) -> list[AnyInput]:
    """All that went in."""
    return [one for record in records_of(place) for one in decode_inputs(record)]


def played(place: Place) -> list[bytes]:
    """The datagrams of the capture, played through a plant again."""
    return [datagram for _now_ns, pairs in play(records_of(place)) for _stream, datagram in pairs]


def logged(place: Place) -> list[bytes]:
    """The plant's tick log."""
    datagrams, faults = read_folder(place.folder / "state" / "ticklog")
    assert faults == []
    return datagrams


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_captured_session_with_faults_plays_again_as_it_was_logged_and_sent(
    place: Place, receiver: Receiver, connections: int
) -> None:
    """Every datagram, byte for byte: also the time of sending, which is an input too."""
    async with exchange(place, rate=3_000, change_interval_s=0.3, window_s=2) as server:
        endpoint = ExchangeConfig(
            websocket_url=server.websocket_url,
            rest_url=server.rest_url,
            key_id=server.key_id,
            key_path=str(server.key_path),
            connections=connections,
        )
        daemon = daemon_of(server, place, capture=ON, exchange=endpoint)
        async with running(daemon):
            for number, kind in enumerate(FAULTS):
                server.inject(Fault(kind=kind, connection=0))
                await until(lambda least=200 * (number + 1): daemon.plant.trades >= least)
            await until(lambda: sum(c.counters.connections_lost for c in daemon.feed.connections))
            server.stop_faults()
            await settled(daemon, server)
        assert daemon.capture is not None
        assert daemon.capture.writer.status().warnings == ()
    datagrams = logged(place)
    assert played(place) == datagrams
    heard = {datagram for _header, datagram in receiver.datagrams}
    assert heard <= set(datagrams)
    assert len(heard) > len(datagrams) / 2, "the receiver's buffer may be too small for all"
    assert {decode_header(one).kind for one in datagrams} == set(Kind)
    kinds = {type(one) for one in inputs_of(place)}
    assert {Frames, Closed, MarketsRead} <= kinds
    counters = dict(daemon.feed.counters())
    assert counters["sequence_gaps"]
    assert counters["unreadable_frames"]
    frames = sum(len(one.frames) for one in inputs_of(place) if isinstance(one, Frames))
    assert frames == counters["frames"]
    assert len(capture_files(folder_of(place))) > 2


async def test_without_a_capture_the_feed_is_the_plain_one(place: Place) -> None:
    async with exchange(place) as server:
        daemon = daemon_of(server, place)
        async with running(daemon):
            assert daemon.capture is None
            assert type(daemon.feed) is KalshiFeed
            assert {type(one) for one in daemon.feed.connections} == {FeedConnection}
    assert not folder_of(place).exists()


async def test_a_lost_capture_is_told_and_the_feed_goes_on(place: Place) -> None:
    """Somebody deletes the segment: loud, counted, and everything else as before."""
    async with exchange(place, rate=1_000) as server:
        daemon = daemon_of(server, place, capture=ON)
        async with running(daemon):
            capture = daemon.capture
            assert capture is not None
            assert len(daemon.log.of("capture_begins")) == 1
            while capture.writer.is_on:
                for file in capture_files(folder_of(place)):
                    file.path.unlink(missing_ok=True)
                await asyncio.sleep(0.05)
            await until(lambda: daemon.log.of("capture_off"))
            trades = daemon.plant.trades
            await until(lambda: daemon.plant.trades > trades + 50)
            assert capture.counters()["went_off"] == 1
            assert capture.gauges()["on"] == 0
            await until(lambda: capture.recorder.inputs_lost)
            await settled(daemon, server)
    (told,) = daemon.log.of("capture_off")
    assert "leave the files of the capture alone" in told["reason"]
    assert logged(place)


async def test_the_next_start_captures_again_beside_the_old_session(place: Place) -> None:
    sessions = []
    for _ in range(2):
        async with exchange(place) as server:
            daemon = daemon_of(server, place, capture=ON)
            async with running(daemon):
                await until(lambda daemon=daemon: daemon.plant.trades > 5)
            sessions.append(daemon.plant.session)
    everything = logged(place)
    for session in sessions:
        reader = CaptureReader(folder_of(place), session)
        datagrams = [d for _now, pairs in play(reader.whole_records()) for _stream, d in pairs]
        assert datagrams == [one for one in everything if decode_header(one).session == session]


async def test_a_log_that_goes_off_and_resumes_in_another_session_is_played_too(
    place: Place, receiver: Receiver
) -> None:
    """The next session of the same process, on the running books, is in the same capture."""
    async with exchange(place, rate=500) as server:
        daemon = daemon_of(server, place, capture=ON)
        async with running(daemon):
            first, ticklog = daemon.plant.session, daemon.sessions.ticklog
            assert ticklog is not None
            ticklog._upkeep._resume_wait_s = 0.0
            for path in (place.folder / "state" / "ticklog").glob("*.ktl"):
                path.unlink()
            await until(lambda: not daemon.plant.log_on)
            await until(lambda: daemon.plant.session != first)
            await until(lambda: daemon.plant.phase is FeedPhase.READY)
            trades = daemon.plant.trades
            await until(lambda: daemon.plant.trades > trades + 50)
    again = [_without_flag(one) for one in played(place)]
    heard = {_without_flag(datagram) for _header, datagram in receiver.datagrams}
    assert heard <= set(again)
    assert len(heard) > len(again) / 2
    assert {decode_header(one).session for one in again} == {first, daemon.plant.session}
    assert logged(place) == [
        one for one in played(place) if decode_header(one).session == daemon.plant.session
    ]


def _without_flag(datagram: bytes) -> bytes:
    changed = bytearray(datagram)
    changed[FLAGS_OFFSET] &= ~FLAG_NOT_REPAIRABLE
    return bytes(changed)


async def test_a_folder_that_cannot_be_used_ends_the_start(place: Place) -> None:
    """What is wrong from the beginning is the operator's to put right, not to be found out later."""
    lock = take_lock(folder_of(place))
    assert lock >= 0
    async with exchange(place) as server:
        daemon = daemon_of(server, place, capture=ON)
        with pytest.raises(CaptureError, match="another plant"):
            await daemon.run()
    assert isinstance(daemon, Daemon)


def test_the_bound_must_have_room_for_two_segments() -> None:
    with pytest.raises(InvalidValueError, match=r"twice capture\.segment_max_bytes"):
        Config(capture=CaptureConfig(segment_max_bytes=1 << 20, max_bytes=1 << 20))


def test_what_is_wrong_is_told_once_and_again_after_a_minute(tmp_path: Path) -> None:
    from plant_in_process import EventList

    from tickerplant.runtime.capturewriter import open_capture
    from tickerplant.runtime.feed_capture import FeedCapture

    log = EventList()
    writer = open_capture(tmp_path, 5)
    capture = FeedCapture(writer, log)
    capture.tell(time.monotonic())
    assert [event for event, _ in log.events] == ["capture_begins"]
    # Under a name of its own: upkeep takes back what has become well, at any time.
    writer._upkeep.warnings["another step"] = "cannot compress"
    writer._upkeep.trouble = "it was deleted"
    for _ in range(3):
        capture.tell(0)
    assert [event for event, _ in log.events][1:] == ["capture_off", "capture_warning"]
    capture.tell(10**9)
    capture.tell(10**9)
    assert [event for event, _ in log.events][3:] == ["capture_off", "capture_warning"]
    assert writer.close()
