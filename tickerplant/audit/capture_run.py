"""One session's log beside the capture that belongs to it, input by input."""

from collections.abc import Iterator
from pathlib import Path

from tickerplant.audit.capture_audit import CaptureAudit
from tickerplant.audit.capture_inputs import Group, groups_of
from tickerplant.audit.exchange_record import ExchangeRecord
from tickerplant.audit.findings import EXCHANGE, Cause, Findings
from tickerplant.audit.log_audit import LogAudit
from tickerplant.audit.replay_check import ReplayCheck
from tickerplant.audit.sources import Figures
from tickerplant.errors import ConfigurationError, DamagedCaptureError
from tickerplant.runtime.capturereader import CaptureReader, capture_sessions
from tickerplant_kalshi.inputs import Begin, Closed, Frames, Opened, SessionBegun


def capture_of(folder: Path, session: int) -> int:
    """The capture that has a session: named by it, or by one before it that went over. Raises `ConfigurationError`."""
    earlier = [one for one in capture_sessions(folder) if one <= session]
    if not earlier:
        raise ConfigurationError(
            f"{folder} holds no capture of session {session}: name another folder with --capture, or leave it out"
        )
    return earlier[-1]


class CaptureRun:
    """Reads the capture and drives the comparison."""

    def __init__(
        self,
        folder: Path,
        session: int,
        findings: Findings,
        log: LogAudit,
        datagrams: Iterator[bytes],
    ) -> None:
        """Raises `ConfigurationError` if the folder has no capture of the session, `OSError`."""
        self._session = session
        self._findings = findings
        self._log = log
        self._datagrams = datagrams
        self._reader = CaptureReader(folder, capture_of(folder, session))
        self._current = 0
        self._seen_faults = 0
        self._record: ExchangeRecord
        self._audit: CaptureAudit
        self._replay: ReplayCheck | None = None

    def run(self) -> None:
        """To the end of the capture and of the log. Raises `OSError`."""
        begin: Begin | None = None
        groups = groups_of(self._reader.records())
        while True:
            try:
                group = next(groups, None)
            except DamagedCaptureError as error:
                self._findings.add(EXCHANGE, Cause.DISK, str(error))
                break
            if group is None:
                break
            if not self._current:
                first = group.inputs[0]
                begin = first if type(first) is Begin else None
                self._begin(begin)
            self._tell_faults()
            self._take(group)
        if not self._current:
            self._begin(None)
        self._tell_faults()
        self._audit.finish()

    def _begin(self, begin: Begin | None) -> None:
        findings = self._findings
        whole = begin is not None
        if begin is None:
            findings.add(EXCHANGE, Cause.RETENTION, "the beginning of the capture is missing")
        else:
            self._replay = ReplayCheck(findings, begin)
        self._current = self._reader.session
        yes_price = begin.use_yes_price if begin is not None else False
        self._record = ExchangeRecord(findings, yes_price=yes_price, whole=whole)
        self._audit = CaptureAudit(
            findings,
            self._log,
            self._datagrams,
            self._record,
            all_open=begin.selection.all_open if begin is not None else False,
            whole=whole,
        )

    def _tell_faults(self) -> None:
        """What could not be read up to here is a hole in the inputs."""
        faults = self._reader.faults[self._seen_faults :]
        self._seen_faults += len(faults)
        for fault in faults:
            self._findings.add(EXCHANGE, Cause.DISK, f"capture {fault}")
        if faults and self._current:
            self._audit.lose_inputs()
            if self._replay is not None:
                self._replay.stop()

    def _take(self, group: Group) -> None:
        record, replay = self._record, self._replay
        for item in group.inputs:
            if type(item) is Frames:
                record.now_ns = item.now_ns
                for frame in item.frames:
                    record.frame(item.connection, frame)
            elif type(item) is Opened:
                record.now_ns = item.now_ns
                record.opened(item.connection)
            elif type(item) is Closed:
                record.now_ns = item.now_ns
                record.closed(item.connection, item.reason)
            elif type(item) is SessionBegun:
                self._current = item.session
                record.begin_session()
            if replay is not None and type(item) is not Begin:
                replay.apply(item)
        if self._current == self._session and group.now_ns:
            self._audit.flush(group.now_ns)
        else:
            record.begin_flush()
        if replay is None:
            return
        audit = self._audit
        is_flush = self._current == self._session and group.now_ns
        if is_flush and not audit.is_past_log and not audit.is_passed_over:
            replay.compare(audit.taken)
        else:
            replay.forget()

    def figures(self) -> Figures:
        """What was counted."""
        record, audit, replay = self._record, self._audit, self._replay
        figures: Figures = {
            "frames": record.frames,
            "subscriptions": record.sids,
            "numbered frames": record.numbers,
            "numbers missing": record.missing,
            "repeated": record.duplicates,
            "level changes equal": audit.changes,
            "trades equal": audit.trades,
            "tickers equal": audit.tickers,
            "books compared": audit.books_compared,
            "flushes": audit.flushes,
        }
        if replay is not None:
            figures["inputs played again"] = replay.inputs
            figures["datagrams equal when played again"] = replay.datagrams
        return figures
