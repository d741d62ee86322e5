"""The tables of the store: names, columns, types and keys, once, for every backend. Pure data.

QuestDB's statements, the client's data frames and the schemas of Parquet files are all made from `TABLES`. Prices are
integers in 1e-4 dollars (`_e4`), sizes in 1e-2 contracts (`_e2`), times integers in nanoseconds since 1970.

What the rows of a live feed have in common:

* `ts`: the exchange's time of the event; where it gives none, `ts_recv`.
* `ts_recv`: when the plant read it. Never goes back within a stream of a session, markets, events and series apart.
* `session`, `seq`: the plant's own numbers of the message in its stream; `g` the plant's input that it came from.

**Time of a table** (`time`), by which rows are kept in order, partitioned, archived and expired:

* trades: `ts`, cut to the exchange's millisecond, because a trade is also told by REST and must be one row.
* markets, events, series: `ts_sent`, when the plant told it; it may have read it days before.
* everything else that is live: `ts_recv`. Rows then only ever come at the end of a table: the exchange's clock stands
  still within a millisecond, differs between markets, and lies days back in the first ticker of a quiet market.

**Keys** make a second write of the same row change nothing. They come from the log alone.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from tickerplant.core.messages import Stream


class ColumnType(Enum):
    """What a column holds."""

    TIME = "time"
    """Nanoseconds since 1970."""
    SYMBOL = "symbol"
    """Text of few distinct values."""
    TEXT = "text"
    INTEGER = "integer"
    """64 bits, signed."""
    BOOLEAN = "boolean"
    LEVELS = "levels"
    """Two rows of equal length, prices (1e-4 dollars) and sizes (1e-2 contracts), best level first. Floats, because
    databases have no other arrays; every value is a whole number below 2**53, so none is rounded."""


class Column(NamedTuple):
    """A column. Only what `Table.keys` names is never null, apart from `side` and `price_e4`."""

    name: str
    type: ColumnType


class Table(NamedTuple):
    """A table; `time` and `keys` are names of columns, `partition` is HOUR, DAY, MONTH or YEAR.

    `streams`: whose messages become rows here; none: something other than the live feed writes it.
    """

    name: str
    time: str
    keys: tuple[str, ...]
    partition: str
    columns: tuple[Column, ...]
    streams: tuple[Stream, ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """In the order of a row."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column `name`."""
        return self.columns[self.column_names.index(name)]


_TIME, _SYMBOL, _TEXT = ColumnType.TIME, ColumnType.SYMBOL, ColumnType.TEXT
_INTEGER, _BOOLEAN, _LEVELS = ColumnType.INTEGER, ColumnType.BOOLEAN, ColumnType.LEVELS


def _columns(*groups: tuple[ColumnType, str]) -> tuple[Column, ...]:
    """Columns from (type, names separated by blanks), in order."""
    return tuple(Column(name, kind) for kind, names in groups for name in names.split())


_LOG_PLACE = (_INTEGER, "session seq g")

TRADES = Table(
    "trades",
    time="ts",
    keys=("ts", "ticker", "trade_id"),
    partition="DAY",
    columns=_columns(
        (_TIME, "ts ts_recv"),
        _LOG_PLACE,
        (_SYMBOL, "ticker"),
        (_TEXT, "trade_id"),
        (_INTEGER, "price_e4 size_e2"),
        # bid: the taker bought YES.
        (_SYMBOL, "taker_side"),
        (_BOOLEAN, "is_block"),
        # live or backfill; the exchange's own time where it is finer than a millisecond.
        (_SYMBOL, "source"),
        (_TIME, "ts_created"),
    ),
    streams=(Stream.TRADE,),
)

ORDERBOOK_DELTAS = Table(
    "orderbook_deltas",
    time="ts_recv",
    # One image message is many rows of one seq.
    keys=("ts_recv", "session", "seq", "side", "price_e4"),
    partition="HOUR",
    columns=_columns(
        (_TIME, "ts_recv ts"),
        _LOG_PLACE,
        # kind: update, stale, clear, image, ready, verify; side: bid, ask.
        (_SYMBOL, "ticker kind side"),
        # size_e2 is the level's new size. delta_e2: of updates only.
        (_INTEGER, "price_e4 delta_e2 size_e2"),
        # Of an update: exchange or resync; of stale: the reason.
        (_SYMBOL, "cause"),
        # Of ready and verify.
        (_INTEGER, "checksum"),
    ),
    streams=(Stream.DELTA,),
)

BBO = Table(
    "bbo",
    time="ts_recv",
    keys=("ts_recv", "session", "seq"),
    partition="HOUR",
    columns=_columns(
        (_TIME, "ts_recv ts"),
        _LOG_PLACE,
        (_SYMBOL, "ticker"),
        # An absent side is 0, 0.
        (_INTEGER, "bid_e4 bid_size_e2 ask_e4 ask_size_e2"),
        (_SYMBOL, "state"),
    ),
    streams=(Stream.BBO,),
)

TICKERS = Table(
    "tickers",
    time="ts_recv",
    keys=("ts_recv", "session", "seq"),
    partition="DAY",
    columns=_columns(
        (_TIME, "ts_recv ts"),
        _LOG_PLACE,
        (_SYMBOL, "ticker"),
        (_INTEGER, "last_e4 last_size_e2 bid_e4 bid_size_e2 ask_e4 ask_size_e2"),
        # The last two in whole dollars.
        (_INTEGER, "volume_e2 open_interest_e2 dollar_volume dollar_open_interest"),
    ),
    streams=(Stream.TICKER,),
)

