"""Where the archive takes the rows of a day from: what it asks of a source, and the embedded store as one."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from tickerplant.core.archive_plan import Content, Manifest, PartFile
from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import Table
from tickerplant.core.wire import decode_header
from tickerplant.errors import StoreUnavailableError, WireError
from tickerplant.limits import ARCHIVE_LATE_NS
from tickerplant.runtime.logreader import LogReader
from tickerplant.store.arrow_tables import start_of_day_ns
from tickerplant.store.parquet_folder import StoredFile, read_folder
from tickerplant.store.parquet_merge import read_parts, row_counts


class ArchiveSource(Protocol):
    """A store whose days are archived. Everything may raise `StoreUnavailableError` and `StoreError`."""

    has_record: bool
    """Whether it has a table `archive_manifest`."""
    is_by_time: bool
    """Whether rows are read by their time, those of the same time in any order; else in an order to be kept."""

    def require_complete(self, day: date, now_ns: int) -> None:
        """Raise `StoreUnavailableError` unless everything of the day is in the store."""
        ...

    def days(self, table: Table) -> dict[date, int]:
        """How many rows it has of each day; cheap."""
        ...

    def parts(self, table: Table, day: date) -> dict[int, Content]:
        """The rows of a day, in the parts in which they are archived; none: it has no rows."""
        ...

    def read(self, table: Table, day: date, part: int, attempt: int) -> Iterator[pa.Table]:
        """The rows of a part, see `is_by_time`. `attempt` counts from 0, if it went wrong."""
        ...

    def is_recorded(self, table: Table, day: date, parts: list[PartFile]) -> bool:
        """Whether its table `archive_manifest` says so."""
        ...

    def record(self, table: Table, day: date, parts: list[PartFile], now_ns: int) -> None:
        """Make it say so."""
        ...

    def is_convertible(self, table: Table, day: date, now_ns: int) -> bool:
        """Whether the day should now be Parquet inside the store, and is not."""
        ...

    def convert(self, table: Table, day: date) -> None:
        """Make it so, and wait for it."""
        ...


class Historical(Protocol):
    """A server for archived days. Everything may raise `StoreUnavailableError` and `StoreError`."""

    def days(self, table: Table) -> dict[date, int]:
        """How many rows it has of each day; cheap."""
        ...

    def is_wanted(self, day: date, now_ns: int) -> bool:
        """Whether it is to have that day."""
        ...

    def is_loaded(self, manifest: Manifest) -> bool:
        """Whether it has exactly those rows."""
        ...

    def load(self, manifest: Manifest) -> None:
        """Bring them in."""
        ...

    def is_convertible(self, table: Table, day: date, now_ns: int) -> bool:
        """See `ArchiveSource`."""
        ...

    def convert(self, table: Table, day: date) -> None:
        """See `ArchiveSource`."""
        ...


def end_of_day_ns(day: date) -> int:
    """The first nanosecond of the next day."""
    return start_of_day_ns(day + timedelta(days=1))


def require_day_over(day: date, now_ns: int) -> None:
    """Raise `StoreUnavailableError` unless the day is over, everywhere."""
    if now_ns < end_of_day_ns(day) + ARCHIVE_LATE_NS:
        raise StoreUnavailableError(f"{day} (UTC) is not over yet: archive it tomorrow")


def require_log_taken(log: Path, position: LogPosition | None, day: date) -> None:
    """Raise `StoreUnavailableError` unless the store, which is at `position`, has taken all of the day from the log.

    A log that is not there, on another machine say, has nothing to take.
    """
    try:
        with LogReader(log, position) as reader:
            batch = reader.read()
            while batch is not None and not batch.records:
                batch = reader.read()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnavailableError(f"{log}: {error.strerror or error}") from error
    if batch is None:
        return
    try:
        sent_ns = decode_header(batch.records[0][1]).ts_send_ns
    except WireError:
        return
    if sent_ns < end_of_day_ns(day) + ARCHIVE_LATE_NS:
        raise StoreUnavailableError(
            f"the store has not taken all of {day} from the log {log} yet: let `tickerplant store` run, then try again"
        )


class FolderSource:
    """The embedded store's files of a day, made into one file for each table. Its record are the manifests."""

    has_record = False
    is_by_time = False

    def __init__(self, folder: Path, log: Path) -> None:
        """Of the store in `folder` and the tick log in `log`; only reads."""
        self.folder = folder
        self.log = log

    def require_complete(self, day: date, now_ns: int) -> None:
        """See `ArchiveSource`."""
        require_day_over(day, now_ns)
        require_log_taken(self.log, read_folder(self.folder).position, day)

    def days(self, table: Table) -> dict[date, int]:
        """See `ArchiveSource`."""
        found: dict[date, int] = {}
        for file in read_folder(self.folder).files_of(table.name):
            found[file.day] = found.get(file.day, 0) + _row_count(file)
        return found

    def parts(self, table: Table, day: date) -> dict[int, Content]:
        """See `ArchiveSource`; what is in the files is known when they are read."""
        count = sum(_row_count(file) for file in self._files(table, day))
        return {0: Content(count)} if count else {}

    def read(self, table: Table, day: date, part: int, attempt: int) -> Iterator[pa.Table]:
        """See `ArchiveSource`: in the order of the log. Raises also `DamagedStoreError`, which names the file."""
        assert (part, attempt >= 0) == (0, True)
        for file in self._files(table, day):
            try:
                yield from read_parts(file)
            except FileNotFoundError as error:
                raise _merged_meanwhile(file) from error

    def is_recorded(self, table: Table, day: date, parts: list[PartFile]) -> bool:
        """See `ArchiveSource`."""
        return True

    def record(self, table: Table, day: date, parts: list[PartFile], now_ns: int) -> None:
        """See `ArchiveSource`."""

    def is_convertible(self, table: Table, day: date, now_ns: int) -> bool:
        """See `ArchiveSource`; it is Parquet."""
        return False

    def convert(self, table: Table, day: date) -> None:
        """See `ArchiveSource`."""

    def _files(self, table: Table, day: date) -> list[StoredFile]:
        return read_folder(self.folder).files_of(table.name, day, day)


def _row_count(file: StoredFile) -> int:
    try:
        return row_counts(file)[f"{file.table}.{file.day}"]
    except FileNotFoundError as error:
        raise _merged_meanwhile(file) from error


def _merged_meanwhile(file: StoredFile) -> StoreUnavailableError:
    return StoreUnavailableError(f"{file.path} was merged and removed meanwhile: try again")
