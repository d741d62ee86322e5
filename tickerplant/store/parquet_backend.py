"""The embedded store as a backend of the store process: its files, and their merging as upkeep."""

from pathlib import Path

from tickerplant.store.parquet_merge import ParquetMerger
from tickerplant.store.parquet_store import ParquetStore


class ParquetBackend(ParquetStore):
    """Rolling Parquet files in `folder`; see `backend.Backend`."""

    def __init__(self, folder: Path, *, close_ns: int, close_rows: int) -> None:
        """Closes files when their oldest row is `close_ns` old, or at `close_rows`; makes nothing yet."""
        super().__init__(folder, close_ns=close_ns, close_rows=close_rows)
        self._merger = ParquetMerger(folder)

    def upkeep(self) -> bool:
        """Make one merge that is due, and remove what former ones made needless; whether there may be more.

        Raises `StoreUnavailableError`, and `DamagedStoreError` once for each damaged closing.
        """
        merged = self._merger.merge_next()
        self._merger.sweep()
        return merged is not None

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "closings": self.closings,
            "rows_written": self.rows_written,
            "rows_rejected": self.rows_rejected,
            "merges": self._merger.merges,
        }

    def gauges(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "pending_rows": self.pending_rows,
            "damaged_closings": len(self._merger.damaged),
        }
