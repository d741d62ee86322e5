"""The raw capture's format: names, headers and records of segment files. Pure.

A capture is what one session of the plant took in, as a row of segment files `<session>-<ordinal>.ktc`, compressed to
`.ktc.gz` (gzip) once they are closed. A segment is a header of `CAPTURE_HEADER_BYTES` and then records: length u32,
CRC-32 u32, payload. All integers are little-endian. The CRC begins with the session, so neither zeros nor records of
another session are ever valid. What a payload means is the feed's business (`tickerplant_kalshi.inputs`).

Records are only appended. Each header counts the records before it, so that a missing end or segment shows.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from tickerplant.errors import DamagedCaptureError
from tickerplant.limits import CAPTURE_RECORD_MAX_BYTES

CAPTURE_SUFFIX = ".ktc"
COMPRESSED_SUFFIX = ".ktc.gz"
CAPTURE_VERSION = 1

_MAGIC = b"KTPCAP\x1a\n"
_HEADER = struct.Struct("<8sHHIQQQ")
_CRC = struct.Struct("<I")
_SESSION = struct.Struct("<Q")
_RECORD_HEADER = struct.Struct("<II")
CAPTURE_HEADER_BYTES = _HEADER.size + _CRC.size
CAPTURE_RECORD_HEADER_BYTES = _RECORD_HEADER.size
_NAME = re.compile(r"([0-9]{20})-([0-9]{8})\.ktc(\.gz)?")

_pack_record_header = _RECORD_HEADER.pack
_unpack_record_header = _RECORD_HEADER.unpack_from


class CaptureName(NamedTuple):
    """Which segment: ordinals of a session begin at 1. Sorts in the order of writing."""

    session: int
    ordinal: int

    def __str__(self) -> str:
        """The file name while it is not compressed."""
        return f"{self.session:020d}-{self.ordinal:08d}{CAPTURE_SUFFIX}"

    @classmethod
    def parse(cls, file_name: str) -> "CaptureName | None":
        """The segment of a file name, compressed or not; None if it is not one."""
        match = _NAME.fullmatch(file_name)
        return None if match is None else cls(int(match[1]), int(match[2]))


class CaptureHeader(NamedTuple):
    """What a segment begins with; `first_record` records of its session stand in the segments before it."""

    session: int
    ordinal: int
    created_ns: int
    first_record: int = 0


def encode_capture_header(header: CaptureHeader) -> bytes:
    """`CAPTURE_HEADER_BYTES`, the last four of them a CRC-32 of the others."""
    session, ordinal, created_ns, first_record = header
    content = _HEADER.pack(_MAGIC, CAPTURE_VERSION, 0, ordinal, session, created_ns, first_record)
    return content + _CRC.pack(crc32(content))


def decode_capture_header(data: bytes) -> CaptureHeader:
    """The header at the start of `data`. Raises `DamagedCaptureError`."""
    if len(data) < CAPTURE_HEADER_BYTES:
        raise DamagedCaptureError(f"capture header of {len(data)} B is cut short")
    content = data[: _HEADER.size]
    magic, version, _flags, ordinal, session, created_ns, first_record = _HEADER.unpack(content)
    if magic != _MAGIC:
        raise DamagedCaptureError("this is no capture: it does not begin as one")
    if crc32(content) != _CRC.unpack_from(data, _HEADER.size)[0]:
        raise DamagedCaptureError("capture header does not verify")
    if version != CAPTURE_VERSION:
        raise DamagedCaptureError(
            f"capture of version {version}; this program reads version {CAPTURE_VERSION}"
        )
    return CaptureHeader(session, ordinal, created_ns, first_record)


def capture_seed(session: int) -> int:
    """With what the CRC-32 of the session's records begins."""
    return crc32(_SESSION.pack(session))


def encode_record_header(payload: bytes, seed: int) -> bytes:
    """What stands before `payload`, which is not empty; `seed` is the `capture_seed` of the session."""
    return _pack_record_header(len(payload), crc32(payload, seed))


class RecordScanner:
    """The records of one segment, from its bytes as they come; the header apart.

    Holds at most one record that is not whole yet.
    """

    def __init__(self, seed: int, offset: int = CAPTURE_HEADER_BYTES) -> None:
        """`offset` is where in the file the first bytes stand; `seed` the `capture_seed` of the session."""
        self.offset = offset
        """In the file, after the last whole record."""
        self._seed = seed
        self._held = b""

    @property
    def held_bytes(self) -> int:
        """How much stands after the last whole record."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that are whole now. Raises `DamagedCaptureError` at what is no record; then it is done with."""
        data = self._held + data
        start, size = 0, len(data)
        try:
            while size - start >= CAPTURE_RECORD_HEADER_BYTES:
                length, crc = _unpack_record_header(data, start)
                if not 0 < length <= CAPTURE_RECORD_MAX_BYTES:
                    raise DamagedCaptureError(f"offset {self.offset}: {length} B is no record")
                body = start + CAPTURE_RECORD_HEADER_BYTES
                end = body + length
                if end > size:
                    break
                payload = data[body:end]
                if crc32(payload, self._seed) != crc:
                    raise DamagedCaptureError(f"offset {self.offset}: record does not verify")
                self.offset += end - start
                start = end
                yield payload
        finally:
            self._held = data[start:]
