"""The measured subscriber (a process): a strategy that takes every book and best bid and offer."""

import asyncio
import time
from typing import Any

import msgspec
import uvloop

from tickerplant.bench.processes import (
    BenchConfig,
    answer,
    commands,
    percentiles,
    start_child,
    wire_latencies,
)
from tickerplant.core.messages import Bbo, LevelUpdate, UpstreamGap
from tickerplant_subscriber import BookView, Gap, Strategy
from tickerplant_subscriber.events import SessionChanged, SessionEnded
from tickerplant_subscriber.runner import run_async


class Meter(Strategy):
    """Counts; while sampling, notes for each change when it came, and the stamp of its datagram."""

    def __init__(self, config: BenchConfig) -> None:
        self._clock_offset_ns = config.clock_offset_ns
        self.updates = 0
        self.bbos = 0
        self.gaps = 0
        self.sampling = False
        self.arrivals_ns: list[tuple[int, int]] = []
        self.session_seen = asyncio.Event()

    def on_session(self, session: SessionChanged | SessionEnded) -> None:
        """The plant is there."""
        self.session_seen.set()

    def on_book(self, book: BookView, update: LevelUpdate) -> None:
        """A delta."""
        self.updates += 1
        if self.sampling:
            now_ns = time.monotonic_ns() + self._clock_offset_ns
            self.arrivals_ns.append((self.ts_send_ns, now_ns))

    def on_bbo(self, bbo: Bbo) -> None:
        """A best moved."""
        self.bbos += 1

    def on_gap(self, gap: Gap | UpstreamGap) -> None:
        """Something was lost."""
        self.gaps += 1

    def lost(self) -> int:
        """Gaps on the way, as the library counted them."""
        return self.gaps


def intended(meter: Meter, started_ns: int, interval_ns: int) -> dict[str, float]:
    """From the intended send time at the exchange to the callback."""
    late_ns = [
        arrived_ns - started_ns - index * interval_ns
        for index, (_stamp_ns, arrived_ns) in enumerate(meter.arrivals_ns)
    ]
    return percentiles(late_ns)


async def serve(config: BenchConfig) -> None:
    """Runs until the parent closes our input."""
    meter = Meter(config)
    running = asyncio.create_task(
        run_async(
            meter,
            group_a=config.group,
            port=config.port,
            recovery=(),
            busy_poll=config.busy_poll,
        )
    )
    await asyncio.sleep(0)
    answer({"joined": True})
    lines = await commands()
    while line := await lines.readline():
        command = msgspec.json.decode(line)
        if command["do"] == "begin":
            meter.sampling = command["sample"]
            meter.arrivals_ns = []
            meter.updates = meter.bbos = 0
            answer({"begun": True})
        elif command["do"] == "finish":
            while meter.updates < command["count"] and not meter.gaps:  # noqa: ASYNC110  # no hook in the callback
                await asyncio.sleep(0.005)
            report: dict[str, Any] = {
                "updates": meter.updates,
                "bbos": meter.bbos,
                "gaps": meter.gaps,
            }
            if meter.sampling:
                report |= wire_latencies(meter.arrivals_ns, command["sent_ns"])
                report["intended_us"] = intended(
                    meter, command["started_ns"], command["interval_ns"]
                )
            answer(report)
        else:
            views = {ticker: meter.book(ticker) for ticker in command["tickers"]}
            answer(
                {t: view.checksum() for t, view in views.items() if view is not None and view.live}
            )
    running.cancel()


if __name__ == "__main__":
    uvloop.run(serve(start_child()))
