"""Many subscribers on one host: whether anything is lost. How late they are says nothing where cores are few."""

import asyncio
import time
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from typing import Any

from tickerplant.bench.end_to_end import OTHER_CORE, PLANT_CORE, free_group, free_port
from tickerplant.bench.processes import BenchConfig, ChildProcess

START_AT_ONCE = 4


async def measure_fan_out(
    *, subscribers: int, markets: int, per_second: int, seconds: float
) -> dict[str, Any]:
    """{"subscribers", "messages", "delivered", "gaps", "datagrams_lost"} after a run at a fixed rate.

    `messages` are the book updates that each subscriber should have had, `delivered` what the least of them got.
    """
    group, port = free_group(), free_port()
    offset_ns = time.time_ns() - time.monotonic_ns()
    async with AsyncExitStack() as resources:
        folder = resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-"))
        enter = resources.enter_async_context

        def config(core: int, url: str = "") -> BenchConfig:
            return BenchConfig(markets, 1, group, port, offset_ns, core, url, folder)

        sender = await enter(ChildProcess("sender", config(OTHER_CORE)))
        receivers: list[ChildProcess] = []
        while len(receivers) < subscribers:
            few = [
                await enter(ChildProcess("subscriber_process", config(-1)))
                for _ in range(min(START_AT_ONCE, subscribers - len(receivers)))
            ]
            for receiver in few:
                await receiver.read()
            receivers += few
        url = f"ws://127.0.0.1:{(await sender.read())['port']}/trade-api/ws/v2"
        plant = await enter(ChildProcess("plant_process", config(PLANT_CORE, url)))
        await plant.read()
        return await _run(sender, plant, receivers, per_second, seconds)


async def _run(
    sender: ChildProcess,
    plant: ChildProcess,
    receivers: list[ChildProcess],
    per_second: int,
    seconds: float,
) -> dict[str, Any]:
    count = int(per_second * seconds)
    for receiver in receivers:
        await receiver.ask(do="begin", sample=False)
    await plant.ask(do="begin", log=True, busy_poll=False, reference=False)
    await sender.ask(do="pace", per_second=per_second, seconds=seconds)
    await sender.read()
    published = await plant.ask(do="finish", count=count)
    reports = await asyncio.gather(*(one.ask(do="finish", count=count) for one in receivers))
    return {
        "subscribers": len(receivers),
        "messages": count,
        "delivered": min(report["updates"] for report in reports),
        "gaps": sum(report["gaps"] for report in reports),
        "datagrams_lost": published["datagrams_lost"],
    }
