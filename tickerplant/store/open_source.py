"""The store of a configuration, to be asked."""

from pathlib import Path

from tickerplant.config import StoreConfig
from tickerplant.errors import ConfigurationError
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.parquet_folder import store_folder
from tickerplant.store.source import Source


def open_source(store: StoreConfig, state_directory: Path) -> Source:
    """What `store.backend` says. Raises `StoreError`, `ConfigurationError`."""
    if store.backend != "parquet":
        raise ConfigurationError(
            f'store.backend = "{store.backend}": this version asks Parquet files only; set it to "parquet"'
        )
    return DuckDbSource(store_folder(store.directory, state_directory))
