"""What is in the tick log, and whether it is sound: the figures of `tickerplant log ls` and `log verify`.

The log is sound if every byte up to its end is a valid record and, in each session and stream, every sequence number
stands there once and in order. A torn tail is no damage: the plant is writing, or the next start cuts it. A recording
is read in the same way; what its recorder told as lost is missing there, and no fault.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tickerplant.core.logformat import (
    NextSeqs,
    Record,
    SegmentHeader,
    SegmentName,
    next_seqs_after,
    sent_ns_of,
)
from tickerplant.core.messages import Stream
from tickerplant.core.wire import Header, Kind, decode_header
from tickerplant.errors import WireError
from tickerplant.limits import LOG_FAULTS_SHOWN
from tickerplant.runtime.logfolder import segment_files
from tickerplant.runtime.logreader import LogBatch, LogReader, read_extent, read_header


class SegmentSummary(msgspec.Struct):
    """One segment. `first_seqs`: the next sequence of each stream at its start, `next_seqs` at its end.

    Times are those of sending, in nanoseconds since the epoch; None stands for what a damaged header does not tell.
    """

    file: str
    session: int
    ordinal: int
    size_bytes: int
    publisher: int | None
    first_ns: int | None
    last_ns: int | None
    first_seqs: NextSeqs | None
    next_seqs: NextSeqs | None


class StreamSummary(msgspec.Struct):
    """What the log holds of one stream of one session; sequences and times are 0 if that is nothing."""

    stream: str
    first_seq: int = 0
    last_seq: int = 0
    messages: int = 0
    datagrams: int = 0
    heartbeats: int = 0
    first_ns: int = 0
    last_ns: int = 0
    missing_messages: int = 0
    told_messages: int = 0
    """Of those missing, which a recorder told as lost."""
    repeated_messages: int = 0
    ended: bool = False


class SessionSummary(msgspec.Struct):
    """One session. `unlogged` (of the session before, as the header of this one tells): its log is not complete."""

    session: int
    publisher: int | None
    segments: int
    starts_at_segment: int
    streams: dict[int, StreamSummary]
    previous_session: int = 0
    is_previous_complete: bool = True

    @property
    def ended_in_order(self) -> bool:
        """Whether ends of session stand at the end of every stream."""
        return all(summary.ended for summary in self.streams.values())


class LogReport(msgspec.Struct):
    """All of a log. `faults` are lines of text, the first `LOG_FAULTS_SHOWN`; `fault_count` counts all of them."""

    folder: str
    sessions: list[SessionSummary] = []
    faults: list[str] = []
    fault_count: int = 0
    segments: int = 0
    records: int = 0
    size_bytes: int = 0
    torn_bytes: int = 0
    """After the last record: torn off, or being written just now."""
    torn_at: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, missing or repeated."""
        return self.fault_count == 0


class _Place(NamedTuple):
    """Where in the log something stands, for people."""

    segment: SegmentName
    offset: int

    def __str__(self) -> str:
        return f"{self.segment} offset {self.offset}"


ToldLost = Mapping[tuple[int, int], Sequence[tuple[int, int]]]
"""(session, stream) -> first and last sequence of what is known to be lost, in any order."""


class LogCheck:
    """Takes batches of a reader in their order; `report` grows."""

    def __init__(self, folder: Path, told_lost: ToldLost | None = None) -> None:
        """For the log, or the recording, in `folder`."""
        self.report = LogReport(str(folder))
        self._told_lost = told_lost or {}
        self._session: SessionSummary | None = None
        self._segment: SegmentName | None = None
        self._expected: dict[int, int] = {}

    def take(self, batch: LogBatch) -> None:
        """Account for the records and faults of one batch."""
        for fault in batch.faults:
            self._fault(str(fault))
        if batch.segment != self._segment:
            self._enter(batch)
        self.report.records += len(batch.records)
        for record in batch.records:
            self._take_record(batch.segment, record)

    def _fault(self, text: str) -> None:
        self.report.fault_count += 1
        if len(self.report.faults) < LOG_FAULTS_SHOWN:
            self.report.faults.append(text)

    def _enter(self, batch: LogBatch) -> None:
        header, name = batch.header, batch.segment
        self._segment = name
        self.report.segments += 1
        session = self._session
        if session is None or session.session != name.session:
            session = self._session = _new_session(name, header)
            self.report.sessions.append(session)
            self._expected = {}
        session.segments += 1
        if header is None:
            return
        for stream, first_seq in enumerate(header.first_seqs, start=1):
            if not first_seq:
                # A recording that has nothing of the stream yet.
                continue
            expected = self._expected.setdefault(stream, first_seq)
            if expected != first_seq:
                self._misplaced(stream, expected, first_seq, _Place(name, 0))
                self._expected[stream] = max(expected, first_seq)

    def _take_record(self, segment: SegmentName, record: Record) -> None:
        offset, datagram = record
        place = _Place(segment, offset)
        try:
            header = decode_header(datagram)
        except WireError as error:
            self._fault(f"{place}: no valid datagram: {error}")
            return
        if header.session != segment.session:
            self._fault(f"{place}: datagram of session {header.session}")
            return
        self._take_datagram(header, place)

    def _take_datagram(self, header: Header, place: _Place) -> None:
        assert self._session is not None
        stream = header.stream
        summary = self._session.streams[stream]
        expected = self._expected.get(stream, header.seq)
        if header.seq != expected:
            self._misplaced(stream, expected, header.seq, place)
        after = header.seq + header.message_count
        self._expected[stream] = max(expected, after)
        summary.first_ns = summary.first_ns or header.ts_send_ns
        summary.last_ns = max(summary.last_ns, header.ts_send_ns)
        summary.ended = header.kind == Kind.END_OF_SESSION
        if header.kind == Kind.DATA:
            summary.datagrams += 1
            summary.messages += header.message_count
            summary.first_seq = summary.first_seq or header.seq
            summary.last_seq = max(summary.last_seq, after - 1)
        elif header.kind == Kind.HEARTBEAT:
            summary.heartbeats += 1

    def _misplaced(self, stream: int, expected: int, seq: int, place: _Place) -> None:
        assert self._session is not None
        summary = self._session.streams[stream]
        name = f"session {self._session.session} stream {summary.stream}"
        if seq > expected:
            told = self._told_within(stream, expected, seq)
            summary.missing_messages += seq - expected
            summary.told_messages += told
            if told < seq - expected:
                self._fault(f"{name}: {expected} to {seq - 1} missing before {place}")
        else:
            summary.repeated_messages += expected - seq
            self._fault(f"{name}: {seq} again after {expected - 1} at {place}")

    def _told_within(self, stream: int, expected: int, seq: int) -> int:
        """How many of the sequences from `expected` up to but not including `seq` were told as lost."""
        assert self._session is not None
        told = 0
        for first, last in sorted(self._told_lost.get((self._session.session, stream), ())):
            if last >= expected and first < seq:
                told += min(last + 1, seq) - max(first, expected)
                expected = min(last + 1, seq)
        return told


