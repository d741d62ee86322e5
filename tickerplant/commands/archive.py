"""`tickerplant archive`: whole days of rows into the object store, verified; and what is in there."""

import argparse
from datetime import date
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickerplant.config_sources import LoadedConfig
    from tickerplant.core.archive_plan import Manifest
    from tickerplant.store.archiver import Archiver, Outcome, WorkFolder
    from tickerplant.store.object_store import ObjectStore

_EXAMPLES = """\
examples:
  tickerplant archive                                every day that is over and not archived yet
  tickerplant archive --date 2026-11-20 --dry-run    what would be done for one day
  tickerplant archive --date 2026-11-20 --table trades --table bbo
  tickerplant archive --verify                       read everything that is archived, name what is damaged
  tickerplant archive --restore --date 2026-11-20    bring a day back into the database

Can be ended at any moment and run again; it goes on where it was. Meant for a timer, shortly after midnight UTC.

exit codes: 0 archived, 1 damaged or refused, 2 usage or configuration, 75 not possible now: run it again later"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "archive",
        summary="keep whole days of rows in an object store",
        description="Write the rows of whole days (UTC) to Parquet files in an object store, each verified.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--date",
        type=_parse_date,
        metavar="DATE",
        action="append",
        default=[],
        dest="days",
        help="this day; may be given several times (default: all that are due)",
    )
    parser.add_argument(
        "--table",
        metavar="TABLE",
        action="append",
        default=[],
        dest="tables",
        help="only this table; may be given several times (default: all)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--verify", action="store_true", help="read what is archived, and name what is damaged"
    )
    other.add_argument(
        "--restore",
        action="store_true",
        help="bring what is archived into the QuestDB of store.conf, and compare it",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def _parse_date(text: str) -> date:
    """Raises what argparse turns into a usage error."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: write 2026-11-20") from None


def run(arguments: argparse.Namespace) -> int:
    """Archive or verify. Raises `ConfigurationError`, `StoreError`, `StoreUnavailableError`."""
    import os

    from tickerplant.core.archive_plan import ARCHIVED_TABLES
    from tickerplant.store.archive_setup import open_object_store, work_folder

    for table in arguments.tables:
        if table not in ARCHIVED_TABLES:
            raise ConfigurationError(
                f"--table {table}: choose of {', '.join(sorted(ARCHIVED_TABLES))}"
            )
    loaded = load_config_of(arguments)
    config, state = loaded.config, loaded.state_directory
    store = open_object_store(config, state, os.environ)
    tables = arguments.tables or list(ARCHIVED_TABLES)
    with work_folder(config, state) as work:
        if arguments.verify:
            return _verify(store, work, tables, arguments.days)
        if arguments.restore:
            return _restore(loaded, store, work, tables, arguments)
        return _archive(loaded, store, work, tables, arguments)


# --- archiving ------------------------------------------------------------------------------------


def _archive(
    loaded: "LoadedConfig",
    store: "ObjectStore",
    work: "WorkFolder",
    tables: list[str],
    arguments: argparse.Namespace,
) -> int:
    import sys
    import time

    from tickerplant.store.archive_setup import open_archive_source, open_historical
    from tickerplant.store.archiver import Archiver
    from tickerplant.store.arrow_tables import day_of_ns

    now_ns = time.time_ns()
    source = open_archive_source(loaded.config, loaded.state_directory)
    progress = _Progress()
    archiver = Archiver(
        source,
        store,
        work,
        now_ns=now_ns,
        historical=open_historical(loaded.config, loaded.state_directory, store),
        warn=lambda text: print(f"tickerplant: {text}", file=sys.stderr),
        tell_rows=progress.add,
    )
    if arguments.days:
        due = [(table, day) for day in sorted(set(arguments.days)) for table in tables]
    else:
        due = archiver.due_days(tables, day_of_ns(now_ns))
    if not due:
        print("nothing is due")
    if arguments.dry_run:
        for table, day in due:
            source.require_complete(day, now_ns)
            print(_plan_line(archiver, table, day))
        return EXIT_OK
    # Rows are told when they are written, and again when they are read.
    progress.total = 2 * archiver.count_rows(due)
    for table, day in due:
        # The days before one that is not complete are archived all the same.
        source.require_complete(day, now_ns)
        print(_outcome_line(archiver.archive(table, day)), flush=True)
    return EXIT_OK


