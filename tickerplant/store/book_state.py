"""The books at a place of the tick log: from recovery's checkpoint before it, and the log in between."""

from pathlib import Path

from tickerplant.core.book_snapshots import BOOK_STREAMS
from tickerplant.core.logformat import LogPosition
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.wire import Kind, decode_header
from tickerplant.errors import DamagedCheckpointError, WireError
from tickerplant.limits import STORE_BOOKS_READ_BYTES_MAX
from tickerplant.runtime.checkpoints import checkpoint_positions, read_checkpoint
from tickerplant.runtime.logfolder import segment_files
from tickerplant.runtime.logreader import LogReader


def books_at(folder: Path, position: LogPosition | None) -> PlantState:
    """The state of the books before `position`; empty where it cannot be known: they are published anew in time.

    Raises `OSError`.
    """
    if position is None:
        return PlantState()
    start, state = _begin(folder, position)
    if _bytes_between(folder, start, position) > STORE_BOOKS_READ_BYTES_MAX:
        return PlantState()
    with LogReader(folder, start) as reader:
        while (batch := reader.read()) is not None:
            for offset, datagram in batch.records:
                if LogPosition(*batch.segment, offset) >= position:
                    return state
                _receive(state, datagram)
    return state


def _receive(state: PlantState, datagram: bytes) -> None:
    try:
        header = decode_header(datagram)
    except WireError:
        return
    if header.stream in BOOK_STREAMS and header.kind == Kind.DATA:
        state.receive(header, datagram)


def _begin(folder: Path, position: LogPosition) -> tuple[LogPosition, PlantState]:
    """The newest checkpoint of the session that is not after `position`, else the start of the session."""
    for at in reversed(checkpoint_positions(folder)):
        if at <= position and at.session == position.session:
            try:
                return at, read_checkpoint(folder, at)
            except DamagedCheckpointError:
                continue
    return LogPosition(position.session, 1), PlantState()


def _bytes_between(folder: Path, start: LogPosition, end: LogPosition) -> int:
    sizes = [
        file.size_bytes
        for file in segment_files(folder)
        if start.segment <= file.name < end.segment
    ]
    return sum(sizes) + end.offset - start.offset
