"""The measured subscriber of a lossy plant (a process): joins late again and again, and notes when what came."""

import asyncio
import gc
import logging
import time
from contextlib import suppress
from typing import Any

import msgspec
import uvloop

from tickerplant.bench.processes import BenchConfig, answer, commands, start_child
from tickerplant.core.messages import LevelUpdate, UpstreamGap
from tickerplant_subscriber import BookView, Gap, Strategy
from tickerplant_subscriber.runner import run_async

_POLL_S = 0.005
_JOIN_MAX_S = 60.0
_LATE_S = 20.0
"""How long is waited for what may not come at all."""


class Joiner(Strategy):
    """Is done when so many books are live."""

    def __init__(self, books: int) -> None:
        self.live_ns = 0
        self._missing = books

    def on_live(self, ticker: str) -> None:
        """One book more."""
        self._missing -= 1
        if not self._missing:
            self.live_ns = time.monotonic_ns()
            self.stop()

    def on_stale(self, ticker: str, reason: int) -> None:
        """One book less."""
        self._missing += 1

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        """So that books are joined."""


class Receiver(Joiner):
    """Goes on, and notes when the last message of each datagram was handed over."""

    def __init__(self, books: int, clock_offset_ns: int) -> None:
        super().__init__(books)
        self.updates = 0
        self.gaps = 0
        self.delivered_ns: dict[int, int] = {}
        self.joined = asyncio.Event()
        self._clock_offset_ns = clock_offset_ns

    def stop(self) -> None:
        """It has joined; it does not stop."""
        self.joined.set()

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        """Something was not repaired."""
        self.gaps += 1

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        """A delta."""
        self.updates += 1
        self.delivered_ns[self.ts_send_ns] = time.monotonic_ns() + self._clock_offset_ns

    def begin(self) -> None:
        """Counts from zero."""
        self.updates = self.gaps = 0
        self.delivered_ns.clear()

    async def report(self, count: int, wanted: list[int]) -> dict[str, Any]:
        """Once `count` deltas came: when each of the datagrams sent at `wanted` did, 0 for never."""
        deadline_ns = time.monotonic_ns() + int(_LATE_S * 1e9)
        while self.updates < count and time.monotonic_ns() < deadline_ns:  # noqa: ASYNC110  # no hook in the callback
            await asyncio.sleep(_POLL_S)
        return {
            "updates": self.updates,
            "gaps": self.gaps,
            "delivered_ns": [self.delivered_ns.get(sent_ns, 0) for sent_ns in wanted],
        }


async def join(books: int, network: Any) -> dict[str, int]:
    """How long it took until every book was live, and the processor time of this process for it."""
    gc.collect()
    joiner = Joiner(books)
    started_ns, started_cpu_ns = time.monotonic_ns(), time.process_time_ns()
    async with asyncio.timeout(_JOIN_MAX_S):
        await run_async(joiner, **network)
    cpu_ns = time.process_time_ns() - started_cpu_ns
    return {"join_ns": joiner.live_ns - started_ns, "cpu_ns": cpu_ns}


class Listening:
    """The subscriber that goes on, for one measurement after the other."""

    def __init__(self, config: BenchConfig, network: Any) -> None:
        self.receiver: Receiver
        self._config = config
        self._network = network
        self._is_spinning: bool | None = None
        self._running: asyncio.Task[None] | None = None

    async def begin(self, *, busy_poll: bool) -> None:
        """Counts from zero; a subscriber that spins where the last one slept is another one, and joins anew."""
        if busy_poll is not self._is_spinning:
            await self.end()
            self._is_spinning = busy_poll
            self.receiver = Receiver(self._config.markets, self._config.clock_offset_ns)
            running = run_async(self.receiver, **self._network, busy_poll=busy_poll)
            self._running = asyncio.create_task(running)
        await self.receiver.joined.wait()
        self.receiver.begin()

    async def end(self) -> None:
        """Leaves the groups."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running


async def serve(config: BenchConfig) -> None:
    """Runs until the parent closes our input; `config.url` is the address of recovery."""
    logging.getLogger("tickerplant_subscriber").setLevel(logging.ERROR)
    network: Any = {"group_a": config.group, "port": config.port, "recovery": (config.url,)}
    answer({"started": True})
    lines = await commands()
    listening = Listening(config, network)
    while line := await lines.readline():
        command = msgspec.json.decode(line)
        if command["do"] == "join":
            answer(await join(config.markets, network | {"busy_poll": True}))
        elif command["do"] == "begin":
            await listening.begin(busy_poll=command["busy_poll"])
            answer({"begun": True})
        else:
            answer(await listening.receiver.report(command["count"], command["wanted"]))
    await listening.end()


if __name__ == "__main__":
    uvloop.run(serve(start_child()))
