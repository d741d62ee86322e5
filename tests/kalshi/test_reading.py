"""The market reader: a real feed kept current over a real REST server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tickerplant.core.messages import MarketPhase
from tickerplant.core.plant import Plant
from tickerplant.errors import ConfigurationError, ExchangeUnavailableError
from tickerplant.limits import RECORDS_PER_INPUT, REST_ATTEMPTS
from tickerplant_kalshi import reading
from tickerplant_kalshi.directory import MarketDirectory
from tickerplant_kalshi.feed import KalshiFeed
from tickerplant_kalshi.reading import MarketReader
from tickerplant_kalshi.rest import RestClient
from tickerplant_kalshi.selection import Selection

SECOND_NS = 1_000_000_000
NOW_NS = 1_795_255_200 * SECOND_NS


class Shell:
    """What the daemon is to a reader: flushes the feed, and hands its requests back."""

    def __init__(self, selection: Selection, rest: RestClient, **options: Any) -> None:
        self.time_ns = NOW_NS
        self.plant = Plant(NOW_NS, NOW_NS)
        self.feed = KalshiFeed(self.plant, MarketDirectory(selection), channels=())
        self.reader = MarketReader(self.feed, rest, self, self, refresh_spacing_s=0.01, **options)
        self.publications = 0
        self.warnings: list[tuple[str, dict[str, Any]]] = []

    def now_ns(self) -> int:
        return self.time_ns

    def publish(self) -> None:
        self.publications += 1
        self.feed.flush(self.time_ns)
        self.reader.take_requests()

    def info(self, event: str, **fields: Any) -> None:
        """Not looked at."""

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append((event, fields))

    def phase(self, ticker: str) -> MarketPhase | None:
        record = self.feed.directory.record(ticker)
        return record.phase if record is not None else None


@pytest.fixture
async def rest(rest_exchange: Any) -> AsyncIterator[RestClient]:
    async with RestClient(rest_exchange.base_url, None, backoff_base_ns=1) as client:
        yield client


@asynccontextmanager
async def running(*work: Awaitable[None]) -> AsyncIterator[None]:
    """Tasks that never end by themselves."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition()` holds; fail after five seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within thirty seconds"
        await asyncio.sleep(0.002)


async def test_discovery_reaches_the_feed_in_slices_with_the_loop_free_between(
    rest_exchange: Any, rest: RestClient
) -> None:
    count = 2 * RECORDS_PER_INPUT + 50
    for number in range(count):
        rest_exchange.add_market(f"KXA-1-T{number}")
    shell = Shell(Selection(series=("KXA",)), rest)
    assert not shell.reader.is_discovered
    await shell.reader.discover()
    assert shell.reader.is_discovered
    assert len(shell.plant.entries) == count
    # Three slices and the end of the discovery.
    assert shell.publications == 4
    assert shell.plant.g == 4


