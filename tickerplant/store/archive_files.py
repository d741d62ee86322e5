"""Files of the archive: written with their checks in the footer, read again, and compared."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tickerplant.core.archive_plan import (
    Checks,
    Content,
    PartFile,
    add_checks,
    check_names,
    differing,
    part_path,
)
from tickerplant.core.tables import ColumnType, Table
from tickerplant.errors import DamagedStoreError
from tickerplant.limits import PARQUET_ROW_GROUP_ROWS
from tickerplant.store.arrow_tables import RowGroups, conform
from tickerplant.store.parquet_folder import TEMPORARY_SUFFIX, sync_file, sync_folder

FOOTER_KEY = "tickerplant.archive"

_NONE_LENGTH = -1
"""What a text that is null counts for, so that null and empty differ."""


class Footer(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    table: str
    day: date
    part: int
    row_count: int
    first_ns: int
    last_ns: int
    checks: Checks


# --- checks ---------------------------------------------------------------------------------------


def checks_of(table: Table, data: pa.Table) -> Checks:
    """The sums of `check_names` over `data`."""
    sums: Checks = {}
    for name in check_names(table):
        first, _, second = name.partition("*")
        values = _numbers(table, data, first)
        if second:
            values = pc.multiply(values, _numbers(table, data, second))
        sums[name] = pc.sum(values).as_py()
        if sums[name] is None and not second and table.column(first).type is ColumnType.LEVELS:
            sums[name] = 0
    return sums


def _numbers(table: Table, data: pa.Table, name: str) -> pa.ChunkedArray:
    column, kind = data[name], table.column(name).type
    if kind is ColumnType.SYMBOL:
        return _symbol_lengths(column)
    if kind is ColumnType.TEXT:
        return pc.fill_null(pc.cast(pc.binary_length(column), pa.int64()), _NONE_LENGTH)
    if kind is ColumnType.LEVELS:
        return pc.cast(pc.list_flatten(pc.list_flatten(column)), pa.int64())
    return pc.cast(column, pa.int64())


def _symbol_lengths(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """In UTF-16 units, as QuestDB counts them."""
    is_encoded = pa.types.is_dictionary(column.type)
    if not is_encoded and pc.all(pc.string_is_ascii(column)).as_py() is not False:
        # A unit is a byte then, and texts need not be told apart.
        return pc.fill_null(pc.cast(pc.binary_length(column), pa.int64()), _NONE_LENGTH)
    lengths = []
    for chunk in (column if is_encoded else pc.dictionary_encode(column)).chunks:
        units = [len(text.encode("utf-16-le")) // 2 for text in chunk.dictionary.to_pylist()]
        of_each = pa.array([*units, _NONE_LENGTH], pa.int64())
        lengths.append(of_each.take(pc.fill_null(chunk.indices, len(units))))
    return pa.chunked_array(lengths, pa.int64())


# --- order ----------------------------------------------------------------------------------------


def in_order(table: Table, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows, whose times do not go back, in the one order of the table's keys: then files are the same each time.

    Rows of the time with which a batch ends wait for the next one. `keys` that are symbols sort as text.
    """
    waiting: pa.Table | None = None
    for batch in batches:
        data = batch if waiting is None else pa.concat_tables([waiting, batch])
        if not data.num_rows:
            continue
        times = data[table.time].cast(pa.int64()).to_numpy()
        whole = int(np.searchsorted(times, times[-1], side="left"))
        waiting = data.slice(whole)
        if whole:
            yield _sorted(table, data.slice(0, whole))
    if waiting is not None:
        yield _sorted(table, waiting)


def _sorted(table: Table, data: pa.Table) -> pa.Table:
    if _is_strictly_ascending(table, data):
        return data
    order = pc.sort_indices(data, sort_keys=[(name, "ascending") for name in table.keys])
    return data.take(order)


def _is_strictly_ascending(table: Table, data: pa.Table) -> bool:
    """Whether already time, session and seq tell all rows apart, in their order."""
    names = [name for name in table.keys if table.column(name).type is not ColumnType.SYMBOL]
    if data.num_rows < 2 or names[:3] != [table.time, "session", "seq"]:
        return bool(data.num_rows < 2)
    is_later = np.zeros(data.num_rows - 1, bool)
    is_equal = np.ones(data.num_rows - 1, bool)
    for name in names[:3]:
        steps = np.diff(data[name].cast(pa.int64()).to_numpy())
        is_later |= is_equal & (steps > 0)
        is_equal &= steps == 0
    return bool(is_later.all())


