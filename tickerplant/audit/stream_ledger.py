"""Sequences of one session's streams: each number once, from 1 to the end that is told. Pure."""

from tickerplant.audit.findings import LOG, Cause, Findings
from tickerplant.core.logformat import FIRST_SEQS, NextSeqs
from tickerplant.core.messages import Stream
from tickerplant.core.wire import Header, Kind, decode_heartbeat


class _Line:
    """One stream."""

    __slots__ = ("datagrams", "end_ns", "ended", "expected", "hole_cause", "last_g", "last_ns")

    def __init__(self, expected: int) -> None:
        self.expected = expected
        # 0: not known, the first datagram tells. -1: not known, the next heartbeat tells.
        self.datagrams = 0 if expected == 1 else -1
        self.ended = False
        self.end_ns = 0
        self.last_g = 0
        self.last_ns = 0
        self.hole_cause = Cause.PLANT


class StreamLedger:
    """Takes the datagrams of the log in their order; says which messages of them are new."""

    def __init__(
        self,
        findings: Findings,
        first_seqs: NextSeqs = FIRST_SEQS,
        begin_cause: Cause = Cause.RETENTION,
        begin_ns: int = 0,
    ) -> None:
        """`first_seqs`: the next sequence of each stream where the log begins; 0: not known.

        `begin_cause` says why it begins there, `begin_ns` when that was.
        """
        self._findings = findings
        self._begin_cause = begin_cause
        self._lines = {
            int(stream): _Line(first) for stream, first in zip(Stream, first_seqs, strict=True)
        }
        self.messages = dict.fromkeys(self._lines, 0)
        self.heartbeats = 0
        self.missing_before = 0
        """Messages that were missing before the datagram taken last."""
        for stream, first in enumerate(first_seqs, start=1):
            if first > 1:
                self._begin_at(stream, first, begin_ns)

    def _begin_at(self, stream: int, first: int, begin_ns: int) -> None:
        """The number of a session is the time of its start."""
        self._findings.add(
            LOG,
            self._begin_cause,
            f"the first {first - 1} messages were deleted",
            stream=stream,
            seqs=(1, first - 1),
            times_ns=(min(self._findings.session, begin_ns), begin_ns),
        )

    def expect_hole(self, cause: Cause) -> None:
        """A part of the log cannot be read here: what is missing next on each stream is missing because of it."""
        for line in self._lines.values():
            line.hole_cause = cause
            line.datagrams = -1

    def take(self, header: Header, datagram: bytes) -> int:
        """Accounts for one datagram; returns how many of its messages were there before (0: all are new)."""
        line = self._lines[header.stream]
        self.missing_before = 0
        if not line.expected:
            line.expected = header.seq
            if header.seq > 1:
                self._begin_at(header.stream, header.seq, header.ts_send_ns)
        if header.kind:
            self._take_heartbeat(line, header, datagram)
            return 0
        skip = 0
        if header.seq != line.expected:
            skip = self._misplaced(line, header, header.message_count)
        if line.ended:
            self._findings.add(
                LOG, Cause.PLANT, "messages after the end of session", stream=header.stream
            )
        if line.datagrams >= 0:
            line.datagrams += 1
        line.expected = max(line.expected, header.seq + header.message_count)
        line.hole_cause = Cause.PLANT
        line.last_ns = header.ts_send_ns
        self.messages[header.stream] += header.message_count - skip
        return skip

    def _misplaced(self, line: _Line, header: Header, message_count: int) -> int:
        missing = header.seq - line.expected
        if missing > 0:
            self.missing_before = missing
            self._findings.add(
                LOG,
                line.hole_cause,
                f"{missing} messages are not in the log",
                stream=header.stream,
                seqs=(line.expected, header.seq - 1),
                times_ns=(line.last_ns, header.ts_send_ns),
            )
            return 0
        again = min(-missing, message_count)
        self._findings.add(
            LOG,
            Cause.PLANT,
            f"{again} messages stand twice or at the wrong place in the log",
            stream=header.stream,
            seqs=(header.seq, header.seq + again - 1),
        )
        return again

    def _take_heartbeat(self, line: _Line, header: Header, datagram: bytes) -> None:
        """A heartbeat tells the next sequence and how many datagrams went before: both must be what stands here."""
        self.heartbeats += 1
        body = decode_heartbeat(datagram, header)
        if header.seq != line.expected:
            self._misplaced(line, header, 0)
            line.expected = max(line.expected, header.seq)
            line.hole_cause = Cause.PLANT
        elif 0 <= line.datagrams != body.datagrams_sent:
            self._findings.add(
                LOG,
                Cause.PLANT,
                f"a heartbeat counts {body.datagrams_sent} datagrams, the log has {line.datagrams}",
                stream=header.stream,
            )
        line.datagrams = body.datagrams_sent
        if header.kind == Kind.END_OF_SESSION:
            line.ended = True
            line.end_ns = header.ts_send_ns
        elif line.ended:
            self._findings.add(
                LOG, Cause.PLANT, "a heartbeat after the end of session", stream=header.stream
            )

    def note_g(self, stream: int, first_g: int, last_g: int) -> bool:
        """The ordinals of a datagram's first and last message; whether they do not go back."""
        line = self._lines[stream]
        in_order = line.last_g <= first_g
        line.last_g = last_g
        return in_order

    @property
    def next_seqs(self) -> NextSeqs:
        """The next sequence of each stream, streams 1 to 5 in order."""
        return tuple(self._lines[stream].expected for stream in Stream)

    @property
    def ended(self) -> bool:
        """Whether the end of session stands on every stream."""
        return all(line.ended for line in self._lines.values())

    def last_ns(self, stream: int) -> int:
        """When the last message of a stream was sent; 0 if there was none."""
        return self._lines[stream].last_ns
