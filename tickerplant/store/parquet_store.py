"""The embedded store: rows of the log into rolling Parquet files, each exactly once, whenever the process dies.

Rows are collected in a temporary folder, a file for each table and day. Closing it completes and syncs the files and
gives the folder its name, `parquet_folder.Closing`, in one rename: before it nothing of that range counts, after it all
does. A process that starts therefore goes on at the end of the last closing; what was collected after it is taken from
the log once more.
"""

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Self

import msgspec
import pyarrow as pa

from tickerplant.core.columns import Columns, Tables, count_of, join
from tickerplant.core.logformat import LogPosition
from tickerplant.core.rows import Row
from tickerplant.core.tables import TABLES, Table
from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import (
    PARQUET_CONVERT_ROWS,
    PARQUET_DAYS_PER_CLOSING,
    PARQUET_REJECTED_MAX,
)
from tickerplant.store.arrow_tables import RowGroups, split_by_day, to_arrow
from tickerplant.store.backend import Committed, RejectedRow
from tickerplant.store.parquet_folder import (
    LOG_START,
    TEMPORARY_SUFFIX,
    Closing,
    FolderContents,
    file_name,
    read_folder,
    remove_folder,
    sync_file,
    sync_folder,
    take_lock,
)

CLOSING_KEY = "tickerplant.closing"
"""In the footer of every file: `ClosingMetadata` as JSON."""
_OPEN_FOLDER = f"open{TEMPORARY_SUFFIX}"
_EMPTY_TIMES = 10
"""A part of the log without rows is closed, so that the log may be deleted, but not as soon."""


_UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError, ValueError)
"""What Arrow raises for a value that a column cannot hold."""


class ClosingMetadata(msgspec.Struct, frozen=True):
    """What the closing of a file holds: rows by `<table>.<day>`. So each file tells of all others."""

    rows: dict[str, int]


class _Waiting:
    """Rows of one table as they came."""

    def __init__(self) -> None:
        self.pieces: list[Columns | Sequence[Row]] = []
        self.row_count = 0


