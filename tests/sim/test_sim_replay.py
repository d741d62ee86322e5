"""Serving captures: over a real WebSocket against an independent rebuild, and the numbering rules without sockets."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tickerplant_kalshi_sim.capture import read_capture
from tickerplant_kalshi_sim.commands import CommandLimits, Commands
from tickerplant_kalshi_sim.replay import ReplayVenue
from tickerplant_kalshi_sim.subscriptions import Subscriptions

START_NS = 1_795_197_600_000_000_000
BOOK_CAPTURES = [
    "prod-2026-05-14-kxbtc15m-book.jsonl",
    "prod-2026-04-18-kxbtc-8-markets.jsonl",
    "demo-2026-06-11-use-yes-price-false.jsonl",
    "demo-2026-06-11-use-yes-price-true.jsonl",
    "demo-2026-08-20-empty-book.jsonl",
    "prod-2025-12-03-old-format.jsonl",
]


def recorded_frames(path: Path) -> list[dict[str, Any]]:
    """The frames of a capture with a sequence number, unwrapped, by code of the test's own."""
    frames = []
    for line in path.read_text().splitlines():
        if line.strip():
            row = json.loads(line)
            frame = json.loads(row["raw"]) if "raw" in row else row
            if "seq" in frame:
                frames.append(frame)
    return frames


@pytest.mark.parametrize("name", BOOK_CAPTURES)
async def test_a_capture_is_served_as_recorded(
    name: str, shared_folder: Path, start: Any, join: Any
) -> None:
    """Another sid, the same numbers and bodies, in order; afterwards the connection stays open."""
    path = shared_folder / "captures" / name
    recorded = recorded_frames(path)
    tickers = list(dict.fromkeys(f["msg"]["market_ticker"] for f in recorded))
    server = await start(replay=path, speed=0, ping_interval_s=0.05)
    client = await join(server)
    await client.subscribe("ticker", "trade")
    await client.subscribe("orderbook_delta", market_tickers=tickers, use_yes_price=False)
    await client.until(lambda frame: frame.get("seq") == recorded[-1]["seq"])
    played = [f for f in client.frames if "seq" in f]
    assert [(f["type"], f["seq"], f["msg"]) for f in played] == [
        (f["type"], f["seq"], f["msg"]) for f in recorded
    ]
    assert {f["sid"] for f in played} == {3}
    assert not any("id" in f for f in played)
    assert await asyncio.wait_for(await client.websocket.ping(), 5) >= 0


@pytest.mark.parametrize("name", BOOK_CAPTURES[:5])
async def test_get_snapshot_after_a_replay_is_the_rebuilt_book(
    name: str,
    shared_folder: Path,
    start: Any,
    join: Any,
    rebuild: Callable[[list[dict[str, Any]]], Any],
    as_integers: Callable[[Any], Any],
) -> None:
    path = shared_folder / "captures" / name
    recorded = recorded_frames(path)
    expected = rebuild(recorded)
    yes_priced = "price-true" in name
    server = await start(replay=path, speed=0, replay_use_yes_price=yes_priced)
    client = await join(server)
    await client.subscribe(
        "orderbook_delta", market_tickers=list(expected), use_yes_price=yes_priced
    )
    await client.until(lambda frame: frame.get("seq") == recorded[-1]["seq"])
    command_id = await client.command(
        "update_subscription", sid=1, action="get_snapshot", market_tickers=list(expected)
    )
    answers = [await client.reply(command_id) for _ in expected]
    assert [a["seq"] for a in answers] == list(
        range(recorded[-1]["seq"] + 1, recorded[-1]["seq"] + 1 + len(expected))
    )
    assert rebuild(answers) == expected
    if not yes_priced:
        own = server.books()
        assert {ticker: as_integers(book) for ticker, book in expected.items()} == own


async def test_recorded_convention_is_turned_for_a_client_of_the_other(
    shared_folder: Path, start: Any, join: Any, rebuild: Callable[[list[dict[str, Any]]], Any]
) -> None:
    """The capture with use_yes_price=true, asked for without, shows NO prices: 0.5200 becomes 0.4800."""
    path = shared_folder / "captures" / "demo-2026-06-11-use-yes-price-true.jsonl"
    recorded = recorded_frames(path)
    ticker = recorded[0]["msg"]["market_ticker"]
    server = await start(replay=path, speed=0, replay_use_yes_price=True)
    client = await join(server)
    await client.subscribe("orderbook_delta", market_tickers=[ticker], use_yes_price=False)
    await client.until(lambda frame: frame.get("seq") == recorded[-1]["seq"])
    turned = rebuild(client.frames)[ticker]
    original = rebuild(recorded)[ticker]
    assert turned["yes"] == original["yes"]
    assert {1 - price: size for price, size in turned["no"].items()} == original["no"]
    assert turned["no"]


