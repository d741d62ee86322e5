"""Where in the tick log which sequences lie: segments with their first sequences, and points within them. Pure.

A point is an offset and the next sequence of each stream there. Points are at least `RECOVERY_INDEX_STEP_BYTES` apart,
so that one sequence is found by reading so much of a segment. Points can be dropped and made anew.
"""

from array import array
from bisect import bisect_right, insort
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from tickerplant.core.logformat import (
    NO_SEQS,
    SEGMENT_HEADER_BYTES,
    STREAM_COUNT,
    LogPosition,
    NextSeqs,
    SegmentHeader,
    SegmentName,
)
from tickerplant.limits import RECOVERY_INDEX_POINTS_MAX, RECOVERY_INDEX_STEP_BYTES


class Where(Enum):
    """Why there is no position."""

    TOO_OLD = auto()
    UNKNOWN_SESSION = auto()
    NOT_INDEXED = auto()
    """The segment in question has no points there: read it through and `add` what is in it."""


class Unplaced(NamedTuple):
    """No position; `segment` is the one to be indexed, if that would help."""

    why: Where
    segment: SegmentName = SegmentName(0, 0)


class SegmentPoints:
    """The points of one segment, offsets ascending; they hold for `start`..`end` of the file."""

    __slots__ = ("end", "offsets", "seqs", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.offsets = array("Q")
        self.seqs = tuple(array("Q") for _ in range(STREAM_COUNT))

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, offset: int, next_seqs: Sequence[int]) -> bool:
        """Whether a record at `offset`, before which these are the next sequences, became a point."""
        self.end = offset
        if self.offsets and offset - self.offsets[-1] < RECOVERY_INDEX_STEP_BYTES:
            return False
        self.offsets.append(offset)
        for column, seq in zip(self.seqs, next_seqs, strict=True):
            column.append(seq)
        return True

    def find(self, stream: int, seq: int) -> int | None:
        """The offset from which `seq` of `stream` follows; None if it lies before the first point."""
        index = bisect_right(self.seqs[stream - 1], seq) - 1
        return None if index < 0 else self.offsets[index]


class Segment:
    """One segment of the log; `first_seqs` are `NO_SEQS` where its header is damaged."""

    __slots__ = ("first_seqs", "name", "points", "used")

    def __init__(self, name: SegmentName, first_seqs: NextSeqs) -> None:
        self.name = name
        self.first_seqs = first_seqs
        self.points: SegmentPoints | None = None
        self.used = 0


class SessionExtent:
    """What is known of one session.

    `plant` is (publisher, partition), None where no header tells.
    `next_seqs`: how far it came, as far as its log was read or, `is_end_known`, as its successor tells; `is_final`: it
    has ended.
    """

    __slots__ = ("is_end_known", "is_final", "next_seqs", "plant", "segments")

    def __init__(self) -> None:
        self.plant: tuple[int, int] | None = None
        self.segments: list[SegmentName] = []
        self.next_seqs: NextSeqs = NO_SEQS
        self.is_final = False
        self.is_end_known = False

    def reach(self, next_seqs: NextSeqs) -> None:
        """It came so far at least."""
        self.next_seqs = tuple(map(max, self.next_seqs, next_seqs))


