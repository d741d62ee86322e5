"""Faults of the running server over real sockets, by command, by script and at random."""

import asyncio
import json
import socket
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.exceptions import ConnectionClosed

from tickerplant_kalshi_sim.faults import Fault


async def test_frame_faults_over_the_wire(quiet_book: Any) -> None:
    server, client = await quiet_book()
    for kind in ("skip_seq", "duplicate", "inconsistent"):
        assert server.inject(Fault(kind=kind)) == 1
    await client.until(lambda frame: frame["msg"]["delta_fp"] == "-99999999.00")
    await client.type("orderbook_delta")
    deltas = [f for f in client.frames if f["type"] == "orderbook_delta"]
    steps = Counter(b["seq"] - a["seq"] for a, b in pairwise(deltas))
    assert steps[2] == 1, "one number was skipped"
    assert steps[0] == 1, "one frame came twice"
    assert set(steps) == {0, 1, 2}
    assert sum(f["msg"]["delta_fp"] == "-99999999.00" for f in deltas) == 1
    assert server.stats().faults == {"skip_seq": 1, "duplicate": 1, "inconsistent": 1}


async def test_unusable_frame_over_the_wire(quiet_book: Any) -> None:
    server, client = await quiet_book()
    server.inject(Fault(kind="unusable", variant="bad_json"))
    with pytest.raises(json.JSONDecodeError):
        await client.until(lambda _: False)
    server.inject(Fault(kind="unusable", variant="no_ticker"))
    await client.until(lambda f: f["type"] == "orderbook_delta" and "market_ticker" not in f["msg"])


@pytest.mark.parametrize("kind", ["error_10", "error_25"])
async def test_terminal_errors_and_resubscription(kind: Any, quiet_book: Any) -> None:
    server, client = await quiet_book()
    last = client.frames[-1]["seq"]
    server.inject(Fault(kind=kind))
    error = await client.type("error")
    assert error["sid"] == 1
    assert error["msg"]["code"] == int(kind[-2:])
    assert error["seq"] > last
    await client.drain(0.05)
    assert client.frames[-1] == error
    await client.subscribe("orderbook_delta", market_tickers=list(server.books())[:3])
    assert (await client.type("subscribed"))["msg"]["sid"] == 2
    assert (await client.type("orderbook_snapshot"))["seq"] == 1


async def test_reset_is_a_tcp_reset_without_close_frame(quiet_book: Any) -> None:
    server, client = await quiet_book()
    server.inject(Fault(kind="reset"))
    closed = await client.until_closed()
    assert closed.rcvd is None
    assert isinstance(closed.__cause__, ConnectionResetError)
    assert server.stats().connections == 0


async def test_close_is_an_orderly_goodbye(until: Any, quiet_book: Any) -> None:
    server, client = await quiet_book()
    server.inject(Fault(kind="close"))
    closed = await client.until_closed()
    assert closed.rcvd is not None
    assert closed.rcvd.code == 1001
    await until(lambda: server.stats().connections == 0)


async def test_half_open_socket_says_nothing_and_stays_open(join: Any, quiet_book: Any) -> None:
    server, client = await quiet_book(ping_interval_s=0.05)
    server.inject(Fault(kind="half_open"))
    await client.drain(0.1)
    count = len(client.frames)
    pong = await client.websocket.ping()
    await client.command("list_subscriptions")
    done, _ = await asyncio.wait({pong}, timeout=0.4)
    assert not done
    await client.drain(0.05)
    assert len(client.frames) == count
    assert server.stats().connections == 1
    second = await join(server)
    await second.command("list_subscriptions")
    assert (await second.receive())["msg"] == []


async def test_a_fault_can_name_one_connection(start: Any, join: Any) -> None:
    server = await start(paused=True)
    first, second = await join(server), await join(server)
    assert server.inject(Fault(kind="close", connection=1)) == 1
    with pytest.raises(ConnectionClosed):
        await first.websocket.recv()
    await second.command("list_subscriptions")
    assert (await second.receive())["type"] == "ok"
    assert server.inject(Fault(kind="close", connection=9)) == 0


async def test_dead_sid_while_others_live(quiet_book: Any) -> None:
    server, client = await quiet_book()
    await client.subscribe("ticker")
    await client.type("ticker")
    server.pause_flow()
    await client.drain()
    server.inject(Fault(kind="dead_sid"))
    server.resume_flow()
    seen = len(client.frames)
    await client.until(lambda _: len(client.frames) > seen + 50)
    assert {f["type"] for f in client.frames[seen:]} == {"ticker"}


async def test_late_ack_over_the_wire(start: Any, join: Any) -> None:
    server = await start(window_s=0, change_interval_s=0)
    client = await join(server)
    server.inject(Fault(kind="late_ack", count=20))
    await client.subscribe("orderbook_delta", market_tickers=list(server.books()))
    ack = await client.type("subscribed")
    before = {f["type"] for f in client.frames if f is not ack}
    assert before == {"orderbook_snapshot", "orderbook_delta"}


