"""The folder of the embedded store: what its names say, which files hold the rows, and how far they go in the log.

dead-letters.jsonl                             rows that could not be stored
store.lock                                     held (flock) by the one process that writes here
<closing>/                                     what was taken of one range of the log, made whole by one rename
<closing>/<table>.<day>.<closing>.parquet      rows of a table whose time lies in a day (UTC)
<any>.tmp                                      not whole: being written, or left by a crash

A closing is `<start>_<end>_<level>`, start and end each `<session>-<ordinal>-<offset>` of the log (`LogPosition`). Its
folder appears under that name complete and synced, or not at all; so ranges never overlap, the next one begins where
the last one ends, and that end is how far the store has come: it is kept nowhere else. Closings that follow each other
are merged into one of the next level, which covers the same range; from its rename on the merged ones do not count,
whether they are still there or not.
"""

import os
import re
from collections.abc import Iterable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.errors import StoreError
from tickerplant.folder_lock import lock_folder
from tickerplant.store.dead_letters import DEAD_LETTER_FILE

LOCK_FILE = "store.lock"
TEMPORARY_SUFFIX = ".tmp"
FILE_SUFFIX = ".parquet"
DEFAULT_FOLDER = "store"
"""Inside the state directory."""
LOG_START = LogPosition(0, 0, 0)
"""Where the first closing begins: whatever the log's oldest record is."""

_POSITION = r"([0-9]{20})-([0-9]{8})-([0-9]{12})"
_CLOSING = re.compile(rf"{_POSITION}_{_POSITION}_([0-9])")
_FILE = re.compile(r"([a-z_]+)\.([0-9]{4}-[0-9]{2}-[0-9]{2})\.(.+)\.parquet")


class Closing(NamedTuple):
    """A range of the log, from `start` up to `end`, and how often it was merged. Sorts in the order of the log."""

    start: LogPosition
    end: LogPosition
    level: int = 0

    def __str__(self) -> str:
        """The name of its folder."""
        start, end = (f"{at.session:020d}-{at.ordinal:08d}-{at.offset:012d}" for at in self[:2])
        return f"{start}_{end}_{self.level}"

    @classmethod
    def parse(cls, name: str) -> "Closing | None":
        """The closing of a folder's name; None if it is not one."""
        match = _CLOSING.fullmatch(name)
        if match is None:
            return None
        numbers = [int(text) for text in match.groups()]
        closing = cls(LogPosition(*numbers[:3]), LogPosition(*numbers[3:6]), numbers[6])
        return closing if closing.start < closing.end else None

    def covers(self, other: "Closing") -> bool:
        """Whether it was merged from `other`, and others."""
        return self.start <= other.start and other.end <= self.end and self.level > other.level


class StoredFile(NamedTuple):
    """A file of rows."""

    path: Path
    table: str
    day: date
    closing: Closing


class FolderContents(NamedTuple):
    """What is in the folder.

    `closings` in the order of the log and `files` are those that count. `superseded` closings were merged and can go.
    `foreign` names are none of ours. `holes` are parts of the log between two closings that none covers.
    """

    closings: list[Closing]
    files: list[StoredFile]
    superseded: list[Closing]
    foreign: list[str]
    temporary: list[str]
    holes: list[tuple[LogPosition, LogPosition]]

    @property
    def position(self) -> LogPosition | None:
        """How far the log was taken; None: nothing yet."""
        return self.closings[-1].end if self.closings else None

    def files_of(
        self, table: str, first: date | None = None, last: date | None = None
    ) -> list[StoredFile]:
        """Those of a table, of the days from `first` to `last`, in the order of the log."""
        return [
            file
            for file in self.files
            if file.table == table
            and (first is None or file.day >= first)
            and (last is None or file.day <= last)
        ]


def store_folder(directory: str, state_directory: Path) -> Path:
    """The folder of `store.directory`; empty: inside the state directory."""
    return Path(directory).expanduser() if directory else state_directory / DEFAULT_FOLDER


