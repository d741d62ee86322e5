"""The store as a process of its own: which backend, and what it reads."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tickerplant.config import StoreConfig
from tickerplant.errors import ConfigurationError
from tickerplant.runtime.companion_process import CompanionProcess
from tickerplant.runtime.logfolder import log_folder
from tickerplant.store.dead_letters import DeadLetters
from tickerplant.store.parquet_folder import store_folder
from tickerplant.store.service import StoreService

if TYPE_CHECKING:
    from tickerplant.store.parquet_backend import ParquetBackend
    from tickerplant.store.questdb_store import QuestDbBackend

_SECOND_NS = 1_000_000_000
_MILLISECOND_NS = 1_000_000


def new_backend(store: StoreConfig, folder: Path) -> "ParquetBackend | QuestDbBackend":
    """The backend of `store.backend`; what only the other one needs is not imported, for that takes long."""
    if store.backend == "questdb":
        from tickerplant.store.questdb_http import read_login  # noqa: PLC0415  # see above
        from tickerplant.store.questdb_store import QuestDbBackend  # noqa: PLC0415  # see above

        return QuestDbBackend(
            store.conf,
            partial(read_login, store.username, store.password_path),
            folder,
            batch_ns=store.batch_ms * _MILLISECOND_NS,
            batch_rows=store.batch_rows,
        )
    from tickerplant.store.parquet_backend import ParquetBackend  # noqa: PLC0415  # see above

    return ParquetBackend(
        folder,
        close_ns=store.close_s * _SECOND_NS,
        close_rows=store.close_rows,
        ttl_days=store.ttl_days,
    )


class StoreProcess(CompanionProcess[StoreService]):
    """One store, as `tickerplant store` runs it."""

    _metrics_port_key = "store.metrics_port"

    def _new_service(self, state_directory: Path) -> StoreService:
        """Raises `ConfigurationError`."""
        config, store = self._config, self._config.store
        if not config.ticklog.enabled:
            raise ConfigurationError(
                "ticklog.enabled is false: the store reads the tick log; set it to true"
            )
        self.folder = store_folder(store.directory, state_directory)
        self.backend = new_backend(store, self.folder)
        return StoreService(
            log_folder(config.ticklog.directory, state_directory),
            self.backend,
            DeadLetters(self.folder),
            snapshot_interval_ns=store.book_snapshot_interval_s * _SECOND_NS,
        )

    @property
    def _section(self) -> StoreConfig:
        return self._config.store

    def _sources(self) -> Mapping[str, Any]:
        return {"store": self.service, f"store_{self._config.store.backend}": self.backend}

    def _ready_text(self) -> str:
        return str(self.folder)

    def _ended(self) -> None:
        self.service.log.info("store_ended", rows=self.service.follower.rows)
