"""The store, or the archive, of a configuration, to be asked."""

import os
from pathlib import Path

from tickerplant.config import Config
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.parquet_folder import store_folder
from tickerplant.store.questdb_http import QuestDbHttp, read_login
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.source import Source


def open_source(config: Config, state_directory: Path) -> Source:
    """What `store.backend` says. Raises `StoreError`, `CredentialsError`."""
    store = config.store
    if store.backend == "questdb":
        login = read_login(store.username, store.password_path)
        return QuestDbSource(QuestDbHttp(store.conf, login))
    return DuckDbSource(store_folder(store.directory, state_directory))


def open_archive(config: Config, state_directory: Path) -> Source:
    """The object store of `archive.url`. Raises `StoreError`."""
    from tickerplant.store.object_source import ObjectSource  # noqa: PLC0415  # they need obstore
    from tickerplant.store.object_store import ObjectStore, archive_url  # noqa: PLC0415

    archive = config.archive
    url = archive_url(archive.url, state_directory)
    return ObjectSource(
        ObjectStore(url, endpoint=archive.endpoint, region=archive.region, environ=os.environ)
    )
