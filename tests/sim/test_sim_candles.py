"""Candlesticks and the historical tier of the simulated exchange, against what its own frames said."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tickerplant_kalshi_sim.candles import MINUTE_NS, Candles
from tickerplant_kalshi_sim.exchange import Exchange
from tickerplant_kalshi_sim.flow import FlowSettings
from tickerplant_kalshi_sim.lifecycle import LifecycleSettings
from tickerplant_kalshi_sim.server import SimulationServer

START_NS = 1_795_197_840_000_000_000
SECOND_NS = 1_000_000_000


def play(exchange: Exchange, seconds: int) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Lets time pass in steps of a second; (time, message) of the trade and ticker frames by market."""
    seen: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for second in range(1, seconds + 1):
        for frame in exchange.advance(START_NS + second * SECOND_NS):
            if frame.channel in ("trade", "ticker"):
                message = json.loads(b'{"x":0' + frame.body)["msg"]
                # An event on the very end of a minute belongs to it; any other is later than its milliseconds say.
                at_ns = message["ts_ms"] * 1_000_000
                at_ns += "time" not in message or "." in message["time"]
                row = (at_ns, {"channel": frame.channel} | message)
                seen.setdefault(message["market_ticker"], []).append(row)
    return seen


def test_candles_hold_what_the_frames_of_their_minute_said() -> None:
    exchange = Exchange(
        seed=5, market_count=6, start_ns=START_NS, flow=FlowSettings(rate=60, step_max_ns=SECOND_NS)
    )
    seen = play(exchange, 200)
    compared = 0
    for ticker, rows in seen.items():
        candles = list(
            exchange.catalogue.markets[ticker].candles.between(START_NS + 1, 2**63, MINUTE_NS)
        )
        for candle in candles:
            inside = [m for at, m in rows if candle.end_ns - MINUTE_NS < at <= candle.end_ns]
            trades = [m for m in inside if m["channel"] == "trade"]
            prices_e4 = [round(float(m["yes_price_dollars"]) * 10_000) for m in trades]
            sizes_e2 = [round(float(m["count_fp"]) * 100) for m in trades]
            assert candle.volume_e2 == sum(sizes_e2)
            if candle.traded is None:
                assert not trades
            else:
                assert candle.traded.open_e4 == prices_e4[0]
                assert candle.traded.close_e4 == prices_e4[-1]
                assert candle.traded.high_e4 == max(prices_e4)
                assert candle.traded.low_e4 == min(prices_e4)
                weighted = sum(p * s for p, s in zip(prices_e4, sizes_e2, strict=True))
                assert candle.mean_e4 == weighted // sum(sizes_e2)
            last = [m for m in inside if m["channel"] == "ticker"][-1]
            assert candle.bid.close_e4 == round(float(last["yes_bid_dollars"]) * 10_000)
            assert candle.ask.close_e4 == round(float(last["yes_ask_dollars"]) * 10_000)
            compared += 1
    assert compared > 12


