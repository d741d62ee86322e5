"""Clients that do wrong: recovery keeps its bounds, ends them, and serves everybody else meanwhile."""

import asyncio
import random
import socket
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import uvloop

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog
from recovery_server import LOOPBACK, RecoveryClient, ask, gap_fill, recovery, until
from tick_log import LARGE

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import (
    GAP_FILL_MAGIC,
    Alive,
    GapFill,
    GapFillKind,
    Open,
    RecoveryCode,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
    encode_control,
    encode_gap_fill,
)
from tickerplant.limits import (
    GAP_FILL_BYTES_MAX,
    GAP_FILL_DATAGRAMS_MAX,
    GAP_FILL_TURN_DATAGRAMS,
    RECOVERY_READ_BYTES,
    SNAPSHOT_CUTS_MAX,
)

DELTA = int(Stream.DELTA)
ALL = tuple((int(stream), 1) for stream in Stream)
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
SHORT_NS = 400_000_000
SMALL_BYTES = 4_096


@pytest.fixture
def plant(tmp_path):
    """Books and a log large enough, so that no kernel buffer holds an answer."""
    with PlantLog(tmp_path / "log", markets=30, levels=60, options=LARGE) as log:
        log.step(200)
        yield log


@pytest.fixture
def short_times(monkeypatch):
    """Deadlines that a test can wait for."""
    monkeypatch.setattr("tickerplant.core.conversation.RECOVERY_OPEN_TIMEOUT_NS", SHORT_NS)
    connection = "tickerplant.runtime.recovery_connection.RECOVERY_STALL_TIMEOUT_NS"
    monkeypatch.setattr(connection, SHORT_NS)


@pytest.fixture
def small_buffers(monkeypatch):
    """So that a slow reader is seen as such with little data."""
    name = "tickerplant.runtime.recovery_connection.RECOVERY_WRITE_BUFFER_BYTES"
    monkeypatch.setattr(name, SMALL_BYTES)


@contextmanager
def storm_of(server):
    """A UDP socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.connect((LOOPBACK, server.port))
        opened.setblocking(False)
        yield opened


def connect(server) -> socket.socket:
    """A client that reads nothing by itself, and has room for little."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    opened.connect((LOOPBACK, server.port))
    opened.setblocking(False)
    return opened


def greedy_request(plant) -> bytes:
    """For all that one request can get."""
    return encode_gap_fill(GapFill(GapFillKind.REQUEST, DELTA, 0, 1, 1, 0, plant.session, 1, 10**9))


def open_gauge(server) -> int:
    return server.gauges()["tcp_connections_open"]


async def all_is_well(server, plant) -> None:
    """One who behaves gets all that there is."""
    last = plant.next_seqs[DELTA - 1] - 1
    code, datagrams, _ = await gap_fill(server, plant.session, DELTA, last, last)
    assert code is RecoveryCode.SERVED
    assert datagrams
    until_seqs = tuple(enumerate(plant.next_seqs, start=1))
    answer = await ask(server, StreamRequest(1, 0, plant.session, ALL, until_seqs))
    assert answer.end == StreamEnd(plant.session, until_seqs)
    answer = await ask(server, SnapshotRequest(1, 0, plant.session, until_seqs, STATES))
    assert isinstance(answer.end, SnapshotEnd)


@pytest.mark.parametrize(
    "said",
    [b"", b"\x20", encode_control(Open(1))[:-1], encode_control(Open(1))],
    ids=["nothing", "one byte", "all but one byte", "no request"],
)
async def test_half_open_clients_are_closed(plant, short_times, said):
    """Whatever they have said so far; those who come meanwhile are served."""
    async with recovery(plant.folder, connections_per_client_max=100) as server:
        clients = [connect(server) for _ in range(40)]
        for client in clients:
            client.sendall(said)
        await until(lambda: open_gauge(server) == 40, seconds=20)
        await all_is_well(server, plant)
        await until(lambda: open_gauge(server) == 0, seconds=20)
        assert server.server.closed["half_open"] == 40
        for client in clients:
            client.close()


