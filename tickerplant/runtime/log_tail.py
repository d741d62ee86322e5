"""The end of the tick log, read as it is written: into index, recent datagrams, books, and to those who follow it."""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tickerplant.core.log_index import LogIndex, Segment
from tickerplant.core.logformat import FIRST_SEQS, LogPosition, SegmentName
from tickerplant.core.messages import Stream
from tickerplant.core.recent_datagrams import RecentDatagrams
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.wire import Header, Kind, decode_header
from tickerplant.errors import WireError
from tickerplant.limits import (
    RECOVERY_READ_BYTES,
    TAIL_BACKLOG_DATAGRAMS_MAX,
    TAIL_FLUSH_DATAGRAMS_MAX,
    TAIL_QUIET_NS,
    TAIL_TURN_LEVELS,
    TAIL_TURN_MESSAGES,
)
from tickerplant.runtime.logreader import LogBatch, LogReader

if TYPE_CHECKING:
    from collections.abc import Callable

Entry = tuple[int, Header, bytes]
"""(offset of the record, header, datagram)"""


class TailBatch(NamedTuple):
    """Consecutive records, at `start` and after it."""

    start: LogPosition
    entries: list[Entry]


class LogTail:
    """`read` takes the next records; `apply` brings the books after them, up to the end of the last whole flush.

    A flush of the plant is what has one `ts_send_ns`: all that one input caused lies in one flush, so the state is
    always that after a whole number of inputs. It is whole once another one follows, or nothing for `TAIL_QUIET_NS`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        index: LogIndex,
        recent: RecentDatagrams,
        state: PlantState,
        position: LogPosition | None,
    ) -> None:
        """`state` is that at `position`; None: at the oldest record there is."""
        self.listeners: list[Callable[[TailBatch], None]] = []
        self.is_at_end = False
        self.boundary = position
        """The position up to which the books are."""
        self.session = state.session
        self.next_seqs = list(state.next_seqs)
        """Of `session`, as far as read."""
        self.ended_streams: set[int] = set()
        self.datagrams = 0
        self.faults = 0
        self.foreign_records = 0
        self.state = state
        self._index = index
        self._recent = recent
        self._reader = LogReader(folder, position, read_bytes=RECOVERY_READ_BYTES)
        self._segment: Segment | None = None
        self._batches: deque[tuple[LogBatch, list[Entry]]] = deque()
        self._taken = 0
        self._untaken = 0
        self._flush: list[tuple[Header, bytes]] = []
        self._grown_ns = 0
        self._first_end: LogPosition | None = None
        recent.clear(state.session)

    @property
    def position(self) -> LogPosition | None:
        """Where the next read begins."""
        return self._reader.position

    @property
    def entered(self) -> tuple[SegmentName, ...]:
        """The segment that was read from last, if any."""
        return () if self._segment is None else (self._segment.name,)

    @property
    def backlog(self) -> int:
        """Datagrams read and not yet in the books."""
        return self._untaken + len(self._flush)

    @property
    def has_caught_up(self) -> bool:
        """Whether the end was reached once, and the books have all that stood there then.

        Where something is published all the time, one flush is always still going on.
        """
        end, boundary = self._first_end, self.boundary
        if not self.session or end is None:
            return False
        return not self.backlog or (boundary is not None and boundary >= end)

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    # --- reading ----------------------------------------------------------------------------------

    def read(self, now_ns: int) -> bool:
        """Take the next records, a bounded piece; whether there were any.

        Raises `OSError`; it may be called again.
        """
        if self._untaken >= TAIL_BACKLOG_DATAGRAMS_MAX:
            return False
        start = self._reader.position
        batch = self._reader.read()
        if batch is None:
            self.is_at_end = True
            self._first_end = self._first_end or self._reader.position
            return False
        self.is_at_end = False
        self._grown_ns = now_ns
        self.faults += len(batch.faults)
        if self._segment is None or self._segment.name != batch.segment:
            start = self._enter_segment(batch, start)
        entries = self._take(batch)
        self._batches.append((batch, entries))
        self._untaken += len(entries)
        if entries:
            self.datagrams += len(entries)
            tail = TailBatch(start or LogPosition(*batch.segment), entries)
            for listener in self.listeners:
                listener(tail)
        return True

    def _enter_segment(self, batch: LogBatch, start: LogPosition | None) -> LogPosition:
        name, header = batch.segment, batch.header
        if name.session != self.session:
            self._begin_session(name.session)
        segment = self._index.add_segment(name, header, tuple(self.next_seqs))
        if start is None or start.segment != name:
            start = LogPosition(*name)
        if segment.points is None or segment.points.end < start.offset:
            self._index.begin_points(segment, start.offset)
        self._segment = segment
        return start

    def _begin_session(self, session: int) -> None:
        former = self._index.sessions.get(self.session)
        if former is not None:
            former.is_final = former.is_end_known = True
        self.session = session
        self.next_seqs = list(FIRST_SEQS)
        self.ended_streams.clear()
        self._recent.clear(session)

    def _take(self, batch: LogBatch) -> list[Entry]:
        segment = self._segment
        assert segment is not None
        entries: list[Entry] = []
        next_seqs, index = self.next_seqs, self._index
        for offset, datagram in batch.records:
            try:
                header = decode_header(datagram)
            except WireError:
                self.foreign_records += 1
                continue
            index.add_point(segment, offset, next_seqs)
            stream, seq = header.stream, header.seq
            end = seq + header.message_count
            if end >= next_seqs[stream - 1]:
                if header.kind == Kind.DATA:
                    self._recent.add(stream, seq, end, datagram)
                elif header.kind == Kind.END_OF_SESSION:
                    self.ended_streams.add(stream)
                next_seqs[stream - 1] = end
            entries.append((offset, header, datagram))
        extent = index.sessions[self.session]
        extent.next_seqs = tuple(next_seqs)
        if len(self.ended_streams) == len(Stream):
            extent.is_final = extent.is_end_known = True
        return entries

    # --- books ------------------------------------------------------------------------------------

    def apply(self, now_ns: int) -> bool:
        """Bring the books forward, a bounded piece; whether there is more to do."""
        messages = 0
        levels_max = self.state.levels_preserved + TAIL_TURN_LEVELS
        while self._batches:
            batch, entries = self._batches[0]
            while self._taken < len(entries):
                offset, header, datagram = entries[self._taken]
                if self._ends_flush(header):
                    messages += self._apply_flush(LogPosition(*batch.segment, offset))
                    if messages >= TAIL_TURN_MESSAGES or self.state.levels_preserved >= levels_max:
                        return True
                self._flush.append((header, datagram))
                self._taken += 1
                self._untaken -= 1
            self._batches.popleft()
            self._taken = 0
        is_quiet = self.is_at_end and now_ns - self._grown_ns >= TAIL_QUIET_NS
        if is_quiet and self._flush:
            assert self._reader.position is not None
            self._apply_flush(self._reader.position)
        return False

    def _ends_flush(self, header: Header) -> bool:
        if not self._flush:
            return False
        first = self._flush[0][0]
        return (
            header.ts_send_ns != first.ts_send_ns
            or header.session != first.session
            or len(self._flush) >= TAIL_FLUSH_DATAGRAMS_MAX
        )

    def _apply_flush(self, boundary: LogPosition) -> int:
        receive = self.state.receive
        messages = 0
        for header, datagram in self._flush:
            receive(header, datagram)
            messages += header.message_count
        self._flush.clear()
        self.boundary = boundary
        return messages

    def counters(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "log_datagrams": self.datagrams,
            "log_faults": self.faults,
            "foreign_records": self.foreign_records,
            **self.state.counters(),
        }
