"""The recovery protocol, both ways (pure): gap fill over UDP, streams and snapshots over TCP, on one port number.

UDP. A request is one 40-byte little-endian datagram, with a trailer where a key is configured. The answer is the
datagrams that intersect `from_seq`..`to_seq` as they were sent, with `FLAG_RETRANSMITTED`, and then one reply of the
same layout whose code says how it went. Every one of them may be lost: the requester asks again for what it lacks.

TCP. Each side sends frames: length u32 (of all that follows), kind u8, payload, and a trailer where a key is
configured. The client opens with `Open`; the server answers `Hello`; the client sends one `StreamRequest` or
`SnapshotRequest`; the server answers with KTP/1 datagrams and control messages up to `StreamEnd`, `SnapshotEnd` or
`Reject`, and closes.

Trailers. Key id u32 and keyed BLAKE2b-128. On UDP of all before the digest, as in `core.wire`. On TCP of the
receiver's nonce, the frame's number in its direction (from 0), and the frame from its length field up to and with the
key id; the nonce of the server is in `Hello`, that of the client in `Open` (whose own trailer uses an empty nonce). A
frame can thus neither be replayed nor moved. Only a `Reject` in the place of `Hello` bears no trailer: the client's
nonce is not known then, and a client without the key is to hear why it gets nothing. Decoding raises only subclasses of
`WireError`.

Replay over UDP. A signed request carries no nonce, so that one round trip is enough: whoever overheard one can send it
again, also from a forged address. He gains what is on the groups anyway, and the rates of that address and of all
clients bound what is sent for it; what is served twice changes nothing at a subscriber, and replies are matched by
`request_id`.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple, Self

import msgspec

from tickerplant.core.messages import Stream
from tickerplant.core.packed_books import PackedBooks, decode_books
from tickerplant.core.wire import (
    FLAG_AUTHENTICATED,
    TRAILER_KEY_ID,
    authenticate,
    check_digest,
    keyed_digest,
    verify_trailer,
)
from tickerplant.errors import (
    AuthenticationError,
    ForeignDatagramError,
    LengthMismatchError,
    MalformedBodyError,
    TruncatedDatagramError,
    UnsupportedVersionError,
)
from tickerplant.limits import RECOVERY_FRAME_MAX_BYTES, TRAILER_BYTES

GAP_FILL_MAGIC = 0x4746
GAP_FILL = struct.Struct("<HBBBBHIHHQQQ")
GAP_FILL_BYTES = GAP_FILL.size
VERSION = 1
NONCE_BYTES = 16
FRAME_HEADER = struct.Struct("<IB")
_FRAME_NUMBER = struct.Struct("<Q")
_LENGTH_BYTES = 4

StreamSeqs = tuple[tuple[int, int], ...]
"""(stream, sequence) pairs, one for each stream concerned."""


class GapFillKind(IntEnum):
    """Who speaks."""

    REQUEST = 1
    REPLY = 2


class RecoveryCode(IntEnum):
    """How a request went; unknown values count as UNAVAILABLE. SERVED goes with datagrams, the others without."""

    SERVED = 0
    MALFORMED = 1
    TOO_OLD = 2
    """Retention has taken it: never again."""
    NOT_YET = 3
    """Ahead of what recovery has read: ask again in a moment."""
    THROTTLED = 4
    """Beyond the limits of this client: ask again later."""
    UNKNOWN_SESSION = 5
    NOT_REPAIRABLE = 6
    """The log was off, or is damaged, at that place: never."""
    UNAUTHENTICATED = 7
    UNKNOWN_PLANT = 8
    UNAVAILABLE = 9
    """Recovery is starting, ending or full."""


class GapFill(NamedTuple):
    """A gap-fill request or reply, in wire order.

    Request: the messages `from_seq`..`to_seq`, both included, of `stream` in `session`; `code` is 0. Reply: `code`, the
    `request_id` and `session` asked for; `from_seq` the oldest repairable sequence of that stream and session, `to_seq`
    the next one that recovery will read; both 0 where unknown.
    """

    kind: int
    stream: int
    code: int
    request_id: int
    publisher: int
    partition: int
    session: int
    from_seq: int
    to_seq: int
    flags: int = 0


def encode_gap_fill(message: GapFill, key: tuple[int, bytes] | None = None) -> bytes:
    """The datagram; signed if `key` (key id, key) is given."""
    packed = GAP_FILL.pack(
        GAP_FILL_MAGIC,
        VERSION,
        message.kind,
        message.stream,
        0,
        message.code,
        message.request_id,
        message.publisher,
        message.partition,
        message.session,
        message.from_seq,
        message.to_seq,
    )
    return packed if key is None else authenticate(packed, *key)


def is_gap_fill(datagram: bytes) -> bool:
    """Whether a datagram on the recovery socket is of this protocol and not a repaired KTP/1 datagram."""
    return datagram[:2] == b"\x46\x47"


def decode_gap_fill(datagram: bytes, keys: Mapping[int, bytes] | None = None) -> GapFill:
    """The request or reply; verified if `keys` (key id -> key) is given.

    Raises `TruncatedDatagramError`, `ForeignDatagramError`, `UnsupportedVersionError`, `LengthMismatchError`,
    `AuthenticationError`.
    """
    if len(datagram) < GAP_FILL_BYTES:
        raise TruncatedDatagramError(f"gap-fill datagram of {len(datagram)} B")
    fields = GAP_FILL.unpack_from(datagram)
    magic, version, kind, stream, flags, code, request_id, publisher, partition, *rest = fields
    if magic != GAP_FILL_MAGIC:
        raise ForeignDatagramError(f"magic 0x{magic:04X} is not a gap fill")
    # A reply repeats what was asked, also a stream that there is not: the requester has to be able to read it.
    is_stream = stream in _STREAMS or kind == GapFillKind.REPLY
    if version != VERSION or kind not in _KINDS or not is_stream:
        raise UnsupportedVersionError(f"gap fill version {version}, kind {kind}, stream {stream}")
    trailer = TRAILER_BYTES if flags & FLAG_AUTHENTICATED else 0
    if len(datagram) != GAP_FILL_BYTES + trailer:
        raise LengthMismatchError(f"gap-fill datagram of {len(datagram)} B with flags {flags}")
    if keys is not None:
        verify_trailer(datagram, flags, GAP_FILL_BYTES, keys)
    session, from_seq, to_seq = rest
    message = GapFill(
        kind, stream, code, request_id, publisher, partition, session, from_seq, to_seq, flags
    )
    if kind == GapFillKind.REQUEST and not 0 < from_seq <= to_seq:
        raise LengthMismatchError(f"gap-fill request for {from_seq}..{to_seq}")
    return message


_KINDS = frozenset(GapFillKind)
_STREAMS = frozenset(Stream)


# --- TCP ------------------------------------------------------------------------------------------


class FrameKind(IntEnum):
    """What the payload of a TCP frame is."""

    DATAGRAM = 0
    """One KTP/1 datagram."""
    CONTROL = 1
    """One msgpack control message."""
    BOOKS = 2
    """Books of a snapshot, `PackedBooks`, for a client that asked for them like that."""


class Control(msgspec.Struct, array_like=True, tag=0, gc=False, frozen=True):
    """Base of the control messages; fields are only ever appended, with defaults."""


class Open(Control, array_like=True, tag=1, gc=False, frozen=True):
    """First frame of the client."""

    version: int
    nonce: bytes = b""


class SessionRange(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What recovery holds of one session: per stream the oldest sequence and the next one. `final`: it has ended."""

    session: int
    oldest_seqs: StreamSeqs
    next_seqs: StreamSeqs
    final: bool


