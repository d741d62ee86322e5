"""Archiving, step by step: what exists is looked at, the step that is due is done, until none is.

It may be killed at any moment and run again: whole local files and uploaded objects are found and used, the manifest is
written last and names only what was read back.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa

from tickerplant.core.archive_plan import (
    ARCHIVED_TABLES,
    Due,
    Evidence,
    LocalPart,
    Manifest,
    PartEvidence,
    PartFile,
    Step,
    all_due,
    day_folder,
    decode_manifest,
    differing,
    encode_manifest,
    manifest_path,
    new_manifest,
    next_due,
    parse_manifest_path,
    shrinkage,
    step_done,
)
from tickerplant.core.tables import TABLES, Table
from tickerplant.errors import DamagedStoreError, StoreError
from tickerplant.folder_lock import lock_folder
from tickerplant.limits import ARCHIVE_ATTEMPTS
from tickerplant.store.archive_files import damaged, describe, verify_file, write_part
from tickerplant.store.archive_source import ArchiveSource, Historical
from tickerplant.store.object_store import ObjectStore
from tickerplant.store.parquet_folder import remove_folder

LOCK_FILE = "archive.lock"
_PART_SUFFIX = ".parquet"


class Verdict(Enum):
    """How archiving a table and day ended."""

    DONE = "archived"
    ALREADY = "was archived"
    KEPT = "kept"
    """The archive has more than the store: it stays as it is."""


class Outcome(NamedTuple):
    """What became of a table and day; `note` is for people."""

    table: str
    day: date
    verdict: Verdict
    row_count: int
    file_count: int
    file_bytes: int
    note: str = ""


class WorkFolder:
    """The folder of files on their way, for one archiver at a time."""

    def __init__(self, path: Path) -> None:
        """Made and locked with `with`."""
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        """Raises `StoreError` if another one has it, or it cannot be used."""
        try:
            self._lock = lock_folder(self.path, LOCK_FILE)
        except BlockingIOError:
            raise StoreError(
                f"{self.path / LOCK_FILE} is locked: another `tickerplant archive` runs; wait for it"
            ) from None
        except OSError as error:
            raise StoreError(
                f"archive: {self.path}: {error.strerror}: make it a folder that this user can write, or set "
                "archive.directory"
            ) from error
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Unlocked."""
        self._release()

    def folder(self, table: str, day: date) -> Path:
        """Of the files of a table and day; there may be none."""
        return self.path / f"{day.isoformat()}.{table}"

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Archiver:
    """Archives days of `source` into `store`."""

    def __init__(
        self,
        source: ArchiveSource,
        store: ObjectStore,
        work: WorkFolder,
        *,
        now_ns: int,
        historical: Historical | None = None,
        warn: Callable[[str], None] = lambda _: None,
        tell_rows: Callable[[int], None] = lambda _: None,
        before_step: Callable[[str, date, Due], None] = lambda _table, _day, _due: None,
    ) -> None:
        """`warn` hears of damage that was mended, `tell_rows` of rows that were written and read again."""
        self.source = source
        self.store = store
        self.now_ns = now_ns
        self._historical = historical
        self._work = work
        self._warn = warn
        self._tell_rows = tell_rows
        self._before_step = before_step

    # --- which days -------------------------------------------------------------------------------

    def due_days(self, tables: list[str], today: date) -> list[tuple[str, date]]:
        """Tables and days before `today` of which the store has more than the archive, or that wait for a later step.

        In the order of the days.
        """
        found = []
        for name in tables:
            table = TABLES[name]
            archived = manifest_days(self.store, name)
            loaded = self._historical.days(table) if self._historical is not None else {}
            for day, count in self.source.days(table).items():
                if day >= today:
                    continue
                has_manifest = day in archived
                if self._is_day_due(
                    table, day, count, loaded.get(day, 0), has_manifest=has_manifest
                ):
                    found.append((name, day))
        return sorted(found, key=lambda one: (one[1], ARCHIVED_TABLES.index(one[0])))

    def count_rows(self, due: Sequence[tuple[str, date]]) -> int:
        """How many rows the store has of these tables and days."""
        days = {name: self.source.days(TABLES[name]) for name in {name for name, _ in due}}
        return sum(days[name].get(day, 0) for name, day in due)

    def _is_day_due(
        self, table: Table, day: date, count: int, loaded: int, *, has_manifest: bool
    ) -> bool:
        if not has_manifest:
            return True
        manifest = read_manifest(self.store, table.name, day)
        if manifest is None or manifest.row_count < count:
            return True
        if not self.source.is_recorded(table, day, manifest.parts):
            return True
        if self._is_wanted(day) and loaded < manifest.row_count:
            return True
        return self._converting.is_convertible(table, day, self.now_ns)

    def _is_wanted(self, day: date) -> bool:
        """By the historical server."""
        return self._historical is not None and self._historical.is_wanted(day, self.now_ns)

    @property
    def _converting(self) -> ArchiveSource | Historical:
        """Where archived days become Parquet."""
        return self._historical if self._historical is not None else self.source

    # --- one table and day ------------------------------------------------------------------------

    def evidence(self, table: Table, day: date) -> Evidence:
        """Look at everything."""
        manifest = read_manifest(self.store, table.name, day)
        parts = [
            PartEvidence(number, content, self._local_part(table, day, number))
            for number, content in sorted(self.source.parts(table, day).items())
        ]
        recorded = not self.source.has_record or (
            manifest is not None and self.source.is_recorded(table, day, manifest.parts)
        )
        return Evidence(
            parts,
            manifest,
            self._leftovers(table.name, day, manifest),
            recorded,
            self._is_loaded(day, manifest),
            self._converting.is_convertible(table, day, self.now_ns),
        )

    def _is_loaded(self, day: date, manifest: Manifest | None) -> bool:
        if self._historical is None or not self._is_wanted(day):
            return True
        return manifest is not None and self._historical.is_loaded(manifest)

    def due(self, name: str, day: date) -> tuple[list[Due], str]:
        """Every step that is due, none of them done; and why it is none, if the archive has more than the store."""
        evidence = self.evidence(TABLES[name], day)
        kept = shrinkage(evidence)
        return ([], kept) if kept else (all_due(TABLES[name], day, evidence), "")

    def archive(self, name: str, day: date) -> Outcome:
        """Do what is due. Raises `StoreUnavailableError`, `StoreError`, `DamagedStoreError`."""
        table = TABLES[name]
        evidence = self.evidence(table, day)
        kept = shrinkage(evidence)
        if kept:
            return self._outcome(table, day, Verdict.KEPT, evidence.manifest, kept)
        verdict = Verdict.ALREADY if next_due(evidence) is None else Verdict.DONE
        attempts: dict[int, int] = {}
        while (due := next_due(evidence)) is not None:
            self._before_step(name, day, due)
            try:
                evidence = self._perform(table, day, evidence, due, attempts)
            except DamagedStoreError as error:
                evidence = self._mend(table, day, evidence, due, attempts, error)
        return self._outcome(table, day, verdict, evidence.manifest, "")

    def _outcome(
        self, table: Table, day: date, verdict: Verdict, manifest: Manifest | None, note: str
    ) -> Outcome:
        parts = manifest.parts if manifest is not None else []
        size = sum(part.file_bytes for part in parts)
        rows = sum(part.row_count for part in parts)
        return Outcome(table.name, day, verdict, rows, len(parts), size, note)

    def _mend(
        self,
        table: Table,
        day: date,
        evidence: Evidence,
        due: Due,
        attempts: dict[int, int],
        error: DamagedStoreError,
    ) -> Evidence:
        """After what was made of a part is damaged: make it again, some times. Raises the error."""
        part = due.part
        if part is None:
            raise error
        attempts[part] = attempts.get(part, 0) + 1
        if attempts[part] >= ARCHIVE_ATTEMPTS:
            raise error
        self._warn(str(error))
        self._path(table, day, part).unlink(missing_ok=True)
        return evidence.with_local(part, None)

    def _perform(
        self, table: Table, day: date, evidence: Evidence, due: Due, attempts: dict[int, int]
    ) -> Evidence:
        part = due.part
        if part is not None:
            return self._perform_part(table, day, evidence, due.step, part, attempts.get(part, 0))
        if due.step is Step.MANIFEST:
            parts = [evidence.file(one) for one in evidence.parts]
            manifest = new_manifest(table, day, parts)
            self.store.put_bytes(encode_manifest(manifest), manifest_path(table.name, day))
            return evidence._replace(
                manifest=manifest,
                leftovers=self._leftovers(table.name, day, manifest),
                is_recorded=not self.source.has_record,
                is_loaded=self._is_loaded(day, manifest),
            )
        assert evidence.manifest is not None
        if due.step is Step.CLEAN:
            self._clean(table.name, day, evidence.manifest)
        elif due.step is Step.RECORD:
            self.source.record(table, day, evidence.manifest.parts, self.now_ns)
        elif due.step is Step.LOAD:
            assert self._historical is not None
            self._historical.load(evidence.manifest)
            # Only now are there partitions.
            is_convertible = self._converting.is_convertible(table, day, self.now_ns)
            return evidence._replace(is_loaded=True, is_convertible=is_convertible)
        else:
            self._converting.convert(table, day)
        return step_done(table, day, evidence, due)

    def _perform_part(
        self, table: Table, day: date, evidence: Evidence, step: Step, part: int, attempt: int
    ) -> Evidence:
        one = evidence.part(part)
        if step is Step.EXPORT:
            file = self._export(table, day, one, attempt)
            return evidence.with_local(part, LocalPart(file))
        assert one.local is not None
        if step is Step.VERIFY:
            path = self._path(table, day, part)
            verify_file(path, one.local.file, table)
            self._tell_rows(one.local.file.row_count)
            return evidence.with_local(part, one.local._replace(is_verified=True))
        self._upload(one.local.file, self._path(table, day, part))
        return evidence.with_uploaded(part)

    def _export(self, table: Table, day: date, one: PartEvidence, attempt: int) -> PartFile:
        path = self._path(table, day, one.part)
        path.parent.mkdir(mode=0o750, exist_ok=True)
        batches = self._telling(self.source.read(table, day, one.part, attempt))
        try:
            file = write_part(path, table, day, one.part, batches, sort=self.source.is_by_time)
        except OSError as error:
            raise StoreError(
                f"archive: {path}: {error.strerror or error}: free some space"
            ) from error
        difference = differing(one.source, file.content)
        if difference:
            raise damaged(f"the export of {table.name} {day}, part {one.part}", difference)
        return file

    def _telling(self, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for data in batches:
            yield data
            self._tell_rows(data.num_rows)

    def _upload(self, file: PartFile, path: Path) -> None:
        is_there = (
            self.store.size_bytes(file.path) == file.file_bytes
            and self.store.sha256(file.path) == file.sha256
        )
        if not is_there:
            self.store.put_file(path, file.path)

    # --- files on their way -----------------------------------------------------------------------

    def _path(self, table: Table, day: date, part: int) -> Path:
        return self._work.folder(table.name, day) / f"{part:02d}{_PART_SUFFIX}"

    def _local_part(self, table: Table, day: date, part: int) -> LocalPart | None:
        path = self._path(table, day, part)
        try:
            file = describe(path)
        except FileNotFoundError:
            return None
        except DamagedStoreError as error:
            self._warn(str(error))
            path.unlink()
            return None
        return LocalPart(file) if file.part == part else None

    def _leftovers(self, table: str, day: date, manifest: Manifest | None) -> int:
        return len(self._stray_files(table, day)) + len(self._stray_objects(table, day, manifest))

    def _stray_files(self, table: str, day: date) -> list[Path]:
        folder = self._work.folder(table, day)
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _stray_objects(self, table: str, day: date, manifest: Manifest | None) -> list[str]:
        if manifest is None:
            return []
        named = {manifest_path(table, day), *(part.path for part in manifest.parts)}
        found = self.store.list(day_folder(table, day))
        return [one.path for one in found if one.path not in named]

    def _clean(self, table: str, day: date, manifest: Manifest) -> None:
        remove_folder(self._work.folder(table, day))
        for name in self._stray_objects(table, day, manifest):
            self.store.delete(name)


# --- the archive by itself ------------------------------------------------------------------------


def manifest_days(store: ObjectStore, table: str) -> set[date]:
    """The days of a table that are archived."""
    parsed = (parse_manifest_path(one.path) for one in store.list(table))
    return {one[1] for one in parsed if one is not None and one[0] == table}


def read_manifest(store: ObjectStore, table: str, day: date) -> Manifest | None:
    """What is archived of a table and day; None: nothing."""
    path = manifest_path(table, day)
    content = store.get_bytes(path)
    return None if content is None else decode_manifest(content, path)


def read_manifests(store: ObjectStore, tables: Sequence[str]) -> list[Manifest]:
    """Everything that is archived of these tables, day by day."""
    found = [
        read_manifest(store, table, day)
        for table in tables
        for day in sorted(manifest_days(store, table))
    ]
    return sorted((one for one in found if one is not None), key=lambda one: one.day)


def verify_archive(
    store: ObjectStore, manifest: Manifest, work: Path, tell_rows: Callable[[int], None]
) -> list[str]:
    """Fetch and read every file that a manifest names; what is wrong, a line each, which names the object."""
    table = TABLES[manifest.table]
    faults = []
    for part in manifest.parts:
        name = f"{store.url}/{part.path}"
        path = work / "verified.parquet"
        try:
            store.get_file(part.path, path)
            verify_file(path, part, table, name)
        except FileNotFoundError:
            faults.append(f"{name} is missing, and the manifest names it")
        except DamagedStoreError as error:
            faults.append(str(error))
        finally:
            path.unlink(missing_ok=True)
        tell_rows(part.row_count)
    return faults
