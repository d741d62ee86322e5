"""Every code with which recovery refuses, over UDP and TCP, each brought about as it would be in earnest."""

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog
from recovery_server import LOOPBACK, RecoveryClient, ask, gap_fill, recovery, until
from tick_log import LARGE, QUICK, options_of

from tickerplant.core.logformat import LogPosition
from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import (
    FRAME_HEADER,
    GapFill,
    GapFillKind,
    RecoveryCode,
    Reject,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
    decode_gap_fill,
    encode_gap_fill,
)
from tickerplant.limits import RECOVERY_FRAME_MAX_BYTES, RECOVERY_REFUSALS_PER_SECOND
from tickerplant.runtime.logfolder import segment_names, store_position

DELTA = int(Stream.DELTA)
NOW_NS = 10**18
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)


@pytest.fixture
def plant(tmp_path):
    with PlantLog(tmp_path / "log", options=LARGE) as log:
        log.step(40)
        yield log


async def code_of(server, request) -> RecoveryCode:
    """With which a TCP request ends."""
    end = (await ask(server, request)).end
    if isinstance(end, StreamEnd | SnapshotEnd):
        return RecoveryCode.SERVED
    assert isinstance(end, Reject)
    assert "\n" not in end.text
    return RecoveryCode(end.code)


def range_of(session, from_seq, to_seq, publisher=1, partition=0):
    """A range of the delta stream, both included."""
    return StreamRequest(
        publisher, partition, session, ((DELTA, from_seq),), ((DELTA, to_seq + 1),)
    )


def state_of(session, min_seq=1, publisher=1, partition=0):
    """A snapshot."""
    return SnapshotRequest(publisher, partition, session, ((DELTA, min_seq),), STATES)


async def codes(server, session, seq):
    """(gap fill, range, snapshot) for one delta of a session."""
    return (
        (await gap_fill(server, session, DELTA, seq, seq))[0],
        await code_of(server, range_of(session, seq, seq)),
        await code_of(server, state_of(session, seq)),
    )


async def test_what_is_there_is_served(plant):
    async with recovery(plant.folder) as server:
        assert await codes(server, plant.session, 1) == (RecoveryCode.SERVED,) * 3


async def test_what_is_ahead_of_the_log_is_not_yet(plant):
    async with recovery(plant.folder) as server:
        ahead = plant.next_seqs[DELTA - 1] + 5
        assert await codes(server, plant.session, ahead) == (RecoveryCode.NOT_YET,) * 3


async def test_a_session_that_never_was_is_unknown(plant):
    async with recovery(plant.folder) as server:
        unknown = plant.session + 10**9
        assert await codes(server, unknown, 1) == (RecoveryCode.UNKNOWN_SESSION,) * 3


def grow_to_segments(plant, least):
    """Publish until the log has so many; each is made ready on a thread before it is begun."""
    deadline = time.monotonic() + 30
    while len(names := segment_names(plant.folder)) < least:
        assert time.monotonic() < deadline
        plant.step(50)
    return names


async def test_what_retention_took_is_too_old(tmp_path):
    """Part of a session while recovery runs, and a session before all that there is."""
    with PlantLog(tmp_path / "log", options=QUICK) as plant:
        names = grow_to_segments(plant, 4)
        async with recovery(plant.folder) as server:
            assert (await codes(server, plant.session, 1))[0] is RecoveryCode.SERVED
            (plant.folder / str(names[0])).unlink()
            await until(
                lambda: server.ticklog.index.oldest_seqs(plant.session)[DELTA - 1] > 1, seconds=20
            )
            oldest = server.ticklog.index.oldest_seqs(plant.session)[DELTA - 1]
            gone = await codes(server, plant.session, oldest - 1)
            assert gone[:2] == (RecoveryCode.TOO_OLD,) * 2
            assert gone[2] is RecoveryCode.SERVED
            code, _, reply = await gap_fill(server, plant.session, DELTA, 1, 2)
            assert (code, reply.from_seq) == (RecoveryCode.TOO_OLD, oldest)
            assert await codes(server, plant.session, oldest) == (RecoveryCode.SERVED,) * 3
            before = plant.session - 10**9
            assert await codes(server, before, 1) == (RecoveryCode.TOO_OLD,) * 3


