"""Subscriptions of one connection and the frames that wait to be written to it.

One sid per channel, one sequence per sid, counted over data frames and over `ok`, `unsubscribed` and scoped `error`.
A sid that waits for too many unread frames ends with error 25. Frame faults are applied here, after the number was
taken.
"""

from collections import deque
from collections.abc import Iterable
from zlib import crc32

import msgspec

from tickerplant.limits import SIM_FAULTS_WAITING, SIM_OUTBOX_FRAMES
from tickerplant_kalshi_sim.faults import FRAME_KINDS, Fault, applies_to, corrupt
from tickerplant_kalshi_sim.frames import UNSEQUENCED_TYPES, Emission

ERROR_TEXTS = {
    1: "Unable to process message",
    2: "Params required",
    3: "Channels required",
    4: "Subscription IDs required",
    5: "Unknown command",
    7: "Unknown subscription ID",
    8: "Unknown channel name",
    9: "Authentication required",
    10: "Channel error",
    11: "Invalid parameter",
    12: "Exactly one subscription ID is required",
    13: "Unsupported action",
    14: "Market Ticker required",
    15: "Action required",
    18: "Command timeout",
    19: "Shard factor must be greater than 0",
    20: "Shard factor and shard key are required together",
    21: "Shard key out of range",
    22: "Shard factor must be at most 100",
    24: "Index IDs required",
    25: "Subscription buffer overflow",
    26: "Subscription market limit exceeded",
    27: "Too many requests",
    28: "Underlying tickers required",
}
"""Codes that a client can cause or a fault can make; 6, 16, 17 are retired, 23 belongs to no public channel."""


class Subscription:
    """One sid. `keys` is its filter (None: everything); `seq` the last number used; `waiting` unread frames."""

    def __init__(self, sid: int, channel: str) -> None:
        self.sid = sid
        self.channel = channel
        self.keys: dict[str, None] | None = None
        self.market_ids: dict[str, None] = {}
        self.use_yes_price = False
        self.skip_ticker_ack = False
        self.shard_factor = 0
        self.shard_key = 0
        self.seq = 0
        self.own_sequenced = 0
        self.waiting = 0
        self.silent = False
        self.faults: deque[Fault] = deque()
        self.command_second = -1
        self.command_count = 0
        self._heads: dict[str, bytes] = {}

    def wants(self, key: str) -> bool:
        """Whether the filters let a frame about `key` through."""
        if self.keys is not None and key not in self.keys:
            return False
        return not self.shard_factor or crc32(key.encode()) % self.shard_factor == self.shard_key

    def frame(self, frame_type: str, body: bytes) -> bytes:
        """The next frame of this sid; takes a number unless the type carries none."""
        head = self._heads.get(frame_type)
        if head is None:
            head = f'{{"type":"{frame_type}","sid":{self.sid}'.encode()
            if frame_type not in UNSEQUENCED_TYPES:
                head += b',"seq":'
            self._heads[frame_type] = head
        if frame_type in UNSEQUENCED_TYPES:
            return head + body
        self.seq += 1
        return b"%b%d%b" % (head, self.seq, body)

    def next_own_seq(self) -> int:
        """A number for a frame that is not part of a recording."""
        self.seq += 1
        self.own_sequenced += 1
        return self.seq

    def take_back_seq(self) -> None:
        """The last number was used for a frame that is never sent: the next frame gets it, and no hole shows."""
        self.seq -= 1
        self.own_sequenced -= 1


