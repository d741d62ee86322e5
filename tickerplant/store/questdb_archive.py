"""Days of a QuestDB database as the archive takes them, and what the archive does to them there.

The server writes Parquet (`/exp`) much faster than it answers in any other way, but QuestDB 9.3.4 loses values on the
way, silently: texts of up to nine bytes become null when a native partition is exported, and whole columns when a
Parquet partition is exported with an expression among its columns. So each partition is exported in the form that is
right for it, and everything is compared with sums that the server makes by itself; if they differ the next form is
tried.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tickerplant.core.archive_plan import Content, PartFile, check_names
from tickerplant.core.tables import ARCHIVE_MANIFEST, ColumnType, Table
from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import (
    ARCHIVE_SLICE_ROWS,
    PARQUET_ROW_GROUP_ROWS,
    QUESTDB_CONVERT_TIMEOUT_S,
    QUESTDB_EXPORT_TIMEOUT_S,
)
from tickerplant.runtime.logfolder import load_position
from tickerplant.store.archive_files import damaged
from tickerplant.store.archive_source import end_of_day_ns, require_day_over, require_log_taken
from tickerplant.store.arrow_tables import start_of_day_ns
from tickerplant.store.parquet_folder import TEMPORARY_SUFFIX
from tickerplant.store.questdb_http import QuestDbHttp
from tickerplant.store.service import CONSUMER

STATE_ARCHIVED = "archived"
"""In `archive_manifest`."""
_HOUR_NS = 3_600 * 1_000_000_000
_POLL_S = 0.1


class Partition(NamedTuple):
    """One partition of a table: its day, its hour (0 where a partition is a day), and what the server says of it."""

    day: date
    hour: int
    row_count: int
    is_active: bool
    is_parquet: bool


def whole_partitions(table: Table, rows: Iterable[Sequence[Any]]) -> list[Partition]:
    """Partitions by hour or day, from (name, rows, active, Parquet) of the server's list.

    Rows that come out of order may split one for a while; then its pieces have names like `2026-11-20T071500-000001`.
    """
    found: dict[tuple[date, int], Partition] = {}
    for name, row_count, is_active, is_parquet in rows:
        day = date.fromisoformat(name[:10])
        hour = int(name[11:13] or 0) if table.partition == "HOUR" else 0
        one = found.get((day, hour), Partition(day, hour, 0, is_active=False, is_parquet=True))
        found[day, hour] = Partition(
            day,
            hour,
            one.row_count + row_count,
            one.is_active or is_active,
            one.is_parquet and is_parquet,
        )
    return [found[key] for key in sorted(found)]


class QuestDbArchiveSource:
    """The tables of a server; see `archive_source.ArchiveSource`."""

    has_record = True
    is_by_time = True

    def __init__(self, server: QuestDbHttp, log: Path, work: Path, *, hot_ns: int) -> None:
        """`work`: folder of exports; `hot_ns`: how long after its end a day stays native. Asks nothing."""
        self.server = server
        self._log = log
        self._work = work
        self._hot_ns = hot_ns

    # --- which days and rows ----------------------------------------------------------------------

    def require_complete(self, day: date, now_ns: int) -> None:
        """See `ArchiveSource`."""
        require_day_over(day, now_ns)
        require_log_taken(self._log, load_position(self._log, CONSUMER), day)

    def days(self, table: Table) -> dict[date, int]:
        """See `ArchiveSource`."""
        self._wait_applied(table)
        found: dict[date, int] = {}
        if _has_days(table):
            for one in self.partitions(table):
                found[one.day] = found.get(one.day, 0) + one.row_count
            return found
        sql = f"SELECT cast(timestamp_floor('d', {table.time}) AS LONG), count() FROM {table.name}"
        for start_ns, count in self.server.execute(sql):
            found[date(1970, 1, 1) + timedelta(days=start_ns // (24 * _HOUR_NS))] = count
        return found

    def parts(self, table: Table, day: date) -> dict[int, Content]:
        """See `ArchiveSource`: a part for each partition of the day; of larger partitions one."""
        self._wait_applied(table)
        numbers = [0]
        if _has_days(table):
            numbers = sorted(one.hour for one in self.partitions(table) if one.day == day)
        found = {}
        for number in numbers:
            content = content_in_database(self.server, table, *_span_ns(table, day, number))
            if content.row_count:
                found[number] = content
        return found

    def read(self, table: Table, day: date, part: int, attempt: int) -> Iterator[pa.Table]:
        """See `ArchiveSource`. Raises also `DamagedStoreError` if the server's answer does not read."""
        is_parquet = _has_days(table) and any(
            one.is_parquet for one in self.partitions(table) if (one.day, one.hour) == (day, part)
        )
        columns, order = _export_form(table, attempt, is_parquet=is_parquet)
        slices = self._slices(table, *_span_ns(table, day, part))

        paths = [self._work / f"export{turn}{TEMPORARY_SUFFIX}" for turn in range(2)]

        def export(number: int) -> Path:
            path = paths[number % 2]
            where = where_clause(table, *slices[number])
            self.server.export(f"SELECT {columns} FROM {table.name} {where}{order}", path)
            return path

        try:
            # While one slice is read and written, the server makes the next.
            with ThreadPoolExecutor(1, "archive-export") as exporter:
                coming = exporter.submit(export, 0)
                for number in range(len(slices)):
                    path = coming.result()
                    if number + 1 < len(slices):
                        coming = exporter.submit(export, number + 1)
                    yield from _exported(path, table)
                    path.unlink()
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def _slices(self, table: Table, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """The span cut, at times of rows, into about `ARCHIVE_SLICE_ROWS` each."""
        span = where_clause(table, start_ns, end_ns)
        [[count]] = self.server.execute(
            f"SELECT count() FROM {table.name} {span}", QUESTDB_EXPORT_TIMEOUT_S
        )
        times = {start_ns, end_ns}
        for row in range(ARCHIVE_SLICE_ROWS, count, ARCHIVE_SLICE_ROWS):
            sql = (
                f"SELECT cast({table.time} AS LONG) FROM {table.name} {span} LIMIT {row}, {row + 1}"
            )
            times.update(
                time_ns for [time_ns] in self.server.execute(sql, QUESTDB_EXPORT_TIMEOUT_S)
            )
        return list(pairwise(sorted(times)))

    def partitions(self, table: Table) -> list[Partition]:
        """Those of a table by hour or day, oldest first."""
        rows = self.server.execute(
            f"SELECT name, numRows, active, isParquet FROM table_partitions('{table.name}')"
        )
        return whole_partitions(table, rows)

    def _wait_applied(self, table: Table) -> None:
        wait_applied(self.server, table)

    # --- archive_manifest -------------------------------------------------------------------------

    def is_recorded(self, table: Table, day: date, parts: list[PartFile]) -> bool:
        """See `ArchiveSource`."""
        rows = self.server.execute(
            f"SELECT part, checksum FROM {ARCHIVE_MANIFEST.name} WHERE ts = {_time(start_of_day_ns(day))} "
            f"AND table_name = '{table.name}' AND state = '{STATE_ARCHIVED}'"
        )
        return dict(rows) == {part.part: part.sha256 for part in parts}

    def record(self, table: Table, day: date, parts: list[PartFile], now_ns: int) -> None:
        """See `ArchiveSource`."""
        start = _time(start_of_day_ns(day))
        values = [
            f"({start}, {_time(now_ns)}, '{table.name}', {one.part}, '{STATE_ARCHIVED}', {one.row_count}, "
            f"{one.file_bytes}, {_time(one.first_ns)}, {_time(one.last_ns)}, '{one.sha256}', '{one.path}', null)"
            for one in parts
        ]
        if values:
            names = ", ".join(ARCHIVE_MANIFEST.column_names)
            self.server.execute(
                f"INSERT INTO {ARCHIVE_MANIFEST.name} ({names}) VALUES {', '.join(values)}"
            )
            self._wait_applied(ARCHIVE_MANIFEST)

    # --- in place ---------------------------------------------------------------------------------

    def is_convertible(self, table: Table, day: date, now_ns: int) -> bool:
        """See `ArchiveSource`."""
        if not _has_days(table) or now_ns < end_of_day_ns(day) + self._hot_ns:
            return False
        return bool(self._native(table, day))

    def convert(self, table: Table, day: date) -> None:
        """See `ArchiveSource`."""
        where = where_clause(table, start_of_day_ns(day), end_of_day_ns(day))
        self.server.execute(f"ALTER TABLE {table.name} CONVERT PARTITION TO PARQUET {where}")
        deadline = time.monotonic() + QUESTDB_CONVERT_TIMEOUT_S
        while self._native(table, day):
            if time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"QuestDB {self.server.address}: {table.name} {day} was not turned into Parquet: see its log"
                )
            time.sleep(_POLL_S)

    def _native(self, table: Table, day: date) -> list[Partition]:
        """Partitions of the day that can be converted; the newest of a table cannot."""
        return [
            one
            for one in self.partitions(table)
            if one.day == day and not one.is_parquet and not one.is_active
        ]


