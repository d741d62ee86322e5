"""What the processes beside the plant have in common: metrics, systemd, suppressed warnings, and an end in order."""

import asyncio
import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tickerplant.config import Config, RecoveryConfig, StoreConfig
from tickerplant.limits import COMPANION_TELL_S
from tickerplant.runtime.health import Readiness, SystemdNotifier
from tickerplant.runtime.metrics import Metrics, MetricsServer
from tickerplant.runtime.supervise import Supervisor

_SECOND_NS = 1_000_000_000
_TELL_SUPPRESSED_TURNS = 10
_GC_THRESHOLDS = (50_000, 20, 100)
"""As in the plant: messages and rows are many and hold nothing that refers back, so cycles are looked for in vain."""


class WarningTail(Protocol):
    """What `configure_logging` returns."""

    def tell_suppressed(self) -> None:
        """Log how many warnings were suppressed."""


class Service(Protocol):
    """The work of such a process."""

    log: Any
    supervisor: Supervisor

    async def start(self) -> None:
        """Begin. Raises `TickerplantError`."""

    async def close(self) -> None:
        """End, also one that never began."""

    def readiness(self) -> Readiness:
        """What `/ready` answers."""


ServiceT = TypeVar("ServiceT", bound=Service)


class CompanionProcess(ABC, Generic[ServiceT]):
    """One process beside the plant, as its command runs it."""

    service: ServiceT
    _metrics_port_key: str

    def __init__(
        self,
        config: Config,
        *,
        state_directory: Path,
        notifier: SystemdNotifier | None = None,
        warning_tail: WarningTail | None = None,
        tune_process: bool = False,
    ) -> None:
        """`tune_process` makes the process nice and its collector rare. Raises `TickerplantError`."""
        self.metrics = Metrics()
        self.metrics_server: MetricsServer | None = None
        self._config = config
        self._notifier = notifier if notifier is not None else SystemdNotifier({})
        self._warning_tail = warning_tail
        self._tune_process = tune_process
        self.service = self._new_service(state_directory)

    @abstractmethod
    def _new_service(self, state_directory: Path) -> ServiceT:
        """The work, not yet begun. Raises `TickerplantError`."""

    @property
    @abstractmethod
    def _section(self) -> RecoveryConfig | StoreConfig:
        """Of the configuration, about this process."""

    @abstractmethod
    def _sources(self) -> Mapping[str, Any]:
        """What has metrics, by the name of its part."""

    @abstractmethod
    def _ready_text(self) -> str:
        """What systemd shows once it is ready."""

    def _became_ready(self) -> None:
        """Called once, the first time."""

    def _look(self) -> None:
        """Called about once a second."""

    def _ended(self) -> None:
        """Called after an end that was asked for."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises the `TickerplantError` that ended it."""
        try:
            async with AsyncExitStack() as resources:
                if self._tune_process:
                    os.nice(self._section.niceness)
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
            self._ended()
        finally:
            self._tell_suppressed()

    def _tell_suppressed(self) -> None:
        if self._warning_tail is not None:
            self._warning_tail.tell_suppressed()

    async def _start_metrics(self, resources: AsyncExitStack) -> None:
        config = self._config
        if not config.metrics.enabled:
            return
        address, port = config.metrics.address, self._section.metrics_port
        for name, source in self._sources().items():
            self.metrics.add(name, source)
        server = MetricsServer(
            self.metrics,
            self.service.readiness,
            address,
            port,
            port_key=self._metrics_port_key,
        )
        await server.start()
        resources.push_async_callback(server.stop)
        self.metrics_server = server
        self.metrics.add("metrics", server)
        self.service.log.info("metrics_endpoint", address=address, port=server.port)

    async def _keep_telling(self) -> None:
        """Tell systemd how it is, and look at what is looked at once a second."""
        is_told_ready = False
        turns = 0
        while True:
            state = self.service.readiness()
            if state.is_ready and not is_told_ready:
                is_told_ready = True
                self._became_ready()
                self._notifier.ready(self._ready_text())
            elif not state.is_ready:
                self._notifier.status(f"{state.phase}: {state.reason}")
            self._notifier.watchdog()
            self._look()
            turns += 1
            if turns % _TELL_SUPPRESSED_TURNS == 0:
                self._tell_suppressed()
            watchdog_s = self._notifier.watchdog_interval_ns / _SECOND_NS
            await asyncio.sleep(min(watchdog_s or COMPANION_TELL_S, COMPANION_TELL_S))
