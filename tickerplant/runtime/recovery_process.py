"""Recovery as a process of its own: configuration, keys, metrics, systemd, and an end in order."""

import asyncio
import gc
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from tickerplant.config import Config
from tickerplant.errors import ConfigurationError, CredentialsError
from tickerplant.key_file import KeyFile
from tickerplant.limits import RECOVERY_RETRY_S
from tickerplant.runtime.health import SystemdNotifier
from tickerplant.runtime.logfolder import log_folder
from tickerplant.runtime.metrics import Metrics, MetricsServer
from tickerplant.runtime.recovery import RecoveryOptions, RecoveryService

_SECOND_NS = 1_000_000_000
_TELL_SUPPRESSED_TURNS = 10
_GC_THRESHOLDS = (50_000, 20, 100)
"""As in the plant: messages are not tracked, books are, and a full collection would hold up the loop."""


class WarningTail(Protocol):
    """What `configure_logging` returns."""

    def tell_suppressed(self) -> None:
        """Log how many warnings were suppressed."""


class RecoveryProcess:
    """One recovery, as `tickerplant recovery` runs it."""

    def __init__(
        self,
        config: Config,
        *,
        state_directory: Path,
        notifier: SystemdNotifier | None = None,
        warning_tail: WarningTail | None = None,
        tune_process: bool = False,
    ) -> None:
        """`tune_process` makes the process nice and its collector rare. Raises `ConfigurationError`."""
        if not config.ticklog.enabled:
            raise ConfigurationError(
                "ticklog.enabled is false: recovery serves what is in the tick log; set it to true"
            )
        self.metrics = Metrics()
        self.metrics_server: MetricsServer | None = None
        self._config = config
        self._notifier = notifier if notifier is not None else SystemdNotifier({})
        self._warning_tail = warning_tail
        self._tune_process = tune_process
        key_path = config.publish.key_path
        self._key_file = KeyFile(key_path) if key_path else None
        folder = log_folder(config.ticklog.directory, state_directory)
        self.service = RecoveryService(folder, self._options())

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises the `TickerplantError` that ended it."""
        async with AsyncExitStack() as resources:
            if self._tune_process:
                os.nice(self._config.recovery.niceness)
                gc.set_threshold(*_GC_THRESHOLDS)
            resources.push_async_callback(self.service.close)
            try:
                await self.service.start()
                await self._start_metrics(resources)
                self.service.supervisor.start("upkeep", self._keep_up())
                await self.service.supervisor.wait(stop)
            finally:
                self._notifier.stopping()
                self._notifier.close()
                if self._warning_tail is not None:
                    self._warning_tail.tell_suppressed()

    def _options(self) -> RecoveryOptions:
        recovery, key_file = self._config.recovery, self._key_file
        return RecoveryOptions(
            address=recovery.address,
            port=recovery.port,
            client_bytes_per_second=recovery.client_bytes_per_second,
            total_bytes_per_second=recovery.total_bytes_per_second,
            connections_max=recovery.connections_max,
            connections_per_client_max=recovery.connections_per_client_max,
            checkpoint_interval_s=recovery.checkpoint_interval_s,
            key_id=0 if key_file is None else key_file.ring.signing_key_id,
            keys=None if key_file is None else key_file.ring.keys,
        )

    async def _start_metrics(self, resources: AsyncExitStack) -> None:
        config = self._config
        if not config.metrics.enabled:
            return
        address, port = config.metrics.address, config.recovery.metrics_port
        self.metrics.add("recovery", self.service)
        server = MetricsServer(
            self.metrics, self.service.readiness, address, port, port_key="recovery.metrics_port"
        )
        await server.start()
        resources.push_async_callback(server.stop)
        self.metrics_server = server
        self.metrics.add("metrics", server)
        self.service.log.info("metrics_endpoint", address=address, port=server.port)

    async def _keep_up(self) -> None:
        """Tell systemd, and take over changed keys."""
        service = self.service
        is_told_ready = False
        turns = 0
        while True:
            state = service.readiness()
            if state.is_ready and not is_told_ready:
                is_told_ready = True
                if self._tune_process:
                    gc.collect()
                    gc.freeze()
                self._notifier.ready(f"port {service.port}")
            elif not state.is_ready:
                self._notifier.status(f"{state.phase}: {state.reason}")
            self._notifier.watchdog()
            self._reread_keys()
            turns += 1
            if self._warning_tail is not None and turns % _TELL_SUPPRESSED_TURNS == 0:
                self._warning_tail.tell_suppressed()
            watchdog_s = self._notifier.watchdog_interval_ns / _SECOND_NS
            await asyncio.sleep(min(watchdog_s or RECOVERY_RETRY_S, RECOVERY_RETRY_S))

    def _reread_keys(self) -> None:
        if self._key_file is None:
            return
        try:
            if self._key_file.reread():
                ring = self._key_file.ring
                self.service.use_keys(ring.signing_key_id, ring.keys)
        except CredentialsError as error:
            self.service.log.warning("keys_unreadable", reason=str(error))
