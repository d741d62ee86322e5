"""Books that are wrong without any sequence number saying so: found, told and healed, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from plant_in_process import (
    Place,
    daemon_of,
    exchange,
    place,
    running,
    settled,
    unequal_books,
    until,
)
from processes import free_network

from tickerplant.config import VerifyConfig
from tickerplant.core.messages import BookLevels, BookStale, LevelUpdate, StaleReason, UpdateCause
from tickerplant.runtime.daemon import Daemon
from tickerplant_kalshi_sim.faults import Fault
from tickerplant_kalshi_sim.server import SimulationServer
from tickerplant_subscriber import Live, Stale, Subscriber

__all__ = ["place"]

CHECK_INTERVAL_MS = 150
VERIFY_INTERVAL_MS = 20
VERIFY = VerifyConfig(interval_ms=VERIFY_INTERVAL_MS, upstream_interval_ms=CHECK_INTERVAL_MS)


@pytest.fixture
def group() -> str:
    return free_network().group


@pytest.fixture
def free_udp_port() -> int:
    return free_network().port


class Listener:
    """A subscriber that keeps everything it was told."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.items: list[object] = []

    async def listen(self) -> None:
        async for item in self.subscriber:
            self.items.append(item)

    def books(self) -> dict[str, tuple[tuple[tuple[int, int], ...], ...]]:
        """Live books only."""
        return {
            view.ticker: (tuple(view.bids.items()), tuple(view.asks.items()))
            for view in self.subscriber.books()
            if view.live
        }


@asynccontextmanager
async def listening(where: Place) -> AsyncIterator[Listener]:
    async with Subscriber(
        streams=["delta"], group_a=where.group, port=where.port, recovery=()
    ) as subscriber:
        listener = Listener(subscriber)
        task = asyncio.create_task(listener.listen())
        yield listener
        subscriber.close()
        await task


def published(daemon: Daemon) -> int:
    """Book messages so far, checksums left out."""
    return daemon.plant.packets.delta.next_seq - daemon.plant.verification.books_verified


async def quiet(daemon: Daemon) -> None:
    """Nothing more of the exchange's flow is on the way."""
    seen, since = published(daemon), time.monotonic()
    while time.monotonic() - since < 0.03:
        await asyncio.sleep(0.005)
        if published(daemon) != seen:
            seen, since = published(daemon), time.monotonic()


async def lose_silently(server: SimulationServer, daemon: Daemon) -> list[str]:
    """Deltas are lost without a hole until a book is wrong; the flow then stands still. Returns the wrong books."""
    for _ in range(20):
        server.inject(Fault(kind="silent_loss", count=5))
        before = published(daemon)
        await until(lambda before=before: published(daemon) > before + 10)
        server.pause_flow()
        await quiet(daemon)
        if wrong := unequal_books(daemon, server):
            return wrong
        server.resume_flow()
    pytest.fail("no book became wrong")


async def test_deltas_lost_without_a_hole_are_found_and_healed_within_one_round(
    place: Place,
) -> None:
    """The plant compares its books with the exchange's; subscribers get what differs."""
    async with (
        exchange(place, markets=8, rate=2_000) as server,
        listening(place) as listener,
    ):
        daemon = daemon_of(server, place, verify=VERIFY)
        async with running(daemon):
            await until(lambda: len(listener.books()) == len(daemon.plant.entries))
            wrong = await lose_silently(server, daemon)
            assert all(entry.live for entry in daemon.plant.entries.values()), "nobody knows"
            assert dict(daemon.feed.counters())["sequence_gaps"] == 0
            began = time.monotonic()
            await settled(daemon, server)
            round_s = len(daemon.plant.entries) * CHECK_INTERVAL_MS / 1_000
            assert time.monotonic() - began < round_s + 1
            assert daemon.plant.books_diverged >= len(wrong)
            await until(lambda: listener.books() == tellable(server, daemon))
            # Logged once a second.
            told: list[dict[str, Any]] = []
            await until(
                lambda: (
                    told.extend(daemon.log.of("book_diverged"))
                    or set(wrong) <= {fields["ticker"] for fields in told}
                )
            )
            assert all(fields["levels"] >= 1 for fields in told)
        healed = {
            item.ticker
            for item in listener.items
            if isinstance(item, BookStale) and item.reason == StaleReason.INCONSISTENT
        }
        assert set(wrong) <= healed
        # The levels that differ, or an image where the book is so small that this is shorter.
        repaired = {
            item.ticker
            for item in listener.items
            if isinstance(item, BookLevels)
            or (isinstance(item, LevelUpdate) and item.cause == UpdateCause.RESYNC)
        }
        assert repaired >= set(wrong)


def tellable(
    server: SimulationServer, daemon: Daemon
) -> dict[str, tuple[tuple[tuple[int, int], ...], ...]]:
    """The exchange's own books of the plant's markets."""
    return {ticker: server.books()[ticker] for ticker in daemon.plant.entries}


async def test_a_subscriber_whose_book_went_wrong_unseen_is_told_by_a_checksum(
    place: Place,
) -> None:
    """Memory that changed by itself stands for any fault of the subscriber: no book of it is offered as live."""
    async with (
        exchange(place, markets=8, rate=200) as server,
        listening(place) as listener,
    ):
        daemon = daemon_of(server, place, verify=VERIFY)
        async with running(daemon):
            await until(lambda: len(listener.books()) == len(daemon.plant.entries))
            await settled(daemon, server)
            verified = daemon.plant.verification.books_verified
            await until(
                lambda: daemon.plant.verification.books_verified > verified + len(listener.books())
            )
            told = [item for item in listener.items if isinstance(item, Stale)]
            assert told == [], "right books stay live, round after round"
            view = next(view for view in listener.subscriber.books() if view.level_count)
            (price_e4, size_e2) = next(iter((view.bids or view.asks).items()))
            side = 0 if view.bids else 1
            view.set_level(side, price_e4, size_e2 + 1)
            await until(
                lambda: any(
                    isinstance(item, Stale) and item.reason is StaleReason.CHECKSUM_MISMATCH
                    for item in listener.items
                )
            )
            stale = next(item for item in listener.items if isinstance(item, Stale))
            assert stale.ticker == view.ticker
            assert not view.live
            assert listener.subscriber.stats().checksum_mismatches == 1
            # Once it is right again, the next checksum says so.
            view.set_level(side, price_e4, size_e2)
            await until(lambda: view.live)
            last = [item for item in listener.items if isinstance(item, Live | Stale)][-1]
            assert (type(last), last.ticker) == (Live, view.ticker)
