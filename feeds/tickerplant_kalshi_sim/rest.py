"""The REST face: the public market-data endpoints of the Trade API v2, served by aiohttp.

Order of refusal: faults and maintenance, signature (checked when present, required where the exchange's OpenAPI asks
for it), rate limit, parameters.
"""

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web

from tickerplant.limits import SIM_RATE_LIMITED_KEYS
from tickerplant_kalshi_sim.config import SimulationConfig
from tickerplant_kalshi_sim.exchange import Venue
from tickerplant_kalshi_sim.frames import NANOSECONDS, TradeRecord, rfc3339
from tickerplant_kalshi_sim.keys import KEY_HEADER, SIGNATURE_HEADER, SignatureVerifier
from tickerplant_kalshi_sim.markets import Event, Market
from tickerplant_kalshi_sim.rest_history import HistoryEndpoints
from tickerplant_kalshi_sim.rest_objects import (
    event_object,
    market_object,
    orderbook_object,
    series_object,
    trade_object,
)
from tickerplant_kalshi_sim.rest_query import Query, RestRefusedError, invalid, not_found

ROOT = "/trade-api/v2"
REQUEST_COST = 10
BUCKET_SECONDS = 2
VISIBLE_AFTER_NS = NANOSECONDS // 2
"""A market answers 404 by its ticker for this long after it was created."""
STATUS_FILTERS = {
    "unopened": ("initialized",),
    "open": ("active", "inactive"),
    "paused": ("inactive",),
    "closed": ("closed", "determined", "disputed", "amended"),
    "settled": ("finalized",),
}
TIME_FAMILIES = {
    "created": ("unopened", "open"),
    "close": ("closed",),
    "settled": ("settled",),
}
SHARDS = ("default", "combos", "crypto", "tennis and baseball")
EASTERN = timedelta(hours=-5)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Json = dict[str, Any]
Answer = Callable[[web.Request], Json]
Responder = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RestState:
    """Faults, maintenance and rate limits that hold for every request."""

    def __init__(self, config: SimulationConfig, now_ns: Callable[[], int]) -> None:
        self._config = config
        self._now_ns = now_ns
        self._buckets: dict[str, tuple[int, int]] = {}
        self.requests = 0
        self.fault_status = 0
        self.fault_until_ns = 0
        self.exchange_active = True
        self.trading_active = True
        self.resume_ns = 0

    def fail(self, status: int, duration_ns: int) -> None:
        """Answer every request with `status` for a while."""
        self.fault_status = status
        self.fault_until_ns = self._now_ns() + duration_ns

    def refusal(self, path: str) -> tuple[int, bytes] | None:
        """Status and body that refuse any request now."""
        if self._now_ns() < self.fault_until_ns:
            if self.fault_status == 429:
                return 429, b'{"error":"too many requests"}'
            error = {"code": "service_unavailable", "message": "try again later"}
            return self.fault_status, msgspec.json.encode({"error": error})
        if not self.exchange_active:
            if path == f"{ROOT}/exchange/status":
                return 503, msgspec.json.encode(self.status_object())
            error = {"code": "exchange_unavailable", "message": "exchange is paused"}
            return 503, msgspec.json.encode({"error": error})
        return None

    def charge(self, key_id: str) -> bool:
        """Take the tokens of one request; False if the bucket is empty. Only signed requests cost tokens."""
        per_second = self._config.rest_tokens_per_second
        capacity = per_second * BUCKET_SECONDS * NANOSECONDS
        now_ns = self._now_ns()
        tokens, then_ns = self._buckets.pop(key_id, (capacity, now_ns))
        tokens = min(capacity, tokens + (now_ns - then_ns) * per_second)
        paid = tokens >= REQUEST_COST * NANOSECONDS
        if paid:
            tokens -= REQUEST_COST * NANOSECONDS
        if len(self._buckets) >= SIM_RATE_LIMITED_KEYS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[key_id] = (tokens, now_ns)
        return paid

    def status_object(self) -> Json:
        """Body of `/exchange/status`; the top level is shard 0."""
        flags = {"exchange_active": self.exchange_active, "trading_active": self.trading_active}
        row: Json = dict(flags)
        if not self.trading_active or not self.exchange_active:
            row["exchange_estimated_resume_time"] = rfc3339(self.resume_ns)
        row["exchange_index_statuses"] = [
            {"exchange_index": index, "description": name} | flags
            for index, name in enumerate(SHARDS)
        ]
        return row


