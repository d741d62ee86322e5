"""A plant with datagram keys: all it sends is signed, and only what is signed can keep it from running."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from plant_in_process import (
    LOOPBACK,
    Place,
    Receiver,
    daemon_of,
    exchange,
    running,
    settled,
    until,
)
from tick_log import read_folder

from tickerplant.config import PublishConfig
from tickerplant.core.keyring import KeyRing, format_key
from tickerplant.core.messages import Stream
from tickerplant.core.wire import FLAG_AUTHENTICATED, HeartbeatBody, Kind, encode_heartbeat
from tickerplant.errors import AuthenticationError, CredentialsError, GroupOccupiedError
from tickerplant.key_file import add_key, read_keys, sign_with
from tickerplant.runtime.daemon import Daemon

OLD_NS = 3_600 * 10**9
OTHER = KeyRing([(11, b"x" * 32)])


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "datagram.keys"
    path.write_text(format_key(11, b"k" * 32))
    path.chmod(0o600)
    return path


@pytest.fixture
def signed(place: Place, key_path: Path) -> Callable[..., Daemon]:
    """Makes daemons with the keys of `key_path`."""

    def make(server: Any, state: str = "state") -> Daemon:
        publish = PublishConfig(group_a=place.group, port=place.port, key_path=str(key_path))
        return daemon_of(server, place, state, publish=publish)

    return make


@pytest.fixture
def attacker(place: Place) -> Iterator[Callable[[Stream, bytes], None]]:
    """Sends to the plant's groups, on this host only."""
    groups = PublishConfig(group_a=place.group, port=place.port).groups()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)

        def send(stream: Stream, datagram: bytes) -> None:
            sender.sendto(datagram, (groups[stream - 1], place.port))

        yield send


