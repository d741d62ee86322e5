"""SQL over a QuestDB server: answers come as Parquet files over HTTP, exact and as fast as the server reads."""

import tempfile
from collections.abc import Iterator
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import SQL_BATCH_ROWS
from tickerplant.store.answers import instant_text
from tickerplant.store.duckdb_source import refused
from tickerplant.store.questdb_http import QuestDbHttp
from tickerplant.store.source import OHLC_SQL, Span

_TRADES = "trades_asked_for"


class QuestDbSource:
    """Asks `server`; see `source.Source`. It only reads: the server's export takes nothing but SELECT."""

    def __init__(self, server: QuestDbHttp) -> None:
        """Opens nothing yet."""
        self.server = server

    def time_literal(self, time_ns: int) -> str:
        """A time as SQL."""
        return f"'{instant_text(time_ns)}'"

    def query(self, sql: str, _span: Span | None = None) -> pa.Table:
        """All rows of the answer; the server finds the partitions by itself."""
        with tempfile.TemporaryFile(prefix="tickerplant-") as file:
            self._fetch(sql, file)
            try:
                return pq.read_table(file)
            except pa.ArrowException as error:
                raise self._cut(error) from error

    def stream(self, sql: str) -> pa.RecordBatchReader:
        """The answer bit by bit, from a file that goes with the reader."""
        file = tempfile.TemporaryFile(prefix="tickerplant-")  # noqa: SIM115  # read after this returns
        try:
            self._fetch(sql, file)
            parquet = pq.ParquetFile(file)
        except pa.ArrowException as error:
            file.close()
            raise self._cut(error) from error
        except BaseException:
            file.close()
            raise
        return pa.RecordBatchReader.from_batches(parquet.schema_arrow, _batches(parquet, file))

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
        """Nothing stays open."""

    def _cut(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"QuestDB {self.server.address}: its answer was cut short ({str(error)[:100]}): ask again"
        )

    def _fetch(self, sql: str, file: IO[bytes]) -> None:
        try:
            self.server.export(sql, file)
        except OSError as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: {error.strerror or error}: free some space for the answer, or set TMPDIR"
            ) from error
        file.seek(0)


def _batches(parquet: pq.ParquetFile, file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    with file, parquet:
        yield from parquet.iter_batches(SQL_BATCH_ROWS)
