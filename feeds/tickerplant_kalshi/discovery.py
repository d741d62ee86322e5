"""Finding the wanted markets over REST: at the start, single ones on demand, and changed ones from time to time.

Everything here reads; what the reads mean is decided by `directory`. A record's `read_ns` is the caller's time before
the first request, so that a lifecycle frame that came meanwhile counts as newer.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec

from tickerplant.core.messages import MarketPhase
from tickerplant.errors import ConfigurationError, NotFoundError
from tickerplant.limits import (
    DISCOVERY_NAMES_SHOWN,
    LOOK_UP_ATTEMPTS,
    REFRESH_OVERLAP_NS,
    REFRESH_PAGE_ITEMS,
    REST_BACKOFF_BASE_NS,
    REST_BACKOFF_CAP_NS,
)
from tickerplant_kalshi.backoff import Backoff
from tickerplant_kalshi.directory_changes import LookUpEvent, LookUpMarket
from tickerplant_kalshi.records import MarketRecord, record_from_rest
from tickerplant_kalshi.rest import RestClient
from tickerplant_kalshi.rest_messages import RestMarket
from tickerplant_kalshi.selection import Selection

_SECOND_NS = 1_000_000_000
_LIVING_STATUSES = ("unopened", "paused", "open")
"""In the order of a life, so that a market that moves on between two walks is not missed."""
_OVER = frozenset({MarketPhase.DETERMINED, MarketPhase.SETTLED})


class DiscoveryResult(msgspec.Struct, frozen=True):
    """The wanted markets, each once; the listed tickers that do not exist; and lines for the user."""

    records: tuple[MarketRecord, ...]
    missing_tickers: tuple[str, ...]
    warnings: tuple[str, ...]


class LookUpResult(msgspec.Struct, frozen=True):
    """Answers to look-ups: markets, (event, series) pairs, and what does not exist even after several tries."""

    records: tuple[MarketRecord, ...]
    events: tuple[tuple[str, str], ...]
    missing_tickers: tuple[str, ...]
    missing_events: tuple[str, ...]


async def discover(rest: RestClient, selection: Selection, now_ns: int) -> DiscoveryResult:
    """All markets of a selection that live or will, and every listed one whatever its state.

    Raises `ConfigurationError` if nothing is chosen or nothing of what is chosen exists, and whatever `rest` raises.
    """
    if selection.is_empty:
        raise ConfigurationError(
            "no market is chosen: set one of markets.tickers, markets.series, markets.events or "
            "markets.all_open"
        )
    found = _Found(rest, now_ns)
    missing_tickers = await found.add_tickers(selection.tickers)
    missing = [f"market {ticker}" for ticker in missing_tickers]
    missing += [f"event {one}" for one in selection.events if not await found.add_event(one)]
    missing += [f"series {one}" for one in selection.series if not await found.add_series(one)]
    if selection.all_open:
        await found.add_all_open(include_combos=selection.include_combos)
    if not selection.all_open and not found.exists:
        raise ConfigurationError(
            f"nothing that was chosen exists on the exchange: {_shown(missing)}; check [markets] and "
            "exchange.rest_url (production and demo list different markets)"
        )
    warnings = [f"{name} does not exist on the exchange and is left out" for name in missing]
    return DiscoveryResult(
        records=await found.records(),
        missing_tickers=tuple(missing_tickers),
        warnings=(*warnings, *found.warnings),
    )


async def look_up(
    rest: RestClient,
    changes: Iterable[LookUpMarket | LookUpEvent],
    now_ns: int,
    *,
    random_unit: Callable[[], float] = random.random,
    backoff_base_ns: int = REST_BACKOFF_BASE_NS,
) -> LookUpResult:
    """Read the markets and events that a directory asked for, in batches.

    What the exchange does not know is tried again a bounded number of times: it may not know yet what it has just
    announced. Raises whatever `rest` raises, except `NotFoundError`.
    """
    asked = list(changes)
    tickers = _distinct(one.ticker for one in asked if isinstance(one, LookUpMarket))
    events = _distinct(one.event_ticker for one in asked if isinstance(one, LookUpEvent))
    records: dict[str, MarketRecord] = {}
    series_of: dict[str, str] = {}
    backoff = Backoff(backoff_base_ns, max(backoff_base_ns, REST_BACKOFF_CAP_NS))
    while True:
        async for market in _listed_markets(rest, [one for one in tickers if one not in records]):
            records[market.ticker] = record_from_rest(market, read_ns=now_ns)
        open_events = [one for one in events if one not in series_of]
        series_of.update(await _series_of_events(rest, open_events))
        for event in [one for one in open_events if one not in series_of]:
            series_of.update(await _series_of_one_event(rest, event))
        missing = len(records) < len(tickers) or len(series_of) < len(events)
        if not missing or backoff.failures + 1 >= LOOK_UP_ATTEMPTS:
            break
        await asyncio.sleep(backoff.next_delay_ns(random_unit()) / _SECOND_NS)
    return LookUpResult(
        records=tuple(records[one] for one in tickers if one in records),
        events=tuple((one, series_of[one]) for one in events if one in series_of),
        missing_tickers=tuple(one for one in tickers if one not in records),
        missing_events=tuple(one for one in events if one not in series_of),
    )


async def refresh(
    rest: RestClient, selection: Selection, since_ns: int, now_ns: int
) -> AsyncIterator[tuple[MarketRecord, ...]]:
    """Markets of the selection whose metadata changed since `since_ns`, new ones included, in small parts.

    Listed markets and those of listed events are read whether they changed or not. The parts are small so that decoding
    one does not hold up the plant.
    """
    since_s = max(0, (since_ns - REFRESH_OVERLAP_NS) // _SECOND_NS)
    walks = [(_listed_markets(rest, _distinct(selection.tickers)), "")]
    walks += [
        (rest.markets(event_ticker=event, page_items=REFRESH_PAGE_ITEMS), "")
        for event in selection.events
    ]
    changed = ["", *selection.series] if selection.all_open else selection.series
    for series_ticker in changed:
        # The exchange takes this time with mve_filter=exclude, and a series only together with both.
        exclude = series_ticker or not selection.include_combos
        walk = rest.markets(
            series_ticker=series_ticker,
            min_updated_ts=since_s,
            mve_filter="exclude" if exclude else "",
            page_items=REFRESH_PAGE_ITEMS,
        )
        walks.append((walk, series_ticker))
    for walk, series_ticker in walks:
        part: list[MarketRecord] = []
        async for market in walk:
            part.append(record_from_rest(market, series_ticker=series_ticker, read_ns=now_ns))
            if len(part) >= REFRESH_PAGE_ITEMS:
                yield tuple(part)
                part.clear()
        if part:
            yield tuple(part)


class _Found:
    """What a discovery has found so far."""

    def __init__(self, rest: RestClient, now_ns: int) -> None:
        self._rest = rest
        self._now_ns = now_ns
        self._records: dict[str, MarketRecord] = {}
        self._series_of: dict[str, str] = {}
        self.exists = False
        """Whether anything that was named exists, with markets or without."""
        self.warnings: list[str] = []

    async def add_tickers(self, tickers: Sequence[str]) -> list[str]:
        """Listed markets in any state; returns those that do not exist."""
        wanted = _distinct(tickers)
        async for market in _listed_markets(self._rest, wanted):
            self._add(market, "")
        missing = [ticker for ticker in wanted if ticker not in self._records]
        self.exists = self.exists or len(missing) < len(wanted)
        return missing

    async def add_event(self, event_ticker: str) -> bool:
        """Its markets that are not over; False if there is no such event."""
        living = 0
        try:
            async for market in self._rest.markets(event_ticker=event_ticker):
                self.exists = True
                living += self._add(market, "", over=False)
            if living:
                return True
            event = await self._rest.event(event_ticker)
        except NotFoundError:
            return False
        self.exists = True
        self._series_of[event_ticker] = event.series_ticker
        self.warnings.append(f"event {event_ticker} has no market that is or will be open")
        return True

    async def add_series(self, series_ticker: str) -> bool:
        """Its markets that live or will; False if there is no such series."""
        living = 0
        try:
            for status in _LIVING_STATUSES:
                async for market in self._rest.markets(series_ticker=series_ticker, status=status):
                    living += self._add(market, series_ticker)
            if not living:
                await self._rest.one_series(series_ticker)
        except NotFoundError:
            return False
        if not living:
            self.warnings.append(f"series {series_ticker} has no market that is or will be open")
        self.exists = True
        return True

    async def add_all_open(self, *, include_combos: bool) -> None:
        """Everything that lives or will, and the series of its events."""
        mve_filter = "" if include_combos else "exclude"
        for status in _LIVING_STATUSES:
            async for market in self._rest.markets(status=status, mve_filter=mve_filter):
                self._add(market, "")
        for status in ("unopened", "open"):
            async for event in self._rest.events(status=status):
                self._series_of[event.event_ticker] = event.series_ticker

    async def records(self) -> tuple[MarketRecord, ...]:
        """All that was found, in order, with the series where an event names it (combos: only if it is known)."""
        unknown = _distinct(
            record.event_ticker
            for record in self._records.values()
            if not record.series_ticker
            and not record.combo
            and record.event_ticker not in self._series_of
        )
        self._series_of.update(await _series_of_events(self._rest, unknown))
        return tuple(
            msgspec.structs.replace(
                record,
                series_ticker=record.series_ticker or self._series_of.get(record.event_ticker, ""),
            )
            for record in self._records.values()
        )

    def _add(self, market: RestMarket, series_ticker: str, *, over: bool = True) -> bool:
        """Keep a market, one that is over only if `over`; False if it was not kept."""
        record = record_from_rest(market, series_ticker=series_ticker, read_ns=self._now_ns)
        if record.phase in _OVER and not over:
            return False
        self._records[record.ticker] = record
        return True


async def _listed_markets(rest: RestClient, tickers: list[str]) -> AsyncIterator[RestMarket]:
    """Those of `tickers` that exist, and nothing else; nothing for an empty list."""
    wanted = frozenset(tickers)
    if not wanted:
        return
    async for market in rest.markets(tickers=tickers):
        if market.ticker in wanted:
            yield market


async def _series_of_events(rest: RestClient, events: list[str]) -> dict[str, str]:
    """The series of those events that a listing names; combos' events are in none."""
    wanted = frozenset(events)
    if not wanted:
        return {}
    return {
        event.event_ticker: event.series_ticker
        async for event in rest.events(tickers=events)
        if event.event_ticker in wanted
    }


async def _series_of_one_event(rest: RestClient, event_ticker: str) -> dict[str, str]:
    """The series of one event, asked by name; empty if it does not exist."""
    try:
        return {event_ticker: (await rest.event(event_ticker)).series_ticker}
    except NotFoundError:
        return {}


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _shown(names: Sequence[str]) -> str:
    """The first of many names."""
    more = len(names) - DISCOVERY_NAMES_SHOWN
    text = ", ".join(names[:DISCOVERY_NAMES_SHOWN])
    return f"{text} and {more} more" if more > 0 else text
