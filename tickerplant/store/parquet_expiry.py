"""Deleting the oldest rows of the embedded store, whole closings at a time."""

from datetime import date, timedelta
from pathlib import Path

from tickerplant.errors import StoreUnavailableError
from tickerplant.store.arrow_tables import day_of_ns
from tickerplant.store.parquet_folder import (
    TEMPORARY_SUFFIX,
    Closing,
    FolderContents,
    read_folder,
    remove_folder,
    sync_folder,
)


def expired(contents: FolderContents, today: date, ttl_days: int) -> list[Closing]:
    """The oldest closings, in a row, without a row of the last `ttl_days` days; never the last one."""
    kept_from = kept_from_day(contents, today, ttl_days)
    newest_days: dict[Closing, date] = {}
    for file in contents.files:
        newest_days[file.closing] = max(file.day, newest_days.get(file.closing, date.min))
    found = []
    for closing in contents.closings[:-1]:
        if kept_from is None or newest_days.get(closing, date.min) >= kept_from:
            break
        found.append(closing)
    return found


def kept_from_day(contents: FolderContents, today: date, ttl_days: int) -> date | None:
    """The first day whose rows are kept; None: there are no rows.

    Days count from the newest row, or from `today` if that is earlier: a clock that is ahead deletes nothing.
    """
    newest = max((file.day for file in contents.files), default=None)
    return None if newest is None else min(today, newest) - timedelta(days=ttl_days)


def delete_expired(folder: Path, now_ns: int, ttl_days: int) -> int:
    """Delete what is older than `ttl_days` (0: nothing); how many closings. Raises `StoreUnavailableError`.

    A closing first loses its name, so that a crash leaves none that lacks files.
    """
    if not ttl_days:
        return 0
    closings = expired(read_folder(folder), day_of_ns(now_ns), ttl_days)
    try:
        for closing in closings:
            nameless = folder / f"{closing}{TEMPORARY_SUFFIX}"
            (folder / str(closing)).rename(nameless)
            sync_folder(folder)
            remove_folder(nameless)
    except OSError as error:
        raise StoreUnavailableError(
            f"store: cannot delete old files in {folder}: {error.strerror or error}"
        ) from error
    return len(closings)
