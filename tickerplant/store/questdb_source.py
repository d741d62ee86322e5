"""SQL over a QuestDB server: answers become Arrow with the types that the server tells.

A small one comes as JSON in one request, a large one as CSV. Not as the server's Parquet, which in QuestDB 9.3.4
silently lacks values (see `questdb_archive`), and is hardly faster.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import SQL_CSV_BLOCK_BYTES, SQL_SMALL_ROWS
from tickerplant.store.answers import instant_text
from tickerplant.store.duckdb_source import refused
from tickerplant.store.questdb_http import AnswerColumn, QuestDbHttp
from tickerplant.store.source import OHLC_SQL, Span

_TRADES = "trades_asked_for"
_TIME = pa.timestamp("ns", "UTC")
_TYPES: Mapping[str, pa.DataType] = {
    **dict.fromkeys(("LONG", "INT", "SHORT", "BYTE"), pa.int64()),
    **dict.fromkeys(("DOUBLE", "FLOAT"), pa.float64()),
    **dict.fromkeys(("TIMESTAMP_NS", "TIMESTAMP", "DATE"), _TIME),
    "BOOLEAN": pa.bool_(),
}
"""Of columns by their type in the server; others are text."""


_TEXTS = ("SYMBOL", "VARCHAR", "STRING")
"""Types that are text in JSON as in CSV."""
_SELECT = re.compile(r"\s*SELECT\b[^;]*", re.IGNORECASE)
"""What can only read. Anything else goes to the export, which takes nothing but questions."""


class QuestDbSource:
    """Asks `server`; see `source.Source`. It only reads."""

    def __init__(self, server: QuestDbHttp) -> None:
        """Opens nothing yet."""
        self.server = server
        self._reader = server.reader()

    def time_literal(self, time_ns: int) -> str:
        """A time as SQL."""
        return f"'{instant_text(time_ns)}'"

    def query(self, sql: str, _span: Span | None = None) -> pa.Table:
        """All rows of the answer; the server finds the partitions by itself."""
        return self.stream(sql).read_all()

    def stream(self, sql: str) -> pa.RecordBatchReader:
        """The answer bit by bit; a large one from a file that goes with the reader."""
        columns = None
        if _SELECT.fullmatch(sql):
            columns, rows = self._reader.first_rows(sql, SQL_SMALL_ROWS + 1)
            if len(rows) <= SQL_SMALL_ROWS and all(map(_is_plain, columns)):
                batch = _from_json(columns, rows)
                return pa.RecordBatchReader.from_batches(batch.schema, [batch])
        return self._stream_csv(sql, columns)

    def _stream_csv(self, sql: str, columns: list[AnswerColumn] | None) -> pa.RecordBatchReader:
        file = tempfile.TemporaryFile(prefix="tickerplant-")  # noqa: SIM115  # read after this returns
        try:
            self._fetch(sql, file)
            columns = columns or self._reader.types_of(sql)
            reader = self._open(file, columns)
        except BaseException:
            file.close()
            raise
        schema = _schema_of(columns)
        return pa.RecordBatchReader.from_batches(schema, self._batches(reader, file, schema))

    def ohlc(self, rows_sql: str, period_ns: int, span: Span) -> pa.Table:
        """Open, high, low and close of each period, made here from the trades."""
        trades = self.query(rows_sql, span)
        index = trades.column_names.index("ts")
        trades = trades.set_column(index, "ts", trades["ts"].cast(pa.timestamp("ns")))
        with duckdb.connect(":memory:") as connection:
            connection.register(_TRADES, trades)
            try:
                sql = OHLC_SQL.format(rows=_TRADES, period_ns=period_ns)
                return connection.sql(sql).to_arrow_table()
            except duckdb.Error as error:
                raise refused(error) from error

    def close(self) -> None:
        """Close its connections."""
        self._reader.close()

    def _fetch(self, sql: str, file: IO[bytes]) -> None:
        try:
            self._reader.export_csv(sql, file)
        except OSError as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: {error.strerror or error}: free some space for the answer, or set TMPDIR"
            ) from error
        file.seek(0)

    def _open(self, file: IO[bytes], columns: list[AnswerColumn]) -> pa_csv.CSVStreamingReader:
        types = {one.name: _TYPES.get(one.type, pa.string()) for one in columns}
        try:
            return pa_csv.open_csv(
                file,
                pa_csv.ReadOptions(block_size=SQL_CSV_BLOCK_BYTES),
                pa_csv.ParseOptions(newlines_in_values=True),
                pa_csv.ConvertOptions(
                    column_types=types,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        except pa.ArrowException as error:
            raise self._cut(error) from error

    def _batches(
        self, reader: pa_csv.CSVStreamingReader, file: IO[bytes], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        with file, reader:
            try:
                for batch in reader:
                    arrays = [
                        _converted(array, field.type)
                        for array, field in zip(batch.columns, schema, strict=True)
                    ]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            except pa.ArrowException as error:
                raise self._cut(error) from error

    def _cut(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"QuestDB {self.server.address}: its answer cannot be read ({str(error)[:100]}): ask again"
        )


def _schema_of(columns: list[AnswerColumn]) -> pa.Schema:
    return pa.schema([(one.name, _type_of(one.type, one.dimensions)) for one in columns])


def _is_plain(column: AnswerColumn) -> bool:
    """Whether its values are the same in JSON as in CSV."""
    return column.type in _TYPES or column.type in (*_TEXTS, "ARRAY")


def _from_json(columns: list[AnswerColumn], rows: list[list[Any]]) -> pa.RecordBatch:
    schema = _schema_of(columns)
    values = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [
        pa.array(column, pa.string()).cast(field.type)
        if pa.types.is_timestamp(field.type)
        else pa.array(column, field.type)
        for column, field in zip(values, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _type_of(kind: str, dimensions: int) -> pa.DataType:
    if kind != "ARRAY":
        return _TYPES.get(kind, pa.string())
    nested = pa.float64()
    for _ in range(dimensions):
        nested = pa.list_(nested)
    return nested


def _converted(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind) and pc.any(pc.match_substring(array, "\\")).as_py():
        # Backslashes and what cannot be printed are escaped as in JSON.
        values = [text and _unescaped(text) for text in array.to_pylist()]
        return pa.array(values, kind)
    if not pa.types.is_list(kind):
        return array
    # An array is told as text, `null` where there is none.
    values = [None if text is None else json.loads(text) for text in array.to_pylist()]
    return pa.array(values, kind)


def _unescaped(text: str) -> str:
    escaped = text.replace('"', '\\"')
    unescaped: str = json.loads(f'"{escaped}"')
    return unescaped
