"""The archive: what it holds of a day, and which step of archiving is due. Pure.

One table of one day is archived as one or more files (parts) and a manifest that names them, written last: files
without a manifest do not count. Which step is due follows from what exists alone, so that archiving may end anywhere
and be begun again: it goes on, and ends with the same manifest.

<table>/day=<day>/<table>.<day>.<part>.<digest>.parquet
<table>/day=<day>/manifest.json

The digest of the contents is in the name of a file: what a manifest names is never written over.
"""

import re
from datetime import date
from enum import Enum
from typing import NamedTuple

import msgspec

from tickerplant.core.tables import TABLES, ColumnType, Table
from tickerplant.errors import StoreError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
DIGEST_CHARACTERS = 12
"""Of the SHA-256 in the name of a file."""
NOT_ARCHIVED = ("backfill_progress", "archive_manifest")
"""What is about this database itself."""
ARCHIVED_TABLES = tuple(name for name in TABLES if name not in NOT_ARCHIVED)
HOURS_PER_DAY = 24

_MANIFEST_PATH = re.compile(rf"([a-z_]+)/day=([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})/{MANIFEST_NAME}")
_INTEGER_BITS = 64

Checks = dict[str, int | None]
"""Sums over the rows of a part, by what was added up, modulo 2**64; None where there is no value. See `check_names`."""


class Content(msgspec.Struct, frozen=True):
    """The rows of a part; `checks` is None where only the number of rows is known."""

    row_count: int
    checks: Checks | None = None

    def matches(self, other: "Content") -> bool:
        """Whether both can be the same rows."""
        if self.row_count != other.row_count:
            return False
        return None in (self.checks, other.checks) or self.checks == other.checks


class PartFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of rows. `path` in the object store; times are of the table's time, 0 if there are no rows."""

    part: int
    path: str
    row_count: int
    file_bytes: int
    sha256: str
    first_ns: int
    last_ns: int
    checks: Checks

    @property
    def content(self) -> Content:
        """Its rows."""
        return Content(self.row_count, self.checks)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the archive holds of one table and day. `columns`: (name, type), types as in `core.tables`."""

    format: int = MANIFEST_FORMAT
    table: str
    day: date
    columns: list[tuple[str, str]]
    row_count: int
    parts: list[PartFile]

    def part(self, number: int) -> PartFile | None:
        """The part of that number."""
        return next((one for one in self.parts if one.part == number), None)


def new_manifest(table: Table, day: date, parts: list[PartFile]) -> Manifest:
    """The manifest of these parts."""
    return Manifest(
        table=table.name,
        day=day,
        columns=[(column.name, column.type.value) for column in table.columns],
        row_count=sum(part.row_count for part in parts),
        parts=sorted(parts, key=lambda one: one.part),
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """As JSON; equal manifests are equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(content: bytes, path: str) -> Manifest:
    """The manifest of an object. Raises `StoreError` if it is none, or of a newer program."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"{path} is no manifest of an archive ({error}): move it away and archive that day again"
        ) from None
    if manifest.format != MANIFEST_FORMAT:
        raise StoreError(
            f"{path} has format {manifest.format}, this program knows {MANIFEST_FORMAT}: use the newer program"
        )
    if manifest_path(manifest.table, manifest.day) != path or manifest.table not in TABLES:
        raise StoreError(
            f"{path} is the manifest of {manifest.table}, {manifest.day}: move it there"
        )
    return manifest


# --- names ----------------------------------------------------------------------------------------


def day_folder(table: str, day: date) -> str:
    """Where everything of a table and day lies in the object store."""
    return f"{table}/day={day.isoformat()}"


def manifest_path(table: str, day: date) -> str:
    """Of the manifest in the object store."""
    return f"{day_folder(table, day)}/{MANIFEST_NAME}"


def parse_manifest_path(path: str) -> tuple[str, date] | None:
    """Table and day of a manifest's path; None if it is none."""
    match = _MANIFEST_PATH.fullmatch(path)
    if match is None or match[1] not in TABLES:
        return None
    try:
        return match[1], date.fromisoformat(match[2])
    except ValueError:
        return None


