"""`tickerplant capture`: lists, prints, verifies and exports the raw capture, also while the plant writes it."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tickerplant.commands.options import (
    add_actions,
    add_command,
    add_config_options,
    load_config_of,
)
from tickerplant.commands.time_options import parse_session, parse_time_ns, time_text
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, CaptureError

if TYPE_CHECKING:
    from tickerplant.config_sources import LoadedConfig
    from tickerplant.runtime.capturereader import CaptureReader
    from tickerplant_kalshi.inputs import AnyInput

SHAPES = ("bare", "raw", "channel")

_EXAMPLE = """\
examples:
  tickerplant capture ls                                   sessions and their files
  tickerplant capture cat --session last --format json     every input: frames, REST replies, timers
  tickerplant capture verify --against-log                 play it again, compare with the tick log
  tickerplant capture export --shape raw --output a.jsonl  frames for `tickerplant replay --jsonl`

exit codes: 0 ok, 1 damaged or not readable, 2 usage or configuration"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "capture",
        summary="list, print, verify and export the raw capture",
        description="Everything that went into the plant, kept if `capture.enabled`. Reading never disturbs it.",
        epilog=_EXAMPLE,
    )
    actions = (
        ("ls", "list the sessions and their files", run_ls),
        ("cat", "print what went in, in order", run_cat),
        ("verify", "prove that nothing is damaged or missing", run_verify),
        ("export", "write the frames as lines of JSON", run_export),
    )
    for name, action in add_actions(parser, _EXAMPLE, actions):
        action.add_argument(
            "--directory", metavar="DIR", help="folder of the capture (default: as configured)"
        )
        if name != "export":
            action.add_argument(
                "--format", choices=("text", "json"), default="text", help="default: %(default)s"
            )
        if name != "ls":
            _add_session(action, name)
        if name == "export":
            _add_export_options(action)
        add_config_options(action)


def _add_session(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--session",
        type=parse_session,
        default=None if name == "verify" else -1,
        metavar="N",
        help=f"its number, or last (default: {'all' if name == 'verify' else 'last'})",
    )
    if name == "verify":
        parser.add_argument(
            "--against-log",
            action="store_true",
            help="play each through a plant and compare the datagrams with the tick log",
        )
    else:
        parser.add_argument(
            "--from",
            type=parse_time_ns,
            dest="from_ns",
            default=0,
            metavar="TIME",
            help="from then",
        )
        parser.add_argument(
            "--to",
            type=parse_time_ns,
            dest="to_ns",
            default=2**63,
            metavar="TIME",
            help="until then",
        )


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="raw",
        help='bare: a frame a line; raw: {"recv_ts_ns", "raw"}; channel: {"channel", "message"} (default: %(default)s)',
    )
    parser.add_argument(
        "--connection", type=int, metavar="N", help="of the plant's connections, from 0"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="a new file to write into (default: standard output)"
    )


def _folder_of(arguments: argparse.Namespace) -> Path:
    """Where the capture is. Raises `ConfigurationError`, or `CaptureError` if there is none."""
    from tickerplant.runtime.capturefolder import capture_folder, require_capture

    if arguments.directory:
        return require_capture(Path(arguments.directory).expanduser())
    loaded = load_config_of(arguments)
    directory = loaded.config.capture.directory
    return require_capture(capture_folder(directory, loaded.state_directory))


def _unreadable(folder: Path, error: OSError) -> CaptureError:
    return CaptureError(f"capture {folder}: {error.filename or ''} {error.strerror}")


def _reader_of(arguments: argparse.Namespace) -> "CaptureReader":
    from tickerplant.runtime.capturereader import CaptureReader, choose_session

    folder = _folder_of(arguments)
    try:
        session = None if arguments.session == -1 else arguments.session
        return CaptureReader(folder, choose_session(folder, session))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _told_faults(reader: "CaptureReader") -> int:
    """Print what could not be read; the exit code."""
    for fault in reader.faults:
        print(f"tickerplant: {fault}", file=sys.stderr)
    return EXIT_FAILURE if reader.faults else EXIT_OK


# --- ls -------------------------------------------------------------------------------------------