class Subscriptions:
    """The subscriptions of one connection and its outbox. `sent` counts frames by type, shared with the server."""

    def __init__(self, buffer_frames: int, sent: dict[str, int]) -> None:
        self.by_channel: dict[str, Subscription] = {}
        self.by_sid: dict[int, Subscription] = {}
        self._sids = 0
        self._buffer_frames = buffer_frames
        self._outbox: list[bytes] = []
        self._sent = sent
        self._withheld: list[bytes] = []
        self._withheld_ticks = 0
        self.late_ack_ticks = 0

    # --- opening and closing ------------------------------------------------------------------------

    def open(self, channel: str) -> Subscription:
        """A new sid for `channel`; numbers are never used twice on a connection."""
        assert channel not in self.by_channel
        self._sids += 1
        subscription = Subscription(self._sids, channel)
        self.by_channel[channel] = subscription
        self.by_sid[subscription.sid] = subscription
        return subscription

    def close(self, subscription: Subscription) -> None:
        """Forget a sid."""
        del self.by_channel[subscription.channel]
        del self.by_sid[subscription.sid]

    def end_with_error(self, subscription: Subscription, code: int) -> None:
        """Send a terminal error of the sid and forget it."""
        self.close(subscription)
        self.send_error(code, subscription=subscription)

    # --- frames -------------------------------------------------------------------------------------

    def publish(self, emissions: Iterable[Emission]) -> None:
        """Put the frames of one step that this connection subscribed to into the outbox."""
        by_channel = self.by_channel
        for emission in emissions:
            subscription = by_channel.get(emission.channel)
            if subscription is not None and subscription.wants(emission.key):
                body = emission.yes_body if subscription.use_yes_price else emission.body
                self.deliver(subscription, emission.frame_type, body)
        if self._withheld:
            self._release_withheld()

    def deliver(self, subscription: Subscription, frame_type: str, body: bytes) -> None:
        """One data frame of `subscription`, with the faults that wait for it."""
        if not subscription.silent:
            self.deliver_frame(subscription, frame_type, subscription.frame(frame_type, body))

    def deliver_frame(self, subscription: Subscription, frame_type: str, frame: bytes) -> None:
        """A data frame that already has its number."""
        faults = subscription.faults
        if faults and applies_to(faults[0], frame_type):
            fault = faults.popleft()
            if fault.kind == "silent_loss":
                subscription.take_back_seq()
            for corrupted in corrupt(fault, frame_type, frame):
                self._append(subscription, frame_type, corrupted)
            return
        self._append(subscription, frame_type, frame)

    def send_snapshot(self, subscription: Subscription, body: bytes, command_id: int = 0) -> None:
        """A snapshot that answers a command; `command_id` is echoed unless 0."""
        if subscription.silent:
            return
        echo = f',"id":{command_id}' if command_id else ""
        head = f'{{"type":"orderbook_snapshot"{echo},"sid":{subscription.sid},"seq":'
        frame = b"%b%d%b" % (head.encode(), subscription.next_own_seq(), body)
        self._append(subscription, "orderbook_snapshot", frame)

    def send_subscribed(self, subscription: Subscription, command_id: int) -> None:
        """The reply to a new subscription: the sid is in `msg`, there is no number."""
        message = {"channel": subscription.channel, "sid": subscription.sid}
        frame = _encode({"type": "subscribed"} | _echo(command_id) | {"msg": message})
        if self.late_ack_ticks:
            self._withheld.append(frame)
            self._withheld_ticks, self.late_ack_ticks = self.late_ack_ticks, 0
            return
        self._append_control("subscribed", frame)

    def send_ok(
        self,
        command_id: int,
        message: object,
        subscription: Subscription | None = None,
        *,
        sequenced: bool = True,
    ) -> None:
        """`ok`: of a sid, numbered if `sequenced`, or of the connection."""
        head: dict[str, object] = {"type": "ok"} | _echo(command_id)
        if subscription is not None:
            head["sid"] = subscription.sid
            if sequenced:
                head["seq"] = subscription.next_own_seq()
        self._append_control("ok", _encode(head | {"msg": message}))

    def send_unsubscribed(self, command_id: int, subscription: Subscription) -> None:
        """`unsubscribed` takes the next number of the sid and has no `msg`."""
        numbers = {"sid": subscription.sid, "seq": subscription.next_own_seq()}
        frame = _encode({"type": "unsubscribed"} | _echo(command_id) | numbers)
        self._append_control("unsubscribed", frame)

    def send_reference_list(
        self, command_id: int, subscription: Subscription, frame_type: str, message: object
    ) -> None:
        """The reply to `indexlist` and `underlying_list`."""
        numbers = {"sid": subscription.sid, "seq": subscription.next_own_seq()}
        frame = _encode({"type": frame_type} | _echo(command_id) | numbers | {"msg": message})
        self._append_control(frame_type, frame)

    def send_error(
        self, code: int, command_id: int = 0, subscription: Subscription | None = None
    ) -> None:
        """`error`; one of a sid carries it and takes a number of its sequence."""
        head: dict[str, object] = {"type": "error"} | _echo(command_id)
        if subscription is not None:
            head |= {"sid": subscription.sid, "seq": subscription.next_own_seq()}
        message = {"code": code, "msg": ERROR_TEXTS[code]}
        self._append_control("error", _encode(head | {"msg": message}))

    def take_frames(self) -> list[bytes]:
        """Everything to write now; the caller has room for it."""
        frames, self._outbox = self._outbox, []
        for subscription in self.by_sid.values():
            subscription.waiting = 0
        return frames

    @property
    def backlog(self) -> int:
        """Frames that wait to be written."""
        return len(self._outbox)

    @property
    def overflowing(self) -> bool:
        """Whether the outbox passed its bound: the connection is to be reset."""
        return len(self._outbox) > SIM_OUTBOX_FRAMES

    def _append(self, subscription: Subscription, frame_type: str, frame: bytes) -> None:
        self._outbox.append(frame)
        self._sent[frame_type] = self._sent.get(frame_type, 0) + 1
        subscription.waiting += 1
        if subscription.waiting > self._buffer_frames and subscription.sid in self.by_sid:
            self.end_with_error(subscription, 25)

    def _append_control(self, frame_type: str, frame: bytes) -> None:
        self._outbox.append(frame)
        self._sent[frame_type] = self._sent.get(frame_type, 0) + 1

    def _release_withheld(self) -> None:
        self._withheld_ticks -= 1
        if self._withheld_ticks <= 0:
            for frame in self._withheld:
                self._append_control("subscribed", frame)
            self._withheld.clear()

    # --- faults -------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> bool:
        """Make a frame or subscription fault here; False if this connection has no such subscription."""
        if fault.kind == "late_ack":
            self.late_ack_ticks = fault.count
            return True
        subscription = self.by_channel.get(fault.channel)
        if subscription is None:
            return False
        if fault.kind in FRAME_KINDS:
            room = SIM_FAULTS_WAITING - len(subscription.faults)
            subscription.faults.extend([fault] * min(fault.count, room))
        elif fault.kind == "dead_sid":
            subscription.silent = True
        else:
            self.end_with_error(subscription, 10 if fault.kind == "error_10" else 25)
        return True


def _echo(command_id: int) -> dict[str, object]:
    """`id` of a reply; 0 means that the command had none."""
    return {"id": command_id} if command_id else {}


def _encode(document: dict[str, object]) -> bytes:
    return msgspec.json.encode(document)
