"""The store of a configuration, to be asked."""

from pathlib import Path

from tickerplant.config import StoreConfig
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.parquet_folder import store_folder
from tickerplant.store.questdb_http import QuestDbHttp, read_login
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.source import Source


def open_source(store: StoreConfig, state_directory: Path) -> Source:
    """What `store.backend` says. Raises `StoreError`, `CredentialsError`."""
    if store.backend == "questdb":
        login = read_login(store.username, store.password_path)
        return QuestDbSource(QuestDbHttp(store.conf, login))
    return DuckDbSource(store_folder(store.directory, state_directory))
