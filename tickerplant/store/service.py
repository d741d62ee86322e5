"""The store as a service: follows the tick log into its backend, tries again what fails, and tells how it is.

Everything that may wait for disk or network is done in a thread of its own, so that the loop always answers. While the
backend cannot take rows nothing is read; the log keeps it.
"""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tickerplant.core.logformat import NO_SEGMENT, LogPosition
from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import (
    STORE_RETRY_MAX_S,
    STORE_RETRY_S,
    STORE_STOP_TIMEOUT_S,
    STORE_TAIL_S,
    STORE_UPKEEP_S,
)
from tickerplant.runtime.health import Readiness
from tickerplant.runtime.logfolder import read_positions, segment_names, store_position
from tickerplant.runtime.plain_structlog import structlog
from tickerplant.runtime.supervise import Supervisor
from tickerplant.store.backend import Backend
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.follower import LogFollower

_Result = TypeVar("_Result")

_SECOND_NS = 1_000_000_000
CONSUMER = "store"
"""Name of the store's position in the log's folder; the log is kept from there on."""


class StoreService:
    """One store of one log folder; `start`, then `close`."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        dead_letters: DeadLetters,
        *,
        snapshot_interval_ns: int = 0,
    ) -> None:
        """Of the tick log in `folder`; for the interval see `LogFollower`. Opens nothing yet."""
        self.folder = folder
        self.log: Any = structlog.get_logger()
        self.supervisor = Supervisor(self.log)
        self.follower = LogFollower(
            folder, backend, dead_letters, snapshot_interval_ns=snapshot_interval_ns
        )
        self.failures = 0
        """How often the backend could not take rows."""
        self.read_failures = 0
        self.position_failures = 0
        self._backend = backend
        self._dead_letters = dead_letters
        self._executor = ThreadPoolExecutor(1, "store")
        self._upkeep_executor = ThreadPoolExecutor(1, "store-upkeep")
        self._registered: LogPosition | None = None
        self._trouble = ""
        self._has_log = False
        self._has_caught_up = False

    async def start(self) -> None:
        """Open the backend and begin to follow. Raises `StoreError` unless the backend is only unavailable for now."""
        await self._in_thread(self._hold_log)
        await self._open()
        self.supervisor.start("following", self._follow())
        self.supervisor.start("upkeep", self._keep_up())

    async def close(self) -> None:
        """Make durable what was taken, if that is possible now, and let everything go; harmless the second time."""
        await self.supervisor.close()
        try:
            if self.follower.is_open and not self._trouble:
                await self._in_thread(self._take_rest)
                self._after_turn()
        except (StoreError, OSError) as error:
            # It is in the log, and the next start takes it from there.
            self.log.warning("store_unavailable", reason=str(error), retry_s=0)
        finally:
            self._executor.submit(self.follower.close)
            self._executor.shutdown()
            self._upkeep_executor.shutdown()

    def _take_rest(self) -> None:
        """What is in the log now, for a bounded time, and make it durable."""
        deadline_ns = time.monotonic_ns() + int(STORE_STOP_TIMEOUT_S * _SECOND_NS)
        while time.monotonic_ns() < deadline_ns and self.follower.turn(time.monotonic_ns()):
            pass
        self.follower.commit(wait=True)

    def readiness(self) -> Readiness:
        """For `/ready`: whether it keeps up with the log."""
        if self._trouble:
            return Readiness(is_ready=False, phase="unavailable", reason=self._trouble)
        if not self.follower.is_open:
            return Readiness(is_ready=False, phase="starting", reason="the store is starting")
        if not self._has_log:
            reason = f"there is no tick log in {self.folder} yet"
            return Readiness(is_ready=False, phase="waiting", reason=reason)
        if not self._has_caught_up:
            reason = f"{self.follower.datagrams} datagrams taken, the end is not reached"
            return Readiness(is_ready=False, phase="catching up", reason=reason)
        return Readiness(is_ready=True, phase="storing", reason="")

    # --- following the log ------------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            position = await self._in_thread(self.follower.open)
        except StoreUnavailableError as error:
            self._tell_trouble(error, STORE_RETRY_S)
        else:
            self._tell_started(position)

    def _hold_log(self) -> None:
        """Who has never taken anything needs all of the log, also while the backend is still out of reach."""
        with suppress(OSError):  # there is no log yet, or it is told when it is read
            if CONSUMER not in read_positions(self.folder):
                self._register_oldest()

    def _register_oldest(self) -> None:
        """Nothing is taken yet: the log is needed from its oldest record on. Raises `OSError`."""
        names = segment_names(self.folder)
        store_position(self.folder, CONSUMER, LogPosition(*(names[0] if names else NO_SEGMENT)))

    def _tell_started(self, position: LogPosition | None) -> None:
        if position is None:
            # Also one that begins anew, with another database: what it had taken before counts no more.
            with suppress(OSError):
                self._register_oldest()
        # Who has taken all there is starts caught up, and is ready without another datagram.
        self._has_log = position is not None
        begin = position or LogPosition(0, 0)
        self.log.info("store_started", segment=str(begin.segment), offset=begin.offset)

    async def _follow(self) -> None:
        retry_s = STORE_RETRY_S
        while True:
            try:
                if not self.follower.is_open:
                    self._tell_started(await self._in_thread(self.follower.open))
                more = await self._in_thread(lambda: self.follower.turn(time.monotonic_ns()))
            except StoreUnavailableError as error:
                self._tell_trouble(error, retry_s)
                await self._in_thread(self._hold_log)
                # So that several stores of one server do not all come back at once.
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
                retry_s = min(2 * retry_s, STORE_RETRY_MAX_S)
                await self._reopen()
                continue
            except OSError as error:
                await self._wait_for_log(error)
                continue
            self._trouble, retry_s = "", STORE_RETRY_S
            self._has_log = self._has_log or self.follower.datagrams > 0
            self._after_turn()
            if not more:
                self._tell_caught_up()
                await asyncio.sleep(STORE_TAIL_S)

    async def _reopen(self) -> None:
        if not self.follower.is_open:
            # Then it is opened with the next turn.
            return
        try:
            await self._in_thread(self.follower.reopen)
        except StoreUnavailableError as error:
            self._tell_trouble(error, STORE_RETRY_S)

    async def _wait_for_log(self, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            self._has_log = False
        else:
            self.read_failures += 1
            self._trouble = f"{self.folder}: {error.strerror}"
            self.log.warning("log_unreadable", reason=self._trouble)
        await asyncio.sleep(STORE_RETRY_S)

    def _tell_trouble(self, error: StoreError, retry_s: float) -> None:
        self.failures += 1
        self._trouble = str(error)
        self.log.warning("store_unavailable", reason=self._trouble, retry_s=retry_s)

    def _tell_caught_up(self) -> None:
        if self._has_log and not self._has_caught_up:
            self._has_caught_up = True
            self.log.info("store_caught_up", rows=self.follower.rows)

    def _after_turn(self) -> None:
        """Say from where on the log is needed, and what was wrong in it."""
        faults = self.follower.faults
        if faults:
            self.follower.faults = []
            self.log.warning(
                "store_log_faults", count=len(faults), first=str(faults[0]), last=str(faults[-1])
            )
        position = self.follower.durable
        if position is None or position == self._registered:
            return
        try:
            store_position(self.folder, CONSUMER, position)
        except OSError as error:
            self.position_failures += 1
            self.log.warning(
                "store_position_failed", reason=error.strerror, folder=str(self.folder)
            )
        self._registered = position

    async def _in_thread(
        self, step: Callable[[], _Result], executor: ThreadPoolExecutor | None = None
    ) -> _Result:
        """What `step` returns; it has ended when this has, also when this is cancelled."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(executor or self._executor, step)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    # --- now and then -----------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        while True:
            more = False
            if self.follower.is_open:
                try:
                    more = await self._in_thread(self._backend.upkeep, self._upkeep_executor)
                except StoreError as error:
                    self.log.warning("store_upkeep_failed", reason=str(error))
            if not more:
                await asyncio.sleep(STORE_UPKEEP_S)

    # --- metrics ----------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        follower = self.follower
        return {
            "datagrams": follower.datagrams,
            "rows": follower.rows,
            "commits": follower.commits,
            "failures": self.failures,
            "read_failures": self.read_failures,
            "position_failures": self.position_failures,
            "log_faults": follower.log_faults,
            "undecodable_datagrams": follower.undecodable_datagrams,
            "dead_letters": self._dead_letters.letters,
            "dead_letters_dropped": self._dead_letters.letters_dropped,
        }

    def gauges(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "available": int(not self._trouble),
            "taken_sent_ns": self.follower.taken_sent_ns,
            "durable_sent_ns": self.follower.durable_sent_ns,
        }
