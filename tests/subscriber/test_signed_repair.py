"""Repairs of a plant with keys, over real sockets: they verify, and what a forger of recovery says has no effect."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from recovery_server import recovery, until
from repaired_feed import MulticastPlant

from tickerplant.core.messages import GapCause, Stream, Trade
from tickerplant.core.recovery_wire import (
    GapFillKind,
    Hello,
    Reject,
    SessionRange,
    decode_gap_fill,
    encode_control,
    encode_gap_fill,
)
from tickerplant.core.wire import (
    FLAG_RETRANSMITTED,
    Header,
    Kind,
    authenticate,
    decode_header,
    encode_datagram,
)
from tickerplant.key_file import make_key_file, read_keys
from tickerplant.runtime.recovery import bind_both
from tickerplant_subscriber import Gap, SnapshotApplied, Subscriber

KEY_ID = 7
FORGERS_KEY = b"forger's" * 4
NEVER = 6
"""`RecoveryCode.NOT_REPAIRABLE`."""


@pytest.fixture
def plant(tmp_path: Path, group: str, port: int) -> Any:
    """Signs with the key of `tmp_path / "keys"`, which is what the subscriber has."""
    make_key_file(tmp_path / "keys", KEY_ID)
    ring = read_keys(tmp_path / "keys")
    with MulticastPlant(tmp_path / "log", group, port, key=ring.signing_key) as made:
        yield made


class Forger:
    """Listens where a subscriber thinks that recovery is; answers everything, with lies."""

    def __init__(self) -> None:
        self.port = 0
        self.requests = 0
        self.connections = 0
        self.passes_on_to = 0
        """The port that its TCP connections are passed on to, whole and unchanged; 0: it lies there, too."""
        self._logged: dict[tuple[int, int], bytes] = {}

    def learn(self, datagram: bytes) -> None:
        """A datagram that it has heard."""
        header = decode_header(datagram)
        self._logged[header.stream, header.seq] = datagram

    def answers(self, request: bytes) -> list[bytes]:
        """Unsigned, signed with another key, changed under a real signature; and that nothing is to be had."""
        asked = decode_gap_fill(request)
        self.requests += 1
        changed = []
        logged = self._logged.get((asked.stream, asked.from_seq))
        if logged is not None:
            lie = forged(logged)
            changed = [lie, authenticate(lie, KEY_ID, FORGERS_KEY)]
            changed.append(logged[:-30] + bytes((logged[-30] ^ 1,)) + logged[-29:])
        reply = asked._replace(kind=GapFillKind.REPLY, code=NEVER, from_seq=1, to_seq=1)
        refusals = [encode_gap_fill(reply, key) for key in (None, (KEY_ID, FORGERS_KEY))]
        return changed + refusals

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A hello of a session that never was, then a refusal."""
        self.connections += 1
        if self.passes_on_to:
            await self._pass_on(reader, writer)
            return
        await reader.read(100)
        sessions = (SessionRange(2**62, ((4, 1),), ((4, 9),), False),)
        writer.write(encode_control(Hello(1, 1, 0, sessions, True, b"n" * 16)))
        writer.write(encode_control(Reject(NEVER, "never")))
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection("127.0.0.1", self.passes_on_to)
        await asyncio.gather(pipe(reader, ahead), pipe(behind, writer))


