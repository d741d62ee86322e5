"""`tickerplant log`: lists, prints and verifies the tick log, also while the plant writes it."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tickerplant.commands.options import (
    add_actions,
    add_command,
    add_config_options,
    load_config_of,
)
from tickerplant.errors import EXIT_FAILURE, EXIT_OK, TickLogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickerplant.core.wire import Header
    from tickerplant.runtime.logcheck import LogReport, SegmentSummary, SessionSummary
    from tickerplant.runtime.logreader import LogBatch, LogReader

_STREAM_NAMES = ("trade", "bbo", "ticker", "delta", "status")

_EXAMPLE = """\
examples:
  tickerplant log ls                                        segments, sessions, sequences
  tickerplant log cat --session last --stream trade         trades since the plant's last start
  tickerplant log cat --ticker 'KXBTC*' --format json --follow | jq .seq
  tickerplant log verify && echo sound

exit codes: 0 ok, 1 damaged or not readable, 2 usage or configuration"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "log",
        summary="list, print and verify the tick log",
        description="What the plant has published, as it stands in the tick log. Reading never disturbs the plant.",
        epilog=_EXAMPLE,
    )
    actions = (
        ("ls", "list segments, sessions and who reads them", run_ls),
        ("cat", "print the messages in the order of sending", run_cat),
        ("verify", "prove that nothing is damaged, missing or repeated", run_verify),
    )
    for name, action in add_actions(parser, _EXAMPLE, actions):
        action.add_argument(
            "--format", choices=("text", "json"), default="text", help="default: %(default)s"
        )
        action.add_argument(
            "--directory", metavar="DIR", help="folder of the log (default: as configured)"
        )
        if name == "cat":
            _add_cat_options(action)
        add_config_options(action)


def _add_cat_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--session",
        type=_parse_session,
        metavar="N",
        help="only this session, by its number or `last` (default: all)",
    )
    parser.add_argument(
        "--stream",
        choices=_STREAM_NAMES,
        action="append",
        default=[],
        dest="streams",
        help="only this stream; may be given several times (default: all)",
    )
    parser.add_argument(
        "--ticker",
        metavar="GLOB",
        action="append",
        default=[],
        dest="tickers",
        help="only markets like this; may be given several times (default: all)",
    )
    parser.add_argument("--follow", action="store_true", help="go on with what is being written")


def _parse_session(text: str) -> int:
    """The number; -1 for `last`. Raises what argparse turns into a usage error."""
    if text == "last":
        return -1
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a session: give its number, or last")
    return int(text)


def _folder_of(arguments: argparse.Namespace) -> Path:
    """Where the log is. Raises `ConfigurationError`, or `TickLogError` if there is none."""
    from tickerplant.runtime.logfolder import log_folder, require_folder

    if arguments.directory:
        return require_folder(Path(arguments.directory).expanduser())
    loaded = load_config_of(arguments)
    return require_folder(log_folder(loaded.config.ticklog.directory, loaded.state_directory))


def _unreadable(folder: Path, error: OSError) -> TickLogError:
    return TickLogError(f"tick log {folder}: {error.filename or ''} {error.strerror}")


# --- ls -------------------------------------------------------------------------------------------