def _plan_line(archiver: "Archiver", table: str, day: date) -> str:
    steps, kept = archiver.due(table, day)
    if kept:
        return f"{kept}: it stays as it is"
    words = [
        one.step.value if one.part is None else f"{one.step.value} {one.part}" for one in steps
    ]
    return f"{table} {day}: {', '.join(words) or 'nothing to do'}"


def _outcome_line(outcome: "Outcome") -> str:
    files = f"{outcome.file_count} file{'' if outcome.file_count == 1 else 's'}"
    line = (
        f"{outcome.table} {outcome.day}: {outcome.verdict.value}, {outcome.row_count} rows in {files}, "
        f"{outcome.file_bytes} bytes"
    )
    return f"{line} ({outcome.note})" if outcome.note else line


class _Progress:
    """Rows done of those to be done, as a bar where somebody looks."""

    def __init__(self) -> None:
        from tickerplant.commands.progress import progress_bar

        self.total = 0
        self._done = 0
        self._tell: Callable[[int, int], None] | None = progress_bar()

    def add(self, rows: int) -> None:
        """So many more are done."""
        self._done += rows
        if self._tell is not None and self.total:
            self._tell(min(self._done, self.total), self.total)


# --- what is archived ------------------------------------------------------------------------------------


def _manifests(store: "ObjectStore", tables: list[str], days: list[date]) -> "list[Manifest]":
    """What is archived of these; no days: of all. Raises `StoreError` if there is nothing."""
    from tickerplant.store.archiver import read_manifest, read_manifests

    if days:
        found = [read_manifest(store, table, day) for day in days for table in tables]
        manifests = [one for one in found if one is not None]
    else:
        manifests = read_manifests(store, tables)
    if not manifests:
        raise StoreError(f"archive {store.url} holds nothing of that: see archive.url")
    return manifests


def _verify(store: "ObjectStore", work: "WorkFolder", tables: list[str], days: list[date]) -> int:
    from tickerplant.store.archiver import verify_archive

    manifests = _manifests(store, tables, days)
    progress = _Progress()
    progress.total = sum(one.row_count for one in manifests)
    faults = []
    for manifest in manifests:
        faults += verify_archive(store, manifest, work.path, progress.add)
    for fault in faults:
        print(fault)
    print(f"{len(manifests)} tables and days, {progress.total} rows, {len(faults)} faults")
    return EXIT_FAILURE if faults else EXIT_OK


def _restore(
    loaded: "LoadedConfig",
    store: "ObjectStore",
    work: "WorkFolder",
    tables: list[str],
    arguments: argparse.Namespace,
) -> int:
    from tickerplant.store.questdb_http import read_login
    from tickerplant.store.restore import Restorer

    settings = loaded.config.store
    if settings.backend != "questdb":
        raise ConfigurationError(
            'store.backend is not "questdb": --restore fills a QuestDB database; the files of the archive are '
            "Parquet and can be asked as they are"
        )
    manifests = _manifests(store, tables, arguments.days)
    progress = _Progress()
    progress.total = sum(one.row_count for one in manifests)
    login = read_login(settings.username, settings.password_path)
    restorer = Restorer(store, settings.conf, login, work.path, tell_rows=progress.add)
    for manifest in manifests:
        words = f"{manifest.table} {manifest.day}"
        if restorer.is_restored(manifest):
            print(f"{words}: is there, {manifest.row_count} rows")
        elif arguments.dry_run:
            print(f"{words}: would be restored, {manifest.row_count} rows")
        else:
            rows = restorer.restore(manifest)
            print(f"{words}: restored, {rows} of {manifest.row_count} rows written", flush=True)
    return EXIT_OK
