"""Discovery, look-up and refresh against a real REST server, and once against the simulated exchange."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tickerplant.core.messages import MarketPhase
from tickerplant.errors import ConfigurationError, CredentialsError, ExchangeUnavailableError
from tickerplant.limits import LOOK_UP_ATTEMPTS, REFRESH_OVERLAP_NS, REFRESH_PAGE_ITEMS
from tickerplant_kalshi.auth import load_signer
from tickerplant_kalshi.directory import (
    LookUpEvent,
    LookUpMarket,
    MarketDirectory,
    Selection,
    Subscribe,
)
from tickerplant_kalshi.discovery import discover, look_up, refresh
from tickerplant_kalshi.rest import RestClient

SECOND_NS = 1_000_000_000
NOW_NS = 1_795_255_200 * SECOND_NS


@pytest.fixture
async def rest(rest_exchange: Any) -> AsyncIterator[RestClient]:
    async with RestClient(rest_exchange.base_url, None, backoff_base_ns=1) as client:
        yield client


def queries(exchange: Any) -> list[str]:
    return [request.path_qs.removeprefix("/trade-api/v2") for request in exchange.requests]


async def test_listed_tickers_in_any_state_with_their_series(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    rest_exchange.add_market("KXA-1-T2", status="finalized", result="yes")
    rest_exchange.add_market("KXB-1-T1")
    chosen = ("KXA-1-T2", "KXA-1-T1", "KXA-1-T1", "KXNONE-1")
    found = await discover(rest, Selection(tickers=chosen), NOW_NS)
    assert [(r.ticker, r.series_ticker, r.phase, r.read_ns) for r in found.records] == [
        ("KXA-1-T1", "KXA", MarketPhase.ACTIVE, NOW_NS),
        ("KXA-1-T2", "KXA", MarketPhase.SETTLED, NOW_NS),
    ]
    assert found.missing_tickers == ("KXNONE-1",)
    assert found.warnings == ("market KXNONE-1 does not exist on the exchange and is left out",)


async def test_a_series_gives_what_lives_or_will(rest_exchange: Any, rest: RestClient) -> None:
    for number, status in enumerate(
        ("active", "initialized", "inactive", "closed", "determined", "finalized")
    ):
        rest_exchange.add_market(f"KXA-{number}-T", status=status)
    rest_exchange.add_market("KXB-1-T1", status="finalized")
    selection = Selection(series=("KXA", "KXB", "KXC"))
    found = await discover(rest, selection, NOW_NS)
    assert {record.ticker for record in found.records} == {"KXA-0-T", "KXA-1-T", "KXA-2-T"}
    assert {record.series_ticker for record in found.records} == {"KXA"}
    assert found.warnings == (
        "series KXC does not exist on the exchange and is left out",
        "series KXB has no market that is or will be open",
    )
    assert not any("/events" in query for query in queries(rest_exchange))


async def test_an_event_gives_what_is_not_over(rest_exchange: Any, rest: RestClient) -> None:
    rest_exchange.add_market("KXA-1-T1")
    rest_exchange.add_market("KXA-1-T2", status="closed")
    rest_exchange.add_market("KXA-1-T3", status="determined")
    rest_exchange.add_market("KXA-2-T1", status="finalized")
    found = await discover(rest, Selection(events=("KXA-1", "KXA-2", "KXA-3")), NOW_NS)
    assert [record.ticker for record in found.records] == ["KXA-1-T1", "KXA-1-T2"]
    assert {record.series_ticker for record in found.records} == {"KXA"}
    assert found.warnings == (
        "event KXA-3 does not exist on the exchange and is left out",
        "event KXA-2 has no market that is or will be open",
    )


@pytest.mark.parametrize("include_combos", [False, True])
async def test_everything_open(include_combos: bool, rest_exchange: Any, rest: RestClient) -> None:
    for number in range(1_100):
        rest_exchange.add_market(f"KXA-{number % 300}-T{number}")
    rest_exchange.add_market("KXMVE-1-T1", mve_collection_ticker="KXMVE-R")
    rest_exchange.add_market("KXB-1-T1", status="finalized")
    selection = Selection(all_open=True, include_combos=include_combos, tickers=("NONE",))
    found = await discover(rest, selection, NOW_NS)
    assert len(found.records) == 1_100 + include_combos
    assert {r.series_ticker for r in found.records if not r.combo} == {"KXA"}
    assert [r.series_ticker for r in found.records if r.combo] == [""] * include_combos
    assert found.missing_tickers == ("NONE",)


async def test_nothing_that_was_chosen_exists(rest_exchange: Any, rest: RestClient) -> None:
    rest_exchange.add_market("KXA-1-T1")
    tickers = tuple(f"NONE-{number}" for number in range(14))
    with pytest.raises(ConfigurationError) as caught:
        await discover(rest, Selection(tickers=tickers, series=("KXNONE",)), NOW_NS)
    text = str(caught.value)
    assert "market NONE-0, market NONE-1" in text
    assert "and 5 more" in text
    assert "exchange.rest_url" in text
    assert "\n" not in text
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigurationError, match=r"no market is chosen: set one of markets\."):
        await discover(rest, Selection(), NOW_NS)


async def test_a_selection_that_exists_but_is_over_is_no_error(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1", status="finalized")
    found = await discover(rest, Selection(series=("KXA",), tickers=("NONE",)), NOW_NS)
    assert found.records == ()
    assert len(found.warnings) == 2


async def test_look_up_reads_in_batches(rest_exchange: Any, rest: RestClient) -> None:
    tickers = [f"KXA-{number}-T" for number in range(150)]
    for ticker in tickers:
        rest_exchange.add_market(ticker)
    asked = [LookUpMarket(ticker) for ticker in tickers] * 2
    events = [LookUpEvent("KXA-3"), LookUpEvent("KXA-4")]
    answer = await look_up(rest, [*asked, *events], NOW_NS)
    assert [record.ticker for record in answer.records] == tickers
    assert answer.records[0].read_ns == NOW_NS
    assert answer.events == (("KXA-3", "KXA"), ("KXA-4", "KXA"))
    assert answer.missing_tickers == answer.missing_events == ()
    assert rest.requests == 3
    assert (await look_up(rest, [], NOW_NS)).records == ()
    assert rest.requests == 3


async def test_look_up_waits_for_what_the_exchange_does_not_know_yet(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    rest_exchange.hidden_reads = 7
    asked = [LookUpMarket("KXA-1-T1"), LookUpEvent("KXA-1")]
    answer = await look_up(rest, asked, NOW_NS, backoff_base_ns=1)
    assert [record.ticker for record in answer.records] == ["KXA-1-T1"]
    assert answer.events == (("KXA-1", "KXA"),)
    assert rest.requests > 7


async def test_look_up_gives_up_after_bounded_tries(rest_exchange: Any, rest: RestClient) -> None:
    rest_exchange.add_market("KXA-1-T1")
    asked = [LookUpMarket("NONE"), LookUpMarket("KXA-1-T1"), LookUpEvent("NONE-E")]
    answer = await look_up(rest, asked, NOW_NS, random_unit=lambda: 0.5, backoff_base_ns=1)
    assert [record.ticker for record in answer.records] == ["KXA-1-T1"]
    assert (answer.missing_tickers, answer.missing_events) == (("NONE",), ("NONE-E",))
    assert rest.requests == 3 * LOOK_UP_ATTEMPTS


async def test_combo_events_are_looked_up_one_by_one(rest_exchange: Any, rest: RestClient) -> None:
    rest_exchange.add_market("KXMVEA-1-T1")
    answer = await look_up(rest, [LookUpEvent("KXMVEA-1")], NOW_NS)
    assert answer.events == (("KXMVEA-1", "KXMVEA"),)
    assert [query.partition("?")[0] for query in queries(rest_exchange)] == [
        "/events",
        "/events/KXMVEA-1",
    ]


async def test_refresh_asks_for_what_changed(rest_exchange: Any, rest: RestClient) -> None:
    for number in range(REFRESH_PAGE_ITEMS + 5):
        rest_exchange.add_market(f"KXA-1-T{number}")
    rest_exchange.add_market("KXB-1-T1")

    async def parts_of(selection: Selection) -> list[list[str]]:
        walk = refresh(rest, selection, NOW_NS, NOW_NS + 1)
        return [[record.ticker for record in part] async for part in walk]

    parts = await parts_of(Selection(series=("KXA", "KXB")))
    assert [len(part) for part in parts] == [REFRESH_PAGE_ITEMS, 5, 1]
    since_s = (NOW_NS - REFRESH_OVERLAP_NS) // SECOND_NS
    assert f"min_updated_ts={since_s}" in queries(rest_exchange)[0]
    assert "mve_filter=exclude" in queries(rest_exchange)[0]
    assert await parts_of(Selection(tickers=("KXB-1-T1", "NONE"))) == [["KXB-1-T1"]]
    assert await parts_of(Selection(events=("KXB-1",))) == [["KXB-1-T1"]]
    everything = await parts_of(Selection(all_open=True, include_combos=True))
    assert sum(len(part) for part in everything) == REFRESH_PAGE_ITEMS + 6
    assert "mve_filter" not in queries(rest_exchange)[-1]


async def test_errors_of_the_client_come_through(rest_exchange: Any, rest: RestClient) -> None:
    for _ in range(12):
        rest_exchange.answer_next(500)
    with pytest.raises(ExchangeUnavailableError):
        await discover(rest, Selection(all_open=True), NOW_NS)
    with pytest.raises(ExchangeUnavailableError):
        await look_up(rest, [LookUpMarket("A")], NOW_NS)


@pytest.mark.parametrize("key_type", ["rsa", "ed25519"])
async def test_against_the_simulated_exchange(
    key_type: Any, tmp_path: Path, ed25519_key: Any, pem_of: Callable[..., bytes]
) -> None:
    """Signatures of both kinds are verified, and what is discovered is what the exchange lists as open."""
    from tickerplant_kalshi_sim.config import SimulationConfig
    from tickerplant_kalshi_sim.server import SimulationServer

    config = SimulationConfig(
        websocket_port=0,
        rest_port=0,
        directory=tmp_path,
        key_type=key_type,
        markets=40,
        paused=True,
    )
    async with SimulationServer(config) as server:
        signer = load_signer(server.key_id, server.key_path)
        async with RestClient(server.rest_url, signer) as rest:
            assert rest.requests_per_second == 20
            now_ns = time.time_ns()
            combos = Selection(all_open=True, include_combos=True)
            found = await discover(rest, combos, now_ns)
            assert len(found.records) >= 40
            assert all(record.price_bands for record in found.records)
            assert not any(record.refused for record in found.records)
            directory = MarketDirectory(combos)
            directory.apply_markets(found.records, now_ns)
            chosen = [c.ticker for c in directory.take_changes() if isinstance(c, Subscribe)]
            assert chosen
            asked = [LookUpMarket(chosen[0]), LookUpEvent(found.records[0].event_ticker)]
            answer = await look_up(rest, asked, now_ns)
            assert answer.records[0].ticker == chosen[0]
            series = answer.events[0][1]
            by_series = await discover(rest, Selection(series=(series,)), now_ns)
            expected = {
                record.ticker
                for record in found.records
                if record.event_ticker.partition("-")[0] == series
            }
            assert {record.ticker for record in by_series.records} == expected
            assert (await rest.exchange_status()).trading_active
            assert [book.ticker async for book in rest.orderbooks(chosen[:5])] == chosen[:5]
            assert rest.clock_offset_ns is not None
            assert abs(rest.clock_offset_ns) < 2 * SECOND_NS
        wrong = load_signer(server.key_id, pem=pem_of(ed25519_key))
        with pytest.raises(CredentialsError, match="refuses the signature"):
            await RestClient(server.rest_url, wrong).__aenter__()
        unknown = load_signer("somebody-else", pem=pem_of(ed25519_key))
        with pytest.raises(CredentialsError, match="does not know key somebody-else"):
            await RestClient(server.rest_url, unknown).__aenter__()