async def test_missing_markets_are_warnings_that_do_not_suppress_each_other(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    shell = Shell(Selection(tickers=("KXA-1-T1", "KXNO-1", "KXNO-2")), rest)
    await shell.reader.discover()
    assert [fields["problem"].split()[1] for _, fields in shell.warnings] == ["KXNO-1", "KXNO-2"]
    assert len({fields["rate_key"] for _, fields in shell.warnings}) == 2
    assert shell.reader.markets_missing == 2


async def test_a_first_discovery_that_fails_is_an_error(
    rest_exchange: Any, rest: RestClient
) -> None:
    with pytest.raises(ConfigurationError, match="KXNO"):
        await Shell(Selection(series=("KXNO",)), rest).reader.discover()
    for _ in range(REST_ATTEMPTS):
        rest_exchange.answer_next(503)
    with pytest.raises(ExchangeUnavailableError):
        await Shell(Selection(series=("KXNO",)), rest).reader.discover()


async def test_look_ups_are_answered_and_reach_the_feed(
    rest_exchange: Any, rest: RestClient
) -> None:
    market = rest_exchange.add_market("KXA-1-T1")
    shell = Shell(Selection(series=("KXA",)), rest)
    await shell.reader.discover()
    market |= {"status": "finalized", "result": "yes"}
    shell.time_ns += 10 * SECOND_NS
    async with running(shell.reader.look_up_asked(), shell.reader.look_up_asked()):
        shell.feed.directory.look_up_unread(shell.time_ns)
        shell.publish()
        await until(lambda: shell.phase("KXA-1-T1") is MarketPhase.SETTLED)
        assert shell.reader.gauges()["look_ups_waiting"] == 0


async def test_lost_lifecycle_frames_cause_a_reading_that_also_finds_what_has_ended(
    rest_exchange: Any, rest: RestClient
) -> None:
    ended = rest_exchange.add_market("KXA-1-T1")
    shell = Shell(Selection(series=("KXA",)), rest)
    await shell.reader.discover()
    ended |= {"status": "finalized", "result": "no"}
    rest_exchange.add_market("KXA-1-T2")
    shell.time_ns += 10 * SECOND_NS
    async with running(shell.reader.keep_current(), shell.reader.look_up_asked()):
        shell.feed.lifecycle_gap()
        shell.publish()
        await until(lambda: "KXA-1-T2" in shell.plant.entries)
        await until(lambda: shell.phase("KXA-1-T1") is MarketPhase.SETTLED)
    assert shell.reader.readings == 2
    assert shell.feed.refresh_wanted is False


async def test_changed_markets_are_read_from_time_to_time(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    shell = Shell(Selection(series=("KXA",)), rest, refresh_interval_s=0.01)
    await shell.reader.discover()
    rest_exchange.add_market("KXA-1-T2")
    async with running(shell.reader.keep_current()):
        await until(lambda: "KXA-1-T2" in shell.plant.entries)
    assert any("min_updated_ts" in request.query for request in rest_exchange.requests)


async def test_a_reading_that_fails_is_logged_and_done_again(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    shell = Shell(Selection(series=("KXA",)), rest)
    await shell.reader.discover()
    for _ in range(REST_ATTEMPTS):
        rest_exchange.answer_next(502)
    async with running(shell.reader.keep_current()):
        shell.feed.lifecycle_gap()
        shell.publish()
        await until(lambda: shell.reader.readings == 2)
    assert shell.reader.readings_failed == 1
    assert [event for event, _ in shell.warnings] == ["reading_markets_failed"]


async def test_look_ups_that_fail_are_made_good_by_a_reading(
    rest_exchange: Any, rest: RestClient
) -> None:
    rest_exchange.add_market("KXA-1-T1")
    shell = Shell(Selection(series=("KXA",)), rest)
    await shell.reader.discover()
    shell.time_ns += 10 * SECOND_NS
    for _ in range(REST_ATTEMPTS):
        rest_exchange.answer_next(429)
    async with running(shell.reader.look_up_asked()):
        shell.feed.directory.look_up_unread(shell.time_ns)
        shell.publish()
        await until(lambda: shell.reader.look_ups_failed == 1)
        async with running(shell.reader.keep_current()):
            await until(lambda: shell.reader.readings == 2)
    assert shell.reader.look_ups_failed == 1
    assert shell.reader.readings_failed == 0


async def test_look_ups_beyond_the_bound_are_dropped_counted_and_made_good_by_a_reading(
    rest_exchange: Any, rest: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LOOK_UPS_WAITING_MAX", 2)
    for number in range(5):
        rest_exchange.add_market(f"KXA-1-T{number}")
    shell = Shell(Selection(series=("KXA",)), rest)
    await shell.reader.discover()
    shell.feed.directory.look_up_unread(NOW_NS + 1)
    shell.publish()
    assert shell.reader.gauges()["look_ups_waiting"] == 2
    assert shell.reader.look_ups_dropped == 3
    async with running(shell.reader.keep_current()):
        await until(lambda: shell.reader.readings == 2)
