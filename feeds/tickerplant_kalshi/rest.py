"""A read-only client of the Kalshi REST API: signed, paced, bounded, retrying what is worth a retry.

Every request is paced by a token bucket (the account's own limits where they can be read), signed anew at each try, and
bounded in time, size and tries. 429, 5xx and network faults are tried again with jittered back-off and end as
`ExchangeUnavailableError`; everything else ends at once in a typed error. Nothing is held while waiting, so that any
call may be cancelled at any time.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from email.utils import mktime_tz, parsedate_tz
from types import TracebackType
from typing import NoReturn, Protocol, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from tickerplant import __version__
from tickerplant.errors import ConfigurationError, ExchangeError, ExchangeUnavailableError
from tickerplant.limits import (
    REST_ATTEMPTS,
    REST_BACKOFF_BASE_NS,
    REST_BACKOFF_CAP_NS,
    REST_BODY_MAX_BYTES,
    REST_CONNECTIONS_MAX,
    REST_EVENT_PAGE_ITEMS,
    REST_PAGE_ITEMS,
    REST_PAGES_MAX,
    REST_REQUEST_COST,
    REST_REQUESTS_PER_SECOND,
    REST_TICKERS_PER_REQUEST,
    REST_TICKERS_PER_REQUEST_BYTES,
    REST_TIMEOUT_S,
)
from tickerplant_kalshi.auth import Signer
from tickerplant_kalshi.backoff import Backoff
from tickerplant_kalshi.pacing import TokenBucket
from tickerplant_kalshi.rest_messages import (
    AccountLimits,
    EventBody,
    EventsPage,
    ExchangeStatus,
    MarketBody,
    MarketsPage,
    OneSeriesBody,
    OrderbooksBody,
    RestEvent,
    RestMarket,
    RestOrderbook,
    RestSeries,
    RestTrade,
    SeriesPage,
    TradesPage,
)
from tickerplant_kalshi.rest_refusals import Reply, raise_refusal, transient_reason

Query = Sequence[tuple[str, str]]
_Body = TypeVar("_Body")
_SECOND_NS = 1_000_000_000
_READ_CHUNK_BYTES = 64 * 1024
_STATUS_WITH_BODY = frozenset({503, 504})
"""`/exchange/status` answers these with the same body as 200."""


class _Page(Protocol):
    @property
    def cursor(self) -> str | None: ...


_PageT = TypeVar("_PageT", bound=_Page)


class RestClient:
    """`async with RestClient(base_url, signer) as rest:`; the methods raise as the module's text says.

    The async generators follow cursors; close one early with `contextlib.aclosing`.
    """

    def __init__(
        self,
        base_url: str,
        signer: Signer | None,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        random_unit: Callable[[], float] = random.random,
        read_account_limits: bool = True,
        timeout_s: float = REST_TIMEOUT_S,
        backoff_base_ns: int = REST_BACKOFF_BASE_NS,
        backoff_cap_ns: int = REST_BACKOFF_CAP_NS,
        body_max_bytes: int = REST_BODY_MAX_BYTES,
    ) -> None:
        """`base_url` ends with the API's version, e.g. `https://host/trade-api/v2`; without `signer` only public reads.

        Raises `ConfigurationError` for a URL that is none.
        """
        self._base_url, self._base_path, self._host = _split_base_url(base_url)
        self._signer = signer
        self._clock_ns = clock_ns
        self._monotonic_ns = monotonic_ns
        self._random_unit = random_unit
        self._read_account_limits = read_account_limits and signer is not None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._backoff_ns = (backoff_base_ns, backoff_cap_ns)
        self._body_max_bytes = body_max_bytes
        self._session: aiohttp.ClientSession | None = None
        tokens = REST_REQUESTS_PER_SECOND * REST_REQUEST_COST
        self._bucket = TokenBucket(tokens, tokens)
        self.clock_offset_ns: int | None = None
        """This machine's clock minus the exchange's, by the last `Date` header (resolution 1 s); None: not seen."""
        self.requests = 0
        self.retries = 0
        self.throttled = 0
        """Requests sent, repeated, and answered with 429."""

    @property
    def requests_per_second(self) -> int:
        """The pace in force."""
        return self._bucket.tokens_per_second // REST_REQUEST_COST

    async def __aenter__(self) -> Self:
        """Open; with a key, take the pace from the account's limits. Raises as any request."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=REST_CONNECTIONS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            headers={
                "Accept": "application/json",
                "User-Agent": f"kalshi-tickerplant/{__version__}",
            },
        )
        if self._read_account_limits:
            try:
                await self._adopt_account_limits()
            except BaseException:
                await self._session.close()
                raise
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        assert self._session is not None
        await self._session.close()

    async def _adopt_account_limits(self) -> None:
        """Pace by the account's read bucket; an exchange that does not tell it leaves the default."""
        try:
            limits = await self.account_limits()
        except ExchangeError:
            return
        tokens_per_second = max(1, int(limits.read.refill_rate))
        capacity = max(REST_REQUEST_COST, int(limits.read.bucket_capacity))
        self._bucket = TokenBucket(tokens_per_second, capacity)

    # --- endpoints --------------------------------------------------------------------------------

    async def exchange_status(self) -> ExchangeStatus:
        """Whether the exchange and trading are active; also answered while it is paused."""
        return await self._get("/exchange/status", (), _STATUS, accept=_STATUS_WITH_BODY)

    async def account_limits(self) -> AccountLimits:
        """The account's tier and token buckets. Needs a key."""
        return await self._get("/account/limits", (), _LIMITS)

    async def market(self, ticker: str) -> RestMarket:
        """One market. Raises `NotFoundError`, which may also follow its creation for a moment."""
        return (await self._get(f"/markets/{quote(ticker, safe='')}", (), _MARKET)).market

    async def event(self, event_ticker: str) -> RestEvent:
        """One event, combos included. Raises `NotFoundError`."""
        return (await self._get(f"/events/{quote(event_ticker, safe='')}", (), _EVENT)).event

    async def one_series(self, series_ticker: str) -> RestSeries:
        """One series. Raises `NotFoundError`."""
        return (await self._get(f"/series/{quote(series_ticker, safe='')}", (), _ONE_SERIES)).series

    async def markets(
        self,
        *,
        tickers: Sequence[str] = (),
        event_ticker: str = "",
        series_ticker: str = "",
        status: str = "",
        mve_filter: str = "",
        min_updated_ts: int | None = None,
        page_items: int = REST_PAGE_ITEMS,
    ) -> AsyncIterator[RestMarket]:
        """Markets by any of these filters; `status` is one of unopened, open, paused, closed, settled.

        `tickers` of any number are asked in several requests; `min_updated_ts` is in seconds and goes with `mve_filter`
        and `series_ticker` only.
        """
        query = _query(
            limit=page_items,
            event_ticker=event_ticker,
            series_ticker=series_ticker,
            status=status,
            mve_filter=mve_filter,
            min_updated_ts=min_updated_ts,
        )
        for part in _ticker_filters(tickers):
            async for page in self._pages("/markets", [*query, *part], _MARKETS):
                for market in page.markets or ():
                    yield market

    async def events(
        self,
        *,
        tickers: Sequence[str] = (),
        series_ticker: str = "",
        status: str = "",
        page_items: int = REST_EVENT_PAGE_ITEMS,
    ) -> AsyncIterator[RestEvent]:
        """Events without combos; `status` is one of unopened, open, closed, settled."""
        query = _query(limit=page_items, series_ticker=series_ticker, status=status)
        for part in _ticker_filters(tickers):
            async for page in self._pages("/events", [*query, *part], _EVENTS):
                for event in page.events or ():
                    yield event

    async def series(self, *, category: str = "") -> AsyncIterator[RestSeries]:
        """All series, or those of a category."""
        async for page in self._pages("/series", _query(category=category), _SERIES):
            for one in page.series or ():
                yield one

    async def trades(
        self,
        *,
        ticker: str = "",
        min_ts: int | None = None,
        max_ts: int | None = None,
        page_items: int = REST_PAGE_ITEMS,
    ) -> AsyncIterator[RestTrade]:
        """Trades of a market or of all, newest first; times in seconds."""
        query = _query(limit=page_items, ticker=ticker, min_ts=min_ts, max_ts=max_ts)
        async for page in self._pages("/markets/trades", query, _TRADES):
            for trade in page.trades or ():
                yield trade

    async def orderbooks(self, tickers: Sequence[str]) -> AsyncIterator[RestOrderbook]:
        """Books of any number of markets; send signed, anonymous access is not reliable."""
        for batch in ticker_batches(tickers):
            query = [("tickers", ticker) for ticker in batch]
            body = await self._get("/markets/orderbooks", query, _ORDERBOOKS)
            for book in body.orderbooks or ():
                yield book

    # --- requests ---------------------------------------------------------------------------------

    async def _pages(
        self, path: str, query: Query, decoder: "msgspec.json.Decoder[_PageT]"
    ) -> AsyncIterator[_PageT]:
        """Every page until the cursor is empty. Raises `ExchangeError` for a cursor that does not end."""
        cursor = ""
        seen: set[str] = set()
        for _ in range(REST_PAGES_MAX):
            page = await self._get(path, [*query, ("cursor", cursor)] if cursor else query, decoder)
            yield page
            cursor = page.cursor or ""
            if not cursor:
                return
            if cursor in seen:
                self._raise_broken(path, "repeats a page cursor, so its pages do not end")
            seen.add(cursor)
        self._raise_broken(path, f"has more than {REST_PAGES_MAX} pages")

    async def _get(
        self,
        path: str,
        query: Query,
        decoder: "msgspec.json.Decoder[_Body]",
        *,
        accept: frozenset[int] = frozenset(),
    ) -> _Body:
        """The decoded body; also of a reply whose status is in `accept`, if it decodes. Retries what is transient."""
        backoff = Backoff(*self._backoff_ns)
        while True:
            try:
                reply = await self._send(path, query)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = f"no answer ({type(error).__name__}: {error})"
            else:
                if reply.status == 200:
                    return self._decode(reply, path, decoder)
                if reply.status in accept:
                    try:
                        return decoder.decode(reply.body)
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                        pass
                reason = self._transient_or_raise(reply, path)
            delay_ns = backoff.next_delay_ns(self._random_unit())
            if backoff.failures >= REST_ATTEMPTS:
                raise ExchangeUnavailableError(
                    f"{self._host}: GET {path} failed {REST_ATTEMPTS} times, last: "
                    f"{' '.join(reason.split())}; try again later"
                )
            self.retries += 1
            await asyncio.sleep(delay_ns / _SECOND_NS)

    def _transient_or_raise(self, reply: Reply, path: str) -> str:
        """Why the request may be tried again; a refusal that stays is raised."""
        if reply.status == 429:
            self.throttled += 1
            self._bucket.drain(self._monotonic_ns())
        reason = transient_reason(reply)
        if reason is None:
            key_id = self._signer.key_id if self._signer is not None else ""
            raise_refusal(reply, self._host, path, key_id)
        return reason

    async def _send(self, path: str, query: Query) -> Reply:
        """One try: wait for the pace, sign, ask, read at most the bound."""
        assert self._session is not None, "RestClient is used outside its `async with`"
        wait_ns = self._bucket.reserve(REST_REQUEST_COST, self._monotonic_ns())
        if wait_ns:
            await asyncio.sleep(wait_ns / _SECOND_NS)
        url = f"{self._base_url}{path}" + (f"?{urlencode(query, safe=',')}" if query else "")
        sent_ns = self._clock_ns()
        headers = None
        if self._signer is not None:
            headers = self._signer.headers("GET", self._base_path + path, sent_ns // 1_000_000)
        self.requests += 1
        async with self._session.get(
            URL(url, encoded=True), headers=headers, allow_redirects=False
        ) as response:
            offset_ns = clock_offset_ns(response.headers.get("Date"), sent_ns, self._clock_ns())
            body = await self._read_body(response, path)
        if offset_ns is not None:
            self.clock_offset_ns = offset_ns
        return Reply(response.status, body, offset_ns)

    async def _read_body(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        """The whole body, decompressed. Raises `ExchangeError` beyond the bound."""
        parts: list[bytes] = []
        size_bytes = 0
        async for part in response.content.iter_chunked(_READ_CHUNK_BYTES):
            size_bytes += len(part)
            if size_bytes > self._body_max_bytes:
                response.close()
                self._raise_broken(path, f"answers more than {self._body_max_bytes} bytes")
            parts.append(part)
        return b"".join(parts)

    def _decode(self, reply: Reply, path: str, decoder: "msgspec.json.Decoder[_Body]") -> _Body:
        """The typed body. Raises `ExchangeError` that names the field."""
        try:
            return decoder.decode(reply.body)
        except msgspec.ValidationError as error:
            self._raise_broken(path, f"answers in a format this version does not know: {error}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._raise_broken(path, f"does not answer in JSON ({error}); check exchange.rest_url")

    def _raise_broken(self, path: str, what: str) -> NoReturn:
        raise ExchangeError(f"{self._host}: GET {path} {what}")


def ticker_batches(tickers: Iterable[str]) -> list[list[str]]:
    """`tickers` in order, in batches that fit one query string by count and bytes."""
    batches: list[list[str]] = []
    size_bytes = 0
    for ticker in tickers:
        ticker_bytes = len(quote(ticker)) + 1
        full = not batches or len(batches[-1]) >= REST_TICKERS_PER_REQUEST
        if full or size_bytes + ticker_bytes > REST_TICKERS_PER_REQUEST_BYTES:
            batches.append([])
            size_bytes = 0
        batches[-1].append(ticker)
        size_bytes += ticker_bytes
    return batches


def _ticker_filters(tickers: Sequence[str]) -> list[Query]:
    """One query part per batch of `tickers`; one empty part without any."""
    if not tickers:
        return [()]
    return [[("tickers", ",".join(batch))] for batch in ticker_batches(tickers)]


def _query(**parameters: str | int | None) -> list[tuple[str, str]]:
    """The parameters that are set, in order."""
    return [(name, str(value)) for name, value in parameters.items() if value not in (None, "")]


def _split_base_url(base_url: str) -> tuple[str, str, str]:
    """(URL without slash at the end, its path, its host). Raises `ConfigurationError`."""
    try:
        parts = urlsplit(base_url.strip())
        host = parts.netloc.rpartition("@")[2] if parts.hostname and parts.port != 0 else ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigurationError(
            f"exchange.rest_url {base_url!r:.200} is not a URL such as https://HOST/trade-api/v2"
        )
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{host}{path}", path, host


def clock_offset_ns(date: str | None, sent_ns: int, received_ns: int) -> int | None:
    """Our clock minus that of a `Date` header: the middle of the exchange against the middle of its second."""
    try:
        parsed = parsedate_tz(date) if date else None
        if parsed is None:
            return None
        exchange_ns = int(mktime_tz(parsed)) * _SECOND_NS + _SECOND_NS // 2
    except (ValueError, OverflowError, TypeError):
        return None
    return (sent_ns + received_ns) // 2 - exchange_ns


_STATUS = msgspec.json.Decoder(ExchangeStatus)
_LIMITS = msgspec.json.Decoder(AccountLimits)
_MARKET = msgspec.json.Decoder(MarketBody)
_EVENT = msgspec.json.Decoder(EventBody)
_ONE_SERIES = msgspec.json.Decoder(OneSeriesBody)
_MARKETS = msgspec.json.Decoder(MarketsPage)
_EVENTS = msgspec.json.Decoder(EventsPage)
_SERIES = msgspec.json.Decoder(SeriesPage)
_TRADES = msgspec.json.Decoder(TradesPage)
_ORDERBOOKS = msgspec.json.Decoder(OrderbooksBody)
