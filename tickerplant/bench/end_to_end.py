"""Real WebSocket to real multicast to a subscriber: load sender, plant and subscriber as three processes.

Two arrangements on two cores, because each latency is to be measured of a process with a core of its own, on which it
does not sleep: in one the plant has it (`[processor] busy_poll`), sender and subscriber share the other; in the other
the subscriber has it (`run(..., busy_poll=True)`) and sender and plant share. Throughput is measured in the first; the
plant's process parses frames with `json.loads` in between, which is the reference of the ratio.
"""

import random
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec

from tickerplant.bench.processes import BenchConfig, ChildProcess

PLANT_CORE = 0
OTHER_CORE = 1
LATENCY_WINDOWS = 5


class Arrangement(NamedTuple):
    """On which core each process runs; `subscriber_spins` is where the subscriber never sleeps."""

    plant: int
    sender: int
    subscriber: int
    subscriber_spins: bool


PLANT_ALONE = Arrangement(PLANT_CORE, OTHER_CORE, OTHER_CORE, subscriber_spins=False)
SUBSCRIBER_ALONE = Arrangement(PLANT_CORE, PLANT_CORE, OTHER_CORE, subscriber_spins=True)


class EndToEnd:
    """One set of processes and the measurements on it."""

    def __init__(
        self, markets: int, seed: int = 1, *, arrangement: Arrangement = PLANT_ALONE
    ) -> None:
        self._markets = markets
        self._seed = seed
        self._arrangement = arrangement
        self._sender: ChildProcess
        self._plant: ChildProcess
        self._subscriber: ChildProcess
        self.log_folder: Path

    async def start(self, resources: AsyncExitStack) -> None:
        """Starts the processes; returns when all books are published."""
        group = free_group()
        folder = resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-"))
        self.log_folder = Path(folder)
        offset_ns = time.time_ns() - time.monotonic_ns()
        port = free_port()

        def config(core: int, url: str = "", *, busy_poll: bool = False) -> BenchConfig:
            return BenchConfig(
                self._markets, self._seed, group, port, offset_ns, core, url, folder, busy_poll
            )

        cores = self._arrangement
        enter = resources.enter_async_context
        self._sender = await enter(ChildProcess("sender", config(cores.sender)))
        subscriber = config(cores.subscriber, busy_poll=cores.subscriber_spins)
        self._subscriber = await enter(ChildProcess("subscriber_process", subscriber))
        await self._subscriber.read()
        sender_port = (await self._sender.read())["port"]
        url = f"ws://127.0.0.1:{sender_port}/trade-api/ws/v2"
        self._plant = await enter(ChildProcess("plant_process", config(cores.plant, url)))
        await self._plant.read()

    async def saturate(self, *, runs: int, frames: int) -> dict[str, Any]:
        """Throughput with the plant saturated: {"ratio", "frames_per_s", "reference_per_s", "log_cost", ...}.

        Everything published goes into the tick log, but for as many runs more, beside which its cost is seen.

        Rates and reference are per second of the plant's CPU time: sender and subscriber share a core on a small
        machine, and where they are the slower ones the plant waits for them. "ratio" is to the reference in turns
        with the plant, "ratio_alone" to one between the runs, while nothing else runs on the machine.
        """
        references = [await self._reference()]
        results: list[dict[str, Any]] = []
        without_log: list[dict[str, Any]] = []
        for number in range(2 * runs):
            # One right after the other, each first as often: the machine may get slower or faster meanwhile.
            log = number % 4 in (0, 3)
            (results if log else without_log).append(await self._run_saturated(frames, log=log))
            if log:
                references.append(await self._reference())
        rates = [result["frames_per_cpu_s"] for result in results]
        alone = [
            rate * 2 / (before + after)
            for rate, before, after in zip(rates, references[:-1], references[1:], strict=True)
        ]
        return {
            "ratio": statistics.median(
                one["frames_per_cpu_s"] / one["reference_per_s"] for one in results
            ),
            "ratio_alone": statistics.median(alone),
            "frames_per_s": statistics.median(rates),
            "reference_per_s": statistics.median(one["reference_per_s"] for one in results),
            "reference_alone_per_s": statistics.median(references),
            "busy": statistics.median(result["busy"] for result in results),
            "cpu_us_per_frame": statistics.median(r["cpu_us_per_frame"] for r in results),
            "log_cost": 1
            - statistics.median(
                logged["frames_per_cpu_s"] / unlogged["frames_per_cpu_s"]
                for logged, unlogged in zip(results, without_log, strict=True)
            ),
            "unlogged": sum(result["unlogged_datagrams"] for result in results),
            "lost": sum(r["datagrams_lost"] + r["gaps"] + r["sequence_gaps"] for r in results),
        }

    async def _reference(self) -> float:
        answer = await self._plant.ask(do="reference")
        per_second: float = answer["per_second"]
        return per_second

    async def _run_saturated(self, frames: int, *, log: bool) -> dict[str, Any]:
        await self._subscriber.ask(do="begin", sample=False)
        await self._plant.ask(do="begin", log=log, busy_poll=False, reference=True)
        await self._sender.ask(do="saturate", count=frames)
        plant = await self._plant.ask(do="finish", count=frames)
        subscriber = await self._subscriber.ask(do="finish", count=frames)
        return plant | subscriber

    async def pace(self, *, per_second: int, seconds: float, busy_poll: bool) -> dict[str, Any]:
        """Latencies at a fixed rate -> percentiles: {"tick_to_wire_us", "intended_us", and of `wire_latencies`}.

        With `busy_poll` the plant uses the whole of its core, without it sleeps between frames; whether the
        subscriber sleeps is a matter of the arrangement. As `typical` of `LATENCY_WINDOWS`.
        """
        each_s = seconds / LATENCY_WINDOWS
        return typical(
            [
                await self._pace_window(per_second, each_s, busy_poll=busy_poll)
                for _ in range(LATENCY_WINDOWS)
            ]
        )

    async def _pace_window(
        self, per_second: int, seconds: float, *, busy_poll: bool
    ) -> dict[str, Any]:
        count = int(per_second * seconds)
        await self._subscriber.ask(do="begin", sample=True)
        await self._plant.ask(do="begin", log=True, busy_poll=busy_poll, reference=False)
        times = await self._sender.ask(do="pace", per_second=per_second, seconds=seconds)
        await self._sender.read()
        plant = await self._plant.ask(do="finish", count=count)
        sent = await self._plant.ask(do="sent")
        subscriber = await self._subscriber.ask(do="finish", count=count, **sent, **times)
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