def test_longer_periods_are_the_minutes_put_together_and_leave_them_as_they_are() -> None:
    candles = Candles()
    for minute in range(1, 130):
        candles.quote(minute * MINUTE_NS, 4_000 + minute, 6_000 - minute, minute)
        candles.trade(minute * MINUTE_NS, 5_000 + minute % 7, 100, (4_000, 6_000))
    before = list(candles.between(0, 2**63, MINUTE_NS))
    hours = list(candles.between(0, 2**63, 60 * MINUTE_NS))
    assert [hour.end_ns // MINUTE_NS for hour in hours] == [60, 120, 180]
    assert sum(hour.volume_e2 for hour in hours) == 129 * 100
    assert (hours[0].bid.open_e4, hours[0].bid.close_e4, hours[1].bid.high_e4) == (
        4_001,
        4_060,
        4_120,
    )
    assert hours[1].open_interest_e2 == 120
    assert list(candles.between(0, 2**63, MINUTE_NS)) == before
    earlier = candles.before(100 * MINUTE_NS, MINUTE_NS)
    assert earlier is not None
    assert earlier.end_ns == 99 * MINUTE_NS


@pytest.fixture
async def server(start: Callable[..., Awaitable[SimulationServer]]) -> SimulationServer:
    """A busy exchange of few markets."""
    return await start(markets=8, rate=2_000)


async def ask(http: aiohttp.ClientSession, server: SimulationServer, path: str) -> tuple[int, Any]:
    """Status and body."""
    async with http.get(f"{server.rest_url}{path}") as reply:
        return reply.status, await reply.json()


async def test_candlestick_endpoints_answer_alike(
    server: SimulationServer,
    http: aiohttp.ClientSession,
    until: Callable[[Callable[[], Any]], Awaitable[None]],
) -> None:
    catalogue = server._venue.catalogue
    await until(lambda: any(market.volume_e2 for market in catalogue.markets.values()))
    market = next(market for market in catalogue.markets.values() if market.volume_e2)
    window = "start_ts=0&end_ts=9000000000&period_interval=1440"
    event, series = market.event.ticker, market.event.series.ticker
    status, one = await ask(
        http, server, f"/series/{series}/markets/{market.ticker}/candlesticks?{window}"
    )
    assert status == 200
    assert one["ticker"] == market.ticker
    candle = one["candlesticks"][0]
    assert set(candle) >= {"end_period_ts", "yes_bid", "yes_ask", "volume_fp", "open_interest_fp"}
    assert set(candle["yes_bid"]) == {
        "open_dollars",
        "low_dollars",
        "high_dollars",
        "close_dollars",
    }
    status, several = await ask(
        http, server, f"/markets/candlesticks?market_tickers={market.ticker},NONE&{window}"
    )
    assert status == 200
    assert [row["market_ticker"] for row in several["markets"]] == [market.ticker]
    status, of_event = await ask(
        http, server, f"/series/{series}/events/{event}/candlesticks?{window}"
    )
    assert status == 200
    assert of_event["market_tickers"] == market.event.market_tickers
    assert len(of_event["market_candlesticks"]) == len(of_event["market_tickers"])
    assert of_event["adjusted_end_ts"] == 9_000_000_000


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("start_ts=0&end_ts=1", 400),
        ("start_ts=0&end_ts=1&period_interval=7", 400),
        ("start_ts=2&end_ts=1&period_interval=1", 400),
        ("start_ts=x&end_ts=1&period_interval=1", 400),
        ("start_ts=0&end_ts=1&period_interval=1", 200),
    ],
)
async def test_a_window_that_is_none_is_refused(
    server: SimulationServer, http: aiohttp.ClientSession, query: str, status: int
) -> None:
    market = next(iter(server._venue.catalogue.markets.values()))
    path = f"/series/{market.event.series.ticker}/markets/{market.ticker}/candlesticks?{query}"
    assert (await ask(http, server, path))[0] == status


async def test_unknown_names_are_not_found(
    server: SimulationServer, http: aiohttp.ClientSession
) -> None:
    window = "start_ts=0&end_ts=1&period_interval=1"
    for path in (
        f"/series/NONE/markets/NONE/candlesticks?{window}",
        f"/series/NONE/events/NONE/candlesticks?{window}",
        "/historical/markets/NONE",
        f"/historical/markets/NONE/candlesticks?{window}",
    ):
        assert (await ask(http, server, path))[0] == 404


async def test_a_market_that_leaves_is_in_the_historical_tier_with_its_candles(
    server: SimulationServer,
    http: aiohttp.ClientSession,
    until: Callable[[Callable[[], Any]], Awaitable[None]],
) -> None:
    catalogue = server._venue.catalogue
    await until(lambda: any(market.volume_e2 for market in catalogue.markets.values()))
    market = next(market for market in catalogue.markets.values() if market.volume_e2)
    market.settled_ns = server._venue.now_ns
    market.status = "closed"
    catalogue.remove_market(market)
    assert (await ask(http, server, f"/markets/{market.ticker}"))[0] == 404
    status, listed = await ask(http, server, f"/historical/markets?tickers={market.ticker}")
    assert (status, [row["ticker"] for row in listed["markets"]]) == (200, [market.ticker])
    status, _ = await ask(http, server, "/historical/markets?tickers=A&event_ticker=B")
    assert status == 400
    window = "start_ts=0&end_ts=9000000000&period_interval=60"
    _, reply = await ask(http, server, f"/historical/markets/{market.ticker}/candlesticks?{window}")
    candle = reply["candlesticks"][0]
    assert set(candle["yes_bid"]) == {"open", "low", "high", "close"}
    assert {"volume", "open_interest"} <= set(candle)
    _, cutoff = await ask(http, server, "/historical/cutoff")
    assert cutoff["market_settled_ts"] > cutoff["trades_created_ts"]


def test_the_lifecycle_moves_settled_markets_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickerplant_kalshi_sim.lifecycle.SIM_SETTLED_MARKETS_KEPT", 1)
    exchange = Exchange(
        seed=3,
        market_count=30,
        start_ns=START_NS,
        flow=FlowSettings(rate=5),
        lifecycle=LifecycleSettings(),
    )
    for minute in range(1, 24 * 60):
        exchange.advance(START_NS + minute * MINUTE_NS)
        if exchange.catalogue.archived:
            break
    assert exchange.catalogue.archived
    assert not set(exchange.catalogue.archived) & set(exchange.catalogue.markets)
