"""The REST endpoints: paging, filters, error shapes, signatures, rate limit."""

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tickerplant_kalshi_sim.rest_query import Query
from tickerplant_kalshi_sim.server import SimulationServer

REQUIRED_OF_MARKET = [
    "ticker",
    "event_ticker",
    "market_type",
    "yes_sub_title",
    "no_sub_title",
    "created_time",
    "updated_time",
    "open_time",
    "close_time",
    "latest_expiration_time",
    "settlement_timer_seconds",
    "status",
    "yes_bid_dollars",
    "yes_bid_size_fp",
    "yes_ask_dollars",
    "yes_ask_size_fp",
    "no_bid_dollars",
    "no_ask_dollars",
    "last_price_dollars",
    "previous_yes_bid_dollars",
    "previous_yes_ask_dollars",
    "previous_price_dollars",
    "volume_fp",
    "volume_24h_fp",
    "open_interest_fp",
    "notional_value_dollars",
    "result",
    "can_close_early",
    "expiration_value",
    "rules_primary",
    "rules_secondary",
    "price_level_structure",
    "price_ranges",
]
REQUIRED_OF_TRADE = [
    "trade_id",
    "ticker",
    "count_fp",
    "yes_price_dollars",
    "no_price_dollars",
    "taker_outcome_side",
    "taker_book_side",
    "created_time",
    "is_block_trade",
]