async def test_beyond_the_end_of_a_session_nothing_can_come(plant):
    """`not_repairable` for a gap fill; a range is complete with what there was."""
    plant.end_session()
    ended, end_seq = plant.session, plant.next_seqs[DELTA - 1]
    plant.begin_session()
    async with recovery(plant.folder) as server:
        assert await codes(server, ended, end_seq) == (
            RecoveryCode.NOT_REPAIRABLE,
            RecoveryCode.SERVED,
            RecoveryCode.TOO_OLD,
        )


async def test_while_the_log_is_off_it_is_not_repairable(tmp_path):
    """What the plant sends since the log is full is in no file."""
    options = options_of(retain_bytes=1, max_bytes=100_000)
    with PlantLog(tmp_path / "log", options=options) as plant:
        store_position(plant.folder, "store", LogPosition(plant.session, 1, 0))
        async with recovery(plant.folder) as server:
            while plant.ticklog.is_on:
                for _ in range(20):
                    plant.delta()
                plant.ticklog.append(plant.plant.flush(plant.now_ns))
            lost_seq = plant.next_seqs[DELTA - 1]
            plant.delta()
            assert not plant.ticklog.append(plant.plant.flush(plant.now_ns))
            await until(lambda: server.ticklog.unlogged_session == plant.session, seconds=20)
            assert await codes(server, plant.session, lost_seq) == (
                RecoveryCode.NOT_REPAIRABLE,
                RecoveryCode.NOT_REPAIRABLE,
                RecoveryCode.SERVED,
            )
            assert await code_of(server, state_of(plant.session, lost_seq + 1)) is (
                RecoveryCode.NOT_REPAIRABLE
            )
            async with RecoveryClient(server) as client:
                assert (await client.open()).repairable is False


async def test_another_plant_is_unknown(plant):
    async with recovery(plant.folder) as server:
        for publisher, partition in ((2, 0), (1, 3)):
            request = GapFill(
                GapFillKind.REQUEST, DELTA, 0, 1, publisher, partition, plant.session, 1, 1
            )
            answer = server.gap_fill.receive(encode_gap_fill(request), LOOPBACK, NOW_NS)
            assert decode_gap_fill(answer[0]).code == RecoveryCode.UNKNOWN_PLANT
            for make in (range_of, state_of):
                asked = (1, 1) if make is range_of else (1,)
                code = await code_of(server, make(plant.session, *asked, publisher, partition))
                assert code is RecoveryCode.UNKNOWN_PLANT


async def test_what_is_not_indexed_is_unavailable_until_it_is(tmp_path):
    """After a start from a checkpoint the older segments are indexed when somebody asks for them."""
    with PlantLog(tmp_path / "log", options=QUICK) as plant:
        grow_to_segments(plant, 3)
        async with recovery(plant.folder):
            pass
        async with recovery(plant.folder) as server:
            seq = plant.next_seqs[DELTA - 1] // 2
            code = (await gap_fill(server, plant.session, DELTA, seq, seq))[0]
            assert code is RecoveryCode.UNAVAILABLE
            await until(lambda: not server.ticklog.wanted, seconds=20)
            code = (await gap_fill(server, plant.session, DELTA, seq, seq))[0]
            assert code is RecoveryCode.SERVED
            assert server.counters()["gap_fill_requests{code}"] == {"unavailable": 1, "served": 1}


# --- limits ---------------------------------------------------------------------------------------


async def test_gap_fill_beyond_the_rate_is_throttled_and_then_dropped(plant):
    """First with an answer, then, beyond `RECOVERY_REFUSALS_PER_SECOND`, without."""
    async with recovery(plant.folder, client_bytes_per_second=1_000) as server:
        assert (await gap_fill(server, plant.session, DELTA, 1, 10**6))[0] is RecoveryCode.SERVED
        code, datagrams, _ = await gap_fill(server, plant.session, DELTA, 1, 1)
        assert (code, datagrams) == (RecoveryCode.THROTTLED, [])
        request = encode_gap_fill(
            GapFill(GapFillKind.REQUEST, DELTA, 0, 1, 1, 0, plant.session, 1, 1)
        )
        server.gap_fill.receive(request, "192.0.2.9", NOW_NS)
        answered = sum(
            len(server.gap_fill.receive(request, "192.0.2.9", NOW_NS)) for _ in range(2_000)
        )
        assert 0 < answered <= RECOVERY_REFUSALS_PER_SECOND
        assert server.gap_fill.unanswered_requests == 2_000 - answered


