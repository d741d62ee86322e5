"""Counts and sums of everything in a tick log, and of everything in a database, to be compared."""

from collections import Counter
from pathlib import Path

from tickerplant.core.rows import RowMapper
from tickerplant.core.tables import TABLES, ColumnType
from tickerplant.runtime.logreader import LogReader
from tickerplant.store.questdb_http import QuestDbHttp

MODULUS = 1_000_003
"""Sums are of remainders, of the dividend's sign, so that a million nanoseconds do not overflow 64 bits."""
_SUMMED = (ColumnType.TIME, ColumnType.INTEGER)


def summed_columns(table: str) -> list[str]:
    return [column.name for column in TABLES[table].columns if column.type in _SUMMED]


def remainder(value: int | None) -> int:
    if value is None:
        return 0
    return value % MODULUS if value >= 0 else -(-value % MODULUS)


def totals_of_log(folder: Path) -> dict[str, Counter[str]]:
    """By table: rows, and the sum of each column of numbers or times."""
    totals: dict[str, Counter[str]] = {}
    mapper = RowMapper()
    with LogReader(folder) as reader:
        while (batch := reader.read()) is not None:
            assert not batch.faults
            for _offset, datagram in batch.records:
                mapper.add_datagram(datagram)
            for name, rows in mapper.take().items():
                _add(totals.setdefault(name, Counter()), name, rows)
    return totals


def _add(total: Counter[str], name: str, rows: list) -> None:
    total["rows"] += len(rows)
    columns = dict(zip(TABLES[name].column_names, zip(*rows, strict=True), strict=True))
    for column in summed_columns(name):
        total[column] += sum(map(remainder, columns[column]))


def totals_of_database(server: QuestDbHttp) -> dict[str, Counter[str]]:
    """The same, of tables that have rows, once all of them are applied."""
    totals: dict[str, Counter[str]] = {}
    for name in TABLES:
        assert server.execute(f"SELECT wait_wal_table('{name}')") == [[True]]
        columns = summed_columns(name)
        sums = ", ".join(f"sum(cast({column} AS LONG) % {MODULUS}L)" for column in columns)
        [row] = server.execute(f"SELECT count(), {sums} FROM {name}")
        if row[0]:
            values = [0 if value is None else value for value in row]
            totals[name] = Counter(dict(zip(["rows", *columns], values, strict=True)))
    return totals
