"""Writes a recording: segments with their index, rotated, and the events of each session."""

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from tickerplant.core.logformat import (
    NO_SEGMENT,
    NO_SEQS,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    SegmentName,
    crc_seeds,
    encode_records,
    encode_segment_header,
)
from tickerplant.errors import RecordingError
from tickerplant.limits import (
    RECORDING_EVENTS_MAX_BYTES,
    RECORDING_INDEX_STEP_BYTES,
    RECORDING_SESSIONS_OPEN,
)
from tickerplant_subscriber.recording_files import (
    cut_torn_tails,
    read_position,
    segment_names,
    take_lock,
    unusable,
)
from tickerplant_subscriber.recording_format import (
    IndexEntry,
    Place,
    RecordedEvent,
    encode_index_entry,
    encode_mark,
    encode_messages,
    events_name,
    index_name,
)
from tickerplant_subscriber.stream_state import Messages

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_MODE = 0o640


class Rotation(NamedTuple):
    """When another segment begins."""

    max_bytes: int
    max_ns: int


class _Segment:
    """One segment that is being written. Records wait in `pending` until `write`."""

    def __init__(self, folder: Path, header: SegmentHeader) -> None:
        """Raises `OSError`."""
        self.header = header
        self.name = SegmentName(header.session, header.ordinal)
        self.next_seqs = list(header.first_seqs)
        self.written_bytes = SEGMENT_HEADER_BYTES
        self.pending_bytes = 0
        self.synced_bytes = 0
        self._pending: list[bytes] = []
        self._entries: list[bytes] = []
        self.sent_ns = 0
        """The latest time of sending in it."""
        self._indexed_bytes = SEGMENT_HEADER_BYTES
        self._seeds = crc_seeds(header.session)
        self._file = os.open(folder / str(self.name), _WRITE | os.O_EXCL, _MODE)
        self._index = -1
        try:
            _write_all(self._file, encode_segment_header(header))
            self._index = os.open(
                folder / index_name(self.name), _WRITE | os.O_TRUNC | os.O_APPEND, _MODE
            )
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """With what waits."""
        return self.written_bytes + self.pending_bytes

    def append(self, stream: int, next_seq: int, sent_ns: int, datagram: bytes) -> None:
        """One record."""
        record = encode_records([(stream, datagram)], self._seeds)
        self._pending.append(record)
        self.pending_bytes += len(record)
        self.next_seqs[stream - 1] = next_seq
        self.sent_ns = max(self.sent_ns, sent_ns)

    def write(self) -> int:
        """Hands everything to the kernel; how many bytes. Raises `OSError`."""
        size = self.pending_bytes
        if size:
            _write_all(self._file, b"".join(self._pending))
            self._pending.clear()
            self.pending_bytes = 0
            self.written_bytes += size
            if self.written_bytes - self._indexed_bytes >= RECORDING_INDEX_STEP_BYTES:
                self._note_index()
        return size

    def _note_index(self) -> None:
        entry = IndexEntry(self.written_bytes, self.sent_ns, tuple(self.next_seqs))
        self._entries.append(encode_index_entry(entry, self.name.session))
        self._indexed_bytes = self.written_bytes

    def begin_sync(self) -> "SyncRun | None":
        """What there is to be synced now; None if nothing was written since. Raises `OSError`."""
        if self.written_bytes == self.synced_bytes:
            return None
        return SyncRun(self, os.dup(self._file), self.written_bytes, len(self._entries))

    def end_sync(self, run: "SyncRun") -> None:
        """The index vouches for what is on disk only. Raises `OSError`."""
        if self._index >= 0:
            self.synced_bytes = run.written_bytes
            _write_all(self._index, b"".join(self._entries[: run.entry_count]))
            del self._entries[: run.entry_count]

    def finish(self) -> None:
        """Everything written, on disk and indexed. Raises `OSError`."""
        self.write()
        if self.written_bytes > self._indexed_bytes:
            self._note_index()
        os.fdatasync(self._file)
        _write_all(self._index, b"".join(self._entries))
        self._entries.clear()

    def close(self) -> None:
        """Closes the files; harmless the second time."""
        for file in (self._file, self._index):
            if file >= 0:
                os.close(file)
        self._file = self._index = -1


class SyncRun(NamedTuple):
    """A segment on its way to the disk: `run` may be called on any thread, once."""

    segment: _Segment
    file: int
    written_bytes: int
    entry_count: int

    def run(self) -> None:
        """Raises `OSError`."""
        try:
            os.fdatasync(self.file)
        finally:
            os.close(self.file)


