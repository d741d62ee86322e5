"""Archived days back into a QuestDB database, each part compared with what the manifest says of it."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
from questdb import QuestDBError, Sender

from tickerplant.core.archive_plan import Manifest, PartFile, differing
from tickerplant.core.tables import TABLES, Table
from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import RESTORE_BATCH_ROWS
from tickerplant.store.archive_files import damaged, read_batches, verify_file
from tickerplant.store.arrow_tables import conform, start_of_day_ns
from tickerplant.store.object_store import ObjectStore
from tickerplant.store.questdb_archive import (
    QuestDbArchiveSource,
    content_in_database,
    wait_applied,
)
from tickerplant.store.questdb_frames import symbols, to_frame
from tickerplant.store.questdb_http import Login, QuestDbHttp

_FILE = "restored.parquet"
_DAY_NS = 86_400 * 1_000_000_000


class Restorer:
    """Fills one database from one object store."""

    def __init__(
        self,
        store: ObjectStore,
        conf: str,
        login: Login,
        work: Path,
        *,
        tell_rows: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`conf` is the client's conf string, `work` a folder for one file at a time. Asks nothing."""
        self.server = QuestDbHttp(conf, login)
        self._store = store
        self._conf = conf
        self._login = login
        self._work = work
        self._tell_rows = tell_rows

    def is_restored(self, manifest: Manifest) -> bool:
        """Whether the database has exactly these rows in the time that they span."""
        table = TABLES[manifest.table]
        wait_applied(self.server, table)
        return not any(self._difference(table, part) for part in manifest.parts)

    def restore(self, manifest: Manifest) -> int:
        """Bring in the parts that are not there; how many rows that were. May be repeated after any failure.

        Raises `DamagedStoreError` (names the object), `StoreUnavailableError`, `StoreError`: what is in the database
        afterwards is not what is in the archive.
        """
        table = TABLES[manifest.table]
        wait_applied(self.server, table)
        written = 0
        for part in manifest.parts:
            if self._difference(table, part):
                self._bring_in(table, part)
                written += part.row_count
        return written

    def _bring_in(self, table: Table, part: PartFile) -> None:
        path = self._work / _FILE
        name = f"{self._store.url}/{part.path}"
        try:
            self._store.get_file(part.path, path)
            verify_file(path, part, table, name)
            self._write(table, path, name)
        except FileNotFoundError as error:
            raise damaged(name, "it is missing") from error
        finally:
            path.unlink(missing_ok=True)
        wait_applied(self.server, table)
        difference = self._difference(table, part)
        if difference:
            raise StoreError(
                f"QuestDB {self.server.address}: {table.name} has {difference} in the time of {part.path}: the table "
                "had rows of its own there, or deletes them (TTL); restore into an empty one, with store.ttl_days = 0"
            )

    def _write(self, table: Table, path: Path, name: str) -> None:
        arguments: dict[str, Any] = self._login.sender_arguments()
        try:
            with Sender.from_conf(self._conf, auto_flush=False, **arguments) as sender:
                for group in read_batches(path, table, name):
                    rows = conform(table, group)
                    for start in range(0, rows.num_rows, RESTORE_BATCH_ROWS):
                        self._send(sender, table, rows.slice(start, RESTORE_BATCH_ROWS))
        except QuestDBError as error:
            words = " ".join(str(error).split())[:300]
            raise StoreUnavailableError(f"QuestDB {self.server.address}: {words}") from error

    def _send(self, sender: Sender, table: Table, data: pa.Table) -> None:
        frame = to_frame(table, data)
        sender.dataframe(frame, table_name=table.name, symbols=symbols(table, frame), at=table.time)
        sender.flush()
        self._tell_rows(data.num_rows)

    def _difference(self, table: Table, part: PartFile) -> str:
        found = content_in_database(self.server, table, part.first_ns, part.last_ns + 1)
        return differing(part.content, found)


class HistoricalServer:
    """Archived days in a server of their own; see `archive_source.Historical`."""

    def __init__(self, restorer: Restorer, work: Path, *, keep_days: int, hot_ns: int) -> None:
        """`keep_days`: older ones are not loaded, 0: all are; `hot_ns` as for `QuestDbArchiveSource`."""
        self._restorer = restorer
        self._tables = QuestDbArchiveSource(restorer.server, work, work, hot_ns=hot_ns)
        self._keep_days = keep_days

    def days(self, table: Table) -> dict[date, int]:
        """See `Historical`."""
        return self._tables.days(table)

    def is_wanted(self, day: date, now_ns: int) -> bool:
        """See `Historical`."""
        return not self._keep_days or now_ns - start_of_day_ns(day) < self._keep_days * _DAY_NS

    def is_loaded(self, manifest: Manifest) -> bool:
        """See `Historical`."""
        return self._restorer.is_restored(manifest)

    def load(self, manifest: Manifest) -> None:
        """See `Historical`."""
        self._restorer.restore(manifest)

    def is_convertible(self, table: Table, day: date, now_ns: int) -> bool:
        """See `ArchiveSource`."""
        return self._tables.is_convertible(table, day, now_ns)

    def convert(self, table: Table, day: date) -> None:
        """See `ArchiveSource`."""
        self._tables.convert(table, day)
