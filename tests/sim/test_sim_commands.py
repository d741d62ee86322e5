"""Commands and replies of one connection, without sockets: every error code a client can cause, and the seq rules."""

import json
from typing import Any

import pytest

from tickerplant_kalshi_sim.commands import CommandLimits, Commands
from tickerplant_kalshi_sim.exchange import Exchange
from tickerplant_kalshi_sim.flow import FlowSettings
from tickerplant_kalshi_sim.lifecycle import LifecycleSettings
from tickerplant_kalshi_sim.markets import ticker_uuid
from tickerplant_kalshi_sim.subscriptions import Subscriptions

START_NS = 1_795_197_600_000_000_000
TICK_NS = 20_000_000
UUID = "5f0c1c1e-7a52-4d0e-9f77-2b9a4a1f6d10"


class Desk:
    """One connection to a small exchange."""

    def __init__(
        self,
        *,
        markets: int = 20,
        buffer_frames: int = 10_000,
        authenticated: bool = True,
        **limits: Any,
    ) -> None:
        self.exchange = Exchange(
            seed=3,
            market_count=markets,
            start_ns=START_NS,
            flow=FlowSettings(rate=1_000),
            lifecycle=LifecycleSettings(window_s=0, change_interval_ms=0),
        )
        self.tickers = [
            t for t, m in self.exchange.catalogue.markets.items() if m.status == "active"
        ]
        self.subscriptions = Subscriptions(buffer_frames, {})
        self.commands = Commands(
            self.exchange,
            self.subscriptions,
            CommandLimits(**limits),
            authenticated=authenticated,
        )

    def send(self, cmd: str, **params: Any) -> list[dict[str, Any]]:
        """The frames that answer a command with id 5."""
        return self.raw({"id": 5, "cmd": cmd} | ({"params": params} if params else {}))

    def raw(self, command: Any) -> list[dict[str, Any]]:
        """The frames that answer any JSON value or bytes."""
        data = command if isinstance(command, bytes) else json.dumps(command).encode()
        self.commands.receive(data, self.exchange.now_ns)
        return self.take()

    def take(self) -> list[dict[str, Any]]:
        """The frames that wait."""
        return [json.loads(frame) for frame in self.subscriptions.take_frames()]

    def tick(self, count: int = 1, step_ns: int = TICK_NS) -> list[dict[str, Any]]:
        """The frames of some steps of virtual time."""
        for _ in range(count):
            self.subscriptions.publish(self.exchange.advance(self.exchange.now_ns + step_ns))
        return self.take()

    def book(self, count: int = 2) -> list[dict[str, Any]]:
        """Subscribe to the first books."""
        return self.send(
            "subscribe", channels=["orderbook_delta"], market_tickers=self.tickers[:count]
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


def error(code: int, text: str, **extra: Any) -> dict[str, Any]:
    return {"type": "error", "id": 5} | extra | {"msg": {"code": code, "msg": text}}


REFUSED = [
    ("subscribe", {}, 2, "Params required"),
    ("unsubscribe", {}, 2, "Params required"),
    ("update_subscription", {}, 2, "Params required"),
    ("subscribe", {"market_ticker": "A"}, 3, "Channels required"),
    ("subscribe", {"channels": []}, 3, "Channels required"),
    ("unsubscribe", {"sid": 1}, 4, "Subscription IDs required"),
    ("unsubscribe", {"sids": []}, 4, "Subscription IDs required"),
    ("subscripe", {"channels": ["ticker"]}, 5, "Unknown command"),
    ("unsubscribe", {"sids": [9]}, 7, "Unknown subscription ID"),
    ("update_subscription", {"sid": 9, "action": "add_markets"}, 7, "Unknown subscription ID"),
    ("subscribe", {"channels": ["ticker_v2"]}, 8, "Unknown channel name"),
    ("subscribe", {"channels": ["multivariate"]}, 8, "Unknown channel name"),
    ("subscribe", {"channels": ["ticker"], "market_ids": ["nonsense"]}, 11, "Invalid parameter"),
    ("subscribe", {"channels": ["trade"], "market_id": UUID}, 11, "Invalid parameter"),
    (
        "subscribe",
        {"channels": ["ticker"], "market_ticker": "A", "market_tickers": ["B"]},
        11,
        "Invalid parameter",
    ),
    ("subscribe", {"channels": ["communications"], "user_filter": "x"}, 11, "Invalid parameter"),
    (
        "update_subscription",
        {"action": "add_markets"},
        12,
        "Exactly one subscription ID is required",
    ),
    ("update_subscription", {"sids": [1, 2]}, 12, "Exactly one subscription ID is required"),
    ("update_subscription", {"sid": 1, "sids": [1]}, 12, "Exactly one subscription ID is required"),
    ("subscribe", {"channels": ["orderbook_delta"]}, 14, "Market Ticker required"),
    (
        "subscribe",
        {"channels": ["orderbook_delta"], "market_tickers": []},
        14,
        "Market Ticker required",
    ),
    (
        "subscribe",
        {"channels": ["communications"], "shard_factor": 0, "shard_key": 0},
        19,
        "Shard factor must be greater than 0",
    ),
    (
        "subscribe",
        {"channels": ["communications"], "shard_key": 1},
        20,
        "Shard factor and shard key are required together",
    ),
    (
        "subscribe",
        {"channels": ["communications"], "shard_factor": 2, "shard_key": 2},
        21,
        "Shard key out of range",
    ),
    (
        "subscribe",
        {"channels": ["communications"], "shard_factor": 101, "shard_key": 0},
        22,
        "Shard factor must be at most 100",
    ),
    ("subscribe", {"channels": ["cfbenchmarks_value"]}, 24, "Index IDs required"),
    ("subscribe", {"channels": ["pyth_value"]}, 28, "Underlying tickers required"),
]


@pytest.mark.parametrize(("cmd", "params", "code", "text"), REFUSED)
def test_refused_commands(
    desk: Desk, cmd: str, params: dict[str, Any], code: int, text: str
) -> None:
    assert desk.send(cmd, **params) == [error(code, text)]
    assert not desk.subscriptions.by_sid


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"id":-1,"cmd":"list_subscriptions"}',
        b'{"id":"1","cmd":"list_subscriptions"}',
        b'{"id":1,"cmd":7}',
        b'{"id":1,"cmd":"subscribe","params":{"channels":"ticker"}}',
        b'{"id":1,"cmd":"subscribe","params":[]}',
        b'{"id":1,"cmd":"\xff"}',
        b'{"unknown":' + b"[" * 100_000,
    ],
)
def test_code_1_for_what_is_no_command(desk: Desk, data: bytes) -> None:
    assert desk.raw(data) == [
        {"type": "error", "msg": {"code": 1, "msg": "Unable to process message"}}
    ]


