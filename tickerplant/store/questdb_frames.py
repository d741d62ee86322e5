"""Rows and columns as the data frames that QuestDB's client takes, columns as the server wants them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tickerplant.core.columns import Columns
from tickerplant.core.rows import Row
from tickerplant.core.tables import ColumnType, Table
from tickerplant.store.arrow_tables import to_arrow
from tickerplant.store.backend import RejectedRow

_UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError)
"""What Arrow raises for a value that a column cannot hold; a text that is no UTF-8 is a `ValueError`."""
_NO_TIME = np.iinfo(np.int64).min
"""As numpy has it: not a time."""


def fitting_rows(table: Table, rows: Columns | Sequence[Row]) -> tuple[pa.Table, list[RejectedRow]]:
    """Rows as columns, and the ones that no column holds or whose time is before 1970."""
    try:
        data = to_arrow(table, rows)
    except _UNFIT:
        return _sort_out(table, rows)
    times = data[table.time].combine_chunks()
    if times.null_count or (data.num_rows and times.view(pa.int64()).to_numpy().min() < 0):
        return _sort_out(table, rows)
    return data, []


def _sort_out(table: Table, rows: Columns | Sequence[Row]) -> tuple[pa.Table, list[RejectedRow]]:
    sound: list[Row] = []
    rejected: list[RejectedRow] = []
    for row in rows.rows() if isinstance(rows, Columns) else rows:
        try:
            to_arrow(table, [row])
        except _UNFIT as error:
            rejected.append(RejectedRow(table.name, row, str(error)))
            continue
        # The table's time is its first column.
        if row[0] is None or row[0] < 0:
            rejected.append(RejectedRow(table.name, row, f"{table.time} is before 1970"))
        else:
            sound.append(row)
    return to_arrow(table, sound), rejected


def to_frame(table: Table, data: pa.Table) -> pd.DataFrame:
    """`data` for `Sender.dataframe`; columns without any value are left out."""
    columns = {
        column.name: _SERIES[column.type](data[column.name].combine_chunks())
        for column in table.columns
        if data[column.name].null_count < data.num_rows
    }
    return pd.DataFrame(columns, copy=False)


def symbols(table: Table, frame: pd.DataFrame) -> list[str]:
    """The columns of `frame` that are symbols."""
    return [
        column.name
        for column in table.columns
        if column.type is ColumnType.SYMBOL and column.name in frame.columns
    ]


def _times(values: pa.Array) -> Any:
    numbers = values.cast(pa.int64())
    if numbers.null_count:
        numbers = numbers.fill_null(_NO_TIME)
    return numbers.to_numpy().view("datetime64[ns]")


def _integers(values: pa.Array) -> Any:
    if not values.null_count:
        return values.to_numpy()
    mask = values.is_null().to_numpy(zero_copy_only=False)
    return pd.arrays.IntegerArray(values.fill_null(0).to_numpy(), mask)


def _booleans(values: pa.Array) -> Any:
    return values.fill_null(False).to_numpy(zero_copy_only=False)


def _symbols(values: pa.Array) -> Any:
    """As Arrow has them: the client reads these as fast as codes, which take longer to make."""
    return pd.arrays.ArrowExtensionArray(values)


def _texts(values: pa.Array) -> Any:
    return pd.Series(values.to_pylist(), dtype=object)


def _levels(values: pa.Array) -> Any:
    """Arrays of two rows that share the memory of `values`. QuestDB exports two empty rows as none at all."""
    sides = values.flatten()
    numbers = sides.flatten().to_numpy()
    firsts, bounds = _bounds(values), _bounds(sides)
    found = np.empty(len(values), dtype=object)
    for index in np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False)):
        first, last = bounds[firsts[index]], bounds[firsts[index + 1]]
        found[index] = numbers[first:last].reshape(2, -1)
    return pd.Series(found, dtype=object, copy=False)


def _bounds(lists: pa.Array) -> Any:
    """Where each begins in `flatten`, and the last one ends."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return np.concatenate(([0], np.cumsum(lengths)))


_SERIES = {
    ColumnType.TIME: _times,
    ColumnType.INTEGER: _integers,
    ColumnType.BOOLEAN: _booleans,
    ColumnType.SYMBOL: _symbols,
    ColumnType.TEXT: _texts,
    ColumnType.LEVELS: _levels,
}
