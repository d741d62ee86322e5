"""One TCP connection to recovery, the subscriber's side (pure): opens, hears the hello, asks once, reads the answer."""

from tickerplant.core.keyring import KeyRing
from tickerplant.core.packed_books import PackedBooks
from tickerplant.core.recovery_wire import (
    NONCE_BYTES,
    VERSION,
    AnyControl,
    FrameReader,
    Hello,
    Open,
    Seal,
    SnapshotRequest,
    StreamRequest,
    encode_control,
)
from tickerplant.errors import MalformedBodyError
from tickerplant.limits import RECOVERY_ANSWER_NS, RECOVERY_SILENCE_NS


class Dialogue:
    """Bytes in, frames out; `deadline_ns` is when the other side has been silent for too long."""

    def __init__(
        self, connection: int, address: int, nonce: bytes, key_ring: KeyRing | None, now_ns: int
    ) -> None:
        """`nonce` has `NONCE_BYTES`; with a key ring every frame is signed, both ways."""
        assert len(nonce) == NONCE_BYTES
        self.connection = connection
        self.address = address
        self.hello: Hello | None = None
        self.request: StreamRequest | SnapshotRequest | None = None
        self.deadline_ns = now_ns + RECOVERY_ANSWER_NS
        self._nonce = nonce
        self._outgoing: Seal | None = None
        incoming: Seal | None = None
        if key_ring is not None:
            self._outgoing = Seal(key_ring.signing_key_id, key_ring.keys, b"")
            incoming = Seal(key_ring.signing_key_id, key_ring.keys, nonce)
        self._reader = FrameReader(incoming)

    def open(self) -> bytes:
        """The first frame, once the connection stands."""
        return encode_control(Open(VERSION, self._nonce), self._outgoing)

    def feed(self, data: bytes, now_ns: int) -> None:
        """Takes what was read; then `next` until it returns None."""
        if self.request is not None:
            self.deadline_ns = now_ns + RECOVERY_SILENCE_NS
        self._reader.feed(data)

    def next(self) -> bytes | AnyControl | PackedBooks | None:
        """The next datagram, control message or books; a hello is kept as well.

        Raises `WireError`: then the connection is of no use.
        """
        frame = self._reader.next()
        if isinstance(frame, Hello):
            if self.hello is not None:
                raise MalformedBodyError("recovery says hello twice")
            self.hello = frame
            if self._outgoing is not None:
                self._outgoing.renew(frame.nonce)
        elif self.hello is None and isinstance(frame, bytes | PackedBooks):
            raise MalformedBodyError("recovery sends data before it says hello")
        return frame

    def ask(self, request: StreamRequest | SnapshotRequest, now_ns: int) -> bytes:
        """The frame of the one request."""
        assert self.hello is not None
        assert self.request is None
        self.request = request
        self.deadline_ns = now_ns + RECOVERY_SILENCE_NS
        return encode_control(request, self._outgoing)
