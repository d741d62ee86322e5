"""Reads a recording back: its datagrams, and what the recorder was told beside them.

    for sent_ns, datagram in read_recording("/var/lib/tickerplant/recording"): ...
    replay(Printer(), read_recording("/var/lib/tickerplant/recording"))

Nothing is locked or written, so it works beside the recorder; it ends where the recording ends now.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from tickerplant.core.logformat import (
    SEGMENT_HEADER_BYTES,
    STREAM_OFFSET,
    SegmentName,
    sent_ns_of,
)
from tickerplant.core.messages import Stream
from tickerplant.errors import RecordingError
from tickerplant.limits import RECORDING_EVENTS_MAX_BYTES
from tickerplant_subscriber.log_source import TimedDatagram
from tickerplant_subscriber.recording_files import (
    read_header,
    read_index,
    read_records,
    segment_names,
)
from tickerplant_subscriber.recording_format import RecordedEvent, events_name

TellFault = Callable[[str], None]
"""One line of text on a part that cannot be read."""


def recorded_sessions(folder: Path | str) -> list[int]:
    """The sessions of which there is something. Raises `RecordingError` if the folder holds no recording."""
    place = Path(folder).expanduser()
    try:
        names = segment_names(place)
    except OSError as error:
        raise RecordingError(
            f"{place}: {error.strerror}: name the folder that `tickerplant record` writes"
        ) from error
    if not names:
        raise RecordingError(
            f"{place} holds no recording: name the folder that `tickerplant record` writes"
        )
    return sorted({name.session for name in names})


def read_recording(
    folder: Path | str,
    *,
    session: int | None = None,
    from_ns: int = 0,
    to_ns: int | None = None,
    streams: Collection[Stream] = tuple(Stream),
    tell_fault: TellFault | None = None,
) -> Iterator[TimedDatagram]:
    """The datagrams of a recording in the order in which they were recorded, session after session.

    Of one session if it is named; those sent from `from_ns` to `to_ns` (both included), found by the index. Each
    stream's messages are in order and there once. Raises `RecordingError`.
    """
    place = Path(folder).expanduser()
    recorded_sessions(place)
    names = [name for name in segment_names(place) if session is None or name.session == session]
    wanted = frozenset(streams)
    for name in names:
        try:
            for datagram in _read_segment(place, name, from_ns, tell_fault):
                sent_ns = sent_ns_of(datagram)
                is_in_time = sent_ns >= from_ns and (to_ns is None or sent_ns <= to_ns)
                if is_in_time and datagram[STREAM_OFFSET] in wanted:
                    yield sent_ns, datagram
        except OSError as error:
            raise RecordingError(f"recording {place / str(name)}: {error.strerror}") from error


def _read_segment(
    folder: Path, name: SegmentName, from_ns: int, tell_fault: TellFault | None
) -> Iterator[bytes]:
    """Raises `OSError`."""

    def tell_damage(start: int, end: int) -> None:
        if tell_fault is not None:
            tell_fault(f"{name}: {end - start} B damaged at offset {start}")

    with (folder / str(name)).open("rb") as file:
        if read_header(file) is None:
            tell_damage(0, SEGMENT_HEADER_BYTES)
        offset = SEGMENT_HEADER_BYTES
        if from_ns:
            before = [one.offset for one in read_index(folder, name) if one.sent_ns < from_ns]
            offset = before[-1] if before else offset
        for _offset, datagram in read_records(file, name.session, offset, tell_damage):
            yield datagram


def recorded_events(folder: Path | str, session: int) -> list[RecordedEvent]:
    """What the recorder was told of a session: gaps and the like, in order. Lines that are cut short are left out."""
    path = Path(folder).expanduser() / events_name(session)
    try:
        with path.open("rb") as file:
            lines = file.read(RECORDING_EVENTS_MAX_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordingError(f"recording {path}: {error.strerror}") from error
    events = []
    for line in lines:
        try:
            events.append(msgspec.json.decode(line, type=RecordedEvent))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return events