class Hello(Control, array_like=True, tag=2, gc=False, frozen=True):
    """First frame of the server; `sessions` ascending, the last one current. `repairable` False: the log is off."""

    version: int
    publisher: int
    partition: int
    sessions: tuple[SessionRange, ...]
    repairable: bool = True
    nonce: bytes = b""


class StreamRequest(Control, array_like=True, tag=3, gc=False, frozen=True):
    """Datagrams of the streams in `next_seqs`, from these sequences of `session` on, in the order of the log.

    `until_seqs` empty: across the ends of sessions and on to live, until the client closes. Else up to these sequences
    of the same session, not included (or to the session's end, if it ended before), and then `StreamEnd`.
    """

    publisher: int
    partition: int
    session: int
    next_seqs: StreamSeqs
    until_seqs: StreamSeqs = ()


class SnapshotRequest(Control, array_like=True, tag=4, gc=False, frozen=True):
    """The state of the plant at one position of the log, which is not before `min_seqs` (next sequences wanted).

    `streams`: those wanted of BBO, TICKER, DELTA, STATUS. `tickers` empty: all markets. `packed`: books may come whole,
    in frames of their own; each then counts as one message.
    """

    publisher: int
    partition: int
    session: int
    min_seqs: StreamSeqs
    streams: tuple[int, ...]
    tickers: tuple[str, ...] = ()
    packed: bool = False


class StreamEnd(Control, array_like=True, tag=5, gc=False, frozen=True):
    """The asked range is complete: `next_seqs` of `session` would follow."""

    session: int
    next_seqs: StreamSeqs


class SnapshotEnd(Control, array_like=True, tag=6, gc=False, frozen=True):
    """The snapshot is complete: it holds all messages of `session` before `next_seqs` (of every stream of the plant).

    `counts` are (stream, messages) sent.
    """

    session: int
    next_seqs: StreamSeqs
    counts: StreamSeqs


class Reject(Control, array_like=True, tag=7, gc=False, frozen=True):
    """The request is refused; the server closes. `code` is a `RecoveryCode`, `text` one line for an operator."""

    code: int
    text: str


