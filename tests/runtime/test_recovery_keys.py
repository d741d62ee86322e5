"""Recovery of a plant with keys: what is served verifies, whoever lacks the key is refused with a code that says so."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog
from recovery_server import (
    GapFillClient,
    RecoveryClient,
    ask,
    recovery,
    until,
)
from tick_log import LARGE

from tickerplant.core.messages import Stream
from tickerplant.core.recovery_wire import (
    FrameReader,
    GapFill,
    GapFillKind,
    Open,
    RecoveryCode,
    Reject,
    Seal,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
    encode_gap_fill,
)
from tickerplant.core.wire import FLAG_AUTHENTICATED, decode_header, verify_authentic
from tickerplant.errors import AuthenticationError

DELTA = int(Stream.DELTA)
KEYS = {7: b"k" * 32, 8: b"the next key" * 2}
FORGED = {7: b"another key!" * 2}
STRANGE = {99: b"k" * 32}
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)


@pytest.fixture
def plant(tmp_path):
    """Signed with key 7."""
    with PlantLog(tmp_path / "log", key=(7, KEYS[7]), options=LARGE) as log:
        log.step(40)
        yield log


def wanted(plant, stream=DELTA):
    headers = [decode_header(datagram) for datagram in plant.datagrams]
    return sum(header.kind == 0 and header.stream == stream for header in headers)


async def test_repairs_verify_with_the_key_they_were_sent_with(plant):
    """Over UDP and TCP, although flag 1 was set since, and although recovery signs with another key now."""
    async with recovery(plant.folder, keys=KEYS, key_id=8) as server:
        with GapFillClient(server.port, KEYS, 8) as client:
            code, datagrams, reply = await client.ask(plant.session, DELTA, 1, 50)
        assert code is RecoveryCode.SERVED
        assert reply.flags & FLAG_AUTHENTICATED
        every = tuple((int(stream), 1) for stream in Stream)
        until_seqs = tuple(enumerate(plant.next_seqs, start=1))
        answer = await ask(server, StreamRequest(1, 0, plant.session, every, until_seqs))
        assert isinstance(answer.end, StreamEnd)
        assert len(datagrams) > 5
        assert len(answer.datagrams) == sum(wanted(plant, stream) for stream in Stream)
        for datagram in datagrams + answer.datagrams:
            header = decode_header(datagram)
            assert header.flags & FLAG_AUTHENTICATED
            verify_authentic(datagram, header, KEYS)
            with pytest.raises(AuthenticationError):
                verify_authentic(datagram[:50] + b"\xff" + datagram[51:], header, KEYS)


async def test_a_snapshot_is_signed_frame_by_frame(plant):
    """Its datagrams were never on a group: the connection's own trailers vouch for them."""
    async with recovery(plant.folder, keys=KEYS, key_id=8) as server:
        answer = await ask(server, SnapshotRequest(1, 0, plant.session, (), STATES))
        assert isinstance(answer.end, SnapshotEnd)
        assert dict(answer.end.counts)[DELTA] > 8


@pytest.mark.parametrize("keys", [None, FORGED, STRANGE], ids=["none", "wrong", "unknown id"])
async def test_a_gap_fill_without_the_key_is_refused_with_the_code(plant, keys):
    """And brings nothing; the refusal itself is signed."""
    async with recovery(plant.folder, keys=KEYS, key_id=7) as server:
        key_id = 0 if keys is None else next(iter(keys))
        with GapFillClient(server.port, keys, key_id) as client:
            client.keys = KEYS
            code, datagrams, reply = await client.ask(plant.session, DELTA, 1, 9)
        assert (code, datagrams) == (RecoveryCode.UNAUTHENTICATED, [])
        assert (reply.from_seq, reply.to_seq) == (0, 0)
        assert server.gap_fill.served_datagrams == 0


@pytest.mark.parametrize("keys", [None, FORGED, STRANGE], ids=["none", "wrong", "unknown id"])
@pytest.mark.parametrize("nonce", [b"", b"n" * 16], ids=["short", "long"])
async def test_a_connection_without_the_key_hears_why_it_is_refused(plant, keys, nonce):
    """In one frame that any client can read; no hello, so that it learns nothing of the log."""
    async with recovery(plant.folder, keys=KEYS, key_id=7) as server:
        async with RecoveryClient(server) as client:
            client._seal = None if keys is None else Seal(next(iter(keys)), keys, b"")
            client._frames = FrameReader()
            client.send(Open(1, nonce))
            answer = await client.read_until(lambda: client.is_closed)
        assert answer.hello is None
        assert answer.datagrams == []
        assert isinstance(answer.end, Reject)
        assert answer.end.code == RecoveryCode.UNAUTHENTICATED
        assert server.server.rejects == {"unauthenticated": 1}


async def test_a_request_that_is_not_signed_for_this_connection_is_refused(plant):
    """Overheard on another connection and played back, whole."""
    request = StreamRequest(1, 0, plant.session, ((DELTA, 1),), ((DELTA, 2),))
    async with recovery(plant.folder, keys=KEYS, key_id=7) as server:
        async with RecoveryClient(server) as overheard:
            await overheard.open()
            sent = []
            overheard.writer.write = sent.append
            overheard.send(request)
        async with RecoveryClient(server) as client:
            await client.open()
            client.writer.write(sent[0])
            answer = await client.read_until(lambda: client.is_closed)
        assert isinstance(answer.end, Reject)
        assert answer.end.code == RecoveryCode.UNAUTHENTICATED
        assert answer.datagrams == []


async def test_requests_played_back_are_bounded_by_the_rate_of_their_address(plant):
    """They are served like any other, within the rate, and are then refused and at last not answered at all."""
    async with recovery(
        plant.folder, keys=KEYS, key_id=7, client_bytes_per_second=100_000
    ) as server:
        request = encode_gap_fill(
            GapFill(GapFillKind.REQUEST, DELTA, 0, 1, 1, 0, plant.session, 1, 60),
            (7, KEYS[7]),
        )
        with GapFillClient(server.port, KEYS, 7) as client:
            start_ns = server.ticklog.clock_ns()
            for _ in range(3_000):
                client.socket.send(request)
            await until(lambda: server.udp.requests >= 1_000, seconds=20)
            elapsed_s = (server.ticklog.clock_ns() - start_ns) / 1e9
        # A quarter of a second saved up, and one answer beyond it.
        assert server.gap_fill.served_bytes <= 100_000 * (elapsed_s + 0.25) + 65_536
        assert server.gap_fill.codes["throttled"] > server.gap_fill.codes["served"]
