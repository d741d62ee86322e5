"""Reading a raw capture: its sessions, and the records of one of them in order, also while it is being written."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tickerplant.core.captureformat import (
    CAPTURE_HEADER_BYTES,
    CaptureHeader,
    CaptureName,
    RecordScanner,
    capture_seed,
    decode_capture_header,
)
from tickerplant.errors import CaptureError, DamagedCaptureError
from tickerplant.limits import CAPTURE_READ_BYTES
from tickerplant.runtime.capturefolder import capture_files, open_segment


class CaptureFault(NamedTuple):
    """Something that is missing or damaged, and in which segment."""

    segment: CaptureName
    problem: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.segment}: {self.problem}"


def capture_sessions(folder: Path) -> list[int]:
    """The sessions in the folder, the oldest first. Raises `OSError`."""
    return sorted({file.name.session for file in capture_files(folder)})


def choose_session(folder: Path, session: int | None) -> int:
    """`session` if it is there, None: the newest. Raises `CaptureError`, `OSError`."""
    sessions = capture_sessions(folder)
    if not sessions:
        raise CaptureError(f"{folder} holds no capture yet")
    if session is None:
        return sessions[-1]
    if session not in sessions:
        raise CaptureError(f"{folder} holds no session {session}: see tickerplant capture ls")
    return session


class CaptureReader:
    """The records of one session. After `records` has ended, `faults` and `torn_bytes` say what was not one."""

    def __init__(self, folder: Path, session: int) -> None:
        """Opens nothing yet."""
        self.folder = folder
        self.session = session
        self.faults: list[CaptureFault] = []
        self.torn_bytes = 0
        """After the last record of the last segment: torn off, or being written."""
        self.segment_count = 0
        self.record_count = 0
        self.first_record = 0
        """How many records of the session stood in segments that were deleted."""
        self._seed = capture_seed(session)

    def records(self) -> Iterator[bytes]:
        """The payloads in order, as far as they can be read; damage is passed over. Raises `OSError`."""
        names = [f.name for f in capture_files(self.folder) if f.name.session == self.session]
        expected: int | None = None
        for index, name in enumerate(names):
            try:
                content = open_segment(self.folder, name)
            except FileNotFoundError:
                self._fault(name, "it was deleted meanwhile")
                continue
            with content:
                self.segment_count += 1
                header = self._read_header(name, content, is_last=index == len(names) - 1)
                if header is None:
                    continue
                if expected is None:
                    self.first_record = header.first_record
                elif header.first_record != expected:
                    self._fault(
                        name, f"{header.first_record - expected} records before it are missing"
                    )
                before = self.record_count
                yield from self._read(name, content, is_last=index == len(names) - 1)
                expected = header.first_record + self.record_count - before

    def whole_records(self) -> Iterator[bytes]:
        """As `records`, from the session's beginning, to be played. Raises `DamagedCaptureError` at the first fault."""
        for record in self.records():
            self._require_sound()
            yield record
        self._require_sound()

    def _require_sound(self) -> None:
        if self.faults:
            raise DamagedCaptureError(f"capture {self.folder}, {self.faults[0]}")
        if self.first_record:
            raise DamagedCaptureError(
                f"capture {self.folder}: the beginning of session {self.session} was deleted, and without it the plant "
                "cannot be played: export its frames (tickerplant capture export), or raise capture.max_bytes"
            )

    def _fault(self, name: CaptureName, problem: str) -> None:
        self.faults.append(CaptureFault(name, problem))

    def _read_header(
        self, name: CaptureName, content: BinaryIO, *, is_last: bool
    ) -> CaptureHeader | None:
        try:
            data = _read(content, CAPTURE_HEADER_BYTES)
            if is_last and len(data) < CAPTURE_HEADER_BYTES:
                self.torn_bytes = len(data)
                return None
            header = decode_capture_header(data)
            if (header.session, header.ordinal) != name:
                raise DamagedCaptureError(
                    f"it is segment {header.ordinal} of session {header.session}, renamed"
                )
        except DamagedCaptureError as error:
            self._fault(name, str(error))
            return None
        return header

    def _read(self, name: CaptureName, content: BinaryIO, *, is_last: bool) -> Iterator[bytes]:
        scanner = RecordScanner(self._seed)
        try:
            while data := _read(content, CAPTURE_READ_BYTES):
                for record in scanner.feed(data):
                    self.record_count += 1
                    yield record
        except DamagedCaptureError as error:
            self._fault(name, str(error))
            return
        if not scanner.held_bytes:
            return
        if is_last:
            self.torn_bytes = scanner.held_bytes
        else:
            self._fault(name, f"offset {scanner.offset}: the last record is cut short")


def _read(content: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes. Raises `DamagedCaptureError` if they cannot be decompressed, `OSError`."""
    try:
        return content.read(size)
    except (EOFError, zlib.error) as error:
        raise DamagedCaptureError(f"it cannot be decompressed: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedCaptureError(f"it cannot be decompressed: {error}") from None
