"""What was stored, for researchers: Arrow tables with the columns of `tickerplant.core.tables`, from either backend.

    from tickerplant import history

    trades = history.trades("KXBTC15M-26NOV211215-15", "2026-11-21", "2026-11-22")
    book = history.book_at("KXBTC15M-26NOV211215-15", "2026-11-21T12:07:03.250")

These ask the store of the configuration, found as the commands find it. `History` asks another one, or many questions
of one:

    with history.open_history(config="/etc/tickerplant/tickerplant.toml") as stored:
        quotes = stored.bbo(["KXBTC15M-26NOV211215-15", "KXBTC15M-26NOV211215-30"])

With `archive=True` it asks the archive, whole days in an object store, and fetches what the questions are about.

A time is nanoseconds since 1970, a `datetime` with zone, or text such as `2026-11-21T14:30:05.25` (UTC unless it says
otherwise). `start` belongs to the answer, `end` does not; None: from the first, up to the last. Trades are chosen by
`ts`, everything else by `ts_recv`. `ticker`: one, several, or None for all.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

import pyarrow as pa

from tickerplant.core.tables import BBO, ORDERBOOK_DELTAS, TICKERS, TRADES, Table
from tickerplant.errors import NoSuchBookError, UsageError
from tickerplant.store import book_history
from tickerplant.store.arrow_tables import conform
from tickerplant.store.book_history import BookAt, last_row
from tickerplant.store.open_source import open_archive, open_source
from tickerplant.store.source import (
    OHLC_SCHEMA,
    PERIODS_S,
    Source,
    Span,
    in_row_order,
    text_literal,
)
from tickerplant.times import parse_time_ns

Time = int | str | datetime
Tickers = str | Sequence[str] | None
_SECOND_NS = 1_000_000_000


def time_ns(time: Time) -> int:
    """Nanoseconds since 1970 of any form of a time. Raises `UsageError`."""
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise UsageError(f"{time!r} has no zone: give datetime.UTC, or text")
        return parse_time_ns(time.isoformat())
    return time if isinstance(time, int) else parse_time_ns(time)


class History:
    """Questions to one store; `open_history` finds it. Every method raises `StoreError`, `UsageError`."""

    def __init__(self, source: Source) -> None:
        """Of `source`, which is closed with it."""
        self.source = source

    def close(self) -> None:
        """Let go of the store; harmless the second time."""
        self.source.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close it."""
        self.close()

    def sql(self, query: str) -> pa.Table:
        """The answer to SQL, in the words of the backend: DuckDB's, or QuestDB's."""
        return self.source.query(query)

    def trades(
        self, ticker: Tickers = None, start: Time | None = None, end: Time | None = None
    ) -> pa.Table:
        """Trades, in the order of `ts`."""
        return self._rows(TRADES, ticker, start, end)

    def bbo(
        self, ticker: Tickers = None, start: Time | None = None, end: Time | None = None
    ) -> pa.Table:
        """Changes of best bid and offer, in the order of receipt."""
        return self._rows(BBO, ticker, start, end)

    def deltas(
        self, ticker: Tickers = None, start: Time | None = None, end: Time | None = None
    ) -> pa.Table:
        """Changes of order books, in the order of receipt."""
        return self._rows(ORDERBOOK_DELTAS, ticker, start, end)

    def tickers(
        self, ticker: Tickers = None, start: Time | None = None, end: Time | None = None
    ) -> pa.Table:
        """Last price, volume and open interest as the exchange told them, in the order of receipt."""
        return self._rows(TICKERS, ticker, start, end)

    def bbo_at(self, ticker: str, at: Time) -> pa.Table:
        """Best bid and offer at an instant of the exchange's clock: one row. Raises `NoSuchBookError`."""
        last = last_row(self.source, BBO.name, ticker, time_ns(at))
        if last is None:
            raise NoSuchBookError(f"nothing is stored of the quotes of {ticker} at that time")
        literal = self.source.time_literal(last.ts_recv_ns)
        found = self.source.query(
            f"SELECT {', '.join(BBO.column_names)} FROM bbo WHERE ts_recv = {literal} "
            f"AND session = {last.session} AND seq = {last.seq}",
            Span(last.ts_recv_ns, last.ts_recv_ns),
        )
        return conform(BBO, found)

    def book_at(self, ticker: str, at: Time) -> BookAt:
        """The whole book at an instant of the exchange's clock, its checksums compared.

        Raises `NoSuchBookError`, and `DamagedStoreError` if rows are lost or wrong.
        """
        return book_history.book_at(self.source, ticker, time_ns(at))

    def ohlc(
        self,
        ticker: Tickers = None,
        start: Time | None = None,
        end: Time | None = None,
        period: str = "1m",
    ) -> pa.Table:
        """Open, high, low, close and volume of each period with trades: `store.source.OHLC_SCHEMA`.

        `period`: 1m, 5m, 15m, 1h or 1d; `ts` is its start.
        """
        if period not in PERIODS_S:
            raise UsageError(f"period {period!r}: it must be one of {', '.join(PERIODS_S)}")
        columns = "ts, session, seq, ticker, price_e4, size_e2"
        sql, span = self._select(TRADES, columns, ticker, start, end)
        return self.source.ohlc(sql, PERIODS_S[period] * _SECOND_NS, span).cast(OHLC_SCHEMA)

    def _rows(
        self, table: Table, ticker: Tickers, start: Time | None, end: Time | None
    ) -> pa.Table:
        sql, span = self._select(table, ", ".join(table.column_names), ticker, start, end)
        answer = self.source.query(f"{sql} ORDER BY {table.time}", span)
        return in_row_order(table, conform(table, answer))

    def _select(
        self,
        table: Table,
        columns: str,
        ticker: Tickers,
        start: Time | None,
        end: Time | None,
    ) -> tuple[str, Span]:
        span = Span(
            None if start is None else time_ns(start), None if end is None else time_ns(end)
        )
        wanted = [] if ticker is None else [ticker] if isinstance(ticker, str) else list(ticker)
        conditions = []
        if ticker is not None:
            names = ", ".join(map(text_literal, wanted)) or "NULL"
            conditions.append(f"ticker IN ({names})")
        if span.start_ns is not None:
            conditions.append(f"{table.time} >= {self.source.time_literal(span.start_ns)}")
        if span.end_ns is not None:
            conditions.append(f"{table.time} < {self.source.time_literal(span.end_ns)}")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT {columns} FROM {table.name}{where}", span


