"""What is in a QuestDB database: statements for tables and views, made from `core.tables`. Pure.

Prices and sizes are integers in the tables, exact; views named `<table>_v` show them in dollars and contracts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tickerplant.core.tables import TABLES, Column, ColumnType, Table

SCHEMA_VERSION = 1
"""Counts up with each change; a database of a higher one is left alone."""
VERSION_TABLE = "schema_version"
"""Which versions were applied and when, and the name of the database, by which its place in the log is kept."""

COLUMN_TYPES: Mapping[ColumnType, str] = {
    ColumnType.TIME: "TIMESTAMP_NS",
    ColumnType.SYMBOL: "SYMBOL",
    ColumnType.TEXT: "VARCHAR",
    ColumnType.INTEGER: "LONG",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.LEVELS: "DOUBLE[][]",
}
EXPIRING = ("trades", "orderbook_deltas", "bbo", "tickers", "book_snapshots")
"""Tables whose rows are deleted after `store.ttl_days`; the others are small."""

CREATE_VERSION_TABLE = (
    f"CREATE TABLE {VERSION_TABLE} (ts TIMESTAMP_NS, version LONG, database_id VARCHAR) "
    "TIMESTAMP(ts) PARTITION BY YEAR WAL"
)


class MaterializedView(NamedTuple):
    """A view that QuestDB keeps up with its base table."""

    name: str
    base: str
    query: str
    partition: str

    @property
    def create(self) -> str:
        """The statement."""
        return (
            f"CREATE MATERIALIZED VIEW {self.name} WITH BASE {self.base} REFRESH IMMEDIATE AS "
            f"({self.query}) PARTITION BY {self.partition}"
        )


def _from_ohlc(name: str, base: str, sample: str) -> MaterializedView:
    query = (
        "SELECT ts, ticker, first(open_e4) open_e4, max(high_e4) high_e4, min(low_e4) low_e4, "
        "last(close_e4) close_e4, sum(volume_e2) volume_e2, sum(trade_count) trade_count "
        f"FROM {base} SAMPLE BY {sample}"
    )
    return MaterializedView(name, base, query, "YEAR")


MATERIALIZED_VIEWS: Mapping[str, MaterializedView] = {
    view.name: view
    for view in (
        MaterializedView(
            "ohlc_1m",
            "trades",
            "SELECT ts, ticker, first(price_e4) open_e4, max(price_e4) high_e4, min(price_e4) low_e4, "
            "last(price_e4) close_e4, sum(size_e2) volume_e2, count() trade_count "
            "FROM trades SAMPLE BY 1m",
            "MONTH",
        ),
        _from_ohlc("ohlc_1h", "ohlc_1m", "1h"),
        _from_ohlc("ohlc_1d", "ohlc_1h", "1d"),
    )
}
"""In the order in which they are made."""
OHLC_COLUMNS = (
    *("ts", "ticker", "open_e4", "high_e4", "low_e4", "close_e4", "volume_e2", "trade_count"),
)


def create_table(table: Table, ttl_days: int) -> str:
    """The statement for a table."""
    columns = ", ".join(column_definition(column) for column in table.columns)
    ttl = f" TTL {ttl_days} DAYS" if table_ttl_days(table.name, ttl_days) else ""
    return (
        f"CREATE TABLE {table.name} ({columns}) TIMESTAMP({table.time}) PARTITION BY {table.partition}{ttl} WAL "
        f"DEDUP UPSERT KEYS({', '.join(table.keys)})"
    )


def column_definition(column: Column) -> str:
    """Name and type."""
    return f"{column.name} {COLUMN_TYPES[column.type]}"


def table_ttl_days(name: str, ttl_days: int) -> int:
    """When the rows of a table expire; 0: never."""
    return ttl_days if name in EXPIRING else 0


def _shown(name: str) -> str:
    """An expression for a column in a view for people."""
    for suffix, divisor in (("_e4", "10000.0"), ("_e2", "100.0")):
        if name.endswith(suffix):
            return f"{name}/{divisor} AS {name.removesuffix(suffix)}"
    return name


def _shown_levels(name: str) -> str:
    side = name.removesuffix("s")
    return f"{name}[1]/10000.0 AS {side}_prices, {name}[2]/100.0 AS {side}_sizes"


def _view_query(table: Table) -> str | None:
    """None: there is nothing to convert."""
    shown = [
        _shown_levels(column.name) if column.type is ColumnType.LEVELS else _shown(column.name)
        for column in table.columns
    ]
    if tuple(shown) == table.column_names:
        return None
    return f"SELECT {', '.join(shown)} FROM {table.name}"


VIEWS: Mapping[str, str] = {
    **{
        f"{table.name}_v": query
        for table in TABLES.values()
        if (query := _view_query(table)) is not None
    },
    **{
        f"{name}_v": f"SELECT {', '.join(map(_shown, OHLC_COLUMNS))} FROM {name}"
        for name in MATERIALIZED_VIEWS
    },
}
"""Queries of the views for people, by name."""
