"""What a plant published, read from the files of its tick log as a source for `replay`.

Reads what is there, from the oldest segment to the newest, and ends there; nothing is locked or written. What is
damaged is passed over: the sequences of the datagrams tell what is missing.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tickerplant.core.logformat import (
    RECORD_MAX_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    SegmentName,
    Tail,
    crc_seeds,
    decode_segment_header,
    find_record,
    scan_records,
    sent_ns_of,
)
from tickerplant.errors import DamagedSegmentError, TickLogError
from tickerplant.limits import LOG_READ_BYTES

TimedDatagram = tuple[int, bytes]
"""(when it was sent, nanoseconds since the epoch; the datagram)"""


def read_log(
    folder: Path | str, *, session: int | None = None, to_ns: int | None = None, from_ns: int = 0
) -> Iterator[TimedDatagram]:
    """The datagrams of a folder's sessions in the order of sending, of one session if it is named.

    `from_ns` leaves out the sessions before the one that ran then, no part of that one: what a strategy is told later
    rests on it. Nothing sent after `to_ns` follows. Raises `TickLogError` if there is no such log or session.
    """
    place = Path(folder).expanduser()
    names = _segments(place)
    if session is not None:
        names = [name for name in names if name.session == session]
    elif names:
        begun = [name.session for name in names if name.session <= from_ns]
        names = [name for name in names if name.session >= max(begun, default=0)]
    if not names:
        what = "no tick log" if session is None else f"no session {session}"
        raise _nothing_in(place, what)
    return _read_segments(place, names, to_ns)


def newest_session(folder: Path | str) -> int:
    """The last session in a folder. Raises `TickLogError` if there is none."""
    place = Path(folder).expanduser()
    names = _segments(place)
    if not names:
        raise _nothing_in(place, "no tick log")
    return names[-1].session


def _nothing_in(folder: Path, what: str) -> TickLogError:
    return TickLogError(f"{folder} holds {what}: name the folder of the plant's tick log")


def _segments(folder: Path) -> list[SegmentName]:
    try:
        parsed = [SegmentName.parse(name) for name in os.listdir(folder)]  # noqa: PTH208  # names are enough
    except OSError as error:
        raise TickLogError(
            f"tick log {folder}: {error.strerror}: name the folder of the plant's tick log"
        ) from error
    return sorted(name for name in parsed if name is not None)


def _read_segments(
    folder: Path, names: list[SegmentName], to_ns: int | None
) -> Iterator[TimedDatagram]:
    for index, name in enumerate(names):
        following = names[index + 1] if index + 1 < len(names) else None
        try:
            with (folder / str(name)).open("rb") as file:
                for datagram in _read_segment(file, name, _end_of(folder, name, following)):
                    sent_ns = sent_ns_of(datagram)
                    if to_ns is not None and sent_ns > to_ns:
                        return
                    yield sent_ns, datagram
        except FileNotFoundError:
            continue  # the retention was faster
        except OSError as error:
            raise TickLogError(f"tick log {folder / str(name)}: {error.strerror}") from error


def _end_of(folder: Path, name: SegmentName, following: SegmentName | None) -> int | None:
    """Where a segment ended, as its successor tells; None if nobody does."""
    if following is None:
        return None
    try:
        with (folder / str(following)).open("rb") as file:
            header: SegmentHeader = decode_segment_header(file.read(SEGMENT_HEADER_BYTES))
    except (OSError, DamagedSegmentError):
        return None
    return header.previous_bytes if header.previous_segment == name else None


def _read_segment(file: BinaryIO, name: SegmentName, end: int | None) -> Iterator[bytes]:
    """The datagrams of one segment up to offset `end`; after damage those that follow it."""
    seeds = crc_seeds(name.session)
    offset = file.seek(SEGMENT_HEADER_BYTES)
    data = b""
    while True:
        room = LOG_READ_BYTES if end is None else min(LOG_READ_BYTES, end - offset - len(data))
        more = file.read(room) if room > 0 else b""
        data += more
        records, scanned_to, tail = scan_records(data, offset, seeds)
        for _offset, datagram in records:
            yield datagram
        data, offset = data[scanned_to - offset :], scanned_to
        if tail is Tail.INVALID or not more:
            found = find_record(data, 1, seeds) if data else -1
            if found < 0 and not more:
                return
            # Without a record in sight: one may begin near the end of these bytes.
            skipped = found if found >= 0 else max(0, len(data) - RECORD_MAX_BYTES)
            data, offset = data[skipped:], offset + skipped
