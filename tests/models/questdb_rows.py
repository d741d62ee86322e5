"""What is in a QuestDB database, as the rows that went in."""

from collections import Counter
from typing import Any

from tickerplant.core.tables import TABLES, ColumnType, Table
from tickerplant.store.local_server import LocalServer
from tickerplant.store.questdb_http import Login, QuestDbHttp


def http_of(server: LocalServer) -> QuestDbHttp:
    return QuestDbHttp(f"http::addr={server.address};", Login(server.user, server.password))


def empty(server: QuestDbHttp) -> None:
    """Drop everything."""
    drops = {"V": "VIEW", "M": "MATERIALIZED VIEW", "T": "TABLE"}
    found = dict(server.execute("SELECT table_name, table_type FROM tables()"))
    for name, kind in sorted(found.items(), key=lambda item: "VMT".index(item[1])):
        server.execute(f"DROP {drops[kind]} {name}")


def select_of(table: Table) -> str:
    """All columns; times as integers in nanoseconds."""
    columns = (
        f"cast({column.name} AS LONG) {column.name}_ns"
        if column.type is ColumnType.TIME
        else column.name
        for column in table.columns
    )
    return f"SELECT {', '.join(columns)} FROM {table.name}"


def rows_in_database(server: QuestDbHttp) -> dict[str, Counter[tuple[Any, ...]]]:
    """Every row of every table that has any, once all of it is applied."""
    found = {}
    for name, table in TABLES.items():
        assert server.execute(f"SELECT wait_wal_table('{name}')") == [[True]]
        rows = server.execute(select_of(table))
        if rows:
            found[name] = Counter(tuple(map(_hashable, row)) for row in rows)
    return found


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
