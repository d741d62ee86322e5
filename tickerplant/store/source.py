"""Where stored rows are asked for: Parquet files through DuckDB, or a QuestDB server. One face for both."""

from collections.abc import Mapping
from datetime import date
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tickerplant.core.tables import Table
from tickerplant.store.arrow_tables import day_of_ns

OHLC_SQL = """\
SELECT make_timestamp_ns(period_ns) AS ts, ticker,
  arg_min(price_e4, place) AS open_e4, max(price_e4) AS high_e4, min(price_e4) AS low_e4,
  arg_max(price_e4, place) AS close_e4, CAST(sum(size_e2) AS BIGINT) AS volume_e2, count(*) AS trade_count
FROM (SELECT ticker, price_e4, size_e2, epoch_ns(ts) // {period_ns} * {period_ns} AS period_ns,
  row(ts, session, seq) AS place FROM {rows})
GROUP BY period_ns, ticker ORDER BY period_ns, ticker"""
"""In DuckDB's words: trades to open, high, low and close of each period."""
OHLC_SCHEMA = pa.schema(
    [
        ("ts", pa.timestamp("ns")),
        ("ticker", pa.string()),
        *((name, pa.int64()) for name in ("open_e4", "high_e4", "low_e4", "close_e4")),
        ("volume_e2", pa.int64()),
        ("trade_count", pa.int64()),
    ]
)
PERIODS_S: Mapping[str, int] = {"1m": 60, "5m": 300, "15m": 900, "1h": 3_600, "1d": 86_400}
"""Lengths of a period, by their names."""


class Span:
    """The times, nanoseconds since 1970, that a question is about: from `start_ns`, before `end_ns`; None: any."""

    def __init__(self, start_ns: int | None = None, end_ns: int | None = None) -> None:
        self.start_ns = start_ns
        self.end_ns = end_ns

    @property
    def days(self) -> tuple[date | None, date | None]:
        """The first and the last day (UTC) that it touches; None: any."""
        start_ns, end_ns = self.start_ns, self.end_ns
        return (
            None if start_ns is None else day_of_ns(start_ns),
            None if end_ns is None else day_of_ns(end_ns),
        )


class Source(Protocol):
    """Answers SQL over the tables of `core.tables`."""

    def time_literal(self, time_ns: int) -> str:
        """A time as SQL."""
        ...

    def query(self, sql: str, span: Span | None = None) -> pa.Table:
        """All rows of the answer. Raises `StoreError`, `StoreUnavailableError`.

        `span`: the question is about rows whose table's time lies in it; then others need not be looked at.
        """
        ...

    def stream(self, sql: str) -> pa.RecordBatchReader:
        """The answer bit by bit; read it before the next question. Raises as `query`, also while it is read."""
        ...

    def ohlc(self, rows_sql: str, period_ns: int, span: Span) -> pa.Table:
        """`OHLC_SCHEMA` of the trades that `rows_sql` selects: ts, session, seq, ticker, price_e4, size_e2."""
        ...

    def close(self) -> None:
        """Let go of everything; harmless the second time."""
        ...


def text_literal(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def in_row_order(table: Table, data: pa.Table) -> pa.Table:
    """Rows in the order of the table's time, session and seq, those without the latter two last.

    A database that keeps them so need not sort them for it: mostly they are in order, and that is seen at once.
    """
    names = (table.time, "session", "seq")
    if not any(data[name].null_count for name in names):
        is_ordered = np.ones(max(data.num_rows - 1, 0), bool)
        for name in reversed(names):
            steps = np.diff(data[name].cast(pa.int64()).to_numpy())
            is_ordered = (steps > 0) | ((steps == 0) & is_ordered)
        if is_ordered.all():
            return data
    return data.take(pc.sort_indices(data, sort_keys=[(name, "ascending") for name in names]))
