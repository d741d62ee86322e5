"""What the plant does once a second, or when its phase changes: tell operators and systemd, watch clock, groups, log.

Nothing on the frame path logs; what happened there is told here by comparing counters.
"""

import asyncio
import gc
import time
from collections.abc import Mapping
from typing import Any, Protocol

from tickerplant.config import PublishConfig
from tickerplant.core.messages import FeedPhase
from tickerplant.core.plant import Plant
from tickerplant.errors import GroupOccupiedError
from tickerplant.runtime.health import Readiness, SystemdNotifier
from tickerplant.runtime.outlet import Outlet
from tickerplant.runtime.publisher import Publisher
from tickerplant.runtime.sessions import Sessions
from tickerplant.runtime.ticklog_report import TickLogReport
from tickerplant.steady_clock import SteadyClock

_SECOND_NS = 1_000_000_000
_TICK_S = 1.0
_TELL_SUPPRESSED_TICKS = 10
_CLOCK_WARN_NS = _SECOND_NS


class WarningTail(Protocol):
    """What `configure_logging` returns."""

    def tell_suppressed(self) -> None:
        """Log how many warnings were suppressed."""


class Capture(Protocol):
    """The raw capture as housekeeping sees it."""

    def tell(self, now_s: float) -> None:
        """Log what is news."""


class Household(Protocol):
    """The plant as housekeeping sees it; a `Daemon`."""

    log: Any
    clock: SteadyClock
    plant: Plant
    publisher: Publisher
    outlet: Outlet
    sessions: Sessions

    @property
    def capture(self) -> Capture | None:
        """The raw capture, if one is kept."""

    def readiness(self) -> Readiness:
        """Whether the plant is ready, and why not."""

    def faults(self) -> Mapping[str, int]:
        """What is counted and ought not to happen, by name."""

    async def resume_log(self) -> None:
        """Go over to a session in which the log is on, if that is possible."""

    def connections_lost(self) -> int:
        """Connections lost so far."""


class Housekeeping:
    """One task, `run`; `wake` makes it look at once."""

    def __init__(
        self,
        house: Household,
        publish: PublishConfig,
        notifier: SystemdNotifier,
        warning_tail: WarningTail | None,
        *,
        tune_collector: bool,
    ) -> None:
        """`tune_collector` affects the process."""
        self.loop_lag_max_ns = 0
        """How late the once-a-second check came, at worst; a measure of how long the loop was ever held up."""
        self._house = house
        self._publish = publish
        self._notifier = notifier
        self._warning_tail = warning_tail
        self._tune_collector = tune_collector
        self._report = TickLogReport(house.log)
        self._wake = asyncio.Event()
        self._told_phase = FeedPhase.CONNECTING
        self._seen_faults: Mapping[str, int] = {}
        self._is_frozen = False
        self._tidied_lost = 0

    def wake(self) -> None:
        """There is something to tell."""
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled. Raises `GroupOccupiedError`."""
        loop = asyncio.get_running_loop()
        watchdog_s = self._notifier.watchdog_interval_ns / _SECOND_NS
        tick_s = min(_TICK_S, watchdog_s) if watchdog_s else _TICK_S
        ticks = 0
        while True:
            due = loop.time() + tick_s
            woken = await self._sleep_until(due)
            if not woken:
                lag_ns = int((loop.time() - due) * _SECOND_NS)
                self.loop_lag_max_ns = max(self.loop_lag_max_ns, lag_ns)
            self._tell_phase()
            self._tell_faults()
            self._check_clock()
            self._check_groups()
            self._house.sessions.look_at_keys(self._house.plant)
            await self._check_ticklog()
            if self._house.capture is not None:
                self._house.capture.tell(time.monotonic())
            self._notifier.watchdog()
            ticks += 1
            if self._warning_tail is not None and ticks % _TELL_SUPPRESSED_TICKS == 0:
                self._warning_tail.tell_suppressed()

    async def _sleep_until(self, due: float) -> bool:
        """Whether the sleep was cut short because there is something to tell."""
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def _tell_phase(self) -> None:
        house, phase = self._house, self._house.plant.phase
        if phase is self._told_phase:
            return
        self._told_phase = phase
        state = house.readiness()
        lost = phase in (FeedPhase.DOWN, FeedPhase.DEGRADED)
        tell = house.log.warning if lost else house.log.info
        tell(
            "feed_phase",
            phase=state.phase,
            reason=state.reason,
            books=len(house.plant.entries),
            rate_key=f"feed_phase {state.phase}",
        )
        if not state.is_ready:
            self._notifier.status(f"{state.phase}: {state.reason}")
            return
        if self._tune_collector:
            self._tidy_memory()
        self._notifier.ready(f"{len(house.plant.entries)} books live")

    def _tidy_memory(self) -> None:
        """Free what lost connections left in cycles, which the collector's rare full runs would keep for hours."""
        lost = self._house.connections_lost()
        if self._is_frozen and lost == self._tidied_lost:
            return  # a book that healed leaves nothing behind, and a run takes milliseconds
        self._tidied_lost = lost
        gc.collect()
        if not self._is_frozen:
            # Mostly for good; what comes later holds connections that will be lost one day and must be found then.
            gc.freeze()
            self._is_frozen = True

    def _tell_faults(self) -> None:
        """One line about everything that was counted since the last one and ought not to happen."""
        house = self._house
        faults = house.faults()
        news = {
            name: value - self._seen_faults.get(name, 0)
            for name, value in faults.items()
            if value > self._seen_faults.get(name, 0)
        }
        self._seen_faults = faults
        if news:
            house.log.warning("faults_counted", **news)
        for found in house.plant.take_divergences():
            house.log.warning(
                "book_diverged", **found._asdict(), rate_key=f"book_diverged {found.ticker}"
            )
        for fault in house.publisher.take_faults():
            house.log.warning(
                "send_failed", **fault._asdict(), rate_key=f"send_failed {fault.line}"
            )

    def _check_clock(self) -> None:
        ahead_ns = self._house.clock.discipline()
        if ahead_ns > _CLOCK_WARN_NS:
            self._house.log.warning("wall_clock_set_back", plant_ahead_s=ahead_ns // _SECOND_NS)

    def _check_groups(self) -> None:
        """Raises `GroupOccupiedError` if a newer plant has taken our groups."""
        newer = self._house.sessions.watch.newer_session()
        if newer:
            publish = self._publish
            raise GroupOccupiedError(
                f"multicast group {publish.group_a} port {publish.port} carries a newer plant (session {newer}): "
                "this one ends; run one plant per group, or set publish.group_a to others"
            )

    async def _check_ticklog(self) -> None:
        ticklog = self._house.sessions.ticklog
        if ticklog is not None:
            status = ticklog.status()
            self._report.tell(status, time.monotonic())
            if status.may_resume:
                await self._house.resume_log()
        self._house.outlet.look()
