"""The folder of a recording: who writes it, what is in it, and how far it comes.

recorder.lock                     held (flock) by the one recorder that writes here
<session>-<ordinal>.ktl           segments, `.ktx` their index
<session>.events.jsonl            gaps and the like
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tickerplant.core.logformat import (
    RECORD_HEADER_BYTES,
    RECORD_MAX_BYTES,
    SEGMENT_HEADER_BYTES,
    STREAM_COUNT,
    STREAM_OFFSET,
    Record,
    SegmentHeader,
    SegmentName,
    crc_seeds,
    decode_segment_header,
    find_record,
    next_seq_of,
    scan_records,
    sent_ns_of,
)
from tickerplant.errors import DamagedSegmentError, RecordingError
from tickerplant.folder_lock import lock_folder
from tickerplant.limits import LOG_READ_BYTES, RECORDING_INDEX_MAX_BYTES
from tickerplant_subscriber.position import Position, position_of
from tickerplant_subscriber.recording_format import (
    LOCK_FILE,
    IndexEntry,
    decode_index,
    index_name,
)

TellDamage = Callable[[int, int], None]
"""(first, last + 1) offset of bytes that are no record and have one after them"""
_REMEDY = "make it a folder that this user can write, or name another one"


def unusable(path: Path, error: OSError) -> RecordingError:
    """The error for a folder that cannot be used."""
    return RecordingError(f"recording {path}: {error.strerror}: {_REMEDY}")


def segment_names(folder: Path) -> list[SegmentName]:
    """The segments, by session and ordinal. Raises `OSError`."""
    parsed = (SegmentName.parse(name) for name in os.listdir(folder))  # noqa: PTH208  # names are enough
    return sorted(name for name in parsed if name is not None)


# --- lock -----------------------------------------------------------------------------------------


def take_lock(folder: Path) -> int:
    """Makes and locks the folder; the descriptor that holds the lock.

    Raises `RecordingError` if another recorder holds it or it cannot be used.
    """
    try:
        return lock_folder(folder, LOCK_FILE)
    except BlockingIOError:
        raise RecordingError(
            f"{folder} is being written by another recorder: stop it, or name another folder"
        ) from None
    except OSError as error:
        raise unusable(folder, error) from error


def is_being_written(folder: Path) -> bool:
    """Whether a recorder runs here."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


# --- what is in it --------------------------------------------------------------------------------


class Extent(NamedTuple):
    """How far a segment comes; `end` is the offset after its last record, `size` that of the file."""

    header: SegmentHeader
    last: IndexEntry
    size: int

    @property
    def end(self) -> int:
        """After the last record."""
        return self.last.offset


def read_header(file: BinaryIO) -> SegmentHeader | None:
    """The header of an open segment; None if it is damaged. Raises `OSError`."""
    file.seek(0)
    try:
        return decode_segment_header(file.read(SEGMENT_HEADER_BYTES))
    except DamagedSegmentError:
        return None


def read_index(folder: Path, name: SegmentName) -> list[IndexEntry]:
    """The entries of a segment's index; none if there is no index."""
    try:
        with (folder / index_name(name)).open("rb") as file:
            return decode_index(file.read(RECORDING_INDEX_MAX_BYTES), name.session)
    except OSError:
        return []


def read_extent(folder: Path, name: SegmentName) -> Extent | None:
    """How far a segment comes, read from the last entry of its index on; None if its header is damaged.

    Raises `OSError`.
    """
    with (folder / str(name)).open("rb") as file:
        header = read_header(file)
        if header is None or (header.session, header.ordinal) != name:
            return None
        size = file.seek(0, os.SEEK_END)
        entries = [one for one in read_index(folder, name) if one.offset <= size]
        start = IndexEntry(SEGMENT_HEADER_BYTES, 0, header.first_seqs)
        last = _scan(file, name.session, entries[-1] if entries else start)
        return Extent(header, last, size)


def _scan(file: BinaryIO, session: int, start: IndexEntry) -> IndexEntry:
    """The end of the records, damage between them passed over."""
    next_seqs = list(start.next_seqs)
    end, sent_ns = start.offset, start.sent_ns
    for offset, datagram in read_records(file, session, start.offset):
        end = offset + RECORD_HEADER_BYTES + len(datagram)
        next_seqs[datagram[STREAM_OFFSET] - 1] = next_seq_of(datagram)
        sent_ns = max(sent_ns, sent_ns_of(datagram))
    return IndexEntry(end, sent_ns, tuple(next_seqs))


def read_records(
    file: BinaryIO, session: int, offset: int, tell_damage: TellDamage | None = None
) -> Iterator[Record]:
    """The records of an open segment from `offset` on, as far as it is written now. Raises `OSError`.

    Damage is told and passed over; what stands after the last record is none, for it may be being written.
    """
    seeds = crc_seeds(session)
    at, data = file.seek(offset), b""
    damaged_from = -1
    while True:
        more = file.read(LOG_READ_BYTES)
        data += more
        records, scanned_to, _tail = scan_records(data, at, seeds)
        if records and damaged_from >= 0:
            if tell_damage is not None:
                tell_damage(damaged_from, at)
            damaged_from = -1
        yield from records
        data, at = data[scanned_to - at :], scanned_to
        if more and len(data) < RECORD_MAX_BYTES:
            continue
        found = find_record(data, 1, seeds) if data else -1
        if found < 0 and not more:
            return
        if damaged_from < 0:
            damaged_from = at
        skipped = found if found >= 0 else len(data) - RECORD_MAX_BYTES
        data, at = data[skipped:], at + skipped


def read_position(folder: Path) -> Position | None:
    """Where a recording goes on: after the last record of each stream. None if there is nothing yet.

    Raises `OSError`.
    """
    places: dict[int, tuple[int, int]] = {}
    plant = (0, 0)
    for name in reversed(segment_names(folder)):
        extent = read_extent(folder, name)
        if extent is None:
            continue
        plant = (extent.header.publisher, extent.header.partition)
        for stream, next_seq in enumerate(extent.last.next_seqs, start=1):
            if next_seq:
                places.setdefault(stream, (name.session, next_seq))
        if len(places) == STREAM_COUNT:
            break
    return position_of(*plant, places)


def cut_torn_tails(folder: Path) -> int:
    """Cuts what stands after the last record of each session's newest segment; how many bytes that was.

    Only for who holds the lock. Raises `OSError`.
    """
    newest = {name.session: name for name in segment_names(folder)}
    cut_bytes = 0
    for session in sorted(newest)[-2:]:
        path = folder / str(newest[session])
        extent = read_extent(folder, newest[session])
        if extent is None:
            continue
        with path.open("rb+") as file:
            if extent.size > extent.end:
                cut_bytes += extent.size - extent.end
                file.truncate(extent.end)
            # The next segment will vouch for this one.
            os.fsync(file.fileno())
    return cut_bytes