async def test_a_client_that_is_gone_is_forgotten(plant):
    """In the middle of anything, also by reset."""
    async with recovery(plant.folder) as server:
        for request in (None, StreamRequest(1, 0, plant.session, ALL)):
            for is_reset in (False, True):
                client = connect(server)
                if is_reset:
                    linger = b"\1\0\0\0\0\0\0\0"
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if request is not None:
                    client.sendall(encode_control(Open(1)) + encode_control(request))
                await until(lambda: open_gauge(server) == 1, seconds=20)
                client.close()
                await until(lambda: open_gauge(server) == 0, seconds=20)
        await until(lambda: server.server.followers == 0, seconds=20)
        await all_is_well(server, plant)


def test_what_is_written_to_a_client_that_is_gone_is_lost_and_nothing_else(plant):
    """Its answer may be about to write when the connection ends; the loop that recovery runs on raises then."""

    async def lose_one() -> None:
        async with recovery(plant.folder) as server:
            async with RecoveryClient(server) as client:
                await client.open()
                client.send(StreamRequest(1, 0, plant.session, ALL))
                await until(lambda: server.server.followers == 1, seconds=20)
                (connection,) = server.server._connections
            await until(lambda: open_gauge(server) == 0, seconds=20)
            connection.send(Alive(1))
            await all_is_well(server, plant)

    uvloop.run(lose_one())


async def test_slow_readers_of_streams_cost_a_bounded_buffer_and_time(
    plant, short_times, small_buffers
):
    """Nothing piles up for them while the plant goes on; then they are closed."""
    async with recovery(plant.folder, connections_per_client_max=100) as server:
        clients = [connect(server) for _ in range(20)]
        for client in clients:
            request = StreamRequest(1, 0, plant.session, ALL)
            client.sendall(encode_control(Open(1)) + encode_control(request))
        bound = 20 * (SMALL_BYTES + 2 * RECOVERY_READ_BYTES)
        await until(lambda: server.gauges()["tcp_unsent_bytes"] > 20 * SMALL_BYTES, seconds=20)
        await all_is_well(server, plant)
        while server.server.closed["slow_reader"] < 20:
            plant.step(5)
            assert server.gauges()["tcp_unsent_bytes"] <= bound
            await asyncio.sleep(0.01)
        await until(lambda: open_gauge(server) == 0, seconds=20)
        assert server.server.followers == 0
        await all_is_well(server, plant)
        for client in clients:
            client.close()


async def test_slow_readers_of_snapshots_make_room(plant, small_buffers, monkeypatch):
    """Few cuts are held; who has had his time is broken off for one who waits."""
    monkeypatch.setattr("tickerplant.runtime.recovery_cuts.SNAPSHOT_GRACE_NS", SHORT_NS)
    monkeypatch.setattr("tickerplant.runtime.recovery_cuts.SNAPSHOT_SHARE_NS", 0)
    async with recovery(plant.folder, connections_per_client_max=100) as server:
        clients = []
        for _ in range(SNAPSHOT_CUTS_MAX):
            client = connect(server)
            request = SnapshotRequest(1, 0, plant.session, (), STATES)
            client.sendall(encode_control(Open(1)) + encode_control(request))
            clients.append(client)
            taken = len(clients)
            await until(lambda count=taken: server.counters()["cuts"] == count, seconds=20)
            plant.step(5)
            next_seqs = plant.next_seqs
            await until(lambda seqs=next_seqs: tuple(server.ticklog.state.next_seqs) == seqs)
        assert server.gauges()["cuts_open"] == SNAPSHOT_CUTS_MAX
        waited = asyncio.get_running_loop().time()
        min_seqs = tuple(enumerate(plant.next_seqs, start=1))
        answer = None
        while answer is None or not isinstance(answer.end, SnapshotEnd):
            if answer is not None:
                assert answer.end.code == RecoveryCode.UNAVAILABLE
            assert asyncio.get_running_loop().time() < waited + 20
            answer = await ask(server, SnapshotRequest(1, 0, plant.session, min_seqs, STATES))
            assert server.gauges()["cuts_open"] <= SNAPSHOT_CUTS_MAX
        assert server.server.closed["slow_reader"] >= 1
        for client in clients:
            client.close()