# --- SQL --------------------------------------------------------------------------------------------


def content_in_database(server: QuestDbHttp, table: Table, start_ns: int, end_ns: int) -> Content:
    """Rows from `start_ns`, before `end_ns`: how many, and the sums of `check_names`. Raises as `execute`."""
    names = check_names(table)
    sums = ", ".join(_sum(table, name) for name in names)
    [[count, *values]] = server.execute(
        f"SELECT count(), {sums} FROM {table.name} {where_clause(table, start_ns, end_ns)}",
        QUESTDB_EXPORT_TIMEOUT_S,
    )
    return Content(count, dict(zip(names, values, strict=True)))


def wait_applied(server: QuestDbHttp, table: Table) -> None:
    """Until everything that the server has taken into a table shows. Raises `StoreUnavailableError`, `StoreError`."""
    try:
        [[is_applied]] = server.execute(
            f"SELECT wait_wal_table('{table.name}')", QUESTDB_EXPORT_TIMEOUT_S
        )
    except StoreError as error:
        if isinstance(error, StoreUnavailableError) or "does not exist" not in str(error):
            raise
        raise StoreError(
            f"QuestDB {server.address}: table {table.name} is missing: run `tickerplant schema apply`"
        ) from error
    if not is_applied:
        raise StoreUnavailableError(
            f"QuestDB {server.address}: {table.name} does not apply what was written: see the server's log"
        )


