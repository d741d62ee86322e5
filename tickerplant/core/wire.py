"""KTP/1, the datagram format, both ways. Source: ARCHITECTURE.md, "Wire format KTP/1".

A datagram is a 40-byte little-endian header, a msgpack body of at most 1312 bytes and, if `FLAG_AUTHENTICATED`, a
20-byte trailer. The body of a data datagram is one msgpack array of `count` tagged arrays (`core.messages`), so
that every datagram decodes alone. Decoding raises only subclasses of `WireError`.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, get_args

import msgspec

from tickerplant.core.messages import AnyMessage, Message, Stream
from tickerplant.errors import (
    AuthenticationError,
    ForeignDatagramError,
    LengthMismatchError,
    MalformedBodyError,
    OversizedMessageError,
    TruncatedDatagramError,
    UnsupportedVersionError,
)
from tickerplant.limits import BODY_MAX_BYTES, DATAGRAM_MAX_BYTES, HEADER_BYTES, TRAILER_BYTES

MAGIC = 0x544B
VERSION = 1
SCHEMA = 1
"""Message schema version of every stream."""
HEADER = struct.Struct("<HBBBBHQQQHHHH")
TRAILER_KEY_ID = struct.Struct("<I")
FLAGS_OFFSET = 5
COUNT_MAX = 1312

FLAG_RETRANSMITTED = 1
FLAG_SNAPSHOT = 2
FLAG_AUTHENTICATED = 4
FLAG_UPSTREAM_DEGRADED = 16
FLAG_REBUILDING = 32
FLAG_NOT_REPAIRABLE = 64
_FLAGS_UNSIGNED = FLAG_RETRANSMITTED | FLAG_SNAPSHOT


class Kind(IntEnum):
    """What a datagram is; heartbeat and end of session carry the next expected seq and no messages."""

    DATA = 0
    HEARTBEAT = 1
    END_OF_SESSION = 2


class Header(NamedTuple):
    """The 40 bytes before the body, in wire order. `seq` is that of the first message."""

    magic: int
    version: int
    kind: int
    stream: int
    flags: int
    schema: int
    session: int
    seq: int
    ts_send_ns: int
    message_count: int
    body_bytes: int
    publisher: int
    partition: int


class HeartbeatBody(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Body of heartbeats and ends of session: for loss counts and recovery."""

    datagrams_sent: int
    oldest_seq: int = 0
    log_on: bool = False


assert HEADER.size == HEADER_BYTES

encode_body = msgspec.msgpack.Encoder().encode
"""Messages (a list of structs) to a body; lengths are checked where packets are closed."""
encode_message = encode_body
"""One message; encoded messages, joined behind the header of an array, are a body."""
_decode_messages = msgspec.msgpack.Decoder(list[AnyMessage]).decode
_decode_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.msgpack.Decoder().decode
_decode_one: Callable[[msgspec.Raw], AnyMessage] = msgspec.msgpack.Decoder(AnyMessage).decode
_decode_heartbeat = msgspec.msgpack.Decoder(HeartbeatBody).decode
_unpack_header = HEADER.unpack_from
_new_tuple = tuple.__new__
_STREAMS = frozenset(map(int, Stream))
_KINDS = frozenset(map(int, Kind))
_DATA = int(Kind.DATA)
MESSAGE_TYPES: tuple[type[Message], ...] = get_args(AnyMessage)
_KNOWN_TAGS = frozenset(message.__struct_config__.tag for message in MESSAGE_TYPES)