class RestApi:
    """The endpoints over one venue."""

    def __init__(
        self,
        venue: Venue,
        verifier: SignatureVerifier,
        state: RestState,
        config: SimulationConfig,
        now_ns: Callable[[], int],
    ) -> None:
        self._venue = venue
        self._verifier = verifier
        self._state = state
        self._config = config
        self._now_ns = now_ns

    def add_routes(self, application: web.Application) -> None:
        """Add every endpoint, and after them a 404 for any other path: call this last."""
        routes: dict[str, Answer] = {
            "/exchange/status": self._status,
            "/exchange/schedule": self._schedule,
            "/series": self._series_list,
            "/series/{ticker}": self._series,
            "/events": self._events,
            "/events/multivariate": self._multivariate_events,
            "/events/{ticker}": self._event,
            "/markets": self._markets,
            "/markets/trades": self._trades,
            "/markets/orderbooks": self._orderbooks,
            "/markets/{ticker}": self._market,
            "/markets/{ticker}/orderbook": self._orderbook,
            "/account/limits": self._account_limits,
            "/account/endpoint_costs": lambda _: {"default_cost": 10, "endpoint_costs": []},
        }
        routes |= HistoryEndpoints(self._venue).routes()
        # Fixed paths first: a router takes the first that fits.
        for path, answer in sorted(routes.items(), key=lambda item: "{" in item[0]):
            application.router.add_get(ROOT + path, self._responder(answer))
        application.router.add_route("*", "/{path:.*}", self._responder(_unknown_page))

    def _responder(self, answer: Answer) -> Responder:
        """Everything that can refuse a request, around the endpoint."""

        async def respond(request: web.Request) -> web.StreamResponse:
            self._state.requests += 1
            try:
                response = self._refuse(request)
                if response is None:
                    response = _json_response(msgspec.json.encode(answer(request)), 200)
            except RestRefusedError as error:
                response = _json_response(error.body, error.status)
            moment = datetime.fromtimestamp(self._now_ns() // NANOSECONDS, UTC)
            response.headers["Date"] = moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
            return response

        return respond

    def _refuse(self, request: web.Request) -> web.Response | None:
        refused = self._state.refusal(request.path)
        if refused is not None:
            return _json_response(refused[1], refused[0])
        signed = KEY_HEADER in request.headers or SIGNATURE_HEADER in request.headers
        if signed or _needs_signature(request.path):
            path = request.rel_url.raw_path
            refusal = self._verifier.refusal(request.method, path, request.headers, self._now_ns())
            if refusal is not None:
                return _json_response(refusal.body(), 401)
            if not self._state.charge(request.headers[KEY_HEADER]):
                return _json_response(b'{"error":"too many requests"}', 429)
        return None

    # --- exchange and account -------------------------------------------------------------------------

    def _status(self, _: web.Request) -> Json:
        return self._state.status_object()

    def _schedule(self, _: web.Request) -> Json:
        """Open around the clock; maintenance each Thursday 03:00-05:00 Eastern (standard time here)."""
        local = datetime.fromtimestamp(self._now_ns() // NANOSECONDS, UTC) + EASTERN
        thursday = local.date() + timedelta(days=(3 - local.weekday()) % 7)
        start = datetime(thursday.year, thursday.month, thursday.day, 3, tzinfo=UTC) - EASTERN
        day = [{"open_time": "00:00", "close_time": "00:00"}]
        hours: Json = dict.fromkeys(DAYS, day)
        hours["start_time"] = rfc3339(0)
        hours["end_time"] = rfc3339(4_102_444_800 * NANOSECONDS)
        window = {
            "start_datetime": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "end_datetime": (start + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return {"schedule": {"standard_hours": [hours], "maintenance_windows": [window]}}

    def _account_limits(self, _: web.Request) -> Json:
        rate = self._config.rest_tokens_per_second
        budget = {"refill_rate": rate, "bucket_capacity": rate * BUCKET_SECONDS}
        return {"usage_tier": "basic", "read": budget, "write": budget, "grants": []}

    # --- series and events ----------------------------------------------------------------------------

    def _series_list(self, request: web.Request) -> Json:
        category = Query(request.query).text("category")
        series = self._venue.catalogue.series.values()
        return {"series": [series_object(s) for s in series if category in (None, s.category)]}

    def _series(self, request: web.Request) -> Json:
        series = self._venue.catalogue.series.get(request.match_info["ticker"])
        if series is None:
            raise not_found("series")
        return {"series": series_object(series)}

    def _events(self, request: web.Request) -> Json:
        query = Query(request.query)
        status = query.choice("status", ("unopened", "open", "closed", "settled"))
        tickers = query.names("tickers")
        close_ns, updated_ns = query.time_ns("min_close_ts"), query.time_ns("min_updated_ts")
        rows = [
            event
            for event in self._events_of(query.text("series_ticker"), multivariate=False)
            if (tickers is None or event.ticker in tickers)
            and (updated_ns is None or event.updated_ns >= updated_ns)
            and self._event_matches(event, status, close_ns)
        ]
        page, cursor = query.page(rows, 200, 200)
        nested = bool(query.flag("with_nested_markets"))
        return {"events": self._event_objects(page, nested=nested), "cursor": cursor}

    def _multivariate_events(self, request: web.Request) -> Json:
        query = Query(request.query)
        series, collection = query.text("series_ticker"), query.text("collection_ticker")
        if series and collection:
            raise invalid("series_ticker and collection_ticker are mutually exclusive")
        series = series or (collection.removesuffix("-R") if collection else None)
        rows = list(self._events_of(series, multivariate=True))
        page, cursor = query.page(rows, 100, 200)
        nested = bool(query.flag("with_nested_markets"))
        return {"events": self._event_objects(page, nested=nested), "cursor": cursor}

    def _event(self, request: web.Request) -> Json:
        event = self._venue.catalogue.events.get(request.match_info["ticker"])
        if event is None:
            raise not_found("event")
        nested = bool(Query(request.query).flag("with_nested_markets"))
        row = event_object(event, self._venue, with_markets=nested)
        body: Json = {"event": row}
        if not nested:
            markets = self._venue.catalogue.markets_of(event)
            body["markets"] = [market_object(m, self._venue.levels(m.ticker)) for m in markets]
        return body

    def _events_of(self, series: str | None, *, multivariate: bool) -> Iterable[Event]:
        for event in self._venue.catalogue.events.values():
            if event.is_multivariate == multivariate and series in (None, event.series.ticker):
                yield event

    def _event_matches(self, event: Event, status: str | None, close_ns: int | None) -> bool:
        markets = list(self._venue.catalogue.markets_of(event))
        if status and not any(m.status in STATUS_FILTERS[status] for m in markets):
            return False
        return close_ns is None or any(m.close_ns >= close_ns for m in markets)

    def _event_objects(self, events: Iterable[Event], *, nested: bool) -> list[Json]:
        return [event_object(event, self._venue, with_markets=nested) for event in events]

    # --- markets --------------------------------------------------------------------------------------

    def _markets(self, request: web.Request) -> Json:
        query = Query(request.query)
        matches = _market_filter(query)
        rows = [m for m in self._venue.catalogue.markets.values() if matches(m)]
        page, cursor = query.page(rows, 100, 1_000)
        objects = [market_object(market, self._venue.levels(market.ticker)) for market in page]
        return {"markets": objects, "cursor": cursor}

    def _market(self, request: web.Request) -> Json:
        market = self._market_of(request)
        if self._venue.now_ns - market.created_ns < VISIBLE_AFTER_NS:
            raise not_found("market")
        return {"market": market_object(market, self._venue.levels(market.ticker))}

    def _market_of(self, request: web.Request) -> Market:
        market = self._venue.catalogue.markets.get(request.match_info["ticker"])
        if market is None:
            raise not_found("market")
        return market

    def _orderbook(self, request: web.Request) -> Json:
        market = self._market_of(request)
        depth = Query(request.query).number("depth") or 0
        if not 0 <= depth <= 100:
            raise invalid("depth must lie between 0 and 100")
        return {"orderbook_fp": orderbook_object(self._venue.levels(market.ticker), depth)}

    def _orderbooks(self, request: web.Request) -> Json:
        tickers = request.query.getall("tickers", [])
        if not 1 <= len(tickers) <= 100 or any(len(ticker) > 200 for ticker in tickers):
            raise invalid("tickers must be given 1 to 100 times, each at most 200 characters")
        rows = [
            {"ticker": ticker, "orderbook_fp": orderbook_object(self._venue.levels(ticker), 0)}
            for ticker in tickers
        ]
        return {"orderbooks": rows}

    def _trades(self, request: web.Request) -> Json:
        """Newest first; the cursor is the number of the last trade given, so that new ones do not shift pages."""
        query = Query(request.query)
        matches = _trade_filter(query)
        limit = query.limit(100, 1_000)
        last = query.text("cursor") or ""
        before = int(last) if last.isdecimal() and len(last) < 19 else None
        newest_first = reversed(self._venue.trades())
        chosen = (t for t in newest_first if (before is None or t.number < before) and matches(t))
        rows = list(islice(chosen, limit + 1))
        page = rows[:limit]
        cursor = str(page[-1].number) if len(rows) > limit else ""
        return {"trades": [trade_object(trade) for trade in page], "cursor": cursor}


def _unknown_page(_: web.Request) -> Json:
    raise not_found("page")


def _json_response(body: bytes, status: int) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _needs_signature(path: str) -> bool:
    return path.startswith(f"{ROOT}/account/") or path.endswith(("/orderbook", "/orderbooks"))


def _trade_filter(query: Query) -> Callable[[TradeRecord], bool]:
    ticker, block = query.text("ticker"), query.flag("is_block_trade")
    low_ns, high_ns = query.time_ns("min_ts"), query.time_ns("max_ts")

    def matches(trade: TradeRecord) -> bool:
        return (
            ticker in (None, trade.ticker)
            and block in (None, trade.is_block)
            and (low_ns is None or trade.created_ns >= low_ns)
            and (high_ns is None or trade.created_ns <= high_ns)
        )

    return matches


def _market_filter(query: Query) -> Callable[[Market], bool]:
    """Raises the bare 400 for filters that exclude each other."""
    event, series = query.text("event_ticker"), query.text("series_ticker")
    tickers = query.names("tickers")
    chosen = None if tickers is None else frozenset(tickers)
    status = query.choice("status", tuple(STATUS_FILTERS))
    combos = query.choice("mve_filter", ("only", "exclude"))
    updated_ns = query.time_ns("min_updated_ts")
    windows = _time_windows(query, status)
    others = (event, tickers, status, *windows)
    if updated_ns is not None and any(others):
        raise invalid("min_updated_ts goes with mve_filter=exclude and series_ticker only")

    def matches(market: Market) -> bool:
        return (
            event in (None, market.event.ticker)
            and series in (None, market.event.series.ticker)
            and (chosen is None or market.ticker in chosen)
            and (status is None or market.status in STATUS_FILTERS[status])
            and (combos is None or market.event.is_multivariate == (combos == "only"))
            and (updated_ns is None or market.updated_ns >= updated_ns)
            and all(
                low_ns <= getattr(market, field) <= high_ns
                for field, (low_ns, high_ns) in windows.items()
            )
        )

    return matches


def _time_windows(query: Query, status: str | None) -> dict[str, tuple[int, int]]:
    """Allowed span per field of `Market`; each family of time filters goes with some statuses only."""
    windows: dict[str, tuple[int, int]] = {}
    for family, statuses in TIME_FAMILIES.items():
        low = query.time_ns(f"min_{family}_ts")
        high = query.time_ns(f"max_{family}_ts")
        if low is None and high is None:
            continue
        if status is not None and status not in statuses:
            raise invalid(f"{family} time filters do not go with status={status}")
        windows[f"{family}_ns"] = (low or 0, 2**63 if high is None else high)
    if len(windows) > 1:
        raise invalid("created, close and settled time filters are mutually exclusive")
    return windows
