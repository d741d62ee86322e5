"""What recovery is worth: how soon a loss is repaired, how soon a lost tail is found, how fast a subscriber joins.

Plant, recovery and subscriber are processes of their own; the plant logs everything and keeps a share off the wire. The
subscriber has a core of its own, on which it does not sleep, plant and recovery share the other.
"""

import asyncio
import json
import statistics
import time
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from typing import Any

from tickerplant.bench.end_to_end import OTHER_CORE, PLANT_CORE, free_group, free_port
from tickerplant.bench.load import ReferenceLoad
from tickerplant.bench.processes import BenchConfig, ChildProcess, percentiles, pin_to_core
from tickerplant.demo.processes import ChildProcess as CommandProcess
from tickerplant.demo.processes import until

LOSS = 0.01
_JOIN_FLOW_S = 0.4
"""Of the flow, for each join."""
_START_TIMEOUT_S = 60.0


class _Recovery:
    """`tickerplant recovery` on the log of the measurement; `port` is known once it has `caught_up`."""

    def __init__(self) -> None:
        self.port = 0
        self.caught_up = asyncio.Event()

    async def start(self, folder: str, resources: AsyncExitStack) -> None:
        """Returns when it serves all that there is. Raises `DemoError`."""
        values = {
            "log.format": "json",
            "ticklog.directory": folder,
            "recovery.port": "0",
            "recovery.metrics_port": "0",
        }
        settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        process = await CommandProcess.start("recovery", ["recovery", *settings], self._read_line)
        pin_to_core(PLANT_CORE, process.pid)
        resources.push_async_callback(process.stop)
        await until(self.caught_up.wait(), [process], _START_TIMEOUT_S, "starting recovery")

    def _read_line(self, line: str) -> None:
        if '"recovery_started"' in line:
            self.port = json.loads(line)["port"]
        elif '"recovery_caught_up"' in line:
            self.caught_up.set()


class _Bed:
    """The processes of one measurement."""

    def __init__(self, markets: int) -> None:
        self._markets = markets
        self.plant: ChildProcess
        self.subscriber: ChildProcess

    async def start(self, resources: AsyncExitStack) -> None:
        """Returns when every book is in the log and recovery has read it."""
        folder = resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-"))
        offset_ns = time.time_ns() - time.monotonic_ns()
        group, port = free_group(), free_port()

        def config(core: int, url: str = "") -> BenchConfig:
            return BenchConfig(self._markets, 1, group, port, offset_ns, core, url, folder)

        enter = resources.enter_async_context
        self.plant = await enter(ChildProcess("lossy_plant_process", config(PLANT_CORE)))
        await self.plant.read()
        recovery = _Recovery()
        await recovery.start(folder, resources)
        address = f"127.0.0.1:{recovery.port}"
        self.subscriber = await enter(
            ChildProcess("repaired_process", config(OTHER_CORE, url=address))
        )
        await self.subscriber.read()

    async def join(self, *, joins: int, per_second: int) -> dict[str, Any]:
        """Late joins while the plant publishes: {"us", "cpu_us", "joins"}, the latter of the subscriber, a median."""
        count = int(joins * _JOIN_FLOW_S * per_second)
        await self.plant.ask(do="flow", count=count, per_second=per_second, loss=0.0)
        taken = [await self.subscriber.ask(do="join") for _ in range(joins)]
        await self.plant.read()
        return {
            "us": percentiles([one["join_ns"] for one in taken]),
            "cpu_us": statistics.median(one["cpu_ns"] for one in taken) / 1_000,
            "joins": joins,
        }

    async def repair(self, *, per_second: int, seconds: float, busy_poll: bool) -> dict[str, Any]:
        """Losses at a fixed rate: {"us", "lost", "missing", "gaps"}. With `busy_poll` the subscriber never sleeps."""
        count = int(per_second * seconds)
        await self.subscriber.ask(do="begin", busy_poll=busy_poll)
        await self.plant.ask(do="flow", count=count, per_second=per_second, loss=LOSS)
        lost = (await self.plant.read())["lost"]
        told = await self._deliveries(count, lost)
        repaired_ns = [
            came_ns - seen_ns
            for (_, seen_ns), came_ns in zip(lost, told["delivered_ns"], strict=True)
            if came_ns
        ]
        return {
            "us": percentiles(repaired_ns),
            "lost": len(lost),
            "missing": count - told["updates"],
            "gaps": told["gaps"],
        }

    async def tails(self, *, count: int, heartbeats: int) -> dict[str, Any]:
        """Lost tails: {"found_us": until the heartbeat that tells of it, "delivered_us", "missing"}."""
        await self.subscriber.ask(do="begin", busy_poll=True)
        lost = (await self.plant.ask(do="tails", count=count, heartbeats=heartbeats))["lost"]
        told = await self._deliveries(count, lost)
        return {
            "found_us": percentiles([seen_ns - sent_ns for sent_ns, seen_ns in lost]),
            "delivered_us": percentiles(
                [
                    came_ns - sent_ns
                    for (sent_ns, _), came_ns in zip(lost, told["delivered_ns"], strict=True)
                    if came_ns
                ]
            ),
            "missing": count - told["updates"],
        }

    async def _deliveries(self, count: int, lost: list[tuple[int, int]]) -> dict[str, Any]:
        wanted = [sent_ns for sent_ns, _ in lost]
        return await self.subscriber.ask(do="report", count=count, wanted=wanted)


def _reference_ns(markets: int) -> int:
    """`json.loads` of the snapshot frames of as many books, in this process."""
    frames = list(ReferenceLoad(markets=markets).snapshots())
    started_ns = time.process_time_ns()
    for frame in frames:
        json.loads(frame)
    return time.process_time_ns() - started_ns


async def measure_repair(
    *, markets: int, joins: int, tails: int, per_second: int, seconds: float
) -> dict[str, Any]:
    """{"join", "repair", "repair_asleep", "tail", "late_tail", "books"}, times as percentiles in microseconds.

    Repair is from the return of the send of the datagram that shows the hole to the callback of the last message that
    was missing; "repair_asleep" is where the subscriber sleeps between datagrams. Raises `DemoError`.
    The `cpu_ratio` of a join is to `json.loads` of the exchange's snapshots of the same books.
    """
    async with AsyncExitStack() as resources:
        bed = _Bed(markets)
        await bed.start(resources)
        join = await bed.join(joins=joins, per_second=per_second)
        rate: dict[str, Any] = {"per_second": per_second, "seconds": seconds}
        repair_asleep = await bed.repair(**rate, busy_poll=False)
        repair = await bed.repair(**rate, busy_poll=True)
        tail = await bed.tails(count=tails, heartbeats=0)
        late_tail = await bed.tails(count=tails, heartbeats=1)
    reference_us = _reference_ns(markets) / 1_000
    return {
        "books": markets,
        "join": join | {"cpu_ratio": join["cpu_us"] / reference_us},
        "repair": repair,
        "repair_asleep": repair_asleep,
        "tail": tail,
        "late_tail": late_tail,
    }
