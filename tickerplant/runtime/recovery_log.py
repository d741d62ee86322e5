"""What recovery knows of the tick log: where to begin, which sequences are where, and the datagrams of a request."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tickerplant.core.gap_fill import Found
from tickerplant.core.log_index import LogIndex, SegmentPoints, SessionExtent, Unplaced, Where
from tickerplant.core.logformat import (
    NO_SEQS,
    SEGMENT_HEADER_BYTES,
    STREAM_OFFSET,
    LogPosition,
    SegmentName,
)
from tickerplant.core.messages import Stream
from tickerplant.core.recent_datagrams import RecentDatagrams
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.recovery_wire import (
    VERSION,
    GapFill,
    Hello,
    RecoveryCode,
    SessionRange,
    StreamSeqs,
)
from tickerplant.core.wire import HEADER, Kind
from tickerplant.errors import DamagedCheckpointError
from tickerplant.limits import (
    GAP_FILL_BYTES_MAX,
    GAP_FILL_DATAGRAMS_MAX,
    GAP_FILL_SEARCH_BYTES,
    HELLO_SESSIONS_MAX,
    RECOVERY_INDEX_QUEUE,
    RECOVERY_READ_BYTES,
)
from tickerplant.runtime.checkpoints import checkpoint_positions, read_checkpoint
from tickerplant.runtime.log_tail import LogTail
from tickerplant.runtime.logfolder import Owner, segment_files
from tickerplant.runtime.logreader import SegmentReader, read_header

_unpack_header = HEADER.unpack_from


class Begin(NamedTuple):
    """Where recovery begins to read; `refused` are checkpoints that were not used, and why."""

    position: LogPosition | None
    state: PlantState
    is_from_checkpoint: bool
    refused: list[str]


def find_begin(folder: Path) -> Begin:
    """The newest valid checkpoint, or the start of the newest session, or of what is left of it. Raises `OSError`."""
    sizes = {file.name: file.size_bytes for file in segment_files(folder)}
    newest = max((name.session for name in sizes), default=0)
    refused: list[str] = []
    for position in reversed(checkpoint_positions(folder)):
        if position.session != newest and SegmentName(newest, 1) in sizes:
            # A whole session has begun since: its own start is nearer.
            break
        if sizes.get(position.segment, -1) < position.offset:
            refused.append(f"{position.segment} at {position.offset} is no longer there")
            continue
        try:
            return Begin(position, read_checkpoint(folder, position), True, refused)
        except DamagedCheckpointError as error:
            refused.append(str(error))
        except OSError as error:
            refused.append(f"checkpoint at {position}: {error.strerror}")
    state = PlantState()
    oldest = min((name for name in sizes if name.session == newest), default=None)
    if oldest is None:
        return Begin(None, state, False, refused)
    header = read_header(folder, oldest)
    if header is not None:
        state.begin_session(newest, header.publisher, header.partition, header.first_seqs)
    return Begin(LogPosition(*oldest), state, False, refused)


class RecoveryLog:
    """The log as far as it was read, with its index. `folder` has to exist."""

    def __init__(
        self, folder: Path, begin: Begin, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`clock_ns` is of no epoch in particular."""
        self.folder = folder
        self.clock_ns = clock_ns
        self.index = LogIndex()
        self.wanted: dict[SegmentName, None] = {}
        """Segments to be indexed, the first one first."""
        self.owner: Owner | None = None
        self.searches = 0
        """Gap-fill requests that had to read the log."""
        self._recent = RecentDatagrams()
        self.tail = LogTail(
            folder,
            index=self.index,
            recent=self._recent,
            state=begin.state,
            position=begin.position,
        )

    @property
    def state(self) -> PlantState:
        """The books and last values."""
        return self.tail.state

    def close(self) -> None:
        """Close the files."""
        self.tail.close()

    # --- what is in the folder --------------------------------------------------------------------

    def take_folder(self, owner: Owner | None, names: list[SegmentName]) -> Iterator[None]:
        """What was found in the folder, in steps between which other work may be done. Raises `OSError`."""
        self.owner = owner
        ended = owner.session if owner is not None and owner.log == "ended" else 0
        if ended in self.index.sessions:
            self.index.sessions[ended].is_final = True
            self.index.sessions[ended].is_end_known = True
        # Where the tail stands may be newer than the list, or deleted under it: it is read on all the same.
        self.index.remove_missing({*names, *self.tail.entered})
        position = self.tail.position
        for name in reversed(names):
            # Those that are still to be read make themselves known then.
            is_to_come = position is not None and name > position.segment
            if not is_to_come and self.index.segment(name) is None:
                with suppress(FileNotFoundError):
                    self.index.add_segment(name, read_header(self.folder, name))
                yield

    @property
    def unlogged_session(self) -> int:
        """The newest session if its log is off from some place on, else 0."""
        owner = self.owner
        return owner.session if owner is not None and owner.log == "off" else 0

    def hello(self) -> Hello:
        """What there is, oldest session first."""
        sessions = [
            SessionRange(
                session,
                _pairs(self.index.oldest_seqs(session)),
                _pairs(extent.next_seqs),
                extent.is_final,
            )
            for session, extent in sorted(self.index.sessions.items())[-HELLO_SESSIONS_MAX:]
        ]
        unlogged = self.unlogged_session
        if unlogged > self.index.newest_session:
            sessions.append(SessionRange(unlogged, (), (), final=False))
        newest = self.index.sessions.get(self.index.newest_session)
        plant = newest.plant if newest is not None else None
        return Hello(VERSION, *(plant or (0, 0)), tuple(sessions), repairable=not unlogged)

    # --- gap fill ---------------------------------------------------------------------------------

    def find(self, request: GapFill) -> Found:
        """The logged datagrams of a request, within the bounds of one; reads what was just written if need be."""
        session, stream = request.session, request.stream
        code, extent = self.look_up(session, request.publisher, request.partition)
        if extent is None:
            return Found(code, [])
        if request.from_seq >= extent.next_seqs[stream - 1] and session == self.tail.session:
            self.read_on()
        oldest_seq = self.index.oldest_seqs(session)[stream - 1]
        next_seq = extent.next_seqs[stream - 1]
        code = RecoveryCode.SERVED
        found: list[bytes] = []
        if request.to_seq < oldest_seq:
            code = RecoveryCode.TOO_OLD
        elif request.from_seq >= next_seq and (extent.is_end_known or not extent.is_final):
            is_over = self.is_over(session)
            code = RecoveryCode.NOT_REPAIRABLE if is_over else RecoveryCode.NOT_YET
        else:
            from_seq = max(request.from_seq, oldest_seq)
            code, found = self._find_logged(session, stream, from_seq, request.to_seq)
        return Found(code, found, oldest_seq, next_seq)

    def is_over(self, session: int) -> bool:
        """Whether nothing will be in the log of a known session that was not read yet."""
        extent = self.index.sessions[session]
        if session == self.tail.session and not self.tail.is_at_end:
            return False
        return extent.is_final or session == self.unlogged_session

    def look_up(
        self, session: int, publisher: int, partition: int
    ) -> tuple[RecoveryCode, SessionExtent | None]:
        """What is known of a session, or why nothing is."""
        if session not in self.index.sessions:
            self.read_on()
        extent = self.index.sessions.get(session)
        if extent is None:
            return self._code_of_unknown(session), None
        if extent.plant not in (None, (publisher, partition)):
            return RecoveryCode.UNKNOWN_PLANT, None
        return RecoveryCode.SERVED, extent

    def _code_of_unknown(self, session: int) -> RecoveryCode:
        if session == self.unlogged_session:
            # Also one whose only segment was deleted, which is why its log is off.
            return RecoveryCode.NOT_REPAIRABLE
        if not self.index.sessions:
            return RecoveryCode.UNAVAILABLE
        if session < self.index.oldest_session:
            return RecoveryCode.TOO_OLD
        if session > self.index.newest_session and not self.tail.is_at_end:
            return RecoveryCode.NOT_YET
        return RecoveryCode.UNKNOWN_SESSION

    def read_on(self) -> None:
        """Somebody asks for more than was read: look at the end of the log now."""
        # An unreadable log is told by the tail's own reading.
        with suppress(OSError):
            self.tail.read(self.clock_ns())

    def _find_logged(
        self, session: int, stream: int, from_seq: int, to_seq: int
    ) -> tuple[RecoveryCode, list[bytes]]:
        if session == self._recent.session:
            recent = self._recent.find(
                stream, from_seq, to_seq, GAP_FILL_DATAGRAMS_MAX, GAP_FILL_BYTES_MAX
            )
            if recent:
                return RecoveryCode.SERVED, recent
        self.searches += 1
        search = LogSearch(self, session, stream, from_seq, to_seq)
        try:
            search.run()
        except OSError:
            return RecoveryCode.UNAVAILABLE, []
        finally:
            search.close()
        if search.found:
            return RecoveryCode.SERVED, search.found
        return search.code, []

    # --- streams ----------------------------------------------------------------------------------

    def place_of(self, session: int, next_seqs: StreamSeqs) -> LogPosition | RecoveryCode:
        """The place in the log after which lie all of these sequences of a known session, or why there is none.

        The place may be far before them where the log is not indexed.
        """
        extent = self.index.sessions[session]
        places: list[LogPosition] = []
        for stream, seq in next_seqs:
            place = self.index.locate(session, stream, min(seq, extent.next_seqs[stream - 1]))
            if not isinstance(place, Unplaced):
                places.append(place)
            elif place.why is Where.NOT_INDEXED:
                places.append(LogPosition(*place.segment))
            else:
                return RecoveryCode.TOO_OLD
        return min(places)

    # --- indexing ---------------------------------------------------------------------------------

    def want(self, segment: SegmentName) -> None:
        """A segment without points was asked for."""
        if len(self.wanted) < RECOVERY_INDEX_QUEUE:
            self.wanted[segment] = None

    def index_wanted(self) -> Iterator[None]:
        """Make points for the next wanted segment, in steps between which other work may be done."""
        name = next(iter(self.wanted), None)
        if name is None:
            return
        try:
            yield from self._index_segment(name)
        except OSError:
            # It was deleted meanwhile.
            return
        finally:
            self.wanted.pop(name, None)

    def _index_segment(self, name: SegmentName) -> Iterator[None]:
        segment = self.index.segment(name)
        if segment is None or segment.first_seqs == NO_SEQS:
            return
        next_seqs = list(segment.first_seqs)
        points = SegmentPoints(SEGMENT_HEADER_BYTES)
        reader = SegmentReader(self.folder, name, read_bytes=RECOVERY_READ_BYTES)
        try:
            while records := reader.read(self.readable_to(name, reader)):
                for offset, datagram in records:
                    points.add(offset, next_seqs)
                    fields = _unpack_header(datagram)
                    next_seqs[fields[3] - 1] = fields[7] + fields[9]
                yield
            self.index.set_points(segment, points)
        finally:
            reader.close()

    def readable_to(self, name: SegmentName, reader: SegmentReader) -> int:
        """The offset up to which a segment consists of records: that of the tail, where it is being written."""
        position = self.tail.position
        if position is not None and position.segment == name:
            return max(position.offset, SEGMENT_HEADER_BYTES)
        return reader.size_bytes


