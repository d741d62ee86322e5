"""`tickerplant audit`: proves that nothing was lost, or names each hole with its cause and time."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_command, add_config_options, load_config_of
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, ConfigurationError, TickLogError

if TYPE_CHECKING:
    from tickerplant.audit.audited_store import AuditedStore
    from tickerplant.audit.report import AuditReport
    from tickerplant.config_sources import LoadedConfig

LAST = "last"
ALL = "all"

_EXAMPLE = """\
examples:
  tickerplant audit                                  the newest session of the configured plant
  tickerplant audit --session last --log /var/lib/tickerplant/ticklog --capture /var/lib/tickerplant/capture
  tickerplant audit --session all                    all that are in the log, one after the other
  tickerplant audit --recording /data/kalshi          is everything in the recording?
  tickerplant audit --session 1795265082001121921 --json | jq .by_cause

The log alone proves its sequences, books, quotes and the chain of sessions. With the capture every frame of the
exchange is accounted for in the log; with a recording every message of the log in the recording; with the store every
row that follows from the log, as far as the store says it is. Rows that are older than store.ttl_days are told as
expired, and looked for in the manifests of the archive.

exit codes: 0 everything is accounted for, 1 holes or an unreadable log, 2 usage or configuration"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "audit",
        summary="prove that nothing was lost, or name the holes",
        description="Account for every message of a session: exchange frames, tick log, recordings, rows. Only reads.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "--session",
        type=_parse_session,
        metavar="N",
        default=LAST,
        help="the session, by its number, or `last`, or `all` that are in the log (default: last)",
    )
    parser.add_argument("--log", metavar="DIR", help="folder of the log (default: as configured)")
    parser.add_argument(
        "--capture",
        metavar="DIR",
        help="folder of the raw capture (default: as configured, if it is there and --log is not given)",
    )
    parser.add_argument(
        "--recording",
        metavar="DIR",
        action="append",
        default=[],
        dest="recordings",
        help="folder of a recorder; may be given several times",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="folder of the stored rows (default: the configured store, if it has rows and --log is not given)",
    )
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    add_config_options(parser)
    parser.set_defaults(run=run)


def _parse_session(text: str) -> int | str:
    """The number, `last` or `all`. Raises what argparse turns into a usage error."""
    if text in (LAST, ALL):
        return text
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a session: give its number, last or all")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the reports; 1 if there are holes. Raises `ConfigurationError`, `RecordingError`, `TickLogError`."""
    from tickerplant.audit.run import audit_session
    from tickerplant.commands.progress import progress_bar

    log, capture = _folders(arguments)
    store = _store(arguments, log)
    is_complete = True
    try:
        for session in _sessions(log, arguments.session):
            report = audit_session(
                log,
                session,
                capture_folder=_capture_of(capture, session, is_named=bool(arguments.capture)),
                recordings=[Path(folder).expanduser() for folder in arguments.recordings],
                store=store,
                tell_progress=progress_bar(),
            )
            _print(report, is_json=arguments.json)
            is_complete = is_complete and report.is_complete
    except OSError as error:
        raise TickLogError(f"audit: {error.filename or ''}: {error.strerror}") from error
    finally:
        if store is not None:
            store.source.close()
    return EXIT_OK if is_complete else EXIT_FAILURE


def _sessions(log: Path, chosen: int | str) -> list[int]:
    """Those to be audited, the oldest first. Raises `OSError`."""
    from tickerplant.runtime.logfolder import segment_names

    if isinstance(chosen, int):
        return [chosen]
    sessions = sorted({name.session for name in segment_names(log)})
    if not sessions:
        raise ConfigurationError(f"{log} holds no session yet")
    return sessions if chosen == ALL else sessions[-1:]


def _capture_of(folder: Path | None, session: int, *, is_named: bool) -> Path | None:
    """The folder, unless it was not named and has nothing of the session. Raises `OSError`."""
    from tickerplant.runtime.capturereader import capture_sessions

    if folder is None or is_named or any(one <= session for one in capture_sessions(folder)):
        return folder
    return None


def _folders(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Where the log is and, if there is one, the capture. Raises `ConfigurationError`."""
    from tickerplant.runtime.capturefolder import capture_files, capture_folder
    from tickerplant.runtime.logfolder import log_folder

    capture = _folder("--capture", arguments.capture)
    if arguments.log:
        return _require_log(Path(arguments.log).expanduser()), capture
    loaded = load_config_of(arguments)
    config, state_directory = loaded.config, loaded.state_directory
    if capture is None and config.capture.enabled:
        configured = capture_folder(config.capture.directory, state_directory)
        if configured.is_dir() and capture_files(configured):
            capture = configured
    return _require_log(log_folder(config.ticklog.directory, state_directory)), capture


def _store(arguments: argparse.Namespace, log: Path) -> "AuditedStore | None":
    """The store of `--store`, or the configured one if it has begun. Raises `ConfigurationError`, `StoreError`."""
    folder = _folder("--store", arguments.store)
    if folder is not None:
        from tickerplant.audit.audited_store import open_parquet

        return open_parquet(folder, load_config_of(arguments).config.store.ttl_days)
    # Without the extra `history` the rest is audited all the same.
    if arguments.log or find_spec("duckdb") is None or find_spec("pyarrow") is None:
        return None
    return _configured_store(load_config_of(arguments), log)


def _configured_store(loaded: "LoadedConfig", log: Path) -> "AuditedStore | None":
    """With the configured archive. Raises `StoreError`."""
    from tickerplant.audit.audited_store import Archived, open_parquet, open_questdb
    from tickerplant.runtime.logfolder import load_position
    from tickerplant.store.archive_setup import open_object_store
    from tickerplant.store.parquet_folder import store_folder

    config = loaded.config
    if config.store.backend == "questdb":
        if not config.store.enabled or load_position(log, "store") is None:
            return None
        store = open_questdb(config.store, log)
    else:
        folder = store_folder(config.store.directory, loaded.state_directory)
        if not folder.is_dir():
            return None
        store = open_parquet(folder, config.store.ttl_days)

    def open_archive() -> Archived:
        return Archived(open_object_store(config, loaded.state_directory, os.environ))

    # The folder of the archive is not made by looking for it.
    is_there = config.archive.url or (loaded.state_directory / "archive").is_dir()
    return store._replace(open_archive=open_archive) if is_there else store


def _require_log(folder: Path) -> Path:
    from tickerplant.runtime.logfolder import require_folder

    try:
        return require_folder(folder)
    except TickLogError:
        raise ConfigurationError(
            f"{folder} holds no tick log: name its folder with --log, or the plant's configuration"
        ) from None


def _folder(option: str, text: str | None) -> Path | None:
    if text is None:
        return None
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise ConfigurationError(f"{option} {text}: is no folder")
    return folder


def _print(report: "AuditReport", *, is_json: bool) -> None:
    import msgspec

    from tickerplant.audit.report import as_lines

    if is_json:
        print(msgspec.json.encode(report).decode())
        return
    for line in as_lines(report):
        print(line)
