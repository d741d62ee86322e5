"""The tick log's format: names, headers and records of segment files, and what counts as a torn tail. Pure.

A session is a row of segment files, `<session>-<ordinal>.ktl`, whose names sort in the order of writing. A segment is a
header of `SEGMENT_HEADER_BYTES` and then records: length u32 (40 to 1372), CRC-32 u32 over length, session and
datagram, and the datagram. All integers are little-endian. The CRC begins with length and session, so neither zeros
nor records of another session are ever valid.

Records are only appended. What is not a valid record and has no valid record after it is a torn tail: the owner of
the log cuts it before the next session, a reader waits there until the next segment's header names the final
position. What has a valid record after it is damage.
"""

import re
import struct
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from tickerplant.core.keyring import KeyRing, add_flags
from tickerplant.core.messages import Stream
from tickerplant.core.packets import Datagram
from tickerplant.core.wire import FLAG_NOT_REPAIRABLE, HEADER, MAGIC, VERSION
from tickerplant.errors import DamagedSegmentError
from tickerplant.limits import DATAGRAM_MAX_BYTES, HEADER_BYTES

SEGMENT_MAGIC = b"KTPLOG\x1a\n"
SEGMENT_VERSION = 1
SEGMENT_SUFFIX = ".ktl"
RECORD_HEADER_BYTES = 8
RECORD_MAX_BYTES = RECORD_HEADER_BYTES + DATAGRAM_MAX_BYTES
STREAM_COUNT = len(Stream)
BOOT_ID_BYTES = 16
STREAM_OFFSET = 4
"""Of the stream number in a datagram."""

_FLAG_PREVIOUS_COMPLETE = 1
_SEGMENT_HEADER = struct.Struct(f"<8sHHHHQIIQQQQ{BOOT_ID_BYTES}s{STREAM_COUNT}Q{STREAM_COUNT}Q")
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT_HEADER.size + _CRC.size
_RECORD_HEADER = struct.Struct("<II")
_CRC_START = struct.Struct("<IQ")
_DATAGRAM_START = struct.pack("<HB", MAGIC, VERSION)
_SEGMENT_NAME = re.compile(r"([0-9]{20})-([0-9]{8})\.ktl")

_pack_record_header = _RECORD_HEADER.pack
_unpack_record_header = _RECORD_HEADER.unpack_from
_unpack_datagram_header = HEADER.unpack_from

Record = tuple[int, bytes]
"""(offset of the record in its segment file, datagram)"""
NextSeqs = tuple[int, ...]
"""The next sequence of each stream, streams 1 to 5 in order; 0: not known."""


class SegmentName(NamedTuple):
    """Which segment: ordinals of a session begin at 1. Sorts in the order of writing."""

    session: int
    ordinal: int

    def __str__(self) -> str:
        """The file name."""
        return f"{self.session:020d}-{self.ordinal:08d}{SEGMENT_SUFFIX}"

    @classmethod
    def parse(cls, file_name: str) -> "SegmentName | None":
        """The segment of a file name; None if it is not one."""
        match = _SEGMENT_NAME.fullmatch(file_name)
        return None if match is None else cls(int(match[1]), int(match[2]))


class LogPosition(NamedTuple):
    """A place in the log: `offset` bytes into a segment, where a record begins. Sorts in the order of writing."""

    session: int
    ordinal: int
    offset: int = 0

    @property
    def segment(self) -> SegmentName:
        """The segment it lies in."""
        return SegmentName(self.session, self.ordinal)


NO_SEGMENT = SegmentName(0, 0)
"""Stands where there is no segment before."""
NO_SEQS: NextSeqs = (0,) * STREAM_COUNT
FIRST_SEQS: NextSeqs = (1,) * STREAM_COUNT


class SegmentHeader(NamedTuple):
    """What a segment begins with.

    `first_seqs`: the next sequence of each stream at its start. `previous_segment` ended at `previous_bytes`, whatever
    its file holds beyond. `previous_session` is the session before this one, logged or not, `previous_seqs` how far it
    came (0: not known) and `is_previous_complete` whether all of it is in the log. `boot_id`: of the machine's run.
    """

    session: int
    ordinal: int
    publisher: int
    partition: int
    created_ns: int
    first_seqs: NextSeqs
    previous_segment: SegmentName = NO_SEGMENT
    previous_bytes: int = 0
    previous_session: int = 0
    previous_seqs: NextSeqs = NO_SEQS
    is_previous_complete: bool = False
    boot_id: bytes = bytes(BOOT_ID_BYTES)


class Tail(Enum):
    """Why a scan of records ended where it did."""

    COMPLETE = "complete"
    """Right after a record."""
    PARTIAL = "partial"
    """In what may become a valid record when more bytes follow."""
    INVALID = "invalid"
    """At bytes that are no record, whatever follows them."""


class Scan(NamedTuple):
    """The valid records of some bytes, the offset in the file after the last of them, and what stands there."""

    records: list[Record]
    end: int
    tail: Tail


def encode_segment_header(header: SegmentHeader) -> bytes:
    """`SEGMENT_HEADER_BYTES`, the last four of them a CRC-32 of the others."""
    content = _SEGMENT_HEADER.pack(
        SEGMENT_MAGIC,
        SEGMENT_VERSION,
        _FLAG_PREVIOUS_COMPLETE if header.is_previous_complete else 0,
        header.publisher,
        header.partition,
        header.session,
        header.ordinal,
        header.previous_segment.ordinal,
        header.created_ns,
        header.previous_segment.session,
        header.previous_bytes,
        header.previous_session,
        header.boot_id,
        *header.first_seqs,
        *header.previous_seqs,
    )
    return content + _CRC.pack(crc32(content))