class LogSearch:
    """One gap-fill request's reading of the log, from point to point of the index and within bounds."""

    def __init__(
        self, log: RecoveryLog, session: int, stream: int, from_seq: int, to_seq: int
    ) -> None:
        self.found: list[bytes] = []
        self.code = RecoveryCode.NOT_REPAIRABLE
        self._log = log
        self._session = session
        self._stream = stream
        self._seq = from_seq
        self._to_seq = to_seq
        self._bytes = 0
        self._read_bytes = 0
        self._reader: SegmentReader | None = None

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def run(self) -> None:
        """Search until all is found, missing, or as much as one request may have. Raises `OSError`."""
        while True:
            if self._read_bytes >= GAP_FILL_SEARCH_BYTES:
                # Nothing so far proves that it is not there.
                self.code = RecoveryCode.UNAVAILABLE
                return
            records = self._next_records()
            if records is None:
                return
            for _offset, datagram in records:
                self._read_bytes += len(datagram)
                if datagram[STREAM_OFFSET] == self._stream and not self._take(datagram):
                    return

    def _take(self, datagram: bytes) -> bool:
        """Whether more is to come after this datagram of the stream."""
        fields = _unpack_header(datagram)
        seq = fields[7]
        end = seq + fields[9]
        if fields[2] != Kind.DATA or end <= self._seq:
            return True
        if seq > self._to_seq:
            return False
        self._bytes += len(datagram)
        if self._bytes > GAP_FILL_BYTES_MAX:
            return False
        self.found.append(datagram)
        self._seq = end
        return end <= self._to_seq and len(self.found) < GAP_FILL_DATAGRAMS_MAX

    def _next_records(self) -> list[tuple[int, bytes]] | None:
        """Records from where `_seq` may be; None if there are no more."""
        place = self._log.index.locate(self._session, self._stream, self._seq)
        if isinstance(place, Unplaced):
            if place.why is Where.NOT_INDEXED:
                self._log.want(place.segment)
                self.code = RecoveryCode.UNAVAILABLE
            elif place.why is Where.TOO_OLD:
                self.code = RecoveryCode.TOO_OLD
            return None
        reader = self._reader
        if reader is None or reader.name < place.segment:
            reader = self._enter(place.segment)
        if place.segment == reader.name and place.offset > reader.offset:
            reader.skip_to(place.offset)
        while True:
            records = reader.read(self._log.readable_to(reader.name, reader))
            if records:
                return records
            following = self._log.index.following(reader.name)
            if following is None or following.session != self._session:
                return None
            reader = self._enter(following)

    def _enter(self, name: SegmentName) -> SegmentReader:
        self.close()
        self._reader = SegmentReader(self._log.folder, name, read_bytes=RECOVERY_READ_BYTES)
        return self._reader


def _pairs(seqs: tuple[int, ...]) -> StreamSeqs:
    """(stream, sequence) of each stream."""
    return tuple((int(stream), seqs[stream - 1]) for stream in Stream)
