"""The frames of one WebSocket connection, on the hot path (I/O, called by picows).

picows delivers frames, not messages: continuation frames are put together here. A read batch ends with the last frame
of the read buffer or after `FRAMES_PER_FLUSH` frames; only then is anything published or sent. Pongs are sent here and
not by picows, because a ping that it answers itself would swallow the end of the batch.
"""

from typing import TYPE_CHECKING

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from tickerplant.limits import FRAME_MAX_BYTES, FRAMES_AT_ONCE, FRAMES_PER_FLUSH

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickerplant_kalshi.session import ExchangeSession

_TEXT = WSMsgType.TEXT
_CONTINUATION = WSMsgType.CONTINUATION
_PING = WSMsgType.PING
_PONG = WSMsgType.PONG
_CLOSE = WSMsgType.CLOSE
_CONTROL_MAX_BYTES = 125
"""RFC 6455, section 5.5."""


class FrameListener(WSListener):
    """Feeds the frames of one connection to its state machine."""

    def __init__(self, session: "ExchangeSession") -> None:
        """Made when the handshake is done."""
        super().__init__()
        self._session = session
        self._counters = session.counters
        self._connection = session.connection
        self._receive: Callable[[list[bytes], int], None] = session.connection.receive_frames
        self._clock_ns = session.shell.now_ns
        self._publish = session.shell.publish
        self._now_ns = 0
        self._batch: list[bytes] = []
        self._delivered = 0
        self._is_within_batch = False
        self._fragments: bytearray | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Begin the epoch; frames may follow before `ws_connect` returns."""
        self._session.opened(self, transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """One frame; the last one of a read buffer, or the 256th, ends the batch."""
        batch = self._batch
        if not self._is_within_batch:
            self._is_within_batch = True
            self._now_ns = self._clock_ns()
        try:
            # Asking for the type of a frame takes longer than anything else here, and a control frame is never this
            # long; a binary message is, but whatever is not JSON is counted and healed all the same.
            if frame.payload_size > _CONTROL_MAX_BYTES and frame.fin and self._fragments is None:
                batch.append(frame.get_payload_as_bytes())
            else:
                self._receive_short(transport, frame)
            if frame.last_in_buffer:
                self._end_batch()
            elif len(batch) >= FRAMES_AT_ONCE:
                self._deliver()
                if self._delivered >= FRAMES_PER_FLUSH:
                    self._end_batch()
        except BaseException as error:
            self._fail(error)
            raise

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """End the epoch."""
        try:
            self._deliver()
            self._session.closed(transport)
        except BaseException as error:
            self._fail(error)
            raise

    def pause_writing(self) -> None:
        """The other side takes nothing any more: what we sent fills our buffers."""
        self._session.abort("the exchange stopped reading")

    def resume_writing(self) -> None:
        """Nothing waits: `pause_writing` has ended the connection."""

    def mute(self) -> None:
        """Take nothing more."""
        self._receive = _ignore
        self._publish = _nothing

    def _end_batch(self) -> None:
        self._is_within_batch = False
        self._deliver()
        self._delivered = 0
        self._connection.note_activity(self._now_ns)
        self._publish()

    def _deliver(self) -> None:
        """Hand on what the batch holds so far: the protocol takes many frames at once for less than one by one."""
        batch = self._batch
        if batch:
            self._batch = []
            self._delivered += len(batch)
            self._connection.counters.frames += len(batch)
            self._receive(batch, self._now_ns)

    def _fail(self, error: BaseException) -> None:
        """What follows in the buffer would be read in a state that is broken."""
        self.mute()
        self._session.note_reason(" ".join(str(error).split()) or type(error).__name__)
        self._session.shell.failed(f"connection {self._session.index}", error)

    def _receive_short(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame that may be something else than a text message in one frame."""
        if frame.msg_type is _TEXT and frame.fin and self._fragments is None:
            self._batch.append(frame.get_payload_as_bytes())
        else:
            self._receive_other(transport, frame)

    def _receive_other(self, transport: WSTransport, frame: WSFrame) -> None:
        """Everything but a text message in one frame."""
        self._deliver()
        kind = frame.msg_type
        if kind is _PING:
            self._counters.pings_received += 1
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind is _PONG:
            self._counters.pongs_received += 1
        elif kind is _CLOSE:
            code = frame.get_close_code()
            text = (frame.get_close_message() or b"").decode("utf-8", "replace")
            self._session.note_reason(f"closed by the exchange (code {code.value}) {text}".strip())
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        else:
            self._receive_part(frame, kind)

    def _receive_part(self, frame: WSFrame, kind: WSMsgType) -> None:
        """A fragment, or a binary message, which this protocol does not have."""
        parts = self._fragments
        if (kind is _CONTINUATION) != (parts is not None):
            self._counters.protocol_errors += 1
            self._session.abort("protocol error: fragments of messages are mixed up")
            return
        if parts is None:
            if kind is not _TEXT:
                self._counters.binary_frames += 1
                # A fragmented one goes on in continuation frames, which are then out of place: a reconnect.
                return
            parts = self._fragments = bytearray()
        self._counters.fragments += 1
        if len(parts) + frame.payload_size > FRAME_MAX_BYTES:
            self._counters.oversized_messages += 1
            self._fragments = bytearray()
            self._session.abort(f"message of more than {FRAME_MAX_BYTES} bytes")
            return
        parts += frame.get_payload_as_memoryview()
        if frame.fin:
            self._fragments = None
            self._batch.append(bytes(parts))


def _ignore(_frames: list[bytes], _now_ns: int) -> None:
    """Frames that come too late."""


def _nothing() -> None:
    """Batches that come too late."""