def part_path(table: str, day: date, part: int, sha256: str) -> str:
    """Of a file in the object store."""
    digest = sha256[:DIGEST_CHARACTERS]
    return f"{day_folder(table, day)}/{table}.{day.isoformat()}.{part:02d}.{digest}.parquet"


def check_names(table: Table) -> list[str]:
    """What is added up for a table, in words of the manifest.

    `name`: a number, a time or a truth (1), the bytes of a text (none: -1), UTF-16 units of a symbol (none: -1), or all
    prices and sizes of levels. `seq*name`: each number times the sequence of its message, so that a value in the wrong
    row is found.
    """
    names = list(table.column_names)
    if "seq" in names:
        names += [
            f"seq*{column.name}"
            for column in table.columns
            if column.type is ColumnType.INTEGER and column.name not in ("seq", "session")
        ]
    return names


def wrapped(value: int) -> int:
    """As a signed integer of 64 bits that has run over."""
    half = 1 << (_INTEGER_BITS - 1)
    return (value + half) % (1 << _INTEGER_BITS) - half


def add_checks(total: Checks, more: Checks) -> Checks:
    """Both together."""
    return {
        name: total[name] if value is None else wrapped((total[name] or 0) + value)
        for name, value in more.items()
    }


def differing(wanted: Content, found: Content) -> str:
    """In which way they differ, in words; empty if they match."""
    if wanted.row_count != found.row_count:
        return f"{found.row_count} rows instead of {wanted.row_count}"
    names = [
        name
        for name, value in (wanted.checks or {}).items()
        if found.checks is not None and found.checks.get(name) != value
    ]
    return f"other sums of {', '.join(names)}" if names else ""


# --- which step is due ----------------------------------------------------------------------------


class Step(Enum):
    """What archiving a table and day consists of, in this order."""

    EXPORT = "export"
    """Write the rows of a part into a file."""
    VERIFY = "verify"
    """Read it again and compare it with the source."""
    UPLOAD = "upload"
    """Put it into the object store, and read it back."""
    MANIFEST = "manifest"
    """Name all parts in the manifest."""
    CLEAN = "clean"
    """Remove local files, and files in the object store that the manifest no longer names."""
    RECORD = "record"
    """Tell the table `archive_manifest`."""
    LOAD = "load"
    """Bring it into the historical server."""
    CONVERT = "convert"
    """Turn the partition in the database into Parquet."""


class LocalPart(NamedTuple):
    """A whole file in the work folder, what it says of itself, and whether this run has read it again."""

    file: PartFile
    is_verified: bool = False


class PartEvidence(NamedTuple):
    """What exists of a part: rows in the source, the local file, and whether that is in the object store."""

    part: int
    source: Content
    local: LocalPart | None = None
    is_uploaded: bool = False


class Evidence(NamedTuple):
    """What exists of a table and day.

    `leftovers`: files that the manifest does not name. `is_recorded`: the database says so too. `is_loaded`: the
    historical server, if there is one, has it. `is_convertible`: its partitions are native still, and old enough.
    """

    parts: list[PartEvidence]
    manifest: Manifest | None = None
    leftovers: int = 0
    is_recorded: bool = True
    is_loaded: bool = True
    is_convertible: bool = False

    def part(self, number: int) -> PartEvidence:
        """The part of that number."""
        return next(one for one in self.parts if one.part == number)

    def with_local(self, number: int, local: LocalPart | None) -> "Evidence":
        """After the local file of a part became this."""
        return self._with(self.part(number)._replace(local=local))

    def with_uploaded(self, number: int) -> "Evidence":
        """After a part was uploaded."""
        return self._with(self.part(number)._replace(is_uploaded=True))

    def file(self, one: PartEvidence) -> PartFile:
        """The file that is to be named for a part: the one in the manifest if it holds, else the local one."""
        archived = _archived_part(self.manifest, one)
        if archived is not None:
            return archived
        assert one.local is not None
        return one.local.file

    def _with(self, changed: PartEvidence) -> "Evidence":
        parts = [changed if one.part == changed.part else one for one in self.parts]
        return self._replace(parts=parts)


