"""The tick log of one session, from its files: its datagrams in order, and what the files around it tell of it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tickerplant.audit.findings import LOG, Cause, Findings
from tickerplant.audit.log_audit import LogAudit
from tickerplant.audit.sources import Source
from tickerplant.core.logformat import (
    FIRST_SEQS,
    NO_SEQS,
    STREAM_COUNT,
    LogPosition,
    NextSeqs,
    SegmentHeader,
    SegmentName,
    next_seqs_after,
)
from tickerplant.errors import ConfigurationError
from tickerplant.runtime.logfolder import segment_names
from tickerplant.runtime.logreader import (
    FaultKind,
    LogBatch,
    LogFault,
    LogReader,
    read_extent,
    read_header,
)

TellProgress = Callable[[int, int], None]
"""(done, total)"""


class SessionLog:
    """One session of a log folder. `begin_audit` first, then `datagrams`, then `judge_end`."""

    def __init__(self, folder: Path, session: int | None) -> None:
        """`session` None: the newest. Raises `ConfigurationError` if it is not there, `OSError`."""
        names = segment_names(folder)
        if session is None and names:
            session = names[-1].session
        self.names = [name for name in names if name.session == session]
        if session is None or not self.names:
            known = ", ".join(str(one) for one in sorted({name.session for name in names}))
            raise ConfigurationError(
                f"{folder} holds no session {session or ''}: it has {known or 'none'} (tickerplant log ls)"
            )
        self.folder = folder
        self.session = session
        self.torn_bytes = 0
        self.size_bytes = sum((folder / str(name)).stat().st_size for name in self.names)
        self._all_names = names
        self.header = read_header(folder, self.names[0])
        self.successor = self._read_successor()

    def _read_successor(self) -> SegmentHeader | None:
        for name in self._all_names:
            if name.session > self.session:
                return read_header(self.folder, name)
        return None

    # --- beginning --------------------------------------------------------------------------------

    def begin_audit(self, findings: Findings, sources: Sequence[Source] = ()) -> LogAudit:
        """The audit of its datagrams, which knows what was before, and of `sources` beside them."""
        header = self.header
        if header is None:
            findings.add(LOG, Cause.DISK, f"the header of {self.names[0]} is damaged")
        unknown = FIRST_SEQS if self.names[0].ordinal == 1 else NO_SEQS
        first_seqs = unknown if header is None else header.first_seqs
        is_first = header is not None and header.ordinal == 1
        previous = header.previous_session if header is not None and is_first else 0
        return LogAudit(
            findings,
            first_seqs=first_seqs,
            begin_cause=self._begin_cause(),
            begin_ns=0 if header is None else header.created_ns,
            previous_session=previous,
            final_seqs=self._final_seqs_of(previous) if previous else None,
            sources=sources,
        )

    def _begin_cause(self) -> Cause:
        """Retention begins with the oldest: while an older session is there, somebody else deleted the beginning."""
        is_oldest = self._all_names[0].session == self.session
        return Cause.RETENTION if is_oldest else Cause.DISK

    def _final_seqs_of(self, session: int) -> NextSeqs | None:
        """How far the log of another session comes; None if that cannot be told."""
        names = [name for name in self._all_names if name.session == session]
        if not names:
            return None
        try:
            extent = read_extent(self.folder, names[-1])
        except FileNotFoundError:
            return None
        return (
            None
            if extent.header is None
            else next_seqs_after(extent.header.first_seqs, extent.last)
        )

    # --- datagrams --------------------------------------------------------------------------------

    def datagrams(
        self, audit: LogAudit, findings: Findings, tell_progress: TellProgress | None = None
    ) -> Iterator[bytes]:
        """In the order of the log, as far as it is written now; `audit` is told of what cannot be read.

        Raises `OSError`.
        """
        done_bytes = 0
        with LogReader(self.folder, LogPosition(*self.names[0])) as reader:
            while (batch := reader.read()) is not None:
                self._take_faults(batch, audit, findings)
                if batch.segment.session != self.session:
                    return
                for _offset, datagram in batch.records:
                    yield datagram
                    done_bytes += len(datagram)
                if tell_progress is not None:
                    tell_progress(min(done_bytes, self.size_bytes), self.size_bytes)
            position = reader.position
        self._measure_tail(position)

    def _take_faults(self, batch: LogBatch, audit: LogAudit, findings: Findings) -> None:
        for fault in batch.faults:
            if fault.start.session != self.session:
                continue
            cause = self._cause_of(fault)
            findings.add(LOG, cause, str(fault))
            audit.expect_hole(cause)

    def _cause_of(self, fault: LogFault) -> Cause:
        """Damage at the very end, before another run of the machine, is what the power loss took."""
        is_last = fault.end.session != self.session or (
            fault.kind is FaultKind.DAMAGED and fault.start.segment == self.names[-1]
        )
        return Cause.POWER_LOSS if is_last and self._machine_restarted() else Cause.DISK

    def _machine_restarted(self) -> bool:
        before, after = self.header, self.successor
        return before is not None and after is not None and before.boot_id != after.boot_id

    def _measure_tail(self, position: LogPosition | None) -> None:
        """What stands after the last record of the newest segment: torn off, or being written."""
        last: SegmentName = self.names[-1]
        if position is not None and position.segment == last:
            size = (self.folder / str(last)).stat().st_size
            self.torn_bytes = max(0, size - position.offset)

    # --- end --------------------------------------------------------------------------------------

    def judge_end(self, audit: LogAudit, findings: Findings) -> None:
        """Whether more was sent than is here, as the next session's log tells."""
        successor, ours = self.successor, audit.streams.next_seqs
        if successor is None or audit.streams.ended:
            return
        cause = Cause.POWER_LOSS if self._machine_restarted() else Cause.LOG_OFF
        if successor.previous_session != self.session:
            findings.add(
                LOG,
                Cause.UNKNOWN,
                f"how far the session came is not known: the next one in the log follows session "
                f"{successor.previous_session}",
            )
            return
        told = successor.previous_seqs
        longer = False
        for stream in range(1, STREAM_COUNT + 1):
            if told[stream - 1] > ours[stream - 1]:
                longer = True
                findings.add(
                    LOG,
                    cause,
                    f"the last {told[stream - 1] - ours[stream - 1]} messages are not in the log",
                    stream=stream,
                    seqs=(ours[stream - 1], told[stream - 1] - 1),
                    times_ns=(audit.streams.last_ns(stream), successor.created_ns),
                )
        if not longer and not successor.is_previous_complete:
            findings.add(
                LOG,
                cause,
                "the session may have sent more than is in the log",
                times_ns=(audit.last_ns, successor.created_ns),
            )
