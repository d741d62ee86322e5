"""Merging closings of the embedded store, and proving the files sound.

A day of closings every minute is 1,440 files a table, which a query opens one by one. `PARQUET_MERGE_COUNT` closings in
a row, of one level, become one of the next, made like every closing: in a temporary folder, whole with its rename. The
merged ones stay for a moment, for queries that have begun, and are removed then; a crash in between changes nothing.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tickerplant.core.tables import TABLES
from tickerplant.errors import DamagedStoreError, StoreUnavailableError
from tickerplant.limits import (
    PARQUET_LEVEL_MAX,
    PARQUET_MERGE_COUNT,
    PARQUET_ROW_GROUP_ROWS,
    PARQUET_SUPERSEDED_KEEP_S,
)
from tickerplant.store.arrow_tables import SCHEMAS, RowGroups
from tickerplant.store.parquet_folder import (
    TEMPORARY_SUFFIX,
    Closing,
    FolderContents,
    StoredFile,
    read_folder,
    remove_folder,
    sync_folder,
)
from tickerplant.store.parquet_store import CLOSING_KEY, ClosingMetadata, complete_files

_MERGE_FOLDER = f"merge{TEMPORARY_SUFFIX}"


def choose_run(closings: Sequence[Closing], skipped: frozenset[Closing]) -> list[Closing]:
    """The oldest `PARQUET_MERGE_COUNT` in a row of one level that can be merged; empty: none yet.

    `skipped` are damaged ones: what lies around them is merged without them.
    """
    run: list[Closing] = []
    for closing in closings:
        if closing.level >= PARQUET_LEVEL_MAX or closing in skipped:
            run = []
            continue
        if run and (run[-1].level != closing.level or run[-1].end != closing.start):
            run = []
        run.append(closing)
        if len(run) == PARQUET_MERGE_COUNT:
            return run
    return []


class ParquetMerger:
    """Merges in the folder of a `ParquetStore`, in the same process, which holds the lock; any thread will do."""

    def __init__(self, folder: Path) -> None:
        """Of `folder`."""
        self.folder = folder
        self.merges = 0
        self.damaged: dict[Closing, str] = {}
        """Closings that cannot be merged, and why in one line; they are left as they are."""

    def merge_next(self) -> Closing | None:
        """Make one merge that is due; None: none is.

        Raises `StoreUnavailableError` (the disk), `DamagedStoreError` (once for each damaged closing).
        """
        contents = read_folder(self.folder)
        run = choose_run(contents.closings, frozenset(self.damaged))
        if not run:
            return None
        merged = Closing(run[0].start, run[-1].end, run[0].level + 1)
        try:
            self._merge(contents, run, merged)
        except OSError as error:
            raise StoreUnavailableError(
                f"store: cannot merge in {self.folder}: {error.strerror or error}: free some space"
            ) from error
        self.merges += 1
        return merged

    def sweep(self, now_s: float | None = None) -> int:
        """Remove merged closings that nobody reads any more; how many. Raises `StoreUnavailableError`."""
        now_s = time.time() if now_s is None else now_s
        contents = read_folder(self.folder)
        removed = 0
        try:
            for old in contents.superseded:
                whole = next(closing for closing in contents.closings if closing.covers(old))
                made_s = (self.folder / str(whole)).stat().st_mtime
                if now_s - made_s >= PARQUET_SUPERSEDED_KEEP_S:
                    remove_folder(self.folder / str(old))
                    removed += 1
        except OSError as error:
            raise StoreUnavailableError(
                f"store: cannot remove merged files in {self.folder}: {error.strerror or error}"
            ) from error
        return removed

    def _merge(self, contents: FolderContents, run: Sequence[Closing], merged: Closing) -> None:
        folder = self.folder / _MERGE_FOLDER
        remove_folder(folder)
        folder.mkdir(mode=0o750)
        by_closing: dict[Closing, list[StoredFile]] = {closing: [] for closing in run}
        for file in contents.files:
            if file.closing in by_closing:
                by_closing[file.closing].append(file)
        files: dict[tuple[str, date], RowGroups] = {}
        try:
            for closing, stored in by_closing.items():
                self._copy(closing, stored, files, folder)
            complete_files(folder, merged, files)
        except BaseException:
            for groups in files.values():
                groups.abandon()
            raise
        folder.rename(self.folder / str(merged))
        sync_folder(self.folder)

    def _copy(
        self,
        closing: Closing,
        stored: Sequence[StoredFile],
        files: dict[tuple[str, date], RowGroups],
        folder: Path,
    ) -> None:
        try:
            check_complete(stored)
            for one in stored:
                key = (one.table, one.day)
                if key not in files:
                    files[key] = RowGroups(folder / f"{one.table}.{one.day}", TABLES[one.table])
                for part in read_parts(one):
                    files[key].add(part)
        except DamagedStoreError as error:
            self.damaged[closing] = str(error)
            raise


# --- reading and proving --------------------------------------------------------------------------


def read_parts(file: StoredFile) -> Iterator[pa.Table]:
    """The rows of a file in order, checksums verified. Raises `DamagedStoreError`, `FileNotFoundError`."""
    try:
        with pq.ParquetFile(file.path, page_checksum_verification=True) as parquet:
            schema = SCHEMAS[file.table]
            for batch in parquet.iter_batches(batch_size=PARQUET_ROW_GROUP_ROWS):
                yield pa.Table.from_batches([batch]).cast(schema)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise damaged(file.path, error) from error


def damaged(path: Path, error: Exception) -> DamagedStoreError:
    """The error for a file that does not read."""
    reason = " ".join(str(error).split())[:200]
    return DamagedStoreError(
        f"{path} is damaged ({reason}): move its folder away and take that part of the log again, or restore it from "
        "the archive"
    )


def row_counts(file: StoredFile) -> dict[str, int]:
    """What the file says of its closing: rows by `<table>.<day>`. Raises `DamagedStoreError`, `FileNotFoundError`."""
    try:
        metadata = pq.read_metadata(file.path)
        content = (metadata.metadata or {})[CLOSING_KEY.encode()]
        rows = msgspec.json.decode(content, type=ClosingMetadata).rows
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError, msgspec.MsgspecError) as error:
        raise damaged(file.path, error) from error
    told = rows.get(f"{file.table}.{file.day}")
    if told != metadata.num_rows:
        raise damaged(file.path, ValueError(f"{metadata.num_rows} rows, it should be {told}"))
    return rows


def check_complete(files: Sequence[StoredFile]) -> int:
    """How many rows the files of one closing hold, footers alone looked at. Raises `DamagedStoreError`."""
    wanted: dict[str, int] = {}
    present = set()
    for file in files:
        wanted = row_counts(file)
        present.add(f"{file.table}.{file.day}")
    missing = sorted(wanted.keys() - present)
    if missing:
        raise DamagedStoreError(
            f"{files[0].path.parent} lacks {', '.join(missing)}: restore it from the archive, or move the folder away "
            "and take that part of the log again"
        )
    return sum(wanted.values())


def check_folder(folder: Path, *, thorough: bool) -> list[str]:
    """What is wrong in a store's folder, a line each; `thorough` reads every row. Raises `StoreError`."""
    contents = read_folder(folder)
    faults = [
        f"{folder}: {start.segment} offset {start.offset} to {end.segment} offset {end.offset} is missing"
        for start, end in contents.holes
    ]
    for closing in contents.closings:
        files = [file for file in contents.files if file.closing == closing]
        try:
            check_complete(files)
        except DamagedStoreError as error:
            faults.append(str(error))
            continue
        if thorough:
            faults += _read_through(files)
    return faults


def _read_through(files: Sequence[StoredFile]) -> list[str]:
    faults = []
    for file in files:
        try:
            for _part in read_parts(file):
                pass
        except DamagedStoreError as error:
            faults.append(str(error))
    return faults
