"""A raw capture as lines of JSON, in the three shapes that others write and that `replay --jsonl` and `sim` read."""

from collections.abc import Iterable, Iterator

import msgspec

from tickerplant.errors import CaptureError
from tickerplant_kalshi.inputs import AnyInput, Begin, Frames, decode_inputs
from tickerplant_kalshi.subscriptions import CHANNEL_OF_TYPE

SHAPES = ("bare", "raw", "channel")
"""A frame a line; `{"recv_ts_ns": ..., "raw": "<frame>"}`; `{"channel": ..., "message": <frame>}`."""
CONTROL = "control"
"""The channel of a reply that is of no subscription."""


class _Head(msgspec.Struct):
    """What of a frame says to which channel it belongs."""

    type: str = ""
    sid: int = 0
    msg: msgspec.Raw = msgspec.Raw(b"null")


class _Acknowledged(msgspec.Struct):
    channel: str = ""
    sid: int = 0


class _RawLine(msgspec.Struct):
    recv_ts_ns: int
    raw: str


class _ChannelLine(msgspec.Struct):
    channel: str
    message: msgspec.Raw


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_acknowledged = msgspec.json.Decoder(_Acknowledged).decode
_encode = msgspec.json.Encoder().encode


class FrameExport:
    """The frames of one connection as lines; `lines` and `skipped` count."""

    def __init__(
        self,
        shape: str,
        connection: int | None = None,
        *,
        from_ns: int = 0,
        to_ns: int = 2**63,
    ) -> None:
        """Without `connection` the capture must be of one connection only: sids are counted for each."""
        assert shape in SHAPES
        self.lines = 0
        self.skipped = 0
        """Frames that are no JSON object and so cannot stand in a line."""
        self._shape = shape
        self._connection = connection
        self._from_ns = from_ns
        self._to_ns = to_ns
        self._channels: dict[int, str] = {}

    def export(self, records: Iterable[bytes]) -> Iterator[bytes]:
        """Lines with their line feed, from the payloads of records. Raises `CaptureError`, `DamagedCaptureError`."""
        for record in records:
            for item in decode_inputs(record):
                if type(item) is Begin:
                    self._choose(item)
                for frame in self._frames_of(item):
                    line = self._line(frame, item.now_ns)
                    if line is None:
                        self.skipped += 1
                    else:
                        self.lines += 1
                        yield line + b"\n"

    def _choose(self, begin: Begin) -> None:
        count = begin.connection_count
        if self._connection is None and count > 1:
            raise CaptureError(
                f"the capture is of {count} connections, each with numbers of its own: "
                "choose one with --connection, from 0"
            )
        if self._connection is not None and self._connection >= count:
            raise CaptureError(f"the capture is of {count} connections: --connection begins at 0")

    def _frames_of(self, item: AnyInput) -> list[bytes]:
        if type(item) is not Frames or self._connection not in (None, item.connection):
            return []
        return item.frames if self._from_ns <= item.now_ns <= self._to_ns else []

    def _line(self, frame: bytes, now_ns: int) -> bytes | None:
        try:
            head = _decode_head(frame)
            text = frame.decode()
            if self._shape == "raw":
                return _encode(_RawLine(now_ns, text))
            bare = frame.strip()
            if b"\n" in bare or b"\r" in bare:
                bare = msgspec.json.format(bare, indent=-1)
            if self._shape == "bare":
                return bare
            return _encode(_ChannelLine(self._channel_of(head), msgspec.Raw(bare)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _channel_of(self, head: _Head) -> str:
        if head.type == "subscribed":
            told = _decode_acknowledged(head.msg)
            self._channels[told.sid] = told.channel
            return told.channel or CONTROL
        return self._channels.get(head.sid) or CHANNEL_OF_TYPE.get(head.type, CONTROL)
