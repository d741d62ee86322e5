"""Recovery as a process of its own: its options, and the keys it signs with."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tickerplant.config import RecoveryConfig
from tickerplant.errors import ConfigurationError, CredentialsError
from tickerplant.key_file import KeyFile
from tickerplant.runtime.companion_process import CompanionProcess
from tickerplant.runtime.logfolder import log_folder
from tickerplant.runtime.recovery import RecoveryOptions, RecoveryService


class RecoveryProcess(CompanionProcess[RecoveryService]):
    """One recovery, as `tickerplant recovery` runs it."""

    _metrics_port_key = "recovery.metrics_port"

    def _new_service(self, state_directory: Path) -> RecoveryService:
        """Raises `ConfigurationError` and `CredentialsError`."""
        config = self._config
        if not config.ticklog.enabled:
            raise ConfigurationError(
                "ticklog.enabled is false: recovery serves what is in the tick log; set it to true"
            )
        key_path = config.publish.key_path
        self._key_file = KeyFile(key_path) if key_path else None
        folder = log_folder(config.ticklog.directory, state_directory)
        return RecoveryService(folder, self._options())

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

    @property
    def _section(self) -> RecoveryConfig:
        return self._config.recovery

    def _sources(self) -> Mapping[str, Any]:
        return {"recovery": self.service}

    def _ready_text(self) -> str:
        return f"port {self.service.port}"

    def _became_ready(self) -> None:
        if self._tune_process:
            # Books are tracked, and a full collection of them would hold up the loop.
            gc.collect()
            gc.freeze()

    def _look(self) -> None:
        """Take over changed keys."""
        if self._key_file is None:
            return
        try:
            if self._key_file.reread():
                ring = self._key_file.ring
                self.service.use_keys(ring.signing_key_id, ring.keys)
        except CredentialsError as error:
            self.service.log.warning("keys_unreadable", reason=str(error))
