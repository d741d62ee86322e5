"""The store that an audit looks into: Parquet files, or a QuestDB server; what of it may have expired; the archive."""

import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tickerplant.config import StoreConfig
from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.runtime.logfolder import load_position
from tickerplant.store.archiver import manifest_days, read_manifest
from tickerplant.store.arrow_tables import DAY_NS, day_of_ns, start_of_day_ns
from tickerplant.store.duckdb_source import DuckDbSource
from tickerplant.store.object_store import ObjectStore
from tickerplant.store.parquet_expiry import kept_from_day
from tickerplant.store.parquet_folder import FolderContents, read_folder
from tickerplant.store.parquet_merge import check_folder
from tickerplant.store.questdb_http import QuestDbHttp, read_login
from tickerplant.store.questdb_source import QuestDbSource
from tickerplant.store.schema import EXPIRING
from tickerplant.store.service import CONSUMER
from tickerplant.store.source import Source

_HOUR_NS = 3_600 * 1_000_000_000
_TTL_HOURS = {"HOUR": 1, "DAY": 24, "WEEK": 168}
"""By QuestDB's units of a TTL; longer ones have no fixed length, and nothing is taken as expired by them."""
_PARTITION_NS = {"HOUR": _HOUR_NS, "DAY": DAY_NS}


class Expiry(NamedTuple):
    """Which rows a store has deleted for their age: of `before_ns` by table, those of an earlier time (of the table).

    `start`: only what lies before it in the log; None: wherever it lies.
    """

    before_ns: Mapping[str, int] = MappingProxyType({})
    start: LogPosition | None = None


class Archived:
    """What the archive has of each table and day, looked up once."""

    def __init__(self, store: ObjectStore) -> None:
        self.name = store.url
        self._store = store
        self._days: dict[str, set[date]] = {}

    def row_count(self, table: str, day: date) -> int | None:
        """How many rows of a day; None: the table is not archived at all. Raises `StoreError`."""
        if table not in self._days:
            self._days[table] = manifest_days(self._store, table)
        if not self._days[table]:
            return None
        manifest = read_manifest(self._store, table, day)
        return 0 if manifest is None else manifest.row_count


class AuditedStore(NamedTuple):
    """A store to be audited: how it is asked, how far it says it is, what is plainly wrong with it, and its name.

    `open_archive`: to look up rows that have expired. Raises `StoreError`.
    """

    source: Source
    position: LogPosition | None
    faults: list[str]
    name: str
    expiry: Expiry = Expiry()
    open_archive: Callable[[], Archived] | None = None


def open_parquet(folder: Path, ttl_days: int = 0) -> AuditedStore:
    """The files in `folder`, which are deleted after `ttl_days`; 0: never. Raises `StoreError`."""
    source = DuckDbSource(folder)
    contents = read_folder(folder)
    faults = check_folder(folder, thorough=False)
    return AuditedStore(
        source, contents.position, faults, str(folder), _expiry_of_files(contents, ttl_days)
    )


def _expiry_of_files(contents: FolderContents, ttl_days: int) -> Expiry:
    """Closings go in the order of the log: what comes after the oldest one is there."""
    kept_from = kept_from_day(contents, day_of_ns(time.time_ns()), ttl_days)
    if not ttl_days or kept_from is None:
        return Expiry()
    before_ns = start_of_day_ns(kept_from)
    return Expiry(dict.fromkeys(TABLES, before_ns), contents.closings[0].start)


def open_questdb(store: StoreConfig, log: Path) -> AuditedStore:
    """The configured server, once it has applied what it has acknowledged. Raises `StoreError`, `CredentialsError`."""
    # How far it is before it is asked: so at least that is there.
    position = load_position(log, CONSUMER)
    server = QuestDbHttp(store.conf, read_login(store.username, store.password_path))
    for table in TABLES.values():
        if table.streams:
            server.execute(f"SELECT wait_wal_table('{table.name}')")
    return AuditedStore(QuestDbSource(server), position, [], server.address, _expiry_of(server))


def _expiry_of(server: QuestDbHttp) -> Expiry:
    """Partitions go in the order of time, once all of their rows are too old: what comes after the oldest is there."""
    ttl_sql = "SELECT table_name, ttlValue, ttlUnit FROM tables() WHERE ttlValue > 0"
    hours = {name: value * _TTL_HOURS.get(unit, 0) for name, value, unit in server.execute(ttl_sql)}
    before_ns = {}
    for name in EXPIRING:
        sql = f"SELECT cast(min({TABLES[name].time}) AS LONG), cast(max({TABLES[name].time}) AS LONG) FROM {name}"
        [[oldest_ns, newest_ns]] = server.execute(sql)
        if hours.get(name) and newest_ns is not None:
            partition_ns = _PARTITION_NS[TABLES[name].partition]
            too_old_ns = min(newest_ns, time.time_ns()) - hours[name] * _HOUR_NS
            before_ns[name] = min(too_old_ns, oldest_ns // partition_ns * partition_ns)
    return Expiry(before_ns)
