"""What the owner of the tick log finds when it takes the folder over, and how it cuts a torn tail."""

import os
from pathlib import Path
from typing import NamedTuple

from tickerplant.core.logformat import (
    FIRST_SEQS,
    NO_SEGMENT,
    NO_SEQS,
    STREAM_COUNT,
    NextSeqs,
    SegmentHeader,
    SegmentName,
    next_seqs_after,
)
from tickerplant.core.wire import Kind
from tickerplant.runtime.logfolder import SPARE_SUFFIX, Owner, boot_id, segment_names
from tickerplant.runtime.logreader import SegmentExtent, read_extent

_KIND_AT = 3
"""Offset in a datagram's header."""


class PreviousLog(NamedTuple):
    """The newest session of a folder and where its log ended.

    `session` is 0 if there was none. `next_seqs`: the next sequence of each stream, as far as logged; zeros if nothing
    was. `is_complete`: all that was sent is in the log. `ended_in_order`: with ends of session on every stream.
    `segment` ended at `segment_bytes`, after `cut_bytes` of torn tail were cut off it.
    """

    session: int = 0
    next_seqs: NextSeqs = NO_SEQS
    is_complete: bool = False
    ended_in_order: bool = False
    segment: SegmentName = NO_SEGMENT
    segment_bytes: int = 0
    cut_bytes: int = 0

    @property
    def final_seqs(self) -> tuple[tuple[int, int], ...]:
        """(stream, next seq) for `SessionStart`; empty if the session may have come further than the log tells."""
        return tuple(enumerate(self.next_seqs, start=1)) if self.is_complete else ()


def take_over(folder: Path, owner: Owner | None) -> PreviousLog:
    """Cut the torn tail of the newest segment and tell how the session before ended; `owner` is the last one.

    Only for who holds the lock. Raises `OSError`.
    """
    for spare in folder.glob(f"*{SPARE_SUFFIX}"):
        spare.unlink()
    names = segment_names(folder)
    newest_session = names[-1].session if names else 0
    cut_bytes = 0
    while names:
        extent = read_extent(folder, names[-1])
        path = folder / str(names[-1])
        cut_bytes += extent.size - extent.end
        if extent.header is None and not extent.last:
            # Its beginning never reached the disk: there is nothing in it.
            path.unlink()
            names.pop()
            continue
        if extent.end < extent.size:
            _cut(path, extent.end)
        break
    else:
        session = max(newest_session, owner.session if owner is not None else 0)
        return PreviousLog(session, cut_bytes=cut_bytes)
    return _judge(folder, names, extent, newest_session, owner, cut_bytes)


def _judge(
    folder: Path,
    names: list[SegmentName],
    newest: SegmentExtent,
    newest_session: int,
    owner: Owner | None,
    cut_bytes: int,
) -> PreviousLog:
    name = names[-1]
    session = max(newest_session, owner.session if owner is not None else 0)
    if session > name.session:
        # A session of which nothing is in the log.
        return PreviousLog(session, segment=name, segment_bytes=newest.end, cut_bytes=cut_bytes)
    header, last = _since_last_header(folder, names, newest)
    ended = len(last) == STREAM_COUNT and all(
        datagram[_KIND_AT] == Kind.END_OF_SESSION for datagram in last.values()
    )
    was_off = owner is None or (owner.session == session and owner.log == "off")
    # A reboot may have taken what was not yet on disk.
    same_boot = header is not None and header.boot_id == boot_id()
    return PreviousLog(
        session,
        next_seqs_after(FIRST_SEQS if header is None else header.first_seqs, last),
        is_complete=ended or (same_boot and not was_off),
        ended_in_order=ended,
        segment=name,
        segment_bytes=newest.end,
        cut_bytes=cut_bytes,
    )


def _since_last_header(
    folder: Path, names: list[SegmentName], newest: SegmentExtent
) -> tuple[SegmentHeader | None, dict[int, bytes]]:
    """The newest valid header of the newest session, and the last datagram of each stream since."""
    header, last = newest.header, dict(newest.last)
    for name in reversed(names[:-1]):
        if header is not None or name.session != names[-1].session:
            break
        extent = read_extent(folder, name)
        header, last = extent.header, extent.last | last
    return header, last


def _cut(path: Path, size_bytes: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(file, size_bytes)
        os.fsync(file)
    finally:
        os.close(file)