@pytest.mark.parametrize(
    ("params", "code", "text"),
    [
        ({"sid": 1}, 15, "Action required"),
        ({"sid": 1, "action": "dance"}, 13, "Unsupported action"),
        ({"sid": 1, "action": "indexlist"}, 13, "Unsupported action"),
        ({"sid": 1, "action": "add_markets"}, 14, "Market Ticker required"),
        ({"sid": 1, "action": "add_markets", "market_tickers": []}, 14, "Market Ticker required"),
        ({"sid": 1, "action": "get_snapshot"}, 14, "Market Ticker required"),
        ({"sid": 1, "action": "add_markets", "market_id": UUID}, 11, "Invalid parameter"),
    ],
)
def test_errors_of_a_sid_take_a_number(
    desk: Desk, params: dict[str, Any], code: int, text: str
) -> None:
    desk.book()
    assert desk.send("update_subscription", **params) == [error(code, text, sid=1, seq=3)]
    assert desk.tick(5)[0]["seq"] == 4


def test_code_9_without_a_signature() -> None:
    desk = Desk(authenticated=False)
    assert desk.send("subscribe", channels=["fill"]) == [error(9, "Authentication required")]
    assert desk.send("subscribe", channels=["ticker"])[0]["type"] == "subscribed"


def test_code_26_when_a_subscription_names_too_many_markets() -> None:
    desk = Desk(markets_per_subscription=3)
    assert desk.book(4) == [error(26, "Subscription market limit exceeded")]
    desk.book(3)
    refused = desk.send(
        "update_subscription", sid=1, action="add_markets", market_tickers=[desk.tickers[5]]
    )
    assert refused == [error(26, "Subscription market limit exceeded", sid=1, seq=4)]
    again = desk.send(
        "update_subscription", sid=1, action="add_markets", market_tickers=[desk.tickers[0]]
    )
    assert again[0]["type"] == "ok"