def _new_session(name: SegmentName, header: SegmentHeader | None) -> SessionSummary:
    streams = {int(stream): StreamSummary(stream.name.lower()) for stream in Stream}
    summary = SessionSummary(name.session, None, 0, name.ordinal, streams)
    if header is not None:
        summary.publisher = header.publisher
        summary.previous_session = header.previous_session
        summary.is_previous_complete = header.is_previous_complete
    return summary


def verify_log(
    folder: Path,
    tell_progress: Callable[[int, int], None] | None = None,
    told_lost: ToldLost | None = None,
) -> LogReport:
    """Read the log in `folder` as far as it is written now. `tell_progress(read, total)` is called with bytes.

    `told_lost`: what a recording tells as lost. Raises `OSError` if it cannot be read.
    """
    files = segment_files(folder)
    total = sum(file.size_bytes for file in files)
    end = (files[-1].name, files[-1].size_bytes) if files else None
    check = LogCheck(folder, told_lost)
    read_bytes = 0
    with LogReader(folder) as reader:
        while (batch := reader.read()) is not None:
            check.take(batch)
            read_bytes += sum(len(datagram) for _offset, datagram in batch.records)
            if tell_progress is not None:
                tell_progress(min(read_bytes, total), total)
            if end is not None and (batch.segment, batch.position.offset) >= end:
                break
        report = check.report
        position = reader.position
    report.size_bytes = total
    if position is not None and end is not None and position.segment == end[0]:
        report.torn_bytes = max(0, end[1] - position.offset)
        report.torn_at = str(_Place(*end[:1], position.offset)) if report.torn_bytes else ""
    return report


def list_segments(folder: Path) -> list[SegmentSummary]:
    """Every segment; only the last one of each session is read through. Raises `OSError`."""
    summaries: list[SegmentSummary] = []
    files = segment_files(folder)
    for file, following in zip(files, [*files[1:], None], strict=True):
        is_last = following is None or following.name.session != file.name.session
        try:
            summary = _summary_of(folder, file.name, file.size_bytes, is_last=is_last)
        except FileNotFoundError:
            continue
        _complete(summaries, summary)
        summaries.append(summary)
    return summaries


def _summary_of(
    folder: Path, name: SegmentName, size_bytes: int, *, is_last: bool
) -> SegmentSummary:
    header = read_header(folder, name)
    summary = SegmentSummary(
        file=str(name),
        session=name.session,
        ordinal=name.ordinal,
        size_bytes=size_bytes,
        publisher=header.publisher if header is not None else None,
        first_ns=header.created_ns if header is not None else None,
        last_ns=None,
        first_seqs=header.first_seqs if header is not None else None,
        next_seqs=None,
    )
    if is_last:
        extent = read_extent(folder, name)
        if header is not None:
            summary.next_seqs = next_seqs_after(header.first_seqs, extent.last)
        summary.last_ns = max(map(sent_ns_of, extent.last.values()), default=summary.first_ns)
    return summary


def _complete(earlier: list[SegmentSummary], following: SegmentSummary) -> None:
    """A segment ends where the next one of its session begins."""
    if not earlier or earlier[-1].session != following.session:
        return
    if earlier[-1].ordinal + 1 == following.ordinal:
        earlier[-1].next_seqs = following.first_seqs
        earlier[-1].last_ns = following.first_ns