async def test_command_timeout_is_code_18(start: Any, join: Any) -> None:
    server = await start(paused=True)
    client = await join(server)
    server.inject(Fault(kind="command_timeout"))
    await client.subscribe("trade")
    assert (await client.receive())["msg"]["code"] == 18
    await client.subscribe("trade")
    assert (await client.receive())["type"] == "subscribed"


async def test_flood(quiet_book: Any) -> None:
    server, client = await quiet_book(rate=20)
    seen = len(client.frames)
    server.inject(Fault(kind="flood", count=5_000))
    await client.until(lambda _: len(client.frames) > seen + 4_000)


async def test_a_client_that_does_not_read_gets_error_25(start: Any, join: Any, until: Any) -> None:
    """Real backpressure: the kernel's buffers fill, the transport pauses, the subscription's bound is reached."""
    server = await start(
        markets=20, rate=100_000, subscription_buffer_frames=300, window_s=0, change_interval_s=0
    )
    client = await join(server, max_queue=1)
    raw = client.websocket.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.websocket.transport.pause_reading()
    await client.subscribe("orderbook_delta", market_tickers=list(server.books()))
    await until(lambda: server.stats().frames_sent.get("error"))
    server.pause_flow()
    client.websocket.transport.resume_reading()
    error = await client.type("error")
    assert error["msg"] == {"code": 25, "msg": "Subscription buffer overflow"}
    assert error["seq"] == client.frames[-2]["seq"] + 1
    await client.command("list_subscriptions")
    assert (await client.type("ok"))["msg"] == []


@pytest.mark.parametrize(("kind", "status"), [("rest_429", 429), ("rest_5xx", 502)])
async def test_rest_fails_for_a_while(
    kind: Any, status: int, start: Any, http: aiohttp.ClientSession
) -> None:
    server = await start(paused=True)
    server.inject(Fault(kind=kind, status=502, duration_s=0.2))
    url = f"{server.rest_url}/markets"
    async with http.get(url) as response:
        assert response.status == status
        if status == 429:
            assert await response.json() == {"error": "too many requests"}
    async with asyncio.timeout(5):
        while True:
            async with http.get(url) as response:
                if response.status == 200:
                    break


@pytest.mark.parametrize(("kind", "status"), [("handshake_429", 429), ("handshake_502", 502)])
async def test_handshakes_fail_for_a_while(
    kind: Any, status: int, start: Any, join: Any, sign: Any, refused: Any
) -> None:
    server = await start(paused=True)
    server.inject(Fault(kind=kind, duration_s=60))
    assert (await refused(server, sign(server, "/trade-api/ws/v2")))[0] == status
    server.stop_faults()
    await join(server)


async def test_trading_pause(join: Any, http: aiohttp.ClientSession, quiet_book: Any) -> None:
    """Sessions drop, status says so, books stand still for clients that come back; then trading goes on."""
    server, client = await quiet_book()
    server.inject(Fault(kind="trading_pause", duration_s=1.5))
    await client.until_closed()
    async with http.get(f"{server.rest_url}/exchange/status") as response:
        assert response.status == 200
        status = await response.json()
    assert (status["exchange_active"], status["trading_active"]) == (True, False)
    assert status["exchange_estimated_resume_time"].endswith("Z")
    again = await join(server)
    await again.subscribe("orderbook_delta", market_tickers=list(server.books()))
    await again.type("orderbook_snapshot")
    assert server.stats().flow_paused
    await again.type("orderbook_delta")
    assert not server.stats().flow_paused


async def test_exchange_pause(
    join: Any, sign: Any, http: aiohttp.ClientSession, until: Any, refused: Any, quiet_book: Any
) -> None:
    server, client = await quiet_book()
    server.inject(Fault(kind="exchange_pause", duration_s=60))
    await client.until_closed()
    assert (await refused(server, sign(server, "/trade-api/ws/v2")))[0] == 503
    async with http.get(f"{server.rest_url}/exchange/status") as response:
        assert response.status == 503
        status = await response.json()
    assert (status["exchange_active"], status["trading_active"]) == (False, False)
    async with http.get(f"{server.rest_url}/markets") as response:
        assert response.status == 503
    server.stop_faults()
    await until(lambda: not server.stats().flow_paused)
    await join(server)


async def test_fault_script_and_random_faults(
    tmp_path: Path, start: Any, join: Any, until: Any
) -> None:
    path = tmp_path / "script.toml"
    path.write_text('[[fault]]\nkind = "flood"\ncount = 10\nat_s = 0.05\n')
    server = await start(faults=path, fault_rate=60_000, fault_kinds=("skip_seq",))
    client = await join(server)
    await client.subscribe("orderbook_delta", market_tickers=list(server.books()))
    await until(lambda: server.stats().faults.get("flood") == 1)
    await until(lambda: server.stats().faults.get("skip_seq", 0) > 3)
    server.stop_faults()
    made = server.stats().faults
    ticks = server.stats().ticks
    await until(lambda: server.stats().ticks > ticks + 20)
    assert server.stats().faults == made
