"""Fixtures of the simulated exchange: servers on free ports, signed clients, the schema of every frame."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jsonschema import Draft202012Validator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tickerplant_kalshi_sim.config import SimulationConfig
from tickerplant_kalshi_sim.server import SimulationServer

Frame = dict[str, Any]


def sign(
    server: SimulationServer,
    path: str,
    *,
    method: str = "GET",
    skew_ms: int = 0,
    key_id: str | None = None,
) -> dict[str, str]:
    """The three headers as the exchange's documentation describes them."""
    key = serialization.load_pem_private_key(server.key_path.read_bytes(), password=None)
    timestamp = str(time.time_ns() // 1_000_000 + skew_ms)
    message = f"{timestamp}{method}{path}".encode()
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        signature = key.sign(message, pss, hashes.SHA256())
    else:
        signature = key.sign(message)
    return {
        "KALSHI-ACCESS-KEY": key_id or server.key_id,
        "KALSHI-ACCESS-TIMESTAMP": timestamp,
        "KALSHI-ACCESS-SIGNATURE": base64.b64encode(signature).decode(),
    }


class Client:
    """A signed WebSocket connection that keeps every frame it has seen."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.frames: list[Frame] = []
        self._ids = 0

    async def command(self, cmd: str, **params: Any) -> int:
        """Send a command; returns its id."""
        self._ids += 1
        body: Frame = {"id": self._ids, "cmd": cmd}
        if params:
            body["params"] = params
        await self.websocket.send(json.dumps(body))
        return self._ids

    async def subscribe(self, *channels: str, **params: Any) -> int:
        """Send a subscribe command; returns its id."""
        return await self.command("subscribe", channels=list(channels), **params)

    async def receive(self) -> Frame:
        """The next frame."""
        async with asyncio.timeout(5):
            text = await self.websocket.recv()
        frame: Frame = json.loads(text)
        self.frames.append(frame)
        return frame

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Read until a frame is wanted; it must come within 30 seconds."""
        async with asyncio.timeout(30):
            while True:
                frame = await self.receive()
                if wanted(frame):
                    return frame

    async def reply(self, command_id: int) -> Frame:
        """The next frame that answers a command."""
        return await self.until(lambda frame: frame.get("id") == command_id)

    async def type(self, frame_type: str) -> Frame:
        """The next frame of a type."""
        return await self.until(lambda frame: frame["type"] == frame_type)

    async def until_closed(self) -> ConnectionClosed:
        """Read until the connection ends; returns how."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closed:
            return closed

    async def drain(self, quiet_s: float = 0.15) -> None:
        """Read until nothing has come for `quiet_s`."""
        while True:
            try:
                async with asyncio.timeout(quiet_s):
                    text = await self.websocket.recv()
            except TimeoutError:
                return
            self.frames.append(json.loads(text))


Start = Callable[..., Awaitable[SimulationServer]]
Join = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One key pair for all tests: making an RSA key takes a while."""
    return tmp_path_factory.mktemp("sim-keys")


@pytest.fixture
async def start(key_directory: Path) -> AsyncIterator[Start]:
    """Starts servers on free ports; they are stopped at the end of the test."""
    async with AsyncExitStack() as stack:

        async def begin(**options: Any) -> SimulationServer:
            fields = {"websocket_port": 0, "rest_port": 0, "directory": key_directory}
            small = {"markets": 40, "rate": 2_000, "tick_ms": 5}
            config = SimulationConfig(**(fields | small | options))
            return await stack.enter_async_context(SimulationServer(config))

        yield begin


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Opens signed connections; they are closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def begin(server: SimulationServer, **options: Any) -> Client:
            headers = sign(server, "/trade-api/ws/v2")
            websocket = await stack.enter_async_context(
                connect(
                    server.websocket_url,
                    additional_headers=headers,
                    max_size=None,
                    **({"close_timeout": 0.2, "compression": None, "max_queue": None} | options),
                )
            )
            return Client(websocket)

        yield begin


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(name="sign")
def sign_fixture() -> Callable[..., dict[str, str]]:
    """The function that makes signature headers."""
    return sign


@pytest.fixture(scope="session")
def check_frame(shared_folder: Path) -> Callable[[Frame], None]:
    """Validates one frame against the schema of its type."""
    schema = json.loads((shared_folder / "kalshi" / "ws-messages.schema.json").read_text())
    lists = ("cfbenchmarks_value_indexlist", "cfbenchmarks_value_5hz_indexlist")
    validators: dict[str, Draft202012Validator] = {}
    for name in schema["$defs"]:
        definition = {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}
        validators[name] = Draft202012Validator(definition)
    for name in (*lists, "pyth_value_underlying_list"):
        validators[name] = validators["reference_list"]

    def check(frame: Frame) -> None:
        validators[frame["type"]].validate(frame)

    return check


Rebuilt = dict[str, dict[str, dict[Decimal, Decimal]]]


@pytest.fixture
def rebuild() -> Callable[[list[Frame]], Rebuilt]:
    """An independent rebuild of the books from frames, in plain Decimal code."""

    def run(frames: list[Frame]) -> Rebuilt:
        books: Rebuilt = {}
        for frame in frames:
            body = frame.get("msg")
            if frame["type"] == "orderbook_snapshot":
                books[body["market_ticker"]] = {
                    side: {Decimal(p): Decimal(q) for p, q in body.get(f"{side}_dollars_fp", [])}
                    for side in ("yes", "no")
                }
            elif frame["type"] == "orderbook_delta":
                levels = books[body["market_ticker"]][body["side"]]
                price = Decimal(body["price_dollars"])
                size = levels.pop(price, Decimal(0)) + Decimal(body["delta_fp"])
                assert size >= 0, frame
                if size:
                    levels[price] = size
        return books

    return run


@pytest.fixture
def as_integers() -> Callable[[dict[str, dict[Decimal, Decimal]]], Any]:
    """A rebuilt book of NO prices as the exchange reports its own: YES bids and asks in 1e-4 and 1e-2."""

    def run(book: dict[str, dict[Decimal, Decimal]]) -> Any:
        bids = sorted((int(p * 10_000), int(q * 100)) for p, q in book["yes"].items())
        asks = sorted((int((1 - p) * 10_000), int(q * 100)) for p, q in book["no"].items())
        return tuple(bids), tuple(asks)

    return run


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    """Polls until a condition holds; it must within 5 seconds."""

    async def wait(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 # a counter of the server has no event to wait for
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def refused() -> Callable[..., Awaitable[tuple[int, Any]]]:
    """Status and decoded body of a handshake that must be refused."""

    async def attempt(server: SimulationServer, headers: Any, path: str = "") -> tuple[int, Any]:
        with pytest.raises(InvalidStatus) as caught:
            await connect(server.websocket_url + path, additional_headers=headers)
        response = caught.value.response
        return response.status_code, json.loads(response.body or b"null")

    return attempt


@pytest.fixture
def quiet_book(
    start: Start, join: Join
) -> Callable[..., Awaitable[tuple[SimulationServer, Client]]]:
    """Starts a server without lifecycle and a client that holds all its books and nothing else."""

    async def begin(**options: Any) -> tuple[SimulationServer, Client]:
        server = await start(**({"window_s": 0, "change_interval_s": 0} | options))
        client = await join(server)
        await client.subscribe("orderbook_delta", market_tickers=list(server.books()))
        await client.type("orderbook_delta")
        return server, client

    return begin
