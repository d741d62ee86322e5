"""What the files of a recording hold. Pure.

A recording has the tick log's segments (`tickerplant.core.logformat`), a row of them for each session, so that `replay`
reads it as it reads a tick log. Two sessions may be written at a time, so the first segment of one does not say where
the one before ended, and `first_seqs` is 0 where a session has nothing of a stream yet. Beside each segment stands its
index, `<session>-<ordinal>.ktx`: entries of `INDEX_ENTRY_BYTES`, each of which says how far the streams had come at an
offset of the segment. What was told of the session beside its messages (gaps and the like) stands in
`<session>.events.jsonl`.

Messages are encoded anew, in the order in which each stream was handed out. A heartbeat in a recording says no more
than "everything of this stream before this sequence was recorded or told as a gap".
"""

import re
import struct
from typing import NamedTuple
from zlib import crc32

import msgspec

from tickerplant.core.logformat import STREAM_COUNT, NextSeqs, SegmentName
from tickerplant.core.messages import AnyMessage
from tickerplant.core.wire import (
    HeartbeatBody,
    Kind,
    encode_body,
    encode_heartbeat,
    frame_body,
)

INDEX_SUFFIX = ".ktx"
EVENTS_SUFFIX = ".events.jsonl"
LOCK_FILE = "recorder.lock"

_ENTRY = struct.Struct(f"<QQ{STREAM_COUNT}Q")
_CRC = struct.Struct("<I")
_SEED = struct.Struct("<Q")
INDEX_ENTRY_BYTES = _ENTRY.size + _CRC.size
_EVENTS_NAME = re.compile(r"([0-9]{20})\.events\.jsonl")
_UNKNOWN_MESSAGE = msgspec.msgpack.encode([255])
"""Stands for a message of a type that the recorder did not know; those who read it do not know it either."""


class IndexEntry(NamedTuple):
    """`offset`: where a record begins. Nothing before it was sent after `sent_ns`.

    `next_seqs`: the next sequence of each stream there; 0: the session has nothing of the stream yet.
    """

    offset: int
    sent_ns: int
    next_seqs: NextSeqs


class RecordedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the events. `kind`: began, ended (of the recorder), or the event's name: Gap, StreamDead, ...

    Sequences are both included; 0: it is about none. `cause` is a name of `GapCause`.
    """

    at_ns: int
    kind: str
    session: int = 0
    stream: int = 0
    from_seq: int = 0
    to_seq: int = 0
    cause: str = ""
    detail: str = ""


def encode_index_entry(entry: IndexEntry, session: int) -> bytes:
    """`INDEX_ENTRY_BYTES`, the last four a CRC-32 that begins with the session."""
    content = _ENTRY.pack(entry.offset, entry.sent_ns, *entry.next_seqs)
    return content + _CRC.pack(crc32(content, crc32(_SEED.pack(session))))


def decode_index(data: bytes, session: int) -> list[IndexEntry]:
    """The entries up to the first that does not verify: an index may be shorter than its segment, never wrong."""
    entries = []
    seed = crc32(_SEED.pack(session))
    for start in range(0, len(data) - INDEX_ENTRY_BYTES + 1, INDEX_ENTRY_BYTES):
        content = data[start : start + _ENTRY.size]
        if crc32(content, seed) != _CRC.unpack_from(data, start + _ENTRY.size)[0]:
            break
        offset, sent_ns, *next_seqs = _ENTRY.unpack(content)
        entries.append(IndexEntry(offset, sent_ns, tuple(next_seqs)))
    return entries


def index_name(name: SegmentName) -> str:
    """The file name of a segment's index."""
    return f"{name.session:020d}-{name.ordinal:08d}{INDEX_SUFFIX}"


def events_name(session: int) -> str:
    """The file name of a session's events."""
    return f"{session:020d}{EVENTS_SUFFIX}"


def session_of_events(file_name: str) -> int | None:
    """The session of a file of events; None if it is none."""
    match = _EVENTS_NAME.fullmatch(file_name)
    return None if match is None else int(match[1])


class Place(NamedTuple):
    """Of which plant, session and stream something is."""

    publisher: int
    partition: int
    session: int
    stream: int


def encode_messages(
    place: Place, seq: int, ts_send_ns: int, messages: list[AnyMessage | None]
) -> bytes:
    """A datagram of messages as they were handed out; those of unknown types keep their sequence."""
    known = [msgspec.Raw(_UNKNOWN_MESSAGE) if each is None else each for each in messages]
    return frame_body(
        encode_body(known),
        kind=Kind.DATA,
        stream=place.stream,
        session=place.session,
        seq=seq,
        ts_send_ns=ts_send_ns,
        count=len(messages),
        publisher=place.publisher,
        partition=place.partition,
    )


def encode_mark(place: Place, next_seq: int, sent_ns: int, *, is_end: bool = False) -> bytes:
    """A heartbeat or, if the session ended there, an end of session."""
    return encode_heartbeat(
        place.stream,
        place.session,
        next_seq,
        sent_ns,
        HeartbeatBody(0),
        Kind.END_OF_SESSION if is_end else Kind.HEARTBEAT,
        place.publisher,
        place.partition,
    )