def decode_header(datagram: bytes | memoryview) -> Header:
    """The checked header of a datagram; lengths, kind and stream are consistent when it returns.

    Raises `TruncatedDatagramError`, `ForeignDatagramError`, `UnsupportedVersionError`, `LengthMismatchError`.
    """
    size = len(datagram)
    if size < HEADER_BYTES:
        raise TruncatedDatagramError(
            f"datagram of {size} B is shorter than the {HEADER_BYTES} B header"
        )
    fields = _unpack_header(datagram)
    # Checked before they have names: every look at one by its name takes as long as a check.
    magic, version, kind, stream, flags, _, _, seq, _, message_count, body_bytes, _, _ = fields
    if magic != MAGIC or version != VERSION:
        if magic != MAGIC:
            raise ForeignDatagramError(
                f"magic 0x{magic:04X} is not KTP: another protocol on the group"
            )
        raise UnsupportedVersionError(
            f"KTP version {version}; this library reads version {VERSION}"
        )
    if kind not in _KINDS or stream not in _STREAMS:
        raise UnsupportedVersionError(f"unknown kind {kind} or stream {stream}")
    trailer = TRAILER_BYTES if flags & FLAG_AUTHENTICATED else 0
    if size != HEADER_BYTES + body_bytes + trailer:
        raise LengthMismatchError(f"datagram of {size} B, header says {body_bytes} B of body")
    if body_bytes > BODY_MAX_BYTES or (kind == _DATA) != (message_count > 0):
        raise LengthMismatchError(f"body of {body_bytes} B with {message_count} messages")
    if seq == 0 or seq + message_count > 0xFFFF_FFFF_FFFF_FFFF:
        raise LengthMismatchError(f"sequence {seq} is out of range")
    return _new_tuple(Header, fields)