def decode_segment_header(data: bytes) -> SegmentHeader:
    """The header at the start of `data`. Raises `DamagedSegmentError`."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise DamagedSegmentError(f"segment header of {len(data)} B is cut short")
    content = data[: _SEGMENT_HEADER.size]
    if crc32(content) != _CRC.unpack_from(data, _SEGMENT_HEADER.size)[0]:
        raise DamagedSegmentError("segment header does not verify")
    fields = _SEGMENT_HEADER.unpack(content)
    magic, version, flags, publisher, partition, session, ordinal, previous_ordinal = fields[:8]
    created_ns, previous_of, previous_bytes, previous_session, boot_id = fields[8:13]
    if magic != SEGMENT_MAGIC or version != SEGMENT_VERSION:
        raise DamagedSegmentError(
            f"segment of version {version}; this program reads version {SEGMENT_VERSION}"
        )
    return SegmentHeader(
        session=session,
        ordinal=ordinal,
        publisher=publisher,
        partition=partition,
        created_ns=created_ns,
        first_seqs=fields[13 : 13 + STREAM_COUNT],
        previous_segment=SegmentName(previous_of, previous_ordinal),
        previous_bytes=previous_bytes,
        previous_session=previous_session,
        previous_seqs=fields[13 + STREAM_COUNT :],
        is_previous_complete=bool(flags & _FLAG_PREVIOUS_COMPLETE),
        boot_id=boot_id,
    )


@lru_cache(maxsize=8)
def crc_seeds(session: int) -> tuple[int, ...]:
    """By length of a datagram: the CRC-32 of length and session, with which that of its record begins."""
    return tuple(
        crc32(_CRC_START.pack(length, session)) for length in range(DATAGRAM_MAX_BYTES + 1)
    )


def encode_records(datagrams: Sequence[Datagram], seeds: Sequence[int]) -> bytes:
    """The records of (stream, datagram) pairs, joined; `seeds` are the `crc_seeds` of the session."""
    if len(datagrams) == 1:
        ((_stream, datagram),) = datagrams
        length = len(datagram)
        return _pack_record_header(length, crc32(datagram, seeds[length])) + datagram
    parts: list[bytes] = []
    add = parts.append
    for _stream, datagram in datagrams:
        length = len(datagram)
        add(_pack_record_header(length, crc32(datagram, seeds[length])))
        add(datagram)
    return b"".join(parts)


def scan_records(data: bytes, base: int, seeds: Sequence[int]) -> Scan:
    """The records at the start of `data`, which begins at offset `base` of the file, up to the first that is none."""
    records: list[Record] = []
    add = records.append
    start, size = 0, len(data)
    tail = Tail.COMPLETE
    while size - start >= RECORD_HEADER_BYTES:
        length, crc = _unpack_record_header(data, start)
        if not HEADER_BYTES <= length <= DATAGRAM_MAX_BYTES:
            tail = Tail.INVALID
            break
        body = start + RECORD_HEADER_BYTES
        end = body + length
        if end > size:
            tail = Tail.PARTIAL
            break
        datagram = data[body:end]
        if crc32(datagram, seeds[length]) != crc:
            tail = Tail.INVALID
            break
        add((base + start, datagram))
        start = end
    else:
        if start < size:
            tail = Tail.PARTIAL
    return Scan(records, base + start, tail)


def find_record(data: bytes, start: int, seeds: Sequence[int]) -> int:
    """Index of the first valid and whole record at or after index `start` of `data`; -1 if there is none."""
    size = len(data)
    found = data.find(_DATAGRAM_START, start + RECORD_HEADER_BYTES)
    while found >= 0:
        at = found - RECORD_HEADER_BYTES
        length, crc = _unpack_record_header(data, at)
        if HEADER_BYTES <= length <= min(DATAGRAM_MAX_BYTES, size - found):
            datagram = data[found : found + length]
            if crc32(datagram, seeds[length]) == crc:
                return at
        found = data.find(_DATAGRAM_START, found + 1)
    return -1


def next_seq_of(datagram: bytes) -> int:
    """The next sequence of its stream after `datagram`, which is valid."""
    fields = _unpack_datagram_header(datagram)
    seq, message_count = fields[7], fields[9]
    return int(seq + message_count)


def next_seqs_after(first_seqs: NextSeqs, last: dict[int, bytes]) -> NextSeqs:
    """The next sequences, given those at the start and the last datagram of each stream since."""
    return tuple(
        next_seq_of(last[stream]) if stream in last else first
        for stream, first in enumerate(first_seqs, start=1)
    )


def sent_ns_of(datagram: bytes) -> int:
    """When `datagram`, which is valid, was sent: nanoseconds since the epoch."""
    return int(_unpack_datagram_header(datagram)[8])


def mark_not_repairable(
    datagrams: Sequence[Datagram], key_ring: KeyRing | None = None
) -> list[Datagram]:
    """The same datagrams saying that they are not in the log; those with a trailer signed anew by `key_ring`."""
    return [
        (stream, add_flags(datagram, FLAG_NOT_REPAIRABLE, key_ring))
        for stream, datagram in datagrams
    ]
