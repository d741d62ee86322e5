"""The book of a market at any past instant, rebuilt from stored rows and compared with the checksums among them.

The instant is one of the exchange's clock: what the exchange had done by then is in the book, also what reached the
plant a moment later. So the last row whose `ts` is not after the instant ends it, and the rows of its session before it
make it, from the last whole image on. The rows after it, up to the next checksum, prove it once more.
"""

from typing import NamedTuple

import pyarrow as pa

from tickerplant.core.book import Book
from tickerplant.core.rebuilt_book import CHECKSUM_KINDS, DeltaRow, RebuiltBook
from tickerplant.errors import DamagedStoreError, NoSuchBookError
from tickerplant.limits import BOOK_LATE_MAX_NS
from tickerplant.store.source import Source, Span, text_literal

LEVEL_SCHEMA = pa.schema([("side", pa.string()), ("price_e4", pa.int64()), ("size_e2", pa.int64())])
_HOUR_NS = 3_600 * 1_000_000_000
_LOOK_BACK_NS = (_HOUR_NS, 24 * _HOUR_NS, 31 * 24 * _HOUR_NS, None)
"""How far back the last row is looked for, first here, then further; None: to the oldest."""


class BookAt(NamedTuple):
    """A book as it was at `at_ns`.

    `state`: live; stale (it may have been wrong, `reason`), syncing (an image was just being told). `session` and `seq`
    are those of the last message in it, `ts_ns` and `ts_recv_ns` its times. `checks` checksums agreed on the way;
    `is_confirmed`: so did one after it.
    """

    ticker: str
    at_ns: int
    state: str
    reason: str
    session: int
    seq: int
    ts_ns: int
    ts_recv_ns: int
    checks: int
    is_confirmed: bool
    book: Book

    @property
    def levels(self) -> pa.Table:
        """Columns side (bid, ask), price_e4, size_e2; best first."""
        bids, asks = self.book.depth(self.book.level_count)
        rows = [("bid", *level) for level in bids] + [("ask", *level) for level in asks]
        columns = zip(*rows, strict=True) if rows else [()] * len(LEVEL_SCHEMA)
        arrays = [
            pa.array(values, field.type)
            for values, field in zip(columns, LEVEL_SCHEMA, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=LEVEL_SCHEMA)


class _Last(NamedTuple):
    """The last row of the book."""

    session: int
    seq: int
    ts_ns: int
    ts_recv_ns: int


def last_row(source: Source, table: str, ticker: str, at_ns: int) -> _Last | None:
    """The last row of a market in `table` whose `ts` is not after `at_ns`; None: there is none. Raises `StoreError`."""
    end_ns = at_ns + BOOK_LATE_MAX_NS
    for back_ns in _LOOK_BACK_NS:
        start_ns = None if back_ns is None else at_ns - back_ns
        after = "" if start_ns is None else f" AND ts_recv >= {source.time_literal(start_ns)}"
        found = source.query(
            f"SELECT session, seq, ts, ts_recv FROM {table} WHERE ticker = {text_literal(ticker)} "
            f"AND ts <= {source.time_literal(at_ns)} AND ts_recv < {source.time_literal(end_ns)}{after} "
            "ORDER BY session DESC, seq DESC LIMIT 1",
            Span(start_ns, end_ns),
        )
        if found.num_rows:
            return _Last(*(column.cast(pa.int64())[0].as_py() for column in found.columns))
    return None


def book_at(source: Source, ticker: str, at_ns: int) -> BookAt:
    """The book of `ticker` at `at_ns`, nanoseconds since 1970.

    Raises `NoSuchBookError` if nothing is known of it at that time, `DamagedStoreError` if the rows do not give the
    book that their checksums tell, `StoreError`.
    """
    last = last_row(source, "orderbook_deltas", ticker, at_ns)
    if last is None:
        raise NoSuchBookError(
            f"nothing is stored of the book of {ticker} at that time: see `tickerplant sql` on orderbook_deltas"
        )
    rebuilt = RebuiltBook(ticker)
    book, state, reason, checks = rebuilt.book, rebuilt.state, "", 0
    is_confirmed = False
    is_done = False
    for row in _rows(source, ticker, last):
        if not is_done and row.seq > last.seq:
            is_done = True
            book = Book(rebuilt.book.bids.items(), rebuilt.book.asks.items())
            state, reason, checks = rebuilt.state, rebuilt.reason, rebuilt.checks
        if is_done and row.kind == "clear":
            break
        rebuilt.apply(row)
    if is_done:
        is_confirmed = rebuilt.checks > checks
    else:
        book, state, reason, checks = rebuilt.book, rebuilt.state, rebuilt.reason, rebuilt.checks
    return BookAt(
        ticker,
        at_ns,
        state,
        reason,
        last.session,
        last.seq,
        last.ts_ns,
        last.ts_recv_ns,
        checks,
        is_confirmed,
        book,
    )


def _rows(source: Source, ticker: str, last: _Last) -> list[DeltaRow]:
    """From the last whole image before the last row to the first checksum after it. Raises `DamagedStoreError`."""
    mine = f"ticker = {text_literal(ticker)} AND session = {last.session}"
    # A session's number is the time of its start.
    start_ns, end_ns = last.session - _HOUR_NS, last.ts_recv_ns + _HOUR_NS
    times = (
        f"ts_recv >= {source.time_literal(start_ns)} AND ts_recv < {source.time_literal(end_ns)}"
    )
    span = Span(start_ns, end_ns)
    kinds = ", ".join(map(text_literal, CHECKSUM_KINDS))
    first = source.query(
        f"SELECT max(seq) AS seq FROM orderbook_deltas WHERE {mine} AND {times} "
        f"AND kind = 'clear' AND seq <= {last.seq}",
        span,
    )["seq"][0].as_py()
    if first is None:
        raise DamagedStoreError(
            f"orderbook_deltas of {ticker}, seq {last.seq}: the image it builds on is missing: take that part of the "
            "log again, or restore it from the archive"
        )
    proof = source.query(
        f"SELECT min(seq) AS seq FROM orderbook_deltas WHERE {mine} AND {times} "
        f"AND kind IN ({kinds}) AND seq > {last.seq}",
        span,
    )["seq"][0].as_py()
    rows = source.query(
        f"SELECT {', '.join(DeltaRow._fields)} FROM orderbook_deltas WHERE {mine} AND {times} "
        f"AND seq >= {first} AND seq <= {proof or last.seq} ORDER BY seq",
        span,
    )
    columns = [column.to_pylist() for column in rows.columns]
    return [DeltaRow(*values) for values in zip(*columns, strict=True)]