def decode_body(datagram: bytes | memoryview, header: Header) -> list[AnyMessage | None]:
    """The messages of a data datagram; None stands where the tag is unknown (it still takes one sequence number).

    Raises `MalformedBodyError`.
    """
    # A copy, because that is made sooner than a view.
    body = datagram[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
    try:
        messages: list[AnyMessage | None] = _decode_messages(body)  # type: ignore[assignment]  # invariant list
    except (msgspec.ValidationError, UnicodeDecodeError):
        messages = _decode_tolerantly(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedBodyError(f"body is not msgpack: {error}") from error
    if len(messages) != header.message_count:
        raise MalformedBodyError(
            f"body holds {len(messages)} messages, header says {header.message_count}"
        )
    return messages


def _decode_tolerantly(body: bytes | memoryview) -> list[AnyMessage | None]:
    """Message by message, with None for unknown tags; a known tag that does not decode is malformed."""
    try:
        return [_decode_message(raw) for raw in _decode_raws(body)]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedBodyError(f"body does not decode: {error}") from error


def _decode_message(raw: msgspec.Raw) -> AnyMessage | None:
    try:
        return _decode_one(raw)
    except msgspec.ValidationError:
        fields: Any = _decode_any(raw)
        if (
            isinstance(fields, list)
            and fields
            and type(fields[0]) is int
            and fields[0] not in _KNOWN_TAGS
        ):
            return None
        raise


def decode_heartbeat(datagram: bytes | memoryview, header: Header) -> HeartbeatBody:
    """The body of a heartbeat or end of session. Raises `MalformedBodyError`."""
    try:
        return _decode_heartbeat(
            memoryview(datagram)[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
        )
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedBodyError(f"heartbeat body: {error}") from error


def frame_body(
    body: bytes,
    *,
    kind: int,
    stream: int,
    session: int,
    seq: int,
    ts_send_ns: int,
    count: int,
    publisher: int = 1,
    partition: int = 0,
    flags: int = 0,
) -> bytes:
    """A datagram around an encoded body. Raises `OversizedMessageError` beyond `BODY_MAX_BYTES`."""
    size = len(body)
    if size > BODY_MAX_BYTES:
        raise OversizedMessageError(f"body of {size} B; a datagram holds {BODY_MAX_BYTES} B")
    return (
        HEADER.pack(
            MAGIC,
            VERSION,
            kind,
            stream,
            flags,
            SCHEMA,
            session,
            seq,
            ts_send_ns,
            count,
            size,
            publisher,
            partition,
        )
        + body
    )


def encode_datagram(
    kind: int,
    stream: int,
    session: int,
    seq: int,
    ts_send_ns: int,
    messages: Sequence[AnyMessage],
    publisher: int = 1,
    partition: int = 0,
    flags: int = 0,
) -> bytes:
    """A data datagram of `messages`, the first of which has sequence `seq`. Raises `OversizedMessageError`."""
    return frame_body(
        encode_body(messages),
        kind=kind,
        stream=stream,
        session=session,
        seq=seq,
        ts_send_ns=ts_send_ns,
        count=len(messages),
        publisher=publisher,
        partition=partition,
        flags=flags,
    )


def encode_heartbeat(
    stream: int,
    session: int,
    next_seq: int,
    ts_send_ns: int,
    body: HeartbeatBody,
    kind: int = Kind.HEARTBEAT,
    publisher: int = 1,
    partition: int = 0,
    flags: int = 0,
) -> bytes:
    """A heartbeat or end of session; `next_seq` is the next sequence expected on the stream."""
    return frame_body(
        encode_body(body),
        kind=kind,
        stream=stream,
        session=session,
        seq=next_seq,
        ts_send_ns=ts_send_ns,
        count=0,
        publisher=publisher,
        partition=partition,
        flags=flags,
    )


def keyed_digest(signed: bytes | bytearray, key: bytes) -> bytes:
    """Keyed BLAKE2b-128 of `signed`, the last 16 bytes of every trailer."""
    return hashlib.blake2b(
        signed, key=key, digest_size=TRAILER_BYTES - TRAILER_KEY_ID.size
    ).digest()


def check_digest(computed: bytes, received: bytes, key_id: int) -> None:
    """Returns if both are equal, in constant time. Raises `AuthenticationError`."""
    if not hmac.compare_digest(computed, received):
        raise AuthenticationError(f"trailer does not verify under key id {key_id}")


def authenticate(datagram: bytes, key_id: int, key: bytes) -> bytes:
    """`datagram` with `FLAG_AUTHENTICATED` and a trailer: key id and keyed BLAKE2b-128 of all before the digest.

    The flags `FLAG_RETRANSMITTED` and `FLAG_SNAPSHOT` count as zero, so that logged bytes stay valid when resent.
    """
    assert len(datagram) + TRAILER_BYTES <= DATAGRAM_MAX_BYTES
    flags = datagram[FLAGS_OFFSET] | FLAG_AUTHENTICATED
    signed = bytearray(datagram)
    signed[FLAGS_OFFSET] = flags & ~_FLAGS_UNSIGNED
    signed += TRAILER_KEY_ID.pack(key_id)
    digest = keyed_digest(signed, key)
    signed[FLAGS_OFFSET] = flags
    return bytes(signed) + digest


def verify_authentic(datagram: bytes, header: Header, keys: Mapping[int, bytes]) -> None:
    """Returns if the trailer verifies under one of `keys` (key id -> key). Raises `AuthenticationError`."""
    verify_trailer(datagram, header.flags, HEADER_BYTES + header.body_bytes, keys)


def verify_trailer(datagram: bytes, flags: int, end: int, keys: Mapping[int, bytes]) -> None:
    """As `verify_authentic`, for any datagram with its flags at `FLAGS_OFFSET` and its trailer at `end`."""
    if not flags & FLAG_AUTHENTICATED:
        raise AuthenticationError("datagram without trailer on an authenticated feed")
    (key_id,) = TRAILER_KEY_ID.unpack_from(datagram, end)
    key = keys.get(key_id)
    if key is None:
        raise AuthenticationError(f"datagram is signed with unknown key id {key_id}")
    signed = bytearray(datagram[: end + TRAILER_KEY_ID.size])
    signed[FLAGS_OFFSET] &= ~_FLAGS_UNSIGNED & 0xFF
    check_digest(keyed_digest(signed, key), bytes(datagram[end + TRAILER_KEY_ID.size :]), key_id)
