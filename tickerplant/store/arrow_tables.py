"""The store's tables in Arrow and Parquet: schemas, rows to tables, and how files are written.

Times are `timestamp[ns]` without zone and mean UTC: every SQL function of DuckDB takes them, which is not so for zoned
ones. Rows keep the order of the log, in which times, sequences and their like differ little from row to row: stored as
differences (DELTA_BINARY_PACKED) they take almost nothing. Sorted by market a file would be twice as large.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tickerplant.core.columns import (
    Columns,
    ColumnValues,
    Constant,
    Integers,
    Symbols,
    columns_of,
    count_of,
)
from tickerplant.core.rows import Row
from tickerplant.core.tables import TABLES, ColumnType, Table
from tickerplant.limits import PARQUET_ROW_GROUP_ROWS

DAY_NS = 86_400 * 1_000_000_000
_EPOCH = date(1970, 1, 1)

ARROW_TYPES: Mapping[ColumnType, pa.DataType] = {
    ColumnType.TIME: pa.timestamp("ns"),
    ColumnType.SYMBOL: pa.string(),
    ColumnType.TEXT: pa.string(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.LEVELS: pa.list_(pa.list_(pa.float64())),
}

SCHEMAS: Mapping[str, pa.Schema] = {
    table.name: pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])
    for table in TABLES.values()
}
"""The schema of each table, by name."""


def to_arrow(table: Table, rows: Columns | Sequence[Row]) -> pa.Table:
    """`rows` as an Arrow table. Raises `pa.ArrowInvalid`, `OverflowError` for a value that its column cannot hold."""
    schema = SCHEMAS[table.name]
    count = count_of(rows)
    if not count:
        return schema.empty_table()
    values = columns_of(rows).values
    arrays = [_array(one, field.type, count) for one, field in zip(values, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """The rows of `parts`, which have the same schema, in one piece."""
    if len(parts) == 1:
        return parts[0]
    return pa.concat_tables(parts).combine_chunks()


def row_of(table: Table, data: pa.Table, index: int) -> Row:
    """The row that column by column became `data`, or is equal to it."""
    return tuple(_value_of(column.type, data[column.name][index]) for column in table.columns)


def _value_of(kind: ColumnType, value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    if kind is ColumnType.TIME:
        return value.value
    if kind is ColumnType.LEVELS:
        return tuple(tuple(map(int, side)) for side in value.as_py())
    return value.as_py()


def _array(values: ColumnValues, kind: pa.DataType, count: int) -> pa.Array:
    if isinstance(values, Integers):
        return _numbers(_fixed(values.values, np.int64, count), kind)
    if isinstance(values, Constant):
        if values.value is None:
            return pa.nulls(count, kind)
        return pa.repeat(pa.scalar(values.value, kind), count)
    if isinstance(values, Symbols):
        codes = _numbers(_fixed(values.codes, np.int32, count), pa.int32())
        return pa.DictionaryArray.from_arrays(codes, _dictionary(values.texts)).cast(kind)
    return pa.array(values, kind)


@lru_cache(maxsize=256)
def _dictionary(texts: tuple[str, ...]) -> pa.Array:
    return pa.array(texts, pa.string())


def _fixed(values: Sequence[int], kind: type, count: int) -> "np.ndarray[Any, Any]":
    """Raises `OverflowError`."""
    if isinstance(values, range):
        return np.arange(values.start, values.stop, dtype=kind)
    return np.fromiter(values, kind, count)


def _numbers(values: "np.ndarray[Any, Any]", kind: pa.DataType) -> pa.Array:
    """The same memory as an Arrow array: `pa.array` looks at it, and around, for longer than it is worth."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def conform(table: Table, data: pa.Table) -> pa.Table:
    """`data` of any source with exactly the columns and types of `table`; columns it lacks are null.

    Raises `pa.ArrowInvalid` if a value does not fit.
    """
    columns = [
        data[field.name].cast(field.type)
        if field.name in data.column_names
        else pa.nulls(data.num_rows, field.type)
        for field in SCHEMAS[table.name]
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMAS[table.name])


