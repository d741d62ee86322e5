"""Candlesticks and the historical tier over REST.

A settled market that leaves the live endpoints moves to the historical ones, and the cutoff moves on with it; its
candles have other key names there. Trades stay live for as long as they are kept.
"""

from collections.abc import Callable, Iterable

from aiohttp import web

from tickerplant.core.fixedpoint import format_size_e2
from tickerplant.limits import SIM_CANDLES_PER_REPLY
from tickerplant_kalshi_sim.candles import MINUTE_NS, Candle, Range
from tickerplant_kalshi_sim.exchange import Venue
from tickerplant_kalshi_sim.frames import NANOSECONDS, PRICE_TEXT, rfc3339
from tickerplant_kalshi_sim.markets import Market
from tickerplant_kalshi_sim.rest_objects import Json, market_object
from tickerplant_kalshi_sim.rest_query import Query, invalid, not_found, undecodable

LIVE_WINDOW_NS = 90 * 86_400 * NANOSECONDS
PERIODS_MINUTES = (1, 60, 1_440)
TICKERS_MAX = 100


class HistoryEndpoints:
    """Answers for `/…/candlesticks` and `/historical/…`."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue

    def routes(self) -> dict[str, Callable[[web.Request], Json]]:
        """Path to answer."""
        return {
            "/series/{series}/markets/{ticker}/candlesticks": self._market_candles,
            "/series/{series}/events/{event}/candlesticks": self._event_candles,
            "/markets/candlesticks": self._markets_candles,
            "/historical/cutoff": self._cutoff,
            "/historical/markets": self._historical_markets,
            "/historical/markets/{ticker}": self._historical_market,
            "/historical/markets/{ticker}/candlesticks": self._historical_candles,
            "/historical/trades": lambda _: {"trades": [], "cursor": ""},
        }

    # --- live candles ---------------------------------------------------------------------------------

    def _market_candles(self, request: web.Request) -> Json:
        market = self._market(request, self._venue.catalogue.markets)
        if market.event.series.ticker != request.match_info["series"]:
            raise not_found("market")
        return {"ticker": market.ticker, "candlesticks": _live(market, Query(request.query))}

    def _markets_candles(self, request: web.Request) -> Json:
        query = Query(request.query)
        tickers = query.names("market_tickers") or []
        if not 1 <= len(tickers) <= TICKERS_MAX:
            raise invalid(f"market_tickers must name 1 to {TICKERS_MAX} markets")
        known = self._venue.catalogue.markets
        rows = [
            {"market_ticker": ticker, "candlesticks": _live(known[ticker], query)}
            for ticker in tickers
            if ticker in known
        ]
        if sum(len(row["candlesticks"]) for row in rows) > SIM_CANDLES_PER_REPLY:
            raise invalid(f"more than {SIM_CANDLES_PER_REPLY} candlesticks: ask for less")
        return {"markets": rows}

    def _event_candles(self, request: web.Request) -> Json:
        catalogue = self._venue.catalogue
        event = catalogue.events.get(request.match_info["event"])
        if event is None or event.series.ticker != request.match_info["series"]:
            raise not_found("event")
        query = Query(request.query)
        markets = list(catalogue.markets_of(event))
        return {
            "market_tickers": [market.ticker for market in markets],
            "market_candlesticks": [_live(market, query) for market in markets],
            "adjusted_end_ts": _window(query)[1] // NANOSECONDS,
        }

    # --- the historical tier --------------------------------------------------------------------------

    def _cutoff(self, _: web.Request) -> Json:
        """Markets: where the newest one that has left was settled. Everything else: the live window."""
        window_ns = self._venue.now_ns - LIVE_WINDOW_NS
        archived = self._venue.catalogue.archived.values()
        settled_ns = max((market.settled_ns for market in archived), default=window_ns)
        return {
            "market_settled_ts": rfc3339(settled_ns),
            "trades_created_ts": rfc3339(window_ns),
            "orders_updated_ts": rfc3339(window_ns),
        }

    def _historical_markets(self, request: web.Request) -> Json:
        query = Query(request.query)
        tickers, event = query.names("tickers"), query.text("event_ticker")
        series, combos = query.text("series_ticker"), query.choice("mve_filter", ("exclude",))
        if sum(given is not None for given in (tickers, event, series, combos)) > 1:
            raise invalid("tickers, event_ticker, series_ticker and mve_filter exclude each other")
        rows = [
            market
            for market in self._venue.catalogue.archived.values()
            if (tickers is None or market.ticker in tickers)
            and event in (None, market.event.ticker)
            and series in (None, market.event.series.ticker)
            and (combos is None or not market.event.is_multivariate)
        ]
        page, cursor = query.page(rows, 100, 1_000)
        return {"markets": [market_object(m, m.book.levels) for m in page], "cursor": cursor}

    def _historical_market(self, request: web.Request) -> Json:
        market = self._market(request, self._venue.catalogue.archived)
        return {"market": market_object(market, market.book.levels)}

    def _historical_candles(self, request: web.Request) -> Json:
        market = self._market(request, self._venue.catalogue.archived)
        rows = [_historical(candle) for candle in _chosen(market, Query(request.query))]
        return {"ticker": market.ticker, "candlesticks": rows}

    def _market(self, request: web.Request, known: dict[str, Market]) -> Market:
        market = known.get(request.match_info["ticker"])
        if market is None:
            raise not_found("market")
        return market


def _window(query: Query) -> tuple[int, int, int]:
    """(start_ns, end_ns, period_ns), all of them required. Raises the 400s."""
    start_ns, end_ns = query.time_ns("start_ts"), query.time_ns("end_ts")
    minutes = query.number("period_interval")
    if start_ns is None or end_ns is None or minutes is None:
        raise undecodable("start_ts, end_ts, period_interval", "all three are required")
    if minutes not in PERIODS_MINUTES:
        raise invalid("period_interval must be 1, 60 or 1440")
    if end_ns < start_ns:
        raise invalid("end_ts lies before start_ts")
    return start_ns, end_ns, minutes * MINUTE_NS


def _chosen(market: Market, query: Query) -> Iterable[Candle]:
    start_ns, end_ns, period_ns = _window(query)
    candles = list(market.candles.between(start_ns, end_ns, period_ns))
    if len(candles) > SIM_CANDLES_PER_REPLY:
        raise invalid(f"more than {SIM_CANDLES_PER_REPLY} candlesticks: ask for less")
    if query.flag("include_latest_before_start"):
        earlier = market.candles.before(start_ns, period_ns)
        if earlier is not None:
            # What the market looked like at the start: a candle without trades that ends there.
            bid, ask = (_flat(side.close_e4) for side in (earlier.bid, earlier.ask))
            previous_e4 = earlier.traded.close_e4 if earlier.traded else earlier.previous_e4
            interest_e2 = earlier.open_interest_e2
            candles.insert(0, Candle(start_ns, bid, ask, None, previous_e4, 0, 0, interest_e2))
    return candles


def _flat(price_e4: int) -> Range:
    return Range(price_e4, price_e4, price_e4, price_e4)


def _live(market: Market, query: Query) -> list[Json]:
    return [_candle(candle, "_dollars", "_fp") for candle in _chosen(market, query)]


def _historical(candle: Candle) -> Json:
    """The same with the key names of the historical tier."""
    return _candle(candle, "", "")


def _candle(candle: Candle, price_suffix: str, size_suffix: str) -> Json:
    row: Json = {
        "end_period_ts": candle.end_ns // NANOSECONDS,
        "yes_bid": _prices(candle.bid, price_suffix),
        "yes_ask": _prices(candle.ask, price_suffix),
        f"volume{size_suffix}": format_size_e2(candle.volume_e2),
        f"open_interest{size_suffix}": format_size_e2(candle.open_interest_e2),
    }
    if candle.traded is not None:
        row["price"] = _prices(candle.traded, price_suffix) | {
            f"mean{price_suffix}": PRICE_TEXT[candle.mean_e4],
            f"previous{price_suffix}": PRICE_TEXT[candle.previous_e4],
        }
    return row


def _prices(values: Range, suffix: str) -> Json:
    return {
        f"open{suffix}": PRICE_TEXT[values.open_e4],
        f"low{suffix}": PRICE_TEXT[values.low_e4],
        f"high{suffix}": PRICE_TEXT[values.high_e4],
        f"close{suffix}": PRICE_TEXT[values.close_e4],
    }
