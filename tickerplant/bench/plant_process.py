"""The measured plant (a process): the real session, feed, tick log and publisher, without REST and housekeeping."""

import asyncio
import gc
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tickerplant.bench.in_process import assert_books_equal, build_feed
from tickerplant.bench.load import ReferenceLoad
from tickerplant.bench.processes import BenchConfig, answer, commands, percentiles, start_child
from tickerplant.busy_poll import BusyPoll
from tickerplant.config import PublishConfig
from tickerplant.runtime.daemon import GC_THRESHOLDS
from tickerplant.runtime.outlet import Outlet
from tickerplant.runtime.publisher import open_publisher
from tickerplant.runtime.steady_clock import DeadlineTimer
from tickerplant.runtime.ticklog import open_ticklog
from tickerplant_kalshi.auth import load_signer
from tickerplant_kalshi.session import ExchangeSession, StartGate

_POLL_S = 0.002


class QuietLog:
    """A measurement writes no log."""

    def info(self, event: str, **fields: Any) -> None:
        """Nothing."""

    def warning(self, event: str, **fields: Any) -> None:
        """Nothing."""


class MeasuredPlant:
    """The shell of one session; notes when each batch began and when its datagrams were handed to the kernel."""

    def __init__(self, config: BenchConfig) -> None:
        self._clock_offset_ns = config.clock_offset_ns
        self.load = ReferenceLoad(markets=config.markets, seed=config.seed)
        self.feed = build_feed(self.load.tickers, self.now_ns())
        self.publisher = open_publisher(PublishConfig(group_a=config.group, port=config.port))
        self.ticklog = open_ticklog(Path(config.log_folder))
        self.outlet: Outlet
        self.use_log(on=self.ticklog.begin_session(self.feed.plant.session, self.now_ns()))
        self.timer = DeadlineTimer(self.now_ns, self._fire)
        self.busy_poll = BusyPoll()
        self.sampling = False
        self.samples_ns: list[int] = []
        self.first_ns = 0
        self.last_ns = 0
        self.cpu_ns = 0
        key = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        self.session = ExchangeSession(
            self.feed,
            0,
            url=config.url,
            signer=load_signer("bench", pem=key),
            shell=self,
            gate=StartGate(),
            log=QuietLog(),
        )
        list(self.load.snapshots())

    def now_ns(self) -> int:
        """The clock that all processes of the measurement share."""
        return time.monotonic_ns() + self._clock_offset_ns

    def publish(self) -> None:
        """As the daemon's: flush, send, then what the protocol wants to send upstream."""
        now_ns = self.now_ns()
        datagrams = self.feed.flush(now_ns)
        if datagrams:
            self.outlet.send(datagrams)
        if self.sampling:
            self.last_ns = sent_ns = self.now_ns()
            began_ns = self.feed.plant.now_ns
            self.first_ns = self.first_ns or began_ns
            self.samples_ns.append(sent_ns - began_ns)
        if self.feed.wants_attention(self.timer.armed_ns):
            self._after_input(now_ns)

    def failed(self, where: str, error: BaseException) -> None:
        """A measurement with faults is none."""
        raise SystemExit(f"{where}: {error!r}")

    def _fire(self) -> None:
        now_ns = self.now_ns()
        datagrams = self.feed.handle_timer(now_ns)
        if datagrams:
            self.outlet.send(datagrams)
        self._after_input(now_ns)

    def _after_input(self, now_ns: int) -> None:
        self.feed.settle()
        self.session.pump(now_ns)
        self.timer.arm(self.feed.next_deadline_ns())

    # --- commands ---------------------------------------------------------------------------------

    async def until_ready(self) -> None:
        """All books LIVE and published."""
        while self.feed.plant.unready_books or not self.session.is_up:  # noqa: ASYNC110  # no hook on the hot path
            await asyncio.sleep(_POLL_S)

    def use_log(self, *, on: bool) -> None:
        """Everything published goes into the tick log from here on, or nothing."""
        plant = self.feed.plant
        plant.set_log(is_on=on, oldest_seqs=self.ticklog.oldest_seqs)
        self.outlet = Outlet(plant, self.ticklog if on else None, self.publisher)

    def begin(self) -> None:
        """Starts to sample."""
        self.samples_ns = []
        self.first_ns = self.last_ns = 0
        self.cpu_ns = time.process_time_ns()
        self.sampling = True

    async def finish(self, count: int) -> dict[str, Any]:
        """Waits for `count` more deltas of the load and answers with what was measured."""
        expected = self.load.seq + count + 1
        subscription = self.session.connection.commands.books
        while subscription.expected < expected:  # noqa: ASYNC110  # as above
            await asyncio.sleep(_POLL_S)
        self.sampling = False
        cpu_ns = time.process_time_ns() - self.cpu_ns
        self.load.deltas(count)
        assert_books_equal(self.feed.plant, self.load)
        seconds = (self.last_ns - self.first_ns) / 1e9
        return {
            "frames_per_s": count / seconds,
            "frames_per_cpu_s": count * 1e9 / cpu_ns,
            "busy": cpu_ns / (self.last_ns - self.first_ns),
            "cpu_us_per_frame": cpu_ns / count / 1_000,
            "batches": len(self.samples_ns),
            "tick_to_wire_us": percentiles(self.samples_ns),
            "datagrams_lost": self.publisher.lost_datagrams,
            "unlogged_datagrams": self.ticklog.unlogged_datagrams,
            "sequence_gaps": self.session.connection.counters.sequence_gaps,
        }


def reference(frames: list[bytes]) -> float:
    """`json.loads` of the same kind of frames in this process, per second of its CPU time."""
    started_ns = time.process_time_ns()
    for frame in frames:
        json.loads(frame)
    return len(frames) * 1e9 / (time.process_time_ns() - started_ns)


async def serve(config: BenchConfig) -> None:
    """Runs until the parent closes our input."""
    plant = MeasuredPlant(config)
    frames = ReferenceLoad(markets=config.markets, seed=config.seed + 1).deltas(20_000)
    gc.set_threshold(*GC_THRESHOLDS)
    plant.publish()
    running = asyncio.create_task(plant.session.run())
    await plant.until_ready()
    gc.collect()
    gc.freeze()
    answer({"ready": True})
    lines = await commands()
    while line := await lines.readline():
        command = msgspec.json.decode(line)
        if command["do"] == "begin":
            plant.use_log(on=command["log"])
            (plant.busy_poll.start if command["busy_poll"] else plant.busy_poll.stop)()
            plant.begin()
            answer({"begun": True})
        elif command["do"] == "finish":
            answer(await plant.finish(command["count"]))
        elif command["do"] == "checksums":
            entries = plant.feed.plant.entries
            answer({ticker: entry.checksum() for ticker, entry in entries.items()})
        else:
            answer({"per_second": reference(frames)})
    running.cancel()
    plant.ticklog.close()


if __name__ == "__main__":
    uvloop.run(serve(start_child()))