async def test_rest_lists_the_recorded_markets_as_open(
    shared_folder: Path, start: Any, http: aiohttp.ClientSession
) -> None:
    path = shared_folder / "captures" / "prod-2026-04-18-kxbtc-8-markets.jsonl"
    server = await start(replay=path)
    async with http.get(f"{server.rest_url}/markets?status=open&series_ticker=KXBTC") as response:
        markets = (await response.json())["markets"]
    recorded = {f["msg"]["market_ticker"]: f["msg"]["market_id"] for f in recorded_frames(path)}
    assert {market["ticker"] for market in markets} == set(recorded)
    assert {market["event_ticker"] for market in markets} == {"KXBTC-26APR1817"}
    assert {market["price_level_structure"] for market in markets} == {"linear_cent"}
    async with http.get(f"{server.rest_url}/events/KXBTC-26APR1817") as response:
        assert (await response.json())["event"]["series_ticker"] == "KXBTC"


async def test_recorded_pace(tmp_path: Path, start: Any, join: Any) -> None:
    """400 ms of recording take as long at speed 1, and less at speed 10."""
    path = tmp_path / "paced.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in conversation(4, gap_ms=200)))
    loop = asyncio.get_running_loop()

    async def seconds_at(speed: int) -> float:
        began = loop.time()
        client = await join(await start(replay=path, speed=speed))
        await client.subscribe("orderbook_delta", market_tickers=["KXA-1-X"])
        await client.until(lambda frame: frame.get("seq") == 4)
        return loop.time() - began

    slow_s = await seconds_at(1)
    assert slow_s >= 0.39
    # A busy machine can hold up any one of them.
    for _attempt in range(20):
        if await seconds_at(10) < slow_s - 0.2:
            return
    pytest.fail("speed 10 was never faster")


# --- numbering, without sockets -------------------------------------------------------------------


def conversation(
    count: int, gap_ms: int = 0, ticker: str = "KXA-1-X", first: int = 1
) -> list[dict[str, Any]]:
    """A snapshot and deltas of one market, numbered from `first`."""
    rows: list[dict[str, Any]] = [
        {"type": "orderbook_snapshot", "sid": 8, "seq": first, "msg": {"market_ticker": ticker}}
    ]
    for index in range(1, count):
        body = {
            "market_ticker": ticker,
            "price_dollars": "0.3000",
            "delta_fp": "1.50",
            "side": "no",
            "ts_ms": 1_000 + index * gap_ms,
        }
        rows.append({"type": "orderbook_delta", "sid": 8, "seq": first + index, "msg": body})
    return rows


SUBSCRIBED = {"type": "subscribed", "id": 1, "msg": {"channel": "orderbook_delta", "sid": 8}}


class Replay:
    """One connection to a replayed recording; the clock moves by hand."""

    def __init__(self, rows: list[dict[str, Any]], *, speed: float = 0) -> None:
        capture = read_capture("\n".join(json.dumps(row) for row in rows), "test")
        self.venue = ReplayVenue(capture, speed=speed, use_yes_price=False, start_ns=START_NS)
        self.player = self.venue.connect()
        self.subscriptions = Subscriptions(10_000, {})
        self.commands = Commands(self.player, self.subscriptions, CommandLimits())
        self.now_ns = START_NS

    def send(self, cmd: str, **params: Any) -> list[dict[str, Any]]:
        self.commands.receive(
            json.dumps({"id": 5, "cmd": cmd, "params": params}).encode(), self.now_ns
        )
        return self.take()

    def take(self) -> list[dict[str, Any]]:
        return [json.loads(frame) for frame in self.subscriptions.take_frames()]

    def tick(self, seconds: float = 0.01) -> list[dict[str, Any]]:
        self.now_ns += int(seconds * 1_000_000_000)
        self.venue.advance(self.now_ns)
        self.player.play(self.now_ns, self.subscriptions)
        return self.take()


def book(replay: Replay, *tickers: str) -> list[dict[str, Any]]:
    return replay.send(
        "subscribe", channels=["orderbook_delta"], market_tickers=list(tickers or ("KXA-1-X",))
    )


def test_playing_waits_for_every_recorded_channel() -> None:
    trade = {"type": "trade", "sid": 9, "seq": 1, "msg": {"market_ticker": "KXA-1-X"}}
    replay = Replay([*conversation(2), trade])
    assert [f["type"] for f in book(replay)] == ["subscribed"]
    assert replay.tick() == []
    replay.send("subscribe", channels=["trade"])
    assert [(f["type"], f["sid"], f["seq"]) for f in replay.tick()] == [
        ("orderbook_snapshot", 1, 1),
        ("orderbook_delta", 1, 2),
        ("trade", 2, 1),
    ]
    assert replay.player.finished


def test_playing_waits_for_all_recorded_markets_but_not_forever() -> None:
    rows = conversation(2) + conversation(2, ticker="KXA-1-Y", first=3)
    replay = Replay(rows)
    book(replay, "KXA-1-X")
    assert replay.tick(0.5) == []
    replay.send("update_subscription", sid=1, action="add_markets", market_tickers=["KXA-1-Y"])
    assert len(replay.tick()) == 4
    partial = Replay(rows)
    book(partial, "KXA-1-X")
    assert partial.tick(0.5) == []
    assert len(partial.tick(1.1)) == 4


