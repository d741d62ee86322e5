"""Real WebSocket to real multicast to a subscriber: load sender, plant and subscriber as three processes.

The plant has a core of its own and, where latencies are measured, does not sleep on it (`[processor] busy_poll`);
sender and subscriber share the next one. Before and after each saturated run the
plant's process parses frames with `json.loads`, which is the reference of the ratio.
"""

import random
import socket
import statistics
import time
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from tickerplant.bench.processes import BenchConfig, ChildProcess

PLANT_CORE = 0
OTHER_CORE = 1


class EndToEnd:
    """One set of processes and the measurements on it."""

    def __init__(self, markets: int, seed: int = 1) -> None:
        self._markets = markets
        self._seed = seed
        self._sender: ChildProcess
        self._plant: ChildProcess
        self._subscriber: ChildProcess

    async def start(self, resources: AsyncExitStack) -> None:
        """Starts the processes; returns when all books are published."""
        group = free_group()
        folder = resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-"))
        offset_ns = time.time_ns() - time.monotonic_ns()
        port = free_port()

        def config(core: int, url: str = "") -> BenchConfig:
            return BenchConfig(self._markets, self._seed, group, port, offset_ns, core, url, folder)

        enter = resources.enter_async_context
        self._sender = await enter(ChildProcess("sender", config(OTHER_CORE)))
        self._subscriber = await enter(ChildProcess("subscriber_process", config(OTHER_CORE)))
        await self._subscriber.read()
        sender_port = (await self._sender.read())["port"]
        url = f"ws://127.0.0.1:{sender_port}/trade-api/ws/v2"
        self._plant = await enter(ChildProcess("plant_process", config(PLANT_CORE, url)))
        await self._plant.read()

    async def saturate(self, *, runs: int, frames: int) -> dict[str, Any]:
        """Throughput with the plant saturated: {"ratio", "frames_per_s", "reference_per_s", "log_cost", ...}.

        Everything published goes into the tick log, but for as many runs more, beside which its cost is seen.

        Rates and reference are per second of the plant's CPU time: sender and subscriber share a core on a small
        machine, and where they are the slower ones the plant waits for them.
        """
        references = [await self._reference()]
        results: list[dict[str, Any]] = []
        without_log: list[dict[str, Any]] = []
        for number in range(2 * runs):
            # In turns, and each first as often as the other: the machine may get slower or faster meanwhile.
            log = number % 4 in (0, 3)
            (results if log else without_log).append(await self._run_saturated(frames, log=log))
            if log:
                references.append(await self._reference())
        rates = [result["frames_per_cpu_s"] for result in results]
        ratios = [
            rate * 2 / (before + after)
            for rate, before, after in zip(rates, references[:-1], references[1:], strict=True)
        ]
        return {
            "ratio": statistics.median(ratios),
            "frames_per_s": statistics.median(rates),
            "reference_per_s": statistics.median(references),
            "busy": statistics.median(result["busy"] for result in results),
            "cpu_us_per_frame": statistics.median(r["cpu_us_per_frame"] for r in results),
            "log_cost": 1
            - statistics.median(rates)
            / statistics.median(one["frames_per_cpu_s"] for one in without_log),
            "unlogged": sum(result["unlogged_datagrams"] for result in results),
            "lost": sum(r["datagrams_lost"] + r["gaps"] + r["sequence_gaps"] for r in results),
        }

    async def _reference(self) -> float:
        answer = await self._plant.ask(do="reference")
        per_second: float = answer["per_second"]
        return per_second

    async def _run_saturated(self, frames: int, *, log: bool) -> dict[str, Any]:
        await self._subscriber.ask(do="begin", sample=False)
        await self._plant.ask(do="begin", log=log, busy_poll=False)
        await self._sender.ask(do="saturate", count=frames)
        plant = await self._plant.ask(do="finish", count=frames)
        subscriber = await self._subscriber.ask(do="finish", count=frames)
        return plant | subscriber

    async def pace(self, *, per_second: int, seconds: float, busy_poll: bool) -> dict[str, Any]:
        """Latencies at a fixed rate: {"tick_to_wire_us", "wire_to_callback_us", "intended_us"} -> percentiles.

        With `busy_poll` the plant uses the whole of its core, without it sleeps between frames.
        """
        count = int(per_second * seconds)
        await self._subscriber.ask(do="begin", sample=True)
        await self._plant.ask(do="begin", log=True, busy_poll=busy_poll)
        times = await self._sender.ask(do="pace", per_second=per_second, seconds=seconds)
        await self._sender.read()
        plant = await self._plant.ask(do="finish", count=count)
        subscriber = await self._subscriber.ask(do="finish", count=count, **times)
        return plant | subscriber

    async def books_equal(self) -> tuple[int, int]:
        """(books of the plant, of these equal at the subscriber), by checksum."""
        plant = await self._plant.ask(do="checksums")
        subscriber = await self._subscriber.ask(do="checksums", tickers=sorted(plant))
        return len(plant), sum(subscriber.get(ticker) == crc for ticker, crc in plant.items())


def free_group() -> str:
    """First multicast group of a line that nobody else is likely to use."""
    draw = random.Random(time.monotonic_ns())  # noqa: S311  # a free group, not a secret
    return f"239.192.{draw.randrange(100, 250)}.{draw.randrange(1, 200)}"


def free_port() -> int:
    """A UDP port that nobody uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def measure_floor(*, per_second: int, seconds: float) -> dict[str, Any]:
    """Both latencies without a plant, on the same cores: {"tick_to_wire_us", "wire_to_callback_us"}."""
    async with AsyncExitStack() as resources:
        enter = resources.enter_async_context
        config = BenchConfig(1, 1, free_group(), free_port(), 0, OTHER_CORE)
        sender = await enter(ChildProcess("sender", config))
        receiver = await enter(ChildProcess("relay_process", config))
        await receiver.read()
        url = f"ws://127.0.0.1:{(await sender.read())['port']}/trade-api/ws/v2"
        relaying = msgspec.structs.replace(config, core=PLANT_CORE, url=url)
        relay = await enter(ChildProcess("relay_process", relaying))
        await relay.read()
        await receiver.ask(do="begin", busy_poll=False)
        await relay.ask(do="begin", busy_poll=True)
        await sender.ask(do="pace", per_second=per_second, seconds=seconds)
        await sender.read()
        return {
            "tick_to_wire_us": await relay.ask(do="finish"),
            "wire_to_callback_us": await receiver.ask(do="finish"),
        }


async def measure_end_to_end(
    *, markets: int, runs: int, frames: int, per_second: int, seconds: float
) -> dict[str, Any]:
    """All of it: {"saturated", "asleep", "paced", "floor", "books", "books_equal"}."""
    async with AsyncExitStack() as resources:
        bench = EndToEnd(markets)
        await bench.start(resources)
        saturated = await bench.saturate(runs=runs, frames=frames)
        asleep = await bench.pace(per_second=per_second, seconds=seconds, busy_poll=False)
        paced = await bench.pace(per_second=per_second, seconds=seconds, busy_poll=True)
        books, equal = await bench.books_equal()
    floor = await measure_floor(per_second=per_second, seconds=seconds)
    return {
        "saturated": saturated,
        "asleep": asleep,
        "paced": paced,
        "floor": floor,
        "books": books,
        "books_equal": equal,
    }