class ParquetStore:
    """The writer; `open` first. It is used by one thread at a time."""

    def __init__(self, folder: Path, *, close_ns: int, close_rows: int) -> None:
        """Closes when the oldest row is `close_ns` old, or at `close_rows`; makes nothing yet."""
        self.folder = folder
        self.closings = 0
        self.rows_written = 0
        self.rows_rejected = 0
        self._close_ns = close_ns
        self._close_rows = close_rows
        self._lock = -1
        self._durable: LogPosition | None = None
        self._taken: LogPosition | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._files: dict[tuple[str, date], RowGroups] = {}
        self._row_count = 0
        self._begun_ns = 0

    def open(self) -> LogPosition | None:
        """Lock the folder, remove what a crash left, and return from where the log is to be read; None: its start.

        Raises `StoreError`.
        """
        if self._lock < 0:
            self._lock = take_lock(self.folder)
        contents = read_folder(self.folder)
        try:
            self._remove_temporary(contents)
        except OSError as error:
            raise self._trouble("cannot clear", error) from error
        self._forget()
        self._durable = self._taken = contents.position
        return self._durable

    def take(self, rows: Tables, position: LogPosition, now_ns: int) -> list[RejectedRow]:
        """Take the rows of the log up to `position`; returns those that cannot be stored, the others are taken.

        They are durable once `commit` returns a position that is not before this one. Raises
        `StoreUnavailableError` (the disk: `discard`, and offer everything after that position again), `StoreError`.
        """
        before = self._taken or LOG_START
        if position < before:
            raise StoreError(
                f"the tick log is at {position.segment}, before what {self.folder} has taken of it "
                f"({before.segment}): another log, for which store.directory must name another folder"
            )
        if self._taken == self._durable:
            self._begun_ns = now_ns
        rejected: list[RejectedRow] = []
        for name, fresh in rows.items():
            if not count_of(fresh):
                continue
            waiting = self._waiting.setdefault(name, _Waiting())
            waiting.pieces.append(fresh)
            waiting.row_count += count_of(fresh)
            self._row_count += count_of(fresh)
            if waiting.row_count >= PARQUET_CONVERT_ROWS:
                rejected += self._convert(TABLES[name])
        self._taken = position
        return rejected

    def is_due(self, now_ns: int, *, is_behind: bool = False) -> bool:  # its files are large
        """Whether `commit` is to be called."""
        if self._taken == self._durable:
            return False
        wait_ns = self._close_ns if self._row_count else _EMPTY_TIMES * self._close_ns
        return (
            self._row_count >= self._close_rows
            or now_ns - self._begun_ns >= wait_ns
            or len(self._files) > PARQUET_DAYS_PER_CLOSING
        )

    def commit(self, *, wait: bool = False) -> Committed:  # it always waits
        """Make durable what was taken: up to which position everything is, and rows that cannot be stored.

        Raises `StoreUnavailableError`: `discard`, and offer everything after that position again.
        """
        if self._taken is None or self._taken == self._durable:
            return Committed(self._durable, [])
        rejected = [one for table in TABLES.values() for one in self._convert(table)]
        closing = Closing(self._durable or LOG_START, self._taken)
        try:
            self._publish(closing)
        except OSError as error:
            raise self._trouble("cannot write in", error) from error
        self.closings += 1
        self.rows_written += sum(file.row_count for file in self._files.values())
        self._durable = self._taken
        self._forget()
        return Committed(self._durable, rejected)

    def discard(self) -> LogPosition | None:
        """Forget what is not durable; returns from where the log is to be read again. Raises `StoreError`."""
        self._abandon()
        # Asked of the folder, for a closing may have got its name although its maker was told otherwise.
        self._durable = self._taken = read_folder(self.folder).position
        return self._durable

    def close(self) -> None:
        """Forget what is not durable and unlock; harmless the second time."""
        self._abandon()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close it."""
        self.close()

    @property
    def pending_rows(self) -> int:
        """Rows taken that are not durable."""
        return self._row_count

    # --- one closing ------------------------------------------------------------------------------

    def _convert(self, table: Table) -> list[RejectedRow]:
        """The waiting rows of a table become columns, and go to their files."""
        waiting = self._waiting.pop(table.name, None)
        if waiting is None:
            return []
        rejected: list[RejectedRow] = []
        rows: Columns | Sequence[Row] = join(waiting.pieces)
        try:
            data = to_arrow(table, rows)
        except _UNFIT:
            sound, rejected = sort_out(table, rows)
            self.rows_rejected += count_of(rows) - len(sound)
            data = to_arrow(table, sound)
        try:
            for day, part in split_by_day(table, data):
                self._file(table, day).add(part)
        except OSError as error:
            raise self._trouble("cannot write in", error) from error
        return rejected

    def _file(self, table: Table, day: date) -> RowGroups:
        file = self._files.get((table.name, day))
        if file is None:
            folder = self.folder / _OPEN_FOLDER
            if not self._files:
                remove_folder(folder)
                folder.mkdir(mode=0o750)
            file = RowGroups(folder / f"{table.name}.{day.isoformat()}", table)
            self._files[table.name, day] = file
        return file

    def _publish(self, closing: Closing) -> None:
        """The files get their names while nobody looks, then the folder its own. Raises `OSError`."""
        folder = self.folder / _OPEN_FOLDER
        if not self._files:
            remove_folder(folder)
            folder.mkdir(mode=0o750)
        complete_files(folder, closing, self._files)
        folder.rename(self.folder / str(closing))
        sync_folder(self.folder)

    def _remove_temporary(self, contents: FolderContents) -> None:
        for name in contents.temporary:
            path = self.folder / name
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink()

    def _abandon(self) -> None:
        for file in self._files.values():
            with _quiet():
                file.abandon()
        self._forget()

    def _forget(self) -> None:
        self._waiting = {}
        self._files = {}
        self._row_count = 0

    def _trouble(self, doing: str, error: OSError) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"store: {doing} {self.folder}: {error.strerror or error}: free some space or make it writable"
        )


class _quiet:  # noqa: N801  # reads as a statement
    """Lets the errors of a file that is thrown away pass."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> bool:
        """Whether the error is one of the disk."""
        return kind is not None and issubclass(kind, OSError | pa.ArrowException)


def complete_files(
    folder: Path, closing: Closing, files: dict[tuple[str, date], RowGroups]
) -> None:
    """Complete and sync the files of a closing and give them their names. Raises `OSError`."""
    counts = {f"{table}.{day}": file.row_count for (table, day), file in files.items()}
    metadata = {CLOSING_KEY: msgspec.json.encode(ClosingMetadata(counts)).decode()}
    for (table, day), file in files.items():
        file.close(metadata)
        sync_file(file.path)
        file.path.rename(folder / file_name(table, day, closing))
    sync_folder(folder)


def sort_out(table: Table, rows: Columns | Sequence[Row]) -> tuple[list[Row], list[RejectedRow]]:
    """The rows that columns can hold, and the first `PARQUET_REJECTED_MAX` of the others."""
    sound: list[Row] = []
    rejected: list[RejectedRow] = []
    for row in rows.rows() if isinstance(rows, Columns) else rows:
        try:
            to_arrow(table, [row])
        except _UNFIT as error:
            if len(rejected) < PARQUET_REJECTED_MAX:
                rejected.append(RejectedRow(table.name, row, str(error)))
        else:
            sound.append(row)
    return sound, rejected
