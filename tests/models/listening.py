"""A subscriber on real sockets whose items are collected, and what may be asked of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from repaired_feed import MulticastPlant

from tickerplant.core.messages import Stream
from tickerplant.core.wire import Header, Kind
from tickerplant_subscriber import Subscriber

SECONDS_MAX = 25.0


class Listening:
    """A subscriber whose items are collected in the background."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.items: list[Any] = []

    async def collect(self) -> None:
        async for item in self.subscriber:
            self.items.append(item)

    def of(self, *kinds: type) -> list[Any]:
        return [item for item in self.items if isinstance(item, kinds)]

    async def until(self, condition: Callable[[], object], plant: Any = None) -> None:
        """`condition()` holds; the plant's heartbeats go on."""
        async with asyncio.timeout(SECONDS_MAX):
            while not condition():
                if plant is not None:
                    plant.tick()
                await asyncio.sleep(0.002)

    async def until_whole(self, plant: MulticastPlant) -> None:
        """Everything published has come, books are right, and all of it was handed out."""
        await self.until(lambda: self.places() == (plant.session, plant.next_seqs), plant)
        await self.until(lambda: books_right(plant, self.subscriber), plant)
        await self.until(lambda: not self.subscriber.waiting_count, plant)

    def places(self) -> tuple[int, tuple[int, ...]]:
        """Session and next sequence of each stream; session 0 while they differ."""
        streams = sorted(self.subscriber.stats().streams, key=lambda each: each.stream)
        sessions = {each.session for each in streams}
        return sessions.pop() if len(sessions) == 1 else 0, tuple(each.next_seq for each in streams)


@asynccontextmanager
async def listening(group: str, port: int, server: Any, **options: Any) -> AsyncIterator[Listening]:
    """With recovery at `server`, or without if that is None."""
    addresses = [] if server is None else [f"127.0.0.1:{server.port}"]
    options = {"recovery": addresses} | options
    async with Subscriber(group_a=group, port=port, **options) as subscriber:
        listener = Listening(subscriber)
        task = asyncio.create_task(listener.collect())
        try:
            yield listener
        finally:
            subscriber.close()
            await task


def every(count: int, *, stream: Stream | None = None) -> Callable[[Header], bool]:
    """Each so-maniest data datagram is lost."""
    seen = [0]

    def is_lost(header: Header) -> bool:
        if header.kind != Kind.DATA or stream not in (None, header.stream):
            return False
        seen[0] += 1
        return seen[0] % count == 0

    return is_lost


def books_right(plant: MulticastPlant, subscriber: Subscriber) -> bool:
    """Every book of the plant is there, LIVE and equal; STALE ones of the plant are STALE."""
    for entry in plant.plant.entries.values():
        view = subscriber.book(entry.ticker)
        if view is None or view.live != (entry.in_sync and entry.live):
            return False
        if view.live and view.checksum() != entry.checksum():
            return False
    return True
