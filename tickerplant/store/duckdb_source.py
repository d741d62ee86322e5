"""SQL over the embedded store: its Parquet files as tables of DuckDB, as they are at the moment of each question."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from tickerplant.core.tables import TABLES, Column, ColumnType, Table
from tickerplant.errors import StoreError
from tickerplant.limits import SQL_BATCH_ROWS, SQL_LISTING_ATTEMPTS
from tickerplant.store.parquet_folder import read_folder
from tickerplant.store.source import OHLC_SQL, PERIODS_S, Span, text_literal

_Result = TypeVar("_Result")

_TYPES = {
    ColumnType.TIME: "TIMESTAMP_NS",
    ColumnType.SYMBOL: "VARCHAR",
    ColumnType.TEXT: "VARCHAR",
    ColumnType.INTEGER: "BIGINT",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.LEVELS: "DOUBLE[][]",
}
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    # Nothing is fetched from anywhere.
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_DOLLARS = {"_e4": "CAST(0.0001 AS DECIMAL(5,4))", "_e2": "CAST(0.01 AS DECIMAL(3,2))"}
_OHLC_VIEWS = ("1m", "1h", "1d")


class DuckDb(ABC):
    """Parquet files as tables, whichever `list_paths` names; see `source.Source`."""

    def __init__(self) -> None:
        """Opens no file yet."""
        self._connection = duckdb.connect(":memory:", config=_SETTINGS)
        self._paths: dict[str, list[str]] = {}
        self._are_views_made = False

    @abstractmethod
    def list_paths(self, sql: str, span: Span) -> Mapping[str, list[str]]:
        """The files of each table, in the order of their rows, as far as a question is about them."""

    def time_literal(self, time_ns: int) -> str:
        """A time as SQL."""
        return f"make_timestamp_ns({time_ns})"

    def query(self, sql: str, span: Span | None = None) -> pa.Table:
        """All rows of the answer; see `source.Source`."""
        return self._ask(lambda: self._read_all(sql), sql, span)

    def stream(self, sql: str) -> pa.RecordBatchReader:
        """The answer bit by bit."""
        return self._ask(lambda: self._open_stream(sql), sql, None)

    def ohlc(self, rows_sql: str, period_ns: int, span: Span) -> pa.Table:
        """Open, high, low and close of each period."""
        return self.query(OHLC_SQL.format(rows=f"({rows_sql})", period_ns=period_ns), span)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _read_all(self, sql: str) -> pa.Table:
        relation = self._relation(sql)
        return pa.table({}) if relation is None else relation.to_arrow_table()

    def _relation(self, sql: str) -> duckdb.DuckDBPyRelation | None:
        """None for a statement without an answer, which the library's types do not tell."""
        return self._connection.sql(sql)

    def _open_stream(self, sql: str) -> pa.RecordBatchReader:
        relation = self._relation(sql)
        if relation is None:
            return pa.table({}).to_reader()
        reader = relation.to_arrow_reader(SQL_BATCH_ROWS)
        return pa.RecordBatchReader.from_batches(reader.schema, _guarded(reader))

    def _ask(self, ask: Callable[[], _Result], sql: str, span: Span | None) -> _Result:
        """`ask` with the views as the files are now; again if a merge removed files under it."""
        for attempt in range(SQL_LISTING_ATTEMPTS):
            try:
                self._show_files(self.list_paths(sql, span or Span()))
                return ask()
            except duckdb.IOException as error:
                if attempt + 1 == SQL_LISTING_ATTEMPTS:
                    raise refused(error) from error
            except duckdb.Error as error:
                raise refused(error) from error
        raise AssertionError("the loop returns or raises")

    def _show_files(self, listed: Mapping[str, list[str]]) -> None:
        for table in TABLES.values():
            paths = listed[table.name]
            if self._paths.get(table.name) != paths:
                self._make_view(table.name, _rows_sql(table, paths))
                self._paths[table.name] = paths
        if not self._are_views_made:
            self._make_derived_views()
            self._are_views_made = True

    def _make_derived_views(self) -> None:
        """They follow the tables, whichever files these show."""
        for table in TABLES.values():
            shown = ", ".join(shown_column(column) for column in table.columns)
            self._make_view(f"{table.name}_v", f"SELECT {shown} FROM {table.name}")
        for name in _OHLC_VIEWS:
            sql = OHLC_SQL.format(rows="trades", period_ns=PERIODS_S[name] * 1_000_000_000)
            self._make_view(f"ohlc_{name}", sql)

    def _make_view(self, name: str, sql: str) -> None:
        self._connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {sql}")


class DuckDbSource(DuckDb):
    """Asks the files in `folder`; files that are written, merged or removed meanwhile do no harm."""

    def __init__(self, folder: Path) -> None:
        """Raises `StoreError` if there is no such folder."""
        if not folder.is_dir():
            raise StoreError(
                f"store: there is no folder {folder}: run `tickerplant store`, or set store.directory"
            )
        super().__init__()
        self.folder = folder

    def list_paths(self, _sql: str, span: Span) -> Mapping[str, list[str]]:
        """As the folder is now."""
        contents = read_folder(self.folder)
        first, last = span.days
        return {
            name: [str(file.path) for file in contents.files_of(name, first, last)]
            for name in TABLES
        }


def _rows_sql(table: Table, paths: Sequence[str]) -> str:
    if paths:
        files = ", ".join(map(text_literal, paths))
        return f"SELECT * FROM read_parquet([{files}], hive_partitioning = false)"
    columns = (f"CAST(NULL AS {_TYPES[column.type]}) AS {column.name}" for column in table.columns)
    return f"SELECT {', '.join(columns)} WHERE false"


def shown_column(column: Column) -> str:
    """A column for people: prices in dollars, sizes in contracts, both exact decimals."""
    for suffix, unit in _DOLLARS.items():
        if column.name.endswith(suffix):
            return f"{column.name} * {unit} AS {column.name.removesuffix(suffix)}"
    return column.name


def _guarded(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except (OSError, pa.ArrowException) as error:
        raise refused(error) from error


def refused(error: Exception) -> StoreError:
    """The error for a question that DuckDB does not answer: the first line of its own."""
    text = str(error).strip().partition("\n")[0]
    return StoreError(f"query: {text[:400]}")