@asynccontextmanager
async def repeating(send: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `send` every 5 ms in the background."""

    async def repeat() -> None:
        while True:
            send()
            await asyncio.sleep(0.005)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def heartbeat(
    session: int, ring: KeyRing | None, *, sent_ns: int | None = None, kind: Kind = Kind.HEARTBEAT
) -> bytes:
    """One of the status stream."""
    sent_ns = time.time_ns() if sent_ns is None else sent_ns
    datagram = encode_heartbeat(Stream.STATUS, session, 5, sent_ns, HeartbeatBody(4), kind)
    return datagram if ring is None else ring.sign(datagram)


def spoil(path: Path) -> None:
    path.write_text("garbage")


def let_all_read(path: Path) -> None:
    path.chmod(0o644)


def verifies(ring: KeyRing, datagram: bytes) -> bool:
    try:
        ring.verify(datagram)
    except AuthenticationError:
        return False
    return True


async def test_everything_sent_and_logged_is_signed(
    place: Place, receiver: Receiver, signed: Callable[..., Daemon], key_path: Path
) -> None:
    ring = read_keys(key_path)
    async with exchange(place, rate=1_000) as server:
        daemon = signed(server)
        async with running(daemon):
            await until(lambda: daemon.plant.trades > 20)
            await settled(daemon, server)
    logged, faults = read_folder(place.folder / "state" / "ticklog")
    assert not faults
    assert {header.kind for header, _ in receiver.datagrams} == set(Kind)
    assert all(verifies(ring, datagram) for _, datagram in receiver.datagrams)
    assert all(verifies(ring, datagram) for datagram in logged)
    (begun,) = daemon.log.of("session_begins")
    assert begun["signed_with"] == 11
    assert not daemon.log.of("datagram_keys_readable_by_all")


async def test_without_keys_nothing_is_signed(place: Place, receiver: Receiver) -> None:
    async with exchange(place) as server:
        daemon = daemon_of(server, place)
        async with running(daemon):
            await until(lambda: receiver.datagrams)
    assert not any(header.flags & FLAG_AUTHENTICATED for header, _ in receiver.datagrams)
    (begun,) = daemon.log.of("session_begins")
    assert begun["signed_with"] == 0


async def test_strangers_keep_a_plant_with_keys_neither_from_starting_nor_from_running(
    place: Place, signed: Callable[..., Daemon], attacker: Callable[[Stream, bytes], None]
) -> None:
    """Forged, unsigned, foreign and played-back datagrams all the time: it starts and runs, in a session of its own."""
    ring = KeyRing([(11, b"k" * 32)])
    forged_session = time.time_ns() + 30 * 10**9

    def attack() -> None:
        for datagram in (
            heartbeat(forged_session, None),
            heartbeat(forged_session, OTHER),
            heartbeat(forged_session, OTHER, kind=Kind.END_OF_SESSION),
            heartbeat(forged_session - OLD_NS, ring, sent_ns=time.time_ns() - OLD_NS),
            heartbeat(forged_session, ring, sent_ns=time.time_ns() - OLD_NS),
            heartbeat(forged_session, ring)[:-1],
            b"\x80\x60 another protocol",
        ):
            attacker(Stream.STATUS, datagram)

    async with exchange(place) as server, repeating(attack):
        daemon = signed(server)
        async with running(daemon) as task:
            assert daemon.plant.session < forged_session
            # Three looks of the watch.
            trades = daemon.plant.trades
            await asyncio.sleep(3.2)
            assert not task.done()
            assert daemon.plant.trades > trades
    assert daemon.log.of("strangers_on_groups")
    assert {one["group"] for one in daemon.log.of("strangers_on_groups")} == {
        PublishConfig(group_a=place.group).groups()[Stream.STATUS - 1]
    }


async def test_a_plant_under_the_same_key_is_no_stranger(
    place: Place, signed: Callable[..., Daemon], attacker: Callable[[Stream, bytes], None]
) -> None:
    """A second plant does not start; a higher session that is signed makes the first one end."""
    ring = KeyRing([(11, b"k" * 32)])
    async with exchange(place) as server:
        daemon = signed(server)
        async with running(daemon) as task:
            async with repeating(lambda: attacker(Stream.STATUS, heartbeat(5, ring))):
                with pytest.raises(GroupOccupiedError, match="carries another plant"):
                    await signed(server, "other").run()
            assert not task.done()
            newer = daemon.plant.session + 1
            async with repeating(lambda: attacker(Stream.STATUS, heartbeat(newer, ring))):
                with pytest.raises(GroupOccupiedError, match="carries a newer plant"):
                    await asyncio.wait_for(asyncio.shield(task), 10)


async def test_our_own_last_session_played_back_does_not_keep_us_from_starting(
    place: Place, signed: Callable[..., Daemon], attacker: Callable[[Stream, bytes], None]
) -> None:
    """It was killed a second ago, and somebody sends its heartbeats again."""
    ring = KeyRing([(11, b"k" * 32)])
    async with exchange(place) as server:
        first = signed(server)
        async with running(first):
            session = first.plant.session
        async with repeating(lambda: attacker(Stream.STATUS, heartbeat(session, ring))):
            second = signed(server)
            async with running(second):
                assert second.plant.session > session


async def test_a_changed_key_file_is_taken_over_without_a_new_session(
    place: Place, receiver: Receiver, signed: Callable[..., Daemon], key_path: Path
) -> None:
    async with exchange(place) as server:
        daemon = signed(server)
        async with running(daemon):
            add_key(key_path, 22)
            sign_with(key_path, 22)
            newer = KeyRing([read_keys(key_path).signing_key])
            await until(lambda: any(verifies(newer, data) for _, data in receiver.datagrams))
            assert daemon.log.of("datagram_keys_changed") == [{"key_ids": [22, 11]}]
            spoil(key_path)
            await until(lambda: daemon.log.of("datagram_keys_unusable"))
            count = len(receiver.datagrams)
            await until(lambda: len(receiver.datagrams) > count + 10)
            assert verifies(newer, receiver.datagrams[-1][1])
    assert len({header.session for header, _ in receiver.datagrams}) == 1
    by_newer = [verifies(newer, datagram) for _, datagram in receiver.datagrams]
    older = KeyRing([(11, b"k" * 32)])
    assert [verifies(older, datagram) for _, datagram in receiver.datagrams] == [
        not one for one in by_newer
    ]


async def test_keys_that_every_user_can_read_are_a_warning(
    place: Place, signed: Callable[..., Daemon], key_path: Path
) -> None:
    let_all_read(key_path)
    async with exchange(place) as server:
        daemon = signed(server)
        async with running(daemon):
            pass
    assert daemon.log.of("datagram_keys_readable_by_all") == [{"path": str(key_path)}]


async def test_a_key_file_of_no_use_is_refused_before_anything_starts(
    place: Place, signed: Callable[..., Daemon], key_path: Path
) -> None:
    spoil(key_path)
    async with exchange(place) as server:
        with pytest.raises(CredentialsError, match="line 1"):
            signed(server)
    assert not list(place.folder.glob("state"))
