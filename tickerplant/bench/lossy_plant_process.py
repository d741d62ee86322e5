"""A plant (a process) that logs everything and keeps some of it off the wire: feed, tick log and publisher, no session.

What was kept back is told, so that a subscriber's deliveries can be set beside it.
"""

import asyncio
import gc
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop

from tickerplant.bench.in_process import build_feed, make_live
from tickerplant.bench.load import ReferenceLoad
from tickerplant.bench.processes import BenchConfig, answer, commands, start_child
from tickerplant.config import PublishConfig
from tickerplant.core.messages import Stream
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import Kind, decode_header
from tickerplant.deadline_timer import DeadlineTimer
from tickerplant.runtime.daemon import GC_THRESHOLDS
from tickerplant.runtime.outlet import Outlet
from tickerplant.runtime.poll_timer import PollTimer
from tickerplant.runtime.publisher import Publisher, open_publisher
from tickerplant.runtime.ticklog import open_ticklog

_SECOND_NS = 1_000_000_000
_BURST_MAX = 50
"""Deltas that were due and go out before the loop runs other work."""
_TAIL_S = 0.2
"""From one lost tail to the next: the heartbeats of the one are over."""


class Lost(NamedTuple):
    """A datagram of the delta stream that was kept off the wire, and when the next of that stream had been sent."""

    sent_ns: int
    next_ns: int


class LossySender:
    """Sends to the groups, but not everything."""

    def __init__(self, publisher: Publisher, now_ns: Callable[[], int]) -> None:
        self.loss = 0.0
        """Share of the data datagrams, of any stream, that is kept back."""
        self.heartbeats_kept_back = 0
        """So many of the next heartbeats on the delta stream are kept back as well."""
        self.lost: list[Lost] = []
        self._publisher = publisher
        self._now_ns = now_ns
        self._chance = random.Random(1)  # noqa: S311  # a load, not a secret
        self._waiting: list[int] = []
        self._revealed: list[int] = []

    def send(self, datagrams: list[Datagram]) -> None:
        """As `Publisher.send`."""
        sent = [datagram for datagram in datagrams if not self._is_kept_back(datagram)]
        if sent:
            self._publisher.send(sent)
        if self._revealed:
            now_ns = self._now_ns()
            self.lost += [Lost(lost_ns, now_ns) for lost_ns in self._revealed]
            self._revealed.clear()

    def _is_kept_back(self, datagram: Datagram) -> bool:
        header = decode_header(datagram[1])
        is_delta = header.stream == Stream.DELTA
        if header.kind == Kind.DATA:
            if self._chance.random() < self.loss:
                if is_delta:
                    self._waiting.append(header.ts_send_ns)
                return True
        elif is_delta and self._waiting and self.heartbeats_kept_back:
            self.heartbeats_kept_back -= 1
            return True
        if is_delta and self._waiting:
            self._revealed += self._waiting
            self._waiting.clear()
        return False


class LossyPlant:
    """Publishes the reference load by itself."""

    def __init__(self, config: BenchConfig) -> None:
        self._clock_offset_ns = config.clock_offset_ns
        self._load = ReferenceLoad(markets=config.markets, seed=config.seed)
        now_ns = self.now_ns()
        self._feed = build_feed(self._load.tickers, now_ns)
        plant = self._feed.plant
        self._ticklog = open_ticklog(Path(config.log_folder))
        is_on = self._ticklog.begin_session(plant.session, now_ns)
        plant.set_log(is_on=is_on, oldest_seqs=self._ticklog.oldest_seqs)
        publisher = open_publisher(PublishConfig(group_a=config.group, port=config.port))
        self.sender = LossySender(publisher, self.now_ns)
        self._outlet = Outlet(plant, self._ticklog, self.sender)
        self._timer = DeadlineTimer(self.now_ns, self._fire)

    def now_ns(self) -> int:
        """The clock that all processes of the measurement share."""
        return time.monotonic_ns() + self._clock_offset_ns

    def close(self) -> None:
        """End the log."""
        self._timer.close()
        self._ticklog.close()

    async def make_live(self) -> None:
        """Publish every book."""
        ahead_ns = make_live(self._feed, self._load, self.now_ns(), self._outlet.send)
        await asyncio.sleep(max(0, ahead_ns - self.now_ns()) / _SECOND_NS)
        self._fire()

    def _fire(self) -> None:
        datagrams = self._feed.handle_timer(self.now_ns())
        if datagrams:
            self._outlet.send(datagrams)
        self._timer.arm(self._feed.next_deadline_ns())

    def publish(self, frame: bytes) -> None:
        """One delta, by itself."""
        now_ns = self.now_ns()
        self._feed.connections[0].receive_frame(frame, now_ns)
        self._outlet.send(self._feed.flush(now_ns))
        self._timer.arm(self._feed.next_deadline_ns())

    async def flow(self, count: int, per_second: int) -> None:
        """`count` deltas, each in datagrams of its own, at fixed times; asleep in between, for others use the core."""
        frames = self._load.deltas(count)
        answer({"begun": True})
        started_ns, published, is_over = self.now_ns(), 0, asyncio.Event()

        def publish_due() -> None:
            nonlocal published
            due = min((self.now_ns() - started_ns) * per_second // _SECOND_NS + 1, count)
            for frame in frames[published : min(due, published + _BURST_MAX)]:
                published += 1
                self.publish(frame)
            if published == count:
                is_over.set()

        timer = PollTimer(publish_due)
        timer.set_interval(_SECOND_NS // per_second)
        try:
            await is_over.wait()
        finally:
            timer.close()

    async def lose_tails(self, count: int, heartbeats: int) -> None:
        """`count` deltas that only heartbeats follow; the delta is lost, and the first `heartbeats` of those."""
        for frame in self._load.deltas(count):
            self.sender.loss, self.sender.heartbeats_kept_back = 1.0, heartbeats
            self.publish(frame)
            self.sender.loss = 0.0
            await asyncio.sleep(_TAIL_S)

    def report(self) -> dict[str, Any]:
        """What was lost since the last report."""
        lost, self.sender.lost = self.sender.lost, []
        return {"lost": lost, "unlogged": self._ticklog.unlogged_datagrams}


async def serve(config: BenchConfig) -> None:
    """Runs until the parent closes our input."""
    plant = LossyPlant(config)
    gc.set_threshold(*GC_THRESHOLDS)
    await plant.make_live()
    gc.collect()
    gc.freeze()
    answer({"ready": True})
    lines = await commands()
    while line := await lines.readline():
        command = msgspec.json.decode(line)
        if command["do"] == "flow":
            plant.sender.loss = command["loss"]
            await plant.flow(command["count"], command["per_second"])
            plant.sender.loss = 0.0
        else:
            await plant.lose_tails(command["count"], command["heartbeats"])
        answer(plant.report())
    plant.close()


if __name__ == "__main__":
    uvloop.run(serve(start_child()))
