"""The store as a process of its own: configuration, metrics, systemd, and an end in order."""

import asyncio
import gc
import os
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from tickerplant.config import Config, StoreConfig
from tickerplant.errors import ConfigurationError
from tickerplant.limits import STORE_RETRY_S
from tickerplant.runtime.health import SystemdNotifier
from tickerplant.runtime.logfolder import log_folder
from tickerplant.runtime.metrics import Metrics, MetricsServer
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.parquet_backend import ParquetBackend
from tickerplant.store.parquet_folder import store_folder
from tickerplant.store.questdb_http import read_login
from tickerplant.store.questdb_store import QuestDbBackend
from tickerplant.store.service import StoreService

_SECOND_NS = 1_000_000_000
_GC_THRESHOLDS = (50_000, 20, 100)
"""Rows are many and short-lived, and hold nothing that refers back: looking for cycles among them is in vain."""
_MILLISECOND_NS = 1_000_000
_TELL_SUPPRESSED_TURNS = 10


def new_backend(store: StoreConfig, folder: Path) -> ParquetBackend | QuestDbBackend:
    """The backend of `store.backend`."""
    if store.backend == "questdb":
        return QuestDbBackend(
            store.conf,
            partial(read_login, store.username, store.password_path),
            folder,
            batch_ns=store.batch_ms * _MILLISECOND_NS,
            batch_rows=store.batch_rows,
        )
    return ParquetBackend(
        folder,
        close_ns=store.close_s * _SECOND_NS,
        close_rows=store.close_rows,
        ttl_days=store.ttl_days,
    )


class WarningTail(Protocol):
    """What `configure_logging` returns."""

    def tell_suppressed(self) -> None:
        """Log how many warnings were suppressed."""


class StoreProcess:
    """One store, as `tickerplant store` runs it."""

    def __init__(
        self,
        config: Config,
        *,
        state_directory: Path,
        notifier: SystemdNotifier | None = None,
        warning_tail: WarningTail | None = None,
        tune_process: bool = False,
    ) -> None:
        """`tune_process` makes the process nice. Raises `ConfigurationError`."""
        if not config.ticklog.enabled:
            raise ConfigurationError(
                "ticklog.enabled is false: the store reads the tick log; set it to true"
            )
        self.metrics = Metrics()
        self.metrics_server: MetricsServer | None = None
        self._config = config
        self._notifier = notifier if notifier is not None else SystemdNotifier({})
        self._warning_tail = warning_tail
        self._tune_process = tune_process
        store = config.store
        self.folder = store_folder(store.directory, state_directory)
        self.backend = new_backend(store, self.folder)
        log = log_folder(config.ticklog.directory, state_directory)
        self.service = StoreService(
            log,
            self.backend,
            DeadLetters(self.folder),
            snapshot_interval_ns=store.book_snapshot_interval_s * _SECOND_NS,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Store until `stop` is set. Raises the `TickerplantError` that ended it."""
        async with AsyncExitStack() as resources:
            if self._tune_process:
                os.nice(self._config.store.niceness)
                gc.set_threshold(*_GC_THRESHOLDS)
            resources.push_async_callback(self.service.close)
            try:
                await self.service.start()
                await self._start_metrics(resources)
                self.service.supervisor.start("notices", self._keep_telling())
                await self.service.supervisor.wait(stop)
            finally:
                self._notifier.stopping()
                self._notifier.close()
        self.service.log.info("store_ended", rows=self.service.follower.rows)
        if self._warning_tail is not None:
            self._warning_tail.tell_suppressed()

    async def _start_metrics(self, resources: AsyncExitStack) -> None:
        config = self._config
        if not config.metrics.enabled:
            return
        address, port = config.metrics.address, config.store.metrics_port
        self.metrics.add("store", self.service)
        self.metrics.add(f"store_{config.store.backend}", self.backend)
        server = MetricsServer(
            self.metrics, self.service.readiness, address, port, port_key="store.metrics_port"
        )
        await server.start()
        resources.push_async_callback(server.stop)
        self.metrics_server = server
        self.metrics.add("metrics", server)
        self.service.log.info("metrics_endpoint", address=address, port=server.port)

    async def _keep_telling(self) -> None:
        """Tell systemd how it is."""
        is_told_ready = False
        turns = 0
        while True:
            state = self.service.readiness()
            if state.is_ready and not is_told_ready:
                is_told_ready = True
                self._notifier.ready(str(self.folder))
            elif not state.is_ready:
                self._notifier.status(f"{state.phase}: {state.reason}")
            self._notifier.watchdog()
            turns += 1
            if self._warning_tail is not None and turns % _TELL_SUPPRESSED_TURNS == 0:
                self._warning_tail.tell_suppressed()
            watchdog_s = self._notifier.watchdog_interval_ns / _SECOND_NS
            await asyncio.sleep(min(watchdog_s or STORE_RETRY_S, STORE_RETRY_S))
