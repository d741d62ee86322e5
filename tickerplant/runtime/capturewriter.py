"""The raw capture's writer: records of one session into segment files, in one write each.

`open_capture` takes the folder over; `CaptureWriter.write` is the hot path. It never raises and waits for nothing but
the write itself. When a record cannot be written the capture goes off and stays off until the plant is started again,
because a plant cannot be played across a hole; the feed goes on.
"""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tickerplant.core.captureformat import (
    CAPTURE_HEADER_BYTES,
    CAPTURE_RECORD_HEADER_BYTES,
    CaptureHeader,
    CaptureName,
    capture_seed,
    encode_capture_header,
    encode_record_header,
)
from tickerplant.limits import CAPTURE_CLOSE_TIMEOUT_S, CAPTURE_ROTATION_RETRY_BYTES
from tickerplant.runtime.capturefolder import take_lock, trouble_text, unusable
from tickerplant.runtime.captureupkeep import CaptureOptions, CaptureUpkeep, OpenSegment

_NEW_FILE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FILE_MODE = 0o640
_writev = os.writev


class CaptureStatus(NamedTuple):
    """How the capture does. `reason`, one line with the remedy, says why it is off; `warnings` what else is wrong."""

    is_on: bool
    reason: str
    total_bytes: int
    warnings: tuple[str, ...]