async def test_a_storm_of_requests_leaves_the_log_followed(plant):
    """Between any two pieces of answering the loop does other work: what the plant writes is read during the storm."""
    async with recovery(plant.folder, client_bytes_per_second=1_000_000) as server:
        with storm_of(server) as storm:
            request = greedy_request(plant)
            for _ in range(40):
                for _ in range(200):
                    storm.send(request)
                plant.step(1)
                wanted = len(plant.datagrams)
                await until(lambda count=wanted: server.ticklog.tail.datagrams >= count, seconds=20)
            await until(lambda: server.udp.requests >= 1_000, seconds=20)
        gap_fills = server.gap_fill
        assert gap_fills.served_bytes <= gap_fills.codes["served"] * GAP_FILL_BYTES_MAX
        assert gap_fills.codes["throttled"] > gap_fills.codes["served"] > 0
        await until(lambda: not server.ticklog.tail.backlog, seconds=20)


async def test_one_turn_of_answering_is_bounded(plant, monkeypatch):
    """However many requests wait in the kernel."""
    async with recovery(plant.folder) as server:
        answers = []
        answer = server.udp._answer
        monkeypatch.setattr(
            server.udp, "_answer", lambda *one: answers.append(answer(*one)) or answers[-1]
        )
        with storm_of(server) as storm:
            for _ in range(100):
                storm.send(greedy_request(plant))
            sent = [0]
            while len(answers) < 100:
                before = len(answers)
                server.udp._on_readable()
                sent.append(sum(answers[before:]))
        assert len(sent) > 5
        assert max(sent) < GAP_FILL_TURN_DATAGRAMS + GAP_FILL_DATAGRAMS_MAX + 1


async def test_garbage_is_counted_and_not_answered(plant):
    """But for what claims to be a request: two recoveries must never talk to each other in a loop."""
    chance = random.Random(5)
    async with recovery(plant.folder) as server:
        reply = encode_gap_fill(GapFill(GapFillKind.REPLY, DELTA, 0, 1, 1, 0, plant.session, 1, 9))
        garbage = [chance.randbytes(chance.randrange(60)) for _ in range(300)]
        garbage += [reply, plant.datagrams[0], GAP_FILL_MAGIC.to_bytes(2, "little"), b""]
        with storm_of(server) as client:
            for number, one in enumerate(garbage, start=1):
                client.send(one)
                await until(lambda count=number: server.udp.requests == count, seconds=20)
            assert server.gap_fill.ignored_datagrams == len(garbage)
            with pytest.raises(BlockingIOError):
                client.recv(2_000)
        await all_is_well(server, plant)


async def test_a_flood_of_connections_from_one_address_leaves_room_for_others(plant):
    """Those beyond the bound hear why, and hold nothing."""
    async with recovery(plant.folder, connections_max=12, connections_per_client_max=8) as server:
        async with AsyncExitStack() as stack:
            for _ in range(8):
                await (await stack.enter_async_context(RecoveryClient(server))).open()
            for _ in range(30):
                async with RecoveryClient(server) as refused:
                    answer = await refused.read_until(lambda one=refused: one.is_closed)
                    assert answer.end.code == RecoveryCode.THROTTLED
            assert open_gauge(server) == 8
            other = socket.socket()
            other.bind(("127.0.0.2", 0))
            other.setblocking(False)
            await asyncio.get_running_loop().sock_connect(other, (LOOPBACK, server.port))
            other.sendall(encode_control(Open(1)))
            hello = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(other, 65_536), 20)
            assert len(hello) > 20
            other.close()
        await until(lambda: open_gauge(server) == 0, seconds=20)
        assert server.server.rejects == {"throttled": 30}
