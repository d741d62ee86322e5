"""The embedded store as a backend of the store process: its files, and their merging as upkeep."""

import time
from pathlib import Path

from tickerplant.store.parquet_expiry import delete_expired
from tickerplant.store.parquet_merge import ParquetMerger
from tickerplant.store.parquet_store import ParquetStore


class ParquetBackend(ParquetStore):
    """Rolling Parquet files in `folder`; see `backend.Backend`."""

    def __init__(self, folder: Path, *, close_ns: int, close_rows: int, ttl_days: int = 0) -> None:
        """Closes files when their oldest row is `close_ns` old, or at `close_rows`; makes nothing yet.

        Deletes them after `ttl_days`; 0: never.
        """
        super().__init__(folder, close_ns=close_ns, close_rows=close_rows)
        self._merger = ParquetMerger(folder)
        self._ttl_days = ttl_days
        self._expired = 0

    def upkeep(self) -> bool:
        """Make one merge that is due, remove what former ones made needless, and what is too old; is there more?

        Raises `StoreUnavailableError`, and `DamagedStoreError` once for each damaged closing.
        """
        merged = self._merger.merge_next()
        self._merger.sweep()
        self._expired += delete_expired(self.folder, time.time_ns(), self._ttl_days)
        return merged is not None

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "closings": self.closings,
            "rows_written": self.rows_written,
            "rows_rejected": self.rows_rejected,
            "merges": self._merger.merges,
            "expired_closings": self._expired,
        }

    def gauges(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "pending_rows": self.pending_rows,
            "damaged_closings": len(self._merger.damaged),
        }
