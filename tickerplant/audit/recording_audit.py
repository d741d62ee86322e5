"""A recording against the log: every message that was logged stands in it once, equal, in order. Pure but for reading.

What is missing has the cause that the recorder was told (`Gap`); what nobody told the recorder has lost by itself.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tickerplant.audit.findings import Cause, Findings
from tickerplant.audit.sources import Figures
from tickerplant.core.messages import AnyMessage, Stream
from tickerplant.core.wire import decode_body, decode_header
from tickerplant.errors import WireError
from tickerplant_subscriber.recording_files import is_being_written
from tickerplant_subscriber.recording_reader import (
    read_recording,
    recorded_events,
    recorded_sessions,
)

Messages = Sequence[AnyMessage | None]
_CAUSES = {
    "upstream": Cause.UPSTREAM,
    "plant": Cause.PLANT,
    "network": Cause.NETWORK,
    "kernel_drop": Cause.KERNEL_DROP,
    "consumer": Cause.CONSUMER,
    "late_join": Cause.LATE_JOIN,
    "stream_dead": Cause.NETWORK,
}


class _Hole:
    """Logged messages that are not in the recording, consecutive so far."""

    def __init__(self, from_seq: int, from_ns: int) -> None:
        self.from_seq = from_seq
        self.to_seq = from_seq
        self.from_ns = from_ns
        self.to_ns = from_ns


class _Line:
    """One stream of the recording, read as the log goes on."""

    def __init__(self, runs: Iterator[tuple[int, Messages]]) -> None:
        self._runs = runs
        self.seq = 0
        """Sequence of the first of `messages`."""
        self.messages: Messages = ()
        self.hole: _Hole | None = None
        self.is_over = False
        self.advance()

    def advance(self) -> None:
        """To the next run of consecutive messages."""
        run = next(self._runs, None)
        if run is None:
            self.is_over = True
            self.messages = ()
        else:
            self.seq, self.messages = run

    def drop(self, count: int) -> None:
        """The first `count` have been looked at."""
        self.seq += count
        self.messages = self.messages[count:]
        if not self.messages:
            self.advance()


class RecordingAudit:
    """The source `where` = the recording's folder."""

    def __init__(self, folder: Path, session: int, findings: Findings) -> None:
        """Raises `RecordingError` if the folder holds no recording."""
        self.where = str(folder)
        self.equal = 0
        self.only_here = 0
        self.behind = 0
        self._findings = findings
        self._folder = folder
        self._session = session
        self._faults: set[str] = set()
        self._is_running = is_being_written(folder) and session == recorded_sessions(folder)[-1]
        self._told = [
            (event.stream, event.from_seq, event.to_seq, _CAUSES.get(event.cause, Cause.UNKNOWN))
            for event in recorded_events(folder, session)
            if event.kind == "Gap"
        ]
        self._lines = {stream: _Line(self._read(stream)) for stream in Stream}

    # --- the recording ----------------------------------------------------------------------------

    def _read(self, stream: Stream) -> Iterator[tuple[int, Messages]]:
        """(sequence, messages) of a stream in the order of the recording, what is there twice left out."""
        next_seq = 1
        for _sent_ns, datagram in read_recording(
            self._folder,
            session=self._session,
            streams=(stream,),
            tell_fault=self._take_fault,
        ):
            try:
                header = decode_header(datagram)
                messages: Messages = () if header.kind else decode_body(datagram, header)
            except WireError as error:
                self._wrong(Cause.DISK, f"a record is no valid datagram: {error}", stream)
                continue
            if messages and header.seq < next_seq:
                again = min(next_seq - header.seq, len(messages))
                self._wrong(
                    Cause.CONSUMER,
                    f"{again} messages are there twice or out of order",
                    stream,
                    (header.seq, header.seq + again - 1),
                )
                messages = messages[again:]
            if messages:
                next_seq = header.seq + header.message_count
                yield next_seq - len(messages), messages

    def _take_fault(self, fault: str) -> None:
        """Every segment is read once for each stream; its damage is told once."""
        if fault not in self._faults:
            self._faults.add(fault)
            self._wrong(Cause.DISK, fault, 0)

    # --- the log ----------------------------------------------------------------------------------

    def take(self, stream: int, first_seq: int, sent_ns: int, messages: Messages) -> None:
        """Consecutive messages of the log."""
        line = self._lines[Stream(stream)]
        seq, end = first_seq, first_seq + len(messages)
        while seq < end:
            if line.is_over or line.seq >= end:
                self._miss(line, stream, seq, end, sent_ns)
                return
            if line.seq < seq:
                skipped = min(seq - line.seq, len(line.messages))
                self.only_here += skipped
                line.drop(skipped)
            elif line.seq > seq:
                self._miss(line, stream, seq, line.seq, sent_ns)
                seq = line.seq
            else:
                seq += self._compare(line, stream, messages[seq - first_seq :])

    def _compare(self, line: _Line, stream: int, messages: Messages) -> int:
        """The beginning of both; how many were looked at."""
        self._close_hole(line, stream)
        count = min(len(messages), len(line.messages))
        logged, kept = messages[:count], line.messages[:count]
        if logged == kept:
            self.equal += count
        else:
            for offset, (wanted, found) in enumerate(zip(logged, kept, strict=True)):
                if wanted == found:
                    self.equal += 1
                else:
                    seq = line.seq + offset
                    text = "a message in the recording is not the one in the log"
                    ticker = "" if wanted is None else wanted.ticker
                    self._wrong(Cause.CONSUMER, text, stream, (seq, seq), ticker=ticker)
        line.drop(count)
        return count

    # --- holes ------------------------------------------------------------------------------------

    def _miss(self, line: _Line, stream: int, from_seq: int, end: int, sent_ns: int) -> None:
        hole = line.hole
        if hole is not None and hole.to_seq + 1 != from_seq:
            self._close_hole(line, stream)
            hole = None
        if hole is None:
            hole = line.hole = _Hole(from_seq, sent_ns)
        hole.to_seq = end - 1
        hole.to_ns = sent_ns

    def _close_hole(self, line: _Line, stream: int) -> None:
        """Each part of it that was told for itself, and each that was not."""
        hole, line.hole = line.hole, None
        if hole is None:
            return
        seq = hole.from_seq
        for of_stream, from_seq, to_seq, cause in self._told:
            if of_stream != stream or to_seq < seq or from_seq > hole.to_seq:
                continue
            if from_seq > seq:
                self._tell_hole(hole, stream, seq, from_seq - 1, None, line)
            last = min(to_seq, hole.to_seq)
            self._tell_hole(hole, stream, max(seq, from_seq), last, cause, line)
            seq = last + 1
        if seq <= hole.to_seq:
            self._tell_hole(hole, stream, seq, hole.to_seq, None, line)

    def _tell_hole(
        self,
        hole: _Hole,
        stream: int,
        from_seq: int,
        to_seq: int,
        cause: Cause | None,
        line: _Line,
    ) -> None:
        count = to_seq - from_seq + 1
        text = f"{count} messages are not in the recording"
        if cause is None and line.is_over:
            if self._is_running:
                self.behind += count
                return
            text = f"the recording ends here: {count} messages of the log follow"
        elif cause is None:
            text += ", and were not told as lost"
        if cause is None:
            cause = Cause.DISK if self._faults else Cause.CONSUMER
        self._wrong(cause, text, stream, (from_seq, to_seq), times_ns=(hole.from_ns, hole.to_ns))

    def finish(self) -> None:
        """The log is at its end; what the recording has beyond it was sent and not logged."""
        for stream, line in self._lines.items():
            self._close_hole(line, stream)
            while not line.is_over:
                self.only_here += len(line.messages)
                line.drop(len(line.messages))

    def figures(self) -> Figures:
        """What was counted."""
        return {
            "messages equal": self.equal,
            "only in the recording": self.only_here,
            "told as lost": len(self._told),
            "not yet recorded": self.behind,
        }

    def _wrong(
        self,
        cause: Cause,
        what: str,
        stream: int,
        seqs: tuple[int, int] = (0, 0),
        *,
        ticker: str = "",
        times_ns: tuple[int, int] | None = None,
    ) -> None:
        self._findings.add(
            self.where, cause, what, stream=stream, ticker=ticker, seqs=seqs, times_ns=times_ns
        )