def test_code_27_when_a_sid_gets_too_many_commands_in_a_second() -> None:
    desk = Desk(commands_per_second=3)
    desk.book()
    params = {"sid": 1, "action": "get_snapshot", "market_tickers": []}
    assert [desk.send("update_subscription", **params) for _ in range(3)] == [[], [], []]
    assert desk.send("update_subscription", **params)[0]["msg"]["code"] == 27
    desk.tick(51)
    assert desk.send("update_subscription", **params) == []


def test_code_25_ends_a_subscription_that_nobody_reads() -> None:
    desk = Desk(buffer_frames=50)
    desk.book(len(desk.tickers))
    desk.send("subscribe", channels=["market_lifecycle_v2"])
    for _ in range(100):
        desk.subscriptions.publish(desk.exchange.advance(desk.exchange.now_ns + TICK_NS))
    frames = desk.take()
    assert frames[-1]["msg"] == {"code": 25, "msg": "Subscription buffer overflow"}
    assert [f["seq"] for f in frames] == list(range(frames[0]["seq"], frames[0]["seq"] + 52))
    assert desk.send("list_subscriptions")[0]["msg"] == [
        {"channel": "market_lifecycle_v2", "sid": 2}
    ]
    reply = desk.book()
    assert reply[0]["msg"] == {"channel": "orderbook_delta", "sid": 3}
    assert reply[1]["seq"] == 1


def test_subscribe_answers_with_sid_and_snapshots_in_order(desk: Desk) -> None:
    ack, *snapshots = desk.book(3)
    assert ack == {"type": "subscribed", "id": 5, "msg": {"channel": "orderbook_delta", "sid": 1}}
    assert [s["msg"]["market_ticker"] for s in snapshots] == desk.tickers[:3]
    assert [(s["sid"], s["seq"]) for s in snapshots] == [(1, 1), (1, 2), (1, 3)]
    assert not any("id" in s for s in snapshots)


def test_several_channels_are_answered_one_by_one(desk: Desk) -> None:
    """As recorded in production: acks and error 8 each with the command's id."""
    frames = desk.send("subscribe", channels=["ticker", "nonsense", "trade", "orderbook_delta"])
    assert [f["type"] for f in frames] == ["subscribed", "error", "subscribed", "error"]
    assert [f.get("msg", {}).get("code") for f in frames] == [None, 8, None, 14]
    assert [f["msg"].get("sid") for f in frames] == [1, None, 2, None]


def test_id_0_is_no_id(desk: Desk) -> None:
    assert "id" not in desk.raw({"id": 0, "cmd": "list_subscriptions"})[0]


def test_subscribing_again_merges_into_the_sid_and_replies_ok(desk: Desk) -> None:
    desk.book(2)
    frames = desk.send("subscribe", channels=["orderbook_delta"], market_tickers=desk.tickers[1:4])
    assert frames[0] == {
        "type": "ok",
        "id": 5,
        "sid": 1,
        "seq": 3,
        "msg": {"market_tickers": desk.tickers[:4]},
    }
    assert [(f["msg"]["market_ticker"], f["seq"]) for f in frames[1:]] == [
        (desk.tickers[2], 4),
        (desk.tickers[3], 5),
    ]
    same = desk.send("subscribe", channels=["orderbook_delta"], market_tickers=desk.tickers[:2])
    assert [(f["type"], f["seq"]) for f in same] == [("ok", 6)]