class RecordingWriter:
    """The one writer of a folder; all methods that write raise `OSError`, and are not to be called after that."""

    def __init__(self, folder: Path, rotation: Rotation) -> None:
        """Takes the lock, cuts a torn tail, finds the position. Raises `RecordingError`."""
        self._folder = folder
        self._rotation = rotation
        self._lock = take_lock(folder)
        self._segments: dict[int, _Segment] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._event_bytes: dict[int, int] = {}
        self.bytes_written = 0
        self.segments_begun = 0
        self.events_left_out = 0
        try:
            self.cut_bytes = cut_torn_tails(folder)
            self.position = read_position(folder)
            self._ordinals = {name.session: name.ordinal for name in segment_names(folder)}
        except OSError as error:
            self._unlock()
            raise unusable(folder, error) from error
        self._note_places()

    def _note_places(self) -> None:
        position = self.position
        if position is not None:
            self._places = {
                stream: place
                for stream, _ in (*position.next_seqs, *((s, n) for s, _, n in position.moved_seqs))
                if (place := position.of(stream)) is not None
            }

    # --- what comes -------------------------------------------------------------------------------

    def append(
        self, place: Place, seq: int, ts_send_ns: int, messages: Messages, now_ns: int
    ) -> None:
        """Messages of a stream, in order and never twice."""
        datagram = encode_messages(place, seq, ts_send_ns, messages)
        self._add(place, seq + len(messages), ts_send_ns, datagram, now_ns)

    def mark(self, place: Place, next_seq: int, now_ns: int, *, is_end: bool = False) -> None:
        """Everything before `next_seq` came or was told as lost; nothing if the files say so already."""
        if is_end or self._places.get(place.stream) != (place.session, next_seq):
            # Of the recording's time: what is fetched later was sent earlier than now.
            segment = self._segments.get(place.session)
            sent_ns = 0 if segment is None else segment.sent_ns
            datagram = encode_mark(place, next_seq, sent_ns or place.session, is_end=is_end)
            self._add(place, next_seq, sent_ns, datagram, now_ns)

    def _add(self, place: Place, next_seq: int, sent_ns: int, datagram: bytes, now_ns: int) -> None:
        segment = self._segments.get(place.session)
        if segment is None:
            segment = self._begin(place, now_ns, None)
        elif (
            segment.size_bytes >= self._rotation.max_bytes
            or now_ns - segment.header.created_ns >= self._rotation.max_ns
        ):
            self._end(place.session)
            segment = self._begin(place, now_ns, segment)
        segment.append(place.stream, next_seq, sent_ns, datagram)
        self._places[place.stream] = (place.session, next_seq)

    def _begin(self, place: Place, now_ns: int, before: _Segment | None) -> _Segment:
        session = place.session
        if before is None:
            for old in sorted(self._segments)[: 1 - RECORDING_SESSIONS_OPEN]:
                self._end(old)
        ordinal = self._ordinals.get(session, 0) + 1
        first_seqs = tuple(
            next_seq if of == session else 0
            for of, next_seq in (
                self._places.get(stream, (0, 0)) for stream in range(1, len(NO_SEQS) + 1)
            )
        )
        header = SegmentHeader(
            session=session,
            ordinal=ordinal,
            publisher=place.publisher,
            partition=place.partition,
            created_ns=now_ns,
            first_seqs=first_seqs,
            previous_segment=NO_SEGMENT if before is None else before.name,
            previous_bytes=0 if before is None else before.written_bytes,
        )
        segment = _Segment(self._folder, header)
        self._ordinals[session] = ordinal
        self._segments[session] = segment
        self.segments_begun += 1
        return segment

    def _end(self, session: int) -> None:
        segment = self._segments.pop(session)
        segment.finish()
        segment.close()

    def tell(self, event: RecordedEvent) -> None:
        """One line of the events of its session, at once."""
        line = msgspec.json.encode(event) + b"\n"
        file = os.open(self._folder / events_name(event.session), _WRITE | os.O_APPEND, _MODE)
        try:
            if os.fstat(file).st_size + len(line) > RECORDING_EVENTS_MAX_BYTES:
                self.events_left_out += 1
            else:
                _write_all(file, line)
        finally:
            os.close(file)

    # --- to the disk ------------------------------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """What waits for `flush`."""
        return sum(segment.pending_bytes for segment in self._segments.values())

    def flush(self) -> None:
        """Hands everything to the kernel: it survives this process."""
        for segment in self._segments.values():
            self.bytes_written += segment.write()

    def begin_sync(self) -> list[SyncRun]:
        """What goes to the disk now, so that it survives the machine: run each, then give it to `end_sync`."""
        runs = (segment.begin_sync() for segment in self._segments.values())
        return [run for run in runs if run is not None]

    @staticmethod
    def end_sync(runs: list[SyncRun]) -> None:
        """All have been run."""
        for run in runs:
            run.segment.end_sync(run)

    def leave_sessions_before(self, session: int) -> None:
        """Nothing more comes of older ones."""
        for old in [each for each in self._segments if each < session]:
            self._end(old)

    def close(self) -> None:
        """Everything on the disk, files closed, lock given back."""
        try:
            for session in tuple(self._segments):
                self._end(session)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes without writing; harmless after `close`."""
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _write_all(file: int, data: bytes) -> None:
    """Raises `OSError`, also if the disk takes a part only."""
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, data[written:])


def broken(folder: Path, error: OSError) -> RecordingError:
    """The error of a recorder that cannot go on."""
    return RecordingError(
        f"recording {folder}: {error.strerror}: put that right and start again, it goes on after its last record"
    )
