"""Reading a recorded capture: one frame a line, bare or wrapped, into what a replay plays.

Accepted lines: a bare frame; `{"recv_ts_ns":..., "raw":"<frame>"}`; `{"channel":..., "message":<frame>}`. A line whose
frame has no `type` cannot be replayed and is refused. Recorded replies are left out; those that took a number of a
sequence (`ok`, scoped `error`) are kept, because without them the client would see a gap.
"""

from datetime import datetime
from typing import Any

import msgspec

from tickerplant.errors import ConfigurationError

DATA_CHANNELS = {
    "orderbook_snapshot": "orderbook_delta",
    "orderbook_delta": "orderbook_delta",
    "ticker": "ticker",
    "trade": "trade",
    "market_lifecycle_v2": "market_lifecycle_v2",
    "event_lifecycle": "market_lifecycle_v2",
    "event_fee_update": "market_lifecycle_v2",
    "multivariate_market_lifecycle": "multivariate_market_lifecycle",
}
"""The channel of a data frame whose sid was not recorded being subscribed."""
BOOK_TYPES = ("orderbook_snapshot", "orderbook_delta")
NUMBERED_REPLIES = ("ok", "error")
TERMINAL_CODES = (10, 25)
RESTART = "restart"
"""`frame_type` of a mark: from here on the recorded numbers of the channel start again."""


class RecordedFrame(msgspec.Struct, frozen=True):
    """One frame to play.

    `offset_ns` is its time since the first frame. The frame is `head`, the client's sid, `seq` (0: none) and `tail`;
    `message` is its `msg`.
    """

    offset_ns: int
    channel: str
    frame_type: str
    seq: int = 0
    head: bytes = b""
    tail: bytes = b""
    ticker: str = ""
    message: msgspec.Raw = msgspec.Raw(b"null")


class Capture(msgspec.Struct, frozen=True):
    """A recording: its frames, the channels that have data, and the market ids by ticker, in order of appearance.

    `opened` are the markets whose first book frame is a snapshot. `left_out` counts recorded replies.
    """

    name: str
    frames: list[RecordedFrame]
    channels: frozenset[str]
    market_ids: dict[str, str]
    book_tickers: frozenset[str]
    opened: frozenset[str]
    left_out: int
    first_ns: int = 0
    """When it begins; 0 if it carries no time."""


class _Reader:
    """State of reading: which sid is which channel, and the time of the last stamped line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: list[RecordedFrame] = []
        self.market_ids: dict[str, str] = {}
        self.opened: dict[str, bool] = {}
        self.left_out = 0
        self._channel_by_sid: dict[int, str] = {}
        self.first_ns: int | None = None
        self._last_ns = 0

    def read_line(self, number: int, line: str) -> None:
        where = f"capture {self.name}, line {number}"
        document = _json_object(line, where)
        received_ns = document.get("recv_ts_ns")
        ending = b""
        if "type" not in document:
            raw = document.get("raw", document.get("message"))
            if isinstance(raw, str):
                ending = b"\n" if raw.endswith("\n") else b""
                document = _json_object(raw, where)
            elif isinstance(raw, dict):
                document = raw
        frame_type = document.get("type")
        if not isinstance(frame_type, str):
            raise ConfigurationError(
                f"{where} carries no frame type; only recordings of whole frames can be replayed"
            )
        self._read_frame(frame_type, document, received_ns, ending)

    def _read_frame(
        self, frame_type: str, document: dict[str, Any], received_ns: object, ending: bytes
    ) -> None:
        message = document.get("msg")
        body: dict[str, Any] = message if isinstance(message, dict) else {}
        offset_ns = self._offset_ns(received_ns, body)
        if frame_type == "subscribed":
            self._read_subscribed(body, offset_ns)
            return
        sid = document.get("sid")
        channel = DATA_CHANNELS.get(frame_type, "")
        if isinstance(sid, int):
            channel = self._channel_by_sid.get(sid, channel)
        seq = document.get("seq")
        is_reply = frame_type not in DATA_CHANNELS
        if not channel or (is_reply and not _keeps_its_number(frame_type, seq, body)):
            self.left_out += 1
            return
        ticker = body.get("market_ticker")
        ticker = ticker if isinstance(ticker, str) and not is_reply else ""
        if ticker:
            self._see_market(ticker, frame_type, body)
        head = b'{"type":' + msgspec.json.encode(frame_type)
        others = {k: v for k, v in document.items() if k not in ("type", "id", "sid", "seq")}
        tail = b"," + msgspec.json.encode(others)[1:] + ending
        number = seq if isinstance(seq, int) else 0
        raw = msgspec.Raw(msgspec.json.encode(message))
        self.frames.append(
            RecordedFrame(offset_ns, channel, frame_type, number, head, tail, ticker, raw)
        )

    def _read_subscribed(self, body: dict[str, Any], offset_ns: int) -> None:
        self.left_out += 1
        channel, sid = body.get("channel"), body.get("sid")
        if not isinstance(channel, str) or not isinstance(sid, int):
            return
        if any(frame.channel == channel for frame in self.frames):
            self.frames.append(RecordedFrame(offset_ns, channel, RESTART))
        self._channel_by_sid[sid] = channel

    def _see_market(self, ticker: str, frame_type: str, body: dict[str, Any]) -> None:
        market_id = body.get("market_id")
        if isinstance(market_id, str):
            self.market_ids[ticker] = market_id
        else:
            self.market_ids.setdefault(ticker, "")
        if frame_type in BOOK_TYPES:
            self.opened.setdefault(ticker, frame_type == "orderbook_snapshot")

    def _offset_ns(self, received_ns: object, body: dict[str, Any]) -> int:
        now_ns = received_ns if isinstance(received_ns, int) else event_time_ns(body)
        if now_ns:
            self._last_ns = max(self._last_ns, now_ns)
            if self.first_ns is None:
                self.first_ns = now_ns
        return self._last_ns - (self.first_ns or 0)


def read_capture(text: str, name: str) -> Capture:
    """The capture in `text`. Raises `ConfigurationError` naming the line that cannot be replayed."""
    reader = _Reader(name)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            reader.read_line(number, line)
    if not any(frame.frame_type in DATA_CHANNELS for frame in reader.frames):
        raise ConfigurationError(f"capture {name} holds no data frame to replay")
    channels = {f.channel for f in reader.frames if f.frame_type in DATA_CHANNELS}
    opened = {ticker for ticker, by_snapshot in reader.opened.items() if by_snapshot}
    return Capture(
        name=name,
        frames=reader.frames,
        channels=frozenset(channels),
        market_ids=reader.market_ids,
        book_tickers=frozenset(reader.opened),
        opened=frozenset(opened),
        left_out=reader.left_out,
        first_ns=reader.first_ns or 0,
    )


def event_time_ns(body: dict[str, Any]) -> int:
    """Exchange time of a frame's body: `ts_ms`, else `ts` as RFC 3339 or seconds, else 0."""
    milliseconds, stamp = body.get("ts_ms"), body.get("ts")
    if isinstance(milliseconds, int):
        return milliseconds * 1_000_000
    if isinstance(stamp, int):
        return stamp * 1_000_000_000
    if not isinstance(stamp, str):
        return 0
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1_000


def _keeps_its_number(frame_type: str, seq: object, body: dict[str, Any]) -> bool:
    """A recorded reply is played only for the number it took; the end of a recorded sid is not our client's."""
    numbered = frame_type in NUMBERED_REPLIES and isinstance(seq, int)
    return numbered and body.get("code") not in TERMINAL_CODES


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{where} is not a JSON object")
    return document