def where_clause(table: Table, start_ns: int, end_ns: int) -> str:
    """Rows from `start_ns`, before `end_ns`."""
    return f"WHERE {table.time} >= {_time(start_ns)} AND {table.time} < {_time(end_ns)}"


def _time(time_ns: int) -> str:
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"'{moment}.{rest_ns:09d}Z'"


def _sum(table: Table, name: str) -> str:
    first, _, second = name.partition("*")
    if second:
        return f"sum({first} * {second})"
    kind = table.column(first).type
    if kind is ColumnType.SYMBOL:
        return f"sum(length({first}))"
    if kind is ColumnType.TEXT:
        return f"sum(length_bytes({first}))"
    if kind is ColumnType.LEVELS:
        return f"coalesce(sum(cast(array_sum({first}) AS LONG)), 0)"
    return f"sum({first})" if kind is ColumnType.INTEGER else f"sum(cast({first} AS LONG))"


def _export_form(table: Table, attempt: int, *, is_parquet: bool) -> tuple[str, str]:
    """Columns and order: plain for Parquet, texts as another type for native, and sorted, which is slow, last."""
    plain = ", ".join(table.column_names)
    converted = ", ".join(
        f"cast({column.name} AS STRING) {column.name}"
        if column.type is ColumnType.TEXT
        else column.name
        for column in table.columns
    )
    forms = [(plain, ""), (converted, "")] if is_parquet else [(converted, ""), (plain, "")]
    return [*forms, (converted, f" ORDER BY {table.time}")][min(attempt, 2)]


def _exported(path: Path, table: Table) -> Iterator[pa.Table]:
    try:
        # Symbols are not read as dictionaries: those of the server hold indices that Arrow finds out of bounds.
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(batch_size=PARQUET_ROW_GROUP_ROWS):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise damaged(f"the export of {table.name} by the server", words) from error


def _has_days(table: Table) -> bool:
    """Whether its partitions are of a day or shorter."""
    return table.partition in ("HOUR", "DAY")


def _span_ns(table: Table, day: date, part: int) -> tuple[int, int]:
    if table.partition == "HOUR":
        start_ns = start_of_day_ns(day) + part * _HOUR_NS
        return start_ns, start_ns + _HOUR_NS
    return start_of_day_ns(day), end_of_day_ns(day)