def forged(logged: bytes) -> bytes:
    """Another content in the place of a real datagram, without trailer."""
    header = decode_header(logged)
    message = Trade("KXFORGED", 1, 0, 0, "forged", 1, 1, 0, False)
    return encode_datagram(
        kind=Kind.DATA,
        stream=header.stream,
        session=header.session,
        seq=header.seq,
        ts_send_ns=header.ts_send_ns,
        messages=[message] * header.message_count,
        flags=FLAG_RETRANSMITTED,
    )


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side ends."""
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


class ForgersSocket(asyncio.DatagramProtocol):
    """Its UDP side."""

    def __init__(self, forger: Forger) -> None:
        self.forger = forger

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        for answer in self.forger.answers(data):
            self.transport.sendto(answer, peer)


@asynccontextmanager
async def forging() -> AsyncIterator[Forger]:
    forger = Forger()
    tcp, udp = bind_both("127.0.0.1", 0)
    forger.port = tcp.getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: ForgersSocket(forger), sock=udp)
    server = await asyncio.start_server(forger.converse, sock=tcp)
    try:
        yield forger
    finally:
        transport.close()
        server.close()
        await server.wait_closed()


def every(count: int) -> Any:
    """Each so-maniest data datagram is lost."""
    seen = [0]

    def is_lost(header: Header) -> bool:
        seen[0] += header.kind == Kind.DATA
        return header.kind == Kind.DATA and seen[0] % count == 0

    return is_lost


async def collect(subscriber: Subscriber, items: list[Any]) -> None:
    async for item in subscriber:
        items.append(item)  # noqa: PERF401  # seen by others while it goes on


async def lose_and_repair(plant: MulticastPlant, subscriber: Subscriber, forger: Any) -> list[Any]:
    """Every fifth datagram is lost; what was handed out once all is there again."""
    items: list[Any] = []
    task = asyncio.create_task(collect(subscriber, items))

    def joined() -> bool:
        plant.tick()
        return any(isinstance(item, SnapshotApplied) for item in items)

    def all_here() -> bool:
        plant.tick()
        stats = {each.stream: each.next_seq for each in subscriber.stats().streams}
        return tuple(stats[stream] for stream in Stream) == plant.next_seqs

    await until(joined, seconds=20)
    await until(all_here, seconds=20)
    plant.is_lost = every(5)
    for _ in range(150):
        known = len(plant.datagrams)
        plant.step()
        if forger is not None:
            for datagram in plant.datagrams[known:]:
                forger.learn(datagram)
        await asyncio.sleep(0.001)
    plant.is_lost = lambda _header: False
    await until(all_here, seconds=20)
    subscriber.close()
    await task
    return items


def books_right(plant: MulticastPlant, subscriber: Subscriber) -> bool:
    for entry in plant.plant.entries.values():
        view = subscriber.book(entry.ticker)
        assert view is not None
        assert view.live == (entry.in_sync and entry.live)
        assert not view.live or view.checksum() == entry.checksum()
    return True


def gaps(items: list[Any]) -> list[Gap]:
    """Others than those of the late join."""
    return [
        item for item in items if isinstance(item, Gap) and item.cause is not GapCause.LATE_JOIN
    ]


async def test_repairs_and_snapshots_of_a_plant_with_keys_verify(
    plant: MulticastPlant, tmp_path: Path, group: str, port: int
) -> None:
    """Nothing that recovery answers is refused, and nothing is missing."""
    path = tmp_path / "keys"
    ring = read_keys(path)
    async with (
        recovery(plant.folder, keys=ring.keys, key_id=KEY_ID) as server,
        Subscriber(
            group_a=group, port=port, recovery=[f"127.0.0.1:{server.port}"], key_path=str(path)
        ) as subscriber,
    ):
        items = await lose_and_repair(plant, subscriber, None)
        stats = subscriber.stats()
    assert plant.lost > 20
    assert gaps(items) == []
    assert books_right(plant, subscriber)
    assert stats.refused == {}
    assert stats.recovery is not None
    assert stats.recovery.unusable_datagrams == 0
    assert sum(each.messages_repaired for each in stats.streams) >= plant.lost


@pytest.mark.parametrize("is_in_the_middle", [False, True], ids=["lies over TCP", "lies over UDP"])
async def test_a_forger_in_the_place_of_recovery_has_no_effect(
    plant: MulticastPlant, tmp_path: Path, group: str, port: int, is_in_the_middle: bool
) -> None:
    """Asked first, it lies about datagrams, sessions and what can be had; the real one repairs everything."""
    path = tmp_path / "keys"
    ring = read_keys(path)
    async with (
        forging() as forger,
        recovery(plant.folder, keys=ring.keys, key_id=KEY_ID) as server,
        Subscriber(
            group_a=group,
            port=port,
            recovery=[f"127.0.0.1:{one}" for one in (forger.port, server.port)],
            key_path=str(path),
        ) as subscriber,
    ):
        forger.passes_on_to = server.port if is_in_the_middle else 0
        items = await lose_and_repair(plant, subscriber, forger)
        stats = subscriber.stats()
    assert forger.connections > 0
    assert gaps(items) == []
    assert books_right(plant, subscriber)
    assert not [item for item in items if getattr(item, "ticker", "") == "KXFORGED"]
    assert {each.session for each in stats.streams} == {plant.session}
    assert stats.recovery is not None
    if is_in_the_middle:
        assert forger.requests > 20
        assert stats.recovery.unusable_datagrams >= forger.requests
        assert stats.refused["AuthenticationError"] > 20
    else:
        assert stats.recovery.connections_failed > 0
