"""A small REST exchange on a loopback socket, and API keys, as fixtures for the tests of the Kalshi REST client."""

import base64
from collections import deque
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

Row = dict[str, Any]
STATUSES_OF_FILTER = {
    "unopened": {"initialized"},
    "open": {"active"},
    "paused": {"inactive"},
    "closed": {"closed", "determined"},
    "settled": {"finalized"},
}


class RestExchange:
    """Serves the market-data endpoints from lists of dicts, with pages, filters, signatures and scripted answers."""

    def __init__(self) -> None:
        self.markets: list[Row] = []
        self.events: list[Row] = []
        self.series: list[Row] = []
        self.trades: list[Row] = []
        self.limits: Row | None = None
        self.public_keys: dict[str, Any] = {}
        """By key id; if any, every request must carry a right signature."""
        self.script: deque[Callable[[], web.StreamResponse]] = deque()
        """Answers given instead of the next ones, in order."""
        self.hidden_reads = 0
        """So many reads more do not know any market or event (the exchange lags)."""
        self.date_s: int | None = None
        """What the `Date` header says, in seconds since the epoch; None: the truth."""
        self.requests: list[web.Request] = []
        self.base_url = ""

    def add_market(self, ticker: str, **fields: Any) -> Row:
        """An active market of an event and series named by its ticker, which are added if new."""
        event_ticker = fields.setdefault("event_ticker", ticker.rpartition("-")[0])
        market = {
            "ticker": ticker,
            "market_type": "binary",
            "status": "active",
            "open_time": "2026-11-20T12:00:00Z",
            "close_time": "2026-11-22T12:00:00Z",
            "result": "",
            "price_level_structure": "linear_cent",
            "price_ranges": [{"start": "0.0000", "end": "1.0000", "step": "0.0100"}],
            "updated_time": "2026-11-20T12:00:00.123456Z",
            **fields,
        }
        self.markets.append(market)
        series_ticker = event_ticker.partition("-")[0]
        if not any(event["event_ticker"] == event_ticker for event in self.events):
            self.events.append({"event_ticker": event_ticker, "series_ticker": series_ticker})
        if not any(one["ticker"] == series_ticker for one in self.series):
            self.series.append({"ticker": series_ticker, "tags": None})
        return market

    def answer_next(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        """The next request gets this instead."""
        self.script.append(partial(web.Response, status=status, body=body, headers=headers))

    def application(self) -> web.Application:
        """The server."""
        application = web.Application(middlewares=[self._around])
        for path, answer in {
            "/exchange/status": self._status,
            "/account/limits": self._limits,
            "/markets": self._markets,
            "/markets/trades": self._trades,
            "/markets/orderbooks": self._orderbooks,
            "/markets/{ticker}": self._market,
            "/events": self._events,
            "/events/{ticker}": self._event,
            "/series": self._all_series,
            "/series/{ticker}": self._one_series,
        }.items():
            application.router.add_get("/trade-api/v2" + path, answer)
        return application

    @web.middleware
    async def _around(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(request)
        instead = self.script.popleft()() if self.script else self._refusal(request)
        response: web.StreamResponse = instead or await handler(request)
        if self.date_s is not None:
            response.headers["Date"] = formatdate(self.date_s, usegmt=True)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        """401 for a missing or wrong signature, if keys were registered."""
        if not self.public_keys:
            return None
        public_key = self.public_keys.get(request.headers.get("KALSHI-ACCESS-KEY", ""))
        if public_key is None:
            return _unauthorised("NOT_FOUND")
        timestamp = request.headers["KALSHI-ACCESS-TIMESTAMP"]
        message = f"{timestamp}{request.method}{request.path}".encode()
        signature = base64.b64decode(request.headers["KALSHI-ACCESS-SIGNATURE"], validate=True)
        if verifies(public_key, signature, message):
            return None
        return _unauthorised("INCORRECT_API_KEY_SIGNATURE")

    def _page(self, request: web.Request, name: str, rows: list[Row]) -> web.Response:
        limit = int(request.query.get("limit", 100))
        if limit > 1000:
            return web.json_response({"msg": "limit too large"}, status=400)
        start = int(request.query.get("cursor") or 0)
        cursor = str(start + limit) if start + limit < len(rows) else ""
        return web.json_response({name: rows[start : start + limit] or None, "cursor": cursor})

    def _visible(self, request: web.Request, rows: list[Row], key: str) -> list[Row]:
        if self.hidden_reads > 0:
            self.hidden_reads -= 1
            return []
        if "tickers" in request.query:
            wanted = request.query["tickers"].split(",")
            return [row for row in rows if row[key] in wanted]
        return rows

    async def _markets(self, request: web.Request) -> web.Response:
        query = request.query
        rows = self._visible(request, self.markets, "ticker")
        series_of = {event["event_ticker"]: event["series_ticker"] for event in self.events}
        if "status" in query:
            rows = [row for row in rows if row["status"] in STATUSES_OF_FILTER[query["status"]]]
        if "event_ticker" in query:
            rows = [row for row in rows if row["event_ticker"] == query["event_ticker"]]
        if "series_ticker" in query:
            rows = [r for r in rows if series_of[r["event_ticker"]] == query["series_ticker"]]
        if query.get("mve_filter") == "exclude":
            rows = [row for row in rows if "mve_collection_ticker" not in row]
        if "min_updated_ts" in query:
            compatible = {"min_updated_ts", "mve_filter", "series_ticker", "limit", "cursor"}
            assert set(query) <= compatible
        return self._page(request, "markets", rows)

    async def _events(self, request: web.Request) -> web.Response:
        """Combos' events are in no listing."""
        rows = self._visible(request, self.events, "event_ticker")
        listed = [row for row in rows if not row["event_ticker"].startswith("KXMVE")]
        return self._page(request, "events", listed)

    async def _trades(self, request: web.Request) -> web.Response:
        return self._page(request, "trades", self.trades)

    async def _all_series(self, _request: web.Request) -> web.Response:
        return web.json_response({"series": self.series})

    async def _market(self, request: web.Request) -> web.Response:
        return self._one(request, "market", self.markets, "ticker")

    async def _event(self, request: web.Request) -> web.Response:
        return self._one(request, "event", self.events, "event_ticker")

    async def _one_series(self, request: web.Request) -> web.Response:
        return self._one(request, "series", self.series, "ticker")

    def _one(self, request: web.Request, name: str, rows: list[Row], key: str) -> web.Response:
        for row in self._visible(request, rows, key):
            if row[key] == request.match_info["ticker"]:
                return web.json_response({name: row})
        error = {"code": "not_found", "message": "not found"}
        return web.json_response({"error": error}, status=404)

    async def _orderbooks(self, request: web.Request) -> web.Response:
        tickers = request.query.getall("tickers")
        assert 1 <= len(tickers) <= 100
        book = {"yes_dollars": [["0.3100", "120.00"]], "no_dollars": None}
        rows: list[Row] = [{"ticker": ticker, "orderbook_fp": book} for ticker in tickers[:-1]]
        rows.append({"ticker": tickers[-1], "orderbook": {}})
        return web.json_response({"orderbooks": rows})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response({"exchange_active": True, "trading_active": True})

    async def _limits(self, _request: web.Request) -> web.Response:
        if self.limits is None:
            return web.json_response({"code": "not_found", "message": "no such path"}, status=404)
        return web.json_response(self.limits)


def _unauthorised(details: str) -> web.Response:
    error = {"code": "authentication_error", "message": "no", "details": details}
    return web.json_response({"error": error}, status=401)


def verifies(public_key: Any, signature: bytes, message: bytes) -> bool:
    """Whether the exchange would take the signature."""
    try:
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            public_key.verify(signature, message)
        else:
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            public_key.verify(signature, message, pss, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


@pytest.fixture
async def rest_exchange() -> AsyncIterator[RestExchange]:
    """The exchange, listening on a free loopback port."""
    exchange = RestExchange()
    runner = web.AppRunner(exchange.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    exchange.base_url = f"http://{host}:{port}/trade-api/v2"
    yield exchange
    await runner.cleanup()


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    """An RSA key of 2048 bits."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    """An Ed25519 key."""
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def pem_of() -> Callable[..., bytes]:
    """PEM of a private key, PKCS#8 and not encrypted unless told otherwise."""

    def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, encryption: Any = None) -> bytes:
        return bytes(key.private_bytes(Encoding.PEM, form, encryption or NoEncryption()))

    return pem


@pytest.fixture(scope="session")
def signature_verifies() -> Callable[[Any, bytes, bytes], bool]:
    """Whether the exchange would take (public key, signature, message)."""
    return verifies