def run_ls(arguments: argparse.Namespace) -> int:
    """Print the list. Raises `ConfigurationError`, `TickLogError`."""
    import msgspec

    from tickerplant.runtime.logcheck import list_segments
    from tickerplant.runtime.logfolder import read_owner, read_positions

    folder = _folder_of(arguments)
    try:
        segments, positions = list_segments(folder), read_positions(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    owner = read_owner(folder)
    if arguments.format == "json":
        consumers = {name: at and at._asdict() for name, at in positions.items()}
        listing = {
            "folder": str(folder),
            "owner": owner,
            "segments": segments,
            "consumers": consumers,
        }
        print(msgspec.json.encode(listing).decode())
        return EXIT_OK
    _print_segments(segments)
    for name, at in positions.items():
        print(f"{name} is at {'an unreadable position' if at is None else _place_text(at)}")
    if owner is not None:
        print(f"written by process {owner.pid}, session {owner.session}, log {owner.log}")
    total = sum(segment.size_bytes for segment in segments)
    print(f"{folder}: {len(segments)} segments, {total / 1e6:,.1f} MB")
    return EXIT_OK


def _place_text(position: Any) -> str:
    return f"session {position.session} segment {position.ordinal} offset {position.offset}"


def _print_segments(segments: "Sequence[SegmentSummary]") -> None:
    session = 0
    for segment in segments:
        if segment.session != session:
            session = segment.session
            publisher = "?" if segment.publisher is None else segment.publisher
            print(f"session {session}  publisher {publisher}")
            columns = "".join(f"{name:>24}" for name in _STREAM_NAMES)
            print(f"{'segment':>9}{'bytes':>15}  {'from (UTC)':<27}{'to':<27}{columns}")
        print(_segment_line(segment))


def _segment_line(segment: "SegmentSummary") -> str:
    times = "".join(f"{_date_text(at):<27}" for at in (segment.first_ns, segment.last_ns))
    if segment.first_seqs is None or segment.next_seqs is None:
        ranges = "  header damaged" if segment.first_seqs is None else "  ?"
    else:
        pairs = zip(segment.first_seqs, segment.next_seqs, strict=True)
        ranges = "".join(f"{_range_text(first, after):>24}" for first, after in pairs)
    return f"{segment.ordinal:>9}{segment.size_bytes:>15,}  {times}{ranges}"


def _range_text(first: int, after: int) -> str:
    return f"{first}-{after - 1}" if after > first else "-"


def _date_text(time_ns: int | None) -> str:
    from datetime import UTC, datetime

    if time_ns is None:
        return "?"
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds // 1000:06d}"


# --- verify ---------------------------------------------------------------------------------------


def run_verify(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if the log is damaged. Raises `ConfigurationError`, `TickLogError`."""
    import msgspec

    from tickerplant.commands.progress import progress_bar
    from tickerplant.runtime.logcheck import verify_log

    folder = _folder_of(arguments)
    try:
        report = verify_log(folder, progress_bar(), _told_lost(folder))
    except OSError as error:
        raise _unreadable(folder, error) from error
    if arguments.format == "json":
        print(msgspec.json.encode(report).decode())
    else:
        _print_report(report)
    return EXIT_OK if report.is_sound else EXIT_FAILURE


def _told_lost(folder: Path) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """What the recorder told as lost, if this is a recording; nothing of a tick log. Raises `RecordingError`."""
    from tickerplant.runtime.logfolder import segment_names
    from tickerplant_subscriber.recording_reader import recorded_events

    told: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for session in {name.session for name in segment_names(folder)}:
        for event in recorded_events(folder, session):
            if event.kind == "Gap":
                told.setdefault((session, event.stream), []).append((event.from_seq, event.to_seq))
    return told


def _print_report(report: "LogReport") -> None:
    for session in report.sessions:
        _print_session(session)
    for fault in report.faults:
        print(f"FAULT  {fault}")
    if report.fault_count > len(report.faults):
        print(f"FAULT  and {report.fault_count - len(report.faults)} more")
    if report.torn_bytes:
        print(f"{report.torn_bytes} B after {report.torn_at}: torn off, or being written")
    verdict = "ok" if report.is_sound else f"damaged: {report.fault_count} faults"
    print(
        f"{verdict}: {len(report.sessions)} sessions, {report.segments} segments, "
        f"{report.records} records, {report.size_bytes} B"
    )


def _print_session(session: "SessionSummary") -> None:
    end = "ended in order" if session.ended_in_order else "no end of session"
    cut = (
        ""
        if session.starts_at_segment == 1
        else f", begins at segment {session.starts_at_segment}, older ones were deleted"
    )
    print(f"session {session.session}: {session.segments} segments, {end}{cut}")
    if session.previous_session and not session.is_previous_complete:
        print(f"  session {session.previous_session} before it may have sent more than was logged")
    for stream in session.streams.values():
        times = f"{_date_text(stream.first_ns)} to {_date_text(stream.last_ns)}"
        print(
            f"  {stream.stream:<7}{_range_text(stream.first_seq or 1, stream.last_seq + 1):>24}"
            f"{stream.messages:>12} messages{stream.datagrams:>10} datagrams"
            f"{stream.heartbeats:>9} heartbeats  {times if stream.first_ns else '-'}"
        )
        if stream.told_messages:
            print(f"{stream.told_messages:>43} missing, told by the recorder as lost")


# --- cat ------------------------------------------------------------------------------------------


def run_cat(arguments: argparse.Namespace) -> int:
    """Print messages; 1 if a part could not be read. Raises `ConfigurationError`, `TickLogError`."""
    from tickerplant.core.logformat import LogPosition
    from tickerplant.runtime.logfolder import segment_names
    from tickerplant.runtime.logreader import LogReader

    folder = _folder_of(arguments)
    try:
        names = segment_names(folder)
        session = arguments.session
        if session == -1 and names:
            session = names[-1].session
        start = next((name for name in names if session in (None, name.session)), None)
        if session is not None and start is None:
            raise TickLogError(f"{folder} holds no such session: see tickerplant log ls")
        printer = _Printer(arguments, session)
        position = None if start is None else LogPosition(*start)
        with LogReader(folder, position) as reader:
            _print_all(reader, printer, follow=arguments.follow)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise _unreadable(folder, error) from error
    return EXIT_FAILURE if printer.faults else EXIT_OK


def _print_all(reader: "LogReader", printer: "_Printer", *, follow: bool) -> None:
    import time

    from tickerplant.limits import LOG_FOLLOW_INTERVAL_S

    while not printer.is_done:
        batch = reader.read()
        if batch is not None:
            printer.print_batch(batch)
        elif follow:
            sys.stdout.flush()
            time.sleep(LOG_FOLLOW_INTERVAL_S)
        else:
            return


class _Printer:
    """Prints what was asked for."""

    def __init__(self, arguments: argparse.Namespace, session: int | None) -> None:
        from tickerplant_subscriber.filters import TickerFilter

        self.faults = 0
        self.is_done = False
        self._session = session
        self._is_json = arguments.format == "json"
        self._streams = frozenset(
            _STREAM_NAMES.index(name) + 1 for name in arguments.streams or _STREAM_NAMES
        )
        self._wanted = TickerFilter(arguments.tickers or ("*",))
        self._has_tickers = bool(arguments.tickers)
        self._told_session = 0
        self._ended: set[int] = set()

    def print_batch(self, batch: "LogBatch") -> None:
        """Print one batch; what is damaged goes to standard error."""
        from tickerplant.core.wire import decode_header
        from tickerplant.errors import WireError

        for fault in batch.faults:
            self._tell_fault(str(fault))
        if self._session not in (None, batch.segment.session):
            self.is_done = True
            return
        if batch.segment.session != self._told_session:
            self._told_session = batch.segment.session
            self._ended.clear()
            if not self._is_json:
                _write(f"*** session {self._told_session}")
        for offset, datagram in batch.records:
            try:
                header = decode_header(datagram)
                if header.stream in self._streams:
                    self._print_datagram(header, datagram)
            except WireError as error:
                self._tell_fault(f"{batch.segment} offset {offset}: {error}")

    def _tell_fault(self, text: str) -> None:
        self.faults += 1
        sys.stdout.flush()
        print(f"tickerplant: {text}", file=sys.stderr)

    def _print_datagram(self, header: "Header", datagram: bytes) -> None:
        from tickerplant.core.wire import Kind, decode_body

        if header.kind == Kind.END_OF_SESSION:
            self._print_end(header)
        elif header.kind == Kind.DATA:
            for seq, message in enumerate(decode_body(datagram, header), header.seq):
                if message is None or (self._has_tickers and not message.ticker):
                    continue
                if self._wanted[message.ticker]:
                    self._print_message(header, seq, message)

    def _print_message(self, header: "Header", seq: int, message: Any) -> None:
        import msgspec

        from tickerplant.commands.item_text import as_text

        if not self._is_json:
            _write(f"{seq:>12}  {as_text(message)}")
            return
        fields = {
            "session": header.session,
            "stream": _STREAM_NAMES[header.stream - 1],
            "seq": seq,
            "ts_send_ns": header.ts_send_ns,
            "message": type(message).__name__,
        }
        _write(msgspec.json.encode(fields | msgspec.structs.asdict(message)).decode())

    def _print_end(self, header: "Header") -> None:
        """Once per stream, though it is sent four times."""
        import msgspec

        if header.stream in self._ended:
            return
        self._ended.add(header.stream)
        stream = _STREAM_NAMES[header.stream - 1]
        if self._is_json:
            fields = {
                "session": header.session,
                "stream": stream,
                "seq": header.seq,
                "event": "EndOfSession",
            }
            _write(msgspec.json.encode(fields).decode())
        else:
            _write(f"*** end of session on {stream}, next sequence {header.seq}")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
