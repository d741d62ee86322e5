"""The running server over real sockets: handshakes, every client command of the examples, faults, control."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tickerplant.errors import ConfigurationError, NetworkSetupError, TickerplantError
from tickerplant_kalshi_sim.config import SimulationConfig
from tickerplant_kalshi_sim.server import SimulationServer

START_NS = 1_795_197_600_000_000_000
DATA_CHANNELS = ("ticker", "trade", "market_lifecycle_v2", "multivariate_market_lifecycle")


# --- handshake ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", ["rsa", "ed25519"])
async def test_signed_handshake_is_accepted(key_type: str, start: Any, join: Any) -> None:
    client = await join(await start(key_type=key_type, paused=True))
    await client.command("list_subscriptions")
    assert (await client.receive())["msg"] == []


@pytest.mark.parametrize("key_type", ["rsa", "ed25519"])
async def test_handshakes_that_are_refused(
    key_type: str, start: Any, sign: Callable[..., dict[str, str]], refused: Any
) -> None:
    server = await start(key_type=key_type, paused=True)
    path = "/trade-api/ws/v2"
    status, body = await refused(server, {})
    assert (status, body["error"]["code"]) == (401, "signature_is_missing_from_headers")
    status, body = await refused(server, sign(server, path, key_id="stranger"))
    assert (status, body["error"]["details"]) == (401, "NOT_FOUND")
    status, body = await refused(server, sign(server, "/trade-api/v2"))
    assert (status, body["error"]["details"]) == (401, "INCORRECT_API_KEY_SIGNATURE")
    status, body = await refused(server, sign(server, path, skew_ms=-60_000))
    assert (status, body["error"]["code"]) == (401, "header_timestamp_expired")
    status, body = await refused(server, sign(server, path), "/margin")
    assert status == 404
    assert server.stats().handshakes_refused == 5


async def test_a_clock_that_is_ahead_refuses_honest_clients(
    start: Any, sign: Any, refused: Any
) -> None:
    server = await start(clock_offset_s=120, paused=True)
    status, body = await refused(server, sign(server, "/trade-api/ws/v2"))
    assert (status, body["error"]["code"]) == (401, "header_timestamp_expired")
    async with connect(
        server.websocket_url, additional_headers=sign(server, "/trade-api/ws/v2", skew_ms=120_000)
    ):
        assert server.stats().connections == 1


async def test_connection_cap_is_429(
    start: Any, join: Any, sign: Any, until: Any, refused: Any
) -> None:
    server = await start(connections=2, paused=True)
    await join(server)
    second = await join(server)
    assert (await refused(server, sign(server, "/trade-api/ws/v2")))[0] == 429
    await second.websocket.close()
    await until(lambda: server.stats().connections == 1)
    await join(server)


async def test_plain_http_on_the_websocket_port_is_answered(
    start: Any, http: aiohttp.ClientSession
) -> None:
    server = await start(allow_anonymous=True, paused=True)
    url = server.websocket_url.replace("ws://", "http://")
    async with http.get(url) as response:
        assert response.status == 426


async def test_anonymous_connections_when_allowed(start: Any) -> None:
    server = await start(allow_anonymous=True, paused=True)
    async with connect(server.websocket_url) as websocket:
        command = {"id": 1, "cmd": "subscribe", "params": {"channels": ["fill", "trade"]}}
        await websocket.send(json.dumps(command))
        first, second = json.loads(await websocket.recv()), json.loads(await websocket.recv())
    assert first["msg"]["code"] == 9
    assert second["type"] == "subscribed"


# --- commands and frames --------------------------------------------------------------------------


async def test_every_client_command_of_the_examples_is_answered(
    shared_folder: Path, start: Any, join: Any, check_frame: Callable[[Any], None]
) -> None:
    """Sent as they stand, in order; each gets its reply and no error."""
    text = (shared_folder / "kalshi" / "examples.jsonl").read_text()
    commands = [row for row in map(json.loads, text.splitlines()) if "cmd" in row]
    assert len(commands) == 7
    client = await join(await start(paused=True))
    for command in commands:
        await client.websocket.send(json.dumps(command))
    await client.drain()
    answers = [(f["id"], f["type"]) for f in client.frames if "id" in f]
    assert answers == [
        (1, "subscribed"),
        (2, "subscribed"),
        (2, "subscribed"),
        (2, "subscribed"),
        (2, "subscribed"),
        (3, "ok"),
        (4, "ok"),
        (5, "orderbook_snapshot"),
        (6, "ok"),
        (7, "unsubscribed"),
        (7, "unsubscribed"),
    ]
    for frame in client.frames:
        check_frame(frame)
    listed = next(f for f in client.frames if f.get("id") == 6)
    assert [row["channel"] for row in listed["msg"]] == ["orderbook_delta", *DATA_CHANNELS]


async def test_frames_over_the_wire_are_valid_gapless_and_rebuild_the_books(
    start: Any,
    join: Any,
    check_frame: Callable[[Any], None],
    rebuild: Callable[[Any], Any],
    as_integers: Callable[[Any], Any],
) -> None:
    server = await start(markets=60, rate=4_000, window_s=0, change_interval_s=0.1)
    tickers = list(server.books())
    client = await join(server)
    await client.subscribe("orderbook_delta", market_tickers=tickers)
    await client.subscribe(*DATA_CHANNELS)
    while len(client.frames) < 6_000:
        await client.receive()
    server.pause_flow()
    await client.drain()
    last: dict[int, int] = {}
    for frame in client.frames:
        if "seq" in frame:
            assert frame["seq"] == last.get(frame["sid"], 0) + 1
            last[frame["sid"]] = frame["seq"]
    for frame in client.frames[::5]:
        check_frame(frame)
    own = server.books()
    for ticker, book in rebuild(client.frames).items():
        assert as_integers(book) == own[ticker], ticker
    sent = server.stats().frames_sent
    assert sent == Counter(frame["type"] for frame in client.frames)


async def test_two_connections_see_the_same_bodies(start: Any, join: Any) -> None:
    """Also with different conventions: YES frames are equal, NO frames are turned."""
    server = await start(window_s=0, change_interval_s=0)
    tickers = list(server.books())
    server.pause_flow()
    first, second = await join(server), await join(server)
    await first.subscribe("trade")
    await first.subscribe("orderbook_delta", market_tickers=tickers)
    await second.subscribe("orderbook_delta", market_tickers=tickers, use_yes_price=True)
    await first.drain()
    await second.drain()
    server.resume_flow()
    for client in (first, second):
        await client.until(
            lambda frame: frame.get("seq", 0) > 700 and frame["type"][-5:] == "delta"
        )
    deltas = [
        {f["seq"]: f["msg"] for f in client.frames if f["type"] == "orderbook_delta"}
        for client in (first, second)
    ]
    both = deltas[0].keys() & deltas[1].keys()
    assert len(both) > 500
    turned = 0
    for seq in both:
        plain, other = deltas[0][seq], deltas[1][seq]
        if plain["side"] == "yes":
            assert plain == other
        else:
            assert float(plain["price_dollars"]) + float(other["price_dollars"]) == pytest.approx(1)
            assert plain | {"price_dollars": ""} == other | {"price_dollars": ""}
            turned += 1
    assert turned > 100


async def trades_of_two_runs(start: Any, join: Any) -> list[dict[str, Any]] | None:
    """By trade id, as each of two servers with one seed tells them; None if this machine held one up for a second."""
    options = {"seed": 7, "start_ns": START_NS, "markets": 60, "rate": 3_000, "window_s": 2}
    servers = [await start(**options) for _ in range(2)]
    clients = [await join(server) for server in servers]
    for client in clients:
        await client.subscribe("trade")
    heard: list[dict[str, Any]] = [{}, {}]
    async with asyncio.timeout(30):
        while len(heard[0].keys() & heard[1].keys()) < 300:
            for client, trades in zip(clients, heard, strict=True):
                msg = (await client.type("trade"))["msg"]
                trades[msg["trade_id"]] = msg
    return None if any(server.stats().ticks_skipped for server in servers) else heard


async def test_with_seed_and_start_every_run_is_the_same_market(start: Any, join: Any) -> None:
    """Trades, whose every field is drawn or timed: the span that both clients heard is equal to the last digit."""
    heard = None
    for _ in range(3):
        heard = heard or await trades_of_two_runs(start, join)
    assert heard is not None, "held up for more than a second, three times"
    both = [one for one in heard[0] if one in heard[1]]
    assert [heard[0][one] for one in both] == [heard[1][one] for one in both]
    # And nothing between the first and the last of them that only one has heard.
    spans = [list(trades) for trades in heard]
    assert [span[span.index(both[0]) : span.index(both[-1]) + 1] for span in spans] == [both, both]
    assert heard[0][both[0]]["ts_ms"] * 10**6 > START_NS


async def test_fragmented_and_binary_commands_are_understood(start: Any, join: Any) -> None:
    client = await join(await start(paused=True))
    await client.websocket.send(['{"id":4,"cmd":"list', '_subscriptions"}'])
    assert (await client.receive())["id"] == 4
    await client.websocket.send(b'{"id":5,"cmd":"list_subscriptions"}')
    assert (await client.receive())["id"] == 5


async def test_a_command_beyond_the_bound_closes_with_1009(start: Any, join: Any) -> None:
    client = await join(await start(paused=True))
    with suppress(ConnectionClosed):
        await client.websocket.send("x" * (5 * 1024 * 1024))
    await client.until_closed()
    assert client.websocket.close_code == 1009


async def test_frames_of_one_tick_leave_in_one_write(start: Any, join: Any, until: Any) -> None:
    """Ten ticks a second with some 30 frames each reach the client in about as many reads as there were ticks."""
    server = await start(markets=20, tick_ms=100, rate=300, window_s=0, change_interval_s=0)
    client = await join(server)
    websocket = client.websocket
    received: list[bytes] = []
    forward = websocket.data_received

    def spy(data: bytes) -> None:
        received.append(data)
        forward(data)

    websocket.data_received = spy
    await client.subscribe("ticker", "trade")
    began = server.stats().ticks
    await until(lambda: len(received) > 8)
    assert len(received) <= server.stats().ticks - began + 2
    sizes = [len(frames_in(data)) for data in received]
    assert sum(sizes) > 5 * len(sizes), sizes


def frames_in(data: bytes) -> list[bytes]:
    """The payloads of whole unmasked frames."""
    payloads = []
    while data:
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4]), 4
        payloads.append(data[start : start + length])
        data = data[start + length :]
    return payloads


async def test_keep_alive_pings_say_heartbeat_and_client_pings_are_answered(
    start: Any, join: Any, until: Any
) -> None:
    client = await join(await start(ping_interval_s=0.05, paused=True))
    pings: list[bytes] = []
    process = client.websocket.protocol.recv_frame

    def spy(frame: Frame) -> None:
        if frame.opcode is Opcode.PING:
            pings.append(bytes(frame.data))
        process(frame)

    client.websocket.protocol.recv_frame = spy
    await until(lambda: len(pings) >= 3)
    assert set(pings) == {b"heartbeat"}
    latency = await asyncio.wait_for(await client.websocket.ping(b"mine"), 5)
    assert latency < 5


# --- control and start ----------------------------------------------------------------------------


async def test_control_endpoints(http: aiohttp.ClientSession, quiet_book: Any) -> None:
    server, client = await quiet_book()
    root = server.rest_url.removesuffix("/trade-api/v2")
    async with http.post(f"{root}/sim/flow", json={"action": "pause"}) as response:
        assert await response.json() == {"flow_paused": True}
    await client.drain(0.05)
    async with http.get(f"{root}/sim/books") as response:
        books = await response.json()
    own = server.books()
    assert set(books) == set(own)
    for ticker, book in books.items():
        assert [tuple(level) for level in book["bids"]] == list(own[ticker][0])
        assert [tuple(level) for level in book["asks"]] == list(own[ticker][1])
    async with http.post(f"{root}/sim/fault", json={"kind": "skip_seq"}) as response:
        assert await response.json() == {"connections": 1}
    async with http.post(f"{root}/sim/fault", json={"kind": "explode"}) as response:
        assert response.status == 400
        assert "explode" in (await response.json())["error"]
    for nonsense in (b"?", b'{"action":"\xff"}'):
        async with http.post(f"{root}/sim/flow", data=nonsense) as response:
            assert response.status == 400
    async with http.get(f"{root}/sim/stats") as response:
        stats = await response.json()
    assert stats["flow_paused"] is True
    assert stats["connections"] == 1
    assert stats["frames_sent"]["orderbook_delta"] > 0
    assert stats["frames_sent_total"] == sum(stats["frames_sent"].values())
    assert stats["faults"] == {"skip_seq": 1}
    async with http.post(f"{root}/sim/flow", json={"action": "resume"}) as response:
        assert await response.json() == {"flow_paused": False}
    await client.type("orderbook_delta")


@pytest.mark.parametrize(
    ("field", "option"), [("websocket_port", "--port"), ("rest_port", "--rest-port")]
)
async def test_port_in_use_is_one_line_with_a_remedy(
    field: str, option: str, start: Any, key_directory: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkSetupError, match=f"port {port} .* in use; .*{option}") as caught:
            await start(**{field: port})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"replay": Path("/nonexistent/capture.jsonl")}, "capture.jsonl"),
        ({"faults": Path("/nonexistent/script.toml")}, "script.toml"),
        ({"host": "203.0.113.7"}, "203.0.113.7"),
    ],
)
async def test_start_errors_name_the_thing(options: dict[str, Any], match: str, start: Any) -> None:
    with pytest.raises(TickerplantError, match=match) as caught:
        await start(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"markets": 0},
        {"rate": -1},
        {"tick_ms": 0},
        {"speed": -1},
        {"websocket_port": 70_000},
        {"clock_skew_limit_s": 0},
        {"start_ns": 0},
        {"start_ns": 2**63},
    ],
)
def test_configuration_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SimulationConfig(**options)


async def test_leaving_closes_everything(key_directory: Path, join: Any) -> None:
    config = SimulationConfig(websocket_port=0, rest_port=0, directory=key_directory, markets=10)
    async with SimulationServer(config) as server:
        client = await join(server)
        await client.subscribe("trade")
        await client.type("subscribed")
    await client.until_closed()
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection(
            "127.0.0.1", int(server.websocket_url.split(":")[2][:5].rstrip("/t"))
        )