def file_name(table: str, day: date, closing: Closing) -> str:
    """Of the rows of `table` of one day in a closing."""
    return f"{table}.{day.isoformat()}.{closing}{FILE_SUFFIX}"


def parse_file(folder: Path, closing: Closing, name: str) -> StoredFile | None:
    """The file `name` of the closing's folder; None if it is none of ours."""
    match = _FILE.fullmatch(name)
    if match is None or match[1] not in TABLES or match[3] != str(closing):
        return None
    try:
        day = date.fromisoformat(match[2])
    except ValueError:
        return None
    return StoredFile(folder / str(closing) / name, match[1], day, closing)


def read_folder(folder: Path) -> FolderContents:
    """List it; missing is empty. Raises `StoreError` if it cannot be read or holds closings that contradict."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208  # names are enough
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise unusable(folder, error) from error
    parsed = {name: Closing.parse(name) for name in names}
    found = sorted(closing for closing in parsed.values() if closing is not None)
    temporary = [name for name in names if name.endswith(TEMPORARY_SUFFIX)]
    foreign = [
        name
        for name, closing in parsed.items()
        if closing is None and name not in (LOCK_FILE, DEAD_LETTER_FILE, *temporary)
    ]
    closings, superseded = _resolve(folder, found)
    files: list[StoredFile] = []
    for closing in closings:
        files += _list_files(folder, closing, foreign)
    holes = [
        (before.end, after.start)
        for before, after in pairwise(closings)
        if before.end != after.start
    ]
    return FolderContents(closings, files, superseded, foreign, temporary, holes)


def _resolve(folder: Path, found: Sequence[Closing]) -> tuple[list[Closing], list[Closing]]:
    """Those that count, and those that were merged. Raises `StoreError`."""
    closings: list[Closing] = []
    superseded: list[Closing] = []
    # A merged closing before what was merged into it: it starts no later, and is of a higher level.
    for closing in sorted(found, key=lambda one: (one.start, -one.level)):
        last = closings[-1] if closings else None
        if last is None or last.end <= closing.start:
            closings.append(closing)
        elif last.covers(closing):
            superseded.append(closing)
        else:
            raise StoreError(
                f"{folder / str(closing)} and {folder / str(last)} hold the same part of the log: one of them is "
                "from elsewhere, move it away"
            )
    return closings, superseded


def _list_files(folder: Path, closing: Closing, foreign: list[str]) -> Iterable[StoredFile]:
    """The files of a closing; other names are added to `foreign`. None if it was merged and removed meanwhile."""
    try:
        names = sorted(os.listdir(folder / str(closing)))  # noqa: PTH208  # names are enough
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(folder / str(closing), error) from error
    files = []
    for name in names:
        file = parse_file(folder, closing, name)
        if file is None:
            foreign.append(f"{closing}/{name}")
        else:
            files.append(file)
    return files


def unusable(path: Path, error: OSError) -> StoreError:
    """The error for a folder that the store cannot use."""
    return StoreError(
        f"store: {path}: {error.strerror or error}: make it a folder that this user can write, "
        "or set store.directory"
    )


def take_lock(folder: Path) -> int:
    """Make and lock the folder; the descriptor that holds the lock. Raises `StoreError`."""
    try:
        return lock_folder(folder, LOCK_FILE)
    except BlockingIOError:
        raise StoreError(
            f"{folder / LOCK_FILE} is locked by another store process: stop it, or set store.directory to another "
            "folder"
        ) from None
    except OSError as error:
        raise unusable(folder, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` outlast a power cut. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the contents of `path` outlast a power cut. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Remove a folder of files; harmless if it is gone. Raises `OSError`."""
    try:
        names = os.listdir(path)  # noqa: PTH208  # names are enough
    except FileNotFoundError:
        return
    for name in names:
        (path / name).unlink(missing_ok=True)
    path.rmdir()