async def test_connections_beyond_the_bounds_are_throttled(plant):
    """Of one address, and of all; a closed one makes room."""
    for options in ({"connections_per_client_max": 2}, {"connections_max": 2}):
        async with recovery(plant.folder, **options) as server:
            async with RecoveryClient(server) as first, RecoveryClient(server) as second:
                await first.open()
                await second.open()
                async with RecoveryClient(server) as third:
                    answer = await third.read_until(lambda client=third: client.is_closed)
                assert isinstance(answer.end, Reject)
                assert answer.end.code == RecoveryCode.THROTTLED
                assert server.gauges()["tcp_connections_open"] == 2
            await until(lambda one=server: not one.gauges()["tcp_connections_open"], seconds=20)
            assert await code_of(server, range_of(plant.session, 1, 1)) is RecoveryCode.SERVED


async def test_a_stream_is_held_to_the_rate_of_its_client(plant):
    """Counted in what was sent while the clock went on, not in what was asked for."""
    plant.step(600)
    async with (
        recovery(plant.folder, client_bytes_per_second=100_000) as server,
        RecoveryClient(server) as client,
    ):
        await client.open()
        start_ns = server.ticklog.clock_ns()
        every = tuple((int(stream), 1) for stream in Stream)
        client.send(StreamRequest(1, 0, plant.session, every))
        await client.read_until(lambda: len(client.answer.datagrams) > 200)
        sent, elapsed_ns = server.server.sent_bytes, server.ticklog.clock_ns() - start_ns
        # A burst of a quarter of a second, and one read of the log beyond the rate.
        assert sent <= 100_000 * (elapsed_ns / 1e9 + 0.25) + 2 * 65_536


# --- malformed ------------------------------------------------------------------------------------


async def test_malformed_gap_fills(plant):
    async with recovery(plant.folder) as server:
        for from_seq, to_seq in ((0, 5), (5, 4), (0, 0)):
            code, datagrams, _ = await gap_fill(server, plant.session, DELTA, from_seq, to_seq)
            assert (code, datagrams) == (RecoveryCode.MALFORMED, [])


@pytest.mark.parametrize(
    "request_",
    [
        StreamRequest(1, 0, 5, ()),
        StreamRequest(1, 0, 5, ((DELTA, 0),)),
        StreamRequest(1, 0, 5, ((9, 1),)),
        StreamRequest(1, 0, 5, ((DELTA, 1), (DELTA, 2))),
        StreamRequest(1, 0, 5, ((DELTA, 1),), ((2, 5),)),
        StreamRequest(1, 0, 5, ((DELTA, 6),), ((DELTA, 5),)),
        StreamRequest(70_000, 0, 5, ((DELTA, 1),)),
        StreamRequest(1, -1, 5, ((DELTA, 1),)),
        StreamRequest(1, 0, -5, ((DELTA, 1),)),
        SnapshotRequest(1, 0, 5, (), ()),
        SnapshotRequest(1, 0, 5, (), (Stream.TRADE,)),
        SnapshotRequest(1, 0, 5, ((DELTA, -1),), STATES),
        StreamEnd(5, ()),
    ],
    ids=str,
)
async def test_malformed_requests(plant, request_):
    async with recovery(plant.folder) as server:
        assert await code_of(server, request_) is RecoveryCode.MALFORMED
        assert server.server.rejects == {"malformed": 1}


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 64,
        FRAME_HEADER.pack(0, 1),
        FRAME_HEADER.pack(RECOVERY_FRAME_MAX_BYTES + 1, 1),
        FRAME_HEADER.pack(5, 77) + b"four",
        FRAME_HEADER.pack(5, 1) + b"four",
        FRAME_HEADER.pack(5, 0) + b"four",
    ],
    ids=repr,
)
async def test_garbage_on_a_connection_is_malformed(plant, garbage):
    """Whether it comes instead of the opening or of the request."""
    async with recovery(plant.folder) as server:
        for opened in (False, True):
            async with RecoveryClient(server) as client:
                if opened:
                    await client.open()
                client.writer.write(garbage)
                answer = await client.read_until(lambda one=client: one.is_closed)
                assert isinstance(answer.end, Reject)
                assert answer.end.code == RecoveryCode.MALFORMED


async def test_one_request_to_a_connection(plant):
    async with recovery(plant.folder) as server, RecoveryClient(server) as client:
        await client.open()
        client.send(StreamRequest(1, 0, plant.session, ((DELTA, 1),)))
        client.send(StreamRequest(1, 0, plant.session, ((DELTA, 1),)))
        answer = await client.read_until(lambda: client.is_closed)
        assert answer.end.code == RecoveryCode.MALFORMED