# --- writing --------------------------------------------------------------------------------------


def write_part(
    path: Path, table: Table, day: date, part: int, batches: Iterable[pa.Table], *, sort: bool
) -> PartFile:
    """Write a part into the new file `path`, which appears whole and synced. Raises `OSError`, and as `batches`.

    `sort`: into the order of the keys; then the times of `batches` must not go back. Symbols may be dictionaries.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    groups = RowGroups(temporary, table)
    added = _Added(table)
    first_ns = last_ns = 0
    rows = _ahead(conform(table, data) for data in added.watch(batches))
    try:
        for data in in_order(table, rows) if sort else rows:
            span = pc.min_max(data[table.time].cast(pa.int64())).as_py()
            first_ns = min(first_ns or span["min"], span["min"])
            last_ns = max(last_ns, span["max"])
            groups.add(data)
    except BaseException:
        groups.abandon()
        temporary.unlink(missing_ok=True)
        raise
    footer = Footer(table.name, day, part, groups.row_count, first_ns, last_ns, added.checks)
    groups.close({FOOTER_KEY: msgspec.json.encode(footer).decode()})
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)
    return describe(path)


def _ahead(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same; while one is being written the next is read, in a thread of its own."""
    with ThreadPoolExecutor(1, "archive-reader") as reader:
        coming = reader.submit(next, batches, None)
        while (data := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield data


class _Added:
    """Adds up the checks of batches that pass. Symbols that are still dictionaries make it quick."""

    def __init__(self, table: Table) -> None:
        self.checks: Checks = dict.fromkeys(check_names(table))
        self._table = table

    def watch(self, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for data in batches:
            self.checks = add_checks(self.checks, checks_of(self._table, data))
            yield data


def digest(path: Path) -> str:
    """SHA-256 in hexadecimal. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading --------------------------------------------------------------------------------------


def describe(path: Path) -> PartFile:
    """What the file says of itself, and its digest. Raises `DamagedStoreError`, `FileNotFoundError`."""
    try:
        metadata = pq.read_metadata(path)
        footer = msgspec.json.decode(metadata.metadata[FOOTER_KEY.encode()], type=Footer)
        sha256 = digest(path)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise damaged(str(path), _words(error)) from error
    return PartFile(
        part=footer.part,
        path=part_path(footer.table, footer.day, footer.part, sha256),
        row_count=footer.row_count,
        file_bytes=path.stat().st_size,
        sha256=sha256,
        first_ns=footer.first_ns,
        last_ns=footer.last_ns,
        checks=footer.checks,
    )


def read_batches(path: Path, table: Table, name: str = "") -> Iterator[pa.Table]:
    """The rows of a file, page checksums verified, symbols as dictionaries.

    Raises `DamagedStoreError`, which says `name`.
    """
    try:
        with pq.ParquetFile(
            path, page_checksum_verification=True, read_dictionary=symbol_names(table)
        ) as parquet:
            for batch in parquet.iter_batches(batch_size=PARQUET_ROW_GROUP_ROWS):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException, ValueError) as error:
        raise damaged(name or str(path), _words(error)) from error


def symbol_names(table: Table) -> list[str]:
    """The columns that are symbols."""
    return [column.name for column in table.columns if column.type is ColumnType.SYMBOL]


def content_of(path: Path, table: Table, name: str = "") -> Content:
    """Read all of it. Raises `DamagedStoreError`, which says `name`."""
    checks: Checks = dict.fromkeys(check_names(table))
    count = 0
    for data in read_batches(path, table, name):
        checks = add_checks(checks, checks_of(table, data))
        count += data.num_rows
    return Content(count, checks)


def verify_file(path: Path, told: PartFile, table: Table, name: str = "") -> None:
    """Read a file and compare it with what is told of it. Raises `DamagedStoreError`, which says `name`."""
    name = name or str(path)
    if digest(path) != told.sha256:
        raise damaged(name, f"its SHA-256 is not {told.sha256}")
    difference = differing(told.content, content_of(path, table, name))
    if difference:
        raise damaged(name, difference)


def damaged(name: str, reason: str) -> DamagedStoreError:
    """The error for a file of the archive."""
    return DamagedStoreError(
        f"{name} is damaged ({reason}): archive that day again while the store still has it, or take the file from a "
        "copy of the archive"
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
