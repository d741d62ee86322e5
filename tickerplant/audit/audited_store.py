"""The store that an audit looks into: Parquet files, or a QuestDB server."""

from pathlib import Path
from typing import NamedTuple

from tickerplant.config import StoreConfig
from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.runtime.logfolder import load_position
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.parquet_merge import check_folder
from tickerplant.store.questdb_http import QuestDbHttp, read_login
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.service import CONSUMER
from tickerplant.store.source import Source


class AuditedStore(NamedTuple):
    """A store to be audited: how it is asked, how far it says it is, what is plainly wrong with it, and its name."""

    source: Source
    position: LogPosition | None
    faults: list[str]
    name: str


def open_parquet(folder: Path) -> AuditedStore:
    """The files in `folder`. Raises `StoreError`."""
    source = DuckDbSource(folder)
    position = read_folder(folder).position
    return AuditedStore(source, position, check_folder(folder, thorough=False), str(folder))


def open_questdb(store: StoreConfig, log: Path) -> AuditedStore:
    """The configured server, once it has applied what it has acknowledged. Raises `StoreError`, `CredentialsError`."""
    # How far it is before it is asked: so at least that is there.
    position = load_position(log, CONSUMER)
    server = QuestDbHttp(store.conf, read_login(store.username, store.password_path))
    for table in TABLES.values():
        if table.streams:
            server.execute(f"SELECT wait_wal_table('{table.name}')")
    return AuditedStore(QuestDbSource(server), position, [], server.address)
