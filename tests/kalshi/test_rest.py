"""The REST client against a real server on loopback: paging, pacing, retries, bounds, and every refusal."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from tickerplant.errors import (
    ClockSkewError,
    ConfigurationError,
    CredentialsError,
    ExchangeError,
    ExchangeUnavailableError,
    NotFoundError,
)
from tickerplant.limits import REST_ATTEMPTS
from tickerplant_kalshi import rest as rest_module
from tickerplant_kalshi.auth import Signer, load_signer
from tickerplant_kalshi.rest import RestClient, ticker_batches

KEY_ID = "0a1b2c3d-1111-2222-3333-444455556666"
MILLISECOND_NS = 1_000_000
Connect = Callable[..., RestClient]


@pytest.fixture
def signer(ed25519_key: Any, pem_of: Callable[..., bytes]) -> Signer:
    return load_signer(KEY_ID, pem=pem_of(ed25519_key))


@pytest.fixture
def connect(rest_exchange: Any) -> Connect:
    """A client of the test's exchange that waits milliseconds where the real one waits seconds."""

    def client(signer: Signer | None = None, **options: Any) -> RestClient:
        quick = {"backoff_base_ns": MILLISECOND_NS, "backoff_cap_ns": 4 * MILLISECOND_NS}
        return RestClient(rest_exchange.base_url, signer, **{**quick, **options})

    return client


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def until(condition: Callable[[], bool]) -> None:
    """Poll, for at most five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is polled belongs to a server without events
            await asyncio.sleep(0.001)


async def test_walks_every_page(rest_exchange: Any, connect: Connect) -> None:
    for number in range(250):
        rest_exchange.add_market(f"KXDEMO-26NOV21-T{number}")
    async with connect() as rest:
        markets = await collected(rest.markets(page_items=100))
        assert [m.ticker for m in markets] == [f"KXDEMO-26NOV21-T{n}" for n in range(250)]
        assert [r.query.get("cursor") for r in rest_exchange.requests] == [None, "100", "200"]
        assert await collected(rest.trades()) == []


async def test_walks_trades(rest_exchange: Any, connect: Connect) -> None:
    rest_exchange.trades = [
        {
            "trade_id": str(number),
            "ticker": "KXA-1-T1",
            "count_fp": "4.25",
            "yes_price_dollars": "0.3500",
            "no_price_dollars": "0.6500",
            "created_time": "2026-11-20T18:04:12.008Z",
            "taker_outcome_side": "yes",
            "is_block_trade": False,
        }
        for number in range(7)
    ]
    async with connect() as rest:
        walk = rest.trades(ticker="KXA-1-T1", min_ts=5, max_ts=9, page_items=3)
        assert [trade.trade_id async for trade in walk] == [str(number) for number in range(7)]
        assert rest_exchange.requests[-1].query_string == (
            "limit=3&ticker=KXA-1-T1&min_ts=5&max_ts=9&cursor=6"
        )


async def test_filters_reach_the_exchange(rest_exchange: Any, connect: Connect) -> None:
    rest_exchange.add_market("KXA-1-T1")
    rest_exchange.add_market("KXA-1-T2", status="initialized")
    rest_exchange.add_market("KXB-1-T1")
    async with connect() as rest:
        listed = rest.markets(series_ticker="KXA", status="unopened", mve_filter="exclude")
        assert [market.ticker for market in await collected(listed)] == ["KXA-1-T2"]
        assert dict(rest_exchange.requests[-1].query) == {
            "limit": "1000",
            "series_ticker": "KXA",
            "status": "unopened",
            "mve_filter": "exclude",
        }
        assert [event.series_ticker for event in await collected(rest.events())] == ["KXA", "KXB"]
        assert [one.ticker for one in await collected(rest.series())] == ["KXA", "KXB"]
        assert (await rest.market("KXB-1-T1")).event_ticker == "KXB-1"
        assert (await rest.event("KXB-1")).series_ticker == "KXB"
        assert (await rest.one_series("KXB")).tags is None
        assert (await rest.exchange_status()).trading_active


async def test_many_tickers_are_asked_in_several_requests(
    rest_exchange: Any, connect: Connect
) -> None:
    tickers = [f"KXDEMO-26NOV21-T{number}" for number in range(230)]
    for ticker in tickers:
        rest_exchange.add_market(ticker)
    async with connect() as rest:
        found = [market.ticker async for market in rest.markets(tickers=tickers)]
        assert found == tickers
        assert len(rest_exchange.requests) == 3
        books = await collected(rest.orderbooks(tickers))
        assert [book.ticker for book in books] == tickers
        assert books[0].levels.yes_dollars == (("0.3100", "120.00"),)
        assert books[0].levels.no_dollars is None
        assert books[-1].levels.yes_dollars is None


def test_ticker_batches_fit_a_query_string() -> None:
    batches = ticker_batches(["T" * 200] * 45 + ["é" * 50] * 20)
    assert sum(len(batch) for batch in batches) == 65
    assert all(sum(len(t.encode()) for t in batch) <= 4_000 for batch in batches)
    assert ticker_batches([]) == []


@pytest.mark.parametrize("key", ["rsa_key", "ed25519_key"])
async def test_signed_requests_are_verified_by_the_server(
    key: str,
    rest_exchange: Any,
    connect: Connect,
    pem_of: Callable[..., bytes],
    request: pytest.FixtureRequest,
) -> None:
    private_key = request.getfixturevalue(key)
    rest_exchange.public_keys[KEY_ID] = private_key.public_key()
    rest_exchange.limits = {
        "usage_tier": "basic",
        "read": {"refill_rate": 300, "bucket_capacity": 900},
        "write": {"refill_rate": 100, "bucket_capacity": 200},
    }
    rest_exchange.add_market("KXA-1-T1")
    async with connect(load_signer(KEY_ID, pem=pem_of(private_key))) as rest:
        assert rest.requests_per_second == 30
        assert len(await collected(rest.markets(tickers=["KXA-1-T1", "KXA-1-T2"]))) == 1


async def test_default_pace_where_the_account_limits_are_not_told(
    rest_exchange: Any, connect: Connect, signer: Signer
) -> None:
    async with connect(signer) as rest:
        assert rest.requests_per_second == 15
    assert [request.path for request in rest_exchange.requests] == ["/trade-api/v2/account/limits"]


async def test_pace_holds_back_what_exceeds_the_bucket(
    rest_exchange: Any, connect: Connect, signer: Signer
) -> None:
    rest_exchange.limits = {
        "usage_tier": "x",
        "read": {"refill_rate": 200, "bucket_capacity": 50.0},
    }
    async with connect(signer) as rest:
        started = time.monotonic()
        await asyncio.gather(*(rest.exchange_status() for _ in range(9)))
        assert time.monotonic() - started >= 0.19


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408])
async def test_transient_failures_are_tried_again(
    status: int, rest_exchange: Any, connect: Connect
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    body = b'{"error":"too many requests"}'
    rest_exchange.answer_next(status, body)
    rest_exchange.answer_next(status, body)
    async with connect() as rest:
        rest._bucket = rest_module.TokenBucket(100_000, 100)  # a drained one refills at once
        assert (await rest.market("KXA-1-T1")).ticker == "KXA-1-T1"
        assert (rest.requests, rest.retries) == (3, 2)
        assert rest.throttled == (2 if status == 429 else 0)


async def test_a_failure_that_stays_ends_as_unavailable_after_bounded_tries(
    rest_exchange: Any, connect: Connect
) -> None:
    for _ in range(REST_ATTEMPTS + 3):
        rest_exchange.answer_next(503, b'{"code":"exchange_paused","message":"back at five"}')
    async with connect() as rest:
        with pytest.raises(ExchangeUnavailableError) as caught:
            await collected(rest.markets())
        assert rest.requests == REST_ATTEMPTS
    text = str(caught.value)
    assert "GET /markets failed 6 times, last: status 503" in text
    assert "exchange_paused: back at five" in text
    assert "try again later" in text
    assert caught.value.exit_code == 75


async def test_exchange_status_is_read_also_while_the_exchange_is_paused(
    rest_exchange: Any, connect: Connect
) -> None:
    rest_exchange.answer_next(502, b"<html>bad gateway</html>")
    rest_exchange.answer_next(503, b"<html>not yet the status</html>")
    paused = (
        b'{"exchange_active":false,"trading_active":false,'
        b'"exchange_estimated_resume_time":"2026-11-26T10:00:00Z","exchange_index_statuses":null}'
    )
    rest_exchange.answer_next(503, paused)
    async with connect() as rest:
        status = await rest.exchange_status()
        assert not status.exchange_active
        assert status.exchange_estimated_resume_time == "2026-11-26T10:00:00Z"
        assert rest.requests == 3


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/trade-api/v2"
        async with RestClient(url, None, backoff_base_ns=1, backoff_cap_ns=2) as rest:
            with pytest.raises(ExchangeUnavailableError, match="no answer") as caught:
                await rest.exchange_status()
    assert "\n" not in str(caught.value)


@asynccontextmanager
async def raw_server(answers: list[bytes]) -> AsyncIterator[str]:
    """A server that gives each connection the next bytes and hangs up when the client does; yields its URL."""
    left = iter(answers)
    served: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        answer = next(left)
        if answer:
            writer.write(answer)
            await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        await asyncio.gather(*(task for task in served if task is not None))


def raw_answer(status: str, body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status.encode(), *headers, length, b"", body])


async def test_a_server_that_hangs_up_or_stalls_is_tried_again() -> None:
    """First connection: closed after the request. Second: half an answer, then silence. Third: a whole one."""
    whole = raw_answer("200 OK", b'{"exchange_active":true,"trading_active":true}')
    quick = {"timeout_s": 0.3, "backoff_base_ns": 1, "backoff_cap_ns": 2}
    async with raw_server([b"", whole[:-10], whole]) as url, RestClient(url, None, **quick) as rest:
        assert (await rest.exchange_status()).exchange_active
        # aiohttp itself sends once more on a connection that was closed at once.
        assert rest.retries in (1, 2)


def nested(code: str, details: str = "") -> bytes:
    return f'{{"error":{{"code":"{code}","message":"m","details":"{details}"}}}}'.encode()


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (
            401,
            nested("authentication_error", "INCORRECT_API_KEY_SIGNATURE"),
            CredentialsError,
            ["refuses the signature of key " + KEY_ID, "exchange.key_path"],
        ),
        (
            401,
            nested("authentication_error", "NOT_FOUND"),
            CredentialsError,
            ["does not know key " + KEY_ID, "production and demo", "exchange.rest_url"],
        ),
        (
            401,
            nested("signature_is_missing_from_headers"),
            CredentialsError,
            ["needs an API key", "exchange.key_id"],
        ),
        (401, nested("user_not_found:_0a1b"), CredentialsError, ["does not know key"]),
        (403, nested("forbidden"), CredentialsError, ["refuses key", "status 403", "scopes"]),
        (404, nested("not_found"), NotFoundError, ["GET /exchange/status", "not_found"]),
        (400, b'{"msg":"limit too large"}', ExchangeError, ["status 400", "limit too large"]),
        (
            400,
            b'{"code":"bad_request","message":"cannot decode","details":"x"}',
            ExchangeError,
            ["bad_request: cannot decode: x"],
        ),
        (410, b"", ExchangeError, ["status 410", "no explanation"]),
        (410, b"[1]", ExchangeError, ["no explanation"]),
        (410, b"\xff\x00gone\n", ExchangeError, ["status 410", "gone"]),
        (410, b"[" * 100_000, ExchangeError, ["status 410"]),
        (302, b"", ExchangeError, ["redirected elsewhere", "exchange.rest_url"]),
    ],
)
async def test_refusals_are_typed_one_line_and_not_repeated(
    status: int,
    body: bytes,
    error: type[ExchangeError],
    words: list[str],
    rest_exchange: Any,
    connect: Connect,
    signer: Signer,
) -> None:
    rest_exchange.answer_next(status, body, Location="http://127.0.0.1:1/elsewhere")
    async with connect(signer, read_account_limits=False) as rest:
        with pytest.raises(error) as caught:
            await rest.exchange_status()
        assert rest.requests == 1
    text = str(caught.value)
    assert type(caught.value) is error
    assert all(word in text for word in words), text
    assert text.isprintable()
    assert len(text) < 500


async def test_unsigned_request_that_needs_a_key_says_so(
    rest_exchange: Any, connect: Connect
) -> None:
    rest_exchange.answer_next(401, nested("authentication_error", "NOT_FOUND"))
    async with connect() as rest:
        with pytest.raises(CredentialsError, match="needs an API key"):
            await rest.account_limits()


@pytest.mark.parametrize(
    ("behind_s", "words"), [(31, "s behind the exchange's"), (-95, "s ahead of the exchange's")]
)
async def test_clock_skew_is_measured_and_named(
    behind_s: int, words: str, rest_exchange: Any, connect: Connect, signer: Signer
) -> None:
    rest_exchange.date_s = int(time.time()) + behind_s
    rest_exchange.answer_next(401, nested("header_timestamp_expired"))
    async with connect(signer, read_account_limits=False) as rest:
        with pytest.raises(ClockSkewError, match="synchronise it") as caught:
            await rest.exchange_status()
        assert rest.requests == 1
        assert rest.clock_offset_ns is not None
        assert abs(rest.clock_offset_ns + behind_s * 10**9) < 2 * 10**9
    assert words in str(caught.value)
    measured = float(str(caught.value).split("about ")[1].split(" s ")[0])
    assert abs(measured - abs(behind_s)) < 2
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("date", [b"yesterday", b"Mon, 01 Jan 99999 00:00:00 GMT", b""])
async def test_clock_skew_without_a_usable_date(date: bytes) -> None:
    body = nested("header_timestamp_expired")
    answer = raw_answer("401 Unauthorized", body, b"Date: " + date)
    async with raw_server([answer]) as url, RestClient(url, None) as rest:
        with pytest.raises(ClockSkewError, match="does not tell"):
            await rest.exchange_status()
        assert rest.clock_offset_ns is None


async def test_a_signature_that_expired_on_the_way_is_made_anew(
    rest_exchange: Any, connect: Connect, signer: Signer
) -> None:
    """The clocks agree, so the request was slow; a fresh signature is worth a try."""
    rest_exchange.answer_next(401, nested("header_timestamp_expired"))
    async with connect(signer, read_account_limits=False) as rest:
        assert (await rest.exchange_status()).exchange_active
        assert rest.retries == 1
    first, second = (r.headers["KALSHI-ACCESS-TIMESTAMP"] for r in rest_exchange.requests)
    assert abs(int(second) - time.time() * 1000) < 5_000
    assert int(first) <= int(second)


async def test_wrong_credentials_at_the_start_close_the_client(
    rest_exchange: Any, connect: Connect, signer: Signer, rsa_key: Any
) -> None:
    rest_exchange.public_keys[KEY_ID] = rsa_key.public_key()
    rest_exchange.public_keys["another"] = rsa_key.public_key()
    rest_exchange.answer_next(401, nested("authentication_error", "INCORRECT_API_KEY_SIGNATURE"))
    client = connect(signer)
    with pytest.raises(CredentialsError):
        await client.__aenter__()
    assert client._session is not None
    assert client._session.closed


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"market":{"ticker":"A"}}', "missing required field `event_ticker` - at `$.market`"),
        (b'{"markets":[]}', "missing required field `market`"),
        (b'{"market":{"ticker":null}}', "Expected `str`, got `null` - at `$.market.ticker`"),
        (b"<html>", "does not answer in JSON"),
        (b"", "does not answer in JSON"),
        (b'{"market":{"ticker":"\xff"}}', "does not answer in JSON"),
        (b'{"unknown":' + b"[" * 100_000, "does not answer in JSON"),
    ],
)
async def test_an_unknown_format_is_loud(
    body: bytes, words: str, rest_exchange: Any, connect: Connect
) -> None:
    rest_exchange.answer_next(200, body)
    async with connect() as rest:
        with pytest.raises(ExchangeError) as caught:
            await rest.market("KXA-1-T1")
    assert words in str(caught.value)
    assert "GET /markets/KXA-1-T1" in str(caught.value)


async def test_open_enumerations_and_null_arrays_are_taken(
    rest_exchange: Any, connect: Connect
) -> None:
    rest_exchange.add_market(
        "KXA-1-T1",
        status="hibernating",
        price_level_structure="new_name",
        price_ranges=None,
        floor_strike=58.5,
        strike_type="brand_new",
        some_new_key={"a": [1]},
    )
    async with connect() as rest:
        market = await rest.market("KXA-1-T1")
        assert (market.status, market.price_ranges) == ("hibernating", None)
        assert await collected(rest.markets(tickers=["none"])) == []


async def test_a_cursor_that_repeats_is_an_error(rest_exchange: Any, connect: Connect) -> None:
    for cursor in ("a", "b", "a", "b"):
        rest_exchange.answer_next(200, b'{"markets":null,"cursor":"%s"}' % cursor.encode())
    async with connect() as rest:
        with pytest.raises(ExchangeError, match="repeats a page cursor"):
            await collected(rest.markets())
        assert rest.requests == 3


async def test_pages_are_bounded(
    rest_exchange: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_module, "REST_PAGES_MAX", 3)
    for number in range(5):
        rest_exchange.answer_next(200, b'{"markets":[],"cursor":"%d"}' % number)
    async with connect() as rest:
        with pytest.raises(ExchangeError, match="has more than 3 pages"):
            await collected(rest.markets())
        assert rest.requests == 3


async def test_a_body_beyond_the_bound_is_refused_also_if_it_comes_compressed(
    rest_exchange: Any, connect: Connect
) -> None:
    bomb = gzip.compress(b" " * 5_000_000)
    assert len(bomb) < 10_000
    rest_exchange.answer_next(200, bomb, **{"Content-Encoding": "gzip"})
    async with connect(body_max_bytes=100_000) as rest:
        with pytest.raises(ExchangeError, match="answers more than 100000 bytes"):
            await rest.exchange_status()
        assert rest.requests == 1
        assert (await rest.exchange_status()).exchange_active


async def test_a_cancelled_walk_leaves_the_client_usable(
    rest_exchange: Any, connect: Connect
) -> None:
    for number in range(30):
        rest_exchange.add_market(f"KXA-1-T{number}")
    async with connect() as rest:
        walk = asyncio.create_task(collected(rest.markets(page_items=1)))
        await until(lambda: len(rest_exchange.requests) >= 3)
        walk.cancel()
        with pytest.raises(asyncio.CancelledError):
            await walk
        async with aclosing(rest.markets(page_items=10)) as markets:
            assert (await anext(markets)).ticker == "KXA-1-T0"
        assert (await rest.exchange_status()).exchange_active


@pytest.mark.parametrize(
    "url",
    ["", "example.test/x", "ftp://h/x", "https://", "http://[", "http://h:99999/", "http://h/?a=1"],
)
def test_base_url_must_be_one(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"exchange\.rest_url"):
        RestClient(url, None)
