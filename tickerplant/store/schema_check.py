"""A database against the schema: what is missing, what differs, and what `tickerplant schema apply` does about it.

Changes only ever add: a table, a column at its end, a view, another time to live. What differs otherwise is a conflict;
while there is one, nothing is changed at all.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from tickerplant.core.tables import TABLES, Table
from tickerplant.errors import StoreError
from tickerplant.store.questdb_http import QuestDbHttp
from tickerplant.store.schema import (
    COLUMN_TYPES,
    CREATE_VERSION_TABLE,
    MATERIALIZED_VIEWS,
    SCHEMA_VERSION,
    VERSION_TABLE,
    VIEWS,
    column_definition,
    create_table,
    table_ttl_days,
)

_ALTER = "ALTER TABLE "
_HOURS = {"HOUR": 1, "DAY": 24, "WEEK": 168}
_MONTHS = {"MONTH": 1, "YEAR": 12}


class Severity(Enum):
    """How grave a difference is."""

    ADDITION = "+"
    """`apply` adds it."""
    CHANGE = "~"
    """`apply` changes it, without touching rows; the store works either way."""
    CONFLICT = "!"
    """Only people can decide."""


class Difference(NamedTuple):
    """One, in words, with the statement that removes it (none for a conflict)."""

    severity: Severity
    text: str
    statement: str = ""

    def __str__(self) -> str:
        """As `tickerplant schema diff` shows it."""
        statement = f"\n    {self.statement}" if self.statement else ""
        return f"{self.severity.value} {self.text}{statement}"


class LiveColumn(NamedTuple):
    """A column as the server tells it."""

    name: str
    type: str
    is_time: bool
    is_key: bool


class LiveTable(NamedTuple):
    """A table, view or materialized view as the server tells it. `kind`: T, V or M."""

    kind: str
    time: str
    partition: str
    is_wal: bool
    ttl: tuple[int, str]
    columns: tuple[LiveColumn, ...]


class LiveSchema(NamedTuple):
    """What the database has under our names.

    `versions`: (version, id of the database), the oldest first; none: `schema apply` never ran there. `queries` and
    `invalid` (reasons) are of views.
    """

    tables: Mapping[str, LiveTable]
    queries: Mapping[str, str]
    invalid: Mapping[str, str]
    versions: tuple[tuple[int, str], ...]

    @property
    def database_id(self) -> str:
        """Hexadecimal; empty if it has none."""
        return self.versions[0][1] if self.versions else ""


def read_schema(server: QuestDbHttp) -> LiveSchema:
    """Ask the server. Raises as `QuestDbHttp.execute`."""
    ours = {*TABLES, *MATERIALIZED_VIEWS, *VIEWS, VERSION_TABLE}
    tables = {}
    for row in server.execute(
        "SELECT table_name, table_type, designatedTimestamp, partitionBy, walEnabled, ttlValue, ttlUnit "
        "FROM tables()"
    ):
        if row[0] in ours:
            name, kind, time, partition, is_wal, ttl_value, ttl_unit = row
            ttl = (ttl_value, ttl_unit)
            columns = _columns(server, name)
            tables[name] = LiveTable(kind, time, partition, is_wal, ttl, columns)
    queries, invalid = {}, {}
    for source in ("views()", "materialized_views()"):
        for name, query, status, reason in server.execute(
            f"SELECT view_name, view_sql, view_status, invalidation_reason FROM {source}"
        ):
            queries[name] = query
            if status != "valid":
                invalid[name] = reason or status
    versions: tuple[tuple[int, str], ...] = ()
    if VERSION_TABLE in tables and not _version_table_conflict(tables[VERSION_TABLE]):
        found = server.execute(f"SELECT version, database_id FROM {VERSION_TABLE} ORDER BY ts")
        versions = tuple((row[0], row[1]) for row in found)
    return LiveSchema(tables, queries, invalid, versions)


def _columns(server: QuestDbHttp, name: str) -> tuple[LiveColumn, ...]:
    rows = server.execute(f"SHOW COLUMNS FROM {name}")
    # column, type, indexed, indexBlockCapacity, symbolCached, symbolCapacity, symbolTableSize, designated, upsertKey
    return tuple(LiveColumn(row[0], row[1], row[-2], row[-1]) for row in rows)


def compare(live: LiveSchema, ttl_days: int) -> list[Difference]:
    """Everything in which `live` is not the schema; none: they agree."""
    found = [*_version_differences(live)]
    for table in TABLES.values():
        found += _table_differences(table, live, ttl_days)
    for name, view in MATERIALIZED_VIEWS.items():
        found += _view_differences(name, "M", view.query, view.create, live)
    for name, query in VIEWS.items():
        create = f"CREATE VIEW {name} AS ({query})"
        found += _view_differences(name, "V", query, create, live)
    return found


def conflicts(differences: list[Difference]) -> list[Difference]:
    """Those that `apply` cannot remove."""
    return [one for one in differences if one.severity is Severity.CONFLICT]


def blocking(differences: list[Difference]) -> list[Difference]:
    """Those with which the store cannot work."""
    return [one for one in differences if one.severity is not Severity.CHANGE]


def apply(
    server: QuestDbHttp, ttl_days: int, tell: Callable[[str], None] = lambda _: None
) -> list[Difference]:
    """Make the database agree, each statement told before it runs; returns what was done.

    May be repeated after any failure. Raises `StoreError` on a conflict, before anything was changed, and as
    `QuestDbHttp.execute`.
    """
    live = read_schema(server)
    differences = compare(live, ttl_days)
    if hard := conflicts(differences):
        more = f" (and {len(hard) - 1} more)" if len(hard) > 1 else ""
        raise StoreError(
            f"QuestDB {server.address}: {hard[0].text}{more}: nothing was changed; `tickerplant schema diff` "
            "shows all; rename what is not ours, or use another database"
        )
    for one in differences:
        if one.statement:
            tell(one.statement)
            server.execute(one.statement)
            if one.statement.startswith(_ALTER):
                # Views over a new column can be made only once the change was applied.
                table = one.statement.removeprefix(_ALTER).partition(" ")[0]
                server.execute(f"SELECT wait_wal_table('{table}')")
    if not live.versions or live.versions[-1][0] < SCHEMA_VERSION:
        database_id = live.database_id or secrets.token_hex(8)
        server.execute(
            f"INSERT INTO {VERSION_TABLE} VALUES (systimestamp_ns(), {SCHEMA_VERSION}, '{database_id}')"
        )
        server.execute(f"SELECT wait_wal_table('{VERSION_TABLE}')")
    return differences


# --- one by one -------------------------------------------------------------------------------------


def _conflict(text: str) -> Difference:
    return Difference(Severity.CONFLICT, text)


def _version_table_conflict(table: LiveTable) -> bool:
    names = [column.name for column in table.columns]
    return names[:3] != ["ts", "version", "database_id"]


def _version_differences(live: LiveSchema) -> Iterator[Difference]:
    table = live.tables.get(VERSION_TABLE)
    if table is None:
        yield Difference(
            Severity.ADDITION, f"table {VERSION_TABLE} is missing", CREATE_VERSION_TABLE
        )
    elif _version_table_conflict(table):
        yield _conflict(f"table {VERSION_TABLE} is not ours: it has other columns")
    elif live.versions and live.versions[-1][0] > SCHEMA_VERSION:
        yield _conflict(
            f"the database has version {live.versions[-1][0]} of the schema, this program knows {SCHEMA_VERSION}: "
            "use the newer program"
        )
    elif not live.versions:
        yield Difference(Severity.ADDITION, f"version {SCHEMA_VERSION} is not recorded")


def _table_differences(table: Table, live: LiveSchema, ttl_days: int) -> Iterator[Difference]:
    found = live.tables.get(table.name)
    if found is None:
        statement = create_table(table, ttl_days)
        yield Difference(Severity.ADDITION, f"table {table.name} is missing", statement)
        return
    hard = [*_structure_conflicts(table, found)]
    if hard:
        yield from hard
        return
    missing = [*_missing_columns(table, found)]
    if missing and not live.versions:
        yield _conflict(
            f"table {table.name} is not ours: it lacks {', '.join(one[0] for one in missing)}, and no version of the "
            "schema is recorded"
        )
        return
    for name, definition in missing:
        yield Difference(
            Severity.ADDITION,
            f"table {table.name} lacks column {name}",
            f"ALTER TABLE {table.name} ADD COLUMN {definition}",
        )
    wanted = table_ttl_days(table.name, ttl_days)
    if _ttl_hours(*found.ttl) != (24 * wanted, 0):
        yield Difference(
            Severity.CHANGE,
            f"table {table.name} keeps rows {_ttl_text(*found.ttl)}, it should be {_ttl_text(wanted, 'DAY')}",
            f"ALTER TABLE {table.name} SET TTL {wanted} DAYS",
        )


def _structure_conflicts(table: Table, found: LiveTable) -> Iterator[Difference]:
    name = table.name
    if found.kind != "T":
        yield _conflict(f"{name} is a view; it should be a table")
        return
    wanted: list[tuple[str, Any, Any]] = [
        ("designated timestamp", found.time, table.time),
        ("partitions", found.partition, table.partition),
        ("WAL", found.is_wal, True),
    ]
    keys = tuple(sorted(column.name for column in found.columns if column.is_key))
    wanted.append(("DEDUP keys", ", ".join(keys), ", ".join(sorted(table.keys))))
    for what, has, should in wanted:
        if has != should:
            yield _conflict(f"table {name}: {what}: {has or 'none'}, it should be {should}")
    types = {column.name: column.type for column in found.columns}
    for column in table.columns:
        should = COLUMN_TYPES[column.type]
        has = types.get(column.name, should)
        if has != should:
            yield _conflict(
                f"table {name}: column {column.name} has type {has}, it should be {should}"
            )


def _missing_columns(table: Table, found: LiveTable) -> Iterator[tuple[str, str]]:
    present = {column.name for column in found.columns}
    for column in table.columns:
        if column.name not in present:
            yield column.name, column_definition(column)


def _view_differences(
    name: str, kind: str, query: str, create: str, live: LiveSchema
) -> Iterator[Difference]:
    what = "materialized view" if kind == "M" else "view"
    found = live.tables.get(name)
    if found is None:
        yield Difference(Severity.ADDITION, f"{what} {name} is missing", create)
    elif found.kind != kind:
        yield _conflict(f"{name} is not ours: it should be a {what}")
    elif _words(live.queries.get(name, "")) != _words(query):
        if kind == "M":
            # Making it anew would lose what expired in its base table.
            yield _conflict(f"materialized view {name} has another query: {live.queries.get(name)}")
        else:
            statement = f"CREATE OR REPLACE VIEW {name} AS ({query})"
            yield Difference(Severity.CHANGE, f"view {name} has another query", statement)
    elif name in live.invalid:
        text = f"{what} {name} is invalid ({live.invalid[name]})"
        if kind == "M":
            refresh = f"REFRESH MATERIALIZED VIEW {name} FULL"
            yield Difference(Severity.CHANGE, text, refresh)
        else:
            statement = f"CREATE OR REPLACE VIEW {name} AS ({query})"
            yield Difference(Severity.CHANGE, text, statement)


def _words(query: str) -> list[str]:
    return query.split()


def _ttl_hours(value: int, unit: str) -> tuple[int, int]:
    """Hours and months."""
    return (value * _HOURS[unit], 0) if unit in _HOURS else (0, value * _MONTHS[unit])


def _ttl_text(value: int, unit: str) -> str:
    return f"for {value} {unit.lower()}s" if value else "for ever"
