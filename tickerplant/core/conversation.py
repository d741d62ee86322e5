"""One TCP connection of the recovery protocol, the server's side: bytes in, a request and frames out. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from tickerplant.core.messages import Stream
from tickerplant.core.packed_books import PackedBooks
from tickerplant.core.recovery_wire import (
    FRAME_HEADER,
    NONCE_BYTES,
    VERSION,
    AnyControl,
    FrameKind,
    FrameReader,
    Hello,
    Open,
    RecoveryCode,
    Reject,
    Seal,
    SnapshotRequest,
    StreamRequest,
    StreamSeqs,
    encode_control,
    encode_frame,
)
from tickerplant.core.snapshot_packets import SNAPSHOT_STREAMS
from tickerplant.errors import AuthenticationError, WireError
from tickerplant.limits import RECOVERY_OPEN_TIMEOUT_NS

Request = StreamRequest | SnapshotRequest
_STREAMS = frozenset(Stream)
_SEQ_MAX = 0xFFFF_FFFF_FFFF_FFFF


class Keys(NamedTuple):
    """The keys of an authenticated plant: `key_id` is the one to sign with."""

    key_id: int
    keys: Mapping[int, bytes]


class Conversation:
    """Takes what the client sends up to its request; after that only the answer's frames are made here.

    `receive` returns bytes to write. Then either `request` is set, or more is to come until `deadline_ns`, or
    `is_over`: close after writing.
    """

    def __init__(
        self,
        hello: Callable[[], Hello],
        now_ns: int,
        *,
        nonce: bytes = b"",
        keys: Keys | None = None,
    ) -> None:
        """`hello` is asked once, when the client has opened; with `keys` it gets `nonce`, of `NONCE_BYTES`."""
        assert keys is None or len(nonce) == NONCE_BYTES
        self.request: Request | None = None
        self.is_over = False
        self.code: RecoveryCode | None = None
        """Why it was refused."""
        self.deadline_ns = now_ns + RECOVERY_OPEN_TIMEOUT_NS
        self._hello = hello
        self._nonce = nonce
        self._keys = keys
        self._incoming = None if keys is None else Seal(keys.key_id, keys.keys, b"")
        self._outgoing: Seal | None = None
        self._reader = FrameReader(self._incoming)
        self._is_open = False

    def receive(self, data: bytes) -> bytes:
        """What to write."""
        if self.is_over:
            return b""
        if self.request is not None:
            return self.reject(RecoveryCode.MALFORMED, "one request to a connection")
        self._reader.feed(data)
        answer = b""
        while not self.is_over:
            try:
                message = self._reader.next()
            except AuthenticationError as error:
                return answer + self.reject(RecoveryCode.UNAUTHENTICATED, str(error))
            except WireError as error:
                return answer + self.reject(RecoveryCode.MALFORMED, str(error))
            if message is None:
                break
            answer += self._take(message)
        return answer

    def _take(self, message: bytes | AnyControl | PackedBooks) -> bytes:
        if not self._is_open:
            return self._open(message)
        if self.request is not None:
            return self.reject(RecoveryCode.MALFORMED, "one request to a connection")
        if not isinstance(message, StreamRequest | SnapshotRequest):
            return self.reject(RecoveryCode.MALFORMED, "neither a stream nor a snapshot is asked")
        problem = problem_of(message)
        if problem:
            return self.reject(RecoveryCode.MALFORMED, problem)
        self.request = message
        return b""

    def _open(self, message: bytes | AnyControl | PackedBooks) -> bytes:
        if not isinstance(message, Open):
            return self.reject(RecoveryCode.MALFORMED, "the first frame has to be Open")
        if self._keys is not None:
            if len(message.nonce) != NONCE_BYTES:
                return self.reject(RecoveryCode.MALFORMED, f"a nonce has {NONCE_BYTES} bytes")
            self._outgoing = Seal(*self._keys, message.nonce)
            assert self._incoming is not None
            self._incoming.renew(self._nonce)
        if message.version != VERSION:
            return self.reject(RecoveryCode.MALFORMED, f"this is version {VERSION}")
        self._is_open = True
        hello = self._hello()
        return self.encode(
            Hello(
                hello.version,
                hello.publisher,
                hello.partition,
                hello.sessions,
                hello.repairable,
                self._nonce,
            )
        )

    # --- the answer -------------------------------------------------------------------------------

    def encode(self, message: AnyControl) -> bytes:
        """A control message as the next frame."""
        return encode_control(message, self._outgoing)

    def encode_datagrams(self, datagrams: Iterable[bytes]) -> bytes:
        """Datagrams as the next frames."""
        seal = self._outgoing
        if seal is None:
            pack, kind = FRAME_HEADER.pack, FrameKind.DATAGRAM
            return b"".join(
                part for datagram in datagrams for part in (pack(1 + len(datagram), kind), datagram)
            )
        return b"".join(encode_frame(FrameKind.DATAGRAM, datagram, seal) for datagram in datagrams)

    def encode_books(self, payloads: Iterable[bytes]) -> bytes:
        """Books of a snapshot as the next frames."""
        return b"".join(encode_frame(FrameKind.BOOKS, one, self._outgoing) for one in payloads)

    def reject(self, code: RecoveryCode, text: str) -> bytes:
        """The refusal as the last frame; without trailer where the client's nonce is not known."""
        self.is_over = True
        self.code = code
        return self.encode(Reject(code, text))


def problem_of(request: Request) -> str:
    """What is wrong with a request whatever the log holds; empty if nothing."""
    if not (0 <= request.publisher <= 0xFFFF and 0 <= request.partition <= 0xFFFF):
        return "publisher or partition is out of range"
    if not 0 <= request.session <= _SEQ_MAX:
        return "the session is out of range"
    if isinstance(request, StreamRequest):
        wanted = dict(request.next_seqs)
        if not wanted:
            return "no stream is asked"
        problem = _seqs_problem(request.next_seqs) or _seqs_problem(request.until_seqs)
        if not problem and request.until_seqs:
            until = dict(request.until_seqs)
            if until.keys() != wanted.keys():
                problem = "next_seqs and until_seqs are of different streams"
            elif any(until[stream] < seq for stream, seq in wanted.items()):
                problem = "until_seqs are before next_seqs"
        return problem
    if not request.streams or not frozenset(request.streams) <= frozenset(SNAPSHOT_STREAMS):
        return "a snapshot is of streams bbo, ticker, delta and status"
    return _seqs_problem(request.min_seqs)


def _seqs_problem(seqs: StreamSeqs) -> str:
    streams = [stream for stream, _seq in seqs]
    if len(set(streams)) != len(streams) or not _STREAMS.issuperset(streams):
        return "a stream is named twice, or unknown"
    if any(not 0 < seq <= _SEQ_MAX for _stream, seq in seqs):
        return "a sequence is out of range"
    return ""
