"""What the tick log of one session proves by itself. Pure.

Each stream's sequence from 1 to its end without hole or repetition, `g` and times never back, every book change,
checksum and quote right, the session's beginning and the end of the one before as both tell it.
"""

from collections.abc import Sequence

from tickerplant.audit.book_ledger import BookLedger
from tickerplant.audit.findings import LOG, Cause, Findings
from tickerplant.audit.sources import Source
from tickerplant.audit.stream_ledger import StreamLedger
from tickerplant.core.logformat import FIRST_SEQS, NextSeqs
from tickerplant.core.messages import (
    AnyMessage,
    GapCause,
    SessionStart,
    Stream,
    UpstreamGap,
)
from tickerplant.core.wire import Header, decode_body, decode_header
from tickerplant.errors import WireError

Messages = Sequence[AnyMessage | None]


class LogAudit:
    """Takes the datagrams of one session in the order of the log.

    `first_seqs`: the next sequence of each stream where the log begins, 0: not known; `begin_cause` why that is not
    the session's beginning, `begin_ns` when that was. `final_seqs`: those at the end of the log of the session
    before, if it is there to be compared. `sources` are compared with it on the way.
    """

    def __init__(
        self,
        findings: Findings,
        *,
        first_seqs: NextSeqs = FIRST_SEQS,
        begin_cause: Cause = Cause.RETENTION,
        begin_ns: int = 0,
        previous_session: int = 0,
        final_seqs: NextSeqs | None = None,
        sources: Sequence[Source] = (),
    ) -> None:
        whole = first_seqs == FIRST_SEQS
        self.begins_late = not whole
        self.holes = 0
        """Parts of the log that cannot be read, so far."""
        self.hole_cause = Cause.UNKNOWN
        """Of the last of them."""
        self.streams = StreamLedger(findings, first_seqs, begin_cause, begin_ns)
        self.books = BookLedger(findings, whole=whole)
        self.datagrams = 0
        self.messages = 0
        self.first_ns = 0
        self.last_ns = 0
        self.final_seqs_compared = False
        self._findings = findings
        self._previous_session = previous_session
        self._final_seqs = final_seqs
        self._start_due = whole
        self._sources = sources

    def take(self, datagram: bytes) -> tuple[Header, Messages] | None:
        """Accounts for one datagram; its header and new messages, None if it is none of the session."""
        findings = self._findings
        try:
            header = decode_header(datagram)
            messages: Messages = () if header.kind else decode_body(datagram, header)
            skip = self.streams.take(header, datagram) if self._is_ours(header) else -1
        except WireError as error:
            findings.add(LOG, Cause.PLANT, f"a record is no valid datagram: {error}")
            return None
        if skip < 0:
            return None
        self.datagrams += 1
        self._take_time(header)
        if self.streams.missing_before:
            self._lose(header.stream)
        if not messages:
            return header, messages
        if skip:
            messages = messages[skip:]
        self.messages += len(messages)
        self._take_messages(header.stream, messages)
        for source in self._sources:
            source.take(header.stream, header.seq + skip, header.ts_send_ns, messages)
        return header, messages

    def _is_ours(self, header: Header) -> bool:
        if header.session == self._findings.session:
            return True
        text = f"a datagram of session {header.session} stands in the log of another"
        self._findings.add(LOG, Cause.PLANT, text, stream=header.stream)
        return False

    def _take_time(self, header: Header) -> None:
        sent_ns = header.ts_send_ns
        self.first_ns = self.first_ns or sent_ns
        if sent_ns < self.last_ns:
            self._findings.add(
                LOG,
                Cause.PLANT,
                f"a datagram sent {self.last_ns - sent_ns} ns earlier stands after a later one",
                stream=header.stream,
                seqs=(header.seq, header.seq),
            )
        else:
            self.last_ns = self._findings.now_ns = sent_ns

    def _take_messages(self, stream: int, messages: Messages) -> None:
        ordinals = [message.g for message in messages if message is not None]
        if not ordinals:
            return
        in_order = self.streams.note_g(stream, ordinals[0], ordinals[-1])
        if not in_order or ordinals != sorted(ordinals):
            self._findings.add(LOG, Cause.PLANT, "g goes back", stream=stream)
        if not self._are_at_home(stream, messages):
            self._findings.add(
                LOG, Cause.PLANT, "a message stands on another's stream", stream=stream
            )
        if stream == Stream.DELTA:
            self.books.take_levels(messages)
        elif stream == Stream.BBO:
            self.books.take_quotes(messages)
        elif stream == Stream.STATUS:
            self._take_status(messages)
        else:
            self._take_gaps(stream, messages)

    def _are_at_home(self, stream: int, messages: Messages) -> bool:
        """`UpstreamGap` is at home on two streams."""
        return all(
            message is None
            or message.stream == stream
            or (type(message) is UpstreamGap and message.on_stream == stream)
            for message in messages
        )

    # --- upstream gaps, session -------------------------------------------------------------------

    def _take_gaps(self, stream: int, messages: Messages) -> None:
        for message in messages:
            if type(message) is UpstreamGap:
                what = "trades" if stream == Stream.TRADE else "tickers"
                known = message.cause == GapCause.UPSTREAM
                self._findings.add(
                    LOG,
                    Cause.UPSTREAM if known else Cause.UNKNOWN,
                    f"{what} of this time were lost before the plant, and were told as lost",
                    stream=stream,
                    times_ns=(message.from_ns, message.to_ns),
                )

    def _take_status(self, messages: Messages) -> None:
        for message in messages:
            if type(message) is SessionStart:
                if not self._start_due:
                    self._findings.add(
                        LOG, Cause.PLANT, "the session starts twice", stream=Stream.STATUS
                    )
                self._take_start(message)
            elif self._start_due:
                self._findings.add(
                    LOG,
                    Cause.PLANT,
                    "the first status message is not the session's start",
                    stream=Stream.STATUS,
                )
            self._start_due = False

    def _take_start(self, start: SessionStart) -> None:
        if start.previous_session != self._previous_session:
            self._findings.add(
                LOG,
                Cause.PLANT,
                f"the session says that {start.previous_session} was before it, its log's header "
                f"{self._previous_session}",
                stream=Stream.STATUS,
            )
        if self._final_seqs is None or not start.final_seqs:
            return
        self.final_seqs_compared = True
        for stream, told in start.final_seqs:
            logged = self._final_seqs[stream - 1] if 0 < stream <= len(self._final_seqs) else 0
            if logged and told != logged:
                self._findings.add(
                    LOG,
                    Cause.PLANT if told < logged else Cause.LOG_OFF,
                    f"session {start.previous_session} ended before {told} as this one says, and before {logged} in "
                    "its own log",
                    stream=stream,
                )

    def _lose(self, stream: int) -> None:
        if stream == Stream.DELTA:
            self.books.lose_levels()
        elif stream == Stream.BBO:
            self.books.lose_quotes()

    # --- holes and end ----------------------------------------------------------------------------

    def expect_hole(self, cause: Cause) -> None:
        """A part of the log cannot be read here."""
        self.holes += 1
        self.hole_cause = cause
        self.streams.expect_hole(cause)
        self.books.lose_levels()
        self.books.lose_quotes()

    def finish(self) -> None:
        """No more comes."""
        self.books.finish(complete=self.streams.ended)
        for source in self._sources:
            source.finish()
