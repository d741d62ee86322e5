"""SQL over the archive: the whole days that an object store has, fetched as they are asked for."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from tickerplant.core.archive_plan import (
    Manifest,
    PartFile,
    decode_manifest,
    manifest_path,
    parse_manifest_path,
)
from tickerplant.core.tables import TABLES
from tickerplant.errors import DamagedStoreError, StoreError
from tickerplant.limits import ARCHIVE_FETCH_MAX_BYTES
from tickerplant.store.duckdb_source import DuckDb
from tickerplant.store.object_store import ObjectStore
from tickerplant.store.source import Span

_TEMPORARY_PREFIX = "tickerplant-archive-"


class ObjectSource(DuckDb):
    """Asks the archive in `store`; see `source.Source`.

    Files are fetched when a question is about their table and day, compared with their digests, and kept in a temporary
    folder until `close`: at most `ARCHIVE_FETCH_MAX_BYTES`, beyond which a question is refused.
    """

    def __init__(
        self, store: ObjectStore, *, fetch_max_bytes: int = ARCHIVE_FETCH_MAX_BYTES
    ) -> None:
        """Fetches nothing yet."""
        super().__init__()
        self.store = store
        self.fetched_bytes = 0
        self._fetch_max_bytes = fetch_max_bytes
        self._folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))
        self._days: dict[str, list[date]] = {}
        self._manifests: dict[tuple[str, date], Manifest] = {}
        self._fetched: dict[str, str] = {}

    def close(self) -> None:
        """Remove what was fetched."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def list_paths(self, sql: str, span: Span) -> Mapping[str, list[str]]:
        """Files of the tables that the question names, of the days that it is about; fetched if need be."""
        wanted = {name: self._parts(name, span) if is_named(name, sql) else [] for name in TABLES}
        missing = [
            one for parts in wanted.values() for one in parts if one.path not in self._fetched
        ]
        total = self.fetched_bytes + sum(one.file_bytes for one in missing)
        if total > self._fetch_max_bytes:
            raise StoreError(
                f"the answer lies in {total:,} bytes of the archive, at most {self._fetch_max_bytes:,} are fetched: "
                "ask for a shorter time"
            )
        for part in missing:
            self._fetch(part)
        return {name: [self._fetched[one.path] for one in parts] for name, parts in wanted.items()}

    def _parts(self, table: str, span: Span) -> list[PartFile]:
        if table not in self._days:
            parsed = (parse_manifest_path(one.path) for one in self.store.list(table))
            self._days[table] = sorted(
                one[1] for one in parsed if one is not None and one[0] == table
            )
        first, last = span.days
        days = [day for day in self._days[table] if (first or day) <= day <= (last or day)]
        return [part for day in days for part in self._manifest(table, day).parts if part.row_count]

    def _manifest(self, table: str, day: date) -> Manifest:
        manifest = self._manifests.get((table, day))
        if manifest is None:
            path = manifest_path(table, day)
            content = self.store.get_bytes(path)
            if content is None:
                raise DamagedStoreError(f"{self.store.url}/{path} was there and is gone: ask again")
            manifest = self._manifests[table, day] = decode_manifest(content, path)
        return manifest

    def _fetch(self, part: PartFile) -> None:
        name = f"{self.store.url}/{part.path}"
        path = self._folder / part.path.rpartition("/")[2]
        try:
            self.store.get_file(part.path, path)
        except FileNotFoundError:
            raise DamagedStoreError(
                f"{name} is missing, and the manifest names it: restore it from a copy of the archive"
            ) from None
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {error.strerror or error}: free some space, or set TMPDIR"
            ) from error
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != part.sha256:
            raise DamagedStoreError(
                f"{name} is damaged (its SHA-256 is not {part.sha256}): restore it from a copy of the archive"
            )
        self.fetched_bytes += part.file_bytes
        self._fetched[part.path] = str(path)


def is_named(table: str, sql: str) -> bool:
    """Whether a question may be about a table: it, or a view of it, stands in the text."""
    views = rf"{table}(?:_v)?" + (r"|ohlc_\w+" if table == "trades" else "")
    return re.search(rf"\b(?:{views})\b", sql, re.IGNORECASE) is not None