class Due(NamedTuple):
    """A step, and its part (None: of all)."""

    step: Step
    part: int | None = None


def next_due(evidence: Evidence) -> Due | None:
    """The step that is due; None: all is done. Performing it changes the evidence, and then another one is."""
    if not is_archived(evidence):
        for one in evidence.parts:
            step = _part_step(one) if _archived_part(evidence.manifest, one) is None else None
            if step is not None:
                return Due(step, one.part)
        return Due(Step.MANIFEST)
    for is_due, step in (
        (evidence.leftovers, Step.CLEAN),
        (not evidence.is_recorded, Step.RECORD),
        (not evidence.is_loaded, Step.LOAD),
        (evidence.is_convertible, Step.CONVERT),
    ):
        if is_due:
            return Due(step)
    return None


def all_due(table: Table, day: date, evidence: Evidence) -> list[Due]:
    """Every step up to the end, if each does what it should."""
    steps = []
    while (due := next_due(evidence)) is not None:
        steps.append(due)
        evidence = step_done(table, day, evidence, due)
    return steps


def step_done(table: Table, day: date, evidence: Evidence, due: Due) -> Evidence:
    """What exists after a step that did what it should; of an export nothing is known but the contents."""
    if due.part is not None:
        one = evidence.part(due.part)
        if due.step is Step.UPLOAD:
            return evidence.with_uploaded(due.part)
        if due.step is Step.EXPORT:
            return evidence.with_local(due.part, LocalPart(_planned_file(one)))
        assert one.local is not None
        return evidence.with_local(due.part, one.local._replace(is_verified=True))
    if due.step is Step.MANIFEST:
        manifest = new_manifest(table, day, [evidence.file(one) for one in evidence.parts])
        return evidence._replace(manifest=manifest, leftovers=1)
    if due.step is Step.CLEAN:
        return evidence._replace(leftovers=0)
    if due.step is Step.RECORD:
        return evidence._replace(is_recorded=True)
    if due.step is Step.LOAD:
        return evidence._replace(is_loaded=True)
    return evidence._replace(is_convertible=False)


def _planned_file(one: PartEvidence) -> PartFile:
    return PartFile(
        part=one.part,
        path="",
        row_count=one.source.row_count,
        file_bytes=0,
        sha256="",
        first_ns=0,
        last_ns=0,
        checks=one.source.checks or {},
    )


def _archived_part(manifest: Manifest | None, one: PartEvidence) -> PartFile | None:
    """The file in the manifest that holds these rows; None: there is none."""
    file = manifest.part(one.part) if manifest is not None else None
    return file if file is not None and one.source.matches(file.content) else None


def is_archived(evidence: Evidence) -> bool:
    """Whether the manifest tells of exactly the rows of the source."""
    manifest = evidence.manifest
    if manifest is None or len(manifest.parts) != len(evidence.parts):
        return False
    return all(_archived_part(manifest, one) is not None for one in evidence.parts)


def _part_step(evidence: PartEvidence) -> Step | None:
    local = evidence.local
    if local is None or not evidence.source.matches(local.file.content):
        return Step.EXPORT
    if not local.is_verified:
        return Step.VERIFY
    return None if evidence.is_uploaded else Step.UPLOAD


def shrinkage(evidence: Evidence) -> str:
    """Why the source must not replace what is archived, in words; empty if it may.

    Rows expire in the source; the archive keeps them.
    """
    manifest = evidence.manifest
    if manifest is None:
        return ""
    present = {one.part: one.source.row_count for one in evidence.parts}
    for file in manifest.parts:
        if present.get(file.part, 0) < file.row_count:
            return (
                f"{manifest.table} {manifest.day}: the archive has {file.row_count} rows in part {file.part}, the "
                f"store only {present.get(file.part, 0)}"
            )
    return ""