def test_acknowledgements_of_our_own_take_no_recorded_number() -> None:
    replay = Replay(conversation(3))
    book(replay)
    (ok,) = replay.send(
        "update_subscription", sid=1, action="add_markets", market_tickers=["KXA-1-X"]
    )
    assert ok["type"] == "ok"
    assert "seq" not in ok
    assert [f["seq"] for f in replay.tick()] == [1, 2, 3]


def test_a_snapshot_asked_for_in_the_middle_shifts_what_follows() -> None:
    replay = Replay(conversation(5, gap_ms=1_000), speed=1)
    book(replay)
    first = replay.tick(0.1)
    assert [f["seq"] for f in first] == [1, 2]
    (answer,) = replay.send(
        "update_subscription", sid=1, action="get_snapshot", market_tickers=["KXA-1-X"]
    )
    assert (answer["id"], answer["seq"]) == (5, 3)
    assert answer["msg"]["no_dollars_fp"] == [["0.3000", "1.50"]]
    assert [f["seq"] for f in replay.tick(10)] == [4, 5, 6]


def test_recorded_replies_with_a_number_are_played_without_their_id() -> None:
    rows = conversation(3)
    reply = {"type": "ok", "id": 77, "sid": 8, "seq": 2, "msg": {"market_tickers": ["KXA-1-X"]}}
    rows[1] = reply
    replay = Replay([SUBSCRIBED, *rows])
    book(replay)
    frames = replay.tick()
    assert [(f["type"], f["seq"]) for f in frames] == [
        ("orderbook_snapshot", 1),
        ("ok", 2),
        ("orderbook_delta", 3),
    ]
    assert "id" not in frames[1]


def test_a_recorded_reconnect_goes_on_counting() -> None:
    replay = Replay([SUBSCRIBED, *conversation(3), SUBSCRIBED, *conversation(2)])
    book(replay)
    assert [f["seq"] for f in replay.tick()] == [1, 2, 3, 4, 5]


def test_a_client_that_subscribes_anew_gets_the_book_and_new_numbers() -> None:
    replay = Replay(conversation(5, gap_ms=1_000), speed=1)
    book(replay)
    replay.tick(0.1)
    assert replay.send("unsubscribe", sids=[1])[0]["seq"] == 3
    frames = book(replay)
    assert [f["type"] for f in frames] == ["subscribed", "orderbook_snapshot"]
    assert (frames[1]["sid"], frames[1]["seq"]) == (2, 1)
    assert frames[1]["msg"]["no_dollars_fp"] == [["0.3000", "1.50"]]
    assert [(f["sid"], f["seq"]) for f in replay.tick(10)] == [(2, 2), (2, 3), (2, 4)]


def test_a_market_without_a_recorded_snapshot_opens_empty() -> None:
    replay = Replay(conversation(3))
    frames = book(replay, "KXA-1-X", "KXOTHER-1-Z")
    assert [f["msg"].get("market_ticker") for f in frames[1:]] == ["KXOTHER-1-Z"]
    assert frames[1]["seq"] == 1
    assert [f["seq"] for f in replay.tick()] == [2, 3, 4]


def test_every_connection_sees_the_recording_from_its_beginning() -> None:
    replay = Replay(conversation(3))
    book(replay)
    replay.tick()
    second = replay.venue.connect()
    subscriptions = Subscriptions(10_000, {})
    commands = Commands(second, subscriptions, CommandLimits())
    command = {
        "id": 1,
        "cmd": "subscribe",
        "params": {"channels": ["orderbook_delta"], "market_tickers": ["KXA-1-X"]},
    }
    commands.receive(json.dumps(command).encode(), replay.now_ns)
    assert len(subscriptions.take_frames()) == 1
    second.play(replay.now_ns, subscriptions)
    frames = [json.loads(frame) for frame in subscriptions.take_frames()]
    assert [f["seq"] for f in frames] == [1, 2, 3]


def test_last_ticker_and_trades_are_kept_for_questions() -> None:
    ticker = {"type": "ticker", "sid": 2, "msg": {"market_ticker": "KXA-1-X", "volume_fp": "3.00"}}
    trade_body = {
        "trade_id": "t1",
        "market_ticker": "KXA-1-X",
        "yes_price_dollars": "0.4000",
        "no_price_dollars": "0.6000",
        "count_fp": "2.00",
        "taker_side": "no",
        "ts": 1_770_897_981,
    }
    replay = Replay([ticker, {"type": "trade", "sid": 3, "seq": 10, "msg": trade_body}])
    replay.send("subscribe", channels=["ticker", "trade"])
    assert [f.get("seq") for f in replay.tick()] == [None, 10]
    replay.send("unsubscribe", sids=[1])
    again = replay.send("subscribe", channels=["ticker"], send_initial_snapshot=True)
    assert again[1]["msg"] == ticker["msg"]
    (trade,) = replay.venue.trades()
    assert (trade.trade_id, trade.yes_price_e4, trade.size_e2, trade.taker_side) == (
        "t1",
        4_000,
        200,
        1,
    )
    assert trade.created_ns == 1_770_897_981_000_000_000
