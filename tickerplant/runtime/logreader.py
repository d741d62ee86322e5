"""Reading the tick log, also while it is written: by recovery, store, archive, audit and `tickerplant log`.

Readers never write and never lock. At the end of the log a reader waits, whatever stands there; the place is final
once the next segment's header says where its predecessor ended. A wait is a `read` that returns None, never a sleep.
"""

import os
import time
from bisect import bisect_right
from collections import deque
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Self

from tickerplant.core.logformat import (
    NO_SEGMENT,
    RECORD_MAX_BYTES,
    SEGMENT_HEADER_BYTES,
    STREAM_OFFSET,
    LogPosition,
    Record,
    SegmentHeader,
    SegmentName,
    Tail,
    crc_seeds,
    decode_segment_header,
    find_record,
    scan_records,
)
from tickerplant.errors import DamagedSegmentError
from tickerplant.limits import LOG_FOLDER_SETTLE_NS, LOG_READ_BYTES
from tickerplant.runtime.logfolder import segment_names


class FaultKind(Enum):
    """What is wrong with a part of the log."""

    DAMAGED = "damaged"
    """Bytes that are no valid record, with valid ones or a final position after them."""
    MISSING = "missing"
    """Segments that were written and are no longer there."""


class LogFault(NamedTuple):
    """A part of the log that cannot be read: from `start` up to `end`."""

    kind: FaultKind
    start: LogPosition
    end: LogPosition

    def __str__(self) -> str:
        """In words, with file and offset."""
        if self.kind is FaultKind.MISSING:
            return f"segments missing between {self.start.segment} and {self.end.segment}"
        size = self.end.offset - self.start.offset
        return f"{self.start.segment}: {size} B damaged at offset {self.start.offset}"


class LogBatch(NamedTuple):
    """Consecutive records of one segment, the faults met on the way there, and where the next read begins.

    `header` is None if it is damaged. There may be faults and no records.
    """

    segment: SegmentName
    header: SegmentHeader | None
    records: list[Record]
    faults: list[LogFault]
    position: LogPosition