def run_ls(arguments: argparse.Namespace) -> int:
    """Print the list. Raises `ConfigurationError`, `CaptureError`."""
    import msgspec

    from tickerplant.runtime.capturefolder import capture_files

    folder = _folder_of(arguments)
    try:
        files = capture_files(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    rows: dict[int, dict[str, Any]] = {}
    for file in files:
        row = rows.setdefault(
            file.name.session,
            {
                "session": file.name.session,
                "first_segment": file.name.ordinal,
                "segments": 0,
                "compressed": 0,
                "bytes": 0,
            },
        )
        row["segments"] += 1
        row["compressed"] += file.is_compressed
        row["bytes"] += file.size_bytes
        row["changed_ns"] = int(file.changed_s * 1_000_000) * 1_000
    if arguments.format == "json":
        print(
            msgspec.json.encode({"folder": str(folder), "sessions": list(rows.values())}).decode()
        )
        return EXIT_OK
    if rows:
        print(f"{'session':<22}{'begun (UTC)':<28}{'last change':<28}{'segments':>9}{'bytes':>16}")
    for row in rows.values():
        cut = "" if row["first_segment"] == 1 else "  its beginning was deleted"
        begun, changed = time_text(row["session"]), time_text(row["changed_ns"])
        print(
            f"{row['session']:<22}{begun:<28}{changed:<28}{row['segments']:>9}{row['bytes']:>16,}{cut}"
        )
    total = sum(row["bytes"] for row in rows.values())
    print(f"{folder}: {len(files)} segments, {total / 1e6:,.1f} MB")
    return EXIT_OK


# --- cat ------------------------------------------------------------------------------------------


def run_cat(arguments: argparse.Namespace) -> int:
    """Print inputs; 1 if a part could not be read. Raises `ConfigurationError`, `CaptureError`."""
    reader = _reader_of(arguments)
    is_json = arguments.format == "json"
    try:
        for item in _inputs_of(reader, arguments):
            for line in _json_lines(item) if is_json else _text_lines(item):
                sys.stdout.write(line + "\n")
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise _unreadable(reader.folder, error) from error
    return _told_faults(reader)


def _inputs_of(reader: "CaptureReader", arguments: argparse.Namespace) -> "Iterator[AnyInput]":
    from tickerplant_kalshi.inputs import decode_inputs

    for record in reader.records():
        for item in decode_inputs(record):
            if arguments.from_ns <= item.now_ns <= arguments.to_ns:
                yield item


def _text_lines(item: "AnyInput") -> Iterator[str]:
    from tickerplant_kalshi.inputs import Frames

    head = f"{time_text(item.now_ns)}  {type(item).__name__:<15}"
    if isinstance(item, Frames):
        for frame in item.frames:
            yield f"{head} {item.connection} {frame.decode(errors='backslashreplace').rstrip()}"
        return
    fields = item.__struct_fields__[1:]
    yield f"{head} {' '.join(f'{name}={getattr(item, name)}' for name in fields)}".rstrip()


def _json_lines(item: "AnyInput") -> Iterator[str]:
    import msgspec

    from tickerplant_kalshi.inputs import Frames

    fields = {"input": type(item).__name__} | msgspec.structs.asdict(item)
    if isinstance(item, Frames):
        del fields["frames"]
        for frame in item.frames:
            text = frame.decode(errors="backslashreplace")
            yield msgspec.json.encode(fields | {"frame": text}).decode()
        return
    yield msgspec.json.encode(fields).decode()


# --- verify ---------------------------------------------------------------------------------------


def run_verify(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if a capture is damaged. Raises `ConfigurationError`, `CaptureError`."""
    from tickerplant.runtime.capturereader import capture_sessions, choose_session

    folder = _folder_of(arguments)
    try:
        if arguments.session is None:
            sessions = capture_sessions(folder)
        else:
            chosen = None if arguments.session == -1 else arguments.session
            sessions = [choose_session(folder, chosen)]
        reports = [_verified(folder, session, arguments) for session in sessions]
    except OSError as error:
        raise _unreadable(folder, error) from error
    is_sound = all(report["sound"] for report in reports)
    if arguments.format == "json":
        import msgspec

        print(msgspec.json.encode({"sound": is_sound, "sessions": reports}).decode())
    else:
        for report in reports:
            _print_report(report)
        print(f"{'ok' if is_sound else 'damaged'}: {len(reports)} sessions in {folder}")
    return EXIT_OK if is_sound else EXIT_FAILURE


def _verified(folder: Path, session: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What one session holds, and what is wrong with it."""
    from tickerplant.errors import DamagedCaptureError
    from tickerplant.runtime.capturereader import CaptureReader
    from tickerplant_kalshi.inputs import Frames, decode_inputs

    reader = CaptureReader(folder, session)
    inputs = frames = last_ns = 0
    problems = []
    try:
        for record in reader.records():
            for item in decode_inputs(record):
                inputs += 1
                frames += len(item.frames) if isinstance(item, Frames) else 0
                last_ns = max(last_ns, item.now_ns)
    except DamagedCaptureError as error:
        problems.append(str(error))
    problems += [str(fault) for fault in reader.faults]
    report: dict[str, Any] = {
        "session": session,
        "segments": reader.segment_count,
        "records": reader.record_count,
        "inputs": inputs,
        "frames": frames,
        "last_ns": last_ns,
        "records_deleted": reader.first_record,
        "torn_bytes": reader.torn_bytes,
    }
    if arguments.against_log and not problems:
        report["comparison"] = _compared(folder, session, arguments, problems)
    return report | {"faults": problems, "sound": not problems}


def _compared(
    folder: Path, session: int, arguments: argparse.Namespace, problems: list[str]
) -> dict[str, int] | None:
    """The capture played again, against the tick log; what differs is added to `problems`."""
    from tickerplant.errors import TickerplantError
    from tickerplant.replay.compare import compare
    from tickerplant.replay.sources import capture_datagrams
    from tickerplant_subscriber.log_source import read_log

    try:
        logged = read_log(_log_folder(load_config_of(arguments)), from_ns=session)
        found = compare(capture_datagrams(folder, session), logged)
    except TickerplantError as error:
        problems.append(str(error))
        return None
    problems += found.faults
    if found.fault_count > len(found.faults):
        problems.append(f"and {found.fault_count - len(found.faults)} more")
    if not found.is_proven and not problems:
        problems.append("the tick log has nothing of this session")
    return {"equal": found.equal, "unlogged": found.unlogged, "different": found.fault_count}


def _log_folder(loaded: "LoadedConfig") -> Path:
    from tickerplant.runtime.logfolder import log_folder

    return log_folder(loaded.config.ticklog.directory, loaded.state_directory)


def _print_report(report: dict[str, Any]) -> None:
    print(
        f"session {report['session']}: {report['segments']} segments, {report['records']} records, "
        f"{report['inputs']} inputs, {report['frames']} frames, up to {time_text(report['last_ns'])}"
    )
    if report["records_deleted"]:
        print(f"  its first {report['records_deleted']} records were deleted: it cannot be played")
    if report["torn_bytes"]:
        print(f"  {report['torn_bytes']} B at its end: torn off, or being written")
    if report.get("comparison"):
        comparison = report["comparison"]
        print(
            f"  played again: {comparison['equal']} datagrams as logged, {comparison['different']} not, "
            f"{comparison['unlogged']} not in the log"
        )
    for fault in report["faults"]:
        print(f"  FAULT  {fault}")


# --- export ---------------------------------------------------------------------------------------


def run_export(arguments: argparse.Namespace) -> int:
    """Write the lines; 1 if a part could not be read. Raises `ConfigurationError`, `CaptureError`."""
    from tickerplant.replay.export import FrameExport

    reader = _reader_of(arguments)
    export = FrameExport(
        arguments.shape, arguments.connection, from_ns=arguments.from_ns, to_ns=arguments.to_ns
    )
    lines = export.export(reader.records())
    if arguments.output is None:
        sys.stdout.buffer.writelines(lines)
    else:
        path = Path(arguments.output)
        try:
            with path.open("xb") as file:
                file.writelines(lines)
        except OSError as error:
            raise CaptureError(f"cannot write {path}: {error.strerror}: name a new file") from error
    print(f"{export.lines} frames, {export.skipped} left out (no JSON)", file=sys.stderr)
    return _told_faults(reader)
