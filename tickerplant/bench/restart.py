"""From kill -9 to READY: simulated exchange and plant as processes, the plant killed and started again on its log."""

import asyncio
import os
import signal
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from tickerplant.core.messages import FeedPhase
from tickerplant.demo.network import draw_candidates, find_free_groups, reserved_port
from tickerplant.demo.parts import FlowOptions, Loopback, SimulatedExchange, configuration
from tickerplant.demo.processes import ChildProcess, until

_RATE = 2_000
_READY_TIMEOUT_S = 60.0
_RUN_S = 1.0
"""How long a plant runs before it is killed, so that there is something in its log."""
_READY = FeedPhase.READY.name.lower()


class _Run:
    """One life of the plant."""

    def __init__(self) -> None:
        self.process: ChildProcess
        self.books = 0
        self._ready = asyncio.Event()

    async def start(self, config: Path) -> float:
        """Seconds until READY. Raises `DemoError`."""
        started_s = time.monotonic()
        self.process = await ChildProcess.start(
            "the plant", ["run", "--config", str(config)], self._read_line
        )
        await until(self._ready.wait(), [self.process], _READY_TIMEOUT_S, "starting the plant")
        return time.monotonic() - started_s

    async def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.ended

    def _read_line(self, line: str) -> None:
        if '"feed_phase"' not in line or self._ready.is_set():
            return
        told = msgspec.json.decode(line)
        if told["phase"] == _READY:
            self.books = told["books"]
            self._ready.set()


async def measure_restart(*, markets: int, restarts: int) -> dict[str, Any]:
    """{"seconds": of each start but the first, "median_s", "books"}. Raises `DemoError`."""
    async with AsyncExitStack() as resources:
        folder = Path(resources.enter_context(TemporaryDirectory(prefix="tickerplant-bench-")))
        http = Loopback()
        resources.push_async_callback(http.close)
        port = resources.enter_context(reserved_port())
        group = await asyncio.to_thread(find_free_groups, port, draw_candidates())
        exchange = SimulatedExchange(http, folder / "exchange", FlowOptions(markets, _RATE, 1))
        await exchange.start(resources)
        config = folder / "tickerplant.toml"
        text = configuration(exchange.announced, group, port, folder / "state", with_store=False)
        config.write_text(text, encoding="utf-8")
        seconds = []
        for _ in range(restarts + 1):
            run = _Run()
            seconds.append(await run.start(config))
            resources.push_async_callback(run.process.stop)
            await asyncio.sleep(_RUN_S)
            await run.kill()
    return {
        "seconds": seconds[1:],
        "median_s": statistics.median(seconds[1:]),
        "books": run.books,
    }
