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
from tickerplant.deadline_timer import DeadlineTimer
from tickerplant.runtime.daemon import GC_THRESHOLDS
from tickerplant.runtime.outlet import Outlet
from tickerplant.runtime.publisher import open_publisher
from tickerplant.runtime.ticklog import open_ticklog
from tickerplant_kalshi.auth import load_signer
from tickerplant_kalshi.session import ExchangeSession, StartGate

_POLL_S = 0.002
_REFERENCE_FRAMES = 20_000
_FRAMES_TO_WARM_UP = 4
_FRAMES_PER_TURN = 16


class QuietLog:
    """A measurement writes no log."""

    def info(self, event: str, **fields: Any) -> None:
        """Nothing."""

    def warning(self, event: str, **fields: Any) -> None:
        """Nothing."""


class ReferenceInTurns:
    """`json.loads` of a few frames at a time while a run goes on, right before a batch is published or right after.

    Where two cores are threads of one, what runs on the other one takes up to half the speed of plant and reference
    alike; so both are measured while the same runs there. The subscriber works after a publication and mostly waits
    before it, so every other turn is after one.
    """

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = frames
        self._next = 0
        self._publications = 0
        self.is_on = False
        self.count = 0
        self.cpu_ns = 0
        self.whole_cpu_ns = 0
        """With the frames that only warm up the caches."""

    def begin(self, *, is_on: bool) -> None:
        """Counts from zero."""
        self.is_on = is_on
        self.count = self.cpu_ns = self.whole_cpu_ns = 0

    def before_publication(self) -> None:
        """A batch is about to be published."""
        self._publications += 1
        if self.is_on and self._publications % 2:
            self._take_turn()

    def after_publication(self) -> None:
        """It was."""
        if self.is_on and not self._publications % 2:
            self._take_turn()

    def _take_turn(self) -> None:
        begun_ns = time.process_time_ns()
        self._parse(_FRAMES_TO_WARM_UP)
        warm_ns = time.process_time_ns()
        self._parse(_FRAMES_PER_TURN)
        ended_ns = time.process_time_ns()
        self.cpu_ns += ended_ns - warm_ns
        self.whole_cpu_ns += ended_ns - begun_ns
        self.count += _FRAMES_PER_TURN

    def _parse(self, count: int) -> None:
        start = self._next if self._next + count <= len(self._frames) else 0
        for frame in self._frames[start : start + count]:
            json.loads(frame)
        self._next = start + count

    def per_second(self) -> float:
        """Frames per second of CPU time; 0 where none was parsed."""
        return self.count * 1e9 / self.cpu_ns if self.cpu_ns else 0.0


class MeasuredPlant:
    """The shell of one session; notes when each batch began and when its datagrams were handed to the kernel."""

    def __init__(self, config: BenchConfig) -> None:
        self._clock_offset_ns = config.clock_offset_ns
        self.load = ReferenceLoad(markets=config.markets, seed=config.seed)
        other_load = ReferenceLoad(markets=config.markets, seed=config.seed + 1)
        self.frames = other_load.deltas(_REFERENCE_FRAMES)
        self.reference = ReferenceInTurns(self.frames)
        self.feed = build_feed(self.load.tickers, self.now_ns())
        self.publisher = open_publisher(PublishConfig(group_a=config.group, port=config.port))
        self.ticklog = open_ticklog(Path(config.log_folder))
        self.outlet: Outlet
        self.use_log(on=self.ticklog.begin_session(self.feed.plant.session, self.now_ns()))
        self.timer = DeadlineTimer(self.now_ns, self._fire)
        self.busy_poll = BusyPoll()
        self.sampling = False
        self.samples_ns: list[int] = []
        self.sent_ns: list[tuple[int, int]] = []
        """Of each flush: the stamp in its datagrams, and when the last `send` had returned."""
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
        self.reference.before_publication()
        now_ns = self.now_ns()
        datagrams = self.feed.flush(now_ns)
        if datagrams:
            self.outlet.send(datagrams)
        if self.sampling:
            self.last_ns = sent_ns = self.now_ns()
            began_ns = self.feed.plant.now_ns
            self.first_ns = self.first_ns or began_ns
            self.samples_ns.append(sent_ns - began_ns)
            self.sent_ns.append((now_ns, sent_ns))
        if self.feed.wants_attention(self.timer.armed_ns):
            self._after_input(now_ns)
        self.reference.after_publication()

    def failed(self, where: str, error: BaseException) -> None:
        """A measurement with faults is none."""
        raise SystemExit(f"{where}: {error!r}")

    def _fire(self) -> None:
        now_ns = self.now_ns()
        datagrams = self.feed.handle_timer(now_ns)
        if datagrams:
            self.outlet.send(datagrams)
            if self.sampling:
                self.sent_ns.append((now_ns, self.now_ns()))
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

    def begin(self, *, with_reference: bool) -> None:
        """Starts to sample."""
        self.reference.begin(is_on=with_reference)
        self.samples_ns, self.sent_ns = [], []
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
        cpu_ns = time.process_time_ns() - self.cpu_ns - self.reference.whole_cpu_ns
        self.load.deltas(count)
        assert_books_equal(self.feed.plant, self.load)
        seconds = (self.last_ns - self.first_ns) / 1e9
        return {
            "frames_per_s": count / seconds,
            "frames_per_cpu_s": count * 1e9 / cpu_ns,
            "reference_per_s": self.reference.per_second(),
            "busy": (cpu_ns + self.reference.whole_cpu_ns) / (self.last_ns - self.first_ns),
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
            plant.begin(with_reference=command["reference"])
            answer({"begun": True})
        elif command["do"] == "finish":
            answer(await plant.finish(command["count"]))
        elif command["do"] == "sent":
            answer({"sent_ns": plant.sent_ns})
        elif command["do"] == "checksums":
            entries = plant.feed.plant.entries
            answer({ticker: entry.checksum() for ticker, entry in entries.items()})
        else:
            answer({"per_second": reference(plant.frames)})
    running.cancel()
    plant.ticklog.close()


if __name__ == "__main__":
    uvloop.run(serve(start_child()))