class Rest:
    """GET requests to one server."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        server: SimulationServer,
        sign: Callable[..., dict[str, str]],
    ) -> None:
        self._http = http
        self.server = server
        self._sign = sign

    async def get(self, path: str, *, signed: bool = False) -> tuple[int, Any]:
        """Status and decoded body."""
        headers = {}
        if signed:
            headers = self._sign(self.server, f"/trade-api/v2{path.partition('?')[0]}")
        async with self._http.get(self.server.rest_url + path, headers=headers) as response:
            assert response.headers["Content-Type"].startswith("application/json")
            return response.status, json.loads(await response.read())

    async def walk(self, path: str, name: str) -> list[Any]:
        """All rows over all pages."""
        rows: list[Any] = []
        cursor = ""
        for _ in range(100):
            joint = "&" if "?" in path else "?"
            status, body = await self.get(f"{path}{joint}cursor={cursor}")
            assert status == 200
            rows += body[name]
            cursor = body["cursor"]
            if not cursor:
                return rows
        raise AssertionError("the cursor does not end")


@pytest.fixture
async def rest(start: Any, http: aiohttp.ClientSession, sign: Any) -> Rest:
    server = await start(markets=60, paused=True)
    return Rest(http, server, sign)


async def test_markets_over_pages(rest: Rest) -> None:
    whole = await rest.walk("/markets?limit=1000", "markets")
    assert len(whole) == 64
    assert await rest.walk("/markets?limit=7", "markets") == whole
    assert len((await rest.get("/markets"))[1]["markets"]) == 64
    for market in whole:
        assert set(REQUIRED_OF_MARKET) <= set(market)
    optional = {key for market in whole for key in market} - set(REQUIRED_OF_MARKET)
    assert {"settlement_ts", "settlement_value_dollars", "mve_collection_ticker"} <= optional
    assert not any(value is None for market in whole for value in market.values())


async def test_market_object_agrees_with_the_book(rest: Rest) -> None:
    books = rest.server.books()
    for market in await rest.walk("/markets?status=open", "markets"):
        bids, asks = books[market["ticker"]]
        assert market["yes_bid_dollars"] == (f"{bids[-1][0] / 1e4:.4f}" if bids else "0.0000")
        assert market["yes_ask_dollars"] == (f"{asks[0][0] / 1e4:.4f}" if asks else "1.0000")
        assert market["price_ranges"][0]["start"] == "0.0000"
        assert market["price_ranges"][-1]["end"] == "1.0000"


async def test_market_filters(rest: Rest) -> None:
    every = await rest.walk("/markets", "markets")
    active = [m for m in every if m["status"] == "active"]
    event = active[0]["event_ticker"]
    combos = [m["ticker"] for m in every if m["ticker"].startswith("KXMVE")]

    async def tickers(query: str) -> list[str]:
        return [m["ticker"] for m in await rest.walk(f"/markets?{query}", "markets")]

    assert await tickers("status=open") == [m["ticker"] for m in active]
    assert len(await tickers("status=settled")) == 4
    assert await tickers("status=unopened") == []
    assert await tickers("status=paused") == []
    assert await tickers(f"event_ticker={event}") == [
        m["ticker"] for m in every if m["event_ticker"] == event
    ]
    assert await tickers("series_ticker=KXSIMBTC") == [
        m["ticker"] for m in every if m["ticker"].startswith("KXSIMBTC-")
    ]
    assert await tickers("mve_filter=only") == combos
    assert len(await tickers("mve_filter=exclude")) == len(every) - len(combos)
    wanted = [active[3]["ticker"], active[9]["ticker"]]
    assert await tickers(f"tickers={','.join(wanted)},KXNONE") == wanted
    assert await tickers("min_close_ts=99999999999") == []
    assert len(await tickers("min_settled_ts=1&max_settled_ts=99999999999")) == 4
    assert len(await tickers("min_created_ts=1")) == len(every)
    assert await tickers("min_updated_ts=99999999999&mve_filter=exclude") == []


@pytest.mark.parametrize(
    "path",
    [
        "/markets?limit=1001",
        "/markets?limit=0",
        "/events?limit=201",
        "/markets?status=bogus",
        "/markets?mve_filter=maybe",
        "/markets?status=open&min_close_ts=1",
        "/markets?status=settled&min_created_ts=1",
        "/markets?min_created_ts=1&max_close_ts=2",
        "/markets?min_updated_ts=1&status=open",
        "/events/multivariate?series_ticker=A&collection_ticker=B",
        "/markets/trades?limit=5000",
    ],
)
async def test_parameters_out_of_range_are_400_with_a_bare_message(rest: Rest, path: str) -> None:
    status, body = await rest.get(path)
    assert status == 400
    assert list(body) == ["msg"]


@pytest.mark.parametrize(
    "path",
    [
        "/markets?limit=many",
        "/markets?min_close_ts=today",
        "/events?with_nested_markets=perhaps",
        "/markets/trades?is_block_trade=2",
    ],
)
async def test_parameters_of_the_wrong_type_are_400_and_flat(rest: Rest, path: str) -> None:
    status, body = await rest.get(path)
    assert status == 400
    assert set(body) == {"code", "message", "details"}


@pytest.mark.parametrize("path", ["/markets/KXNO", "/events/KXNO", "/series/KXNO", "/nothing/here"])
async def test_what_does_not_exist_is_404_and_nested(rest: Rest, path: str) -> None:
    status, body = await rest.get(path)
    assert status == 404
    assert body["error"]["code"] == "not_found"


@pytest.mark.parametrize("cursor", ["garbage", "YXQ6", "%00", "YXQ6LTU=", "%C2%B2", "9" * 50])
async def test_a_garbage_cursor_starts_over(rest: Rest, cursor: str) -> None:
    first = await rest.get("/markets?limit=5")
    assert await rest.get(f"/markets?limit=5&cursor={cursor}") == first
    newest = await rest.get("/markets/trades?limit=5")
    assert newest[0] == 200
    assert await rest.get(f"/markets/trades?limit=5&cursor={cursor}") == newest


async def test_single_objects(rest: Rest) -> None:
    market = (await rest.get("/markets?limit=1&status=open"))[1]["markets"][0]
    assert (await rest.get(f"/markets/{market['ticker']}"))[1]["market"] == market
    event = (await rest.get(f"/events/{market['event_ticker']}?with_nested_markets=true"))[1][
        "event"
    ]
    assert market in event["markets"]
    plain = (await rest.get(f"/events/{market['event_ticker']}"))[1]
    assert "markets" not in plain["event"]
    assert market in plain["markets"]
    series = (await rest.get(f"/series/{event['series_ticker']}"))[1]["series"]
    assert series["ticker"] == event["series_ticker"]
    assert series in (await rest.get("/series"))[1]["series"]
    listed = (await rest.get(f"/series?category={series['category'].split()[0]}"))[1]["series"]
    assert all(row["category"] == series["category"] for row in listed)


async def test_events_leave_combos_out_and_multivariate_has_only_them(rest: Rest) -> None:
    events = await rest.walk("/events?limit=3", "events")
    assert not any(event["event_ticker"].startswith("KXMVE") for event in events)
    combos = await rest.walk("/events/multivariate", "events")
    assert combos
    assert all(event["event_ticker"].startswith("KXMVE") for event in combos)
    settled = await rest.walk("/events?status=settled", "events")
    assert [event["event_ticker"][:10] for event in settled] == ["KXSIMTEMP-"]
    by_name = await rest.walk(f"/events?tickers={events[1]['event_ticker']}", "events")
    assert by_name == [events[1]]
    collection = await rest.walk("/events/multivariate?collection_ticker=KXMVESIM-R", "events")
    assert collection == combos
    nested = await rest.walk("/events?series_ticker=KXSIMGAME&with_nested_markets=true", "events")
    assert nested[0]["series_ticker"] == "KXSIMGAME"
    assert len(nested[0]["markets"]) == 8


async def test_order_books(rest: Rest) -> None:
    """Bids of both sides, best last; the batch form takes repeated tickers."""
    books = rest.server.books()
    ticker = next(t for t, (bids, asks) in books.items() if len(bids) > 3 and len(asks) > 3)
    status, body = await rest.get(f"/markets/{ticker}/orderbook", signed=True)
    assert status == 200
    book = body["orderbook_fp"]
    assert [(round(float(p) * 1e4), round(float(q) * 100)) for p, q in book["yes_dollars"]] == list(
        books[ticker][0]
    )
    assert [
        (10_000 - round(float(p) * 1e4), round(float(q) * 100))
        for p, q in reversed(book["no_dollars"])
    ] == list(books[ticker][1])
    _, cut = await rest.get(f"/markets/{ticker}/orderbook?depth=2", signed=True)
    assert cut["orderbook_fp"]["yes_dollars"] == book["yes_dollars"][-2:]
    _, batch = await rest.get(f"/markets/orderbooks?tickers={ticker}&tickers=KXNO", signed=True)
    assert batch["orderbooks"][0] == {"ticker": ticker, "orderbook_fp": book}
    assert batch["orderbooks"][1]["orderbook_fp"] == {"yes_dollars": [], "no_dollars": []}
    assert (await rest.get(f"/markets/{ticker}/orderbook?depth=101", signed=True))[0] == 400
    assert (await rest.get("/markets/orderbooks", signed=True))[0] == 400


async def test_signatures_are_required_for_some_and_checked_whenever_present(
    rest: Rest, http: aiohttp.ClientSession, sign: Callable[..., dict[str, str]]
) -> None:
    assert (await rest.get("/account/limits"))[0] == 401
    assert (await rest.get("/markets/orderbooks?tickers=A"))[0] == 401
    assert (await rest.get("/account/limits", signed=True))[0] == 200
    for headers, details in (
        (sign(rest.server, "/trade-api/v2/series"), "INCORRECT_API_KEY_SIGNATURE"),
        (sign(rest.server, "/trade-api/v2/markets", key_id="nobody"), "NOT_FOUND"),
        (sign(rest.server, "/trade-api/v2/markets", skew_ms=-60_000), None),
    ):
        async with http.get(f"{rest.server.rest_url}/markets", headers=headers) as response:
            assert response.status == 401
            error = (await response.json())["error"]
            assert error.get("details") == details
            if details is None:
                assert error["code"] == "header_timestamp_expired"


async def test_rate_limit_of_signed_requests(
    start: Any, http: aiohttp.ClientSession, sign: Any
) -> None:
    """10 tokens a second: a bucket of 20, so the third request at once is refused; anonymous ones are not."""
    rest = Rest(http, await start(rest_tokens_per_second=10, paused=True), sign)
    headers = sign(rest.server, "/trade-api/v2/exchange/status")
    answers = []
    for _ in range(8):
        url = f"{rest.server.rest_url}/exchange/status"
        async with http.get(url, headers=headers) as response:
            answers.append((response.status, await response.json()))
    assert [status for status, _ in answers[:2]] == [200, 200]
    assert (429, {"error": "too many requests"}) in answers
    assert all([(await rest.get("/exchange/status"))[0] == 200 for _ in range(10)])


async def test_trades_are_paged_newest_first(
    start: Any, http: aiohttp.ClientSession, sign: Any
) -> None:
    server = await start(markets=20, rate=20_000)
    rest = Rest(http, server, sign)
    while server.stats().ticks < 60:
        await rest.get("/exchange/status")
    server.pause_flow()
    trades = await rest.walk("/markets/trades?limit=1000", "trades")
    assert len(trades) > 200
    assert await rest.walk("/markets/trades?limit=90", "trades") == trades
    times = [trade["created_time"][:23] for trade in trades]
    assert times == sorted(times, reverse=True)
    assert all(set(REQUIRED_OF_TRADE) <= set(trade) for trade in trades)
    ticker = trades[0]["ticker"]
    of_one = await rest.walk(f"/markets/trades?ticker={ticker}", "trades")
    assert of_one == [trade for trade in trades if trade["ticker"] == ticker]
    blocks = await rest.walk("/markets/trades?is_block_trade=true", "trades")
    assert blocks == [trade for trade in trades if trade["is_block_trade"]]
    assert blocks
    assert await rest.walk("/markets/trades?max_ts=1000000000", "trades") == []


async def test_exchange_endpoints(rest: Rest) -> None:
    _, status = await rest.get("/exchange/status")
    assert status["exchange_active"] is status["trading_active"] is True
    assert [s["exchange_index"] for s in status["exchange_index_statuses"]] == [0, 1, 2, 3]
    schedule = (await rest.get("/exchange/schedule"))[1]["schedule"]
    assert "thursday" in schedule["standard_hours"][0]
    assert schedule["maintenance_windows"][0]["start_datetime"].endswith("T08:00:00Z")
    _, cutoff = await rest.get("/historical/cutoff")
    assert {"market_settled_ts", "trades_created_ts", "orders_updated_ts"} <= set(cutoff)
    assert (await rest.get("/historical/markets"))[1] == {"markets": [], "cursor": ""}
    _, limits = await rest.get("/account/limits", signed=True)
    assert limits["read"] == {"refill_rate": 200, "bucket_capacity": 400}
    assert (await rest.get("/account/endpoint_costs", signed=True))[1]["default_cost"] == 10


async def test_a_new_market_is_404_for_a_moment(
    start: Any, http: aiohttp.ClientSession, sign: Any
) -> None:
    """As the exchange warns: right after `created` the market may not be found yet."""
    server = await start(markets=1, window_s=1, rate=0)
    rest = Rest(http, server, sign)
    seen: dict[str, list[int]] = {}
    while not any(404 in codes and codes[-1] == 200 for codes in seen.values()):
        assert server.stats().ticks < 1_000
        for market in await rest.walk("/markets?series_ticker=KXSIMWIN", "markets"):
            status, _ = await rest.get(f"/markets/{market['ticker']}")
            seen.setdefault(market["ticker"], []).append(status)
    assert all(codes == sorted(codes, reverse=True) for codes in seen.values())


def test_cursor_of_the_last_page_is_empty() -> None:
    rows = list(range(10))
    page, cursor = Query({"limit": "10"}).page(rows, 5, 100)
    assert (list(page), cursor) == (rows, "")
    page, cursor = Query({"limit": "4"}).page(rows, 5, 100)
    page, cursor = Query({"limit": "4", "cursor": cursor}).page(rows, 5, 100)
    assert list(page) == [4, 5, 6, 7]
    page, cursor = Query({"limit": "4", "cursor": cursor}).page(rows, 5, 100)
    assert (list(page), cursor) == ([8, 9], "")