def test_add_and_delete_markets(desk: Desk) -> None:
    desk.book(2)
    frames = desk.send(
        "update_subscription", sids=[1], action="add_markets", market_ticker=desk.tickers[2]
    )
    assert [f["type"] for f in frames] == ["ok", "orderbook_snapshot"]
    assert frames[0]["msg"] == {"market_tickers": desk.tickers[:3]}
    ok = desk.send(
        "update_subscription", sid=1, action="delete_markets", market_tickers=desk.tickers[:2]
    )
    assert ok[0]["msg"] == {"market_tickers": [desk.tickers[2]]}
    deltas = desk.tick(50)
    assert {f["msg"]["market_ticker"] for f in deltas} == {desk.tickers[2]}
    assert [f["seq"] for f in deltas] == list(range(6, 6 + len(deltas)))


def test_skip_ticker_ack_leaves_the_list_out(desk: Desk) -> None:
    desk.send(
        "subscribe",
        channels=["orderbook_delta"],
        market_tickers=desk.tickers[:2],
        skip_ticker_ack=True,
    )
    add = {"sid": 1, "action": "add_markets", "market_tickers": [desk.tickers[2]]}
    assert desk.send("update_subscription", **add)[0]["msg"] == {}
    told = desk.send("update_subscription", **add, skip_ticker_ack=False)
    assert told[0]["msg"] == {"market_tickers": desk.tickers[:3]}


def test_get_snapshot_continues_the_sequence_and_changes_nothing(desk: Desk) -> None:
    """Also of a market not subscribed, and of one that does not exist: an empty book with a number."""
    desk.book(1)
    asked = [desk.tickers[0], desk.tickers[4], "KXNONE-1"]
    frames = desk.send("update_subscription", sid=1, action="get_snapshot", market_tickers=asked)
    assert [(f["id"], f["sid"], f["seq"], f["msg"]["market_ticker"]) for f in frames] == [
        (5, 1, 2, asked[0]),
        (5, 1, 3, asked[1]),
        (5, 1, 4, asked[2]),
    ]
    assert frames[2]["msg"] == {"market_ticker": "KXNONE-1", "market_id": ticker_uuid("KXNONE-1")}
    deltas = desk.tick(50)
    assert {f["msg"]["market_ticker"] for f in deltas} == {desk.tickers[0]}
    assert deltas[0]["seq"] == 5


def test_unsubscribed_takes_the_next_number_and_sids_are_not_used_again(desk: Desk) -> None:
    desk.book(2)
    assert desk.send("unsubscribe", sids=[1]) == [
        {"type": "unsubscribed", "id": 5, "sid": 1, "seq": 3}
    ]
    assert desk.tick(20) == []
    assert desk.book(1)[0]["msg"]["sid"] == 2
    both = desk.send("unsubscribe", sids=[1, 2])
    assert [f["type"] for f in both] == ["error", "unsubscribed"]


def test_list_subscriptions(desk: Desk) -> None:
    desk.book(1)
    desk.send("subscribe", channels=["ticker"])
    assert desk.send("list_subscriptions") == [
        {
            "type": "ok",
            "id": 5,
            "msg": [{"channel": "orderbook_delta", "sid": 1}, {"channel": "ticker", "sid": 2}],
        }
    ]


def test_a_ticker_may_be_any_text(desk: Desk) -> None:
    """It comes back as it was asked for, in a frame that is JSON."""
    tickers = ['KX"QUOTE', "KX\\SLASH", "KX\nLINE", "KXÉ", ""]
    frames = desk.send("subscribe", channels=["orderbook_delta"], market_tickers=tickers)
    assert [frame["msg"]["market_ticker"] for frame in frames[1:]] == tickers


def test_use_yes_price_turns_no_levels_round(desk: Desk) -> None:
    other = Desk()
    desk.book(20)
    params = {"channels": ["orderbook_delta"], "market_tickers": other.tickers}
    snapshots = other.send("subscribe", **params, use_yes_price=True)[1:]
    plain = desk.send(
        "update_subscription", sid=1, action="get_snapshot", market_tickers=desk.tickers
    )
    turned = 0
    for yes_priced, no_priced in zip(snapshots, plain, strict=True):
        assert yes_priced["msg"].get("yes_dollars_fp") == no_priced["msg"].get("yes_dollars_fp")
        for (price, size), (no_price, no_size) in zip(
            yes_priced["msg"].get("no_dollars_fp", []),
            no_priced["msg"].get("no_dollars_fp", []),
            strict=True,
        ):
            assert round(float(price) + float(no_price), 4) == 1
            assert size == no_size
            turned += 1
    assert turned > 50


