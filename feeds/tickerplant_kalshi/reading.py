"""Keeping the market directory current over REST (I/O): discovery at the start, look-ups on demand, refreshes.

What is read is handed to the feed in slices, with the loop free between them, so that a long list of markets never
holds up frames or heartbeats. While the plant runs nothing here can end it: what fails is logged and tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from tickerplant.errors import TickerplantError
from tickerplant.limits import (
    LOOK_UPS_PER_BATCH,
    LOOK_UPS_WAITING_MAX,
    RECORDS_PER_INPUT,
    REFRESH_INTERVAL_S,
    REFRESH_SPACING_S,
)
from tickerplant_kalshi.directory_changes import LookUpEvent, LookUpMarket
from tickerplant_kalshi.discovery import discover, look_up, refresh
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.records import MarketRecord
from tickerplant_kalshi.rest import RestClient

_SECOND_NS = 1_000_000_000


class ReaderLog(Protocol):
    """Where events are written; a structlog logger is one."""

    def info(self, event: str, **fields: Any) -> Any:
        """Write one event at level info."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Write one event at level warning."""


class ReaderShell(Protocol):
    """What the reader needs of the daemon."""

    def now_ns(self) -> int:
        """The time, in nanoseconds since the epoch."""

    def publish(self) -> None:
        """An input is complete."""


class MarketReader:
    """The REST side of one feed."""

    def __init__(
        self,
        feed: KalshiFeed,
        rest: RestClient,
        shell: ReaderShell,
        log: ReaderLog,
        *,
        refresh_interval_s: float = REFRESH_INTERVAL_S,
        refresh_spacing_s: float = REFRESH_SPACING_S,
    ) -> None:
        """`rest` must be open while any method runs."""
        self.is_discovered = False
        """Whether everything chosen was read once."""
        self.look_ups_dropped = 0
        self.look_ups_failed = 0
        self.markets_missing = 0
        self.readings = 0
        self.readings_failed = 0
        self._feed = feed
        self._rest = rest
        self._shell = shell
        self._log = log
        self._refresh_interval_s = refresh_interval_s
        self._refresh_spacing_s = refresh_spacing_s
        self._waiting: dict[LookUpMarket | LookUpEvent, None] = {}
        self._look_ups_wait = asyncio.Event()
        self._reading_wanted = asyncio.Event()
        self._read_since_ns = 0

    # --- called at the end of every input, cheap --------------------------------------------------

    def take_requests(self) -> None:
        """Queue the look-ups and the reading that the feed asks for."""
        feed = self._feed
        for one in feed.take_look_ups():
            if len(self._waiting) >= LOOK_UPS_WAITING_MAX:
                self.look_ups_dropped += 1
                feed.refresh_wanted = True
            else:
                self._waiting[one] = None
                self._look_ups_wait.set()
        if feed.refresh_wanted:
            feed.refresh_wanted = False
            self._reading_wanted.set()

    # --- tasks ------------------------------------------------------------------------------------

    async def discover(self) -> None:
        """Read everything chosen for the first time. Raises whatever `discovery.discover` raises."""
        started_ns = self._shell.now_ns()
        await self._read_everything(started_ns)
        self.is_discovered = True
        self._feed.discovery_done(self._shell.now_ns())
        self._shell.publish()
        self._log.info(
            "markets_discovered",
            markets=len(self._feed.directory),
            subscribed=self._feed.directory.subscribed_count,
            seconds=round((self._shell.now_ns() - started_ns) / _SECOND_NS, 3),
        )

    async def keep_current(self) -> None:
        """Read changed markets from time to time, and all of them after lifecycle frames were lost. Never ends."""
        while True:
            wanted = await _set_within(self._reading_wanted, self._refresh_interval_s)
            self._reading_wanted.clear()
            await self._attempt(self._read_after_loss if wanted else self._read_changed)
            await asyncio.sleep(self._refresh_spacing_s)

    async def look_up_asked(self) -> None:
        """Look up what the directory asks for, in batches; run `LOOK_UPS_AT_ONCE` of these. Never ends."""
        while True:
            await self._look_ups_wait.wait()
            batch = list(self._waiting)[:LOOK_UPS_PER_BATCH]
            for one in batch:
                del self._waiting[one]
            if not self._waiting:
                self._look_ups_wait.clear()
            if batch:
                await self._look_up(batch)

    def counters(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "look_ups_dropped": self.look_ups_dropped,
            "look_ups_failed": self.look_ups_failed,
            "markets_missing": self.markets_missing,
            "readings": self.readings,
            "readings_failed": self.readings_failed,
            "rest_requests": self._rest.requests,
            "rest_retries": self._rest.retries,
            "rest_throttled": self._rest.throttled,
        }

    def gauges(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "look_ups_waiting": len(self._waiting),
            "rest_clock_offset_ns": self._rest.clock_offset_ns or 0,
        }

    # --- readings ---------------------------------------------------------------------------------

    async def _read_everything(self, now_ns: int) -> None:
        found = await discover(self._rest, self._feed.directory.selection, now_ns)
        for number, warning in enumerate(found.warnings):
            self._log.warning("selection", problem=warning, rate_key=f"selection {number}")
        self.markets_missing = len(found.missing_tickers)
        await self._apply(found.records)
        self._read_since_ns = now_ns
        self.readings += 1

    async def _read_after_loss(self) -> None:
        now_ns = self._shell.now_ns()
        await self._read_everything(now_ns)
        # What is no longer listed has ended meanwhile, and only asking by name tells how.
        self._feed.look_up_unread(now_ns)
        self._shell.publish()

    async def _read_changed(self) -> None:
        now_ns = self._shell.now_ns()
        selection = self._feed.directory.selection
        async for records in refresh(self._rest, selection, self._read_since_ns, now_ns):
            await self._apply(records)
        self._read_since_ns = now_ns
        self.readings += 1

    async def _apply(self, records: Sequence[MarketRecord]) -> None:
        for start in range(0, len(records), RECORDS_PER_INPUT):
            part = records[start : start + RECORDS_PER_INPUT]
            self._feed.markets_read(part, self._shell.now_ns())
            self._shell.publish()
            await asyncio.sleep(0)

    async def _look_up(self, batch: Sequence[LookUpMarket | LookUpEvent]) -> None:
        try:
            result = await look_up(self._rest, batch, self._shell.now_ns())
        except TickerplantError as error:
            self.look_ups_failed += len(batch)
            self._log.warning("look_up_failed", count=len(batch), error=str(error))
            self._reading_wanted.set()
            await asyncio.sleep(self._refresh_spacing_s)
            return
        for event_ticker, series_ticker in result.events:
            self._feed.event_read(event_ticker, series_ticker, self._shell.now_ns())
            self._shell.publish()
        await self._apply(result.records)
        self.markets_missing += len(result.missing_tickers)

    async def _attempt(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        except TickerplantError as error:
            self.readings_failed += 1
            self._log.warning("reading_markets_failed", error=str(error))
            if read == self._read_after_loss:
                self._reading_wanted.set()


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event for a while; whether it is set."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
