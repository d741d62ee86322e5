"""Answers of the store as text, CSV, JSON lines or a Parquet file, written as they come."""

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from tickerplant.errors import StoreError

_SECOND_NS = 1_000_000_000
_UNITS = {"_e4": 4, "_e2": 2}
"""Suffixes of integer columns, and the decimal digits that they stand for."""

Row = tuple[Any, ...]


def decimal_text(value: int, digits: int) -> str:
    """An integer of so many decimal digits as a decimal number: exact."""
    sign, whole = "-" if value < 0 else "", abs(value)
    return f"{sign}{whole // 10**digits}.{whole % 10**digits:0{digits}}"


def instant_text(time_ns: int) -> str:
    """Date and time in UTC with nanoseconds, as ISO 8601 has it."""
    seconds, nanoseconds = divmod(time_ns, _SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    """The rows of a batch: times as text, decimal numbers as text, everything else as Python has it."""
    columns = [_values(batch.column(index)) for index in range(batch.num_columns)]
    return iter(zip(*columns, strict=True))


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind):
        times = column.cast(pa.timestamp("ns", kind.tz)).cast(pa.int64()).to_pylist()
        return [None if time is None else instant_text(time) for time in times]
    values: list[Any] = column.to_pylist()
    is_plain = pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)
    if is_plain or pa.types.is_string(kind):
        return values
    return [
        value if value is None or isinstance(value, bool | int | float | str | list) else str(value)
        for value in values
    ]


def in_units(data: pa.Table) -> pa.Table:
    """Prices in dollars and sizes in contracts, as text, the columns named without their suffix."""
    arrays, names = [], []
    for name, column in zip(data.column_names, data.columns, strict=True):
        digits = _UNITS.get(name[-3:])
        if digits is None:
            arrays.append(column)
            names.append(name)
            continue
        values = [
            None if value is None else decimal_text(value, digits) for value in column.to_pylist()
        ]
        arrays.append(pa.array(values, pa.string()))
        names.append(name[:-3])
    return pa.table(arrays, names=names)


def write_csv(reader: pa.RecordBatchReader, output: TextIO) -> int:
    """All rows with a line of names first; how many rows. Raises `StoreError`."""
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(reader.schema.names)
    count = 0
    for batch in reader:
        writer.writerows(rows_of(batch))
        count += batch.num_rows
    return count


def write_json(reader: pa.RecordBatchReader, output: TextIO) -> int:
    """One JSON object a line; how many. Raises `StoreError`."""
    count = 0
    for batch in reader:
        output.writelines(
            json.dumps(dict(zip(reader.schema.names, row, strict=True))) + "\n"
            for row in rows_of(batch)
        )
        count += batch.num_rows
    return count


def write_parquet(reader: pa.RecordBatchReader, path: Path) -> int:
    """All rows into the file `path`, which is there whole or not at all; how many. Raises `StoreError`."""
    temporary = path.with_name(f"{path.name}.tmp")
    count = 0
    try:
        with pq.ParquetWriter(temporary, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                count += batch.num_rows
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def write_text(reader: pa.RecordBatchReader, output: TextIO, limit: int) -> int:
    """The first `limit` rows (0: all) in columns, and a line that says if there are more; how many were written."""
    rows: list[Row] = []
    more = False
    for batch in reader:
        for row in rows_of(batch):
            if limit and len(rows) >= limit:
                more = True
                break
            rows.append(row)
        if more:
            break
    is_number = [
        pa.types.is_integer(field.type)
        or pa.types.is_floating(field.type)
        or pa.types.is_decimal(field.type)
        for field in reader.schema
    ]
    output.writelines(_lines(reader.schema.names, rows, is_number))
    if more:
        output.write(f"(the first {limit} rows; --limit 0 shows all)\n")
    return len(rows)


def _lines(names: list[str], rows: list[Row], is_number: list[bool]) -> Iterator[str]:
    if not names:
        return
    cells = [names, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in (cells[0], ["-" * width for width in widths], *cells[1:]):
        yield _line(line, widths, is_number)


def _line(cells: Iterable[str], widths: list[int], is_number: list[bool]) -> str:
    parts = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, is_number, strict=True)
    ]
    return "  ".join(parts).rstrip() + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
