"""Every exchange frame of the examples, sent over a real WebSocket to a running plant: handled, or counted by name.

The exchange here answers what a plant asks at its start and otherwise says exactly what the test tells it to say: the
bytes of the examples, one frame after the other. What each did is read off the plant's metrics.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from processes import Plant, Settings, free_network

Document = dict[str, Any]
SIDS = {
    "orderbook_delta": 1,
    "ticker": 2,
    "trade": 3,
    "market_lifecycle_v2": 4,
    "multivariate_market_lifecycle": 5,
}
"""The sids of the examples."""
TICKERS = ("KXDEMOTEMP-26NOV21-T58", "KXDEMOTEMP-26NOV21-T60")
STEP_TIMEOUT_S = 30.0
WATCHED_OF_PLANT = (
    "plant_snapshots_applied",
    "plant_books_gone_stale",
    "plant_deltas_dropped",
    "plant_tickers",
    "plant_trades",
    'plant_messages{stream="delta"}',
)
UNWATCHED_OF_FEED = ("feed_frames", "feed_directory_", "feed_markets_subscribed")
"""What moves with every frame, or with time."""


class ScriptedExchange:
    """REST with two markets, and a WebSocket that acknowledges subscriptions and sends what `say` is given."""

    def __init__(self) -> None:
        self.port = 0
        self.subscribed: set[str] = set()
        self.complete = asyncio.Event()
        self.asked_again = asyncio.Event()
        self._websocket: web.WebSocketResponse | None = None

    @property
    def settings(self) -> Settings:
        """Where it is."""
        host = f"127.0.0.1:{self.port}/trade-api"
        return {
            "exchange": {"websocket_url": f"ws://{host}/ws/v2", "rest_url": f"http://{host}/v2"}
        }

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """One connection of the plant."""
        websocket = web.WebSocketResponse(compress=False)
        await websocket.prepare(request)
        self._websocket = websocket
        async for message in websocket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await self._answer(json.loads(message.data))
        return websocket

    async def _answer(self, command: Document) -> None:
        """Only new subscriptions are acknowledged; the examples themselves are the replies to the rest."""
        if command["cmd"] == "subscribe":
            (channel,) = command["params"]["channels"]
            if channel not in self.subscribed:
                self.subscribed.add(channel)
                body = {"channel": channel, "sid": SIDS[channel]}
                frame = {"type": "subscribed", "id": command["id"], "msg": body}
                await self.say(json.dumps(frame))
            else:
                self.asked_again.set()
        if self.subscribed == SIDS.keys():
            self.complete.set()

    async def say(self, text: str) -> None:
        """Send one text frame."""
        assert self._websocket is not None
        await self._websocket.send_str(text)

    async def rest(self, request: web.Request) -> web.Response:
        """What a plant asks at its start."""
        path = request.path.removeprefix("/trade-api/v2")
        asked = set(request.query.get("tickers", ",".join(TICKERS)).split(","))
        active = request.query.get("status", "open") == "open"
        listed = [market_object(ticker) for ticker in TICKERS if active and ticker in asked]
        answers: dict[str, Document] = {
            "/account/limits": {
                "usage_tier": "basic",
                "read": {"refill_rate": 200, "bucket_capacity": 400},
            },
            "/markets": {"markets": listed, "cursor": ""},
            "/events": {"events": [], "cursor": ""},
        }
        known = path in answers
        return web.json_response(answers.get(path, {"msg": "none"}), status=200 if known else 404)


def market_object(ticker: str) -> Document:
    """A market as REST lists it."""
    return {
        "ticker": ticker,
        "event_ticker": ticker.rpartition("-")[0],
        "status": "active",
        "open_time": "2020-01-01T00:00:00Z",
        "close_time": "2099-01-01T00:00:00Z",
        "result": "",
        "price_level_structure": "linear_cent",
        "price_ranges": [{"start": "0.0000", "end": "1.0000", "step": "0.0100"}],
    }


@pytest.fixture
async def exchange() -> AsyncIterator[ScriptedExchange]:
    """A running scripted exchange."""
    scripted = ScriptedExchange()
    application = web.Application()
    application.router.add_get("/trade-api/ws/v2", scripted.websocket)
    application.router.add_get("/trade-api/v2/{path:.*}", scripted.rest)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    scripted.port = runner.addresses[0][1]
    yield scripted
    await runner.cleanup()


def settings_of(exchange: ScriptedExchange, folder: Path) -> Settings:
    """A plant on everything the scripted exchange has, with a key that it does not check."""
    path = folder / "key.pem"
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    key = {"key_id": "any", "key_path": str(path)}
    return {
        "exchange": exchange.settings["exchange"] | key,
        "markets": {"all_open": True, "include_combos": True},
        # Every message is accounted for: none but those of the script.
        "verify": {"interval_ms": 0, "upstream_interval_ms": 0},
    }


class Observer:
    """The running plant, seen through its metrics."""

    def __init__(self, plant: Plant, exchange: ScriptedExchange) -> None:
        self._plant = plant
        self._exchange = exchange
        self._before: dict[str, int] = {}

    async def metrics(self) -> dict[str, int]:
        """All metrics now."""
        return await asyncio.to_thread(self._plant.metrics)

    async def settle(self) -> None:
        """Take what is counted so far as the start."""
        self._before = await self.metrics()

    async def effect(self, text: str) -> dict[str, int]:
        """What one frame moved, once the plant has read it."""
        await self._exchange.say(text)
        wanted = self._before["feed_frames"] + 1
        await asyncio.to_thread(self._plant.wait_metric, "feed_frames", wanted, STEP_TIMEOUT_S)
        after = await self.metrics()
        assert after["feed_frames"] == wanted
        moved = {
            name: value - self._before.get(name, 0)
            for name, value in after.items()
            if value != self._before.get(name, 0)
        }
        self._before = after
        return {name: count for name, count in moved.items() if is_watched(name)}


def is_watched(metric: str) -> bool:
    """Whether a metric says what became of a frame."""
    if metric.startswith("feed_"):
        return not metric.startswith(UNWATCHED_OF_FEED)
    return metric in WATCHED_OF_PLANT


def unmatched(**others: int) -> dict[str, int]:
    """The effect of a reply that answers no command of ours."""
    return {"feed_unmatched_replies": 1, **others}


def gap(missing: int) -> dict[str, int]:
    """The effect of a number that jumps."""
    return {"feed_sequence_gaps": 1, "feed_missing_frames": missing}


def by_name(frame_type: str) -> dict[str, int]:
    """The effect of a frame whose type the plant has no use for."""
    return {f'feed_unknown_types{{type="{frame_type}"}}': 1}


def foreign(frame_type: str) -> dict[str, int]:
    """The same for a frame that takes a number of a sid that we have not subscribed."""
    return by_name(frame_type) | {"feed_unknown_sid_frames": 1}


EFFECTS: dict[str, dict[str, int]] = {
    # Replies first, while nothing is asked that they could answer.
    "subscribed sid None seq None": unmatched(),
    "ok sid None seq None": unmatched(),
    "error 8 sid None seq None": {'feed_error_frames{code="8"}': 1},
    # An image is BookClear, BookLevels, BookReady.
    "orderbook_snapshot sid 1 seq 1": {
        "plant_snapshots_applied": 1,
        'plant_messages{stream="delta"}': 3,
    },
    "orderbook_snapshot sid 1 seq 2": {
        "plant_snapshots_applied": 1,
        'plant_messages{stream="delta"}': 3,
    },
    "orderbook_delta sid 1 seq 3": {'plant_messages{stream="delta"}': 1},
    # 4 to 8 are missing: both books are stale, told by BookStale.
    "ok sid 1 seq 9": unmatched(
        **gap(5), plant_books_gone_stale=2, **{'plant_messages{stream="delta"}': 2}
    ),
    # 10 and 11 are missing; the market of the snapshot is live again: one level came, BookReady.
    "orderbook_snapshot sid 1 seq 12": {
        **gap(2),
        "plant_snapshots_applied": 1,
        'plant_messages{stream="delta"}': 2,
    },
    "ticker sid 2 seq None": {"plant_tickers": 1},
    "unsubscribed sid 2 seq 418": unmatched(**gap(417)),
    "trade sid 3 seq 77": {"plant_trades": 1, **gap(76)},
    "market_lifecycle_v2 created sid 4 seq 5": {"feed_markets_known": 1, **gap(4)},
    # From here on sid 4 has no gap: each of these frames was read and took its number.
    "market_lifecycle_v2 price_level_structure_updated sid 4 seq 6": {},
    "market_lifecycle_v2 metadata_updated sid 4 seq 7": {},
    "market_lifecycle_v2 determined sid 4 seq 8": {},
    "market_lifecycle_v2 settled sid 4 seq 9": {},
    "market_lifecycle_v2 deactivated sid 4 seq 10": {},
    "event_lifecycle sid 4 seq 11": {},
    "event_fee_update sid 4 seq 12": by_name("event_fee_update"),
    "multivariate_market_lifecycle activated sid 5 seq 1": {},
    "fill sid 6 seq None": by_name("fill"),
    "market_position sid 7 seq None": by_name("market_position"),
    "user_order sid 8 seq None": by_name("user_order"),
    "order_group_updates limit_updated sid 9 seq 1": foreign("order_group_updates"),
    "rfq_created sid 10 seq 1": foreign("rfq_created"),
    "rfq_deleted sid 10 seq 2": foreign("rfq_deleted"),
    "quote_created sid 10 seq 3": foreign("quote_created"),
    "quote_accepted sid 10 seq 4": foreign("quote_accepted"),
    "quote_executed sid 10 seq 5": foreign("quote_executed"),
    "cfbenchmarks_value sid 11 seq 1": foreign("cfbenchmarks_value"),
    "cfbenchmarks_value_5hz sid 12 seq 1": foreign("cfbenchmarks_value_5hz"),
    "pyth_value sid 13 seq 1": foreign("pyth_value"),
    "pyth_value_underlying_list sid 13 seq 2": foreign("pyth_value_underlying_list"),
    # Ends the books' sid: the one book that was live is stale, and the channel is subscribed anew.
    "error 25 sid 1 seq 90211": {
        **gap(90_198),
        'feed_error_frames{code="25"}': 1,
        "feed_subscriptions_ended": 1,
        "plant_books_gone_stale": 1,
        'plant_messages{stream="delta"}': 1,
    },
}
"""What each example must move of the watched metrics, and nothing else; in the order in which they are sent."""


def name_of(text: str) -> str:
    """An example by its type, what its body says it is, and its place."""
    frame = json.loads(text)
    body = frame.get("msg")
    detail = (body.get("event_type") or body.get("code")) if isinstance(body, dict) else None
    kind = f"{frame['type']} {detail}" if detail else frame["type"]
    return f"{kind} sid {frame.get('sid')} seq {frame.get('seq')}"


async def test_every_example_is_handled_or_counted_by_name(
    shared_folder: Path, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    """Frame by frame the metrics that must move, and only those; the plant stays up and heals."""
    lines = (shared_folder / "kalshi" / "examples.jsonl").read_text().splitlines()
    examples = {name_of(line): line for line in lines if "type" in json.loads(line)}
    assert examples.keys() == EFFECTS.keys()
    with Plant(tmp_path, free_network(), settings_of(exchange, tmp_path)) as plant:
        await asyncio.to_thread(plant.wait_event, "markets_discovered")
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await exchange.complete.wait()
        observer = Observer(plant, exchange)
        await asyncio.to_thread(plant.wait_metric, "feed_frames", len(SIDS))
        await observer.settle()
        effects = {name: await observer.effect(examples[name]) for name in EFFECTS}
        assert effects == EFFECTS
        await require_healed(plant, exchange)
        assert await asyncio.to_thread(plant.stop) == 0


async def require_healed(plant: Plant, exchange: ScriptedExchange) -> None:
    """The channel that ended is asked for again, and with its snapshots every book is right."""
    async with asyncio.timeout(STEP_TIMEOUT_S):
        await exchange.asked_again.wait()
    sid = 14
    body = {"channel": "orderbook_delta", "sid": sid}
    await exchange.say(json.dumps({"type": "subscribed", "msg": body}))
    before = await asyncio.to_thread(plant.metrics)
    for seq, ticker in enumerate(TICKERS, start=1):
        snapshot = {"market_ticker": ticker, "no_dollars_fp": [["0.4200", "1.00"]]}
        frame = {"type": "orderbook_snapshot", "sid": sid, "seq": seq, "msg": snapshot}
        await exchange.say(json.dumps(frame))
    applied = before["plant_snapshots_applied"] + len(TICKERS)
    await asyncio.to_thread(plant.wait_metric, "plant_snapshots_applied", applied)
    metrics = await asyncio.to_thread(plant.metrics)
    assert metrics["plant_stale_books"] == 0
    assert metrics["daemon_internal_errors"] == 0
    assert metrics["feed_connections_opened"] == 1
    assert metrics["feed_connections_lost"] == 0
    assert metrics["feed_unusable_frames"] == metrics["feed_unreadable_frames"] == 0