# --- days -----------------------------------------------------------------------------------------


def day_of_ns(time_ns: int) -> date:
    """The day in UTC of nanoseconds since 1970."""
    return _EPOCH + timedelta(days=time_ns // DAY_NS)


def start_of_day_ns(day: date) -> int:
    """The first nanosecond of a day in UTC."""
    return (day - _EPOCH).days * DAY_NS


def day_in_words(time_ns: int) -> str:
    """A time for people: UTC, to the second."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def split_by_day(table: Table, data: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """The rows of each day of the table's time, in their order."""
    if not data.num_rows:
        return
    times = data[table.time].cast(pa.int64())
    span = pc.min_max(times).as_py()
    first, last = day_of_ns(span["min"]), day_of_ns(span["max"])
    if first == last:
        yield first, data
        return
    numbers = pc.divide(times, pa.scalar(DAY_NS, pa.int64()))
    for number in sorted(pc.unique(numbers).to_pylist()):
        yield _EPOCH + timedelta(days=number), data.filter(pc.equal(numbers, number))


# --- files ----------------------------------------------------------------------------------------


def _is_repetitive(table: Table, name: str) -> bool:
    """Whether a column has few distinct values: then a dictionary is smaller than differences."""
    kind = table.column(name).type
    # Changes of a level are mostly a few round numbers, its sizes are not.
    is_round = name.endswith("_e4") or name == "delta_e2"
    return kind is ColumnType.SYMBOL or name == "session" or is_round


def new_writer(path: Path, table: Table, *, level: int = 3) -> pq.ParquetWriter:
    """A writer of `table` into the new file `path`; give it whole row groups. Raises `OSError`."""
    dictionary = [name for name in table.column_names if _is_repetitive(table, name)]
    differences = {
        column.name: "DELTA_BINARY_PACKED"
        for column in table.columns
        if column.type in (ColumnType.TIME, ColumnType.INTEGER) and column.name not in dictionary
    }
    return pq.ParquetWriter(
        path,
        SCHEMAS[table.name],
        compression="zstd",
        compression_level=level,
        use_dictionary=dictionary,
        column_encoding=differences,
        write_page_checksum=True,
        write_page_index=True,
    )


class RowGroups:
    """Collects the rows of one file and writes them as row groups of `PARQUET_ROW_GROUP_ROWS`."""

    def __init__(self, path: Path, table: Table) -> None:
        """Opens the file. Raises `OSError`."""
        self.path = path
        self.row_count = 0
        self._writer = new_writer(path, table)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, data: pa.Table) -> None:
        """Take rows, which are behind those before. Raises `OSError`."""
        self._waiting.append(data)
        self._waiting_rows += data.num_rows
        self.row_count += data.num_rows
        if self._waiting_rows >= PARQUET_ROW_GROUP_ROWS:
            self._write(whole_groups_only=True)

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write the rest, and `metadata` into the footer. Raises `OSError`."""
        self._write(whole_groups_only=False)
        self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()

    def abandon(self) -> None:
        """Close the file, whatever is in it; it is not to be used."""
        self._waiting.clear()
        self._writer.close()

    def _write(self, *, whole_groups_only: bool) -> None:
        if not self._waiting_rows:
            return
        data = pa.concat_tables(self._waiting)
        count = data.num_rows
        if whole_groups_only:
            count -= count % PARQUET_ROW_GROUP_ROWS
        self._writer.write_table(data.slice(0, count), row_group_size=PARQUET_ROW_GROUP_ROWS)
        rest = data.slice(count)
        self._waiting = [rest] if rest.num_rows else []
        self._waiting_rows = rest.num_rows


def metadata_of(path: Path) -> Mapping[str, Any]:
    """The texts in the footer of a file, by key. Raises `OSError`, `pa.ArrowInvalid` if it is damaged."""
    found = pq.read_metadata(path).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key != b"ARROW:schema"}
