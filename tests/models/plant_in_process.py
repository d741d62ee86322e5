"""A daemon in the test's own process against a running simulated exchange, and a receiver of all its groups."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tickerplant.config import (
    Config,
    ExchangeConfig,
    MarketsConfig,
    MetricsConfig,
    PublishConfig,
)
from tickerplant.core.messages import Stream
from tickerplant.core.wire import Header, Kind, decode_body, decode_header
from tickerplant.runtime.daemon import Daemon
from tickerplant_kalshi.auth import load_signer
from tickerplant_kalshi_sim.config import SimulationConfig
from tickerplant_kalshi_sim.server import SimulationServer

LISTEN_NS = 50_000_000
LOOPBACK = "127.0.0.1"


class EventList:
    """A log that keeps what was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = error = info

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]


@dataclass
class Place:
    """Where a test's plant lives: groups, port and folder that nobody else uses."""

    group: str
    port: int
    folder: Path


@pytest.fixture
def place(group: str, free_udp_port: int, tmp_path: Path) -> Place:
    return Place(group, free_udp_port, tmp_path)


@asynccontextmanager
async def exchange(place: Place, **settings: Any) -> AsyncIterator[SimulationServer]:
    """A simulated exchange of 30 markets."""
    values = {"markets": 30, "rate": 300, "key_type": "ed25519", "window_s": 0} | settings
    config = SimulationConfig(
        websocket_port=0, rest_port=0, directory=place.folder / "sim", **values
    )
    async with SimulationServer(config) as server:
        yield server


def config_of(server: SimulationServer, place: Place, **sections: Any) -> Config:
    """A plant of everything open on that exchange."""
    defaults = {
        "exchange": ExchangeConfig(
            websocket_url=server.websocket_url,
            rest_url=server.rest_url,
            key_id=server.key_id,
            key_path=str(server.key_path),
        ),
        "markets": MarketsConfig(all_open=True),
        "publish": PublishConfig(group_a=place.group, port=place.port),
        "metrics": MetricsConfig(enabled=False),
    }
    return Config(**(defaults | sections))


def daemon_of(
    server: SimulationServer, place: Place, state: str = "state", **sections: Any
) -> Daemon:
    """A daemon that writes its log into an `EventList`."""
    daemon = Daemon(
        config_of(server, place, **sections),
        signer=load_signer(server.key_id, server.key_path),
        state_directory=place.folder / state,
        session_listen_ns=LISTEN_NS,
    )
    daemon.log = EventList()
    return daemon


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator[asyncio.Task[None]]:
    """The daemon, READY; stopped in order at the end unless it has ended by then."""
    task = asyncio.create_task(daemon.run())
    try:
        await until(daemon.ready.is_set, task)
        yield task
    finally:
        daemon.stop()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            task.result()


async def until(condition: Callable[[], object], task: asyncio.Task[None] | None = None) -> None:
    """Return as soon as `condition()` holds; fail after ten seconds, or with what `task` raised."""
    deadline = time.monotonic() + 30
    while not condition():
        if task is not None and task.done():
            task.result()
            pytest.fail("the daemon stopped")
        assert time.monotonic() < deadline, "it did not happen within thirty seconds"
        await asyncio.sleep(0.005)


class Receiver:
    """What arrives on the five groups of a plant."""

    def __init__(self, place: Place) -> None:
        self.datagrams: list[tuple[Header, bytes]] = []
        self._sockets = []
        for group in PublishConfig(group_a=place.group, port=place.port).groups():
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.setblocking(False)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            receiver.bind((group, place.port))
            membership = socket.inet_aton(group) + socket.inet_aton(LOOPBACK)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            asyncio.get_running_loop().add_reader(receiver, self._read, receiver)
            self._sockets.append(receiver)

    def _read(self, receiver: socket.socket) -> None:
        datagram = receiver.recv(2_000)
        self.datagrams.append((decode_header(datagram), datagram))

    def of_kind(self, kind: Kind, session: int = 0) -> list[Header]:
        return [
            header
            for header, _ in self.datagrams
            if header.kind == kind and session in (0, header.session)
        ]

    def messages(self, stream: Stream, session: int = 0) -> list[Any]:
        return [
            message
            for header, datagram in self.datagrams
            if header.kind == Kind.DATA
            and header.stream == stream
            and session in (0, header.session)
            for message in decode_body(datagram, header)
        ]

    def close(self) -> None:
        for receiver in self._sockets:
            asyncio.get_running_loop().remove_reader(receiver)
            receiver.close()


@pytest.fixture
async def receiver(place: Place) -> AsyncIterator[Receiver]:
    opened = Receiver(place)
    yield opened
    opened.close()


def unequal_books(daemon: Daemon, server: SimulationServer) -> list[str]:
    """Markets whose book differs from the exchange's own."""
    theirs = server.books()
    return [
        ticker
        for ticker, entry in daemon.plant.entries.items()
        if (tuple(entry.ascending(0)), tuple(entry.ascending(1))) != theirs[ticker]
    ]


async def settled(daemon: Daemon, server: SimulationServer) -> None:
    """The exchange's flow stopped, and what it sent has been read."""
    server.pause_flow()
    await until(
        lambda: (
            not daemon.plant.unready_books
            and not daemon.plant.stale_books
            and not unequal_books(daemon, server)
        )
    )