class LogIndex:
    """All segments there are, in order."""

    def __init__(self, points_max: int = RECOVERY_INDEX_POINTS_MAX) -> None:
        self.sessions: dict[int, SessionExtent] = {}
        self._segments: dict[SegmentName, Segment] = {}
        self._ends: dict[int, NextSeqs] = {}
        self._points_max = points_max
        self._points = 0
        self._uses = 0

    @property
    def point_count(self) -> int:
        """Points kept."""
        return self._points

    @property
    def newest_session(self) -> int:
        """0 if there is none."""
        return max(self.sessions, default=0)

    @property
    def oldest_session(self) -> int:
        """0 if there is none."""
        return min(self.sessions, default=0)

    def segment(self, name: SegmentName) -> Segment | None:
        """A segment that is known."""
        return self._segments.get(name)

    def add_segment(
        self, name: SegmentName, header: SegmentHeader | None, first_seqs: NextSeqs = NO_SEQS
    ) -> Segment:
        """A segment of the folder; harmless the second time.

        `first_seqs` is what else is known of its beginning, should its header be damaged (None).
        """
        segment = self._segments.get(name)
        if segment is not None:
            return segment
        first_seqs = first_seqs if header is None else header.first_seqs
        segment = self._segments[name] = Segment(name, first_seqs)
        extent = self.sessions.get(name.session)
        if extent is None:
            extent = self.sessions[name.session] = SessionExtent()
            if name.session in self._ends:
                self._end_session(name.session, self._ends[name.session])
        insort(extent.segments, name)
        extent.reach(first_seqs)
        if header is not None:
            extent.plant = (header.publisher, header.partition)
            if header.previous_session != name.session:
                self._end_session(header.previous_session, header.previous_seqs)
        return segment

    def _end_session(self, session: int, next_seqs: NextSeqs) -> None:
        """A later session says how far this one came; zeros where it does not know."""
        self._ends[session] = next_seqs
        extent = self.sessions.get(session)
        if extent is not None:
            extent.reach(next_seqs)
            extent.is_final = True
            extent.is_end_known = next_seqs != NO_SEQS

    def remove_missing(self, names: set[SegmentName]) -> int:
        """Forget the segments that are not among `names`; how many."""
        missing = [name for name in self._segments if name not in names]
        for name in missing:
            segment = self._segments.pop(name)
            self._drop_points(segment)
            extent = self.sessions[name.session]
            extent.segments.remove(name)
            if not extent.segments:
                del self.sessions[name.session]
        oldest = self.oldest_session
        self._ends = {one: seqs for one, seqs in self._ends.items() if one >= oldest}
        return len(missing)

    def begin_points(self, segment: Segment, start: int) -> SegmentPoints:
        """Empty points for a segment that is read from offset `start` on; those that it had are dropped."""
        self._drop_points(segment)
        points = segment.points = SegmentPoints(max(start, SEGMENT_HEADER_BYTES))
        self._touch(segment)
        return points

    def add_point(self, segment: Segment, offset: int, next_seqs: Sequence[int]) -> None:
        """A record at `offset` of a segment with points; these are the next sequences before it."""
        points = segment.points
        if points is not None and points.add(offset, next_seqs):
            self._points += 1
            if self._points > self._points_max:
                self._make_room(segment)

    def set_points(self, segment: Segment, points: SegmentPoints) -> None:
        """Points made elsewhere for a whole segment."""
        self._drop_points(segment)
        segment.points = points
        self._points += len(points)
        self._touch(segment)
        if self._points > self._points_max:
            self._make_room(segment)

    def locate(self, session: int, stream: int, seq: int) -> LogPosition | Unplaced:
        """The place from which `seq` of `stream` follows, if the log has it."""
        extent = self.sessions.get(session)
        if extent is None:
            is_old = session < self.oldest_session
            return Unplaced(Where.TOO_OLD if is_old else Where.UNKNOWN_SESSION)
        found: Segment | None = None
        # Few segments are looked at: recent sequences are asked for most.
        for name in reversed(extent.segments):
            segment = self._segments[name]
            if 0 < segment.first_seqs[stream - 1] <= seq:
                found = segment
                break
        if found is None:
            return Unplaced(Where.TOO_OLD)
        self._touch(found)
        offset = None if found.points is None else found.points.find(stream, seq)
        if offset is None:
            return Unplaced(Where.NOT_INDEXED, found.name)
        return LogPosition(*found.name, offset)

    def following(self, name: SegmentName) -> SegmentName | None:
        """The next segment of the same session."""
        extent = self.sessions.get(name.session)
        if extent is None:
            return None
        index = bisect_right(extent.segments, name)
        return extent.segments[index] if index < len(extent.segments) else None

    def oldest_seqs(self, session: int) -> NextSeqs:
        """The oldest sequence of each stream that may be in the log; zeros if the session is unknown."""
        extent = self.sessions.get(session)
        if extent is None:
            return NO_SEQS
        known = (self._segments[name].first_seqs for name in extent.segments)
        return next((seqs for seqs in known if seqs != NO_SEQS), NO_SEQS)

    def _touch(self, segment: Segment) -> None:
        self._uses += 1
        segment.used = self._uses

    def _drop_points(self, segment: Segment) -> None:
        if segment.points is not None:
            self._points -= len(segment.points)
            segment.points = None

    def _make_room(self, keep: Segment) -> None:
        """Drop the points of the segment that was not asked for longest; of `keep` if there is no other."""
        others = [
            segment
            for segment in self._segments.values()
            if segment.points is not None and segment is not keep
        ]
        self._drop_points(min(others, key=lambda segment: segment.used, default=keep))