class SegmentReader:
    """One open segment file, which stays readable when it is deleted. `offset` is where the next record begins."""

    def __init__(
        self, folder: Path, name: SegmentName, *, read_bytes: int = LOG_READ_BYTES
    ) -> None:
        """Opens it. Raises `OSError`."""
        assert read_bytes > 2 * RECORD_MAX_BYTES
        self.name = name
        self.header: SegmentHeader | None = None
        self.offset = SEGMENT_HEADER_BYTES
        self.damage: list[LogFault] = []
        self._seeds = crc_seeds(name.session)
        self._read_bytes = read_bytes
        self._searched = 0
        self._file = os.open(folder / str(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """The size of the file now."""
        return os.fstat(self._file).st_size

    def read(self, end: int | None = None) -> list[Record]:
        """The next records, at most `read_bytes` of them; none: there are no more.

        `end` is the segment's final position; None while it is written: then it waits at what is not yet a record.
        Damage is skipped and added to `damage`. Raises `OSError`.
        """
        while True:
            data = self._pread(self.offset, end)
            records, scanned_to, tail = scan_records(data, self.offset, self._seeds)
            if records:
                self.offset, self._searched = scanned_to, 0
                return records
            if end is None and tail is not Tail.INVALID:
                return records
            found = self._find(end)
            if found is not None:
                self._skip(found)
            else:
                if end is not None and self.offset < end:
                    self._skip(end)
                return records

    def skip_to(self, offset: int) -> None:
        """Go on at `offset`, where a record begins."""
        self.offset, self._searched = max(offset, SEGMENT_HEADER_BYTES), 0

    def close(self) -> None:
        """Close the file; harmless the second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read_header(self) -> None:
        try:
            header = decode_segment_header(os.pread(self._file, SEGMENT_HEADER_BYTES, 0))
        except DamagedSegmentError:
            self._add_damage(0, SEGMENT_HEADER_BYTES)
            return
        if (header.session, header.ordinal) == self.name:
            self.header = header
        else:
            self._add_damage(0, SEGMENT_HEADER_BYTES)

    def _pread(self, offset: int, end: int | None) -> bytes:
        size = self._read_bytes if end is None else max(0, min(self._read_bytes, end - offset))
        return os.pread(self._file, size, offset)

    def _find(self, end: int | None) -> int | None:
        """The offset of the first valid record after the invalid one at `offset`; None if there is none (yet)."""
        start = max(self.offset + 1, self._searched)
        while True:
            data = self._pread(start, end)
            index = find_record(data, 0, self._seeds)
            if index >= 0:
                return start + index
            if len(data) <= RECORD_MAX_BYTES:
                self._searched = start
                return None
            # A record may begin near the end of these bytes and end in the next.
            start += len(data) - RECORD_MAX_BYTES

    def _skip(self, offset: int) -> None:
        self._add_damage(self.offset, offset)
        self.skip_to(offset)

    def _add_damage(self, start: int, end: int) -> None:
        first, last = LogPosition(*self.name, start), LogPosition(*self.name, end)
        self.damage.append(LogFault(FaultKind.DAMAGED, first, last))


def read_header(folder: Path, name: SegmentName) -> SegmentHeader | None:
    """The header of a segment; None if it is damaged. Raises `OSError`."""
    segment = SegmentReader(folder, name)
    segment.close()
    return segment.header


class SegmentExtent(NamedTuple):
    """What is in one segment file: its header, the last datagram of each stream, and where the last record ends."""

    header: SegmentHeader | None
    last: dict[int, bytes]
    end: int
    size: int


def read_extent(folder: Path, name: SegmentName) -> SegmentExtent:
    """Read a segment through, damage skipped. Raises `OSError`."""
    segment = SegmentReader(folder, name)
    try:
        size = segment.size_bytes
        last: dict[int, bytes] = {}
        end = min(size, SEGMENT_HEADER_BYTES)
        while records := segment.read(size):
            for _offset, datagram in records:
                last[datagram[STREAM_OFFSET]] = datagram
            end = segment.offset
        return SegmentExtent(segment.header, last, end, size)
    finally:
        segment.close()


class FolderListing:
    """The segments of a folder, listed anew only when it changed: asking costs one `stat`."""

    def __init__(self, folder: Path) -> None:
        """Of `folder`; reads nothing yet."""
        self.folder = folder
        self._names: list[SegmentName] = []
        self._changed_ns = -1

    def names(self, *, anew: bool = False) -> list[SegmentName]:
        """In the order of writing; the list is not to be changed. Raises `OSError`."""
        changed_ns = self.folder.stat().st_mtime_ns
        if anew or changed_ns != self._changed_ns:
            self._names = segment_names(self.folder)
            settled = abs(time.time_ns() - changed_ns) > LOG_FOLDER_SETTLE_NS
            self._changed_ns = changed_ns if settled else -1
        return self._names


class LogReader:
    """Reads the log in order, across segments and sessions, and on to what is being written."""

    def __init__(
        self,
        folder: Path,
        position: LogPosition | None = None,
        *,
        read_bytes: int = LOG_READ_BYTES,
    ) -> None:
        """Begins at `position`, None: at the oldest record there is. Opens nothing yet."""
        self.folder = folder
        self._position = position
        self._read_bytes = read_bytes
        self._listing = FolderListing(folder)
        self._segment: SegmentReader | None = None
        self._final: int | None = None
        self._successor: SegmentReader | None = None
        self._faults: deque[LogFault] = deque()

    @property
    def position(self) -> LogPosition | None:
        """Where the next read begins; None if there is no log yet."""
        return self._position

    def read(self) -> LogBatch | None:
        """The next records or faults; None: nothing more for now.

        Raises `OSError` if folder or file cannot be read; it may be called again.
        """
        while True:
            segment = self._segment or self._open_first()
            if segment is None:
                return None
            records = segment.read(self._final)
            self._position = LogPosition(*segment.name, segment.offset)
            self._faults += segment.damage
            segment.damage.clear()
            if records or self._faults:
                return self._batch(segment, records)
            if self._final is not None:
                self._advance()
            elif not self._find_final(segment):
                return None

    def close(self) -> None:
        """Close the files."""
        for segment in (self._segment, self._successor):
            if segment is not None:
                segment.close()
        self._segment = self._successor = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the files."""
        self.close()

    def _batch(self, segment: SegmentReader, records: list[Record]) -> LogBatch:
        faults = list(self._faults)
        self._faults.clear()
        position = LogPosition(*segment.name, segment.offset)
        return LogBatch(segment.name, segment.header, records, faults, position)

    def _open_first(self) -> SegmentReader | None:
        """The segment of `position`, or the first after it; None if there is none."""
        wanted = self._position
        for name in list(self._listing.names()):
            if wanted is not None and name < wanted.segment:
                continue
            try:
                segment = SegmentReader(self.folder, name, read_bytes=self._read_bytes)
            except FileNotFoundError:
                continue
            if wanted is not None and name == wanted.segment:
                segment.skip_to(wanted.offset)
                if wanted.offset > 0:
                    # It was told when it was read for the first time.
                    segment.damage.clear()
            elif wanted is not None:
                end = LogPosition(*name)
                self._faults.append(LogFault(FaultKind.MISSING, wanted, end))
            self._segment, self._final = segment, None
            return segment
        return None

    def _find_final(self, segment: SegmentReader) -> bool:
        """Whether a later segment tells that nothing more will come here; then `_final` is set."""
        for anew in (False, True):
            names = self._listing.names(anew=anew)
            index = bisect_right(names, segment.name)
            if index == len(names):
                return False
            try:
                successor = SegmentReader(self.folder, names[index], read_bytes=self._read_bytes)
            except FileNotFoundError:
                continue
            header = successor.header
            if header is not None and header.previous_segment == segment.name:
                self._successor, self._final = successor, header.previous_bytes
                return True
            if anew:
                # Segments between the two are gone, or the header that would tell is damaged.
                self._successor, self._final = successor, segment.size_bytes
                return True
            successor.close()
        return False

    def _advance(self) -> None:
        """Leave the segment, which is read to its end, for the next one."""
        left, segment = self._segment, self._successor
        assert left is not None
        assert segment is not None
        start, end = LogPosition(*left.name, left.offset), LogPosition(*segment.name)
        if segment.header is None:
            is_next = segment.name in (
                SegmentName(left.name.session, left.name.ordinal + 1),
                SegmentName(segment.name.session, 1),
            )
        else:
            # Of a recording the first segment of a session names none: two sessions may be written at a time.
            is_first = segment.name.ordinal == 1 and segment.header.previous_segment == NO_SEGMENT
            is_next = is_first or segment.header.previous_segment == left.name
        if not is_next:
            self._faults.append(LogFault(FaultKind.MISSING, start, end))
        left.close()
        self._segment, self._successor, self._final = segment, None, None
        self._position = end