def open_history(
    config: str | Path | None = None, *overrides: str, archive: bool = False
) -> History:
    """The store of a configuration: the file `config` (None: where the commands look), and `section.key=value`.

    `archive`: the whole days in its object store instead. Raises `ConfigurationError`, `StoreError`.
    """
    from tickerplant.config_sources import load_config  # noqa: PLC0415  # not needed where a Source is given

    loaded = load_config(None if config is None else str(config), overrides)
    open_one = open_archive if archive else open_source
    return History(open_one(loaded.config, loaded.state_directory))


def trades(ticker: Tickers = None, start: Time | None = None, end: Time | None = None) -> pa.Table:
    """See `History.trades`."""
    with open_history() as stored:
        return stored.trades(ticker, start, end)


def bbo(ticker: Tickers = None, start: Time | None = None, end: Time | None = None) -> pa.Table:
    """See `History.bbo`."""
    with open_history() as stored:
        return stored.bbo(ticker, start, end)


def deltas(ticker: Tickers = None, start: Time | None = None, end: Time | None = None) -> pa.Table:
    """See `History.deltas`."""
    with open_history() as stored:
        return stored.deltas(ticker, start, end)


def bbo_at(ticker: str, at: Time) -> pa.Table:
    """See `History.bbo_at`."""
    with open_history() as stored:
        return stored.bbo_at(ticker, at)


def book_at(ticker: str, at: Time) -> BookAt:
    """See `History.book_at`."""
    with open_history() as stored:
        return stored.book_at(ticker, at)


def ohlc(
    ticker: Tickers = None,
    start: Time | None = None,
    end: Time | None = None,
    period: str = "1m",
) -> pa.Table:
    """See `History.ohlc`."""
    with open_history() as stored:
        return stored.ohlc(ticker, start, end, period)
