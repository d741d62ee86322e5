"""`tickerplant audit`: proves that nothing was lost, or names each hole with its cause and time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tickerplant.commands.options import add_config_options, load_config_of
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, ConfigurationError, TickLogError

if TYPE_CHECKING:
    from tickerplant.audit.report import AuditReport

_EXAMPLE = """\
examples:
  tickerplant audit                                  the newest session of the configured plant
  tickerplant audit --session last --log /var/lib/tickerplant/ticklog --capture /var/lib/tickerplant/capture
  tickerplant audit --recording /data/kalshi          is everything in the recording?
  tickerplant audit --session 1795265082001121921 --json | jq .by_cause

The log alone proves its sequences, books, quotes and the chain of sessions. With the capture every frame of the
exchange is accounted for in the log; with a recording every message of the log in the recording.

exit codes: 0 everything is accounted for, 1 holes or an unreadable log, 2 usage or configuration"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "audit",
        help="prove that nothing was lost, or name the holes",
        description="Account for every message of a session: exchange frames, tick log, recordings. Reads files only.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--session",
        type=_parse_session,
        metavar="N",
        help="the session, by its number or `last` (default: last)",
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
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    add_config_options(parser)
    parser.set_defaults(run=run)


def _parse_session(text: str) -> int | None:
    """The number; None for `last`. Raises what argparse turns into a usage error."""
    if text == "last":
        return None
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a session: give its number, or last")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if there are holes. Raises `ConfigurationError`, `TickLogError`."""
    from tickerplant.audit.run import audit_session
    from tickerplant.commands.progress import progress_bar

    log, capture = _folders(arguments)
    try:
        report = audit_session(
            log,
            arguments.session,
            capture_folder=capture,
            recordings=[Path(folder).expanduser() for folder in arguments.recordings],
            tell_progress=progress_bar(),
        )
    except OSError as error:
        raise TickLogError(f"audit: {error.filename or ''}: {error.strerror}") from error
    _print(report, is_json=arguments.json)
    return EXIT_OK if report.is_complete else EXIT_FAILURE


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
