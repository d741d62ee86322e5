"""What the raw capture needs besides writing, on a thread of its own: syncs, compression, retention.

Compression works piece by piece in a library that leaves the interpreter to others meanwhile; the loop never waits for
it. What fails here is a warning and tried again: the capture itself goes on as long as it can be written.
"""

import os
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from tickerplant.core.captureformat import CaptureName
from tickerplant.limits import (
    CAPTURE_READ_BYTES,
    CAPTURE_SEGMENTS_MAX,
    CAPTURE_SURVEY_INTERVAL_S,
    CAPTURE_UPKEEP_INTERVAL_S,
)
from tickerplant.runtime.capturefolder import (
    PART_SUFFIX,
    CaptureFile,
    capture_files,
    compressed_path,
    trouble_text,
)

_GZIP_WINDOW = 31
_LEVEL = 3
"""On recorded frames: 12 to 1, at two and a half times the speed of the usual level 6 (14 to 1)."""


class CaptureOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the capture is kept; the keys of [capture]."""

    segment_max_bytes: int = 256 * 1024**2
    segment_max_s: int = 3_600
    retain_s: int = 7 * 86_400
    max_bytes: int = 16 * 1024**3
    compress: bool = True


class OpenSegment(NamedTuple):
    """The segment being written."""

    name: CaptureName
    path: Path
    file: int


class CaptureUpkeep:
    """The thread; `start`, then `close`. `current`, `first_open` and `retired` are the writer's."""

    def __init__(self, folder: Path, options: CaptureOptions, first_open: CaptureName) -> None:
        """Of one folder, which is locked; `first_open` will be the first segment."""
        self.current: OpenSegment | None = None
        self.first_open = first_open
        """The first segment that is or will be written to: those before it are closed for good."""
        self.retired: deque[int] = deque()
        """Descriptors to sync and close."""
        self.trouble = ""
        """Why what is written is not kept, as far as the writer cannot see it."""
        self.warnings: dict[str, str] = {}
        """What does not work and has not ended the capture, by step."""
        self.counts: Counter[str] = Counter()
        self.closed_bytes = 0
        """Size of all segments but the current one."""
        self._folder = folder
        self._options = options
        self._wake = threading.Event()
        self._stopping = False
        self._next_survey_s = 0.0
        self._thread = threading.Thread(target=self._run, name="capture upkeep", daemon=True)

    # --- for the writer ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. Raises `OSError` if the folder cannot be listed."""
        for path in self._folder.glob(f"*{PART_SUFFIX}"):
            path.unlink(missing_ok=True)
        self.closed_bytes = sum(file.size_bytes for file in self._closed())
        self._thread.start()

    def wake(self) -> None:
        """A segment was closed."""
        self._next_survey_s = 0.0
        self._wake.set()

    def close(self, timeout_s: float) -> bool:
        """Sync and close what was handed over; False if that took too long and goes on by itself."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether the thread does its work."""
        return self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._attempt("sync", "cannot sync", self._sync)
            if time.monotonic() >= self._next_survey_s:
                self._next_survey_s = time.monotonic() + CAPTURE_SURVEY_INTERVAL_S
                self._attempt("retention", "cannot delete in", self._survey)
                if self._options.compress:
                    self._attempt("compression", "cannot compress in", self._compress_closed)
            self._wake.wait(CAPTURE_UPKEEP_INTERVAL_S)
        self._attempt("sync", "cannot sync", self._sync)

    def _attempt(self, step: str, doing: str, work: Callable[[], None]) -> None:
        """Do it; what the disk has against it is a warning until it succeeds."""
        try:
            work()
        except OSError as error:
            self.counts[f"{step}_failures"] += 1
            self.warnings[step] = trouble_text(doing, self._folder, error)
        else:
            self.warnings.pop(step, None)

    def _sync(self) -> None:
        # Whatever the writer does from here on, the file of this segment stays open until the next round.
        segment = self.current
        while self.retired:
            file = self.retired.popleft()
            try:
                os.fdatasync(file)
            finally:
                os.close(file)
        if segment is not None and segment is self.current:
            os.fdatasync(segment.file)
            self._watch(segment)

    def _watch(self, segment: OpenSegment) -> None:
        """Whether the segment is still the file of its name."""
        held = os.fstat(segment.file)
        try:
            named = segment.path.stat()
            is_same = (named.st_ino, named.st_dev) == (held.st_ino, held.st_dev)
        except FileNotFoundError:
            is_same = False
        if not is_same and segment is self.current:
            self.trouble = (
                f"{segment.path} was deleted or replaced: leave the files of the capture alone"
            )

    # --- retention --------------------------------------------------------------------------------

    def _closed(self) -> list[CaptureFile]:
        first_open = self.first_open
        return [file for file in capture_files(self._folder) if file.name < first_open]

    def _survey(self) -> None:
        files = deque(self._closed())
        total = sum(file.size_bytes for file in files)
        now_s = time.time()
        options = self._options
        room = max(0, options.max_bytes - options.segment_max_bytes)
        while files and (
            total > room
            or len(files) >= CAPTURE_SEGMENTS_MAX
            or now_s - files[0].changed_s > options.retain_s
        ):
            oldest = files.popleft()
            self._delete(oldest)
            total -= oldest.size_bytes
        self.closed_bytes = total

    def _delete(self, file: CaptureFile) -> None:
        for path in {self._folder / str(file.name), compressed_path(self._folder, file.name)}:
            path.unlink(missing_ok=True)
        self.counts["segments_deleted"] += 1

    # --- compression ------------------------------------------------------------------------------

    def _compress_closed(self) -> None:
        for file in self._closed():
            if self._stopping:
                return
            raw = self._folder / str(file.name)
            if file.is_compressed:
                raw.unlink(missing_ok=True)
                continue
            part = self._folder / f"{raw.stem}{PART_SUFFIX}"
            try:
                if not self._compress(raw, part):
                    return
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)

    def _compress(self, raw: Path, part: Path) -> bool:
        """Make the compressed file of a segment and remove the other; False if it was interrupted."""
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        try:
            with raw.open("rb") as source, part.open("xb") as target:
                status = os.fstat(source.fileno())
                while piece := source.read(CAPTURE_READ_BYTES):
                    target.write(compressor.compress(piece))
                    if self._stopping:
                        return False
                target.write(compressor.flush())
                target.flush()
                os.fsync(target.fileno())
                size = target.tell()
        except FileNotFoundError:
            return True  # somebody deleted it
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        part.rename(raw.with_suffix(".ktc.gz"))
        raw.unlink()
        self.counts["segments_compressed"] += 1
        self.counts["bytes_before_compression"] += status.st_size
        self.counts["bytes_after_compression"] += size
        self.closed_bytes += size - status.st_size
        return True