BOOK_SNAPSHOTS = Table(
    "book_snapshots",
    time="ts_recv",
    keys=("ts_recv", "session", "ticker"),
    partition="DAY",
    columns=_columns(
        # The instant of the snapshot, and the last message of stream delta that is in it.
        (_TIME, "ts_recv"),
        (_INTEGER, "session seq"),
        (_SYMBOL, "ticker"),
        (_LEVELS, "bids asks"),
        # Of the whole book; see `tickerplant.core.book.Book.checksum`.
        (_INTEGER, "checksum"),
    ),
)

MARKETS = Table(
    "markets",
    time="ts_sent",
    keys=("ts_sent", "ticker", "session", "seq"),
    partition="MONTH",
    columns=_columns(
        (_TIME, "ts_sent ts_recv ts"),
        _LOG_PLACE,
        # kind: info (what it is) or state (where it stands in its life).
        (_SYMBOL, "ticker kind event_ticker series_ticker"),
        (_TIME, "ts_open ts_close"),
        (_SYMBOL, "price_level_structure strike_type"),
        # price_bands: JSON, [[start_e4, end_e4, step_e4], ...].
        (_TEXT, "price_bands floor_strike cap_strike"),
        (_SYMBOL, "phase result"),
        (_INTEGER, "settlement_e4"),
        (_TEXT, "title"),
        (_SYMBOL, "source"),
    ),
    streams=(Stream.STATUS,),
)

EVENTS = Table(
    "events",
    time="ts_sent",
    keys=("ts_sent", "event_ticker", "session", "seq"),
    partition="MONTH",
    columns=_columns(
        (_TIME, "ts_sent ts_recv ts"),
        _LOG_PLACE,
        (_SYMBOL, "event_ticker series_ticker"),
        (_TEXT, "title"),
        (_SYMBOL, "category source"),
    ),
    streams=(Stream.STATUS,),
)

SERIES = Table(
    "series",
    time="ts_sent",
    keys=("ts_sent", "series_ticker", "session", "seq"),
    partition="MONTH",
    columns=_columns(
        (_TIME, "ts_sent ts_recv ts"),
        _LOG_PLACE,
        (_SYMBOL, "series_ticker"),
        (_TEXT, "title"),
        (_SYMBOL, "category frequency source"),
    ),
    streams=(Stream.STATUS,),
)

FEED_EVENTS = Table(
    "feed_events",
    time="ts_recv",
    keys=("ts_recv", "session", "stream", "seq"),
    partition="MONTH",
    columns=_columns(
        (_TIME, "ts_recv ts"),
        _LOG_PLACE,
        # kind: session_start, feed_state, upstream_gap, unknown (of a newer plant; it has its seq all the same).
        (_SYMBOL, "stream ticker kind phase cause"),
        # Of an upstream gap: what was lost, and of which stream.
        (_TIME, "ts_from ts_to"),
        (_SYMBOL, "on_stream"),
        # Of a session start.
        (_INTEGER, "previous_session"),
        (_TEXT, "detail"),
    ),
    streams=tuple(Stream),
)

CANDLESTICKS = Table(
    "candlesticks",
    time="ts",
    keys=("ts", "ticker", "period_minutes"),
    partition="MONTH",
    columns=_columns(
        # The end of the period, which belongs to it; ts_recv: when it was fetched.
        (_TIME, "ts ts_recv"),
        (_SYMBOL, "ticker"),
        (_INTEGER, "period_minutes"),
        (_INTEGER, "price_open_e4 price_high_e4 price_low_e4 price_close_e4 price_mean_e4"),
        (_INTEGER, "bid_open_e4 bid_high_e4 bid_low_e4 bid_close_e4"),
        (_INTEGER, "ask_open_e4 ask_high_e4 ask_low_e4 ask_close_e4"),
        (_INTEGER, "volume_e2 open_interest_e2"),
    ),
)

BACKFILL_PROGRESS = Table(
    "backfill_progress",
    time="ts_from",
    keys=("ts_from", "kind", "scope"),
    partition="YEAR",
    columns=_columns(
        # What is fetched: from, up to; as of ts_recv.
        (_TIME, "ts_from ts_to ts_recv"),
        (_SYMBOL, "kind scope state"),
        (_INTEGER, "row_count"),
        (_TEXT, "detail"),
    ),
)

ARCHIVE_MANIFEST = Table(
    "archive_manifest",
    time="ts",
    keys=("ts", "table_name", "part"),
    partition="YEAR",
    columns=_columns(
        # The day's first instant; ts_recv: when the state was reached.
        (_TIME, "ts ts_recv"),
        (_SYMBOL, "table_name"),
        (_INTEGER, "part"),
        (_SYMBOL, "state"),
        (_INTEGER, "row_count file_bytes"),
        (_TIME, "ts_first ts_last"),
        (_TEXT, "checksum object_path detail"),
    ),
)

TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        TRADES,
        ORDERBOOK_DELTAS,
        BBO,
        TICKERS,
        BOOK_SNAPSHOTS,
        MARKETS,
        EVENTS,
        SERIES,
        FEED_EVENTS,
        CANDLESTICKS,
        BACKFILL_PROGRESS,
        ARCHIVE_MANIFEST,
    )
}
"""Every table, by name."""

for _table in TABLES.values():
    assert _table.time == _table.columns[0].name == _table.keys[0], _table.name
    assert set(_table.keys) <= set(_table.column_names), _table.name
    assert len(set(_table.column_names)) == len(_table.columns), _table.name