def typical(windows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of windows measured one after the other: the median of each percentile, the greatest maximum, counts added up.

    What the neighbours of a virtual machine do for a second is not what the plant takes. All else is of the last one.
    """
    combined = dict(windows[-1])
    for name, value in combined.items():
        if isinstance(value, int):
            combined[name] = sum(window[name] for window in windows)
        if isinstance(value, dict) and "p50" in value:
            combined[name] = {
                of: (max if of == "max" else statistics.median)(
                    window[name][of] for window in windows
                )
                for of in value
            }
    return combined


async def measure_floor(
    *, per_second: int, seconds: float, arrangement: Arrangement
) -> dict[str, Any]:
    """The latencies without a plant, arranged and put together alike: {"tick_to_wire_us", and of `wire_latencies`}."""
    async with AsyncExitStack() as resources:
        enter = resources.enter_async_context
        folder = resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-"))
        config = BenchConfig(
            1, 1, free_group(), free_port(), 0, arrangement.sender, log_folder=folder
        )
        sender = await enter(ChildProcess("sender", config))
        receiving = msgspec.structs.replace(config, core=arrangement.subscriber)
        receiver = await enter(ChildProcess("relay_process", receiving))
        await receiver.read()
        url = f"ws://127.0.0.1:{(await sender.read())['port']}/trade-api/ws/v2"
        relaying = msgspec.structs.replace(config, core=arrangement.plant, url=url)
        relay = await enter(ChildProcess("relay_process", relaying))
        await relay.read()
        windows = []
        for _ in range(LATENCY_WINDOWS):
            await receiver.ask(do="begin", busy_poll=arrangement.subscriber_spins)
            await relay.ask(do="begin", busy_poll=not arrangement.subscriber_spins)
            await sender.ask(do="pace", per_second=per_second, seconds=seconds / LATENCY_WINDOWS)
            await sender.read()
            relayed = await relay.ask(do="finish", sent_ns=[])
            received = await receiver.ask(do="finish", sent_ns=relayed.pop("sent_ns"))
            windows.append(relayed | received)
        return typical(windows)


async def measure_end_to_end(
    *, markets: int, runs: int, frames: int, per_second: int, seconds: float
) -> dict[str, Any]:
    """All of it: {"saturated", "asleep", "paced", "apart", "floor", "floor_apart", "books", "books_equal"}.

    "asleep" is where all sleep between frames, "paced" where the plant never does, "apart" where the subscriber never
    does, each on a core of its own; the floors are those of the last two.
    """
    rate: dict[str, Any] = {"per_second": per_second, "seconds": seconds}
    async with AsyncExitStack() as resources:
        bench = EndToEnd(markets)
        await bench.start(resources)
        saturated = await bench.saturate(runs=runs, frames=frames)
        asleep = await bench.pace(**rate, busy_poll=False)
        paced = await bench.pace(**rate, busy_poll=True)
        books, equal = await bench.books_equal()
    async with AsyncExitStack() as resources:
        bench = EndToEnd(markets, arrangement=SUBSCRIBER_ALONE)
        await bench.start(resources)
        apart = await bench.pace(**rate, busy_poll=False)
    return {
        "saturated": saturated,
        "asleep": asleep,
        "paced": paced,
        "apart": apart,
        "floor": await measure_floor(**rate, arrangement=PLANT_ALONE),
        "floor_apart": await measure_floor(**rate, arrangement=SUBSCRIBER_ALONE),
        "books": books,
        "books_equal": equal,
    }