class Alive(Control, array_like=True, tag=8, gc=False, frozen=True):
    """Sent when nothing was for a second, so that a client can tell an idle stream from a dead server."""

    now_ns: int


AnyControl = (
    Open | Hello | StreamRequest | SnapshotRequest | StreamEnd | SnapshotEnd | Reject | Alive
)
"""Every control message."""

_encode = msgspec.msgpack.Encoder().encode
_decode_control = msgspec.msgpack.Decoder(AnyControl).decode


class Seal:
    """The trailer of one direction of one connection: `nonce` is the receiver's, frames are numbered from 0."""

    def __init__(self, key_id: int, keys: Mapping[int, bytes], nonce: bytes) -> None:
        self._key_id = key_id
        self._keys = keys
        self._nonce = nonce
        self._number = 0

    def _next_digest(self, signed: bytes, key: bytes) -> bytes:
        number = _FRAME_NUMBER.pack(self._number)
        self._number += 1
        return keyed_digest(self._nonce + number + signed, key)

    def sign(self, frame: bytes) -> bytes:
        """The trailer of the next frame, which is given from its length field up to the trailer."""
        key_id = TRAILER_KEY_ID.pack(self._key_id)
        return key_id + self._next_digest(frame + key_id, self._keys[self._key_id])

    def verify(self, frame: bytes) -> None:
        """Returns if the next frame, given whole, is authentic. Raises `AuthenticationError`."""
        (key_id,) = TRAILER_KEY_ID.unpack_from(frame, len(frame) - TRAILER_BYTES)
        key = self._keys.get(key_id)
        if key is None:
            raise AuthenticationError(f"frame is signed with unknown key id {key_id}")
        end = len(frame) - TRAILER_BYTES + TRAILER_KEY_ID.size
        check_digest(self._next_digest(frame[:end], key), frame[end:], key_id)

    def renew(self, nonce: bytes) -> Self:
        """The same direction from now on with the nonce that was just learnt; numbers go on."""
        self._nonce = nonce
        return self


def encode_frame(kind: int, payload: bytes, seal: Seal | None = None) -> bytes:
    """One TCP frame. Raises `LengthMismatchError` beyond `RECOVERY_FRAME_MAX_BYTES`."""
    trailer = 0 if seal is None else TRAILER_BYTES
    length = 1 + len(payload) + trailer
    if length > RECOVERY_FRAME_MAX_BYTES:
        raise LengthMismatchError(
            f"recovery frame of {length} B; the bound is {RECOVERY_FRAME_MAX_BYTES} B"
        )
    frame = FRAME_HEADER.pack(length, kind) + payload
    return frame if seal is None else frame + seal.sign(frame)


def encode_control(message: AnyControl, seal: Seal | None = None) -> bytes:
    """One TCP frame of a control message. Raises `LengthMismatchError`."""
    return encode_frame(FrameKind.CONTROL, _encode(message), seal)


class FrameReader:
    """Bytes of one direction of a TCP connection in, frames out; `seal` where a key is configured.

    It never holds more than one frame and what was fed with its end.
    """

    def __init__(self, seal: Seal | None = None) -> None:
        self.seal = seal
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """Takes what was read from the socket."""
        self._buffer += data

    def next(self) -> bytes | AnyControl | PackedBooks | None:
        """The next datagram (bytes), control message or books; None if it is not complete yet.

        Raises `LengthMismatchError`, `UnsupportedVersionError`, `MalformedBodyError`, `AuthenticationError`; the
        connection is then of no use.
        """
        buffer = self._buffer
        if len(buffer) < FRAME_HEADER.size:
            return None
        length, kind = FRAME_HEADER.unpack_from(buffer)
        trailer = 0 if self.seal is None else TRAILER_BYTES
        if not 1 <= length <= RECOVERY_FRAME_MAX_BYTES:
            raise LengthMismatchError(f"recovery frame says {length} B")
        if length < 1 + trailer:
            raise AuthenticationError(f"recovery frame of {length} B is not signed")
        if len(buffer) < _LENGTH_BYTES + length:
            return None
        frame = bytes(buffer[: _LENGTH_BYTES + length])
        del buffer[: _LENGTH_BYTES + length]
        if self.seal is not None:
            self.seal.verify(frame)
        payload = frame[FRAME_HEADER.size : len(frame) - trailer]
        if kind == FrameKind.DATAGRAM:
            return payload
        if kind == FrameKind.BOOKS:
            return decode_books(payload)
        if kind != FrameKind.CONTROL:
            raise UnsupportedVersionError(f"recovery frame of unknown kind {kind}")
        return _decode(payload)


def _decode(payload: bytes) -> AnyControl:
    try:
        message: Any = _decode_control(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedBodyError(f"recovery control message: {error}") from error
    control: AnyControl = message
    return control