class CaptureWriter:
    """The owner of a capture folder for one session; `open_capture` makes it. All methods belong to one thread."""

    def __init__(
        self,
        folder: Path,
        session: int,
        options: CaptureOptions,
        lock: int,
        now_ns: Callable[[], int],
    ) -> None:
        """`lock` is the descriptor that holds the lock; `now_ns` the plant's clock."""
        self.folder = folder
        self.session = session
        self.records = 0
        self.record_bytes = 0
        self.rotations = 0
        self.failures: Counter[str] = Counter()
        self._options = options
        self._lock = lock
        self._now_ns = now_ns
        self._seed = capture_seed(session)
        self._reason = ""
        self._file = -1
        self._offset = 0
        self._turn_at = 0
        self._ordinal = 0
        self._opened_s = 0.0
        self._upkeep = CaptureUpkeep(folder, options, CaptureName(session, 1))

    # --- hot path ---------------------------------------------------------------------------------

    def write(self, record: bytes) -> None:
        """Keep one record, which is not empty. Never raises."""
        file = self._file
        if file < 0:
            return
        size = len(record) + CAPTURE_RECORD_HEADER_BYTES
        header = encode_record_header(record, self._seed)
        try:
            written = _writev(file, (header, record))
            if written != size:
                self._write_rest(file, header + record, written)
        except OSError as error:
            self._fail("cannot write in", error)
            return
        self.records += 1
        self._offset += size
        if self._offset >= self._turn_at:
            self._rotate()

    @property
    def is_on(self) -> bool:
        """Whether what is written is kept; once False it stays so."""
        return self._file >= 0

    @staticmethod
    def _write_rest(file: int, content: bytes, written: int) -> None:
        """The disk took only a part. Raises `OSError` if it takes no more."""
        while written < len(content):
            more = os.write(file, content[written:])
            if not more:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more

    # --- segments ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the first segment; if that is not possible the capture is off from the start."""
        try:
            self._enter(self._open(1))
        except OSError as error:
            self._fail("cannot begin a segment in", error)

    def _open(self, ordinal: int) -> OpenSegment:
        """The next segment with its header written. Raises `OSError`, and nothing is left of it."""
        name = CaptureName(self.session, ordinal)
        path = self.folder / str(name)
        file = os.open(path, _NEW_FILE, _FILE_MODE)
        header = CaptureHeader(self.session, ordinal, self._now_ns(), self.records)
        try:
            self._write_rest(file, encode_capture_header(header), 0)
        except BaseException:
            os.close(file)
            path.unlink()
            raise
        return OpenSegment(name, path, file)

    def _enter(self, segment: OpenSegment) -> None:
        self._file = segment.file
        self._ordinal = segment.name.ordinal
        self._offset = CAPTURE_HEADER_BYTES
        self._turn_at = self._options.segment_max_bytes
        self._opened_s = time.monotonic()
        self._upkeep.current = segment

    def _rotate(self) -> None:
        """Go on in the next segment, or for a while in this one."""
        upkeep = self._upkeep
        try:
            segment = self._open(self._ordinal + 1)
        except OSError as error:
            self.failures["rotation"] += 1
            upkeep.warnings["rotation"] = trouble_text("cannot rotate in", self.folder, error)
            self._turn_at = self._offset + CAPTURE_ROTATION_RETRY_BYTES
            if self._offset >= 2 * self._options.segment_max_bytes:
                self._fail("cannot rotate in", error)
            return
        self._leave()
        self._enter(segment)
        upkeep.warnings.pop("rotation", None)
        self.rotations += 1

    def _leave(self) -> None:
        """Close the current segment, if any."""
        if self._file < 0:
            return
        upkeep = self._upkeep
        file, self._file = self._file, -1
        upkeep.current = None
        upkeep.first_open = CaptureName(self.session, self._ordinal + 1)
        upkeep.closed_bytes += self._offset
        self.record_bytes += self._offset - CAPTURE_HEADER_BYTES
        upkeep.retired.append(file)
        upkeep.wake()

    def _fail(self, doing: str, error: OSError) -> None:
        self._go_off(trouble_text(doing, self.folder, error))

    def _go_off(self, reason: str) -> None:
        if self._file >= 0:
            # A record that was written in part is a torn tail; without it the segment ends cleanly.
            with suppress(OSError):
                os.ftruncate(self._file, self._offset)
        self._leave()
        self.failures["off"] += 1
        self._reason = f"{reason}; the capture is off until the plant is started again"

    def close(self, timeout_s: float = CAPTURE_CLOSE_TIMEOUT_S) -> bool:
        """Sync, close and unlock; False if the disk did not finish in time. Harmless the second time."""
        self._leave()
        self._reason = self._reason or "closed"
        is_ended = self._upkeep.close(timeout_s)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        return is_ended

    def start(self) -> None:
        """Start upkeep and the first segment; `open_capture` does it. Raises `OSError`."""
        self._upkeep.start()
        self.begin()

    # --- what others ask --------------------------------------------------------------------------

    @property
    def folder_bytes(self) -> int:
        """Size of all segments."""
        return self._upkeep.closed_bytes + (self._offset if self.is_on else 0)

    def status(self) -> CaptureStatus:
        """How it does; to be asked each second: it also rotates by time, and goes off for what upkeep has found."""
        upkeep = self._upkeep
        if self.is_on and not upkeep.is_alive:
            self._go_off("the upkeep of the capture has ended: restart")
        elif self.is_on and upkeep.trouble:
            self._go_off(upkeep.trouble)
        age_s = time.monotonic() - self._opened_s
        if self.is_on and age_s >= self._options.segment_max_s and self.records:
            self._turn_at = 0
        return CaptureStatus(
            is_on=self.is_on,
            reason=self._reason,
            total_bytes=self.folder_bytes,
            warnings=tuple(dict(upkeep.warnings).values()),
        )

    def counters(self) -> Mapping[str, int]:
        """For the metrics."""
        written = self._offset - CAPTURE_HEADER_BYTES if self.is_on else 0
        return {
            "records": self.records,
            "bytes": self.record_bytes + written,
            "rotations": self.rotations,
            "went_off": self.failures["off"],
            "rotation_failures": self.failures["rotation"],
            **{name: self._upkeep.counts[name] for name in _COUNTED_BY_UPKEEP},
        }

    def gauges(self) -> Mapping[str, int]:
        """For the metrics."""
        return {"on": int(self.is_on), "folder_bytes": self.folder_bytes}


_COUNTED_BY_UPKEEP = (
    "segments_deleted",
    "segments_compressed",
    "bytes_before_compression",
    "bytes_after_compression",
    "sync_failures",
    "retention_failures",
    "compression_failures",
)


def open_capture(
    folder: Path,
    session: int,
    options: CaptureOptions | None = None,
    *,
    now_ns: Callable[[], int] = time.time_ns,
) -> CaptureWriter:
    """Make and lock `folder` and begin the capture of `session`; a full disk only turns it off.

    Raises `CaptureError` if another plant holds the folder or it cannot be used.
    """
    lock = take_lock(folder)
    try:
        writer = CaptureWriter(folder, session, options or CaptureOptions(), lock, now_ns)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        writer.start()
    except OSError as error:
        os.close(lock)
        raise unusable(folder, error) from error
    return writer
