"""Recovery serves what is in the log: gap fill, streams, snapshots, over real sockets."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog, rebuild, visible
from recovery_server import RecoveryClient, ask, gap_fill, recovery, until
from tick_log import LARGE, QUICK, options_of

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import (
    RecoveryCode,
    Reject,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
)
from tickerplant.core.wire import (
    FLAG_RETRANSMITTED,
    FLAG_SNAPSHOT,
    FLAGS_OFFSET,
    Kind,
    decode_header,
)
from tickerplant.limits import DATAGRAM_MAX_BYTES

ALL = tuple((int(stream), 1) for stream in Stream)
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)


@pytest.fixture
def plant(tmp_path):
    with PlantLog(tmp_path / "log", options=LARGE) as log:
        yield log


def plain(datagram: bytes) -> bytes:
    """As it was sent first."""
    flags = datagram[FLAGS_OFFSET] & ~FLAG_RETRANSMITTED
    return datagram[:FLAGS_OFFSET] + bytes((flags,)) + datagram[FLAGS_OFFSET + 1 :]


def sent(plant, stream, session=0, kinds=(Kind.DATA,)):
    """(header, datagram) of a stream."""
    both = ((decode_header(datagram), datagram) for datagram in plant.datagrams)
    return [
        (header, datagram)
        for header, datagram in both
        if header.stream == stream
        and header.kind in kinds
        and header.session == (session or plant.session)
    ]


def intersecting(plant, stream, from_seq, to_seq):
    return [
        datagram
        for header, datagram in sent(plant, stream)
        if header.seq <= to_seq and header.seq + header.message_count > from_seq
    ]


def state_of(answer):
    """What a snapshot tells, as `rebuild` has it."""
    markets = rebuild(
        [
            datagram[:16] + (1).to_bytes(8, "little") + datagram[24:]
            for datagram in answer.datagrams
        ],
        answer.end.session,
        (10**12,) * 5,
    )
    return visible(markets)


async def snapshot(server, plant, **values):
    request = SnapshotRequest(
        **(
            {
                "publisher": 1,
                "partition": 0,
                "session": plant.session,
                "min_seqs": (),
                "streams": STATES,
            }
            | values
        )
    )
    return await ask(server, request)


async def test_gap_fill_gives_the_datagrams_that_intersect(plant):
    """Whole datagrams, as they were sent, whatever part of them was asked for."""
    plant.step(60)
    async with recovery(plant.folder) as server:
        last = plant.next_seqs[Stream.DELTA - 1] - 1
        for from_seq, to_seq in itertools.product((1, 2, last // 2, last), repeat=2):
            if from_seq > to_seq:
                continue
            code, datagrams, reply = await gap_fill(
                server, plant.session, Stream.DELTA, from_seq, to_seq
            )
            wanted = intersecting(plant, Stream.DELTA, from_seq, to_seq)[:64]
            assert code is RecoveryCode.SERVED
            assert [plain(datagram) for datagram in datagrams] == wanted
            assert (reply.from_seq, reply.to_seq) == (1, last + 1)


async def test_gap_fill_beyond_the_log_is_not_yet(plant):
    async with recovery(plant.folder) as server:
        next_seq = plant.next_seqs[Stream.BBO - 1]
        code, datagrams, reply = await gap_fill(
            server, plant.session, Stream.BBO, next_seq, next_seq
        )
        assert (code, datagrams, reply.to_seq) == (RecoveryCode.NOT_YET, [], next_seq)


async def test_gap_fill_reads_what_was_written_a_moment_ago(plant):
    """Asked for the newest datagram at once, recovery looks at the log before it says no."""
    async with recovery(plant.folder) as server:
        for _ in range(50):
            plant.delta()
            plant.flush()
            seq = plant.next_seqs[Stream.DELTA - 1] - 1
            code, datagrams, _ = await gap_fill(server, plant.session, Stream.DELTA, seq, seq)
            assert code is RecoveryCode.SERVED
            assert plain(datagrams[-1]) in plant.datagrams


async def test_a_range_stream_is_the_range(plant):
    plant.step(80)
    async with recovery(plant.folder) as server:
        until_seqs = tuple(enumerate(plant.next_seqs, start=1))
        answer = await ask(server, StreamRequest(1, 0, plant.session, ALL, until_seqs))
        data = [
            datagram for datagram in plant.datagrams if decode_header(datagram).kind == Kind.DATA
        ]
        assert [plain(datagram) for datagram in answer.datagrams] == data
        assert answer.end == StreamEnd(plant.session, until_seqs)


async def test_an_open_stream_crosses_sessions_and_goes_on_live(tmp_path):
    """In the order of the log, nothing missing, nothing twice."""
    with PlantLog(tmp_path / "log", options=QUICK) as plant:
        plant.step(200)
        first = plant.session
        async with recovery(plant.folder) as server, RecoveryClient(server) as client:
            await client.open()
            client.send(StreamRequest(1, 0, first, ALL))
            for _ in range(3):
                plant.step(30)
                wanted = len(plant.datagrams)
                await client.read_until(lambda count=wanted: len(client.answer.datagrams) >= count)
                plant.end_session()
                plant.begin_session()
            for _ in range(20):
                plant.step()
                await until(lambda: server.server.followers == 1)
            wanted = len(plant.datagrams)
            await client.read_until(lambda: len(client.answer.datagrams) >= wanted)
            assert [plain(datagram) for datagram in client.answer.datagrams] == plant.datagrams


async def test_a_snapshot_is_the_state(plant):
    plant.step(300)
    plant.beat(10**9)
    async with recovery(plant.folder) as server:
        min_seqs = tuple(enumerate(plant.next_seqs, start=1))
        answer = await snapshot(server, plant, min_seqs=min_seqs)
        assert isinstance(answer.end, SnapshotEnd)
        assert answer.end.next_seqs == min_seqs
        assert state_of(answer) == visible(rebuild(plant.datagrams, plant.session, plant.next_seqs))
        headers = [decode_header(datagram) for datagram in answer.datagrams]
        for header, datagram in zip(headers, answer.datagrams, strict=True):
            assert len(datagram) <= DATAGRAM_MAX_BYTES
            assert header.flags == FLAG_SNAPSHOT
            assert header.seq == plant.next_seqs[header.stream - 1]
        counts = {
            int(stream): sum(header.message_count for header in headers if header.stream == stream)
            for stream in STATES
        }
        assert dict(answer.end.counts) == counts
        assert not server.ticklog.state.mismatches


async def test_a_snapshot_of_some_markets_on_some_streams(plant):
    async with recovery(plant.folder) as server:
        answer = await snapshot(
            server, plant, tickers=("KXT-3", "KXT-5", "KXNONE"), streams=(Stream.BBO,)
        )
        state = state_of(answer)
        assert set(state) == {"KXT-3", "KXT-5"}
        assert {key for market in state.values() for key in market["values"]} == {"Bbo"}


async def test_a_snapshot_ahead_of_the_log_is_refused_after_a_while(plant):
    async with recovery(plant.folder) as server:
        ahead = plant.next_seqs[Stream.DELTA - 1] + 1
        answer = await snapshot(server, plant, min_seqs=((int(Stream.DELTA), ahead),))
        assert isinstance(answer.end, Reject)
        assert answer.end.code == RecoveryCode.NOT_YET


async def test_the_hello_tells_what_there_is(plant):
    plant.step(20)
    plant.end_session()
    first, ended_at = plant.session, plant.next_seqs
    plant.begin_session()
    async with recovery(plant.folder) as server, RecoveryClient(server) as client:
        hello = await client.open()
        assert [one.session for one in hello.sessions] == [first, plant.session]
        assert [one.final for one in hello.sessions] == [True, False]
        assert dict(hello.sessions[0].next_seqs) == dict(enumerate(ended_at, start=1))
        assert dict(hello.sessions[1].next_seqs) == dict(enumerate(plant.next_seqs, start=1))
        assert all(dict(one.oldest_seqs) == dict(ALL) for one in hello.sessions)
        assert (hello.publisher, hello.repairable) == (1, True)


async def test_an_authenticated_recovery(tmp_path):
    """Requests and answers carry trailers, over UDP and TCP; without a key there is nothing to be had."""
    keys = {7: b"k" * 32}
    with PlantLog(tmp_path / "log", key=(7, keys[7]), options=options_of()) as plant:
        plant.step(30)
        async with recovery(plant.folder, keys=keys, key_id=7) as server:
            code, datagrams, _ = await gap_fill(server, plant.session, Stream.DELTA, 1, 5)
            assert code is RecoveryCode.SERVED
            assert [plain(one) for one in datagrams] == intersecting(plant, Stream.DELTA, 1, 5)
            answer = await snapshot(server, plant)
            assert isinstance(answer.end, SnapshotEnd)