def test_the_default_convention_can_flip() -> None:
    params = {"channels": ["orderbook_delta"], "market_tickers": Desk().tickers}
    flipped = Desk(use_yes_price_default=True).send("subscribe", **params)
    assert flipped == Desk().send("subscribe", **params, use_yes_price=True)
    assert flipped != Desk().send("subscribe", **params)


@pytest.mark.parametrize("channel", ["ticker", "trade"])
def test_filters(desk: Desk, channel: str) -> None:
    desk.send("subscribe", channels=[channel], market_tickers=desk.tickers[:1])
    frames = desk.tick(200)
    assert {f["msg"]["market_ticker"] for f in frames} == {desk.tickers[0]}
    wide = Desk()
    wide.send("subscribe", channels=[channel])
    assert len({f["msg"]["market_ticker"] for f in wide.tick(200)}) > 10


def test_ticker_by_market_id_and_initial_snapshot(desk: Desk) -> None:
    market = desk.exchange.catalogue.markets[desk.tickers[1]]
    frames = desk.send(
        "subscribe",
        channels=["ticker"],
        market_ids=[market.market_id, UUID],
        send_initial_snapshot=True,
    )
    assert [f["type"] for f in frames] == ["subscribed", "ticker"]
    assert frames[1]["msg"]["market_ticker"] == market.ticker
    assert "seq" not in frames[1]
    ok = desk.send("update_subscription", sid=1, action="delete_markets", market_ids=[UUID])
    assert ok[0]["msg"] == {"market_ids": [market.market_id]}


def test_initial_snapshot_of_the_whole_exchange(desk: Desk) -> None:
    frames = desk.send("subscribe", channels=["ticker"], send_initial_snapshot=True)
    assert [f["msg"]["market_ticker"] for f in frames[1:]] == desk.tickers


def test_index_channels(desk: Desk) -> None:
    desk.send("subscribe", channels=["cfbenchmarks_value_5hz"], index_ids=["BRTI"])
    update = {"sid": 1}
    listed = desk.send("update_subscription", **update, action="indexlist")
    assert listed[0]["type"] == "cfbenchmarks_value_5hz_indexlist"
    assert (listed[0]["sid"], listed[0]["seq"]) == (1, 1)
    assert "BRTI" in listed[0]["msg"]["index_ids"]
    ok = desk.send(
        "update_subscription", **update, action="subscribe_indices", index_ids=["SOLUSD_RTI"]
    )
    assert ok[0]["msg"] == {"index_ids": ["BRTI", "SOLUSD_RTI"]}
    desk.send("update_subscription", **update, action="unsubscribe_indices", index_ids=["BRTI"])
    frames = desk.tick(60)
    assert {f["msg"]["index_id"] for f in frames} == {"SOLUSD_RTI"}
    missing = desk.send("update_subscription", **update, action="subscribe_indices")
    assert missing[0]["msg"]["code"] == 24


def test_underlying_channel(desk: Desk) -> None:
    desk.send("subscribe", channels=["pyth_value"], underlying_tickers=["Metal.XAU/USD"])
    listed = desk.send("update_subscription", sid=1, action="underlying_list")
    assert listed[0]["type"] == "pyth_value_underlying_list"
    assert {f["msg"]["underlying_ticker"] for f in desk.tick(30)} == {"Metal.XAU/USD"}


def test_shards_of_communications_divide_the_markets() -> None:
    seen: list[set[str]] = []
    for key in (0, 1):
        desk = Desk(markets=100)
        desk.send("subscribe", channels=["communications"], shard_factor=2, shard_key=key)
        frames = desk.tick(40, step_ns=2_000_000_000)
        assert {f["type"] for f in frames} == {"rfq_created", "rfq_deleted"}
        seen.append({f["msg"]["market_ticker"] for f in frames})
    assert seen[0].isdisjoint(seen[1])
